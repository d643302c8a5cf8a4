//! How much of the window the evidence is about.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::evidence::Evidence;
use crate::policy::ReviewPolicy;
use crate::segment::Segment;
use crate::time::{DAY, UnixMillis, day};

/// How much of the window was recorded. Days are those of UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Coverage {
    /// The window: whole days, and today until the list was read.
    pub since: UnixMillis,
    /// When the list was read.
    pub until: UnixMillis,
    /// The days of the window, without today.
    pub days: u32,
    /// The days that trails cover from midnight to midnight, and of which no event is missing, as far as the trails tell.
    pub whole_days: u32,
    /// How many nodes must have recorded a whole day, if the policy says it. For one organization, at most 1.
    #[serde(default)]
    pub nodes: Option<u32>,
    /// The trails. Each start of a service begins another one.
    pub trails: u64,
    /// The events that were read.
    pub events: u64,
    /// Sequence numbers that are missing in the trails.
    pub missing: u64,
    /// Events that the trails report as lost.
    pub lost: u64,
    /// Rejected requests that the trails count without an event each.
    pub suppressed: u64,
    /// Lines that could not be read, of any time: they have none. For one organization, at most 1.
    pub malformed: u64,
    /// Lines of another schema, which were ignored. For one organization, at most 1.
    pub foreign: u64,
}

impl Coverage {
    /// Returns whether no event of the window is missing and every line could be read, as far as the trails tell. Without
    /// [`nodes`](Self::nodes), they do not tell of a node whose newest files were not read.
    pub fn is_whole(&self) -> bool {
        self.days > 0 && self.whole_days == self.days && self.malformed == 0
    }

    /// Returns a sentence, such as `61 of 90 days are recorded without gaps`, and whether lines were not read or ignored.
    pub fn statement(&self) -> String {
        let Self {
            whole_days, days, ..
        } = self;
        let mut statement = format!("{whole_days} of {days} days are recorded without gaps");
        if self.malformed > 0 {
            statement.push_str("; some lines could not be read");
        }
        if self.foreign > 0 {
            statement.push_str("; lines of another schema were ignored");
        }
        statement
    }

    /// Returns what is recorded of the days before `until`.
    pub(crate) fn of(
        evidence: &Evidence,
        segments: &[&Segment],
        until: UnixMillis,
        policy: &ReviewPolicy,
    ) -> Self {
        let max_silence = u64::try_from(policy.max_silence.as_millis()).unwrap_or(u64::MAX);
        let first = day(until.0).saturating_sub(policy.window_days);
        let since = UnixMillis(u64::from(first) * DAY);
        let mut coverage = Self {
            since,
            until,
            days: day(until.0) - first,
            nodes: policy.nodes,
            ..Self::default()
        };
        let mut spans = Vec::new();
        let mut window = Days {
            first,
            is_missing: vec![false; coverage.days as usize],
        };
        for ranges in evidence.trails().values() {
            // What came before the first number that was read is missing, and may be of any day until then.
            let (mut next, mut until) = (0, 0);
            let mut is_in_window = false;
            for range in ranges {
                if range.first > next && range.since.max(until) >= since.0 {
                    coverage.missing = coverage.missing.saturating_add(range.first - next);
                    window.mark_missing(until, range.since);
                }
                is_in_window |= range.until >= since.0;
                (next, until) = (range.last.saturating_add(1), range.until);
            }
            // By number: the greatest time may be that of a clock that was ahead, and would hide that later files are missing.
            if let (Some(first), Some(last)) = (ranges.first(), ranges.last()) {
                spans.push((first.since.min(last.until), last.until));
            }
            coverage.trails += u64::from(is_in_window);
        }
        for segment in segments {
            let head = &segment.head;
            coverage.events += head.events;
            // Requests before were left out.
            if head.since > since.0 {
                window.mark_missing(since.0, head.since);
            }
            for counted in head.counted.range(first..).map(|(_, counted)| *counted) {
                coverage.suppressed = coverage.suppressed.saturating_add(counted);
            }
            for (day, missing) in head.missing.range(first..) {
                coverage.lost = coverage.lost.saturating_add(missing.lost);
                coverage.suppressed = coverage.suppressed.saturating_add(missing.suppressed);
                window.mark_missing(u64::from(*day) * DAY, u64::from(*day) * DAY);
            }
        }
        for Segment { head, .. } in &evidence.segments {
            coverage.malformed = coverage.malformed.saturating_add(head.malformed);
            coverage.foreign = coverage.foreign.saturating_add(head.foreign);
        }
        let recorded = recorded(spans, max_silence, policy.nodes.unwrap_or(1));
        coverage.whole_days = window.whole(&recorded);
        coverage
    }
}

/// Returns the times that at least so many nodes recorded, in order, of the first and last event of each trail.
///
/// A trail records for `max_silence` after its last event. If a later one begins within that time before or after, it may be
/// that of the same node, so the two never count as two nodes after the older one has ended.
fn recorded(mut spans: Vec<(u64, u64)>, max_silence: u64, nodes: u32) -> Vec<(u64, u64)> {
    spans.sort_unstable_by_key(|(_, end)| *end);
    let begins = spans.iter().enumerate().map(|(n, span)| (span.0, n));
    let mut successors: BTreeSet<(u64, usize)> = begins.collect();
    let until = spans.iter().enumerate().map(|(n, (begin, end))| {
        let near = (end.saturating_sub(max_silence), 0);
        let later = (*begin, n + 1).max(near);
        let until = (end.saturating_add(max_silence), usize::MAX);
        match successors.range(later..=until).next().copied() {
            Some(next) => {
                successors.remove(&next);
                next.0.max(*end)
            }
            None => until.0,
        }
    });
    let until: Vec<u64> = until.collect();
    // One that begins when another one ends continues it.
    let begins = spans.iter().map(|span| (span.0, false));
    let mut changes: Vec<_> = begins
        .chain(until.into_iter().map(|at| (at, true)))
        .collect();
    changes.sort_unstable();
    let mut recorded = Vec::new();
    let (mut running, mut since) = (0_u32, 0);
    for (time, is_end) in changes {
        if is_end {
            if running == nodes {
                recorded.push((since, time));
            }
            running -= 1;
        } else {
            running += 1;
            if running == nodes {
                since = time;
            }
        }
    }
    recorded
}

struct Days {
    first: u32,
    is_missing: Vec<bool>,
}

impl Days {
    /// Marks the days of a time, the first and the last included.
    fn mark_missing(&mut self, since: u64, until: u64) {
        // A clock that was set back must not hide a gap.
        let (since, until) = (since.min(until), since.max(until));
        let from = day(since).saturating_sub(self.first) as usize;
        let Some(last) = day(until).checked_sub(self.first) else {
            return;
        };
        let to = (last as usize + 1).min(self.is_missing.len());
        if let Some(days) = self.is_missing.get_mut(from..to) {
            days.fill(true);
        }
    }

    /// Returns how many days are in one of the recorded times, and miss nothing.
    fn whole(&self, recorded: &[(u64, u64)]) -> u32 {
        let days = (u64::from(self.first)..).zip(&self.is_missing);
        let whole = days.filter(|(day, is_missing)| {
            let (start, end) = (day * DAY, (day + 1) * DAY);
            let before = recorded.partition_point(|(since, _)| *since <= start);
            let held = before.checked_sub(1).and_then(|at| recorded.get(at));
            !**is_missing && held.is_some_and(|(_, until)| *until >= end)
        });
        u32::try_from(whole.count()).unwrap_or(u32::MAX)
    }
}
