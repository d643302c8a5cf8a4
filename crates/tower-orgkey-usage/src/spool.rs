//! The file of records that are not pushed yet.
//!
//! Each line is a checksum and a JSON value: the format of the file, records that were added, or how many of the oldest
//! records were removed. After a crash the last line can be incomplete and is truncated; its records were not pushed, because
//! records are pushed only after the file is synchronized. Any other invalid line is an error.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::record::UsageRecord;
use crate::telemetry;

/// The version of the format.
const VERSION: u32 = 1;
/// The most records of one line.
const RECORDS_A_LINE: usize = 500;
/// The file is rewritten when it contains more removed records than this, and more removed than other records.
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
    pub(crate) records: VecDeque<UsageRecord>,
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
                write_new(&path, &VecDeque::new()).map_err(io)?,
                Reading::default(),
            ),
        };
        let Reading {
            records, removed, ..
        } = read;
        let journal = Journal {
            path,
            file,
            _lock: lock,
            removed,
            is_broken: false,
        };
        Ok(Self { journal, records })
    }

    /// Returns how many records an earlier run left in the file.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns whether an earlier run left no records.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// The open file.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// The lock.
    _lock: File,
    /// Removed records that are still in the file.
    removed: usize,
    /// A write failed, so the end of the file is unknown and the file is rewritten.
    is_broken: bool,
}

impl Journal {
    /// Writes that the `done` oldest records were removed, and the records of `queue` beyond the `known` first ones.
    pub(crate) fn write(
        &mut self,
        done: usize,
        queue: &VecDeque<UsageRecord>,
        known: usize,
    ) -> io::Result<()> {
        let removed = self.removed + done;
        let written =
            if self.is_broken || (queue.is_empty() && removed > 0) || is_heavy(removed, queue) {
                self.rewrite(queue)
            } else {
                self.append(done, queue, known)
            };
        self.is_broken = written.is_err();
        written
    }

    fn append(
        &mut self,
        done: usize,
        queue: &VecDeque<UsageRecord>,
        known: usize,
    ) -> io::Result<()> {
        let mut lines = Vec::new();
        if done > 0 {
            put(&mut lines, &Line::<()>::Done(done))?;
        }
        put_records(&mut lines, queue.iter().skip(known))?;
        if lines.is_empty() {
            return Ok(());
        }
        self.file.seek(SeekFrom::End(0))?;
        self.file.write_all(&lines)?;
        self.file.sync_data()?;
        self.removed += done;
        Ok(())
    }

    fn rewrite(&mut self, queue: &VecDeque<UsageRecord>) -> io::Result<()> {
        self.file = write_new(&self.path, queue)?;
        self.removed = 0;
        Ok(())
    }
}

fn is_heavy(removed: usize, queue: &VecDeque<UsageRecord>) -> bool {
    removed > MAX_REMOVED && removed > queue.len()
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line<R> {
    /// The header: the version of the format.
    TowerOrgkeyUsage(u32),
    Records(R),
    Done(usize),
}

/// The contents of a file.
#[derive(Default)]
struct Reading {
    records: VecDeque<UsageRecord>,
    removed: usize,
    /// The length of all complete lines.
    good: usize,
}

fn read(bytes: &[u8]) -> Result<Reading, (usize, &'static str)> {
    let mut reading = Reading::default();
    let mut number = 0;
    while let Some(end) = bytes[reading.good..].iter().position(|byte| *byte == b'\n') {
        number += 1;
        let line = get(&bytes[reading.good..reading.good + end]);
        match (line.ok_or((number, "is not valid"))?, number) {
            (Line::TowerOrgkeyUsage(VERSION), 1) => {}
            (Line::TowerOrgkeyUsage(_), 1) => {
                return Err((number, "names an unknown format"));
            }
            (Line::TowerOrgkeyUsage(_), _) => return Err((number, "is a second header")),
            (_, 1) => return Err((number, "is not the header")),
            (Line::Records(records), _) => reading.records.extend(records),
            (Line::Done(done), _) => {
                if done > reading.records.len() {
                    return Err((number, "removes more records than there are"));
                }
                reading.records.drain(..done);
                reading.removed += done;
            }
        }
        reading.good += end + 1;
    }
    if number == 0 {
        // The header is written together with the file, so it is never incomplete.
        return Err((1, "is not the header"));
    }
    Ok(reading)
}

fn get(line: &[u8]) -> Option<Line<Vec<UsageRecord>>> {
    let (sum, json) = line.split_at_checked(16)?;
    let json = json.strip_prefix(b" ")?;
    if *sum != *format!("{:016x}", checksum(json)).as_bytes() {
        return None;
    }
    serde_json::from_slice(json).ok()
}

fn put<R: Serialize>(lines: &mut Vec<u8>, line: &Line<R>) -> io::Result<()> {
    let json = serde_json::to_vec(line)?;
    write!(lines, "{:016x} ", checksum(&json))?;
    lines.extend_from_slice(&json);
    lines.push(b'\n');
    Ok(())
}

fn put_records<'a>(
    lines: &mut Vec<u8>,
    mut records: impl Iterator<Item = &'a UsageRecord>,
) -> io::Result<()> {
    loop {
        let some: Vec<&UsageRecord> = records.by_ref().take(RECORDS_A_LINE).collect();
        if some.is_empty() {
            return Ok(());
        }
        put(lines, &Line::Records(some))?;
    }
}

/// Detects accidental damage only.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    hasher.write(bytes);
    hasher.finish()
}

/// Writes a new file and renames it over the old one, so that one complete file exists at any moment.
fn write_new(path: &Path, queue: &VecDeque<UsageRecord>) -> io::Result<File> {
    let mut lines = Vec::new();
    put(&mut lines, &Line::<()>::TowerOrgkeyUsage(VERSION))?;
    put_records(&mut lines, queue.iter())?;
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
