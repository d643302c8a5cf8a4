//! Dependent caches, which are invalidated together with this one.

use std::sync::{Arc, PoisonError, Weak};

use super::sync::Mutex;

/// A cache that is invalidated together with another one.
pub trait Dependent: Send + Sync + 'static {
    /// Invalidates what it contains for this organization.
    fn invalidate_organization(&self, organization: &str);

    /// Invalidates everything.
    fn invalidate_all(&self);
}

/// Weak references to the dependent caches.
#[derive(Default)]
pub(super) struct Dependents(Mutex<Vec<Weak<dyn Dependent>>>);

impl Dependents {
    pub(super) fn add(&self, dependent: Weak<dyn Dependent>) {
        let mut dependents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        dependents.retain(|dependent| dependent.strong_count() > 0);
        dependents.push(dependent);
    }

    /// Returns the dependents. One that is added meanwhile was empty, and its lookups begin after the invalidation.
    fn alive(&self) -> Vec<Arc<dyn Dependent>> {
        let dependents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        dependents.iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn invalidate_organization(&self, organization: &str) {
        for dependent in self.alive() {
            dependent.invalidate_organization(organization);
        }
    }

    pub(super) fn invalidate_all(&self) {
        for dependent in self.alive() {
            dependent.invalidate_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Dependent for Nothing {
        fn invalidate_organization(&self, _: &str) {}

        fn invalidate_all(&self) {}
    }

    #[test]
    fn dropped_dependents_are_removed() {
        let dependents = Dependents::default();
        let add = || {
            let dependent = Arc::new(Nothing);
            let weak = Arc::downgrade(&dependent);
            dependents.add(weak);
            dependent
        };
        let _kept = add();
        for _ in 0..100 {
            drop(add());
            assert_eq!(dependents.alive().len(), 1);
            // The one that is kept, and the last one, which is removed when the next one is added.
            assert!(dependents.0.lock().unwrap().len() <= 2);
        }
    }
}
