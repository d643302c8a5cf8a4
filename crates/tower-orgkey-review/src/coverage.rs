//! How much of the window the evidence is about.

use serde::{Deserialize, Serialize};

use crate::evidence::Evidence;
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
    /// The days of which no event is missing, as far as the trails tell.
    pub whole_days: u32,
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
    /// Lines that could not be read.
    pub malformed: u64,
    /// Lines of another schema, which were ignored.
    pub foreign: u64,
}

impl Coverage {
    /// Returns whether no event of the window is missing, as far as the trails tell.
    pub fn is_whole(&self) -> bool {
        self.days > 0 && self.whole_days == self.days
    }

    /// Returns a sentence, such as `61 of 90 days are recorded without gaps`.
    pub fn statement(&self) -> String {
        let Self {
            whole_days, days, ..
        } = self;
        format!("{whole_days} of {days} days are recorded without gaps")
    }

    /// Returns what is recorded of the days before `until`. A trail that says nothing for longer than `max_silence`
    /// (milliseconds) after its last event records nothing.
    pub(crate) fn of(
        evidence: &Evidence,
        segments: &[&Segment],
        until: UnixMillis,
        days: u32,
        max_silence: u64,
    ) -> Self {
        let first = day(until.0).saturating_sub(days);
        let since = UnixMillis(u64::from(first) * DAY);
        let mut coverage = Self {
            since,
            until,
            days: day(until.0) - first,
            ..Self::default()
        };
        let mut window = Days {
            first,
            recorded: vec![false; coverage.days as usize],
            is_missing: vec![false; coverage.days as usize],
        };
        for ranges in evidence.trails().values() {
            // What came before the first number that was read is missing, and may be of any day until then.
            let (mut next, mut until) = (0, since.0);
            let mut is_in_window = false;
            for range in ranges {
                if range.first > next && range.since.max(until) >= since.0 {
                    coverage.missing = coverage.missing.saturating_add(range.first - next);
                    window.mark_missing(until, range.since);
                }
                window.mark_recorded(range.since, range.until.saturating_add(max_silence));
                is_in_window |= range.until >= since.0;
                (next, until) = (range.last.saturating_add(1), range.until);
            }
            coverage.trails += u64::from(is_in_window);
        }
        for segment in segments {
            let head = &segment.head;
            coverage.events += head.events;
            coverage.malformed += head.malformed;
            coverage.foreign += head.foreign;
            // Requests before were left out.
            if head.since > since.0 {
                window.mark_missing(since.0, head.since);
            }
            for (day, missing) in head.missing.range(first..) {
                coverage.lost = coverage.lost.saturating_add(missing.lost);
                coverage.suppressed = coverage.suppressed.saturating_add(missing.suppressed);
                window.mark_missing(u64::from(*day) * DAY, u64::from(*day) * DAY);
            }
        }
        coverage.whole_days = window.whole();
        coverage
    }
}

struct Days {
    first: u32,
    recorded: Vec<bool>,
    is_missing: Vec<bool>,
}

impl Days {
    fn mark_missing(&mut self, since: u64, until: u64) {
        mark(&mut self.is_missing, self.first, since, until);
    }

    fn mark_recorded(&mut self, since: u64, until: u64) {
        mark(&mut self.recorded, self.first, since, until);
    }

    fn whole(&self) -> u32 {
        let days = self.recorded.iter().zip(&self.is_missing);
        let whole = days.filter(|(is_recorded, is_missing)| **is_recorded && !**is_missing);
        u32::try_from(whole.count()).unwrap_or(u32::MAX)
    }
}

/// Marks the days of a time, the first and the last included.
fn mark(days: &mut [bool], first: u32, since: u64, until: u64) {
    // A clock that was set back must not hide a gap.
    let (since, until) = (since.min(until), since.max(until));
    let from = day(since).saturating_sub(first) as usize;
    let Some(last) = day(until).checked_sub(first) else {
        return;
    };
    let to = (last as usize + 1).min(days.len());
    if let Some(days) = days.get_mut(from..to) {
        days.fill(true);
    }
}
