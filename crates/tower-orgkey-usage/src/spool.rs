//! The file of records that are not pushed yet.
//!
//! Each line is a checksum and a JSON value: the format of the file, or a change of the backlog. After a crash the last line can
//! be incomplete and is truncated; its records were not pushed, because records are pushed only after the file is synchronized.
//! Any other invalid line is an error.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::backlog::{Backlog, Change, Read as ReadChange, Small};
use crate::parked::ParkedRecord;
use crate::record::UsageRecord;
use crate::telemetry;

/// The version of the format.
const VERSION: u32 = 1;
/// The most records of one line.
const RECORDS_A_LINE: usize = 500;
/// The file is rewritten when it contains more than this of what is done with (removed records, notes of pushes), and more of
/// that than records.
const MAX_REMOVED: usize = 10_000;

/// A file that keeps records until the sink has stored them, across restarts and crashes.
///
/// One process at a time can use the file. On Unix it is protected by a lock on a second file with the suffix `.lock`, and
/// only the owner can read it. Records are synchronized with the disk before they are pushed.
///
/// ```
/// use tower_orgkey_usage::SpoolFile;
///
/// # let directory = std::env::temp_dir().join(format!("orgkey-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory)?;
/// let file = SpoolFile::open(directory.join("usage.spool"))?;
/// assert!(file.is_empty(), "nothing was left behind");
/// # drop(file);
/// # std::fs::remove_dir_all(&directory)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SpoolFile {
    pub(crate) journal: Journal,
    pub(crate) backlog: Backlog,
}

/// A [`SpoolFile`] cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolFileError {
    /// The file cannot be read or written.
    #[error("{} cannot be used", path.display())]
    Io {
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another process or another pusher uses the file. A pusher that was dropped during a write uses it until the write ends.
    #[error("{} is in use", path.display())]
    InUse {
        /// The path of the file.
        path: PathBuf,
    },
    /// The file has another format, or is damaged. It was not changed, and nothing of it was used: repair it or move it away.
    #[error("{} is damaged: line {line} {problem}", path.display())]
    Damaged {
        /// The path of the file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with the line.
        problem: &'static str,
    },
}

impl SpoolFile {
    /// Opens or creates a file. Its directory must exist. Blocks; needs no runtime.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, SpoolFileError> {
        let path = path.into();
        let io = |source| SpoolFileError::Io {
            path: path.clone(),
            source,
        };
        let lock = open(&beside(&path, ".lock"), OpenOptions::new().create(true)).map_err(io)?;
        if !is_ours(&lock).map_err(io)? {
            return Err(SpoolFileError::InUse { path });
        }
        let mut bytes = Vec::new();
        let file = match open(&path, &mut OpenOptions::new()) {
            Ok(mut file) => {
                file.read_to_end(&mut bytes).map_err(io)?;
                Some(file)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io(error)),
        };
        let (file, read) = match file {
            Some(file) if !bytes.is_empty() => {
                let read = read(&bytes).map_err(|(line, problem)| SpoolFileError::Damaged {
                    path: path.clone(),
                    line,
                    problem,
                })?;
                if read.good < bytes.len() {
                    telemetry::spool_truncated(bytes.len() - read.good);
                    file.set_len(read.good as u64).map_err(io)?;
                    file.sync_all().map_err(io)?;
                }
                (file, read)
            }
            _ => (
                write_new(&path, &Backlog::default()).map_err(io)?,
                Reading::default(),
            ),
        };
        let Reading {
            backlog, removed, ..
        } = read;
        let journal = Journal {
            path,
            file,
            _lock: lock,
            removed,
            noted: Vec::new(),
            noted_removed: 0,
            is_broken: false,
        };
        Ok(Self { journal, backlog })
    }

    /// Returns how many records an earlier run left in the file, parked ones included.
    pub fn len(&self) -> usize {
        self.backlog.len()
    }

    /// Returns whether an earlier run left no records.
    pub fn is_empty(&self) -> bool {
        self.backlog.is_empty()
    }
}

/// The open file.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// The lock.
    _lock: File,
    /// What is in the file and done with.
    removed: usize,
    /// The lines of changes that are not written yet.
    noted: Vec<u8>,
    /// What those lines are done with.
    noted_removed: usize,
    /// A write failed, so the end of the file is unknown and the file is rewritten.
    is_broken: bool,
}

impl Journal {
    /// Notes a change, which the next write writes.
    pub(crate) fn note(&mut self, change: &Small) {
        self.noted_removed += change.weight();
        self.note_lines(|lines| put(lines, change));
    }

    /// Notes that these records wait.
    pub(crate) fn note_records(&mut self, records: &[UsageRecord]) {
        self.note_lines(|lines| put_records(lines, records.iter()));
    }

    fn note_lines(&mut self, put: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) {
        // The file will be rewritten from the backlog.
        if self.is_broken {
            return;
        }
        if put(&mut self.noted).is_err() {
            self.break_off();
        }
    }

    fn break_off(&mut self) {
        self.noted = Vec::new();
        self.is_broken = true;
    }

    pub(crate) fn is_to_be_written(&self) -> bool {
        self.is_broken || !self.noted.is_empty()
    }

    /// Writes what was noted. `backlog` is the result of all changes.
    pub(crate) fn write(&mut self, backlog: &Backlog) -> io::Result<()> {
        if !self.is_to_be_written() {
            return Ok(());
        }
        let removed = self.removed + self.noted_removed;
        let is_heavy = removed > MAX_REMOVED && removed > backlog.len();
        let written = if self.is_broken || (backlog.is_empty() && removed > 0) || is_heavy {
            self.rewrite(backlog)
        } else {
            self.append()
        };
        match &written {
            Ok(()) => {
                self.noted.clear();
                self.noted_removed = 0;
                self.is_broken = false;
            }
            Err(_) => self.break_off(),
        }
        written
    }

    fn append(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::End(0))?;
        self.file.write_all(&self.noted)?;
        self.file.sync_data()?;
        self.removed += self.noted_removed;
        Ok(())
    }

    fn rewrite(&mut self, backlog: &Backlog) -> io::Result<()> {
        self.file = write_new(&self.path, backlog)?;
        self.removed = 0;
        Ok(())
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// The header: the version of the format.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Header {
    TowerOrgkeyUsage(u32),
}

/// The contents of a file.
#[derive(Default)]
struct Reading {
    backlog: Backlog,
    removed: usize,
    /// The length of all complete lines.
    good: usize,
}

fn read(bytes: &[u8]) -> Result<Reading, (usize, &'static str)> {
    let mut reading = Reading::default();
    let mut number = 0;
    while let Some(end) = bytes[reading.good..].iter().position(|byte| *byte == b'\n') {
        number += 1;
        let json = get(&bytes[reading.good..reading.good + end]);
        let json = json.ok_or((number, "is not valid"))?;
        if number == 1 {
            match serde_json::from_slice(json) {
                Ok(Header::TowerOrgkeyUsage(VERSION)) => {}
                Ok(_) => return Err((number, "names an unknown format")),
                Err(_) => return Err((number, "is not the header")),
            }
        } else {
            let change: ReadChange =
                serde_json::from_slice(json).map_err(|_| (number, "is not a change"))?;
            reading.removed += change.weight();
            let replayed = reading.backlog.replay(change);
            replayed.map_err(|problem| (number, problem))?;
        }
        reading.good += end + 1;
    }
    if number == 0 {
        // The header is written together with the file, so it is never incomplete.
        return Err((1, "is not the header"));
    }
    Ok(reading)
}

fn get(line: &[u8]) -> Option<&[u8]> {
    let (sum, json) = line.split_at_checked(16)?;
    let json = json.strip_prefix(b" ")?;
    if *sum != *format!("{:016x}", checksum(json)).as_bytes() {
        return None;
    }
    Some(json)
}

fn put(lines: &mut Vec<u8>, line: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(line)?;
    write!(lines, "{:016x} ", checksum(&json))?;
    lines.extend_from_slice(&json);
    lines.push(b'\n');
    Ok(())
}

fn put_records<'a>(
    lines: &mut Vec<u8>,
    records: impl Iterator<Item = &'a UsageRecord>,
) -> io::Result<()> {
    in_lines(records, |some| put(lines, &Change::<_, ()>::Records(some)))
}

fn in_lines<T>(
    mut items: impl Iterator<Item = T>,
    mut put: impl FnMut(Vec<T>) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let some: Vec<T> = items.by_ref().take(RECORDS_A_LINE).collect();
        if some.is_empty() {
            return Ok(());
        }
        put(some)?;
    }
}

/// Detects accidental damage only.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    hasher.write(bytes);
    hasher.finish()
}

/// Writes a new file and renames it over the old one, so that one complete file exists at any moment.
fn write_new(path: &Path, backlog: &Backlog) -> io::Result<File> {
    let mut lines = Vec::new();
    let header = Header::TowerOrgkeyUsage(VERSION);
    put(&mut lines, &header)?;
    let waiting = backlog.waiting.iter();
    put_records(&mut lines, waiting.map(|waiting| &waiting.record))?;
    for (at, records) in backlog.sent() {
        let sent = Small::Sent { at, records };
        put(&mut lines, &sent)?;
    }
    let parked = backlog.parked.iter().map(|parked| &parked.parked);
    in_lines(parked, |some: Vec<&ParkedRecord>| {
        put(&mut lines, &Change::<(), _>::Parked(some))
    })?;
    let new = beside(path, ".new");
    let mut file = open(&new, OpenOptions::new().create(true))?;
    file.set_len(0)?;
    file.write_all(&lines)?;
    file.sync_all()?;
    replace(&new, path)?;
    Ok(file)
}

/// Renames a synchronized file over another one, and synchronizes the directory.
pub(crate) fn replace(new: &Path, path: &Path) -> io::Result<()> {
    std::fs::rename(new, path)?;
    #[cfg(unix)]
    {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

pub(crate) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options.read(true).write(true).open(path)
}

pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

#[cfg(unix)]
pub(crate) fn is_ours(lock: &File) -> io::Result<bool> {
    use rustix::fs::{FlockOperation, flock};

    match flock(lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps)] // As on Unix.
pub(crate) fn is_ours(_: &File) -> io::Result<bool> {
    Ok(true)
}
