//! Folds audit lines into a segment.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead};

use foldhash::fast::RandomState;
use serde::Deserialize;

use crate::evidence::Evidence;
use crate::line::{self, Event, Kind, NotRead, Request};
use crate::segment::{
    AnyOf, CODES, COMBINATIONS, Combination, REQUIREMENTS, SegmentBuilder, index,
};
use crate::time::{UnixMillis, day, week};

/// A longer line is malformed. The audit trail writes some 1,200 bytes.
const MAX_LINE: usize = 1024 * 1024;
/// So many problems are kept. All are counted.
const PROBLEMS: usize = 100;
/// How many texts of `authorizations` are remembered. Then all are forgotten.
const KNOWN: usize = 16_384;
/// By how much the clock of a gateway may be ahead of ours, in milliseconds. Clocks that are synchronized differ by less than a
/// second, and what accepts times of others commonly accepts a difference of some minutes.
const CLOCK_DIFFERENCE: u64 = 5 * 60 * 1_000;
/// The progress is told after so many lines.
const STEP: u64 = 65_536;

/// Reads audit lines and folds them into [`Evidence`].
///
/// Lines may come from any number of files and nodes, in any order. A line that was read before, by its trail and sequence
/// number, is not counted again. A malformed line is counted and listed in [`problems`](Self::problems), and a line of
/// another schema is ignored and counted. Neither is an error. An event that is complete more than 5 min from now is malformed: its
/// clock was ahead, and it could be of any day.
///
/// # Memory
///
/// One record per organization and key, of some 200 bytes, and up to 16 bytes per organization and week; not a byte per line. A gap
/// in a trail costs some 60 bytes. BENCHMARKS.md of the repository has the measured numbers.
///
/// # Example
///
/// ```
/// use tower_orgkey_review::EvidenceBuilder;
///
/// let mut evidence = EvidenceBuilder::new();
/// evidence.read("audit.jsonl", &b"{\"class_uid\": 1}\nnot JSON\n"[..], |_| {}).unwrap();
/// assert_eq!(evidence.problems()[0].to_string(), "audit.jsonl:2: not JSON, or cut off");
/// let evidence = evidence.finish();
/// assert_eq!(evidence.lines().foreign, 1);
/// ```
#[derive(Debug, Default)]
pub struct EvidenceBuilder {
    segment: SegmentBuilder,
    since: u64,
    /// No clock that is right is later. Read again when an event is.
    latest: u64,
    /// The combination of a text of `authorizations`, of requests that were served and of rejected ones. `None` if it found no
    /// place.
    known: [HashMap<Box<str>, Option<u32>, RandomState>; 2],
    combinations: HashMap<Combination, u32, RandomState>,
    problems: Vec<Problem>,
    /// The last trail, whose name needs no lookup.
    trail: Option<(u64, String)>,
    lines: u64,
    bytes: u64,
}

/// A line that could not be read. [`EvidenceBuilder::problems`] returns the first 100.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {problem}")]
pub struct Problem {
    /// The name of the file, as it was given.
    pub file: String,
    /// The number of the line, from one.
    pub line: u64,
    /// What is wrong with it. Quotes nothing.
    pub problem: &'static str,
}

/// How much was read, by all calls of [`EvidenceBuilder::read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The lines.
    pub lines: u64,
    /// The bytes, line feeds included.
    pub bytes: u64,
}

impl EvidenceBuilder {
    /// Returns a builder that has read nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves out requests that arrived before this time. Without it, all requests count.
    ///
    /// ```
    /// use tower_orgkey_review::{EvidenceBuilder, UnixMillis};
    ///
    /// let since: UnixMillis = "2026-01-01T00:00:00Z".parse().unwrap();
    /// let evidence = EvidenceBuilder::new().since(since);
    /// ```
    pub fn since(mut self, time: UnixMillis) -> Self {
        self.since = time.0;
        self.segment.head().since = time.0;
        self
    }

    /// Reads all lines. `file` is the name for problems, and `progress` is called every 65,536 lines and at the end.
    ///
    /// # Errors
    ///
    /// What the reader returned. The lines before it count.
    pub fn read(
        &mut self,
        file: &str,
        mut input: impl BufRead,
        mut progress: impl FnMut(Progress),
    ) -> io::Result<()> {
        let mut line = Vec::new();
        let mut number = 0;
        loop {
            line.clear();
            let (length, is_whole) = read_line(&mut input, &mut line)?;
            if length == 0 {
                break;
            }
            number += 1;
            self.bytes += length;
            self.lines += 1;
            if !is_whole {
                self.malformed(file, number, "longer than 1 MiB");
            } else if !line.is_empty() {
                self.line(file, number, &line);
            }
            if self.lines.is_multiple_of(STEP) {
                progress(self.progress());
            }
        }
        progress(self.progress());
        Ok(())
    }

    /// Returns the malformed lines, at most 100.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns the evidence: one segment, or none if there was no event.
    pub fn finish(self) -> Evidence {
        Evidence::of_segment(self.segment.finish())
    }

    fn progress(&self) -> Progress {
        Progress {
            lines: self.lines,
            bytes: self.bytes,
        }
    }

    fn line(&mut self, file: &str, number: u64, line: &[u8]) {
        match line::read(line) {
            Ok(event) if self.is_ahead(&event) => {
                self.malformed(file, number, "its time is in the future");
            }
            Ok(event) => self.event(&event),
            Err(NotRead::Foreign) => self.segment.head().foreign += 1,
            Err(NotRead::Malformed(problem)) => self.malformed(file, number, problem),
        }
    }

    /// Whether the clock was ahead that the event has its times of. It is of an unknown time then, and missing in its trail.
    fn is_ahead(&mut self, event: &Event<'_>) -> bool {
        if event.complete > self.latest {
            self.latest = UnixMillis::now().0.saturating_add(CLOCK_DIFFERENCE);
        }
        event.complete > self.latest
    }

    #[cold]
    fn malformed(&mut self, file: &str, line: u64, problem: &'static str) {
        self.segment.head().malformed += 1;
        if self.problems.len() < PROBLEMS {
            self.problems.push(Problem {
                file: file.to_owned(),
                line,
                problem,
            });
        }
    }

    fn event(&mut self, event: &Event<'_>) {
        let head = self.segment.head();
        let name = match &mut self.trail {
            Some((trail, name)) if *trail == event.trail => name,
            other => {
                &mut other
                    .insert((event.trail, format!("{:016x}", event.trail)))
                    .1
            }
        };
        let ranges = match head.trails.get_mut(name.as_str()) {
            Some(ranges) => ranges,
            None => head.trails.entry(name.clone()).or_default(),
        };
        let is_new = ranges.insert(event.sequence, event.complete);
        if !is_new {
            head.duplicates += 1;
            return;
        }
        head.events += 1;
        match &event.kind {
            Kind::Request(request) => self.request(request, event.time),
            Kind::Lost(count) => self.missing(event, *count, 0),
            Kind::Suppressed(count, by_code) => self.suppressed(event, *count, by_code),
        }
    }

    /// Counts rejections without an event each. They have no organization, as those with an event that has none.
    fn suppressed(&mut self, event: &Event<'_>, count: u64, by_code: &BTreeMap<String, u64>) {
        if by_code.values().copied().fold(0, u64::saturating_add) != count {
            return self.missing(event, 0, count);
        }
        if event.complete < self.since {
            return;
        }
        let counted = &mut self.segment.head().counted;
        let of_day = counted.entry(day(event.complete)).or_default();
        *of_day = of_day.saturating_add(count);
        for (code, count) in by_code {
            self.unauthenticated(code, *count);
        }
    }

    fn unauthenticated(&mut self, code: &str, more: u64) {
        let unauthenticated = &mut self.segment.head().unauthenticated;
        let is_known = unauthenticated.contains_key(code);
        let code = if is_known || unauthenticated.len() < CODES {
            code
        } else {
            OTHER
        };
        match unauthenticated.get_mut(code) {
            Some(count) => *count = count.saturating_add(more),
            None => {
                unauthenticated.insert(code.to_owned(), more);
            }
        }
    }

    fn missing(&mut self, event: &Event<'_>, lost: u64, suppressed: u64) {
        let end = day(event.complete);
        // A clock that was wrong must not fill the memory.
        let first = day(event.time.max(self.since)).max(end.saturating_sub(366));
        let missing = &mut self.segment.head().missing;
        for day in first..end {
            missing.entry(day).or_default();
        }
        let at_end = missing.entry(end).or_default();
        at_end.lost = at_end.lost.saturating_add(lost);
        at_end.suppressed = at_end.suppressed.saturating_add(suppressed);
    }

    fn request(&mut self, request: &Request<'_>, time: u64) {
        if time < self.since {
            return;
        }
        let Some(org) = request.org.as_deref() else {
            self.unauthenticated(&request.code, 1);
            return;
        };
        let asked = match request.authorizations {
            Some(text) => self.combination(text, request.is_denied),
            None => self.combination("[]", request.is_denied),
        };
        let code = request.is_denied.then(|| self.code(&request.code));
        let org = self.segment.org(org);
        let weeks = self.segment.weeks(org);
        weeks.add(week(time), request.is_denied, 1);
        let key = request.key.as_deref().unwrap_or_default();
        let record = self.segment.record(org, key);
        if record.first == 0 || time < record.first {
            record.first = time;
        }
        record.last = record.last.max(time);
        match code {
            None => {
                record.allowed += 1;
                record.last_allowed = record.last_allowed.max(time);
            }
            Some(code) => record.reject(code, 1),
        }
        let is_counted = asked.is_some_and(|asked| record.ask(asked, 1));
        if !is_counted {
            record.uncounted = record.uncounted.saturating_add(1);
        }
    }

    fn code(&mut self, code: &str) -> u32 {
        let codes = &mut self.segment.head().codes;
        let at = codes.iter().position(|held| held == code);
        let at = at.unwrap_or_else(|| {
            let code = if codes.len() < CODES { code } else { OTHER };
            codes
                .iter()
                .position(|held| held == code)
                .unwrap_or_else(|| {
                    codes.push(code.to_owned());
                    codes.len() - 1
                })
        });
        index(at)
    }

    fn combination(&mut self, authorizations: &str, is_denied: bool) -> Option<u32> {
        let known = &mut self.known[usize::from(is_denied)];
        if let Some(known) = known.get(authorizations) {
            return *known;
        }
        let mut combination = parse(authorizations);
        combination.is_served = !is_denied && !combination.is_met();
        let at = match self.combinations.get(&combination) {
            Some(at) => Some(*at),
            None if self.combinations.len() < COMBINATIONS => {
                let combinations = &mut self.segment.head().combinations;
                let at = index(combinations.len());
                combinations.push(combination.clone());
                self.combinations.insert(combination, at);
                Some(at)
            }
            None => None,
        };
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(authorizations.into(), at);
        at
    }
}

/// The code of all codes beyond [`CODES`].
const OTHER: &str = "other";

#[derive(Deserialize)]
struct Authorization {
    decision: String,
    policy: Policy,
}

#[derive(Deserialize)]
struct Policy {
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    any_of: AnyOf,
}

/// Reads `authorizations`. One that is not understood is a combination that may lack policies.
fn parse(text: &str) -> Combination {
    let Ok(authorizations) = serde_json::from_str::<Vec<Authorization>>(text) else {
        return Combination {
            is_truncated: true,
            ..Combination::default()
        };
    };
    let mut combination = Combination {
        is_truncated: authorizations.len() >= REQUIREMENTS,
        ..Combination::default()
    };
    for Authorization { decision, policy } in authorizations {
        let is_met = decision == "allowed";
        match policy.data {
            Some(Data { mut any_of }) => {
                for scopes in &mut any_of {
                    scopes.sort_unstable();
                    scopes.dedup();
                }
                any_of.sort_unstable();
                any_of.dedup();
                let policies = if is_met {
                    &mut combination.met
                } else {
                    &mut combination.unmet
                };
                policies.push(any_of);
            }
            None => combination.is_of_other_organization |= !is_met,
        }
    }
    for policies in [&mut combination.met, &mut combination.unmet] {
        policies.sort_unstable();
        policies.dedup();
    }
    combination
}

/// Reads a line without its line feed. Returns how many bytes were read, and whether all of them are in the line.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<(u64, bool)> {
    let mut length = 0;
    loop {
        let available = match input.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if available.is_empty() {
            break;
        }
        let end = memchr::memchr(b'\n', available);
        let part = &available[..end.unwrap_or(available.len())];
        let room = MAX_LINE.saturating_sub(line.len());
        line.extend_from_slice(&part[..part.len().min(room)]);
        let used = part.len() + usize::from(end.is_some());
        length += used as u64;
        input.consume(used);
        if end.is_some() {
            break;
        }
    }
    let is_whole = length <= MAX_LINE as u64;
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok((length, is_whole))
}
