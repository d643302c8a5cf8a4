//! Blocks, which reject keys, and invalidations, which cause another lookup.
//!
//! Each update increments one version. An entry stores the version at which it was last found clear, so a hit pays for all
//! blocks and invalidations with one comparison. An update applies to the next request: the versions differ, and the tables
//! are read.
//!
//! An *invalidation* is the version at which something was invalidated. It applies to results of lookups that began at a
//! lower version, in the store, in flight or taken by a waiter. A block invalidates, too, so that no result from before a
//! block is served after it.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::entry::Entry;
use super::sync::{AtomicU64, RwLock, RwLockWriteGuard};
use super::watchers::Watchers;
use crate::clock::Tick;
use crate::source::{Source, Value};

/// The maximum number of blocks of one kind.
pub(crate) const MAX_BLOCKS: usize = 100_000;
/// The maximum number of invalidations of one kind. One more invalidates everything.
const MAX_INVALIDATIONS: usize = 100_000;

/// The error when the list of blocks of one kind is full, at 100,000. Nothing was blocked or unblocked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the list of blocked {what} is full")]
pub struct BlockListFull {
    pub(super) what: &'static str,
}

/// What a block or an invalidation is about.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a, K> {
    /// One key.
    Key(K),
    /// All keys with this identifier.
    KeyId(&'a str),
    /// All keys of this organization.
    Organization(&'a str),
}

/// What the blocks and invalidations say about an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockStatus {
    Clear,
    Blocked,
    Invalidated,
}

pub(super) struct Blocks<S: Source> {
    version: AtomicU64,
    tables: RwLock<Tables<S::Key>>,
    watchers: Arc<Watchers<S::Key>>,
}

struct Tables<K> {
    keys: Table<K>,
    ids: Table<Box<str>>,
    orgs: Table<Box<str>>,
    invalidated_all: u64,
    all_invalidated_at: Option<Tick>,
    /// Results of lookups that began at a lower version are due for a refresh since this time.
    due: Option<Invalidation>,
}

/// The blocks and invalidations of one kind.
struct Table<T> {
    blocked: HashSet<T>,
    invalidated: HashMap<T, Invalidation>,
}

#[derive(Clone, Copy, Debug)]
struct Invalidation {
    version: u64,
    at: Tick,
}

impl<K> Default for Tables<K> {
    fn default() -> Self {
        Self {
            keys: Table::default(),
            ids: Table::default(),
            orgs: Table::default(),
            invalidated_all: 0,
            all_invalidated_at: None,
            due: None,
        }
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            blocked: HashSet::new(),
            invalidated: HashMap::new(),
        }
    }
}

impl<S: Source> Default for Blocks<S> {
    fn default() -> Self {
        Self {
            version: AtomicU64::new(1),
            tables: RwLock::new(Tables::default()),
            watchers: Arc::default(),
        }
    }
}

impl<S: Source> Blocks<S> {
    /// Returns the present version, for a lookup that begins now.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Returns the status of an entry. Costs one comparison if nothing was updated since the entry was last found clear.
    pub(crate) fn status(&self, entry: &Entry<S>) -> BlockStatus {
        let version = self.version();
        if entry.cleared.load(Ordering::Relaxed) == version {
            return BlockStatus::Clear;
        }
        self.read_tables(entry, version)
    }

    /// Returns whether nothing was updated since the entry was last found clear.
    #[inline]
    pub(crate) fn has_cleared(&self, entry: &Entry<S>) -> bool {
        let version = self.version();
        entry.cleared.load(Ordering::Relaxed) == version
    }

    #[cold]
    fn read_tables(&self, entry: &Entry<S>, version: u64) -> BlockStatus {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let status = tables.status(entry);
        // A result that is due is refreshed by a request that reads the tables.
        let is_due = tables.due_at(entry).is_some();
        drop(tables);
        if status == BlockStatus::Clear && !is_due {
            // `version` was read before the tables, so after an update in between the two still differ.
            entry.cleared.store(version, Ordering::Relaxed);
        }
        status
    }

    pub(crate) fn is_key_blocked(&self, key: &S::Key) -> bool {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.keys.blocked.contains(key)
    }

    /// Returns since when the entry is due for a refresh.
    pub(crate) fn due_at(&self, entry: &Entry<S>) -> Option<Tick> {
        if self.has_cleared(entry) {
            return None;
        }
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.due_at(entry)
    }

    /// Makes the results of all lookups that began before due for a refresh.
    pub(crate) fn refresh_all(&self, now: Tick) {
        self.update(|tables, version| tables.due = Some(Invalidation { version, at: now }));
    }

    /// Returns whether everything was invalidated after this version.
    pub(crate) fn is_all_invalidated_since(&self, began: u64) -> bool {
        // Without an update there is no need for the lock.
        began != self.version() && {
            let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
            tables.invalidated_all > began
        }
    }

    /// Blocks and invalidates. Returns the version of the update.
    pub(crate) fn block(
        &self,
        target: Target<'_, &S::Key>,
        at: InvalidatedAt,
    ) -> Result<u64, BlockListFull> {
        self.update(|tables, version| {
            match target {
                Target::Key(key) => tables.keys.block(key.clone(), "keys"),
                Target::KeyId(id) => tables.ids.block(id.into(), "key ids"),
                Target::Organization(org) => tables.orgs.block(org.into(), "organizations"),
            }?;
            tables.invalidate(target, version, at);
            Ok(version)
        })
    }

    /// Returns whether it was blocked.
    pub(crate) fn unblock(&self, target: Target<'_, &S::Key>) -> bool {
        self.update(|tables, _| match target {
            Target::Key(key) => tables.keys.blocked.remove(key),
            Target::KeyId(id) => tables.ids.blocked.remove(id),
            Target::Organization(org) => tables.orgs.blocked.remove(org),
        })
    }

    /// Invalidates under one version, so that waiting streams are woken once. Returns the version.
    pub(crate) fn invalidate<'a>(
        &self,
        targets: impl IntoIterator<Item = Target<'a, &'a S::Key>>,
        at: InvalidatedAt,
    ) -> u64 {
        self.update(|tables, version| {
            for target in targets {
                tables.invalidate(target, version, at);
            }
            version
        })
    }

    pub(crate) fn invalidate_all(&self, now: Tick) -> u64 {
        self.update(|tables, version| {
            tables.invalidate_all(version, now);
            version
        })
    }

    /// Returns whether an invalidation that applies to the entry was made after its call was sent, whatever its version.
    pub(crate) fn is_invalidated_since_sent(&self, entry: &Entry<S>) -> bool {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.is_invalidated_since_sent(entry)
    }

    /// Returns the streams that wait for the end of their keys.
    pub(super) fn watchers(&self) -> Arc<Watchers<S::Key>> {
        Arc::clone(&self.watchers)
    }

    /// Wakes the streams of this key, because the issuer answered something else about it.
    pub(super) fn wake_key(&self, key: &S::Key) {
        self.watchers.wake(key);
    }

    /// Wakes the streams of this key, because the issuer found it invalid at this time.
    pub(super) fn reject_key(&self, key: &S::Key, at: Tick) {
        self.watchers.reject(key, at);
    }

    /// Changes the tables under the next version. The version is published before the lock is released, so the next request
    /// sees the update.
    fn update<T>(&self, change: impl FnOnce(&mut Tables<S::Key>, u64) -> T) -> T {
        let mut tables: RwLockWriteGuard<'_, Tables<S::Key>> =
            self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let version = self.version.load(Ordering::Relaxed) + 1;
        let result = change(&mut tables, version);
        self.version.store(version, Ordering::Release);
        drop(tables);
        self.watchers.wake_all();
        result
    }
}

/// When an invalidation is made, and how long it is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InvalidatedAt {
    pub(crate) now: Tick,
    /// The longest lifetime of a result and of its lookup. No older result can exist after this time.
    pub(crate) holds: std::time::Duration,
}

impl<K: Eq + Hash + Clone> Tables<K> {
    fn status<S: Source<Key = K>>(&self, entry: &Entry<S>) -> BlockStatus {
        let (id, org) = (entry.value.key_id(), entry.value.organization());
        let is_blocked = self.keys.blocked.contains(&entry.key)
            || id.is_some_and(|id| self.ids.blocked.contains(id))
            || org.is_some_and(|org| self.orgs.blocked.contains(org));
        if is_blocked {
            return BlockStatus::Blocked;
        }
        let is_invalidated = self.invalidated_all > entry.began
            || self.of(entry).any(|earlier| earlier.version > entry.began);
        if is_invalidated {
            BlockStatus::Invalidated
        } else {
            BlockStatus::Clear
        }
    }

    fn is_invalidated_since_sent<S: Source<Key = K>>(&self, entry: &Entry<S>) -> bool {
        self.all_invalidated_at
            .into_iter()
            .chain(self.of(entry).map(|earlier| earlier.at))
            .any(|at| at >= entry.sent_at)
    }

    /// Returns the invalidations of the entry's key, id and organization.
    fn of<S: Source<Key = K>>(&self, entry: &Entry<S>) -> impl Iterator<Item = &Invalidation> {
        let (id, org) = (entry.value.key_id(), entry.value.organization());
        let key = self.keys.invalidated.get(&entry.key);
        key.into_iter()
            .chain(id.and_then(|id| self.ids.invalidated.get(id)))
            .chain(org.and_then(|org| self.orgs.invalidated.get(org)))
    }

    /// Returns since when the entry is due for a refresh.
    fn due_at<S: Source<Key = K>>(&self, entry: &Entry<S>) -> Option<Tick> {
        let due = self.due.filter(|due| due.version > entry.began);
        due.map(|due| due.at)
    }

    fn invalidate(&mut self, target: Target<'_, &K>, version: u64, at: InvalidatedAt) {
        let has_room = match target {
            Target::Key(key) => self.keys.invalidate(key.clone(), version, at),
            Target::KeyId(id) => self.ids.invalidate(id.into(), version, at),
            Target::Organization(org) => self.orgs.invalidate(org.into(), version, at),
        };
        if !has_room {
            self.invalidate_all(version, at.now);
        }
    }

    fn invalidate_all(&mut self, version: u64, now: Tick) {
        self.invalidated_all = version;
        self.all_invalidated_at = Some(now);
        self.keys.invalidated.clear();
        self.ids.invalidated.clear();
        self.orgs.invalidated.clear();
    }
}

impl<T: Eq + Hash> Table<T> {
    fn block(&mut self, what: T, name: &'static str) -> Result<(), BlockListFull> {
        if self.blocked.len() >= MAX_BLOCKS && !self.blocked.contains(&what) {
            return Err(BlockListFull { what: name });
        }
        self.blocked.insert(what);
        Ok(())
    }

    /// Inserts an invalidation. Returns whether there was room.
    fn invalidate(&mut self, what: T, version: u64, at: InvalidatedAt) -> bool {
        let all = &mut self.invalidated;
        if all.len() >= MAX_INVALIDATIONS && !all.contains_key(&what) {
            all.retain(|_, earlier| at.now.since(earlier.at) <= at.holds);
            if all.len() >= MAX_INVALIDATIONS {
                return false;
            }
        }
        let at = at.now;
        all.insert(what, Invalidation { version, at });
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Target::{Key, KeyId, Organization};
    use super::*;
    use crate::kit::{Facts, LIFETIMES, TestSource, test_key};

    const NOW: InvalidatedAt = InvalidatedAt {
        now: Tick(1_000),
        holds: Duration::from_nanos(500),
    };

    fn entry(org: &str, id: &str, began: u64) -> Entry<TestSource> {
        let (facts, key) = (Facts::of(org, id), test_key(id));
        Entry::new(facts, key, (), Tick(1), began, LIFETIMES, Tick(1), None)
    }

    #[test]
    fn an_invalidation_applies_to_what_began_before() {
        let blocks = Blocks::<TestSource>::default();
        let old = entry("org_a", "id_1", blocks.version());
        let neighbour = entry("org_b", "id_2", blocks.version());
        assert_eq!(blocks.status(&old), BlockStatus::Clear);
        blocks.invalidate([Organization("org_a")], NOW);
        assert_eq!(blocks.status(&old), BlockStatus::Invalidated);
        assert_eq!(blocks.status(&neighbour), BlockStatus::Clear);
        let new = entry("org_a", "id_1", blocks.version());
        assert_eq!(blocks.status(&new), BlockStatus::Clear);
        blocks.invalidate([KeyId("id_1")], NOW);
        assert_eq!(blocks.status(&new), BlockStatus::Invalidated);
        blocks.invalidate_all(NOW.now);
        assert_eq!(blocks.status(&neighbour), BlockStatus::Invalidated);
        assert_eq!(
            blocks.status(&entry("org_a", "id_1", blocks.version())),
            BlockStatus::Clear
        );
    }

    #[test]
    fn nothing_from_before_a_block_is_served_later() {
        let blocks = Blocks::<TestSource>::default();
        let org = "org_a";
        let old = entry("org_a", "id_1", blocks.version());
        blocks.block(Organization(org), NOW).unwrap();
        let during = entry("org_a", "id_1", blocks.version());
        assert_eq!(
            (blocks.status(&old), blocks.status(&during)),
            (BlockStatus::Blocked, BlockStatus::Blocked)
        );
        assert!(blocks.unblock(Organization(org)));
        assert_eq!(
            (blocks.status(&old), blocks.status(&during)),
            (BlockStatus::Invalidated, BlockStatus::Clear)
        );
        assert!(!blocks.unblock(Organization(org)));
    }

    #[test]
    fn each_kind_of_block_invalidates() {
        type Update = fn(&Blocks<TestSource>, &Entry<TestSource>);
        let kinds: [(Update, Update); 3] = [
            (
                |blocks, entry| assert!(blocks.block(Key(&entry.key), NOW).is_ok()),
                |blocks, entry| assert!(blocks.unblock(Key(&entry.key))),
            ),
            (
                |blocks, entry| {
                    let id = entry.value.key_id().unwrap();
                    blocks.block(KeyId(id), NOW).unwrap();
                },
                |blocks, entry| assert!(blocks.unblock(KeyId(entry.value.key_id().unwrap()))),
            ),
            (
                |blocks, entry| {
                    let org = entry.value.organization().unwrap();
                    blocks.block(Organization(org), NOW).unwrap();
                },
                |blocks, entry| {
                    assert!(blocks.unblock(Organization(entry.value.organization().unwrap())));
                },
            ),
        ];
        for (n, (block, unblock)) in kinds.into_iter().enumerate() {
            let blocks = Blocks::<TestSource>::default();
            let entry = entry("org_a", "id_1", blocks.version());
            block(&blocks, &entry);
            assert_eq!(blocks.status(&entry), BlockStatus::Blocked, "{n}");
            unblock(&blocks, &entry);
            assert_eq!(blocks.status(&entry), BlockStatus::Invalidated, "{n}");
        }
    }

    #[test]
    fn one_block_too_many_is_an_error() {
        let blocks = Blocks::<TestSource>::default();
        for n in 0..MAX_BLOCKS {
            blocks.block(KeyId(&n.to_string()), NOW).unwrap();
        }
        let full = blocks.block(KeyId("one-more"), NOW);
        assert_eq!(full, Err(BlockListFull { what: "key ids" }));
        assert_eq!(
            blocks.status(&entry("o", "one-more", blocks.version())),
            BlockStatus::Clear
        );
        assert!(blocks.block(KeyId("0"), NOW).is_ok());
        assert_eq!(
            blocks.status(&entry("o", "0", blocks.version())),
            BlockStatus::Blocked
        );
    }

    #[test]
    fn too_many_invalidations_invalidate_everything() {
        let blocks = Blocks::<TestSource>::default();
        let bystander = entry("o", "bystander", blocks.version());
        for n in 0..MAX_INVALIDATIONS {
            blocks.invalidate([KeyId(&n.to_string())], NOW);
        }
        assert_eq!(blocks.status(&bystander), BlockStatus::Clear);
        blocks.invalidate([KeyId("one-more")], NOW);
        assert_eq!(blocks.status(&bystander), BlockStatus::Invalidated);
        assert_eq!(
            blocks.status(&entry("o", "one-more", 1)),
            BlockStatus::Invalidated
        );
    }

    #[test]
    fn a_repeated_invalidation_takes_no_room() {
        let blocks = Blocks::<TestSource>::default();
        let bystander = entry("o", "bystander", blocks.version());
        for n in 0..MAX_INVALIDATIONS {
            blocks.invalidate([KeyId(&n.to_string())], NOW);
        }
        let again = entry("o", "0", blocks.version());
        assert_eq!(blocks.status(&again), BlockStatus::Clear);
        blocks.invalidate([KeyId("0")], NOW);
        assert_eq!(blocks.status(&again), BlockStatus::Invalidated);
        assert_eq!(blocks.status(&bystander), BlockStatus::Clear);
    }

    #[test]
    fn what_begins_after_invalidate_all_is_clear() {
        let blocks = Blocks::<TestSource>::default();
        let before = blocks.version();
        blocks.invalidate_all(NOW.now);
        let after = blocks.version();
        // Another update, so that the versions differ.
        blocks.invalidate([Organization("org_a")], NOW);
        assert!(blocks.is_all_invalidated_since(before));
        assert!(!blocks.is_all_invalidated_since(after));
        assert_eq!(
            blocks.status(&entry("org_b", "id_2", before)),
            BlockStatus::Invalidated
        );
        assert_eq!(
            blocks.status(&entry("org_b", "id_2", after)),
            BlockStatus::Clear
        );
    }

    #[test]
    fn invalidating_everything_makes_room() {
        type Update = fn(&Blocks<TestSource>, &str) -> u64;
        let kinds: [Update; 3] = [
            |blocks, name| blocks.invalidate([Key(&test_key(name))], NOW),
            |blocks, name| blocks.invalidate([KeyId(name)], NOW),
            |blocks, name| blocks.invalidate([Organization(name)], NOW),
        ];
        for (kind, update) in kinds.into_iter().enumerate() {
            let blocks = Blocks::<TestSource>::default();
            let invalidate = |n: usize| update(&blocks, &n.to_string());
            for n in 0..=MAX_INVALIDATIONS {
                invalidate(n);
            }
            let later = entry("o", "bystander", blocks.version());
            // Without room, each would invalidate everything again.
            for n in 0..10 {
                invalidate(MAX_INVALIDATIONS + 1 + n);
                assert_eq!(blocks.status(&later), BlockStatus::Clear, "kind {kind}");
            }
        }
    }

    #[test]
    fn old_invalidations_make_room() {
        let blocks = Blocks::<TestSource>::default();
        let bystander = entry("o", "bystander", blocks.version());
        for n in 0..MAX_INVALIDATIONS {
            blocks.invalidate([KeyId(&n.to_string())], NOW);
        }
        let later = InvalidatedAt {
            now: Tick(1_501),
            ..NOW
        };
        blocks.invalidate([KeyId("one-more")], later);
        assert_eq!(blocks.status(&bystander), BlockStatus::Clear);
        assert_eq!(
            blocks.status(&entry("o", "one-more", 1)),
            BlockStatus::Invalidated
        );
    }
}
