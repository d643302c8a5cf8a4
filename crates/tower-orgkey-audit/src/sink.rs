use std::error::Error;
use std::fmt;
use std::io;

use crate::event::AuditEvent;

/// A destination for the events of an [`AuditTrail`](crate::AuditTrail).
///
/// A sink runs on the trail's own thread and may block: only the queue waits for it. It gets the events in batches of at
/// most 256, in the order of their [`sequence`](AuditEvent::sequence). What it returns decides about the batch:
///
/// * `Ok`: the events are stored, whatever happens to the process. A sink that keeps events in a buffer breaks the promise
///   of [`flush`](crate::AuditTrail::flush).
/// * [`SinkError::retry`] (and every [`io::Error`] through `?`): the same batch is written again, after 50 ms, doubling to
///   5 s. Events that were written all the same are then written twice, with the same [`uid`](AuditEvent::uid).
/// * [`SinkError::permanent`]: the batch is lost, and counted as lost.
/// * A panic is caught and means the same. The sink gets the next batch.
///
/// The sink is dropped when the trail is shut down, or when the last layer and the last handle of the trail are dropped.
///
/// ```
/// use tower_orgkey_audit::{AuditEvent, AuditSink, SinkError};
///
/// /// Sends every event to another thread.
/// struct Channel(std::sync::mpsc::Sender<Vec<u8>>);
///
/// impl AuditSink for Channel {
///     fn write(&mut self, events: &[AuditEvent]) -> Result<(), SinkError> {
///         for event in events {
///             let mut json = Vec::new();
///             event.write_json(&mut json);
///             self.0.send(json).map_err(SinkError::permanent)?;
///         }
///         Ok(())
///     }
/// }
/// ```
///
/// A sink with an asynchronous client holds a `tokio::runtime::Handle` and calls `block_on`.
pub trait AuditSink: Send + 'static {
    /// Writes all of these events.
    fn write(&mut self, events: &[AuditEvent]) -> Result<(), SinkError>;
}

/// A sink did not write a batch of events.
#[derive(Debug)]
pub struct SinkError {
    is_permanent: bool,
    source: Box<dyn Error + Send + Sync>,
}

impl SinkError {
    /// The batch is written again later.
    pub fn retry(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            is_permanent: false,
            source: source.into(),
        }
    }

    /// The batch can never be written, and is lost.
    pub fn permanent(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            is_permanent: true,
            source: source.into(),
        }
    }

    /// Returns whether the batch is lost.
    pub fn is_permanent(&self) -> bool {
        self.is_permanent
    }
}

impl fmt::Display for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_permanent {
            "the audit sink failed permanently"
        } else {
            "the audit sink failed"
        })
    }
}

impl Error for SinkError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// The same as [`SinkError::retry`].
impl From<io::Error> for SinkError {
    fn from(error: io::Error) -> Self {
        Self::retry(error)
    }
}
