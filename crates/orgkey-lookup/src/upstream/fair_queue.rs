//! The queue of unknown keys: one row per peer, and the peers take turns.

use std::collections::{HashMap, VecDeque};

use tokio::sync::oneshot;

use super::Priority;
use super::queue::Turn;

#[derive(Default)]
pub(super) struct FairQueue {
    rows: HashMap<Option<u64>, VecDeque<oneshot::Sender<Turn>>>,
    /// Every peer with a row, the next one in front.
    order: VecDeque<Option<u64>>,
    len: usize,
}

impl FairQueue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn front(&self) -> Option<Priority> {
        self.order.front().map(|&peer| Priority::Unknown { peer })
    }

    pub(super) fn into_turns(self) -> impl Iterator<Item = oneshot::Sender<Turn>> {
        self.rows.into_values().flatten()
    }

    pub(super) fn push(&mut self, peer: Option<u64>, turn: oneshot::Sender<Turn>) {
        let row = self.rows.entry(peer).or_default();
        if row.is_empty() {
            self.order.push_back(peer);
        }
        row.push_back(turn);
        self.len += 1;
    }

    pub(super) fn pop(&mut self) -> Option<oneshot::Sender<Turn>> {
        let peer = self.order.pop_front()?;
        let row = self.rows.get_mut(&peer)?;
        let turn = row.pop_front();
        if row.is_empty() {
            self.rows.remove(&peer);
        } else {
            self.order.push_back(peer);
        }
        self.len -= usize::from(turn.is_some());
        turn
    }

    /// Returns how many queued lookups start before a new one of this peer.
    pub(super) fn ahead_of(&self, peer: Option<u64>) -> usize {
        let own = self.rows.get(&peer).map_or(0, VecDeque::len);
        let others = self.rows.iter().filter(|&(&other, _)| other != peer);
        own + others.map(|(_, row)| row.len().min(own + 1)).sum::<usize>()
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&oneshot::Sender<Turn>) -> bool) {
        for row in self.rows.values_mut() {
            row.retain(&keep);
        }
        self.rows.retain(|_, row| !row.is_empty());
        self.order.retain(|peer| self.rows.contains_key(peer));
        self.len = self.rows.values().map(VecDeque::len).sum();
    }
}
