use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::event::AuditEvent;
use crate::ocsf::Templates;
use crate::sink::{AuditSink, SinkError};

/// A sink that writes each event as one line of JSON to any [`Write`].
///
/// The writer is flushed after each batch. An event is a line that ends in a line feed: after a crash, the bytes after the
/// last line feed are not an event, and are not JSON. After an error, the next batch starts on a new line, so a torn line
/// never runs into an event. A reader skips lines that are empty or not JSON.
///
/// `Ok` means that the operating system has the line, so it survives the process. To survive a crash of the machine, use a
/// writer whose `flush` calls [`File::sync_data`].
///
/// Most events are written as copies of earlier ones with the same route, status and requirements; ids and numbers are
/// replaced. A sink keeps up to 256 of them, some 2 KB each, and the text of up to 1,024 keys, some 250 bytes each.
///
/// ```
/// use tower_orgkey_audit::{AuditTrail, JsonLines};
///
/// let trail = AuditTrail::start(JsonLines::new(std::io::stderr()))?;
/// # Ok::<(), tower_orgkey::ConfigError>(())
/// ```
///
/// A file that [`append`](JsonLines::append) opened can be rotated by renaming it. For other rotations, use the
/// `RollingFileAppender` of the crate [`tracing-appender`](https://docs.rs/tracing-appender):
/// `JsonLines::resume(tracing_appender::rolling::daily("/var/log/api", "audit.jsonl"))`. Do not use its `non_blocking`,
/// which drops lines without reporting it when it is full: the trail has a queue already.
pub struct JsonLines<W> {
    writer: W,
    /// The path of a file, and what opens it again if the path names another file.
    reopen: Option<(PathBuf, Reopen<W>)>,
    buffer: Vec<u8>,
    templates: Templates,
    /// Whether the output may end in the middle of a line.
    is_torn: bool,
}

/// Returns the other file, and whether its last line is torn.
type Reopen<W> = fn(&Path, &W) -> io::Result<Option<(W, bool)>>;

impl<W: Write + Send + 'static> JsonLines<W> {
    /// Writes to output that is new, or that ends in a line feed.
    pub fn new(writer: W) -> Self {
        Self {
            writer,
            reopen: None,
            buffer: Vec::new(),
            templates: Templates::default(),
            is_torn: false,
        }
    }

    /// Writes to output that may end in a torn line: starts with a line feed.
    pub fn resume(writer: W) -> Self {
        Self {
            is_torn: true,
            ..Self::new(writer)
        }
    }
}

impl JsonLines<File> {
    /// Appends to a file, which is created if it does not exist. A torn last line is kept, on a separate line.
    ///
    /// On Unix, the next batch goes to a new file if the path names another file than before, or none: a file is rotated by
    /// renaming it. A new file gets the permissions of the old one; if it cannot be opened, events wait. Compress the old file only
    /// at the next rotation (`delaycompress` of logrotate): a batch that is being written still goes to it. Do not copy and truncate:
    /// events that are written in between would be lost.
    pub fn append(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_owned();
        let (file, is_torn) = open(&path, &mut OpenOptions::new())?;
        Ok(Self {
            is_torn,
            reopen: Some((path, reopen)),
            ..Self::new(file)
        })
    }
}

/// Returns the file, and whether its last line is torn.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<(File, bool)> {
    let mut file = options.create(true).append(true).read(true).open(path)?;
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    Ok((file, last != [b'\n']))
}

#[cfg(unix)]
fn reopen(path: &Path, file: &File) -> io::Result<Option<(File, bool)>> {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

    let opened = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) if (named.dev(), named.ino()) == (opened.dev(), opened.ino()) => Ok(None),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        // With the permissions that the old file has.
        _ => open(path, OpenOptions::new().mode(opened.mode() & 0o777)).map(Some),
    }
}

#[cfg(not(unix))]
fn reopen(_: &Path, _: &File) -> io::Result<Option<(File, bool)>> {
    Ok(None)
}

impl<W: Write + Send + 'static> AuditSink for JsonLines<W> {
    fn write(&mut self, events: &[AuditEvent]) -> Result<(), SinkError> {
        if let Some((path, reopen)) = &self.reopen
            && let Some(opened) = reopen(path, &self.writer)?
        {
            (self.writer, self.is_torn) = opened;
        }
        self.buffer.clear();
        if self.is_torn {
            self.buffer.push(b'\n');
        }
        for event in events {
            self.templates.write(event, &mut self.buffer);
            self.buffer.push(b'\n');
        }
        self.is_torn = true;
        self.writer.write_all(&self.buffer)?;
        self.writer.flush()?;
        self.is_torn = false;
        Ok(())
    }
}

impl<W> fmt::Debug for JsonLines<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLines").finish_non_exhaustive()
    }
}
