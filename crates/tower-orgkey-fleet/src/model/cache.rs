//! The cache of a node, of the simplest kind.

use std::sync::{Mutex, MutexGuard};

use tower_orgkey::fleet::{FleetMember, Subject, Update};

use super::{KEYS, key_id};

/// A cached result: when the issuer was called, and the version from which updates apply.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) called: usize,
    pub(super) began: u64,
}

/// The cache of a node.
#[derive(Default)]
pub(super) struct Cache(Mutex<Tables>);

#[derive(Default)]
pub(super) struct Tables {
    pub(super) version: u64,
    invalidated: [u64; KEYS],
    pub(super) due: u64,
    entries: [Option<Entry>; KEYS],
}

impl Cache {
    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap()
    }
}

impl Tables {
    /// Returns the entry of a key, if no update applies to it.
    pub(super) fn get(&self, key: usize) -> Option<Entry> {
        self.entries[key].filter(|entry| entry.began >= self.invalidated[key])
    }

    pub(super) fn insert(&mut self, key: usize, entry: Entry) -> bool {
        let is_clear = entry.began >= self.invalidated[key];
        if is_clear {
            self.entries[key] = Some(entry);
        }
        is_clear
    }
}

impl FleetMember for Cache {
    fn apply(&self, update: &Update, _: bool) -> Option<u64> {
        let mut tables = self.tables();
        tables.version += 1;
        let version = tables.version;
        for key in 0..KEYS {
            match update {
                Update::Invalidate(Subject::KeyId(id)) if *id == key_id(key) => {
                    tables.invalidated[key] = version;
                }
                Update::InvalidateAll => tables.invalidated[key] = version,
                _ => {}
            }
        }
        Some(version)
    }

    fn version(&self) -> u64 {
        self.tables().version
    }

    fn refresh_all(&self) {
        let mut tables = self.tables();
        tables.version += 1;
        tables.due = tables.version;
    }

    fn share_calls(&self, _: u32) {}
}
