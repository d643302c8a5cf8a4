//! The locks and atomics that the protocol between landings and decrees rests on, in one place, so that a model checker can
//! put its own in theirs and choose the order in which threads come to them.

#[cfg(not(all(test, orgkey_shuttle)))]
pub(super) use std::sync::{Mutex, MutexGuard, RwLock, RwLockWriteGuard, atomic::AtomicU64};

#[cfg(all(test, orgkey_shuttle))]
pub(super) use shuttle::sync::{Mutex, MutexGuard, RwLock, RwLockWriteGuard, atomic::AtomicU64};

/// Stands in a store whose own locks the model checker cannot see: each operation is one step for it, that others may come
/// before or after.
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

/// Nothing, outside of the model checker.
#[cfg(not(all(test, orgkey_shuttle)))]
pub(super) struct Step;

#[cfg(not(all(test, orgkey_shuttle)))]
impl Step {
    pub(super) fn new() -> Self {
        Self
    }

    #[allow(clippy::unused_self)] // The other one needs it.
    pub(super) fn take(&self) {}
}
