use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::account::Account;
use crate::catch_unwind::Panicked;
use crate::record::UsageRecord;

/// A destination for the records of closed minutes: a meter, a queue, a table.
///
/// # What the pusher guarantees
///
/// * **Order.** The records of an organization arrive in the order of their minutes, except for a record that was parked and
///   settled as [`PushAgain`](crate::Settlement::PushAgain): it arrives after later ones. Minutes repeat and go back if the wall
///   clock is set back. The next batch is pushed only after
///   the previous one was accepted or failed.
/// * **Final records.** A record never changes. Records with the same [`id`](UsageRecord::id) are the same record.
/// * **At least once.** A record is pushed again if the push failed, timed out, or was interrupted by the end of the process.
///   Count each id once.
///
/// # What a sink must do
///
/// * Return `Ok` only when every record of the batch is stored: they are not pushed again. A record that the meter has already is
///   stored, even if the meter answers it with an error: leave it out and push the others.
/// * Allow its future to be dropped at every `await`, by the timeout of the pusher or by a shutdown. The records are pushed
///   again.
/// * Accept records with known ids: after an error the same records can arrive in batches of other sizes.
/// * If the meter forgets ids or rejects old records, say so in [`remembers`](Self::remembers) and [`oldest`](Self::oldest), and
///   return [`PushError::retry`] whenever the meter may have stored a record.
///
/// A panic counts as [`PushError::retry`]. A single record is parked as [`MaybeStored`](crate::ParkReason::MaybeStored) after the
/// third panic.
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
    /// Stores these records: at least one, at most [`batch_size`](crate::UsagePusherBuilder::batch_size) and
    /// [`max_batch`](Self::max_batch).
    fn push(&self, batch: &[UsageRecord]) -> impl Future<Output = Result<(), PushError>> + Send;

    /// Returns how long the meter counts each id once. `None`, the default: for ever. Zero: it does not.
    ///
    /// A record that a push [may have stored](PushError::retry) is pushed again only if the push ends within this time of the
    /// beginning of the first such push. Later it is [parked](crate::ParkedRecords), because the meter could count it twice. The
    /// wall clock decides. A push that began more than 60 s in the future has an unknown age, because the clock was set back since:
    /// its records are parked too. A clock that was ahead and is set back to a time after the push makes it appear younger,
    /// by at most its error.
    fn remembers(&self) -> Option<Duration> {
        None
    }

    /// Returns how long after the beginning of its minute the meter accepts a record. `None`, the default: for ever.
    ///
    /// An older record is not pushed, but [parked](crate::ParkedRecords).
    fn oldest(&self) -> Option<Duration> {
        None
    }

    /// Returns the most records of a batch. `None`, the default: any number. Zero counts as one.
    fn max_batch(&self) -> Option<usize> {
        None
    }
}

impl<S: UsageSink> UsageSink for Arc<S> {
    fn push(&self, batch: &[UsageRecord]) -> impl Future<Output = Result<(), PushError>> + Send {
        S::push(self, batch)
    }

    fn remembers(&self) -> Option<Duration> {
        S::remembers(self)
    }

    fn oldest(&self) -> Option<Duration> {
        S::oldest(self)
    }

    fn max_batch(&self) -> Option<usize> {
        S::max_batch(self)
    }
}

/// The sink did not store a batch.
///
/// `Display` and `source` are logged, so they must not contain a secret.
///
/// | error | for example | the meter has stored | the records |
/// |---|---|---|---|
/// | [`retry`](Self::retry) | timeout, connection lost, 5xx | unknown | are pushed again in smaller batches, or [parked](crate::ParkedRecords) if the meter [forgets](UsageSink::remembers) |
/// | [`not_stored`](Self::not_stored) | connection refused, 401, 429 | none | are pushed again in smaller batches |
/// | [`defer`](Self::defer) | the customer of an organization cannot be looked up | the others of the batch | are pushed again, after those of other accounts |
/// | [`permanent`](Self::permanent) | 400 | none | are pushed in smaller batches; one alone is dropped |
/// | [`park`](Self::park) | unknown customer | none | are parked; the others of the batch are pushed again |
/// | [`park_maybe_stored`](Self::park_maybe_stored) | the meter has forgotten ids | unknown, of earlier pushes | the same |
///
/// ```
/// use std::time::Duration;
/// use tower_orgkey_usage::{PushError, PushErrorKind};
///
/// let error = PushError::not_stored("status 429").after(Duration::from_secs(30));
/// assert_eq!(error.kind(), PushErrorKind::NotStored { after: Some(Duration::from_secs(30)) });
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[error("{kind}")]
pub struct PushError {
    kind: PushErrorKind,
    places: Option<Arc<[usize]>>,
    may_be_stored: bool,
    scope: Scope,
    #[source]
    source: Arc<dyn StdError + Send + Sync>,
}

/// What an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The sink, or the accounts of some records.
    Unknown,
    /// The accounts of the records.
    Accounts,
    /// The sink, whatever is pushed.
    Sink,
}

/// What happens to a batch that was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushErrorKind {
    /// The batch may be stored, and is pushed again.
    #[error("the sink gave no clear answer")]
    Retry {
        /// How long the pusher has to wait, at most 5 min.
        after: Option<Duration>,
    },
    /// Nothing of the batch is stored, and it is pushed again: the sink is unreachable, busy or misconfigured.
    #[error("the sink cannot store records now")]
    NotStored {
        /// How long the pusher has to wait, at most 5 min.
        after: Option<Duration>,
    },
    /// The sink will never store some record of the batch, and has stored none. The batch is pushed in smaller parts. A single
    /// record that fails is dropped, counted and logged; if an earlier push may have stored it, it is parked.
    #[error("the sink will never store this")]
    Permanent,
    /// Nothing of the batch is stored. Some records are parked, and the others are pushed again at once.
    #[error("the sink cannot store these records now")]
    Park,
}

impl PushError {
    fn new(kind: PushErrorKind, source: Box<dyn StdError + Send + Sync>) -> Self {
        Self {
            kind,
            places: None,
            may_be_stored: false,
            scope: Scope::Unknown,
            source: Arc::from(source),
        }
    }

    /// The batch may be stored, and is pushed again.
    pub fn retry(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(PushErrorKind::Retry { after: None }, source.into())
    }

    /// Nothing of the batch is stored, and it is pushed again.
    ///
    /// Return this only if the meter said so, or was not reached.
    pub fn not_stored(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(PushErrorKind::NotStored { after: None }, source.into())
    }

    /// The sink will never store some record of the batch, and has stored none.
    pub fn permanent(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(PushErrorKind::Permanent, source.into())
    }

    /// Nothing of the batch is stored. The records at these places, counted from 0, are [parked](crate::ParkedRecords), and the
    /// others are pushed again at once. Places beyond the batch are ignored; without any, this is [`not_stored`](Self::not_stored).
    pub fn park(
        source: impl Into<Box<dyn StdError + Send + Sync>>,
        places: impl IntoIterator<Item = usize>,
    ) -> Self {
        let mut error = Self::new(PushErrorKind::Park, source.into());
        error.places = Some(places.into_iter().collect());
        error
    }

    /// As [`park`](Self::park), but an earlier push may have stored these records: the meter can no longer tell. They are parked as
    /// [`MaybeStored`](crate::ParkReason::MaybeStored).
    ///
    /// ```
    /// use tower_orgkey_usage::{PushError, PushErrorKind};
    ///
    /// let error = PushError::park_maybe_stored("the meter no longer knows the first record", [0]);
    /// assert_eq!(error.kind(), PushErrorKind::Park);
    /// ```
    pub fn park_maybe_stored(
        source: impl Into<Box<dyn StdError + Send + Sync>>,
        places: impl IntoIterator<Item = usize>,
    ) -> Self {
        Self {
            may_be_stored: true,
            ..Self::park(source, places)
        }
    }

    /// Returns [`park`](Self::park) for the records of
    /// [organizations that were counted together](Account::OtherOrganizations): they belong to no single customer.
    ///
    /// # Errors
    ///
    /// The batch has such records.
    pub fn park_other_organizations(batch: &[UsageRecord]) -> Result<(), Self> {
        let is_merged = |place: &usize| batch[*place].account == Account::OtherOrganizations;
        let merged: Vec<usize> = (0..batch.len()).filter(is_merged).collect();
        if merged.is_empty() {
            Ok(())
        } else {
            Err(Self::park("a record is of several organizations", merged))
        }
    }

    /// The records at these places, counted from 0, are not stored, for a reason that concerns only their accounts. All waiting
    /// records of these accounts are pushed again after those of others, as after a single record that
    /// [failed](crate::UsagePusher#failures). The sink has stored all other records of the batch. Places beyond the batch are
    /// ignored.
    ///
    /// ```
    /// use tower_orgkey_usage::{PushError, PushErrorKind};
    ///
    /// let error = PushError::defer("the customer of the second record cannot be looked up", [1]);
    /// assert_eq!(error.kind(), PushErrorKind::NotStored { after: None });
    /// ```
    pub fn defer(
        source: impl Into<Box<dyn StdError + Send + Sync>>,
        places: impl IntoIterator<Item = usize>,
    ) -> Self {
        Self {
            scope: Scope::Accounts,
            ..Self::not_stored(source).only(places)
        }
    }

    /// Sets how long the pusher has to wait at least, up to 5 min. Only for errors that are pushed again. Of a batch of several
    /// records it is ignored, and the pusher pushes one of them next: after the error of a single record, the records of its
    /// account wait so long, and those of others are pushed meanwhile. If the pusher [pauses](crate::UsagePusher#failures), all wait.
    pub fn after(mut self, wait: Duration) -> Self {
        if let PushErrorKind::Retry { after } | PushErrorKind::NotStored { after } = &mut self.kind
        {
            *after = Some(wait);
        }
        self
    }

    /// Limits the error to the records at these places in the batch, counted from 0. The sink has stored all others, now or
    /// before. Places beyond the batch are ignored. No effect on [`park`](Self::park).
    ///
    /// ```
    /// use tower_orgkey_usage::PushError;
    ///
    /// // Of a batch of three, the first and the last record are stored.
    /// let error = PushError::not_stored("status 429").only([1]);
    /// ```
    pub fn only(mut self, places: impl IntoIterator<Item = usize>) -> Self {
        if self.kind != PushErrorKind::Park {
            self.places = Some(places.into_iter().collect());
        }
        self
    }

    /// The same error, of a call that cannot have stored anything.
    #[cfg(feature = "stripe")]
    pub(crate) fn into_not_stored(mut self) -> Self {
        let after = match self.kind {
            PushErrorKind::Retry { after } | PushErrorKind::NotStored { after } => after,
            PushErrorKind::Permanent | PushErrorKind::Park => None,
        };
        self.kind = PushErrorKind::NotStored { after };
        self
    }

    /// Returns what happens to the batch.
    pub fn kind(&self) -> PushErrorKind {
        self.kind
    }

    /// Whether the sink panicked.
    pub(crate) fn is_panic(&self) -> bool {
        self.source.is::<Panicked>()
    }

    /// The same error, which has nothing to do with the records.
    pub(crate) fn of_sink(mut self) -> Self {
        self.scope = Scope::Sink;
        self
    }

    pub(crate) fn scope(&self) -> Scope {
        self.scope
    }

    /// Whether records to park may be stored.
    pub(crate) fn may_be_stored(&self) -> bool {
        self.may_be_stored
    }

    /// The places that the error is about in a batch of `len`, ascending. `None`: all.
    pub(crate) fn places(&self, len: usize) -> Option<Vec<usize>> {
        let places: BTreeSet<usize> = self.places.as_ref()?.iter().copied().collect();
        Some(places.into_iter().filter(|place| *place < len).collect())
    }
}
