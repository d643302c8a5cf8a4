//! The ids that were seen last.

use std::collections::{HashSet, VecDeque};

use crate::wire::Id;

/// Remembers a bounded number of ids, and forgets the oldest one first.
#[derive(Debug)]
pub(crate) struct RecentIds {
    ids: HashSet<Id>,
    order: VecDeque<Id>,
    max: usize,
}

impl RecentIds {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            ids: HashSet::new(),
            order: VecDeque::new(),
            max,
        }
    }

    pub(crate) fn contains(&self, id: &Id) -> bool {
        self.ids.contains(id)
    }

    pub(crate) fn insert(&mut self, id: Id) {
        if !self.ids.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_id_is_forgotten() {
        let mut recent = RecentIds::new(2);
        for id in [1, 2, 1, 3] {
            recent.insert([id; 16]);
        }
        let known = [1, 2, 3].map(|id| recent.contains(&[id; 16]));
        assert_eq!(known, [false, true, true]);
        assert_eq!(recent.ids.len(), recent.order.len());
    }
}
