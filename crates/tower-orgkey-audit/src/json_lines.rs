use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::event::AuditEvent;
use super::sink::{AuditSink, SinkError};

/// Writes each event as one line of JSON, to whatever can be written to.
///
/// After each batch the writer is flushed. An event is a line that ends in a line feed: what stands behind the last line
/// feed of a file, after a crash say, is none, and is no JSON either. After an error the next batch begins on a line of its
/// own, so that a torn line never runs into an event; a reader skips lines that are empty or no JSON.
///
/// `Ok` means that the operating system has the line, which outlives the process. What must outlive the machine needs a
/// writer whose `flush` calls [`File::sync_data`].
///
/// ```
/// use tower_orgkey_audit::{AuditTrail, JsonLines};
///
/// let trail = AuditTrail::start(JsonLines::new(std::io::stderr()))?;
/// # Ok::<(), tower_orgkey::ConfigError>(())
/// ```
///
/// For files that rotate, the `RollingFileAppender` of the crate
/// [`tracing-appender`](https://docs.rs/tracing-appender) is such a writer:
/// `JsonLines::resume(tracing_appender::rolling::daily("/var/log/api", "audit.jsonl"))`. Leave out its `non_blocking`,
/// which drops lines when it is full and tells nobody: the trail has a queue already.
pub struct JsonLines<W> {
    writer: W,
    buffer: Vec<u8>,
    /// What was written last may be the beginning of a line.
    is_torn: bool,
}

impl<W: Write + Send + 'static> JsonLines<W> {
    /// Writes to something that is new, or that stands at the beginning of a line.
    pub fn new(writer: W) -> Self {
        Self {
            writer,
            buffer: Vec::new(),
            is_torn: false,
        }
    }

    /// Writes to something that may end in a line that a crash tore: begins with a line feed.
    pub fn resume(writer: W) -> Self {
        Self {
            is_torn: true,
            ..Self::new(writer)
        }
    }
}

impl JsonLines<File> {
    /// Writes to the end of this file, which is made if it is not there. A torn last line stays, on a line of its own.
    pub fn append(path: impl AsRef<Path>) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let mut file = options.create(true).append(true).read(true).open(path)?;
        let mut last = [b'\n'];
        if file.seek(SeekFrom::End(0))? > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        Ok(Self {
            is_torn: last != [b'\n'],
            ..Self::new(file)
        })
    }
}

impl<W: Write + Send + 'static> AuditSink for JsonLines<W> {
    fn write(&mut self, events: &[AuditEvent]) -> Result<(), SinkError> {
        self.buffer.clear();
        if self.is_torn {
            self.buffer.push(b'\n');
        }
        for event in events {
            serde_json::to_writer(&mut self.buffer, event).map_err(SinkError::give_up)?;
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
