//! Blocks and invalidations on all nodes of a fleet.

use std::sync::Arc;

use crate::api_keys::{Cache, update};
use crate::fleet::{BoxFuture, NotSpread, Reach, Subject, Update};
use crate::identifier::{KeyId, OrgCode};
use crate::key::ApiKey;

/// A handle that blocks and invalidates keys on all nodes of a fleet. Returned by
/// [`ApiKeyHandle::spread`](crate::ApiKeyHandle::spread).
///
/// Each method applies the update to this node before it returns, as the method of [`ApiKeyHandle`](crate::ApiKeyHandle) of the
/// same name does. The future that it returns waits until every known node has confirmed that it has applied the update, for
/// at most 2 s: [`Reach`] says which have. Dropping the future cancels only the wait.
///
/// Known nodes are those that the engine lists, and those that this node has seen in the time for which a node that is cut off may
/// serve old results: the hard TTL and the lookup deadline. For a block, it is 10 min at least, because a node that is cut off accepts
/// the blocked keys until it is connected again. After a longer partition, and with an engine that hides a node which this
/// one never saw, only [`expected_nodes`](Self::expected_nodes) shows that a node is missing: set it if their number is known.
///
/// Without a fleet, this node is the only one.
///
/// ```
/// use tower_orgkey::{ApiKeyLayer, KeyId, OrgCode};
/// # use tower_orgkey::{Verification, verifier_fn};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
/// let spread = auth.handle().spread().expected_nodes(1);
///
/// // After the key was deleted at the issuer:
/// let reach = spread.invalidate_key_id(&KeyId::new("api_key_0001")?).await?;
/// assert!(reach.is_complete());
/// let reach = spread.block_org(&OrgCode::new("org_123")?).await?;
/// assert_eq!(reach.applied.len(), 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct Spread {
    cache: Arc<Cache>,
    expected_nodes: usize,
}

/// Waits until all known nodes have applied an update. Returned by the methods of [`Spread`].
pub type Spreading = BoxFuture<'static, Result<Reach, NotSpread>>;

impl Spread {
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            expected_nodes: 0,
        }
    }

    /// Sets how many nodes the fleet has, this one included. [`Reach::hidden`] is then the number of those that are neither
    /// known nor have confirmed the update. 0 unless set.
    pub fn expected_nodes(mut self, nodes: usize) -> Self {
        self.expected_nodes = nodes;
        self
    }

    /// Blocks this secret.
    pub fn block_key(&self, key: &ApiKey) -> Spreading {
        self.update(&Update::Block(self.subject(key)))
    }

    /// Blocks every secret of this key.
    pub fn block_key_id(&self, key_id: &KeyId) -> Spreading {
        self.update(&Update::Block(Subject::KeyId(key_id.clone())))
    }

    /// Blocks every key of this organization.
    pub fn block_org(&self, org: &OrgCode) -> Spreading {
        self.update(&Update::Block(Subject::Org(org.clone())))
    }

    /// Unblocks a secret.
    pub fn unblock_key(&self, key: &ApiKey) -> Spreading {
        self.update(&Update::Unblock(self.subject(key)))
    }

    /// Unblocks a key.
    pub fn unblock_key_id(&self, key_id: &KeyId) -> Spreading {
        self.update(&Update::Unblock(Subject::KeyId(key_id.clone())))
    }

    /// Unblocks an organization.
    pub fn unblock_org(&self, org: &OrgCode) -> Spreading {
        self.update(&Update::Unblock(Subject::Org(org.clone())))
    }

    /// Invalidates this secret.
    pub fn invalidate_key(&self, key: &ApiKey) -> Spreading {
        self.update(&Update::Invalidate(self.subject(key)))
    }

    /// Invalidates every secret of this key.
    pub fn invalidate_key_id(&self, key_id: &KeyId) -> Spreading {
        self.update(&Update::Invalidate(Subject::KeyId(key_id.clone())))
    }

    /// Invalidates every key of this organization, and its settings.
    pub fn invalidate_org(&self, org: &OrgCode) -> Spreading {
        self.update(&Update::Invalidate(Subject::Org(org.clone())))
    }

    /// Invalidates every key, and all settings.
    pub fn invalidate_all(&self) -> Spreading {
        self.update(&Update::InvalidateAll)
    }

    fn subject(&self, key: &ApiKey) -> Subject {
        Subject::Key(self.cache.source().digest(key.expose_secret()))
    }

    fn update(&self, update: &Update) -> Spreading {
        let expected = self.expected_nodes;
        let spread = update::apply(&self.cache, update, |fleet| fleet.spread(update, expected));
        Box::pin(async move {
            match spread.map_err(|_| NotSpread::BlockListFull)? {
                Some(spread) => spread.await,
                None => Ok(Reach {
                    applied: vec!["this".to_owned()],
                    hidden: expected.saturating_sub(1),
                    ..Reach::default()
                }),
            }
        })
    }
}

impl_debug!(Spread, |spread| { expected_nodes: spread.expected_nodes });
