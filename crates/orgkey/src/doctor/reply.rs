//! What a reply of verify says, as the verifier of `tower-orgkey` reads it.

use std::fmt;

use serde_json::{Map, Value};

use super::client::Reply;

/// The members that Kinde's contract lists.
const MEMBERS: [&str; 10] = [
    "code",
    "message",
    "is_valid",
    "key_id",
    "status",
    "scopes",
    "org_code",
    "user_id",
    "last_verified_on",
    "verification_count",
];

/// What a reply says about a key.
#[derive(Debug)]
pub(super) enum Answer {
    Valid(Members),
    /// 200, and the key is not valid.
    Invalid,
    /// 400, or 404 about the key.
    Unconfirmed(u16),
    /// 401 or 403: about the key, or about the access token.
    KeyOrToken(u16),
    /// Anything else, with the reason.
    CannotTell(String),
}

impl Answer {
    pub(super) fn is_valid(&self) -> bool {
        matches!(self, Self::Valid(_))
    }

    pub(super) fn is_key_or_token(&self) -> bool {
        matches!(self, Self::KeyOrToken(_))
    }

    pub(super) fn of(reply: &Result<Reply, String>) -> Self {
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => return Self::CannotTell(format!("no reply: {error}")),
        };
        match reply.status {
            200 => match reply.json() {
                Some(members) if is_json(reply) => read(members),
                _ => Self::CannotTell("200 without a JSON object".to_owned()),
            },
            400 => Self::Unconfirmed(400),
            404 if is_about_key(reply) => Self::Unconfirmed(404),
            status @ (401 | 403) => Self::KeyOrToken(status),
            404 => Self::CannotTell("404 with the code of an unknown path".to_owned()),
            429 => Self::CannotTell("429, too many requests".to_owned()),
            status => Self::CannotTell(format!("status {status}")),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid(_) => f.write_str("200, valid"),
            Self::Invalid => f.write_str("200, not valid"),
            Self::Unconfirmed(status) | Self::KeyOrToken(status) => write!(f, "{status}"),
            Self::CannotTell(reason) => f.write_str(reason),
        }
    }
}

fn is_json(reply: &Reply) -> bool {
    let media_type = reply.header("content-type").unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

fn is_about_key(reply: &Reply) -> bool {
    let errors = reply.json().and_then(|mut body| body.remove("errors"));
    let code = match &errors {
        Some(Value::Array(errors)) => errors.first().and_then(|error| error.get("code")),
        Some(error) => error.get("code"),
        None => None,
    };
    code.and_then(Value::as_str)
        .is_some_and(|code| code != "ROUTE_NOT_FOUND")
}

fn read(members: Map<String, Value>) -> Answer {
    let is_absent = |name: &str| members.get(name).is_none_or(Value::is_null);
    let status = members.get("status").and_then(Value::as_str);
    match members.get("is_valid") {
        Some(Value::Bool(false)) => return Answer::Invalid,
        _ if status.is_some_and(|status| status != "active") => return Answer::Invalid,
        _ if status.is_none() && !is_absent("status") => {
            return Answer::CannotTell("200 with a status that is no string".to_owned());
        }
        Some(Value::Bool(true)) => {}
        None | Some(Value::Null) => {
            let code = members.get("code").and_then(Value::as_str);
            if code != Some("API_KEY_VERIFIED") {
                let reason = "200 with neither is_valid nor the code API_KEY_VERIFIED";
                return Answer::CannotTell(reason.to_owned());
            }
        }
        Some(_) => {
            return Answer::CannotTell("200 with an is_valid that is no boolean".to_owned());
        }
    }
    Answer::Valid(Members(members))
}

/// The members of a reply for a valid key.
#[derive(Debug)]
pub(super) struct Members(Map<String, Value>);

impl Members {
    /// Returns a text that is not blank.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let text = self.0.get(name)?.as_str()?;
        (!text.trim().is_empty()).then_some(text)
    }

    /// Returns the number of scopes. `None` if they are not an array of strings.
    pub(super) fn scopes(&self) -> Option<usize> {
        match self.0.get("scopes") {
            None | Some(Value::Null) => Some(0),
            Some(Value::Array(scopes)) if scopes.iter().all(Value::is_string) => Some(scopes.len()),
            Some(_) => None,
        }
    }

    /// Returns the members of the contract that came, with their types, and the names of all others.
    pub(super) fn description(&self) -> String {
        let known = MEMBERS.iter().filter_map(|name| {
            let value = self.0.get(*name)?;
            Some(format!("{name}: {}", type_of(value)))
        });
        let mut text = known.collect::<Vec<_>>().join(", ");
        let missing: Vec<_> = MEMBERS
            .into_iter()
            .filter(|name| !self.0.contains_key(*name))
            .collect();
        if !missing.is_empty() {
            text = format!("{text}; missing: {}", missing.join(", "));
        }
        let unknown = self.0.keys().map(String::as_str);
        let unknown: Vec<_> = unknown.filter(|name| !MEMBERS.contains(name)).collect();
        if !unknown.is_empty() {
            text = format!("{text}; not in the contract: {}", unknown.join(", "));
        }
        text
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
