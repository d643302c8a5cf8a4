//! When the circuits of the breaker may be open, and when they must be: by the published rules and the calls that the issuer
//! received.
//!
//! The history shows whether a call was for a known key, and whether the key was ever valid. It does not show whether the
//! layer still remembers a key that was valid once, so calls for such keys may belong to either circuit.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use crate::history::{Answer, Moment};
use crate::world::Secret;

/// Distinct keys that fail in a row.
const MAX_FAILING: usize = 5;
/// Distinct keys whose replies make no sense, in a row.
const MAX_INVALID_RESPONSES: usize = 10;
/// Half of so many calls in [`WINDOW`].
const MIN_CALLS: usize = 20;
const WINDOW: Duration = Duration::from_secs(10);
/// The layer counts by whole seconds.
const SECOND: Duration = Duration::from_secs(1);

/// The kind of key that a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Known,
    /// Was valid once. The layer may remember that, or have reason not to.
    OnceValid,
    Unknown,
}

/// Which failures the model counts. Nothing but the default is true.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counting {
    /// Whether those of unknown keys count for the known circuit.
    pub(crate) unknown_for_known: bool,
    /// Whether each failure of a key counts, not only one in a row.
    pub(crate) repeats: bool,
}

/// A call that ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) secret: Secret,
    pub(crate) class: Class,
    pub(crate) sent: Moment,
    pub(crate) over: Moment,
    pub(crate) answer: Answer,
}

#[derive(Debug)]
pub(crate) struct Circuits {
    counting: Counting,
    pub(crate) known: Circuit,
    pub(crate) unknown: Circuit,
    /// Distinct keys whose replies made no sense since the last answer.
    invalid_responses: HashSet<Secret>,
}

#[derive(Debug, Default)]
pub(crate) struct Circuit {
    /// When it may have been open: from the first moment to the second, if that has come.
    spans: Vec<(Moment, Option<Moment>)>,
    must_be_open: bool,
    /// When it may last have opened or closed. The layer ignores the outcomes of calls that began before.
    changed: Option<Moment>,
    /// The keys that may have failed in a row.
    may_fail: HashSet<Secret>,
    /// The failures that surely count as failures in a row.
    must_fail: Vec<Secret>,
    recent: VecDeque<Recent>,
}

/// A failure or an answer of the last seconds.
#[derive(Debug)]
struct Recent {
    at: Duration,
    secret: Secret,
    is_failure: bool,
    /// Whether it surely counts.
    is_sure: bool,
}

/// What the end of a call may have done to a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    Opened,
    Closed,
}

impl Circuits {
    pub(crate) fn new(counting: Counting) -> Self {
        Self {
            counting,
            known: Circuit::default(),
            unknown: Circuit::default(),
            invalid_responses: HashSet::new(),
        }
    }

    pub(crate) fn note(&mut self, end: &End) {
        let when = end.over;
        if end.answer.is_answer() {
            self.invalid_responses.clear();
        } else if end.answer == Answer::InvalidResponse {
            self.invalid_responses.insert(end.secret);
        }
        let opens = end.answer == Answer::InvalidResponse
            && self.invalid_responses.len() >= MAX_INVALID_RESPONSES;
        let repeats = self.counting.repeats;
        if end.class != Class::Unknown {
            let was_sure = self.known.must_be_open;
            let is_sure = end.class == Class::Known;
            let change = self.known.note(end, is_sure, opens, repeats);
            let is_sure = self.known.must_be_open;
            self.unknown.follow(change, was_sure, is_sure, when);
        } else if self.counting.unknown_for_known {
            if end.answer == Answer::Failed {
                self.known.note(end, true, false, repeats);
            } else {
                self.known.must_fail.clear();
            }
        }
        if end.class != Class::Known {
            let is_sure = end.class == Class::Unknown;
            self.unknown.note(end, is_sure, opens, repeats);
        }
    }
}

impl Circuit {
    pub(crate) fn may_be_open(&self) -> bool {
        matches!(self.spans.last(), Some((_, None)))
    }

    pub(crate) fn must_be_open(&self) -> bool {
        self.must_be_open
    }

    /// Returns whether it may have been open at some time from `since` to `until`.
    pub(crate) fn may_be_open_within(&self, since: Duration, until: Moment) -> bool {
        let ends_later = |end: Option<Moment>| end.is_none_or(|end| end.at >= since);
        let mut late = self
            .spans
            .iter()
            .rev()
            .take_while(|(_, end)| ends_later(*end));
        late.any(|(start, _)| *start < until)
    }

    /// Counts a call that belongs to this circuit, surely or perhaps.
    fn note(&mut self, end: &End, is_sure: bool, opens: bool, repeats: bool) -> Change {
        let is_of_this_phase = self.changed.is_none_or(|changed| end.sent > changed);
        let is_sure = is_sure && is_of_this_phase;
        match end.answer {
            Answer::Failed => return self.fail(end, is_sure, repeats),
            Answer::InvalidResponse if opens => return self.may_open(end.over),
            Answer::InvalidResponse => return Change::None,
            _ => {}
        }
        self.must_be_open &= !is_of_this_phase;
        if end.answer.is_answer() {
            self.must_fail.clear();
            self.count(end, false, is_sure);
            if is_sure {
                self.may_fail.clear();
            }
        }
        if is_sure {
            self.close(end.over)
        } else {
            Change::None
        }
    }

    fn fail(&mut self, end: &End, is_sure: bool, repeats: bool) -> Change {
        let was_open = self.may_be_open();
        let counted_lately = self.recent.iter().any(|recent| {
            recent.is_failure
                && recent.secret == end.secret
                && recent.at + WINDOW + SECOND >= end.over.at
        });
        self.count(end, true, false);
        self.may_fail.insert(end.secret);
        let is_distinct = !counted_lately && !self.must_fail.contains(&end.secret);
        if is_sure && !was_open && (repeats || is_distinct) {
            self.must_fail.push(end.secret);
        }
        let must_open = self.must_fail.len() >= MAX_FAILING;
        let may_open =
            was_open || self.may_fail.len() >= MAX_FAILING || self.may_be_half_of_all_calls();
        if !must_open && !may_open {
            return Change::None;
        }
        self.must_be_open |= must_open;
        self.may_open(end.over)
    }

    fn count(&mut self, end: &End, is_failure: bool, is_sure: bool) {
        let at = end.over.at;
        let is_old = |recent: &Recent| recent.at + WINDOW + 2 * SECOND < at;
        while self.recent.front().is_some_and(is_old) {
            self.recent.pop_front();
        }
        self.recent.push_back(Recent {
            at,
            secret: end.secret,
            is_failure,
            is_sure,
        });
    }

    /// Returns whether half of at least 20 calls in 10 s may have failed. A key's failures count once.
    fn may_be_half_of_all_calls(&self) -> bool {
        let now = self.recent.back().map_or(Duration::ZERO, |last| last.at);
        let within = |span: Duration, is_failure: bool| {
            let recent = self.recent.iter();
            recent.filter(move |recent| recent.is_failure == is_failure && recent.at + span >= now)
        };
        let longest = WINDOW + SECOND;
        let failing: HashSet<_> = within(longest, true).map(|recent| recent.secret).collect();
        let failures = failing.len();
        let most_answers = within(longest, false).count();
        let answers = within(WINDOW - SECOND, false).filter(|recent| recent.is_sure);
        let answers = answers.count().max(MIN_CALLS.saturating_sub(failures));
        answers <= most_answers && failures >= answers
    }

    fn may_open(&mut self, when: Moment) -> Change {
        if !self.may_be_open() {
            self.spans.push((when, None));
        }
        self.must_fail.clear();
        self.changed = Some(when);
        Change::Opened
    }

    fn close(&mut self, when: Moment) -> Change {
        match self.spans.last_mut() {
            Some((_, end @ None)) => *end = Some(when),
            _ => return Change::None,
        }
        self.changed = Some(when);
        for recent in &mut self.recent {
            recent.is_sure = false;
        }
        Change::Closed
    }

    /// Follows the known circuit, which opens and closes for unknown keys too.
    fn follow(&mut self, change: Change, was_sure: bool, is_sure: bool, when: Moment) {
        match change {
            Change::None => {}
            Change::Opened => {
                self.may_open(when);
                self.must_be_open |= is_sure && !was_sure;
            }
            Change::Closed => {
                self.must_fail.clear();
                self.must_be_open = false;
                if was_sure {
                    self.close(when);
                }
                self.changed = Some(when);
            }
        }
    }
}
