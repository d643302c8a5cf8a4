//! What one pass over audit lines leaves: a record per organization and key, and which part of which trail it is about.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;
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

/// What is known about a key in an organization.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The first and the last request, and the last one that was not rejected, in milliseconds since 1970.
    pub(crate) first: u64,
    pub(crate) last: u64,
    #[serde(default)]
    pub(crate) last_allowed: u64,
    #[serde(default)]
    pub(crate) allowed: u64,
    /// Rejections by the index of their code.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) rejected: Vec<(u32, u64)>,
    /// Requests by the index of their combination of policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) asked: Vec<(u32, u64)>,
    /// Requests with a combination that found no place.
    #[serde(default)]
    pub(crate) uncounted: u64,
}

/// Adds to the count of an index. `false` if there are `most` others.
pub(crate) fn count(counts: &mut Vec<(u32, u64)>, index: u32, most: usize) -> bool {
    if let Some((_, count)) = counts.iter_mut().find(|(held, _)| *held == index) {
        *count += 1;
        return true;
    }
    if counts.len() >= most {
        return false;
    }
    if counts.is_empty() {
        // Most keys have one, and there may be millions of them.
        counts.reserve_exact(1);
    }
    counts.push((index, 1));
    true
}

/// The requests of an organization in a week.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Week {
    /// Since 1970, from Monday.
    pub(crate) number: u32,
    pub(crate) allowed: u64,
    pub(crate) rejected: u64,
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

pub(crate) type Map<V> = HashMap<Box<str>, V, RandomState>;

/// A segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) head: Head,
    /// By organization and key, with a space between them. Without a key, if the issuer gives its keys no id.
    pub(crate) records: Map<Box<Record>>,
    pub(crate) weeks: Map<Vec<Week>>,
}

impl Segment {
    /// Brings everything into an order that does not depend on that of the lines.
    pub(crate) fn sort(&mut self) {
        let codes = sort(&mut self.head.codes);
        let combinations = sort(&mut self.head.combinations);
        for record in self.records.values_mut() {
            renumber(&mut record.rejected, &codes);
            renumber(&mut record.asked, &combinations);
        }
    }

    /// Whether they have an event in common. `Some` has the trail and its sequence number.
    pub(crate) fn common(&self, other: &Self) -> Option<(&str, u64)> {
        self.head.trails.iter().find_map(|(trail, ranges)| {
            let number = ranges.common(other.head.trails.get(trail)?)?;
            Some((trail.as_str(), number))
        })
    }

    /// The end of the last event.
    pub(crate) fn until(&self) -> u64 {
        let ranges = self.head.trails.values().flat_map(Ranges::iter);
        ranges.map(|range| range.until).max().unwrap_or(0)
    }
}

/// Sorts a table. Returns the new place of each entry.
fn sort<T: Ord>(table: &mut Vec<T>) -> Vec<u32> {
    let mut entries: Vec<_> = std::mem::take(table).into_iter().zip(0_usize..).collect();
    entries.sort_unstable();
    let mut places = vec![0; entries.len()];
    for ((entry, old), new) in entries.into_iter().zip(0_u32..) {
        table.push(entry);
        places[old] = new;
    }
    places
}

fn renumber(counts: &mut [(u32, u64)], places: &[u32]) {
    for (index, _) in &mut *counts {
        *index = places[*index as usize];
    }
    counts.sort_unstable();
}

/// Splits the key of a record.
pub(crate) fn split(name: &str) -> (&str, Option<&str>) {
    match name.split_once(' ') {
        Some((org, key)) => (org, Some(key)),
        None => (name, None),
    }
}
