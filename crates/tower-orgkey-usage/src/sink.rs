use std::error::Error as StdError;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::record::UsageRecord;

/// Where closed minutes go: a meter, a queue, a table.
///
/// # What a sink may rely on
///
/// * **Order.** It is called again only after its answer, with what follows: the records of an organization come in the order
///   of their minutes, whatever has to be pushed again in between.
/// * **Finality.** A record never changes. What has the same [`id`](UsageRecord::id) is the same record.
/// * **At least once.** A record comes again if the answer to it was an error, came too late or was never heard because the
///   process ended. Count each id once.
///
/// # What it must do
///
/// * Answer `Ok` only when every record of the batch is safe where it belongs: none of them comes again.
/// * Bear being dropped at every `await`: the pusher's deadline, or a shutdown, ends the call. Whatever the sink did with the
///   batch until then, it comes again.
/// * Take any part of a batch as done before if its ids are known: after an error the same records may come in batches of
///   other sizes.
///
/// A panic counts as [`PushError::retry`]. What waits and what comes meanwhile costs requests nothing.
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
    /// Takes these records: at least one, and at most [so many](super::UsagePusherBuilder::batch_size).
    fn push(&self, batch: &[UsageRecord]) -> impl Future<Output = Result<(), PushError>> + Send;
}

impl<S: UsageSink> UsageSink for Arc<S> {
    fn push(&self, batch: &[UsageRecord]) -> impl Future<Output = Result<(), PushError>> + Send {
        S::push(self, batch)
    }
}

/// The sink has not taken the batch.
///
/// Its `Display` and its source go into the operator's log, so neither may hold a secret.
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

/// What is to become of a batch that was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushErrorKind {
    /// It is to be pushed again: the sink is out of reach, busy, or set up wrongly, which somebody will mend.
    #[error("the sink does not take records now")]
    Retry {
        /// How long the sink asks to be left alone. At most 5 min of it are heeded.
        after: Option<Duration>,
    },
    /// Something in it will never be taken. The batch is pushed in smaller parts, down to the single record, which is then
    /// given up, counted and told in the log.
    #[error("the sink will never take this")]
    Refused,
}

impl PushError {
    /// The batch is to be pushed again.
    pub fn retry(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            kind: PushErrorKind::Retry { after: None },
            source: Arc::from(source.into()),
        }
    }

    /// Something in the batch will never be taken.
    pub fn refused(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            kind: PushErrorKind::Refused,
            source: Arc::from(source.into()),
        }
    }

    /// Not before so much time has passed. No effect on a refusal.
    pub fn after(mut self, wait: Duration) -> Self {
        if let PushErrorKind::Retry { after } = &mut self.kind {
            *after = Some(wait);
        }
        self
    }

    /// What is to become of the batch.
    pub fn kind(&self) -> PushErrorKind {
        self.kind
    }
}
