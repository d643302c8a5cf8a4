//! The review: a pure function of a key list, evidence and a policy.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::changes;
use crate::coverage::Coverage;
use crate::evidence::Evidence;
use crate::findings::Judge;
use crate::keys::{KeyFacts, KeyList};
use crate::least::{least, permits};
use crate::policy::ReviewPolicy;
use crate::report::{Decision, KeyReview, NOT_LISTED, ReviewReport, RevokedKey, WeekCount};
use crate::segment::{Combination, Record, Segment, split};
use crate::time::{UnixMillis, monday};

/// An access review. [`report`](Self::report) depends on nothing but what it is given.
///
/// ```
/// use tower_orgkey_review::{EvidenceBuilder, KeyList, Review, ReviewPolicy, UnixMillis};
///
/// # fn lines() -> &'static [u8] { &[] }
/// let keys = KeyList::from_json(r#"[{ "id": "key_1", "type": "user" }]"#, UnixMillis::now()).unwrap();
/// let mut evidence = EvidenceBuilder::new();
/// evidence.read("audit.jsonl", lines(), |_| {}).unwrap();
///
/// let report = Review::of(&keys, &evidence.finish(), &ReviewPolicy::new()).report();
/// assert_eq!(report.findings[0].id, "not-of-organization - key_1");
/// ```
#[derive(Debug)]
#[must_use]
pub struct Review<'a> {
    keys: &'a KeyList,
    evidence: &'a Evidence,
    policy: &'a ReviewPolicy,
    previous: Option<&'a ReviewReport>,
    decisions: &'a [Decision],
}

/// What the segments of the window say.
struct Seen<'a> {
    segments: Vec<&'a Segment>,
    /// Keys, each with an organization that used it. Sorted.
    orgs: Vec<(&'a str, &'a str)>,
    /// The organizations with requests of keys that have no id.
    unidentified: BTreeSet<&'a str>,
    /// Whether requests of verified keys have neither an organization nor a key.
    is_org_missing: bool,
    /// All scopes that a policy names.
    asked: BTreeSet<&'a str>,
}

impl<'a> Review<'a> {
    /// Returns a review without an earlier one and without decisions. The time of the review is that of the list.
    pub fn of(keys: &'a KeyList, evidence: &'a Evidence, policy: &'a ReviewPolicy) -> Self {
        Self {
            keys,
            evidence,
            policy,
            previous: None,
            decisions: &[],
        }
    }

    /// Sets the previous review. It shows what changed, when a secret was rotated, and what was decided.
    pub fn previous(mut self, report: &'a ReviewReport) -> Self {
        self.previous = Some(report);
        self
    }

    /// Sets decisions. One about the same finding as a decision of the previous review replaces it.
    pub fn decisions(mut self, decisions: &'a [Decision]) -> Self {
        self.decisions = decisions;
        self
    }

    /// Returns the report.
    pub fn report(&self) -> ReviewReport {
        let now = self.keys.listed_at;
        let since = self.policy.window_start(now);
        let segments: Vec<_> = self.evidence.since(since).collect();
        let coverage = Coverage::of(self.evidence, &segments, now, self.policy);
        let seen = Seen::of(segments);
        let before = self.previous.map(Before::of).unwrap_or_default();
        let mut keys = self.key_reviews(&seen, &before);
        // Ids differ. A stable sort would need half of the memory again.
        keys.sort_unstable_by(|a, b| (&a.org, &a.id).cmp(&(&b.org, &b.id)));
        let revoked = self.revoked(&keys);
        let judge = Judge {
            policy: self.policy,
            coverage: &coverage,
            revoked: earliest(&revoked),
            last_used: latest(&keys),
            asked: &seen.asked,
            unidentified: &seen.unidentified,
            is_org_missing: seen.is_org_missing,
            now,
        };
        let mut findings: Vec<_> = keys.iter().flat_map(|key| judge.findings(key)).collect();
        findings.sort_unstable_by(|a, b| (a.kind, &a.org, &a.key).cmp(&(b.kind, &b.org, &b.key)));
        let mut report = ReviewReport {
            orgkey_review: 1,
            organization: None,
            changes: None,
            findings,
            requests: seen.requests(),
            decisions: Vec::new(),
            coverage,
            keys,
            revoked,
        };
        changes::decide(&mut report, self.previous, self.decisions);
        report.changes = self
            .previous
            .map(|previous| changes::since(previous, &report));
        report
    }

    fn key_reviews(&self, seen: &Seen<'_>, before: &Before<'_>) -> Vec<KeyReview> {
        let mut reviews = Vec::new();
        let mut listed = BTreeSet::new();
        for key in &self.keys.keys {
            listed.insert(key.id.as_str());
            let mut orgs: BTreeSet<&str> = key.org.as_deref().into_iter().collect();
            orgs.extend(seen.orgs_of(&key.id));
            if orgs.is_empty() {
                orgs.extend(before.org(&key.id));
            }
            if orgs.is_empty() {
                reviews.push(self.key_review(key, None, seen, before));
            }
            let is_shared = orgs.len() > 1;
            for org in orgs {
                let mut review = self.key_review(key, Some(org), seen, before);
                review.is_shared = is_shared;
                reviews.push(review);
            }
        }
        for (id, org) in &seen.orgs {
            if listed.contains(id) {
                continue;
            }
            let known = before.keys.get(&(Some(*org), *id));
            let facts = KeyFacts {
                id: (*id).to_owned(),
                name: known.map_or_else(String::new, |key| key.name.clone()),
                status: NOT_LISTED.to_owned(),
                ..KeyFacts::default()
            };
            let mut review = self.key_review(&facts, Some(org), seen, before);
            review.is_shared = seen.orgs_of(id).count() > 1;
            reviews.push(review);
        }
        reviews
    }

    fn key_review(
        &self,
        key: &KeyFacts,
        org: Option<&str>,
        seen: &Seen<'_>,
        before: &Before<'_>,
    ) -> KeyReview {
        let known = before.any(org, &key.id);
        let now = self.keys.listed_at;
        let is_rotated = known.is_some_and(|known| {
            known.suffix.is_some() && key.suffix.is_some() && known.suffix != key.suffix
        });
        let (secret_since, watched_since) = match known {
            // It was rotated before this list, so it is at least as old.
            Some(known) if is_rotated => (Some(now), known.watched_since),
            Some(known) => (known.secret_since.or(key.created_at), known.watched_since),
            None => (key.created_at, now),
        };
        let mut review = KeyReview {
            org: org.map(str::to_owned),
            id: key.id.clone(),
            name: key.name.clone(),
            kind: key.kind.clone(),
            status: key.status.clone(),
            suffix: key.suffix.clone(),
            created_at: key.created_at,
            last_verified_at: key.last_verified_at,
            secret_since,
            watched_since,
            granted: key.scopes.clone(),
            ..KeyReview::default()
        };
        if let Some(org) = org {
            seen.add(&mut review, org);
        }
        review
    }

    /// Returns since when keys are known to be inactive or gone: those of before, and those of this list.
    fn revoked(&self, keys: &[KeyReview]) -> Vec<RevokedKey> {
        let mut revoked: BTreeMap<(Option<String>, String), UnixMillis> = BTreeMap::new();
        let active: BTreeSet<&str> = {
            let active = self.keys.keys.iter().filter(|key| key.is_active());
            active.map(|key| key.id.as_str()).collect()
        };
        if let Some(previous) = self.previous {
            let gone = previous
                .keys
                .iter()
                .map(|key| (&key.org, &key.id, self.keys.listed_at));
            let known = previous
                .revoked
                .iter()
                .map(|key| (&key.org, &key.id, key.seen_at));
            for (org, id, seen_at) in known.chain(gone) {
                if !active.contains(id.as_str()) {
                    let name = (org.clone(), id.clone());
                    let held = revoked.entry(name).or_insert(seen_at);
                    *held = seen_at.min(*held);
                }
            }
        }
        for key in keys {
            // One that was created after the list was read is not on it either.
            let existed = key.is_listed()
                || key
                    .first_used
                    .is_some_and(|first| first <= self.keys.listed_at);
            if key.status != "active" && existed {
                let name = (key.org.clone(), key.id.clone());
                revoked.entry(name).or_insert(self.keys.listed_at);
            }
        }
        let revoked = revoked.into_iter();
        revoked
            .map(|((org, id), seen_at)| RevokedKey { org, id, seen_at })
            .collect()
    }
}

/// Outcomes of requests with a verified key, of which another region records neither the organization nor the key.
const WITHOUT_ORG: [&str; 2] = ["wrong-region", "region-unknown"];

/// Since when each key is known to be inactive or gone, in any organization.
fn earliest(revoked: &[RevokedKey]) -> HashMap<&str, UnixMillis> {
    let mut earliest = HashMap::new();
    for key in revoked {
        let held = earliest.entry(key.id.as_str()).or_insert(key.seen_at);
        *held = key.seen_at.min(*held);
    }
    earliest
}

/// The last request of each key, in any organization.
fn latest(keys: &[KeyReview]) -> HashMap<&str, UnixMillis> {
    let mut latest = HashMap::new();
    for key in keys {
        if let Some(last) = key.last_used {
            let held = latest.entry(key.id.as_str()).or_insert(last);
            *held = last.max(*held);
        }
    }
    latest
}

/// The keys of the previous review.
#[derive(Default)]
struct Before<'a> {
    keys: BTreeMap<(Option<&'a str>, &'a str), &'a KeyReview>,
    by_id: HashMap<&'a str, &'a KeyReview>,
}

impl<'a> Before<'a> {
    fn of(report: &'a ReviewReport) -> Self {
        let keys = report.keys.iter();
        Self {
            keys: keys
                .clone()
                .map(|key| ((key.org.as_deref(), key.id.as_str()), key))
                .collect(),
            by_id: keys
                .filter(|key| key.is_listed())
                .map(|key| (key.id.as_str(), key))
                .collect(),
        }
    }

    fn org(&self, id: &str) -> Option<&'a str> {
        self.by_id.get(id).and_then(|key| key.org.as_deref())
    }

    /// Its organization may have become known since.
    fn any(&self, org: Option<&str>, id: &str) -> Option<&'a KeyReview> {
        let known = self.by_id.get(id).copied();
        self.keys.get(&(org, id)).copied().or(known)
    }
}

impl<'a> Seen<'a> {
    fn of(segments: Vec<&'a Segment>) -> Self {
        let mut orgs = Vec::new();
        let mut unidentified = BTreeSet::new();
        let mut asked = BTreeSet::new();
        let mut is_org_missing = false;
        for segment in &segments {
            let codes = &segment.head.unauthenticated;
            is_org_missing |= WITHOUT_ORG.iter().any(|code| codes.contains_key(*code));
            for name in segment.records.keys() {
                match split(name) {
                    (org, Some(key)) => orgs.push((key, org)),
                    (org, None) => {
                        unidentified.insert(org);
                    }
                }
            }
            for combination in &segment.head.combinations {
                let policies = combination.met.iter().chain(&combination.unmet);
                asked.extend(policies.flatten().flatten().map(String::as_str));
            }
        }
        orgs.sort_unstable();
        orgs.dedup();
        Self {
            segments,
            orgs,
            unidentified,
            is_org_missing,
            asked,
        }
    }

    fn orgs_of(&self, key: &str) -> impl Iterator<Item = &'a str> {
        let from = self.orgs.partition_point(|(id, _)| *id < key);
        let of_key = self.orgs[from..]
            .iter()
            .take_while(move |(id, _)| *id == key);
        of_key.map(|(_, org)| *org)
    }

    fn records(&self, name: &str) -> impl Iterator<Item = (&'a Segment, &'a Record)> {
        self.segments
            .iter()
            .filter_map(move |segment| Some((*segment, &**segment.records.get(name)?)))
    }

    /// Adds what the key did in the organization, and what it needs in all of its organizations.
    fn add(&self, review: &mut KeyReview, org: &str) {
        let name = format!("{org} {}", review.id);
        for (segment, record) in self.records(&name) {
            let time = |millis: u64| (millis > 0).then_some(UnixMillis(millis));
            let first = time(record.first);
            review.first_used = review
                .first_used
                .map_or(first, |held| first.map(|it| it.min(held)));
            review.last_used = review.last_used.max(time(record.last));
            review.last_allowed = review.last_allowed.max(time(record.last_allowed));
            review.allowed += record.allowed;
            for (code, count) in &record.rejected {
                let code = segment.head.codes.get(*code as usize).cloned();
                *review.rejected.entry(code.unwrap_or_default()).or_default() += count;
            }
        }
        let granted: BTreeSet<&str> = review.granted.iter().map(String::as_str).collect();
        let (here, _) = self.combinations(&review.id, [org]);
        let mut denied = BTreeSet::new();
        for combination in here.keys().filter(|combination| !combination.is_served) {
            let unmet = combination.unmet.iter();
            let unmet = unmet.filter(|policy| !permits(policy, &granted));
            let scopes = unmet.flatten().flatten();
            denied.extend(scopes.filter(|scope| !granted.contains(scope.as_str())));
        }
        let (combinations, uncounted) = self.combinations(&review.id, self.orgs_of(&review.id));
        let mut met = Vec::new();
        let mut replayed = 0;
        for (combination, count) in combinations {
            if combination.is_truncated {
                review.truncated += count;
            }
            if combination.met.is_empty() && combination.unmet.is_empty() {
                review.unguarded += count;
            } else if combination.is_met() || combination.is_served {
                replayed += count;
                met.extend(combination.met.iter().map(|policy| (policy, count)));
            }
        }
        // Without all of them, there is no proof.
        let needed = if uncounted == 0 && replayed > 0 {
            least(&granted, &met)
        } else {
            None
        };
        let owned = |scopes: BTreeSet<&str>| scopes.into_iter().map(str::to_owned).collect();
        let needed = needed.map(owned);
        let denied = denied.into_iter().cloned().collect();
        review.replayed = if needed.is_some() { replayed } else { 0 };
        review.needed = needed;
        review.denied = denied;
    }

    /// Returns what guards asked of a key in organizations, and how many requests were not counted.
    fn combinations<'o>(
        &self,
        id: &str,
        orgs: impl IntoIterator<Item = &'o str>,
    ) -> (BTreeMap<&'a Combination, u64>, u64) {
        let mut combinations = BTreeMap::new();
        let mut uncounted = 0;
        for org in orgs {
            for (segment, record) in self.records(&format!("{org} {id}")) {
                uncounted += record.uncounted;
                for (combination, count) in &record.asked {
                    if let Some(held) = segment.head.combinations.get(*combination as usize) {
                        *combinations.entry(held).or_default() += count;
                    }
                }
            }
        }
        (combinations, uncounted)
    }

    fn requests(&self) -> BTreeMap<String, Vec<WeekCount>> {
        let mut requests: BTreeMap<&str, BTreeMap<u32, WeekCount>> = BTreeMap::new();
        for segment in &self.segments {
            for (org, weeks) in &segment.weeks {
                let held = requests.entry(org).or_default();
                for week in weeks {
                    let held = held.entry(week.number).or_default();
                    held.week = monday(week.number);
                    held.allowed += week.allowed;
                    held.rejected += week.rejected;
                }
            }
        }
        requests
            .into_iter()
            .map(|(org, weeks)| (org.to_owned(), weeks.into_values().collect()))
            .collect()
    }
}
