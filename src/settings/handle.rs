use std::sync::Arc;

use orgkey_lookup::UpstreamState;
use orgkey_lookup::cache::{Dependent, Stats};

use crate::identifier::OrgCode;

/// A cache of settings of any type.
pub(super) trait Control: Dependent {
    fn stats(&self) -> Stats;
}

/// A handle that invalidates settings and returns statistics. Cheap to clone. All clones control the same layer.
///
/// Invalidated settings are loaded again for the first request that begins after the method has returned, on every thread.
/// The result of a load in flight is discarded. While loads fail, such a request gets the default or 503. This affects this
/// process only: call the method on each node.
///
/// ```
/// use tower_orgkey::OrgCode;
/// use tower_orgkey::settings::{OrgSettingsLayer, SettingsError, settings_fn};
/// # use tower_orgkey::{ApiKeyLayer, Verification, verifier_fn};
/// # struct Plan;
/// # async fn load(_: OrgCode) -> Result<Plan, SettingsError> { Ok(Plan) }
/// # let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
/// let plans = OrgSettingsLayer::new(&auth.handle(), settings_fn(load));
/// let handle = plans.handle();
///
/// // After the customer has bought another plan:
/// handle.invalidate_org(&OrgCode::new("org_123")?);
/// # Ok::<(), tower_orgkey::InvalidIdentifier>(())
/// ```
#[derive(Clone)]
pub struct OrgSettingsHandle(Arc<dyn Control>);

/// Counters since the layer was built, and the size of its cache.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct SettingsStats {
    /// Organizations with cached settings.
    pub entries: usize,
    /// Requests served with fresh settings.
    pub hits: u64,
    /// Requests served with stale settings without waiting.
    pub stale_hits: u64,
    /// Requests that required a load.
    pub misses: u64,
    /// Requests that joined a load in flight.
    pub coalesced: u64,
    /// Organizations whose settings were evicted because the cache was full.
    pub evictions: u64,
    /// The state of the calls to the loader.
    pub upstream: UpstreamState,
}

impl OrgSettingsHandle {
    pub(super) fn new(cache: Arc<dyn Control>) -> Self {
        Self(cache)
    }

    /// Invalidates the settings of this organization.
    pub fn invalidate_org(&self, org: &OrgCode) {
        self.0.invalidate_organization(org.as_str());
    }

    /// Invalidates all settings.
    pub fn invalidate_all(&self) {
        self.0.invalidate_all();
    }

    /// Returns the counters of the layer and the size of its cache.
    pub fn stats(&self) -> SettingsStats {
        let stats = self.0.stats();
        SettingsStats {
            entries: stats.entries,
            hits: stats.hits,
            stale_hits: stats.stale_hits,
            misses: stats.misses,
            coalesced: stats.coalesced,
            evictions: stats.evictions,
            upstream: stats.upstream,
        }
    }
}

impl_debug!(OrgSettingsHandle, |handle| { stats: handle.stats() });
