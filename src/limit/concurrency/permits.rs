//! The permits in use, by organization or key.

use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use papaya::Equivalent;

use crate::limit::subject::{Subject, SubjectRef};

/// The number of shards, each with a lock that is held for one look-up.
const SHARDS: usize = 32;

/// Has an entry for each organization or key with requests in flight.
#[derive(Debug)]
pub(super) struct Permits {
    shards: [Mutex<HashTable<Row>>; SHARDS],
    /// Not a cryptographic hash: issuers choose organizations and keys.
    hasher: RandomState,
}

#[derive(Debug)]
struct Row {
    subject: Subject,
    hash: u64,
    used: usize,
}

impl Permits {
    pub(super) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::default(),
        }
    }

    /// Acquires one of at most `limit` permits. `None` if all are in use.
    pub(super) fn acquire(
        self: &Arc<Self>,
        subject: SubjectRef<'_>,
        limit: usize,
    ) -> Option<Permit> {
        let hash = self.hasher.hash_one(subject);
        let is_same = |row: &Row| row.hash == hash && subject.equivalent(&row.subject);
        let mut shard = self.shard(hash);
        let subject = match shard.entry(hash, is_same, |row| row.hash) {
            Entry::Occupied(row) if row.get().used >= limit => return None,
            Entry::Occupied(mut row) => {
                let row = row.get_mut();
                row.used += 1;
                row.subject.clone()
            }
            Entry::Vacant(_) if limit == 0 => return None,
            Entry::Vacant(entry) => {
                let subject = subject.to_subject();
                entry.insert(Row {
                    subject: subject.clone(),
                    hash,
                    used: 1,
                });
                subject
            }
        };
        drop(shard);
        Some(Permit {
            permits: Arc::clone(self),
            subject,
            hash,
        })
    }

    /// Returns the number of organizations or keys with requests in flight.
    pub(super) fn len(&self) -> usize {
        let locked = self.shards.iter().map(lock);
        locked.map(|shard| shard.len()).sum()
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, HashTable<Row>> {
        // By middle bits: the tables use the low bits and the highest seven.
        lock(&self.shards[(hash >> 24) as usize % SHARDS])
    }
}

fn lock(shard: &Mutex<HashTable<Row>>) -> MutexGuard<'_, HashTable<Row>> {
    // A panic under the lock leaves at most one entry changed.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The permit of one request, released on drop.
#[derive(Debug)]
pub(super) struct Permit {
    permits: Arc<Permits>,
    subject: Subject,
    hash: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut shard = self.permits.shard(self.hash);
        let is_own = |row: &Row| row.hash == self.hash && row.subject == self.subject;
        if let Ok(mut row) = shard.find_entry(self.hash, is_own) {
            let used = &mut row.get_mut().used;
            *used -= 1;
            if *used == 0 {
                row.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::subject::Per;
    use crate::test_util::OrgContextBuilder;

    fn acquire(permits: &Arc<Permits>, org: &'static str, limit: usize) -> Option<Permit> {
        let context = OrgContextBuilder::new(org).build();
        permits.acquire(SubjectRef::new(&context, Per::Organization), limit)
    }

    #[test]
    fn entry_is_removed_with_its_last_permit() {
        let permits = Arc::new(Permits::new());
        let held: Vec<Permit> = (0..3)
            .filter_map(|_| acquire(&permits, "org_1", 2))
            .collect();
        assert_eq!((held.len(), permits.len()), (2, 1));
        let other = acquire(&permits, "org_2", 1);
        assert!(other.is_some());
        assert!(acquire(&permits, "org_2", 0).is_none());
        assert_eq!(permits.len(), 2);
        drop(held);
        assert_eq!(permits.len(), 1);
        assert!(acquire(&permits, "org_1", 0).is_none());
        drop(other);
        assert_eq!(permits.len(), 0, "a rejection leaves no entry");
    }
}
