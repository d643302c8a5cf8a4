//! A table of so many rows and no more, that tells which of them to do without.

use hashbrown::HashTable;

use super::counts::Counts;

/// Rows under the hashes of their keys, and a hand that goes round and looks for one that was not used since it last came by
/// (the second-chance rule): a row that is seen once leaves before one that is seen again.
#[derive(Debug)]
pub(super) struct Ring<K> {
    /// Places in `rows`.
    index: HashTable<usize>,
    rows: Vec<Row<K>>,
    hand: usize,
    capacity: usize,
}

#[derive(Debug)]
pub(super) struct Row<K> {
    pub(super) key: K,
    hash: u64,
    is_used: bool,
    pub(super) counts: Counts,
}

impl<K> Ring<K> {
    /// Room for at least one row.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            index: HashTable::new(),
            rows: Vec::new(),
            hand: 0,
            capacity: capacity.max(1),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows.len() >= self.capacity
    }

    /// The place of the row that is this one, which is thereby used.
    #[inline]
    pub(super) fn find(&mut self, hash: u64, is_this: impl Fn(&K) -> bool) -> Option<usize> {
        let rows = &self.rows;
        let is_at = |place: &usize| rows[*place].hash == hash && is_this(&rows[*place].key);
        let place = *self.index.find(hash, is_at)?;
        self.rows[place].is_used = true;
        Some(place)
    }

    /// The counts at a place that was told since the last change of the table.
    #[inline]
    pub(super) fn at(&mut self, place: usize) -> &mut Counts {
        &mut self.rows[place].counts
    }

    /// Adds a row, and tells its place. The caller has made room, and knows that there is no such row.
    pub(super) fn insert(&mut self, hash: u64, key: K, counts: Counts) -> usize {
        let place = self.rows.len();
        self.rows.push(Row {
            key,
            hash,
            is_used: false,
            counts,
        });
        let rows = &self.rows;
        self.index
            .insert_unique(hash, place, |&place| rows[place].hash);
        place
    }

    /// Takes out a row that others may have the place of. `None` only of an empty table.
    pub(super) fn evict(&mut self) -> Option<Row<K>> {
        if self.rows.is_empty() {
            return None;
        }
        loop {
            self.hand %= self.rows.len();
            let row = &mut self.rows[self.hand];
            if !std::mem::take(&mut row.is_used) {
                break;
            }
            self.hand += 1;
        }
        let place = self.hand;
        // The row that takes this place is the youngest; the hand leaves it alone for this round.
        self.hand += 1;
        Some(self.remove(place))
    }

    fn remove(&mut self, place: usize) -> Row<K> {
        let hash = self.rows[place].hash;
        if let Ok(entry) = self.index.find_entry(hash, |&held| held == place) {
            entry.remove();
        }
        let row = self.rows.swap_remove(place);
        if let Some(moved) = self.rows.get(place) {
            let from = self.rows.len();
            if let Some(held) = self.index.find_mut(moved.hash, |&held| held == from) {
                *held = place;
            }
        }
        row
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = (&K, &Counts)> {
        self.rows.iter().map(|row| (&row.key, &row.counts))
    }
}
