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
use super::store::{OrgTotal, RecordUnits, Totals, TotalsError, TotalsStore};
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
/// [`single_node`](Self::single_node) logs an error and begins again if the file is missing or older than that: what was counted is
/// kept, and each organization waits for its next billing period, or for
/// [`resume`](crate::KindeBillingSender::resume). An older copy of *both* files cannot be recognized.
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
    /// The place of the last record of each run of a process: its minute, part and number.
    runs: BTreeMap<String, (u64, u32, u64)>,
    organizations: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Version {
    /// Identifies the file.
    file: String,
    number: u64,
}

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

    /// Creates the file. Call it once, when nothing was sent for the metered feature in the present billing periods.
    ///
    /// # Errors
    ///
    /// The file or one of those beside it exists, or cannot be written.
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
        if path.exists() || witness(&path).exists() {
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
        work: impl FnOnce(&mut Open) -> io::Result<T> + Send + 'static,
    ) -> Result<T, TotalsError> {
        let open = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            work(&mut open.lock().unwrap_or_else(PoisonError::into_inner))
        });
        Ok(done.await??)
    }
}

impl TotalsStore for TotalsFile {
    async fn add(&self, records: &[RecordUnits]) -> Result<(), TotalsError> {
        let mut places = Vec::with_capacity(records.len());
        for record in records {
            let place = place(&record.id).ok_or("the id is not one of a UsageLayer")?;
            places.push((place, record.organization.clone(), record.units));
        }
        self.with(move |open| open.change(move |state| state.add(places)))
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
        self.with(move |open| open.change(store)).await
    }
}

impl State {
    /// Adds records whose place is beyond the last one of their run: a pusher pushes them in the order of their places.
    fn add(&mut self, records: Vec<(Place, OrgCode, u64)>) {
        for ((run, place), org, units) in records {
            let last = self.runs.get_mut(&run);
            match last {
                Some(last) if place <= *last => continue,
                Some(last) => *last = place,
                None => {
                    self.runs.insert(run, place);
                }
            }
            let entry = self.organizations.entry(org.as_str().to_owned());
            let counted = &mut entry.or_default().counted;
            *counted = counted.saturating_add(units);
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

impl Open {
    /// Changes the state, and writes it as the next version. After an error nothing has changed.
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

/// The run of a process, and the place of a record in it.
type Place = (String, (u64, u32, u64));

fn place(id: &str) -> Option<Place> {
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
