//! The file that keeps what has not been pushed.
//!
//! Lines, each a checksum and a JSON value: what the file is, records that were added, and how many of the oldest were done
//! with. A write that a crash cut short leaves a last line without an end, which is taken off; nothing was done on the
//! strength of it, for records are pushed only once they are here. Any other line that does not read is damage, and is told.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use super::record::UsageRecord;
use crate::telemetry;

/// The layout of the file.
const VERSION: u32 = 1;
/// Records a line.
const RECORDS_A_LINE: usize = 500;
/// The file is written anew when it holds so many records that are done with, and more of them than of others.
const DEAD_WEIGHT: usize = 10_000;

/// A file that keeps records until the sink has taken them, over a restart and a crash.
///
/// One process at a time has it: beside the file stands another, of the same name with `.lock` at the end, that it locks (on
/// Unix; elsewhere see to it yourself). What it holds is synchronized with the disk before anything of it is pushed.
/// On Unix only its owner may read it.
///
/// ```
/// use tower_orgkey_usage::UnsentFile;
///
/// # let directory = std::env::temp_dir().join(format!("orgkey-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory)?;
/// let file = UnsentFile::open(directory.join("usage.unsent"))?;
/// assert!(file.is_empty(), "nothing was left behind");
/// # drop(file);
/// # std::fs::remove_dir_all(&directory)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct UnsentFile {
    pub(super) journal: Journal,
    pub(super) records: VecDeque<UsageRecord>,
}

/// The file of unsent records cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnsentFileError {
    /// It cannot be read or written.
    #[error("{} cannot be used", path.display())]
    Io {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process, or another pusher of this one, has it. One that was dropped while it saved has it until the save is
    /// over.
    #[error("{} is in use", path.display())]
    InUse {
        /// Where it is.
        path: PathBuf,
    },
    /// It is not such a file, or one that was damaged. Nothing of it was used, and it is as it was: repair it, or move it
    /// away and go without what it holds.
    #[error("{} is damaged: line {line} {problem}", path.display())]
    Damaged {
        /// Where it is.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl UnsentFile {
    /// Opens the file at this path, or makes it; its directory must be there.
    ///
    /// Reads and writes without a runtime, and blocks meanwhile.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, UnsentFileError> {
        let path = path.into();
        let io = |source| UnsentFileError::Io {
            path: path.clone(),
            source,
        };
        let lock = open(&beside(&path, ".lock"), OpenOptions::new().create(true)).map_err(io)?;
        if !is_ours(&lock).map_err(io)? {
            return Err(UnsentFileError::InUse { path });
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
                let read = read(&bytes).map_err(|(line, problem)| UnsentFileError::Damaged {
                    path: path.clone(),
                    line,
                    problem,
                })?;
                if read.good < bytes.len() {
                    telemetry::tail_cut(bytes.len() - read.good);
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
        let Reading { records, dead, .. } = read;
        let journal = Journal {
            path,
            file,
            _lock: lock,
            dead,
            is_broken: false,
        };
        Ok(Self { journal, records })
    }

    /// How many records an earlier run left behind.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing was left behind.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// The file, to be written to.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Held for as long as the file is ours.
    _lock: File,
    /// Records in the file that are done with.
    dead: usize,
    /// A write has failed half-way, so what stands at the end of the file is not known.
    is_broken: bool,
}

impl Journal {
    /// Writes what is new: that so many of the oldest records are done with, and these beyond `known`. `queue` is all that
    /// is not done with.
    pub(super) fn write(
        &mut self,
        done: usize,
        queue: &VecDeque<UsageRecord>,
        known: usize,
    ) -> io::Result<()> {
        let dead = self.dead + done;
        let written = if self.is_broken || (queue.is_empty() && dead > 0) || is_heavy(dead, queue) {
            self.write_anew(queue)
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
        self.dead += done;
        Ok(())
    }

    fn write_anew(&mut self, queue: &VecDeque<UsageRecord>) -> io::Result<()> {
        self.file = write_new(&self.path, queue)?;
        self.dead = 0;
        Ok(())
    }
}

fn is_heavy(dead: usize, queue: &VecDeque<UsageRecord>) -> bool {
    dead > DEAD_WEIGHT && dead > queue.len()
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
    /// The first line, and only that: the version of the layout.
    TowerOrgkeyUsage(u32),
    Records(R),
    Done(usize),
}

/// What a file says.
#[derive(Default)]
struct Reading {
    records: VecDeque<UsageRecord>,
    dead: usize,
    /// The length of all whole lines.
    good: usize,
}

fn read(bytes: &[u8]) -> Result<Reading, (usize, &'static str)> {
    let mut reading = Reading::default();
    let mut number = 0;
    while let Some(end) = bytes[reading.good..].iter().position(|byte| *byte == b'\n') {
        number += 1;
        let line = get(&bytes[reading.good..reading.good + end]);
        match (line.ok_or((number, "does not read"))?, number) {
            (Line::TowerOrgkeyUsage(VERSION), 1) => {}
            (Line::TowerOrgkeyUsage(_), 1) => {
                return Err((number, "names a layout that this version does not know"));
            }
            (Line::TowerOrgkeyUsage(_), _) => return Err((number, "does not belong there")),
            (_, 1) => return Err((number, "does not say what the file is")),
            (Line::Records(records), _) => reading.records.extend(records),
            (Line::Done(done), _) => {
                if done > reading.records.len() {
                    return Err((number, "is done with more than there was"));
                }
                reading.records.drain(..done);
                reading.dead += done;
            }
        }
        reading.good += end + 1;
    }
    if number == 0 {
        // The first line is never written alone: the file comes into being with it.
        return Err((1, "does not say what the file is"));
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

/// Against accidents, not against anybody.
fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    hasher.write(bytes);
    hasher.finish()
}

/// Writes a file and puts it in the place of the other, so that at any moment one of the two is there, whole.
fn write_new(path: &Path, queue: &VecDeque<UsageRecord>) -> io::Result<File> {
    let mut lines = Vec::new();
    put(&mut lines, &Line::<()>::TowerOrgkeyUsage(VERSION))?;
    put_records(&mut lines, queue.iter())?;
    let new = beside(path, ".new");
    let mut file = open(&new, OpenOptions::new().create(true))?;
    file.set_len(0)?;
    file.write_all(&lines)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    #[cfg(unix)]
    {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory)?.sync_all()?;
    }
    Ok(file)
}

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options.read(true).write(true).open(path)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

#[cfg(unix)]
fn is_ours(lock: &File) -> io::Result<bool> {
    use rustix::fs::{FlockOperation, flock};

    match flock(lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps)] // As on Unix.
fn is_ours(_: &File) -> io::Result<bool> {
    Ok(true)
}
