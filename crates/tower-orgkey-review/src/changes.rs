//! What changed since the previous review, and what was decided.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::keys::KeyFacts;
use crate::report::{
    ChangedKey, Changes, Decision, Finding, FindingKind, KeyReview, ORGANIZATIONS, ReviewReport,
};
use crate::time::UnixMillis;

/// The decisions of the previous review and new ones.
#[derive(Default)]
pub(crate) struct Decisions<'a> {
    previous: &'a [Finding],
    /// The places of the previous findings.
    places: HashMap<&'a str, usize>,
    old: HashSet<&'a Decision>,
    held: BTreeMap<&'a str, &'a Decision>,
    now: UnixMillis,
}

impl<'a> Decisions<'a> {
    pub(crate) fn of(
        previous: Option<&'a ReviewReport>,
        new: &'a [Decision],
        now: UnixMillis,
    ) -> Self {
        let before = previous.map_or(&[][..], |previous| &previous.decisions);
        let previous = previous.map_or(&[][..], |previous| &previous.findings);
        let ids = previous.iter().map(|finding| finding.id.as_str());
        let decisions = before.iter().chain(new);
        Self {
            previous,
            places: ids.zip(0..).collect(),
            old: before.iter().collect(),
            held: decisions.map(|it| (it.finding.as_str(), it)).collect(),
            now,
        }
    }

    /// Adds its decision to a finding.
    pub(crate) fn apply(&self, finding: &mut Finding) {
        let decision = self.held.get(finding.id.as_str()).copied();
        // A finding that was gone and came back, or is about more scopes, is another one.
        let decision = decision.filter(|decision| {
            let place = self.places.get(finding.id.as_str());
            !self.old.contains(decision)
                || place.is_some_and(|place| {
                    let decided = &self.previous[*place];
                    let mut scopes = finding.scopes.iter();
                    decided.decision.as_ref() == Some(*decision)
                        && scopes.all(|scope| decided.scopes.contains(scope))
                })
        });
        let until = decision.and_then(|decision| decision.until);
        finding.is_decision_expired = until.is_some_and(|until| until < self.now);
        finding.decision = decision.cloned();
    }

    /// Returns all decisions, also those without a finding.
    pub(crate) fn all(&self) -> Vec<Decision> {
        self.held.values().copied().cloned().collect()
    }
}

/// Compares the findings of a review with the previous ones.
pub(crate) struct FindingChanges<'d, 'a> {
    decisions: &'d Decisions<'a>,
    /// Which of the previous ones are there again.
    is_again: Vec<bool>,
    found: Vec<String>,
    decided: Vec<(FindingKind, u32, String)>,
}

impl<'d, 'a> FindingChanges<'d, 'a> {
    pub(crate) fn new(decisions: &'d Decisions<'a>) -> Self {
        Self {
            decisions,
            is_again: vec![false; decisions.previous.len()],
            found: Vec::new(),
            decided: Vec::new(),
        }
    }

    /// Adds a finding, with the place of its key.
    pub(crate) fn add(&mut self, finding: &Finding, key: u32) {
        match self.decisions.places.get(finding.id.as_str()) {
            Some(place) => self.is_again[*place] = true,
            None => self.found.push(finding.id.clone()),
        }
        let is_new = |decision: &Decision| !self.decisions.old.contains(decision);
        if finding.decision.as_ref().is_some_and(is_new) {
            self.decided.push((finding.kind, key, finding.id.clone()));
        }
    }

    /// Returns the changes of findings.
    pub(crate) fn finish(mut self, since: UnixMillis) -> Changes {
        self.found.sort_unstable();
        self.decided.sort_unstable();
        let previous = self.decisions.previous.iter().zip(self.is_again);
        let settled = previous.filter(|(_, is_again)| !is_again);
        Changes {
            since,
            found: self.found,
            settled: settled.map(|(finding, _)| finding.clone()).collect(),
            decided: self.decided.into_iter().map(|(.., id)| id).collect(),
            ..Changes::default()
        }
    }
}

/// The keys of the previous review.
#[derive(Default)]
pub(crate) struct Before<'a> {
    /// By id and organization.
    keys: Vec<&'a KeyReview>,
}

impl<'a> Before<'a> {
    pub(crate) fn of(report: &'a ReviewReport) -> Self {
        let mut keys: Vec<_> = report.keys.iter().collect();
        keys.sort_unstable_by(|a, b| (&a.id, &a.org).cmp(&(&b.id, &b.org)));
        Self { keys }
    }

    fn of_key(&self, id: &str) -> impl DoubleEndedIterator<Item = &'a KeyReview> {
        let from = self.keys.partition_point(|key| *key.id < *id);
        let until = self.keys.partition_point(|key| *key.id <= *id);
        self.keys[from..until].iter().copied()
    }

    /// Returns the key on the list, by organization.
    fn listed(&self, id: &str) -> impl DoubleEndedIterator<Item = &'a KeyReview> {
        self.of_key(id).filter(|key| key.is_listed())
    }

    pub(crate) fn org(&self, id: &str) -> Option<&'a str> {
        self.listed(id).next_back()?.org.as_deref()
    }

    pub(crate) fn get(&self, org: Option<&str>, id: &str) -> Option<&'a KeyReview> {
        self.of_key(id).find(|key| key.org.as_deref() == org)
    }

    /// Its organization may have become known since.
    pub(crate) fn any(&self, org: Option<&str>, id: &str) -> Option<&'a KeyReview> {
        self.get(org, id).or_else(|| self.listed(id).next_back())
    }

    /// Adds a key of the list to the changes. One that several organizations used is one key.
    pub(crate) fn compare(&self, key: &KeyFacts, orgs: &[&str], changes: &mut Changes) {
        let before: Vec<_> = self.listed(&key.id).collect();
        let mut it = ChangedKey {
            org: orgs.first().map(|org| (*org).to_owned()),
            id: key.id.clone(),
            name: key.name.clone(),
            what: Vec::new(),
        };
        let Some(first) = before.first() else {
            changes.added.push(it);
            return;
        };
        let of_before: Vec<_> = before.iter().filter_map(|key| key.org.as_deref()).collect();
        it.what = differences(first, &of_before, key, orgs);
        if !it.what.is_empty() {
            changes.changed.push(it);
        }
    }

    /// Returns the keys that are not on the list any more.
    pub(crate) fn removed(&self, is_listed: impl Fn(&str) -> bool) -> Vec<ChangedKey> {
        let keys = self.keys.chunk_by(|a, b| a.id == b.id);
        let listed = keys.filter_map(|keys| keys.iter().find(|key| key.is_listed()));
        let gone = listed.filter(|key| !is_listed(&key.id));
        gone.map(|key| ChangedKey {
            org: key.org.clone(),
            id: key.id.clone(),
            name: key.name.clone(),
            what: Vec::new(),
        })
        .collect()
    }
}

fn differences(
    before: &KeyReview,
    orgs_before: &[&str],
    now: &KeyFacts,
    orgs: &[&str],
) -> Vec<String> {
    let mut what = Vec::new();
    let mut text = |name: &str, before: &str, now: &str| {
        if before != now {
            what.push(format!("{name}: {before} to {now}"));
        }
    };
    text("name", &before.name, &now.name);
    text("status", &before.status, &now.status);
    text("type", &before.kind, &now.kind);
    text("scopes", &before.granted.join(" "), &now.scopes.join(" "));
    if !orgs_before.is_empty() && !orgs.is_empty() && orgs_before != orgs {
        let (before, now) = (orgs_before.join(" "), orgs.join(" "));
        what.push(format!("{ORGANIZATIONS}{before} to {now}"));
    }
    if let (Some(before), Some(now)) = (&before.suffix, &now.suffix)
        && before != now
    {
        what.push("secret rotated".to_owned());
    }
    what
}
