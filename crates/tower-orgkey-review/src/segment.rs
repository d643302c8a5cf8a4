//! What one pass over audit lines leaves: a record per organization and key, and which part of which trail it is about.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

use crate::ranges::Ranges;

/// The most different combinations of policies that are kept apart.
pub(crate) const COMBINATIONS: usize = 65_536;
/// The most combinations per key.
pub(crate) const COMBINATIONS_PER_KEY: usize = 64;
/// The most different outcomes. The layer has about two dozen.
pub(crate) const CODES: usize = 256;
/// How many requirements of a request are recorded at most. A request with so many may have had more.
pub(crate) const REQUIREMENTS: usize = 8;

/// A policy: the key must hold every scope of one of the alternatives.
pub(crate) type AnyOf = Vec<Vec<String>>;

/// What guards asked of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Combination {
    /// Scope policies that the key satisfied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) met: Vec<AnyOf>,
    /// Scope policies that it did not satisfy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) unmet: Vec<AnyOf>,
    /// Whether a requirement about the organization was not met.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_of_other_organization: bool,
    /// Whether requests were served although a requirement was not met: a handler tested it itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_served: bool,
    /// Whether there may have been more policies than were recorded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_truncated: bool,
}

impl Combination {
    pub(crate) fn is_met(&self) -> bool {
        self.unmet.is_empty() && !self.is_of_other_organization
    }
}

/// What is known about a key in an organization. There may be millions of them, so it is small.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// The first and the last request, and the last one that was not rejected, in milliseconds since 1970.
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) last_allowed: u64,
    pub(crate) allowed: u64,
    /// Requests with a combination that found no place.
    pub(crate) uncounted: u32,
    counts: Box<[Count]>,
}

/// A number of requests, below what they have in common: in a record, the place of their combination or, behind the combinations, of
/// their code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Count(u64);

/// Where the place begins. There are twice as many places as combinations, and a key has fewer than 2^47 requests.
const PLACE: u32 = 47;
/// The place of the first code.
#[allow(clippy::cast_possible_truncation, reason = "2^16")]
const FIRST_CODE: u32 = COMBINATIONS as u32;

impl Count {
    fn new(place: u32, count: u64) -> Self {
        Self(u64::from(place) << PLACE | count.min((1 << PLACE) - 1))
    }

    fn place(self) -> u32 {
        u32::try_from(self.0 >> PLACE).unwrap_or(u32::MAX)
    }

    fn count(self) -> u64 {
        self.0 & ((1 << PLACE) - 1)
    }
}

impl Record {
    /// Requests by the index of their combination of policies.
    pub(crate) fn asked(&self) -> impl Iterator<Item = (u32, u64)> {
        let counts = self.counts.iter();
        let asked = counts.filter(|count| count.place() < FIRST_CODE);
        asked.map(|count| (count.place(), count.count()))
    }

    /// Rejections by the index of their code.
    pub(crate) fn rejected(&self) -> impl Iterator<Item = (u32, u64)> {
        let counts = self.counts.iter();
        let rejected = counts.filter(|count| count.place() >= FIRST_CODE);
        rejected.map(|count| (count.place() - FIRST_CODE, count.count()))
    }

    /// Adds requests of a combination. `false` if there are [`COMBINATIONS_PER_KEY`] others.
    pub(crate) fn ask(&mut self, combination: u32, requests: u64) -> bool {
        let is_full = |record: &Self| record.asked().count() >= COMBINATIONS_PER_KEY;
        self.add(combination, requests, is_full)
    }

    /// Adds rejections with a code.
    pub(crate) fn reject(&mut self, code: u32, requests: u64) {
        self.add(FIRST_CODE + code, requests, |_| false);
    }

    fn add(&mut self, place: u32, requests: u64, is_full: impl Fn(&Self) -> bool) -> bool {
        if let Some(held) = self.counts.iter_mut().find(|held| held.place() == place) {
            *held = Count::new(place, held.count().saturating_add(requests));
            return true;
        }
        if is_full(self) {
            return false;
        }
        // Most keys have few, so no place is kept for more.
        let mut counts = std::mem::take(&mut self.counts).into_vec();
        counts.reserve_exact(1);
        counts.push(Count::new(place, requests));
        self.counts = counts.into_boxed_slice();
        true
    }

    /// Replaces indices by others, and sorts.
    fn renumber(&mut self, combinations: &[u32], codes: &[u32]) {
        for held in &mut self.counts {
            let place = match held.place().checked_sub(FIRST_CODE) {
                Some(code) => FIRST_CODE + codes[code as usize],
                None => combinations[held.place() as usize],
            };
            *held = Count::new(place, held.count());
        }
        self.counts.sort_unstable();
    }
}

/// The requests of an organization in a week.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Week {
    /// Since 1970, from Monday.
    pub(crate) number: u32,
    pub(crate) allowed: u64,
    pub(crate) rejected: u64,
}

/// The requests of an organization by week. There may be many organizations, so it has only what was counted: below the number of
/// the week, and whether the requests were rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weeks(Vec<Count>);

/// A week of the year 3226. A later one is the mistake of a clock, and counts as this one.
const LAST_WEEK: u32 = u16::MAX as u32;

impl Weeks {
    pub(crate) fn add(&mut self, week: u32, is_rejected: bool, requests: u64) {
        let place = week.min(LAST_WEEK) * 2 + u32::from(is_rejected);
        // Nearly always the last one.
        let at = match self.0.last() {
            Some(last) if last.place() == place => Ok(self.0.len() - 1),
            _ => self.0.binary_search_by_key(&place, |held| held.place()),
        };
        match at {
            Ok(at) => {
                let count = self.0[at].count().saturating_add(requests);
                self.0[at] = Count::new(place, count);
            }
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, Count::new(place, requests));
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Week> {
        let weeks = self.0.chunk_by(|a, b| a.place() / 2 == b.place() / 2);
        weeks.map(|counts| {
            let mut week = Week::default();
            for count in counts {
                week.number = count.place() / 2;
                if count.place() % 2 == 0 {
                    week.allowed = count.count();
                } else {
                    week.rejected = count.count();
                }
            }
            week
        })
    }
}

impl FromIterator<Week> for Weeks {
    fn from_iter<I: IntoIterator<Item = Week>>(weeks: I) -> Self {
        let mut counts = Self::default();
        for week in weeks {
            for (is_rejected, requests) in [(false, week.allowed), (true, week.rejected)] {
                if requests > 0 {
                    counts.add(week.number, is_rejected, requests);
                }
            }
        }
        counts
    }
}

/// What is missing of a day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Missing {
    #[serde(default)]
    pub(crate) lost: u64,
    #[serde(default)]
    pub(crate) suppressed: u64,
}

/// The head of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// By the random number of the trail, in hexadecimal digits.
    pub(crate) trails: BTreeMap<String, Ranges>,
    /// The earliest arrival that was counted, if earlier ones were left out.
    #[serde(default)]
    pub(crate) since: u64,
    /// By day. A period that has several days is counted at its last one, and the others have zeros.
    pub(crate) missing: BTreeMap<u32, Missing>,
    /// Rejections without an event each, by day, of which the outcomes are known: they are unauthenticated requests.
    #[serde(default)]
    pub(crate) counted: BTreeMap<u32, u64>,
    pub(crate) codes: Vec<String>,
    pub(crate) combinations: Vec<Combination>,
    /// Requests without a known organization, by outcome.
    pub(crate) unauthenticated: BTreeMap<String, u64>,
    pub(crate) events: u64,
    /// Events that were there twice.
    pub(crate) duplicates: u64,
    pub(crate) malformed: u64,
    pub(crate) foreign: u64,
}

/// An organization, with its requests by week.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Org {
    pub(crate) name: Box<str>,
    pub(crate) weeks: Weeks,
}

/// A key in an organization.
#[derive(Clone, Debug)]
struct Key {
    org: u32,
    /// Where the id begins.
    id: usize,
    record: Record,
}

/// A segment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segment {
    pub(crate) head: Head,
    /// By name.
    pub(crate) orgs: Vec<Org>,
    /// By organization and id.
    keys: Vec<Key>,
    /// The ids of the keys, each with a line feed.
    ids: String,
}

/// A key of a segment. The id is empty if the issuer gives its keys no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    pub(crate) org: &'a str,
    pub(crate) id: &'a str,
    pub(crate) record: &'a Record,
}

impl PartialEq for Segment {
    fn eq(&self, other: &Self) -> bool {
        self.head == other.head && self.orgs == other.orgs && self.rows().eq(other.rows())
    }
}

impl Eq for Segment {}

impl Segment {
    /// Returns how many keys there are, each once per organization.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn row(&self, at: usize) -> Row<'_> {
        let key = &self.keys[at];
        Row {
            org: &self.orgs[key.org as usize].name,
            id: id(&self.ids, key.id),
            record: &key.record,
        }
    }

    /// Returns all keys, by organization and id.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        (0..self.keys.len()).map(|at| self.row(at))
    }

    /// Whether they have an event in common. `Some` has the trail and its sequence number.
    pub(crate) fn common(&self, other: &Self) -> Option<(&str, u64)> {
        self.head.trails.iter().find_map(|(trail, ranges)| {
            let number = ranges.common(other.head.trails.get(trail)?)?;
            Some((trail.as_str(), number))
        })
    }

    /// The latest time that the ranges name.
    pub(crate) fn until(&self) -> u64 {
        let ranges = self.head.trails.values().flat_map(Ranges::iter);
        let times = ranges.map(|range| range.since.max(range.until));
        times.max().unwrap_or(0)
    }
}

/// Returns an id of a text of ids.
fn id(ids: &str, at: usize) -> &str {
    let rest = &ids[at..];
    let end = memchr::memchr(b'\n', rest.as_bytes());
    &rest[..end.unwrap_or(rest.len())]
}

/// A segment in the making, in the order of the lines.
#[derive(Debug, Default)]
pub(crate) struct SegmentBuilder {
    segment: Segment,
    orgs: HashTable<u32>,
    keys: HashTable<u32>,
    hasher: RandomState,
}

impl SegmentBuilder {
    pub(crate) fn new(head: Head) -> Self {
        let segment = Segment {
            head,
            ..Segment::default()
        };
        Self {
            segment,
            ..Self::default()
        }
    }

    pub(crate) fn head(&mut self) -> &mut Head {
        &mut self.segment.head
    }

    /// Returns the index of an organization.
    pub(crate) fn org(&mut self, name: &str) -> u32 {
        let orgs = &mut self.segment.orgs;
        let hash = self.hasher.hash_one(name);
        let held = self.orgs.find(hash, |at| &*orgs[*at as usize].name == name);
        if let Some(at) = held {
            return *at;
        }
        let at = index(orgs.len());
        orgs.push(Org {
            name: name.into(),
            weeks: Weeks::default(),
        });
        let hasher = &self.hasher;
        let rehash = |at: &u32| hasher.hash_one(&*orgs[*at as usize].name);
        self.orgs.insert_unique(hash, at, rehash);
        at
    }

    pub(crate) fn weeks(&mut self, org: u32) -> &mut Weeks {
        &mut self.segment.orgs[org as usize].weeks
    }

    /// Returns the record of a key. The id has no line feed.
    pub(crate) fn record(&mut self, org: u32, key: &str) -> &mut Record {
        let Segment { keys, ids, .. } = &mut self.segment;
        let hash = self.hasher.hash_one((org, key));
        let held = self.keys.find(hash, |at| {
            let held = &keys[*at as usize];
            held.org == org && id(ids, held.id) == key
        });
        let at = held.copied().unwrap_or_else(|| {
            let at = index(keys.len());
            keys.push(Key {
                org,
                id: ids.len(),
                record: Record::default(),
            });
            ids.push_str(key);
            ids.push('\n');
            let hasher = &self.hasher;
            let rehash = |at: &u32| {
                let held = &keys[*at as usize];
                hasher.hash_one((held.org, id(ids, held.id)))
            };
            self.keys.insert_unique(hash, at, rehash);
            at
        });
        &mut keys[at as usize].record
    }

    /// Returns the segment, in an order that does not depend on that of the lines.
    pub(crate) fn finish(self) -> Segment {
        let mut segment = self.segment;
        let codes = sort(&mut segment.head.codes, Ord::cmp);
        let combinations = sort(&mut segment.head.combinations, Ord::cmp);
        let orgs = sort(&mut segment.orgs, |a, b| a.name.cmp(&b.name));
        for key in &mut segment.keys {
            key.org = orgs[key.org as usize];
            key.record.renumber(&combinations, &codes);
        }
        let ids = &segment.ids;
        let name = |key: &Key| (key.org, id(ids, key.id));
        segment.keys.sort_unstable_by(|a, b| name(a).cmp(&name(b)));
        segment
    }
}

pub(crate) fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// Sorts a table. Returns the new place of each entry.
fn sort<T>(table: &mut Vec<T>, compare: impl Fn(&T, &T) -> Ordering) -> Vec<u32> {
    let mut entries: Vec<_> = std::mem::take(table).into_iter().zip(0_usize..).collect();
    entries.sort_unstable_by(|a, b| compare(&a.0, &b.0));
    let mut places = vec![0; entries.len()];
    for ((entry, old), new) in entries.into_iter().zip(0_u32..) {
        table.push(entry);
        places[old] = new;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weeks_count_what_was_rejected_apart() {
        let mut weeks = Weeks::default();
        for (week, is_rejected, requests) in [
            (3_000, false, 2),
            (3_001, true, 1),
            (2_999, true, 4),
            (3_000, true, 8),
            (3_000, false, 1 << 40),
            (u32::MAX, false, 1),
            (LAST_WEEK, false, 1),
        ] {
            weeks.add(week, is_rejected, requests);
        }
        let week = |number, allowed, rejected| Week {
            number,
            allowed,
            rejected,
        };
        let counted = [
            week(2_999, 0, 4),
            week(3_000, (1 << 40) + 2, 8),
            week(3_001, 0, 1),
            week(LAST_WEEK, 2, 0),
        ];
        assert!(weeks.iter().eq(counted));
        assert_eq!(counted.into_iter().collect::<Weeks>(), weeks);
        assert_eq!(size_of_val(&*weeks.0), 5 * 8);
    }
}
