//! The totals of one node in a file.
//!
//! The file is a checksum and a JSON value, and is replaced as a whole. Beside it is a second file with the number of the last
//! version, so that an older version is recognized.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tower_orgkey::OrgCode;

use super::ledger::Ledger;
use super::store::{MaybeAdded, OrgTotal, RecordUnits, Totals, TotalsError, TotalsStore};
use super::telemetry;
use crate::spool::{SpoolFileError, beside, checksum, is_ours, open};

/// The totals of a single node, in a file.
///
/// Only one process can use the file; on Unix a lock on a second file, with the suffix `.lock`, protects it, and only the owner can
/// read it. Put it on a local disk that survives restarts, and never restore it from a backup.
///
/// # Lost and older files
///
/// A total that is too low would lower the bill. So a third file, with the suffix `.sent`, has the number of the last version, and
/// [`single_node`](Self::single_node) logs an error if the file is missing or older than that. Each organization then waits for its
/// next billing period, or for [`resume`](crate::KindeBillingSender::resume). Units that were counted after the older version was
/// written, or at all if the file is missing, are in no later total: if they were not billed yet, they are lost. So are the places
/// of their records: one that is pushed again counts again. An older copy of *both* files cannot be recognized.
///
/// # Size
///
/// Each push and each round of sends writes the whole file, which has an entry for each organization that was ever counted: meant
/// for thousands of organizations, not for hundreds of thousands. It also has an entry of about 100 bytes for each start of the
/// process, and ranges of counted records, at most 10,000. A record that is older than these ranges is
/// [parked](crate::ParkedRecords), because it may have been counted; it is parked again however often it is pushed again.
///
/// ```
/// use tower_orgkey_usage::TotalsFile;
///
/// # let directory = std::env::temp_dir().join(format!("orgkey-doc-totals-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory)?;
/// # let path = directory.join("billing.totals");
/// // When nothing was sent yet:
/// let totals = TotalsFile::first_start(&path)?;
/// # drop(totals);
/// // From then on:
/// let totals = TotalsFile::single_node(&path)?;
/// # drop(totals);
/// # std::fs::remove_dir_all(&directory)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TotalsFile(Arc<Mutex<Open>>);

struct Open {
    path: PathBuf,
    state: State,
    /// The lock.
    _lock: File,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct State {
    version: Version,
    /// In seconds since the Unix epoch.
    unknown_before: Option<u64>,
    /// The metered feature.
    feature: Option<String>,
    issuer: Option<String>,
    /// What was counted of each run of a process.
    runs: BTreeMap<String, Run>,
    organizations: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Version {
    /// Identifies the file.
    file: String,
    number: u64,
}

/// Records are pushed in the order of their places, unless they were parked or deferred. So all places have to be known.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Run {
    /// The version in which a record was added last.
    used: u64,
    /// Which places up to this one were counted is unknown.
    known_after: Option<Place>,
    /// Ascending.
    counted: Vec<Range>,
}

/// The place of a record in its run: its minute, part and number.
type Place = (u64, u32, u64);

/// Places of one minute and part.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Range {
    first: Place,
    last: u64,
}

/// At least the greatest batch of a pusher, so that its repetition is recognized.
const MAX_RANGES: usize = 10_000;

#[derive(Clone, Default, Serialize, Deserialize)]
struct Entry {
    counted: u64,
    ledger: Ledger,
}

impl TotalsFile {
    /// Opens the file. If it is missing or older than the last version, nothing is sent for the billing periods of that time: see
    /// [above](Self#lost-and-older-files). Its directory must exist. Blocks; needs no runtime.
    ///
    /// # Errors
    ///
    /// The file cannot be read or written, is damaged, or another process uses it.
    pub fn single_node(path: impl Into<PathBuf>) -> Result<Self, SpoolFileError> {
        let path = path.into();
        Self::open(path.clone()).map_err(|error| at(path, error))
    }

    /// Creates the file. Call it once, when nothing was sent for the metered feature in the present billing periods. If it fails,
    /// for example because the disk is full, call it again.
    ///
    /// # Errors
    ///
    /// The file or one of those beside it exists and was used, or cannot be written.
    pub fn first_start(path: impl Into<PathBuf>) -> Result<Self, SpoolFileError> {
        let path = path.into();
        Self::create(path.clone()).map_err(|error| at(path, error))
    }

    fn open(path: PathBuf) -> Result<Self, Problem> {
        let lock = lock(&path)?;
        let state: Option<State> = read(&path)?;
        let witness: Option<Version> = read(&witness(&path))?;
        let is_current = match (&state, &witness) {
            (Some(state), Some(witness)) => {
                state.version.file == witness.file && state.version.number >= witness.number
            }
            _ => false,
        };
        let mut open = Open {
            path,
            state: state.unwrap_or_default(),
            _lock: lock,
        };
        if !is_current {
            telemetry::totals_lost();
            let last = witness.map_or(0, |witness| witness.number);
            open.change(|state| state.forget(last))?;
        }
        Ok(Self(Arc::new(Mutex::new(open))))
    }

    fn create(path: PathBuf) -> Result<Self, Problem> {
        let lock = lock(&path)?;
        let state: Option<State> = read(&path)?;
        // A call that failed leaves a file without a witness, from which nothing was sent.
        let is_new = state.is_none_or(|state| state.is_new());
        if !is_new || witness(&path).exists() {
            return Err(Problem::Io(io::ErrorKind::AlreadyExists.into()));
        }
        let mut open = Open {
            path,
            state: State::default(),
            _lock: lock,
        };
        open.change(|_| ())?;
        Ok(Self(Arc::new(Mutex::new(open))))
    }

    /// Works on the file on a thread that may block. The work is completed even if the future is dropped.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Open) -> Result<T, TotalsError> + Send + 'static,
    ) -> Result<T, TotalsError> {
        let open = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            work(&mut open.lock().unwrap_or_else(PoisonError::into_inner))
        });
        done.await?
    }
}

impl TotalsStore for TotalsFile {
    fn bind(&self, issuer: &str, feature_code: &str) -> Result<(), TotalsError> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_other =
            |bound: &Option<String>, to: &str| bound.as_deref().is_some_and(|of| of != to);
        if is_other(&open.state.feature, feature_code) {
            return Err("has the totals of another feature".into());
        }
        // Nobody knows whose counts those of a file without an issuer are.
        let is_unknown = open.state.issuer.is_none() && !open.state.organizations.is_empty();
        if is_unknown || is_other(&open.state.issuer, issuer) {
            return Err("has the totals of another issuer".into());
        }
        if open.state.feature.is_none() || open.state.issuer.is_none() {
            open.change(|state| {
                state.feature = Some(feature_code.to_owned());
                state.issuer = Some(issuer.to_owned());
            })?;
        }
        Ok(())
    }

    async fn add(&self, records: &[RecordUnits]) -> Result<(), TotalsError> {
        let mut places = Vec::with_capacity(records.len());
        for record in records {
            let place = place(&record.id).ok_or("the id is not one of a UsageLayer")?;
            places.push((place, record.organization.clone(), record.units));
        }
        self.with(move |open| {
            open.state.check(&places)?;
            Ok(open.change(move |state| state.add(places))?)
        })
        .await
    }

    async fn load(&self) -> Result<Option<Totals>, TotalsError> {
        self.with(|open| Ok(open.state.totals())).await.map(Some)
    }

    async fn save(&self, ledgers: &[(OrgCode, Ledger)]) -> Result<(), TotalsError> {
        if ledgers.is_empty() {
            return Ok(());
        }
        let ledgers = ledgers.to_vec();
        let store = |state: &mut State| {
            for (org, ledger) in ledgers {
                let entry = state.organizations.entry(org.as_str().to_owned());
                entry.or_default().ledger = ledger;
            }
        };
        self.with(move |open| Ok(open.change(store)?)).await
    }
}

impl State {
    /// Whether nothing was counted, and nothing can have been lost.
    fn is_new(&self) -> bool {
        self.organizations.is_empty() && self.runs.is_empty() && self.unknown_before.is_none()
    }

    /// Fails if it is unknown whether some record was added.
    fn check(&self, records: &[Placed]) -> Result<(), MaybeAdded> {
        let is_unknown = |((run, place), ..): &&Placed| {
            let run = self.runs.get(run);
            run.is_some_and(|run| run.known_after >= Some(*place) && run.range_of(*place).is_err())
        };
        let places = records.iter().enumerate();
        let unknown = places.filter(|(_, record)| is_unknown(record));
        let places: Vec<usize> = unknown.map(|(at, _)| at).collect();
        if places.is_empty() {
            Ok(())
        } else {
            Err(MaybeAdded { places })
        }
    }

    /// Adds the records that were not added before.
    fn add(&mut self, records: Vec<Placed>) {
        let now = self.version.number;
        for ((run, place), org, units) in records {
            let run = self.runs.entry(run).or_default();
            run.used = now;
            if !run.count(place) {
                continue;
            }
            let entry = self.organizations.entry(org.as_str().to_owned());
            let counted = &mut entry.or_default().counted;
            *counted = counted.saturating_add(units);
        }
        self.prune(MAX_RANGES);
    }

    /// Removes the oldest ranges of the runs that were used least recently.
    fn prune(&mut self, most: usize) {
        let ranges = self.runs.values().map(|run| run.counted.len());
        let mut excess = ranges.sum::<usize>().saturating_sub(most);
        let mut runs: Vec<&mut Run> = self.runs.values_mut().collect();
        runs.sort_by_key(|run| run.used);
        for run in runs {
            let removed = excess.min(run.counted.len());
            excess -= removed;
            for range in run.counted.drain(..removed) {
                let (minute, part, _) = range.first;
                run.known_after = run.known_after.max(Some((minute, part, range.last)));
            }
        }
    }

    fn forget(&mut self, last_number: u64) {
        self.version.number = self.version.number.max(last_number);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.unknown_before = Some(now.unwrap_or_default().as_secs());
        for entry in self.organizations.values_mut() {
            entry.ledger.forget(entry.counted);
        }
    }

    fn totals(&self) -> Totals {
        let organizations = self.organizations.iter().filter_map(|(org, entry)| {
            Some(OrgTotal {
                organization: OrgCode::new(org.as_str()).ok()?,
                counted: entry.counted,
                ledger: entry.ledger.clone(),
            })
        });
        let since_epoch = self.unknown_before.map(Duration::from_secs);
        Totals {
            organizations: organizations.collect(),
            unknown_before: since_epoch.map(|since| SystemTime::UNIX_EPOCH + since),
        }
    }
}

impl Run {
    /// The range that has the place, or else where one with it begins.
    fn range_of(&self, place: Place) -> Result<usize, usize> {
        let (minute, part, number) = place;
        let after = self.counted.partition_point(|range| range.first <= place);
        let before = after.checked_sub(1).map(|at| self.counted[at]);
        let has_place = before.is_some_and(|Range { first, last }| {
            (first.0, first.1) == (minute, part) && number <= last
        });
        if has_place { Ok(after - 1) } else { Err(after) }
    }

    /// Returns whether the place was not counted before.
    fn count(&mut self, place: Place) -> bool {
        let Err(at) = self.range_of(place) else {
            return false;
        };
        let (minute, part, number) = place;
        let mut new = Range {
            first: place,
            last: number,
        };
        let mut replaced = at..at;
        if let Some(next) = self.counted.get(at)
            && Some(next.first) == number.checked_add(1).map(|next| (minute, part, next))
        {
            new.last = next.last;
            replaced.end += 1;
        }
        if let Some(before) = at.checked_sub(1)
            && let Range { first, last } = self.counted[before]
            && (first.0, first.1, last.checked_add(1)) == (minute, part, Some(number))
        {
            new.first = first;
            replaced.start = before;
        }
        self.counted.splice(replaced, [new]);
        true
    }
}

impl Open {
    /// Changes the state, and writes it as the next version. After an error the state is as before, but the file may have the
    /// change, as after a crash.
    fn change(&mut self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        let mut state = self.state.clone();
        change(&mut state);
        if state.version.file.is_empty() {
            state.version.file = crate::aggregator::draw_run()?;
        }
        state.version.number += 1;
        // In this order: a file that is newer than its witness is the result of a crash.
        write(&self.path, &state)?;
        write(&witness(&self.path), &state.version)?;
        self.state = state;
        Ok(())
    }
}

impl fmt::Debug for TotalsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TotalsFile").finish_non_exhaustive()
    }
}

/// The run and place of a record, its organization and units.
type Placed = ((String, Place), OrgCode, u64);

fn place(id: &str) -> Option<(String, Place)> {
    let mut parts = id.split('-');
    let run = parts.next()?.to_owned();
    let minute = parts.next()?.parse().ok()?;
    let part = parts.next()?.parse().ok()?;
    let number = parts.next()?.parse().ok()?;
    let is_complete = parts.next().is_none();
    is_complete.then_some((run, (minute, part, number)))
}

enum Problem {
    Io(io::Error),
    InUse,
    Damaged,
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn at(path: PathBuf, problem: Problem) -> SpoolFileError {
    match problem {
        Problem::Io(source) => SpoolFileError::Io { path, source },
        Problem::InUse => SpoolFileError::InUse { path },
        Problem::Damaged => SpoolFileError::Damaged {
            path,
            line: 1,
            problem: "is not valid",
        },
    }
}

fn lock(path: &Path) -> Result<File, Problem> {
    let lock = open(&beside(path, ".lock"), OpenOptions::new().create(true))?;
    if is_ours(&lock)? {
        Ok(lock)
    } else {
        Err(Problem::InUse)
    }
}

fn witness(path: &Path) -> PathBuf {
    beside(path, ".sent")
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, Problem> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let value = bytes.split_at_checked(16).and_then(|(sum, json)| {
        let is_whole = *sum == *format!("{:016x}", checksum(json)).as_bytes();
        is_whole
            .then(|| serde_json::from_slice(json).ok())
            .flatten()
    });
    value.map(Some).ok_or(Problem::Damaged)
}

/// Writes a new file and renames it over the old one.
fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let json = serde_json::to_vec(value)?;
    let new = beside(path, ".new");
    let mut file = open(&new, OpenOptions::new().create(true))?;
    file.set_len(0)?;
    write!(file, "{:016x}", checksum(&json))?;
    file.write_all(&json)?;
    file.sync_all()?;
    crate::spool::replace(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(run: &str, places: &[Place]) -> Vec<Placed> {
        let org = OrgCode::new("org_1").unwrap();
        let record = |place: &Place| ((run.to_owned(), *place), org.clone(), 1);
        places.iter().map(record).collect()
    }

    fn counted(state: &State) -> u64 {
        state.organizations["org_1"].counted
    }

    #[tokio::test]
    async fn counts_without_an_issuer_are_rejected() {
        let name = format!("orgkey-totals-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let totals = TotalsFile::first_start(directory.join("totals")).unwrap();
        let record = RecordUnits {
            id: "a-0-0-0".to_owned(),
            minute: 0,
            organization: OrgCode::new("org_1").unwrap(),
            units: 1,
        };
        totals.add(&[record]).await.unwrap();
        let error = totals.bind("https://a.example", "api_calls").unwrap_err();
        assert!(error.to_string().contains("another issuer"), "{error}");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn each_place_counts_once_in_any_order() {
        let mut places: Vec<Place> = Vec::new();
        for minute in 0..3 {
            places.extend((0..9).map(|number| (minute, 0, number)));
        }
        for _ in 0..50 {
            fastrand::shuffle(&mut places);
            let mut state = State::default();
            for (n, place) in places.iter().enumerate() {
                for _ in 0..2 {
                    state.check(&records("a", &[*place])).unwrap();
                    state.add(records("a", &[*place]));
                    assert_eq!(counted(&state), n as u64 + 1);
                }
            }
            assert_eq!(state.runs["a"].counted.len(), 3, "neighbours are merged");
        }
    }

    #[test]
    fn pruned_places_are_unknown() {
        let mut state = State::default();
        state.add(records("a", &[(1, 0, 0), (2, 0, 0), (3, 0, 0)]));
        state.version.number += 1;
        state.add(records("b", &[(1, 0, 0), (2, 0, 0)]));
        state.prune(3);
        let checked = state.check(&records("a", &[(3, 0, 0), (2, 0, 0), (1, 5, 5), (4, 0, 0)]));
        assert_eq!(checked, Err(MaybeAdded { places: vec![1, 2] }));
        assert_eq!(state.check(&records("b", &[(1, 0, 0), (1, 0, 1)])), Ok(()));
        assert_eq!(counted(&state), 5);
    }
}
