use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

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
/// For rotating files, use the `RollingFileAppender` of the crate [`tracing-appender`](https://docs.rs/tracing-appender):
/// `JsonLines::resume(tracing_appender::rolling::daily("/var/log/api", "audit.jsonl"))`. Do not use its `non_blocking`,
/// which drops lines without reporting it when it is full: the trail has a queue already.
pub struct JsonLines<W> {
    writer: W,
    buffer: Vec<u8>,
    templates: Templates,
    /// Whether the output may end in the middle of a line.
    is_torn: bool,
}

impl<W: Write + Send + 'static> JsonLines<W> {
    /// Writes to output that is new, or that ends in a line feed.
    pub fn new(writer: W) -> Self {
        Self {
            writer,
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
