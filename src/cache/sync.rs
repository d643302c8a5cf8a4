//! The locks and atomics that order completions, blocks and invalidations. A model checker replaces them and chooses the order
//! in which threads use them.

#[cfg(not(all(test, orgkey_shuttle)))]
pub(super) use std::sync::{Mutex, MutexGuard, RwLock, RwLockWriteGuard, atomic::AtomicU64};

#[cfg(all(test, orgkey_shuttle))]
pub(super) use shuttle::sync::{Mutex, MutexGuard, RwLock, RwLockWriteGuard, atomic::AtomicU64};

/// Marks an operation of a store as one step for the model checker, which does not see the store's own locks.
#[cfg(all(test, orgkey_shuttle))]
pub(super) struct Step(AtomicU64);

#[cfg(all(test, orgkey_shuttle))]
impl Step {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(super) fn take(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
    }
}

/// Does nothing outside of the model checker.
#[cfg(not(all(test, orgkey_shuttle)))]
pub(super) struct Step;

#[cfg(not(all(test, orgkey_shuttle)))]
impl Step {
    pub(super) fn new() -> Self {
        Self
    }

    #[allow(clippy::unused_self)] // The model checker's version uses it.
    pub(super) fn take(&self) {}
}
