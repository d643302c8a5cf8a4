//! Audit lines. `quarter` shows that they are those that the audit layer writes.

use serde_json::{Value, json};

use crate::DAY;

/// What a line says.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) trail: u64,
    pub(crate) sequence: u64,
    pub(crate) time: u64,
    pub(crate) org: Option<&'static str>,
    pub(crate) key: Option<String>,
    /// `allowed`, or the code of a rejection.
    pub(crate) code: &'static str,
    pub(crate) policies: Vec<(Vec<Vec<&'static str>>, bool)>,
}

pub(crate) fn allowed(org: &'static str, key: &str, time: u64, any_of: &[&[&'static str]]) -> Line {
    let any_of = any_of.iter().map(|scopes| scopes.to_vec()).collect();
    Line {
        trail: 1,
        sequence: 0,
        time,
        org: Some(org),
        key: Some(key.to_owned()),
        code: "allowed",
        policies: vec![(any_of, true)],
    }
}

impl Line {
    pub(crate) fn json(&self) -> Value {
        let is_denied = self.code != "allowed";
        let mut user = json!({ "type_id": 4 });
        if let Some(org) = self.org {
            user["org"] = json!({ "uid": org });
        }
        if let Some(key) = &self.key {
            user["uid"] = key.as_str().into();
            user["programmatic_credentials"] = json!([{ "type": "API Key", "uid": key }]);
        }
        let authorizations = self.policies.iter().map(|(any_of, is_met)| {
            json!({
                "decision": if *is_met { "allowed" } else { "denied" },
                "policy": { "type": "Scope", "name": "x", "data": { "any_of": any_of } },
            })
        });
        let authorizations: Vec<_> = authorizations.collect();
        let mut line = self.count("Request", 6003);
        line["action_id"] = if is_denied { 2 } else { 1 }.into();
        line["status_code"] = self.code.into();
        line["actor"] = json!({ "user": user });
        if !authorizations.is_empty() {
            line["authorizations"] = authorizations.into();
        }
        line.as_object_mut().unwrap().remove("count");
        line
    }

    /// A line of a class that counts, with the count 1.
    pub(crate) fn count(&self, name: &str, class: u32) -> Value {
        json!({
            "class_uid": class,
            "class_name": name,
            "metadata": {
                "version": "1.8.0",
                "product": { "name": "tower-orgkey" },
                "uid": format!("{:016x}-{}", self.trail, self.sequence),
                "sequence": self.sequence,
            },
            "time": self.time,
            "start_time": self.time,
            "end_time": self.time,
            "count": 1,
            "user": { "name": "unknown" },
        })
    }
}

/// Numbers the lines of a trail in order, and returns them as text.
pub(crate) fn numbered(trail: u64, first: u64, lines: impl IntoIterator<Item = Line>) -> String {
    let mut text = String::new();
    for (sequence, mut line) in (first..).zip(lines) {
        (line.trail, line.sequence) = (trail, sequence);
        text += &line.json().to_string();
        text.push('\n');
    }
    text
}

/// A trail with an event of another organization on each of these days before `now`.
pub(crate) fn heartbeat(since: u64, until: u64) -> Vec<Line> {
    (until..=since)
        .rev()
        .map(|days| {
            allowed(
                "org_beat",
                "key_beat",
                crate::now().0 - days * DAY,
                &[&["beat"]],
            )
        })
        .collect()
}
