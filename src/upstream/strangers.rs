//! The rows in which strangers wait, one a peer, that take turns.

use std::collections::{HashMap, VecDeque};

use tokio::sync::oneshot;

use super::Asker;
use super::room::Word;

/// Rows of strangers, one a peer, that take turns.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    rows: HashMap<Option<u64>, VecDeque<oneshot::Sender<Word>>>,
    /// Every peer with a row, the next one to be served in front.
    turns: VecDeque<Option<u64>>,
    len: usize,
}

impl Strangers {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The one whose turn it is.
    pub(super) fn front(&self) -> Option<Asker> {
        self.turns.front().map(|&peer| Asker::Stranger { peer })
    }

    pub(super) fn into_words(self) -> impl Iterator<Item = oneshot::Sender<Word>> {
        self.rows.into_values().flatten()
    }

    pub(super) fn push(&mut self, peer: Option<u64>, word: oneshot::Sender<Word>) {
        let row = self.rows.entry(peer).or_default();
        if row.is_empty() {
            self.turns.push_back(peer);
        }
        row.push_back(word);
        self.len += 1;
    }

    pub(super) fn pop(&mut self) -> Option<oneshot::Sender<Word>> {
        let peer = self.turns.pop_front()?;
        let row = self.rows.get_mut(&peer)?;
        let word = row.pop_front();
        if row.is_empty() {
            self.rows.remove(&peer);
        } else {
            self.turns.push_back(peer);
        }
        self.len -= usize::from(word.is_some());
        word
    }

    pub(super) fn row_of(&self, peer: Option<u64>) -> usize {
        self.rows.get(&peer).map_or(0, VecDeque::len)
    }

    /// The last one of the longest row, if that is longer than this.
    pub(super) fn pop_last_of_row_beyond(&mut self, len: usize) -> Option<oneshot::Sender<Word>> {
        let (&peer, longest) = self.rows.iter().max_by_key(|(_, row)| row.len())?;
        if longest.len() <= len {
            return None;
        }
        let row = self.rows.get_mut(&peer)?;
        let word = row.pop_back();
        if row.is_empty() {
            self.rows.remove(&peer);
            self.turns.retain(|&turn| turn != peer);
        }
        self.len -= usize::from(word.is_some());
        word
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&oneshot::Sender<Word>) -> bool) {
        for row in self.rows.values_mut() {
            row.retain(&keep);
        }
        self.rows.retain(|_, row| !row.is_empty());
        self.turns.retain(|peer| self.rows.contains_key(peer));
        self.len = self.rows.values().map(VecDeque::len).sum();
    }
}
