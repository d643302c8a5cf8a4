//! What changed since the previous review, and what was decided.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::report::{
    ChangedKey, Changes, Decision, Finding, KeyReview, ORGANIZATIONS, ReviewReport,
};

/// Carries decisions over, and adds them to their findings.
pub(crate) fn decide(
    report: &mut ReviewReport,
    previous: Option<&ReviewReport>,
    decisions: &[Decision],
) {
    let mut held: BTreeMap<&str, &Decision> = BTreeMap::new();
    let before = previous.map_or(&[][..], |previous| &previous.decisions);
    let old: HashSet<&Decision> = before.iter().collect();
    for decision in before.iter().chain(decisions) {
        held.insert(&decision.finding, decision);
    }
    let decided = previous.iter().flat_map(|previous| &previous.findings);
    let decided: HashMap<&str, &Finding> = decided
        .map(|finding| (finding.id.as_str(), finding))
        .collect();
    for finding in &mut report.findings {
        let decision = held.get(finding.id.as_str()).copied();
        // A finding that was gone and came back, or is about more scopes, is another one.
        let decision = decision.filter(|decision| {
            let decided = decided.get(finding.id.as_str());
            !old.contains(decision)
                || decided.is_some_and(|decided| {
                    let mut scopes = finding.scopes.iter();
                    decided.decision.as_ref() == Some(*decision)
                        && scopes.all(|scope| decided.scopes.contains(scope))
                })
        });
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
            None => changes.added.push(changed(key.key, Vec::new())),
            Some(held) => {
                let what = differences(held, key);
                if !what.is_empty() {
                    changes.changed.push(changed(key.key, what));
                }
            }
        }
    }
    let gone = before.iter().filter(|(id, _)| !now.contains_key(*id));
    changes.removed = gone.map(|(_, key)| changed(key.key, Vec::new())).collect();
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
    let old: HashSet<&Decision> = previous.decisions.iter().collect();
    let decided = report.findings.iter().filter(|finding| {
        finding
            .decision
            .as_ref()
            .is_some_and(|decision| !old.contains(decision))
    });
    changes.decided = decided.map(|finding| finding.id.clone()).collect();
    changes
}

/// A key of the list, with its organizations.
struct Listed<'a> {
    key: &'a KeyReview,
    orgs: BTreeSet<&'a str>,
}

/// The keys of the list. One that several organizations used is one key.
fn listed(report: &ReviewReport) -> BTreeMap<&str, Listed<'_>> {
    let mut listed = BTreeMap::new();
    for key in report.keys.iter().filter(|key| key.is_listed()) {
        let orgs = BTreeSet::new();
        let held = listed.entry(&*key.id).or_insert(Listed { key, orgs });
        held.orgs.extend(key.org.as_deref());
    }
    listed
}

fn changed(key: &KeyReview, what: Vec<String>) -> ChangedKey {
    ChangedKey {
        org: key.org.clone(),
        id: key.id.clone(),
        name: key.name.clone(),
        what,
    }
}

fn differences(before: &Listed<'_>, now: &Listed<'_>) -> Vec<String> {
    let joined = |listed: &Listed<'_>| {
        let orgs: Vec<_> = listed.orgs.iter().copied().collect();
        orgs.join(" ")
    };
    let orgs = (joined(before), joined(now));
    let (before, now) = (before.key, now.key);
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
    if !orgs.0.is_empty() && !orgs.1.is_empty() && orgs.0 != orgs.1 {
        what.push(format!("{ORGANIZATIONS}{} to {}", orgs.0, orgs.1));
    }
    if let (Some(before), Some(now)) = (&before.suffix, &now.suffix)
        && before != now
    {
        what.push("secret rotated".to_owned());
    }
    what
}
