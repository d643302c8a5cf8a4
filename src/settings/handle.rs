use std::fmt;
use std::sync::Arc;

use orgkey_lookup::UpstreamState;
use orgkey_lookup::cache::{Dependent, Stats};

use crate::context::OrgCode;

/// A cache of settings of any type.
pub(super) trait Control: Dependent {
    fn stats(&self) -> Stats;
}

/// Invalidates settings, and tells how things stand. Cheap to clone; every clone acts on the same layer.
///
/// Invalidated settings are loaded anew, from the first request on that begins after the call has returned, on every thread;
/// a load that was under way can bring nothing back. While the loader fails, such a request gets the default or 503. It
/// reaches this process alone: tell each of several nodes.
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

/// Counts since the layer was built, and how full it is.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct SettingsStats {
    /// Organizations whose settings are held.
    pub entries: usize,
    /// Requests given fresh settings.
    pub hits: u64,
    /// Requests given stale settings, at once.
    pub stale_hits: u64,
    /// Requests that had to ask.
    pub misses: u64,
    /// Requests that asked, and found their question already on its way.
    pub coalesced: u64,
    /// Organizations that made room for others.
    pub evictions: u64,
    /// How things stand with the loader.
    pub upstream: UpstreamState,
}

impl OrgSettingsHandle {
    pub(super) fn new(cache: Arc<dyn Control>) -> Self {
        Self(cache)
    }

    /// Loads this organization's settings anew.
    pub fn invalidate_org(&self, org: &OrgCode) {
        self.0.invalidate_organization(org.as_str());
    }

    /// Loads every organization's settings anew.
    pub fn invalidate_all(&self) {
        self.0.invalidate_all();
    }

    /// Counts, and how full the layer is.
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

impl fmt::Debug for OrgSettingsHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrgSettingsHandle")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
