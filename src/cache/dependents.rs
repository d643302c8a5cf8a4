//! Dependent caches: caches of organizations' settings, which are invalidated together with the cache of keys.

use std::sync::{Arc, PoisonError, Weak};

use super::sync::Mutex;
use super::{ApiKeyHandle, Cache};
use crate::clock::Clock;
use crate::context::OrgCode;
use crate::key::ApiKey;

/// Weak references to the dependent caches.
#[derive(Debug, Default)]
pub(super) struct Dependents(Mutex<Vec<Weak<Cache>>>);

impl Dependents {
    fn add(&self, cache: &Arc<Cache>) {
        let mut caches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        caches.retain(|cache| cache.strong_count() > 0);
        caches.push(Arc::downgrade(cache));
    }

    /// Returns their handles. A cache that is added meanwhile was empty, and its loads begin after the invalidation.
    fn handles(&self) -> Vec<ApiKeyHandle> {
        let caches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = caches.iter().filter_map(Weak::upgrade);
        alive.map(ApiKeyHandle::new).collect()
    }

    /// Invalidates an organization's settings. In such a cache, the organization's code is the key.
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
    /// Adds a dependent cache. Must be called before it loads anything.
    pub(crate) fn add_dependent(&self, dependent: &Arc<Cache>) {
        self.0.dependents.add(dependent);
    }

    /// Returns the clock of the layer.
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
    fn dropped_caches_are_removed() {
        let keys = layer().handle();
        let dependents = &keys.0.dependents;
        let kept = layer().handle();
        keys.add_dependent(&kept.0);
        for _ in 0..100 {
            keys.add_dependent(&layer().handle().0);
            assert_eq!(dependents.handles().len(), 1);
            // The one that is kept, and the last one, which is removed when the next one is added.
            assert!(dependents.0.lock().unwrap().len() <= 2);
        }
    }
}
