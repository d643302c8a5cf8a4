//! What changed since the previous review, and what was decided.

use std::collections::{BTreeMap, BTreeSet};

use crate::report::{ChangedKey, Changes, Decision, KeyReview, ReviewReport};

/// Carries decisions over, and adds them to their findings.
pub(crate) fn decide(
    report: &mut ReviewReport,
    previous: Option<&ReviewReport>,
    decisions: &[Decision],
) {
    let mut held: BTreeMap<&str, &Decision> = BTreeMap::new();
    let before = previous.map_or(&[][..], |previous| &previous.decisions);
    for decision in before.iter().chain(decisions) {
        held.insert(&decision.finding, decision);
    }
    for finding in &mut report.findings {
        let decision = held.get(finding.id.as_str()).copied();
        let now = report.coverage.until;
        let until = decision.and_then(|decision| decision.until);
        finding.is_decision_expired = until.is_some_and(|until| until < now);
        finding.decision = decision.cloned();
    }
    report.decisions = held.into_values().cloned().collect();
}

/// Returns what is different from the previous review.
pub(crate) fn since(previous: &ReviewReport, report: &ReviewReport) -> Changes {
    let (before, now) = (listed(previous), listed(report));
    let mut changes = Changes {
        since: previous.coverage.until,
        ..Changes::default()
    };
    for (id, key) in &now {
        match before.get(id) {
            None => changes.added.push(changed(key, Vec::new())),
            Some(held) => {
                let what = differences(held, key);
                if !what.is_empty() {
                    changes.changed.push(changed(key, what));
                }
            }
        }
    }
    let gone = before.iter().filter(|(id, _)| !now.contains_key(*id));
    changes.removed = gone.map(|(_, key)| changed(key, Vec::new())).collect();
    let ids = |report: &ReviewReport| -> BTreeSet<String> {
        report
            .findings
            .iter()
            .map(|finding| finding.id.clone())
            .collect()
    };
    let (had, has) = (ids(previous), ids(report));
    changes.found = has.difference(&had).cloned().collect();
    let settled = previous
        .findings
        .iter()
        .filter(|finding| !has.contains(&finding.id));
    changes.settled = settled.cloned().collect();
    let decided = report.findings.iter().filter(|finding| {
        finding
            .decision
            .as_ref()
            .is_some_and(|decision| !previous.decisions.contains(decision))
    });
    changes.decided = decided.map(|finding| finding.id.clone()).collect();
    changes
}

/// The keys of the list. One that several organizations used is one key.
fn listed(report: &ReviewReport) -> BTreeMap<&str, &KeyReview> {
    let keys = report.keys.iter().filter(|key| key.is_listed());
    keys.map(|key| (key.id.as_str(), key)).collect()
}

fn changed(key: &KeyReview, what: Vec<String>) -> ChangedKey {
    ChangedKey {
        org: key.org.clone(),
        id: key.id.clone(),
        name: key.name.clone(),
        what,
    }
}

fn differences(before: &KeyReview, now: &KeyReview) -> Vec<String> {
    let mut what = Vec::new();
    let mut text = |name: &str, before: &str, now: &str| {
        if before != now {
            what.push(format!("{name}: {before} to {now}"));
        }
    };
    text("name", &before.name, &now.name);
    text("status", &before.status, &now.status);
    text("type", &before.kind, &now.kind);
    text("scopes", &before.granted.join(" "), &now.granted.join(" "));
    if let (Some(org), Some(other)) = (&before.org, &now.org) {
        text("organization", org, other);
    }
    if let (Some(before), Some(now)) = (&before.suffix, &now.suffix)
        && before != now
    {
        what.push("secret rotated".to_owned());
    }
    what
}
