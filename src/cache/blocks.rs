//! Blocks, which reject keys, and invalidations, which cause another lookup.
//!
//! Each update increments one version. An entry stores the version at which it was last found clear, so a hit pays for all
//! blocks and invalidations with one comparison. An update applies to the next request: the versions differ, and the tables
//! are read.
//!
//! An *invalidation* is the version at which something was invalidated. It applies to results of lookups that began at a
//! lower version, in the store, in flight or taken by a waiter. A block invalidates, too, so that no result from before a
//! block is served after it.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::entry::Entry;
use super::sync::{AtomicU64, RwLock, RwLockWriteGuard};
use super::watchers::Watchers;
use crate::clock::Tick;
use crate::context::{KeyId, OrgCode};
use crate::key::KeyDigest;

/// The maximum number of blocks of one kind.
pub(crate) const MAX_BLOCKS: usize = 100_000;
/// The maximum number of invalidations of one kind. One more invalidates everything.
const MAX_INVALIDATIONS: usize = 100_000;

/// The error when the list of blocks of one kind is full, at 100,000. Nothing was blocked or unblocked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the list of blocked {what} is full")]
pub struct BlockListFull {
    pub(crate) what: &'static str,
}

/// What the blocks and invalidations say about an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockStatus {
    Clear,
    Blocked,
    Invalidated,
}

#[derive(Debug)]
pub(crate) struct Blocks {
    version: AtomicU64,
    tables: RwLock<Tables>,
    watchers: Arc<Watchers>,
}

#[derive(Debug, Default)]
struct Tables {
    blocked_keys: HashSet<KeyDigest>,
    blocked_ids: HashSet<KeyId>,
    blocked_orgs: HashSet<OrgCode>,
    invalidated_keys: HashMap<KeyDigest, Invalidation>,
    invalidated_ids: HashMap<KeyId, Invalidation>,
    invalidated_orgs: HashMap<OrgCode, Invalidation>,
    invalidated_all: u64,
}

#[derive(Clone, Copy, Debug)]
struct Invalidation {
    version: u64,
    at: Tick,
}

impl Default for Blocks {
    fn default() -> Self {
        Self {
            version: AtomicU64::new(1),
            tables: RwLock::new(Tables::default()),
            watchers: Arc::default(),
        }
    }
}

impl Blocks {
    /// Returns the present version, for a lookup that begins now.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Returns the status of an entry. Costs one comparison if nothing was updated since the entry was last found clear.
    pub(crate) fn status(&self, entry: &Entry) -> BlockStatus {
        let version = self.version();
        if entry.cleared.load(Ordering::Relaxed) == version {
            return BlockStatus::Clear;
        }
        self.read_tables(entry, version)
    }

    /// Returns whether nothing was updated since the entry was last found clear.
    #[inline]
    pub(crate) fn has_cleared(&self, entry: &Entry) -> bool {
        let version = self.version();
        entry.cleared.load(Ordering::Relaxed) == version
    }

    #[cold]
    fn read_tables(&self, entry: &Entry, version: u64) -> BlockStatus {
        let status = self
            .tables
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .status(entry);
        if status == BlockStatus::Clear {
            // `version` was read before the tables, so after an update in between the two still differ.
            entry.cleared.store(version, Ordering::Relaxed);
        }
        status
    }

    pub(crate) fn is_key_blocked(&self, digest: KeyDigest) -> bool {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.blocked_keys.contains(&digest)
    }

    /// Returns whether everything was invalidated after this version.
    pub(crate) fn is_all_invalidated_since(&self, began: u64) -> bool {
        // Without an update there is no need for the lock.
        began != self.version() && {
            let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
            tables.invalidated_all > began
        }
    }

    pub(crate) fn block_key(
        &self,
        digest: KeyDigest,
        at: InvalidatedAt,
    ) -> Result<(), BlockListFull> {
        self.update(|tables, version| {
            block(&mut tables.blocked_keys, digest, "keys")?;
            tables.invalidate_key(digest, version, at);
            Ok(())
        })
    }

    pub(crate) fn block_id(&self, id: &KeyId, at: InvalidatedAt) -> Result<(), BlockListFull> {
        self.update(|tables, version| {
            block(&mut tables.blocked_ids, id.clone(), "key ids")?;
            tables.invalidate_id(id, version, at);
            Ok(())
        })
    }

    pub(crate) fn block_org(&self, org: &OrgCode, at: InvalidatedAt) -> Result<(), BlockListFull> {
        self.update(|tables, version| {
            block(&mut tables.blocked_orgs, org.clone(), "organizations")?;
            tables.invalidate_org(org, version, at);
            Ok(())
        })
    }

    pub(crate) fn unblock_key(&self, digest: KeyDigest) -> bool {
        self.update(|tables, _| tables.blocked_keys.remove(&digest))
    }

    pub(crate) fn unblock_id(&self, id: &KeyId) -> bool {
        self.update(|tables, _| tables.blocked_ids.remove(id))
    }

    pub(crate) fn unblock_org(&self, org: &OrgCode) -> bool {
        self.update(|tables, _| tables.blocked_orgs.remove(org))
    }

    pub(crate) fn invalidate_key(&self, digest: KeyDigest, at: InvalidatedAt) {
        self.update(|tables, version| tables.invalidate_key(digest, version, at));
    }

    /// Invalidates keys under one version, so that waiting streams are woken once.
    #[cfg(feature = "kinde")]
    pub(crate) fn invalidate_keys(&self, digests: &[KeyDigest], at: InvalidatedAt) {
        self.update(|tables, version| {
            for digest in digests {
                tables.invalidate_key(*digest, version, at);
            }
        });
    }

    pub(crate) fn invalidate_id(&self, id: &KeyId, at: InvalidatedAt) {
        self.update(|tables, version| tables.invalidate_id(id, version, at));
    }

    pub(crate) fn invalidate_org(&self, org: &OrgCode, at: InvalidatedAt) {
        self.update(|tables, version| tables.invalidate_org(org, version, at));
    }

    pub(crate) fn invalidate_all(&self) {
        self.update(Tables::invalidate_all);
    }

    /// Returns the streams that wait for the end of their keys.
    pub(super) fn watchers(&self) -> Arc<Watchers> {
        Arc::clone(&self.watchers)
    }

    /// Wakes the streams of this key, because the issuer answered something else about it.
    pub(super) fn wake_key(&self, digest: KeyDigest) {
        self.watchers.wake(digest);
    }

    /// Changes the tables under the next version. The version is published before the lock is released, so the next request
    /// sees the update.
    fn update<T>(&self, change: impl FnOnce(&mut Tables, u64) -> T) -> T {
        let mut tables: RwLockWriteGuard<'_, Tables> =
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

impl Tables {
    fn status(&self, entry: &Entry) -> BlockStatus {
        let facts = &entry.facts;
        let is_blocked = self.blocked_keys.contains(&entry.digest)
            || facts
                .key_id
                .as_ref()
                .is_some_and(|id| self.blocked_ids.contains(id))
            || facts
                .org
                .as_ref()
                .is_some_and(|org| self.blocked_orgs.contains(org));
        if is_blocked {
            return BlockStatus::Blocked;
        }
        let is_invalidated = self.invalidated_all > entry.began
            || applies(&self.invalidated_keys, Some(&entry.digest), entry.began)
            || applies(&self.invalidated_ids, facts.key_id.as_ref(), entry.began)
            || applies(&self.invalidated_orgs, facts.org.as_ref(), entry.began);
        if is_invalidated {
            BlockStatus::Invalidated
        } else {
            BlockStatus::Clear
        }
    }

    fn invalidate_key(&mut self, digest: KeyDigest, version: u64, at: InvalidatedAt) {
        if !insert(&mut self.invalidated_keys, digest, version, at) {
            self.invalidate_all(version);
        }
    }

    fn invalidate_id(&mut self, id: &KeyId, version: u64, at: InvalidatedAt) {
        if !insert(&mut self.invalidated_ids, id.clone(), version, at) {
            self.invalidate_all(version);
        }
    }

    fn invalidate_org(&mut self, org: &OrgCode, version: u64, at: InvalidatedAt) {
        if !insert(&mut self.invalidated_orgs, org.clone(), version, at) {
            self.invalidate_all(version);
        }
    }

    fn invalidate_all(&mut self, version: u64) {
        self.invalidated_all = version;
        self.invalidated_keys.clear();
        self.invalidated_ids.clear();
        self.invalidated_orgs.clear();
    }
}

fn block<T: Eq + Hash>(
    blocked: &mut HashSet<T>,
    what: T,
    name: &'static str,
) -> Result<(), BlockListFull> {
    if blocked.len() >= MAX_BLOCKS && !blocked.contains(&what) {
        return Err(BlockListFull { what: name });
    }
    blocked.insert(what);
    Ok(())
}

fn applies<K, Q>(invalidations: &HashMap<K, Invalidation>, what: Option<&Q>, began: u64) -> bool
where
    K: Eq + Hash + Borrow<Q>,
    Q: Eq + Hash,
{
    // Most of the time there are none.
    !invalidations.is_empty()
        && what
            .and_then(|what| invalidations.get(what))
            .is_some_and(|invalidation| invalidation.version > began)
}

/// Inserts an invalidation. Returns whether there was room.
fn insert<K: Eq + Hash>(
    invalidations: &mut HashMap<K, Invalidation>,
    what: K,
    version: u64,
    at: InvalidatedAt,
) -> bool {
    if invalidations.len() >= MAX_INVALIDATIONS && !invalidations.contains_key(&what) {
        invalidations.retain(|_, earlier| at.now.since(earlier.at) <= at.holds);
        if invalidations.len() >= MAX_INVALIDATIONS {
            return false;
        }
    }
    invalidations.insert(
        what,
        Invalidation {
            version,
            at: at.now,
        },
    );
    true
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cache::Lifetimes;
    use crate::key::DigestSecret;
    use crate::verify::Facts;

    const NOW: InvalidatedAt = InvalidatedAt {
        now: Tick(1_000),
        holds: Duration::from_nanos(500),
    };

    fn entry(org: &str, id: &str, began: u64) -> Entry {
        let facts = Facts {
            org: Some(OrgCode::new(org).unwrap()),
            key_id: Some(KeyId::new(id).unwrap()),
            ..Facts::default()
        };
        let digest = DigestSecret::draw().unwrap().digest(id);
        let lifetimes = Lifetimes {
            soft: Duration::from_secs(60),
            hard: Duration::from_secs(900),
        };
        Entry::new(facts, digest, Tick(1), began, lifetimes, Tick(1), None)
    }

    #[test]
    fn an_invalidation_applies_to_what_began_before() {
        let blocks = Blocks::default();
        let old = entry("org_a", "id_1", blocks.version());
        let neighbour = entry("org_b", "id_2", blocks.version());
        assert_eq!(blocks.status(&old), BlockStatus::Clear);
        blocks.invalidate_org(&OrgCode::from_static("org_a"), NOW);
        assert_eq!(blocks.status(&old), BlockStatus::Invalidated);
        assert_eq!(blocks.status(&neighbour), BlockStatus::Clear);
        let new = entry("org_a", "id_1", blocks.version());
        assert_eq!(blocks.status(&new), BlockStatus::Clear);
        blocks.invalidate_id(&KeyId::from_static("id_1"), NOW);
        assert_eq!(blocks.status(&new), BlockStatus::Invalidated);
        blocks.invalidate_all();
        assert_eq!(blocks.status(&neighbour), BlockStatus::Invalidated);
        assert_eq!(
            blocks.status(&entry("org_a", "id_1", blocks.version())),
            BlockStatus::Clear
        );
    }

    #[test]
    fn nothing_from_before_a_block_is_served_later() {
        let blocks = Blocks::default();
        let org = OrgCode::from_static("org_a");
        let old = entry("org_a", "id_1", blocks.version());
        blocks.block_org(&org, NOW).unwrap();
        let during = entry("org_a", "id_1", blocks.version());
        assert_eq!(
            (blocks.status(&old), blocks.status(&during)),
            (BlockStatus::Blocked, BlockStatus::Blocked)
        );
        assert!(blocks.unblock_org(&org));
        assert_eq!(
            (blocks.status(&old), blocks.status(&during)),
            (BlockStatus::Invalidated, BlockStatus::Clear)
        );
        assert!(!blocks.unblock_org(&org));
    }

    #[test]
    fn each_kind_of_block_invalidates() {
        type Update = fn(&Blocks, &Entry);
        let kinds: [(Update, Update); 3] = [
            (
                |blocks, entry| blocks.block_key(entry.digest, NOW).unwrap(),
                |blocks, entry| assert!(blocks.unblock_key(entry.digest)),
            ),
            (
                |blocks, entry| {
                    let id = entry.facts.key_id.as_ref().unwrap();
                    blocks.block_id(id, NOW).unwrap();
                },
                |blocks, entry| assert!(blocks.unblock_id(entry.facts.key_id.as_ref().unwrap())),
            ),
            (
                |blocks, entry| {
                    let org = entry.facts.org.as_ref().unwrap();
                    blocks.block_org(org, NOW).unwrap();
                },
                |blocks, entry| assert!(blocks.unblock_org(entry.facts.org.as_ref().unwrap())),
            ),
        ];
        for (n, (block, unblock)) in kinds.into_iter().enumerate() {
            let blocks = Blocks::default();
            let entry = entry("org_a", "id_1", blocks.version());
            block(&blocks, &entry);
            assert_eq!(blocks.status(&entry), BlockStatus::Blocked, "{n}");
            unblock(&blocks, &entry);
            assert_eq!(blocks.status(&entry), BlockStatus::Invalidated, "{n}");
        }
    }

    #[test]
    fn one_block_too_many_is_an_error() {
        let blocks = Blocks::default();
        for n in 0..MAX_BLOCKS {
            blocks
                .block_id(&KeyId::new(n.to_string()).unwrap(), NOW)
                .unwrap();
        }
        let full = blocks.block_id(&KeyId::from_static("one-more"), NOW);
        assert_eq!(full, Err(BlockListFull { what: "key ids" }));
        assert_eq!(
            blocks.status(&entry("o", "one-more", blocks.version())),
            BlockStatus::Clear
        );
        assert_eq!(blocks.block_id(&KeyId::from_static("0"), NOW), Ok(()));
        assert_eq!(
            blocks.status(&entry("o", "0", blocks.version())),
            BlockStatus::Blocked
        );
    }

    #[test]
    fn too_many_invalidations_invalidate_everything() {
        let blocks = Blocks::default();
        let bystander = entry("o", "bystander", blocks.version());
        for n in 0..MAX_INVALIDATIONS {
            blocks.invalidate_id(&KeyId::new(n.to_string()).unwrap(), NOW);
        }
        assert_eq!(blocks.status(&bystander), BlockStatus::Clear);
        blocks.invalidate_id(&KeyId::from_static("one-more"), NOW);
        assert_eq!(blocks.status(&bystander), BlockStatus::Invalidated);
        assert_eq!(
            blocks.status(&entry("o", "one-more", 1)),
            BlockStatus::Invalidated
        );
    }

    #[test]
    fn a_repeated_invalidation_takes_no_room() {
        let blocks = Blocks::default();
        let bystander = entry("o", "bystander", blocks.version());
        for n in 0..MAX_INVALIDATIONS {
            blocks.invalidate_id(&KeyId::new(n.to_string()).unwrap(), NOW);
        }
        let again = entry("o", "0", blocks.version());
        assert_eq!(blocks.status(&again), BlockStatus::Clear);
        blocks.invalidate_id(&KeyId::from_static("0"), NOW);
        assert_eq!(blocks.status(&again), BlockStatus::Invalidated);
        assert_eq!(blocks.status(&bystander), BlockStatus::Clear);
    }

    #[test]
    fn what_begins_after_invalidate_all_is_clear() {
        let blocks = Blocks::default();
        let before = blocks.version();
        blocks.invalidate_all();
        let after = blocks.version();
        // Another update, so that the versions differ.
        blocks.invalidate_org(&OrgCode::from_static("org_a"), NOW);
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
        type Update = fn(&Blocks, &DigestSecret, &str);
        let kinds: [Update; 3] = [
            |blocks, secret, name| blocks.invalidate_key(secret.digest(name), NOW),
            |blocks, _, name| blocks.invalidate_id(&KeyId::new(name).unwrap(), NOW),
            |blocks, _, name| blocks.invalidate_org(&OrgCode::new(name).unwrap(), NOW),
        ];
        let secret = DigestSecret::draw().unwrap();
        for (kind, update) in kinds.into_iter().enumerate() {
            let blocks = Blocks::default();
            let invalidate = |n: usize| update(&blocks, &secret, &n.to_string());
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
        let blocks = Blocks::default();
        let bystander = entry("o", "bystander", blocks.version());
        for n in 0..MAX_INVALIDATIONS {
            blocks.invalidate_id(&KeyId::new(n.to_string()).unwrap(), NOW);
        }
        let later = InvalidatedAt {
            now: Tick(1_501),
            ..NOW
        };
        blocks.invalidate_id(&KeyId::from_static("one-more"), later);
        assert_eq!(blocks.status(&bystander), BlockStatus::Clear);
        assert_eq!(
            blocks.status(&entry("o", "one-more", 1)),
            BlockStatus::Invalidated
        );
    }
}
