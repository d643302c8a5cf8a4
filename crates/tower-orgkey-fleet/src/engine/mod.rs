//! The interface to an engine. It is trusted with nothing: whatever it returns may be missing, old, made up or out of order.

#[cfg(any(test, feature = "test-util"))]
pub(crate) mod memory;
#[cfg(feature = "redis")]
pub(crate) mod redis;
#[cfg(feature = "sentinel")]
mod sentinel;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tower_orgkey::fleet::BoxFuture;

use crate::log::Head;
use crate::wire::Id;

/// The maximum number of log entries of one reply.
pub(crate) const READ_COUNT: usize = 512;
/// The maximum number of node records, blocks' parts and acknowledgements that are read of a reply.
pub(crate) const MAX_NODES: usize = 1_024;
/// How long acknowledgements are kept.
pub(crate) const ACKS_KEPT: Duration = Duration::from_secs(60);

/// Why an operation of the engine failed. No part of it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EngineError {
    problem: String,
}

impl EngineError {
    pub(crate) fn new(problem: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
        }
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

pub(crate) type EngineResult<T> = Result<T, EngineError>;

/// A place in the log, in the engine's own terms.
pub(crate) type Place = String;

/// The place before the first entry.
pub(crate) const BEGINNING: &str = "0-0";

/// An entry to append.
#[derive(Clone, Debug)]
pub(crate) struct Append {
    pub(crate) sealed: Vec<u8>,
    /// How long entries are kept.
    pub(crate) keep: Duration,
    /// A block to write, by the name of its field.
    pub(crate) block: Option<(String, Vec<u8>)>,
    /// The blocks to remove.
    pub(crate) unblock: Vec<String>,
}

/// An entry of the log, as the engine returns it.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) place: Place,
    pub(crate) epoch: Id,
    pub(crate) number: u64,
    pub(crate) sealed: Vec<u8>,
}

/// Sealed values by their fields.
pub(crate) type Fields = Vec<(String, Vec<u8>)>;

/// A value, and the head when it was read.
pub(crate) type Fetched = (Option<Vec<u8>>, Option<Head>);

/// An engine.
pub(crate) trait Engine: fmt::Debug + Send + Sync {
    /// Opens connections.
    fn connect(&self) -> BoxFuture<'_, EngineResult<Arc<dyn Session>>>;
}

/// Connections to one server of an engine.
///
/// Methods with an epoch found it, if the server that answers did not found the present one: after a restart, a failover or a
/// loss of all data. The log is empty then and its numbers begin again.
pub(crate) trait Session: Send + Sync {
    /// Returns the head.
    fn join(&self, new_epoch: Id) -> BoxFuture<'_, EngineResult<Head>>;

    /// Returns up to [`READ_COUNT`] entries after this place. Waits this long for one.
    fn read(&self, after: Place, wait: Duration) -> BoxFuture<'_, EngineResult<Vec<Read>>>;

    /// Appends entries in order. Returns the head after each.
    fn append(&self, new_epoch: Id, entries: Vec<Append>)
    -> BoxFuture<'_, EngineResult<Vec<Head>>>;

    /// Returns a value and, read in the same step, the head.
    fn fetch(&self, name: String) -> BoxFuture<'_, EngineResult<Fetched>>;

    /// Stores a value.
    fn store(
        &self,
        name: String,
        sealed: Vec<u8>,
        keep: Duration,
    ) -> BoxFuture<'_, EngineResult<()>>;

    /// Writes a node record, and removes those of other nodes. Returns the head, all records and the number of blocks.
    fn record(
        &self,
        new_epoch: Id,
        node: String,
        sealed: Vec<u8>,
        forget: Vec<String>,
    ) -> BoxFuture<'_, EngineResult<(Head, Fields, usize)>>;

    /// Returns all blocks.
    fn blocks(&self) -> BoxFuture<'_, EngineResult<Fields>>;

    /// Writes blocks, and appends the entries of those that the engine did not have.
    fn restore(&self, new_epoch: Id, blocks: Vec<Append>) -> BoxFuture<'_, EngineResult<()>>;

    /// Writes acknowledgements of updates by this node: `(update, sealed)`.
    fn acknowledge(&self, node: String, acks: Fields) -> BoxFuture<'_, EngineResult<()>>;

    /// Returns the acknowledgements of an update, and the records of all nodes.
    fn acknowledgements(&self, update: String) -> BoxFuture<'_, EngineResult<(Fields, Fields)>>;
}
