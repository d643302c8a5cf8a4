//! What the operator has decreed: blocks, which refuse, and fences, which make us ask again.
//!
//! Every decree bumps one version. An entry remembers the version that last found nothing against it, so a hit pays for
//! all blocks and fences together with one comparison, and a decree is in force for the very next request: its entry's
//! version no longer matches, and the tables are asked.
//!
//! A *fence* is the version at which something was invalidated. Facts whose load began under an older version are
//! condemned, whoever holds them: the store, a flight, a waiter. Blocking fences too, so that nothing from before a block
//! comes back after it is lifted.

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

/// The most blocks of one kind.
pub(crate) const MAX_BLOCKS: usize = 100_000;
/// The most fences of one kind. One more becomes a fence around everything, which forgets nothing.
const MAX_FENCES: usize = 100_000;

/// One more block would exceed the 100,000 of its kind. Nothing was blocked, and nothing was dropped for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the list of blocked {what} is full")]
pub struct BlockListFull {
    pub(crate) what: &'static str,
}

/// What the rules say of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    Clear,
    Blocked,
    Fenced,
}

#[derive(Debug)]
pub(crate) struct Rules {
    version: AtomicU64,
    tables: RwLock<Tables>,
    watchers: Arc<Watchers>,
}

#[derive(Debug, Default)]
struct Tables {
    blocked_keys: HashSet<KeyDigest>,
    blocked_ids: HashSet<KeyId>,
    blocked_orgs: HashSet<OrgCode>,
    fenced_keys: HashMap<KeyDigest, Fence>,
    fenced_ids: HashMap<KeyId, Fence>,
    fenced_orgs: HashMap<OrgCode, Fence>,
    fenced_all: u64,
}

#[derive(Clone, Copy, Debug)]
struct Fence {
    version: u64,
    at: Tick,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            version: AtomicU64::new(1),
            tables: RwLock::new(Tables::default()),
            watchers: Arc::default(),
        }
    }
}

impl Rules {
    /// The present version: a load that begins now remembers it.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The ruling on an entry, at the price of a comparison if nothing was decreed since it was last asked for.
    pub(crate) fn on(&self, entry: &Entry) -> Ruling {
        let version = self.version();
        if entry.cleared.load(Ordering::Relaxed) == version {
            return Ruling::Clear;
        }
        self.consult(entry, version)
    }

    /// Whether nothing was decreed since the entry was last found clear. If something was, [`on`](Self::on) tells what.
    #[inline]
    pub(crate) fn has_cleared(&self, entry: &Entry) -> bool {
        let version = self.version();
        entry.cleared.load(Ordering::Relaxed) == version
    }

    #[cold]
    fn consult(&self, entry: &Entry, version: u64) -> Ruling {
        let ruling = self
            .tables
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .on(entry);
        if ruling == Ruling::Clear {
            // `version` was read before the tables: a decree in between leaves the two unequal.
            entry.cleared.store(version, Ordering::Relaxed);
        }
        ruling
    }

    pub(crate) fn is_key_blocked(&self, digest: KeyDigest) -> bool {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.blocked_keys.contains(&digest)
    }

    /// Whether something that began under this version was invalidated together with everything else.
    pub(crate) fn is_all_fenced_since(&self, began: u64) -> bool {
        // Nothing was decreed since, so nothing can be fenced: spares the lock on the way of a cached refusal.
        began != self.version() && {
            let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
            tables.fenced_all > began
        }
    }

    pub(crate) fn block_key(&self, digest: KeyDigest, fence: FenceAt) -> Result<(), BlockListFull> {
        self.decree(|tables, version| {
            block(&mut tables.blocked_keys, digest, "keys")?;
            tables.fence_key(digest, version, fence);
            Ok(())
        })
    }

    pub(crate) fn block_id(&self, id: &KeyId, fence: FenceAt) -> Result<(), BlockListFull> {
        self.decree(|tables, version| {
            block(&mut tables.blocked_ids, id.clone(), "key ids")?;
            tables.fence_id(id, version, fence);
            Ok(())
        })
    }

    pub(crate) fn block_org(&self, org: &OrgCode, fence: FenceAt) -> Result<(), BlockListFull> {
        self.decree(|tables, version| {
            block(&mut tables.blocked_orgs, org.clone(), "organizations")?;
            tables.fence_org(org, version, fence);
            Ok(())
        })
    }

    pub(crate) fn unblock_key(&self, digest: KeyDigest) -> bool {
        self.decree(|tables, _| tables.blocked_keys.remove(&digest))
    }

    pub(crate) fn unblock_id(&self, id: &KeyId) -> bool {
        self.decree(|tables, _| tables.blocked_ids.remove(id))
    }

    pub(crate) fn unblock_org(&self, org: &OrgCode) -> bool {
        self.decree(|tables, _| tables.blocked_orgs.remove(org))
    }

    pub(crate) fn fence_key(&self, digest: KeyDigest, fence: FenceAt) {
        self.decree(|tables, version| tables.fence_key(digest, version, fence));
    }

    /// Fences them all under one version: those who wait for the end of a key are woken once.
    #[cfg(feature = "kinde")]
    pub(crate) fn fence_keys(&self, digests: &[KeyDigest], fence: FenceAt) {
        self.decree(|tables, version| {
            for digest in digests {
                tables.fence_key(*digest, version, fence);
            }
        });
    }

    pub(crate) fn fence_id(&self, id: &KeyId, fence: FenceAt) {
        self.decree(|tables, version| tables.fence_id(id, version, fence));
    }

    pub(crate) fn fence_org(&self, org: &OrgCode, fence: FenceAt) {
        self.decree(|tables, version| tables.fence_org(org, version, fence));
    }

    pub(crate) fn fence_all(&self) {
        self.decree(Tables::fence_all);
    }

    /// Those who wait for the end of a key.
    pub(super) fn watchers(&self) -> Arc<Watchers> {
        Arc::clone(&self.watchers)
    }

    /// Wakes those who wait for the end of this key: the issuer has answered something else about it.
    pub(super) fn wake_key(&self, digest: KeyDigest) {
        self.watchers.wake(digest);
    }

    /// Changes the tables under the next version. The version is published before the lock is given back, so a caller
    /// whose decree has returned knows that the next request sees it.
    fn decree<T>(&self, change: impl FnOnce(&mut Tables, u64) -> T) -> T {
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

/// When a fence is put up, and after which time nothing older is left that it could hold back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FenceAt {
    pub(crate) now: Tick,
    /// The longest life of facts, with that of the flight that fetched them.
    pub(crate) holds: std::time::Duration,
}

impl Tables {
    fn on(&self, entry: &Entry) -> Ruling {
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
            return Ruling::Blocked;
        }
        let is_fenced = self.fenced_all > entry.began
            || condemns(&self.fenced_keys, Some(&entry.digest), entry.began)
            || condemns(&self.fenced_ids, facts.key_id.as_ref(), entry.began)
            || condemns(&self.fenced_orgs, facts.org.as_ref(), entry.began);
        if is_fenced {
            Ruling::Fenced
        } else {
            Ruling::Clear
        }
    }

    fn fence_key(&mut self, digest: KeyDigest, version: u64, at: FenceAt) {
        if !put_up(&mut self.fenced_keys, digest, version, at) {
            self.fence_all(version);
        }
    }

    fn fence_id(&mut self, id: &KeyId, version: u64, at: FenceAt) {
        if !put_up(&mut self.fenced_ids, id.clone(), version, at) {
            self.fence_all(version);
        }
    }

    fn fence_org(&mut self, org: &OrgCode, version: u64, at: FenceAt) {
        if !put_up(&mut self.fenced_orgs, org.clone(), version, at) {
            self.fence_all(version);
        }
    }

    fn fence_all(&mut self, version: u64) {
        self.fenced_all = version;
        self.fenced_keys.clear();
        self.fenced_ids.clear();
        self.fenced_orgs.clear();
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

fn condemns<K, Q>(fences: &HashMap<K, Fence>, what: Option<&Q>, began: u64) -> bool
where
    K: Eq + Hash + Borrow<Q>,
    Q: Eq + Hash,
{
    // Almost always there are none.
    !fences.is_empty()
        && what
            .and_then(|what| fences.get(what))
            .is_some_and(|fence| fence.version > began)
}

/// Whether there was room.
fn put_up<K: Eq + Hash>(
    fences: &mut HashMap<K, Fence>,
    what: K,
    version: u64,
    at: FenceAt,
) -> bool {
    if fences.len() >= MAX_FENCES && !fences.contains_key(&what) {
        fences.retain(|_, fence| at.now.since(fence.at) <= at.holds);
        if fences.len() >= MAX_FENCES {
            return false;
        }
    }
    fences.insert(
        what,
        Fence {
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

    const NOW: FenceAt = FenceAt {
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
    fn a_fence_condemns_what_began_before_it_and_nothing_else() {
        let rules = Rules::default();
        let old = entry("org_a", "id_1", rules.version());
        let neighbour = entry("org_b", "id_2", rules.version());
        assert_eq!(rules.on(&old), Ruling::Clear);
        rules.fence_org(&OrgCode::from_static("org_a"), NOW);
        assert_eq!(rules.on(&old), Ruling::Fenced);
        assert_eq!(rules.on(&neighbour), Ruling::Clear);
        let new = entry("org_a", "id_1", rules.version());
        assert_eq!(rules.on(&new), Ruling::Clear);
        rules.fence_id(&KeyId::from_static("id_1"), NOW);
        assert_eq!(rules.on(&new), Ruling::Fenced);
        rules.fence_all();
        assert_eq!(rules.on(&neighbour), Ruling::Fenced);
        assert_eq!(
            rules.on(&entry("org_a", "id_1", rules.version())),
            Ruling::Clear
        );
    }

    #[test]
    fn a_block_is_in_force_until_it_is_lifted_and_nothing_older_comes_back() {
        let rules = Rules::default();
        let org = OrgCode::from_static("org_a");
        let old = entry("org_a", "id_1", rules.version());
        rules.block_org(&org, NOW).unwrap();
        let during = entry("org_a", "id_1", rules.version());
        assert_eq!(
            (rules.on(&old), rules.on(&during)),
            (Ruling::Blocked, Ruling::Blocked)
        );
        assert!(rules.unblock_org(&org));
        assert_eq!(
            (rules.on(&old), rules.on(&during)),
            (Ruling::Fenced, Ruling::Clear)
        );
        assert!(!rules.unblock_org(&org));
    }

    #[test]
    fn a_block_of_each_kind_leaves_a_fence_behind() {
        type Decree = fn(&Rules, &Entry);
        let kinds: [(Decree, Decree); 3] = [
            (
                |rules, entry| rules.block_key(entry.digest, NOW).unwrap(),
                |rules, entry| assert!(rules.unblock_key(entry.digest)),
            ),
            (
                |rules, entry| {
                    let id = entry.facts.key_id.as_ref().unwrap();
                    rules.block_id(id, NOW).unwrap();
                },
                |rules, entry| assert!(rules.unblock_id(entry.facts.key_id.as_ref().unwrap())),
            ),
            (
                |rules, entry| {
                    let org = entry.facts.org.as_ref().unwrap();
                    rules.block_org(org, NOW).unwrap();
                },
                |rules, entry| assert!(rules.unblock_org(entry.facts.org.as_ref().unwrap())),
            ),
        ];
        for (n, (block, unblock)) in kinds.into_iter().enumerate() {
            let rules = Rules::default();
            let entry = entry("org_a", "id_1", rules.version());
            block(&rules, &entry);
            assert_eq!(rules.on(&entry), Ruling::Blocked, "{n}");
            unblock(&rules, &entry);
            assert_eq!(rules.on(&entry), Ruling::Fenced, "{n}");
        }
    }

    #[test]
    fn one_block_too_many_is_an_error_and_changes_nothing() {
        let rules = Rules::default();
        for n in 0..MAX_BLOCKS {
            rules
                .block_id(&KeyId::new(n.to_string()).unwrap(), NOW)
                .unwrap();
        }
        let full = rules.block_id(&KeyId::from_static("one-more"), NOW);
        assert_eq!(full, Err(BlockListFull { what: "key ids" }));
        assert_eq!(
            rules.on(&entry("o", "one-more", rules.version())),
            Ruling::Clear
        );
        assert_eq!(rules.block_id(&KeyId::from_static("0"), NOW), Ok(()));
        assert_eq!(rules.on(&entry("o", "0", rules.version())), Ruling::Blocked);
    }

    #[test]
    fn fences_beyond_their_number_become_one_around_everything() {
        let rules = Rules::default();
        let bystander = entry("o", "bystander", rules.version());
        for n in 0..MAX_FENCES {
            rules.fence_id(&KeyId::new(n.to_string()).unwrap(), NOW);
        }
        assert_eq!(rules.on(&bystander), Ruling::Clear);
        rules.fence_id(&KeyId::from_static("one-more"), NOW);
        assert_eq!(rules.on(&bystander), Ruling::Fenced);
        assert_eq!(rules.on(&entry("o", "one-more", 1)), Ruling::Fenced);
    }

    #[test]
    fn one_who_stands_among_the_fenced_takes_no_room_when_fenced_again() {
        let rules = Rules::default();
        let bystander = entry("o", "bystander", rules.version());
        for n in 0..MAX_FENCES {
            rules.fence_id(&KeyId::new(n.to_string()).unwrap(), NOW);
        }
        let again = entry("o", "0", rules.version());
        assert_eq!(rules.on(&again), Ruling::Clear);
        rules.fence_id(&KeyId::from_static("0"), NOW);
        assert_eq!(rules.on(&again), Ruling::Fenced);
        assert_eq!(rules.on(&bystander), Ruling::Clear);
    }

    #[test]
    fn what_began_after_everything_was_fenced_is_not_fenced_with_it() {
        let rules = Rules::default();
        let before = rules.version();
        rules.fence_all();
        let after = rules.version();
        // A decree about something else, so that the versions differ.
        rules.fence_org(&OrgCode::from_static("org_a"), NOW);
        assert!(rules.is_all_fenced_since(before));
        assert!(!rules.is_all_fenced_since(after));
        assert_eq!(rules.on(&entry("org_b", "id_2", before)), Ruling::Fenced);
        assert_eq!(rules.on(&entry("org_b", "id_2", after)), Ruling::Clear);
    }

    #[test]
    fn a_fence_around_everything_stands_for_all_before_it_and_makes_room() {
        type Decree = fn(&Rules, &DigestSecret, &str);
        let kinds: [Decree; 3] = [
            |rules, secret, name| rules.fence_key(secret.digest(name), NOW),
            |rules, _, name| rules.fence_id(&KeyId::new(name).unwrap(), NOW),
            |rules, _, name| rules.fence_org(&OrgCode::new(name).unwrap(), NOW),
        ];
        let secret = DigestSecret::draw().unwrap();
        for (kind, decree) in kinds.into_iter().enumerate() {
            let rules = Rules::default();
            let fence = |n: usize| decree(&rules, &secret, &n.to_string());
            for n in 0..=MAX_FENCES {
                fence(n);
            }
            let later = entry("o", "bystander", rules.version());
            // Each would be a fence around everything once more, had the first one made no room.
            for n in 0..10 {
                fence(MAX_FENCES + 1 + n);
                assert_eq!(rules.on(&later), Ruling::Clear, "kind {kind}");
            }
        }
    }

    #[test]
    fn fences_that_hold_nothing_back_any_more_make_room() {
        let rules = Rules::default();
        let bystander = entry("o", "bystander", rules.version());
        for n in 0..MAX_FENCES {
            rules.fence_id(&KeyId::new(n.to_string()).unwrap(), NOW);
        }
        let later = FenceAt {
            now: Tick(1_501),
            ..NOW
        };
        rules.fence_id(&KeyId::from_static("one-more"), later);
        assert_eq!(rules.on(&bystander), Ruling::Clear);
        assert_eq!(rules.on(&entry("o", "one-more", 1)), Ruling::Fenced);
    }
}
