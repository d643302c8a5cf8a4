//! What a use of the cache provides: its keys and values, its calls, and its telemetry.

use std::error::Error;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The name of an upstream in telemetry.
pub type Label = Arc<str>;

/// The types of one use of the cache, and its calls to the upstreams.
pub trait Source: Sized + Send + Sync + 'static {
    /// Identifies an entry. Must not contain a secret.
    type Key: IndexKey;
    /// What a call needs. May contain a secret: it is kept only by requests that wait and by the lookup task.
    type Query: Clone + Send + Sync + 'static;
    /// What an entry keeps of its query.
    type Mark: Copy + Debug + Send + Sync + 'static;
    /// A result.
    type Value: Value;
    /// Why a call failed.
    type Error: Failure;
    /// Where the cache reports to.
    type Telemetry: Telemetry<Self>;

    /// Returns the labels of the upstreams, at least one. Each upstream has a breaker, a throttle and an admission queue.
    fn upstreams(&self) -> Vec<Label> {
        vec![Label::from("")]
    }

    /// Returns the index of the upstream that answers this query. Always the same one for equal keys.
    ///
    /// `None` means that no upstream does: the key is invalid, and no call is made.
    fn upstream_of(&self, _query: &Self::Query) -> Option<usize> {
        Some(0)
    }

    /// Returns the part of the query that its entry stores.
    fn mark(&self, query: &Self::Query) -> Self::Mark;

    /// Returns where this node is in the updates that nodes share, or `None` if there is no second tier, or none that can be
    /// used now.
    ///
    /// Called before the version of the blocks and invalidations is read, under the lock of a shard: it must not block.
    fn position(&self) -> Option<Position> {
        None
    }

    /// Returns the result of another node's call. `None` if there is none that may be used, or if it takes too long.
    /// `is_known`: an older result is cached.
    fn fetch(
        &self,
        _query: &Self::Query,
        _is_known: bool,
    ) -> impl Future<Output = Option<Fetched<Self::Value>>> + Send {
        async { None }
    }

    /// Returns a future that stores a valid result for other nodes. It is awaited when the waiters have their answer.
    ///
    /// `age` is the time since the call was sent, and `began` the position when its lookup began.
    fn store(
        &self,
        _query: &Self::Query,
        _value: &Self::Value,
        _age: Duration,
        _began: Position,
    ) -> impl Future<Output = ()> + Send + use<Self> {
        async {}
    }

    /// Notes that a key is invalid of which a valid result was cached. Other nodes may have one too. No lock is held.
    fn rejected(&self, _key: &Self::Key) {}

    /// Makes one attempt at a call.
    ///
    /// `known` is the cached value, if there is one. The future is dropped when a lookup takes too long. `deadline` is the
    /// longest duration of each call, and up to the source to apply.
    fn call(
        &self,
        query: &Self::Query,
        known: Option<&Self::Value>,
        deadline: Duration,
    ) -> impl Future<Output = Result<Answered<Self::Value>, Self::Error>> + Send;
}

/// A position in the updates that nodes share: how many of them a node had applied. The cache only passes it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The epoch of the numbers.
    pub epoch: [u8; 16],
    /// The number of the last update that was applied.
    pub number: u64,
}

/// The result of another node's call.
#[derive(Debug)]
pub struct Fetched<V> {
    /// The result.
    pub value: V,
    /// The time since the call was sent.
    pub age: Duration,
    /// The version of the blocks and invalidations of this cache that had the same updates as the other node when its lookup
    /// began. Invalidations with a higher version apply.
    pub version: u64,
}

/// The key of an entry. Cheap to clone.
///
/// `Hash` must call [`Hasher::write_u64`](std::hash::Hasher::write_u64) once, with [`bits`](Self::bits).
pub trait IndexKey: Clone + Debug + Eq + Hash + Send + Sync + 'static {
    /// Returns 64 uniformly distributed bits of the key. Callers must not be able to choose them.
    fn bits(&self) -> u64;
}

/// A cached value.
pub trait Value: Debug + Send + Sync + 'static {
    /// Returns the identifier of the key at the issuer, by which it can be blocked and invalidated.
    fn key_id(&self) -> Option<&str> {
        None
    }

    /// Returns the organization, by which the value can be blocked and invalidated.
    fn organization(&self) -> Option<&str> {
        None
    }

    /// Returns when the key expires.
    fn expires_at(&self) -> Option<SystemTime> {
        None
    }

    /// Removes the expiry, because the entry ends earlier.
    fn clear_expiry(&mut self) {}

    /// Returns whether both values belong to the same organization and user. If not, streams of the key end.
    fn has_owner_of(&self, other: &Self) -> bool {
        self.organization() == other.organization()
    }

    /// Returns whether both values permit the same. If not, a request that waited is not served with the older one.
    fn is_equivalent_to(&self, other: &Self) -> bool {
        self.has_owner_of(other)
    }
}

/// An answer, and the circumstances it was given under.
#[derive(Clone, Debug)]
pub struct Answered<V> {
    /// The answer.
    pub answer: Answer<V>,
    /// The generation of the credential that was presented. An unconfirmed answer is confirmed only under the same one.
    pub credential: u64,
}

/// An answer of an upstream.
#[derive(Clone, Debug)]
pub enum Answer<V> {
    /// The key is valid.
    Valid(V),
    /// The key is invalid.
    Invalid(Invalid),
}

/// How certain it is that a key is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// The upstream answered the question. Also shows that the upstream is answering.
    Definitive,
    /// Other evidence shows that the key is invalid. Does not show that the upstream is answering.
    Concluded,
    /// The answer may be about the request or the endpoint. Rejects an unknown key; a known key is kept until a later answer
    /// under the same credential confirms it.
    Unconfirmed,
    /// The answer may be about the caller's own credential. Rejects no key until a later answer under the same credential
    /// confirms it.
    Undecided {
        /// Whether an operator has to act.
        is_misconfigured: bool,
    },
}

impl<V> Answer<V> {
    /// Returns whether the key is valid.
    pub fn is_valid(&self) -> bool {
        matches!(self, Self::Valid(_))
    }
}

/// The error of a call.
pub trait Failure: Error + Send + Sync + 'static {
    /// Returns what the failure is about.
    fn kind(&self) -> FailureKind;
}

/// What a failed call is about, which decides what else it affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The upstream. Counts towards the circuit breaker.
    Unavailable,
    /// The upstream asks for fewer calls. Pauses all calls.
    Throttled {
        /// How long the upstream asks to wait.
        retry_after: Option<Duration>,
    },
    /// The key. Delays further calls for it. Counts towards the circuit breaker when ten keys in a row agree.
    InvalidResponse,
    /// Neither: the upstream is answering, but evidence is missing.
    Inconclusive,
    /// Neither: an operator has to act.
    Misconfigured,
}

/// Where a cache reports to. Nothing is reported while a lock is held.
pub trait Telemetry<S: Source> {
    /// Whether gauges are recorded. They are not computed otherwise.
    const HAS_GAUGES: bool = false;

    /// A request read the cache.
    fn looked_up(_found: Found) {}

    /// The number of cached values changed.
    fn entries(_number: usize) {}

    /// A call ended.
    fn called(
        _upstream: &Label,
        _query: &S::Query,
        _outcome: &Result<Answered<S::Value>, S::Error>,
        _took: Duration,
    ) {
    }

    /// The number of calls in flight or of waiting lookups changed.
    fn occupied(_upstream: &Label, _calls: usize, _waiting: usize) {}

    /// The state of a circuit changed.
    fn breaker_state(_upstream: &Label, _circuit: Circuit, _state: BreakerState) {}

    /// A circuit opened for this long.
    fn breaker_opened(_upstream: &Label, _circuit: Circuit, _open_for: Duration) {}

    /// A half-open circuit lets one call through.
    fn breaker_tries(_upstream: &Label, _circuit: Circuit) {}

    /// A circuit closed.
    fn breaker_closed(_upstream: &Label, _circuit: Circuit) {}

    /// Calls pause for this long, because the upstream asks for fewer.
    fn throttled(_upstream: &Label, _pause: Duration) {}

    /// This many known keys have unconfirmed invalid answers.
    fn unconfirmed_invalid_answers(_upstream: &Label, _keys: usize) {}
}

/// What a request found in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A fresh result.
    Fresh,
    /// A stale result, which is served.
    Stale,
    /// An invalid, blocked or expired key.
    Invalid,
    /// Nothing that may be served without a lookup.
    Miss,
}

/// Which circuit of a breaker a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// That of known and recently valid keys.
    Known,
    /// That of unknown keys.
    Unknown,
}

impl Circuit {
    /// Returns the name of the circuit in telemetry.
    pub fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Unknown => "unknown",
        }
    }
}

/// The state of a circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// No calls go through.
    Open {
        /// Until one call may try again.
        remaining: Duration,
    },
    /// One call is trying, or the next one will.
    HalfOpen,
}

impl BreakerState {
    /// Returns the state as the value of a gauge: 0 closed, 1 half open, 2 open.
    pub fn as_gauge(self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open { .. } => 2,
        }
    }
}
