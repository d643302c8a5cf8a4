use std::error::Error as StdError;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::record::UsageRecord;

/// A destination for the records of closed minutes: a meter, a queue, a table.
///
/// # What the pusher guarantees
///
/// * **Order.** The records of an organization arrive in the order of their minutes. The next batch is pushed only after the
///   previous one was accepted or failed.
/// * **Final records.** A record never changes. Records with the same [`id`](UsageRecord::id) are the same record.
/// * **At least once.** A record is pushed again if the push failed, timed out, or was interrupted by the end of the process.
///   Count each id once.
///
/// # What a sink must do
///
/// * Return `Ok` only when every record of the batch is stored: they are not pushed again.
/// * Allow its future to be dropped at every `await`, by the timeout of the pusher or by a shutdown. The records are pushed
///   again.
/// * Accept records with known ids: after an error the same records can arrive in batches of other sizes.
///
/// A panic counts as [`PushError::retry`].
///
/// ```
/// use tower_orgkey_usage::{PushError, UsageRecord, UsageSink};
///
/// struct Table(/* a pool of connections */);
/// # impl Table { async fn insert_new(&self, _: &UsageRecord) -> Result<(), std::io::Error> { Ok(()) } }
///
/// impl UsageSink for Table {
///     async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
///         for record in batch {
///             // "insert … on conflict (id) do nothing"
///             self.insert_new(record).await.map_err(PushError::retry)?;
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait UsageSink: Send + Sync + 'static {
    /// Stores these records: at least one, at most [`batch_size`](crate::UsagePusherBuilder::batch_size).
    fn push(&self, batch: &[UsageRecord]) -> impl Future<Output = Result<(), PushError>> + Send;
}

impl<S: UsageSink> UsageSink for Arc<S> {
    fn push(&self, batch: &[UsageRecord]) -> impl Future<Output = Result<(), PushError>> + Send {
        S::push(self, batch)
    }
}

/// The sink did not store a batch.
///
/// `Display` and `source` are logged, so they must not contain a secret.
///
/// ```
/// use std::time::Duration;
/// use tower_orgkey_usage::{PushError, PushErrorKind};
///
/// let error = PushError::retry("connection refused").after(Duration::from_secs(30));
/// assert_eq!(error.kind(), PushErrorKind::Retry { after: Some(Duration::from_secs(30)) });
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[error("{kind}")]
pub struct PushError {
    kind: PushErrorKind,
    #[source]
    source: Arc<dyn StdError + Send + Sync>,
}

/// What happens to a batch that was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushErrorKind {
    /// The batch is pushed again: the sink is unreachable, busy or misconfigured.
    #[error("the sink cannot store records now")]
    Retry {
        /// How long the pusher has to wait, at most 5 min.
        after: Option<Duration>,
    },
    /// The sink will never store some record of the batch. The batch is pushed in smaller parts. A single record that fails
    /// is dropped, counted and logged.
    #[error("the sink will never store this")]
    Permanent,
}

impl PushError {
    /// The batch is pushed again.
    pub fn retry(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            kind: PushErrorKind::Retry { after: None },
            source: Arc::from(source.into()),
        }
    }

    /// The sink will never store some record of the batch.
    pub fn permanent(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            kind: PushErrorKind::Permanent,
            source: Arc::from(source.into()),
        }
    }

    /// Sets how long the pusher has to wait. No effect on a permanent error.
    pub fn after(mut self, wait: Duration) -> Self {
        if let PushErrorKind::Retry { after } = &mut self.kind {
            *after = Some(wait);
        }
        self
    }

    /// Returns what happens to the batch.
    pub fn kind(&self) -> PushErrorKind {
        self.kind
    }
}
