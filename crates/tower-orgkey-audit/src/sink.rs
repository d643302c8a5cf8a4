use std::error::Error;
use std::fmt;
use std::io;

use super::event::AuditEvent;

/// Where the events of an [`AuditTrail`](super::AuditTrail) go.
///
/// A sink lives on a thread of its own, which it may block for as long as it likes: nothing but the queue waits for it. It
/// is handed events in the order of the trail, up to 256 at once, and each batch until it has taken it:
///
/// * `Ok` says that the events are out of the process's hands: whatever becomes of the process, they are kept. A sink that
///   holds events back in a buffer of its own breaks the promise of [`flush`](super::AuditTrail::flush).
/// * [`SinkError::retry`] (and every [`io::Error`] by `?`): the same batch comes again, after a pause of 50 ms that doubles
///   up to 5 s. Events that were written all the same are then written twice, with the same
///   [`uid`](super::AuditEvent::uid).
/// * [`SinkError::give_up`]: the batch is lost, and counted as such.
/// * A panic is caught, and means the same; the next batch comes to the same sink.
///
/// The sink is dropped when the trail is shut down, or when the last layer and the last handle of it are gone.
///
/// ```
/// use tower_orgkey_audit::{AuditEvent, AuditSink, SinkError};
///
/// /// Hands every event to somebody else.
/// struct Channel(std::sync::mpsc::Sender<String>);
///
/// impl AuditSink for Channel {
///     fn write(&mut self, events: &[AuditEvent]) -> Result<(), SinkError> {
///         for event in events {
///             let json = serde_json::to_string(event).map_err(SinkError::give_up)?;
///             self.0.send(json).map_err(SinkError::give_up)?;
///         }
///         Ok(())
///     }
/// }
/// ```
///
/// A sink that is asynchronous inside (an HTTP client, say) takes a `tokio::runtime::Handle` with it and calls `block_on`.
pub trait AuditSink: Send + 'static {
    /// Writes these events, all of them.
    fn write(&mut self, events: &[AuditEvent]) -> Result<(), SinkError>;
}

/// Why a sink did not take a batch of events, and whether it is handed it again.
#[derive(Debug)]
pub struct SinkError {
    is_final: bool,
    source: Box<dyn Error + Send + Sync>,
}

impl SinkError {
    /// The sink may take the events later: they are kept, and come again.
    pub fn retry(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            is_final: false,
            source: source.into(),
        }
    }

    /// The sink will never take these events: they are lost.
    pub fn give_up(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            is_final: true,
            source: source.into(),
        }
    }

    /// Whether the events are lost.
    pub fn is_final(&self) -> bool {
        self.is_final
    }
}

impl fmt::Display for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_final {
            "the audit sink gave up the events"
        } else {
            "the audit sink cannot take the events now"
        })
    }
}

impl Error for SinkError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// To be handed the batch again.
impl From<io::Error> for SinkError {
    fn from(error: io::Error) -> Self {
        Self::retry(error)
    }
}
