//! What changed since the previous review, and what was decided.

use std::collections::{BTreeMap, HashSet};

use crate::keys::{KeyFacts, KeyList};
use crate::previous::{Known, PreviousReview};
use crate::report::{
    ChangedKey, Changes, Decision, Finding, FindingKind, NOT_LISTED, ORGANIZATIONS,
};
use crate::time::UnixMillis;

/// The decisions of the previous review and new ones.
#[derive(Default)]
pub(crate) struct Decisions<'a> {
    previous: Option<&'a PreviousReview>,
    old: HashSet<&'a Decision>,
    held: BTreeMap<&'a str, &'a Decision>,
    now: UnixMillis,
}

impl<'a> Decisions<'a> {
    pub(crate) fn of(
        previous: Option<&'a PreviousReview>,
        new: &'a [Decision],
        now: UnixMillis,
    ) -> Self {
        let before = previous.map_or(&[][..], |previous| &previous.decisions);
        let decisions = before.iter().chain(new);
        Self {
            previous,
            old: before.iter().collect(),
            held: decisions.map(|it| (it.finding.as_str(), it)).collect(),
            now,
        }
    }

    /// Adds its decision to a finding.
    pub(crate) fn apply(&self, finding: &mut Finding) {
        let decision = self.held.get(finding.id.as_str()).copied();
        // A finding that was gone and came back, or is about more scopes or a later request, is another one.
        let decision = decision.filter(|decision| {
            let decided = self.previous.and_then(|it| it.decided.get(&finding.id));
            !self.old.contains(decision)
                || decided.is_some_and(|decided| {
                    let mut scopes = finding.scopes.iter();
                    decided.decision.as_ref() == Some(*decision)
                        && finding.used_at <= decided.used_at
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
    previous: &'a PreviousReview,
    /// Which of the previous ones are there again.
    is_again: Vec<bool>,
    found: Vec<String>,
    decided: Vec<(FindingKind, u32, String)>,
}

impl<'d, 'a> FindingChanges<'d, 'a> {
    pub(crate) fn new(decisions: &'d Decisions<'a>, previous: &'a PreviousReview) -> Self {
        Self {
            decisions,
            previous,
            is_again: vec![false; previous.finding_count()],
            found: Vec::new(),
            decided: Vec::new(),
        }
    }

    /// Adds a finding, with the place of its key.
    pub(crate) fn add(&mut self, finding: &Finding, key: u32) {
        match self.previous.finding(&finding.id) {
            Some(place) => self.is_again[place] = true,
            None => self.found.push(finding.id.clone()),
        }
        let is_new = |decision: &Decision| !self.decisions.old.contains(decision);
        if finding.decision.as_ref().is_some_and(is_new) {
            self.decided.push((finding.kind, key, finding.id.clone()));
        }
    }

    /// Returns the changes of findings, and which of the previous ones are there again. Without those that are gone, unless the
    /// previous findings are in memory.
    pub(crate) fn finish(mut self) -> (Changes, Vec<bool>) {
        self.found.sort_unstable();
        self.decided.sort_unstable();
        let held = self.previous.held.iter().flatten();
        let is_gone = |finding: &&Finding| {
            let place = self.previous.finding(&finding.id);
            place.is_some_and(|place| !self.is_again[place])
        };
        let changes = Changes {
            since: self.previous.until,
            found: self.found,
            settled: held.filter(is_gone).cloned().collect(),
            decided: self.decided.into_iter().map(|(.., id)| id).collect(),
            ..Changes::default()
        };
        (changes, self.is_again)
    }
}

/// The keys of the previous review.
#[derive(Clone, Copy)]
pub(crate) struct Before<'a>(pub(crate) Option<&'a Known>);

impl<'a> Before<'a> {
    /// Returns the places of a key, by organization.
    fn of_key(self, id: &str) -> impl DoubleEndedIterator<Item = (&'a KeyList, usize)> {
        let (list, places) = match self.0 {
            Some(Known { list, places }) => (Some(list), places.as_slice()),
            None => (None, &[][..]),
        };
        let id_of = |place: u32| list.map_or("", |list| list.id(place as usize));
        let from = places.partition_point(|place| id_of(*place) < id);
        let until = places.partition_point(|place| id_of(*place) <= id);
        let places = places[from..until].iter();
        places.filter_map(move |place| Some((list?, *place as usize)))
    }

    /// Returns the places of the key if it was on the list, by organization.
    fn listed(self, id: &str) -> impl DoubleEndedIterator<Item = (&'a KeyList, usize)> {
        let of_key = self.of_key(id);
        of_key.filter(|(list, at)| list.status(*at) != NOT_LISTED)
    }

    /// Returns the organization of the key, also of one that was not on the list.
    pub(crate) fn org(self, id: &str) -> Option<&'a str> {
        let (list, at) = self.of_key(id).next_back()?;
        list.org(at)
    }

    pub(crate) fn get(self, org: Option<&str>, id: &str) -> Option<KeyFacts> {
        let mut of_key = self.of_key(id);
        let (list, at) = of_key.find(|(list, at)| list.org(*at) == org)?;
        Some(list.get(at))
    }

    /// Its organization may have become known since.
    pub(crate) fn any(self, org: Option<&str>, id: &str) -> Option<KeyFacts> {
        self.get(org, id).or_else(|| {
            let (list, at) = self.listed(id).next_back()?;
            Some(list.get(at))
        })
    }

    /// Adds a key of the list to the changes. One that several organizations used is one key.
    pub(crate) fn compare(self, key: &KeyFacts, orgs: &[&str], changes: &mut Changes) {
        let mut it = ChangedKey {
            org: orgs.first().map(|org| (*org).to_owned()),
            id: key.id.clone(),
            name: key.name.clone(),
            what: Vec::new(),
        };
        let Some((list, first)) = self.listed(&key.id).next() else {
            changes.added.push(it);
            return;
        };
        let of_before = self.listed(&key.id);
        let of_before: Vec<_> = of_before.filter_map(|(list, at)| list.org(at)).collect();
        it.what = differences(&list.get(first), &of_before, key, orgs);
        if !it.what.is_empty() {
            changes.changed.push(it);
        }
    }

    /// Returns the keys that are not on the list any more.
    pub(crate) fn removed(self, is_listed: impl Fn(&str) -> bool) -> Vec<ChangedKey> {
        let Some(Known { list, places }) = self.0 else {
            return Vec::new();
        };
        let id = |place: &u32| list.id(*place as usize);
        let keys = places.chunk_by(|a, b| id(a) == id(b));
        let was_listed = |place: &&u32| list.status(**place as usize) != NOT_LISTED;
        let listed = keys.filter_map(|keys| keys.iter().find(was_listed));
        let gone = listed.filter(|place| !is_listed(id(place)));
        gone.map(|place| {
            let key = list.get(*place as usize);
            ChangedKey {
                org: key.org,
                id: key.id,
                name: key.name,
                what: Vec::new(),
            }
        })
        .collect()
    }
}

fn differences(
    before: &KeyFacts,
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
    text("scopes", &before.scopes.join(" "), &now.scopes.join(" "));
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
