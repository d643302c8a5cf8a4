//! Segments, and how they are merged.

use std::collections::{BTreeMap, BTreeSet};

use crate::ranges::Ranges;
use crate::segment::Segment;
use crate::time::{UnixMillis, day};

/// What audit trails say about keys: a small record per organization and key, and which events it was made of.
///
/// It replaces the audit lines for a review, so these can be deleted earlier. It consists of segments, each made by one
/// [`EvidenceBuilder`](crate::EvidenceBuilder). It contains organization codes, key ids, scopes and counts, but no addresses,
/// users or paths.
///
/// ```
/// use tower_orgkey_review::{Evidence, EvidenceBuilder};
///
/// # fn lines() -> &'static [u8] { &[] }
/// let mut today = EvidenceBuilder::new();
/// today.read("audit.jsonl", lines(), |_| {}).unwrap();
///
/// let mut stored = Vec::new();
/// today.finish().write(&mut stored).unwrap();
/// let evidence = Evidence::read(&*stored).unwrap();
/// let evidence = evidence.clone().merge(evidence).unwrap();
/// assert_eq!(evidence, Evidence::read(&*stored).unwrap());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// In the order of the trails and numbers that they begin with, so that equal sets are equal.
    pub(crate) segments: Vec<Segment>,
}

/// Two segments have an event in common and are not equal, so their counts cannot be added. Returned by [`Evidence::merge`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("two segments overlap: both have the event {sequence} of the trail {trail}")]
pub struct OverlapError {
    trail: String,
    sequence: u64,
}

/// How many lines were read. Returned by [`Evidence::lines`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lines {
    /// Events of audit trails.
    pub events: u64,
    /// Events that were there twice, and count once.
    pub duplicates: u64,
    /// Lines that could not be read.
    pub malformed: u64,
    /// Lines of another schema.
    pub foreign: u64,
}

impl Evidence {
    pub(crate) fn of_segment(segment: Segment) -> Self {
        let head = &segment.head;
        let is_empty = head.events + head.malformed + head.foreign == 0;
        let segments = if is_empty { Vec::new() } else { vec![segment] };
        Self { segments }
    }

    /// Returns the evidence of both.
    ///
    /// Equal segments count once. The order and the grouping of merges make no difference.
    ///
    /// # Errors
    ///
    /// Two segments have some events in common but are not equal: the same audit file was folded twice in different company.
    pub fn merge(mut self, other: Self) -> Result<Self, OverlapError> {
        for segment in other.segments {
            if self.segments.contains(&segment) {
                continue;
            }
            for held in &self.segments {
                if let Some((trail, sequence)) = held.common(&segment) {
                    return Err(OverlapError {
                        trail: trail.to_owned(),
                        sequence,
                    });
                }
            }
            let at = self
                .segments
                .partition_point(|held| order(held) < order(&segment));
            self.segments.insert(at, segment);
        }
        Ok(self)
    }

    /// Returns how many lines were read.
    pub fn lines(&self) -> Lines {
        let mut lines = Lines::default();
        for segment in &self.segments {
            lines.events += segment.head.events;
            lines.duplicates += segment.head.duplicates;
            lines.malformed += segment.head.malformed;
            lines.foreign += segment.head.foreign;
        }
        lines
    }

    /// Returns how many records there are, one per segment, organization and key.
    pub fn len(&self) -> usize {
        self.segments.iter().map(Segment::len).sum()
    }

    /// Returns the ids of the keys that a review of a window takes into account: those of segments with an event since its
    /// start, or on the day of it. Their organizations are known.
    ///
    /// ```
    /// use tower_orgkey_review::{Evidence, ReviewPolicy, UnixMillis};
    ///
    /// let start = ReviewPolicy::new().window_start(UnixMillis::now());
    /// assert!(Evidence::default().key_ids(start).is_empty());
    /// ```
    pub fn key_ids(&self, window_start: UnixMillis) -> BTreeSet<&str> {
        let segments = self.since(window_start);
        let ids = segments.flat_map(Segment::rows).map(|row| row.id);
        ids.filter(|id| !id.is_empty()).collect()
    }

    /// Returns the segments with an event since the start of a window.
    pub(crate) fn since(&self, window_start: UnixMillis) -> impl Iterator<Item = &Segment> {
        let segments = self.segments.iter();
        segments.filter(move |segment| day(segment.until()) >= day(window_start.0))
    }

    /// Returns whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the ranges of all segments by trail, those that touch as one.
    pub(crate) fn trails(&self) -> BTreeMap<&str, Vec<crate::ranges::Range>> {
        let mut trails: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for segment in &self.segments {
            for (trail, ranges) in &segment.head.trails {
                let held = trails.entry(trail).or_default();
                held.extend(Ranges::iter(ranges).copied());
            }
        }
        for ranges in trails.values_mut() {
            ranges.sort_unstable_by_key(|range| range.first);
            ranges.dedup_by(|next, held| {
                let touch = held.last.checked_add(1) == Some(next.first);
                if touch {
                    held.last = next.last;
                    held.until = next.until;
                }
                touch
            });
        }
        trails
    }
}

/// Segments with events have no two equal orders. Those without are told apart by their counts.
fn order(segment: &Segment) -> (Option<(&String, u64)>, u64, u64, u64) {
    let first = segment.head.trails.iter().next();
    let first = first.map(|(trail, ranges)| (trail, ranges.iter().next().map_or(0, |it| it.first)));
    let head = &segment.head;
    (first, head.malformed, head.foreign, head.since)
}
