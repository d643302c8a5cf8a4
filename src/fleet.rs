//! Several nodes that share verification results and updates: what the layer and the crate
//! [`tower-orgkey-fleet`](https://docs.rs/tower-orgkey-fleet) say to each other.
//!
//! An application uses [`ApiKeyLayerBuilder::fleet`](crate::ApiKeyLayerBuilder::fleet) and
//! [`ApiKeyHandle::spread`](crate::ApiKeyHandle::spread). The traits of this module are for crates of this project and may change
//! in any release.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard, Weak};
use std::time::Duration;

#[doc(hidden)]
pub use orgkey_lookup::{Fetched, Position};

use crate::config::ConfigError;
use crate::identifier::{KeyId, OrgCode};
#[doc(hidden)]
pub use crate::key::KeyDigest;
#[doc(hidden)]
pub use crate::verify::Facts;

/// Which nodes have applied an update. Returned by the methods of [`Spread`](crate::Spread).
///
/// ```
/// use tower_orgkey::{ApiKeyLayer, KeyId};
/// # use tower_orgkey::{Verification, verifier_fn};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
/// let reach = auth.handle().spread().invalidate_key_id(&KeyId::new("api_key_0001")?).await?;
/// assert!(reach.is_complete(), "not yet applied by {:?}", reach.missing);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Reach {
    /// The names of the nodes that have applied the update, this one included.
    pub applied: Vec<String>,
    /// The names of the nodes that are known and have not said that they applied it. Such a node keeps the bounds of a single
    /// node: it accepts a revoked key for at most two soft TTLs and one verification, and until the hard TTL if the issuer does not
    /// answer it. What is blocked, and valid for the issuer, it accepts until it is connected again. A node that ended without a sign
    /// is named for the hard TTL and the lookup deadline, which are 15 min and 10 s by default; for a block, for 10 min at least.
    pub missing: Vec<String>,
    /// How many of the [expected nodes](crate::Spread::expected_nodes) are neither in `applied` nor in `missing`.
    pub hidden: usize,
    /// The time until the last node had applied it, or until the wait for the missing ones ended.
    pub took: Duration,
}

impl Reach {
    /// Returns whether all known and all expected nodes have applied the update.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.hidden == 0
    }
}

/// An update is in force on this node, but was not given to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotSpread {
    /// The engine did not take the update in time. It is sent again until the engine takes it, or until no result from before
    /// the update can exist any more. An unblock is not sent if the node was never connected: repeat it.
    #[error("the fleet's engine did not take the update; it is in force on this node only")]
    Unavailable,
    /// The list of blocks of this node is full. Nothing was blocked.
    #[error("the list of blocks is full")]
    BlockListFull,
}

/// A future of the traits of this module.
#[doc(hidden)]
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What an update is about.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// One secret.
    Key(KeyDigest),
    /// All secrets of a key.
    KeyId(KeyId),
    /// All keys of an organization.
    Org(OrgCode),
}

/// A block or an invalidation, or the end of a block.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Verify again.
    Invalidate(Subject),
    /// Verify everything again.
    InvalidateAll,
    /// Reject until unblocked.
    Block(Subject),
    /// End the blocks.
    Unblock(Subject),
}

/// What a fleet needs to know of a layer.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// [`Verifier::identity`](crate::Verifier::identity).
    pub issuer: String,
    /// The soft TTL.
    pub soft_ttl: Duration,
    /// The hard TTL.
    pub hard_ttl: Duration,
    /// The longest duration of a lookup.
    pub lookup_deadline: Duration,
}

/// A fleet that a layer can join.
#[doc(hidden)]
pub trait JoinFleet {
    /// Connects a layer to the fleet.
    fn join(&self, layer: LayerInfo) -> Result<Arc<dyn FleetLink>, ConfigError>;
}

/// What a layer asks of its fleet. No method blocks.
#[doc(hidden)]
pub trait FleetLink: Send + Sync {
    /// Returns the secret of the digests, which is that of all nodes with the same issuer.
    fn digest_secret(&self) -> [u8; 16];

    /// Sets the node that gets the updates of others.
    fn attach(&self, member: Weak<dyn FleetMember>);

    /// Returns how many updates this node has applied. `None` if results must not be fetched now.
    fn position(&self) -> Option<Position>;

    /// Returns the result that another node stored for this key. `is_known`: an older one is cached here.
    fn fetch<'a>(&'a self, key: &'a str, is_known: bool) -> BoxFuture<'a, Option<Fetched<Facts>>>;

    /// Returns a future that stores a result of this age, of a lookup that began at this position.
    fn store(
        &self,
        key: &str,
        result: &Facts,
        age: Duration,
        began: Position,
    ) -> BoxFuture<'static, ()>;

    /// Locks the blocks of the fleet. Held while a block begins or ends here and its update is sent, so that no update of
    /// another node comes between.
    fn lock_blocks(&self) -> MutexGuard<'_, ()>;

    /// Sends an update to the other nodes, in the background.
    fn publish(&self, update: &Update);

    /// Sends an update to the other nodes. The future waits until they have applied it.
    fn spread(
        &self,
        update: &Update,
        expected_nodes: usize,
    ) -> BoxFuture<'static, Result<Reach, NotSpread>>;
}

/// What a fleet asks of a layer.
#[doc(hidden)]
pub trait FleetMember: Send + Sync {
    /// Applies an update of another node. Returns the version of the cache that has it, or `None` if it could not be applied.
    /// An update of this node itself (`is_own`) was applied before it was sent, so only its version is new.
    fn apply(&self, update: &Update, is_own: bool) -> Option<u64>;

    /// Returns the present version.
    fn version(&self) -> u64;

    /// Updates may be missing: verifies all keys that are used again within 10 s, and serves them meanwhile.
    fn refresh_all(&self);

    /// Divides the rate of calls to the issuer by the number of nodes.
    fn share_calls(&self, nodes: u32);
}
