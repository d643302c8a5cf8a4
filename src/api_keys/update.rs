//! Updates of a layer: blocks and invalidations, its own and those of other nodes of its fleet.

use std::sync::Arc;

use orgkey_lookup::{BlockListFull, Target};

use super::Cache;
use crate::fleet::{FleetLink, FleetMember, Subject, Update};
use crate::key::KeyDigest;

/// Applies an update of this node and sends it to the fleet, if the layer is in one. Returns what `send` returns.
pub(crate) fn apply<T>(
    cache: &Cache,
    update: &Update,
    send: impl FnOnce(&dyn FleetLink) -> T,
) -> Result<Option<T>, BlockListFull> {
    let fleet = cache.source().fleet();
    let changes_blocks = matches!(update, Update::Block(_) | Update::Unblock(_));
    let _locked = fleet
        .filter(|_| changes_blocks)
        .map(|fleet| fleet.lock_blocks());
    let publish = || fleet.map(|fleet: &Arc<_>| send(&**fleet));
    if matches!(update, Update::Block(_)) {
        // May fail, and applies to results of any age.
        apply_here(cache, update)?;
        return Ok(publish());
    }
    // Before it is applied here, so that no result of another node from before the update is fetched in between.
    let result = publish();
    apply_here(cache, update)?;
    Ok(result)
}

/// Returns the version that has the update.
fn apply_here(cache: &Cache, update: &Update) -> Result<u64, BlockListFull> {
    Ok(match update {
        Update::Invalidate(subject) => cache.invalidate(target(subject)),
        Update::InvalidateAll => cache.invalidate_all(),
        Update::Block(subject) => cache.block(target(subject))?,
        Update::Unblock(subject) => {
            // Invalidates nothing, so the version from before has it.
            let version = cache.version();
            cache.unblock(target(subject));
            version
        }
    })
}

/// Converts the subject of an update into a target of the cache.
pub(crate) fn target(subject: &Subject) -> Target<'_, &KeyDigest> {
    match subject {
        Subject::Key(key) => Target::Key(key),
        Subject::KeyId(id) => Target::KeyId(id.as_str()),
        Subject::Org(org) => Target::Organization(org.as_str()),
    }
}

impl FleetMember for Cache {
    fn apply(&self, update: &Update, is_own: bool) -> Option<u64> {
        if let (Update::Invalidate(subject @ Subject::Key(_)), true) = (update, is_own) {
            // The key may be cached as invalid since.
            return Some(self.invalidate_results(target(subject)));
        }
        // Not logged here: the fleet holds a lock.
        apply_here(self, update).ok()
    }

    fn version(&self) -> u64 {
        Cache::version(self)
    }

    fn refresh_all(&self) {
        Cache::refresh_all(self);
    }

    fn share_calls(&self, nodes: u32) {
        Cache::share_calls(self, nodes);
    }
}
