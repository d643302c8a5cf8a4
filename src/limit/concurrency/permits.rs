//! The permits in use, by organization or key.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limit::subject::Subject;

/// The number of shards, each with a lock that is held for one look-up.
const SHARDS: usize = 32;

/// Has an entry for each organization or key with requests in flight.
#[derive(Debug)]
pub(super) struct Permits {
    shards: [Mutex<HashMap<Subject, usize>>; SHARDS],
    hasher: RandomState,
}

impl Permits {
    pub(super) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
        }
    }

    /// Acquires one of at most `limit` permits. `None` if all are in use.
    pub(super) fn acquire(self: &Arc<Self>, subject: Subject, limit: usize) -> Option<Permit> {
        let mut shard = self.shard(&subject);
        match shard.get_mut(&subject) {
            Some(used) if *used >= limit => return None,
            Some(used) => *used += 1,
            None if limit == 0 => return None,
            None => {
                shard.insert(subject.clone(), 1);
            }
        }
        drop(shard);
        Some(Permit {
            permits: Arc::clone(self),
            subject,
        })
    }

    /// Returns the number of organizations or keys with requests in flight.
    pub(super) fn len(&self) -> usize {
        let locked = self.shards.iter().map(lock);
        locked.map(|shard| shard.len()).sum()
    }

    fn shard(&self, subject: &Subject) -> MutexGuard<'_, HashMap<Subject, usize>> {
        // The remainder is less than the number of shards.
        #[allow(clippy::cast_possible_truncation)]
        let at = (self.hasher.hash_one(subject) % SHARDS as u64) as usize;
        lock(&self.shards[at])
    }
}

fn lock(shard: &Mutex<HashMap<Subject, usize>>) -> MutexGuard<'_, HashMap<Subject, usize>> {
    // A panic under the lock leaves at most one entry changed.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The permit of one request, released on drop.
#[derive(Debug)]
pub(super) struct Permit {
    permits: Arc<Permits>,
    subject: Subject,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut shard = self.permits.shard(&self.subject);
        if let Some(used) = shard.get_mut(&self.subject) {
            *used -= 1;
            if *used == 0 {
                shard.remove(&self.subject);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::subject::{Per, SubjectRef};
    use crate::test_util::OrgContextBuilder;

    fn subject(org: &'static str) -> Subject {
        let context = OrgContextBuilder::new(org).build();
        SubjectRef::new(&context, Per::Organization).to_subject()
    }

    #[test]
    fn entry_is_removed_with_its_last_permit() {
        let permits = Arc::new(Permits::new());
        let held: Vec<Permit> = (0..3)
            .filter_map(|_| permits.acquire(subject("org_1"), 2))
            .collect();
        assert_eq!((held.len(), permits.len()), (2, 1));
        let other = permits.acquire(subject("org_2"), 1);
        assert!(other.is_some());
        assert!(permits.acquire(subject("org_2"), 0).is_none());
        assert_eq!(permits.len(), 2);
        drop(held);
        assert_eq!(permits.len(), 1);
        assert!(permits.acquire(subject("org_1"), 0).is_none());
        drop(other);
        assert_eq!(permits.len(), 0, "a rejection leaves no entry");
    }
}
