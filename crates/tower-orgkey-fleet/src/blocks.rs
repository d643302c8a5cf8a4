//! The blocks that this node holds, by subject. A subject is blocked while one of its blocks has not ended.

use std::collections::{BTreeSet, HashMap};

use tower_orgkey::fleet::Subject;

use crate::recent::RecentIds;
use crate::wire::{Id, MAX_UNBLOCKED};

/// The maximum number of ended blocks that are remembered.
const MAX_ENDED: usize = 10_000;

#[derive(Debug)]
pub(crate) struct HeldBlocks {
    by_subject: HashMap<Subject, BTreeSet<Id>>,
    /// A block that is written again after its end is not applied.
    ended: RecentIds,
}

impl Default for HeldBlocks {
    fn default() -> Self {
        Self {
            by_subject: HashMap::new(),
            ended: RecentIds::new(MAX_ENDED),
        }
    }
}

impl HeldBlocks {
    /// Returns whether the block has not ended.
    pub(crate) fn insert(&mut self, id: Id, subject: &Subject) -> bool {
        if self.ended.contains(&id) {
            return false;
        }
        let ids = self.by_subject.entry(subject.clone()).or_default();
        // An update can end no more than these.
        if ids.len() < MAX_UNBLOCKED {
            ids.insert(id);
        }
        true
    }

    /// Ends these blocks of a subject. Returns whether none is left.
    pub(crate) fn end(&mut self, subject: &Subject, ids: &[Id]) -> bool {
        for &id in ids {
            self.ended.insert(id);
        }
        self.forget(subject, ids)
    }

    /// Removes blocks that this node could not apply. Returns whether none is left.
    pub(crate) fn forget(&mut self, subject: &Subject, ids: &[Id]) -> bool {
        let Some(held) = self.by_subject.get_mut(subject) else {
            return true;
        };
        held.retain(|id| !ids.contains(id));
        let is_empty = held.is_empty();
        if is_empty {
            self.by_subject.remove(subject);
        }
        is_empty
    }

    pub(crate) fn holds(&self, subject: &Subject, id: Id) -> bool {
        self.by_subject
            .get(subject)
            .is_some_and(|ids| ids.contains(&id))
    }

    pub(crate) fn is_ended(&self, id: Id) -> bool {
        self.ended.contains(&id)
    }

    /// Returns the number of blocks.
    pub(crate) fn len(&self) -> usize {
        self.by_subject.values().map(BTreeSet::len).sum()
    }

    /// Returns the blocks of a subject.
    pub(crate) fn of(&self, subject: &Subject) -> Vec<Id> {
        let ids = self.by_subject.get(subject);
        ids.into_iter().flatten().copied().collect()
    }

    /// Returns all blocks.
    pub(crate) fn all(&self) -> Vec<(Id, Subject)> {
        let by_subject = self.by_subject.iter();
        by_subject
            .flat_map(|(subject, ids)| ids.iter().map(|&id| (id, subject.clone())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use tower_orgkey::OrgCode;

    use super::*;

    fn org() -> Subject {
        Subject::Org(OrgCode::from_static("org_1"))
    }

    #[test]
    fn an_end_lifts_no_later_block() {
        let mut blocks = HeldBlocks::default();
        assert!(blocks.insert([1; 16], &org()));
        assert!(blocks.insert([2; 16], &org()));
        assert!(!blocks.end(&org(), &[[1; 16]]));
        assert_eq!(blocks.of(&org()), [[2; 16]]);
        // Repeated.
        assert!(!blocks.end(&org(), &[[1; 16]]));
        assert!(blocks.end(&org(), &[[2; 16]]));
        assert!(blocks.all().is_empty());
    }

    #[test]
    fn an_ended_block_does_not_return() {
        let mut blocks = HeldBlocks::default();
        blocks.end(&org(), &[[1; 16]]);
        assert!(!blocks.insert([1; 16], &org()));
        assert!(blocks.insert([2; 16], &org()));
    }
}
