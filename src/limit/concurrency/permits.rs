//! How many requests of each organization or key are under way.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limit::subject::Subject;

/// Into so many parts the table is cut, each with a lock of its own that is held for a look-up.
const SHARDS: usize = 32;

/// Who has requests under way has an entry here, and nobody else.
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

    /// A place among at most `limit`, unless all are taken.
    pub(super) fn take(self: &Arc<Self>, subject: Subject, limit: usize) -> Option<Permit> {
        let mut shard = self.shard(&subject);
        match shard.get_mut(&subject) {
            Some(taken) if *taken >= limit => return None,
            Some(taken) => *taken += 1,
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

    /// How many organizations or keys have requests under way.
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
    // Whatever panics under the lock (nothing but want of memory) has changed one entry or none.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request's place among those under way. Given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    permits: Arc<Permits>,
    subject: Subject,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut shard = self.permits.shard(&self.subject);
        if let Some(taken) = shard.get_mut(&self.subject) {
            *taken -= 1;
            if *taken == 0 {
                shard.remove(&self.subject);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::subject::{Asked, Per};
    use crate::test_util::OrgContextBuilder;

    fn subject(org: &'static str) -> Subject {
        let context = OrgContextBuilder::new(org).build();
        Asked::of(&context, Per::Organization).to_subject()
    }

    #[test]
    fn an_entry_lives_as_long_as_its_permits() {
        let permits = Arc::new(Permits::new());
        let held: Vec<Permit> = (0..3)
            .filter_map(|_| permits.take(subject("org_1"), 2))
            .collect();
        assert_eq!((held.len(), permits.len()), (2, 1));
        let other = permits.take(subject("org_2"), 1);
        assert!(other.is_some());
        assert!(permits.take(subject("org_2"), 0).is_none());
        assert_eq!(permits.len(), 2);
        drop(held);
        assert_eq!(permits.len(), 1);
        assert!(permits.take(subject("org_1"), 0).is_none());
        drop(other);
        assert_eq!(permits.len(), 0, "a refusal leaves nothing behind");
    }
}
