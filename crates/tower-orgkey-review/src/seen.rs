//! What the evidence says about keys.

use std::collections::{BTreeMap, BTreeSet};

use crate::least::{least, permits};
use crate::report::{KeyReview, WeekCount};
use crate::segment::{Combination, Row, Segment, index};
use crate::time::{UnixMillis, monday};

/// What the segments of the window say.
pub(crate) struct Seen<'a> {
    segments: Vec<&'a Segment>,
    /// The keys of all segments by id and organization: a segment, and a row of it.
    keys: Vec<(u32, u32)>,
    /// The organizations with requests of keys that have no id.
    pub(crate) unidentified: BTreeSet<&'a str>,
    /// Whether requests of verified keys have neither an organization nor a key.
    pub(crate) is_org_missing: bool,
    /// Whether requests of keys that belong to no organization have no key.
    pub(crate) is_user_missing: bool,
    /// All scopes that a policy names.
    pub(crate) asked: BTreeSet<&'a str>,
}

/// Outcomes of requests with a verified key, of which another region records neither the organization nor the key.
const WITHOUT_ORG: [&str; 2] = ["wrong-region", "region-unknown"];

/// The outcome of requests with a verified key that belongs to no organization.
const OF_A_USER: &str = "organization-required";

impl<'a> Seen<'a> {
    pub(crate) fn of(segments: Vec<&'a Segment>) -> Self {
        let mut keys = Vec::with_capacity(segments.iter().map(|segment| segment.len()).sum());
        let mut unidentified = BTreeSet::new();
        let mut asked = BTreeSet::new();
        let (mut is_org_missing, mut is_user_missing) = (false, false);
        for (n, segment) in (0..).zip(&segments) {
            let codes = &segment.head.unauthenticated;
            is_org_missing |= WITHOUT_ORG.iter().any(|code| codes.contains_key(*code));
            is_user_missing |= codes.contains_key(OF_A_USER);
            for (at, row) in (0..).zip(segment.rows()) {
                if row.id.is_empty() {
                    unidentified.insert(row.org);
                } else {
                    keys.push((n, at));
                }
            }
            for combination in &segment.head.combinations {
                let policies = combination.met.iter().chain(&combination.unmet);
                asked.extend(policies.flatten().flatten().map(String::as_str));
            }
        }
        let name = |(n, at): &(u32, u32)| {
            let row = segments[*n as usize].row(*at as usize);
            (row.id, row.org)
        };
        keys.sort_unstable_by(|a, b| name(a).cmp(&name(b)));
        Self {
            segments,
            keys,
            unidentified,
            is_org_missing,
            is_user_missing,
            asked,
        }
    }

    fn at(&self, place: usize) -> (&'a Segment, Row<'a>) {
        let (n, at) = self.keys[place];
        let segment = self.segments[n as usize];
        (segment, segment.row(at as usize))
    }

    /// Returns the id of the key at a place of [`keys`](Self::keys).
    pub(crate) fn id(&self, place: u32) -> &'a str {
        self.at(place as usize).1.id
    }

    /// Returns all ids once, each with a place.
    pub(crate) fn ids(&self) -> impl Iterator<Item = (u32, &'a str)> {
        let mut last = "";
        (0..index(self.keys.len())).filter_map(move |place| {
            let id = self.id(place);
            (std::mem::replace(&mut last, id) != id).then_some((place, id))
        })
    }

    /// Returns the records of a key, by organization.
    fn of_key(&self, id: &str) -> impl Iterator<Item = (&'a Segment, Row<'a>)> {
        let from = self.keys.partition_point(|(n, at)| {
            let row = self.segments[*n as usize].row(*at as usize);
            row.id < id
        });
        let places = from..self.keys.len();
        let of_key = places.map(|place| self.at(place));
        of_key.take_while(move |(_, row)| row.id == id)
    }

    /// Returns the organizations that a key was used in.
    pub(crate) fn orgs_of(&self, id: &str) -> Vec<&'a str> {
        let mut orgs: Vec<_> = self.of_key(id).map(|(_, row)| row.org).collect();
        orgs.dedup();
        orgs
    }

    /// Returns the first request of a key in an organization.
    pub(crate) fn first_used(&self, org: &str, id: &str) -> Option<UnixMillis> {
        let in_org = self.of_key(id).filter(|(_, row)| row.org == org);
        let first = in_org.filter_map(|(_, row)| time(row.record.first));
        first.min()
    }

    /// Returns the last request of a key in any organization.
    pub(crate) fn last_used(&self, id: &str) -> Option<UnixMillis> {
        let last = self.of_key(id).filter_map(|(_, row)| time(row.record.last));
        last.max()
    }

    /// Adds what the key did in the organization, and what it needs in all of its organizations.
    pub(crate) fn add(&self, review: &mut KeyReview, org: &str) {
        let rows: Vec<_> = self.of_key(&review.id).collect();
        let here = || rows.iter().filter(|(_, row)| row.org == org);
        for (segment, Row { record, .. }) in here() {
            let first = time(record.first);
            review.first_used = review
                .first_used
                .map_or(first, |held| first.map(|it| it.min(held)));
            review.last_used = review.last_used.max(time(record.last));
            review.last_allowed = review.last_allowed.max(time(record.last_allowed));
            review.allowed += record.allowed;
            for (code, count) in record.rejected() {
                let code = segment.head.codes.get(code as usize).cloned();
                *review.rejected.entry(code.unwrap_or_default()).or_default() += count;
            }
        }
        let granted: BTreeSet<&str> = review.granted.iter().map(String::as_str).collect();
        let (of_org, _) = combinations(here());
        let mut denied = BTreeSet::new();
        for combination in of_org.keys().filter(|it| !it.is_served) {
            let unmet = combination.unmet.iter();
            let unmet = unmet.filter(|policy| !permits(policy, &granted));
            let scopes = unmet.flatten().flatten();
            denied.extend(scopes.filter(|scope| !granted.contains(scope.as_str())));
        }
        let (combinations, uncounted) = combinations(&rows);
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

    /// Returns the organizations with requests.
    pub(crate) fn orgs(&self) -> BTreeSet<&'a str> {
        let orgs = self.segments.iter().flat_map(|segment| &segment.orgs);
        orgs.map(|org| &*org.name).collect()
    }

    /// Returns the requests of an organization by week.
    pub(crate) fn requests(&self, org: &str) -> Vec<WeekCount> {
        let mut requests: BTreeMap<u32, WeekCount> = BTreeMap::new();
        for segment in &self.segments {
            let Ok(at) = segment.orgs.binary_search_by(|held| (*held.name).cmp(org)) else {
                continue;
            };
            for week in segment.orgs[at].weeks.iter() {
                let held = requests.entry(week.number).or_default();
                held.week = monday(week.number);
                held.allowed += week.allowed;
                held.rejected += week.rejected;
            }
        }
        requests.into_values().collect()
    }
}

fn time(millis: u64) -> Option<UnixMillis> {
    (millis > 0).then_some(UnixMillis(millis))
}

/// Returns what guards asked of a key, and how many requests were not counted.
fn combinations<'s, 'a: 's>(
    rows: impl IntoIterator<Item = &'s (&'a Segment, Row<'a>)>,
) -> (BTreeMap<&'a Combination, u64>, u64) {
    let mut combinations = BTreeMap::new();
    let mut uncounted = 0;
    for (segment, Row { record, .. }) in rows {
        uncounted += u64::from(record.uncounted);
        for (combination, count) in record.asked() {
            if let Some(held) = segment.head.combinations.get(combination as usize) {
                *combinations.entry(held).or_default() += count;
            }
        }
    }
    (combinations, uncounted)
}
