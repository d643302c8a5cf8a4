//! Caches of what belongs to an organization besides its keys: they hear of what is invalidated in the cache of the keys.

use std::sync::{Arc, PoisonError, Weak};

use super::sync::Mutex;
use super::{ApiKeyHandle, Cache};
use crate::clock::Clock;
use crate::context::OrgCode;
use crate::key::ApiKey;

/// The caches to tell, for as long as somebody else holds them.
#[derive(Debug, Default)]
pub(super) struct Dependents(Mutex<Vec<Weak<Cache>>>);

impl Dependents {
    fn add(&self, cache: &Arc<Cache>) {
        let mut caches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        caches.retain(|cache| cache.strong_count() > 0);
        caches.push(Arc::downgrade(cache));
    }

    /// Handles to all of them. One that is added while this is read was empty when it was, and whatever it loads is asked for
    /// after what the caller tells of: it misses nothing.
    fn handles(&self) -> Vec<ApiKeyHandle> {
        let caches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let living = caches.iter().filter_map(Weak::upgrade);
        living.map(ApiKeyHandle::new).collect()
    }

    /// What stands for a key in such a cache is the organization, so this is the invalidation of a key: it fences, ends the
    /// loads under way, and forgets.
    pub(super) fn invalidate_org(&self, org: &OrgCode) {
        for handle in self.handles() {
            handle.invalidate_key(&ApiKey::standing_for(org));
        }
    }

    pub(super) fn invalidate_all(&self) {
        for handle in self.handles() {
            handle.invalidate_all();
        }
    }
}

impl ApiKeyHandle {
    /// From now on this cache hears of the organizations that are invalidated. To be told before anything is loaded.
    pub(crate) fn add_dependent(&self, dependent: &Arc<Cache>) {
        self.0.dependents.add(dependent);
    }

    /// The clock of the layer.
    pub(crate) fn clock(&self) -> Clock {
        self.0.clock.clone()
    }
}

#[cfg(test)]
mod tests {
    use crate::auth::ApiKeyLayer;
    use crate::verify::{Verification, verifier_fn};

    fn layer() -> ApiKeyLayer {
        ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }))
    }

    #[test]
    fn a_cache_that_nobody_holds_any_more_is_let_go() {
        let keys = layer().handle();
        let dependents = &keys.0.dependents;
        let kept = layer().handle();
        keys.add_dependent(&kept.0);
        for _ in 0..100 {
            keys.add_dependent(&layer().handle().0);
            assert_eq!(dependents.handles().len(), 1);
            // The one that is kept, and the last one, whose death nobody has noticed yet.
            assert!(dependents.0.lock().unwrap().len() <= 2);
        }
    }
}
