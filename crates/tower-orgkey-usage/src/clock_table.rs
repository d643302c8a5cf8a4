//! A bounded table with clock eviction.

use hashbrown::HashTable;

use crate::counts::Counts;

/// Rows under the hashes of their keys. When the table is full, the clock hand evicts the next row that was not used since
/// the hand last passed it, so a row that is seen once is evicted before one that is seen again.
#[derive(Debug)]
pub(crate) struct ClockTable<K> {
    /// Places in `rows`.
    index: HashTable<usize>,
    rows: Vec<Row<K>>,
    hand: usize,
    capacity: usize,
}

#[derive(Debug)]
pub(crate) struct Row<K> {
    pub(crate) key: K,
    hash: u64,
    is_used: bool,
    pub(crate) counts: Counts,
}

impl<K> ClockTable<K> {
    /// Holds at least one row.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            index: HashTable::new(),
            rows: Vec::new(),
            hand: 0,
            capacity: capacity.max(1),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.rows.len() >= self.capacity
    }

    /// Returns the place of a row, and marks the row as used.
    #[inline]
    pub(crate) fn find(&mut self, hash: u64, is_wanted: impl Fn(&K) -> bool) -> Option<usize> {
        let rows = &self.rows;
        let is_at = |place: &usize| rows[*place].hash == hash && is_wanted(&rows[*place].key);
        let place = *self.index.find(hash, is_at)?;
        self.rows[place].is_used = true;
        Some(place)
    }

    /// Returns the counts at a place. Places are valid until the next change of the table.
    #[inline]
    pub(crate) fn at(&mut self, place: usize) -> &mut Counts {
        &mut self.rows[place].counts
    }

    /// Inserts a row that is not in the table, and returns its place. The caller has made room.
    pub(crate) fn insert(&mut self, hash: u64, key: K) -> usize {
        let place = self.rows.len();
        self.rows.push(Row {
            key,
            hash,
            is_used: false,
            counts: Counts::default(),
        });
        let rows = &self.rows;
        self.index
            .insert_unique(hash, place, |&place| rows[place].hash);
        place
    }

    /// Removes a row. `None` if the table is empty.
    pub(crate) fn evict(&mut self) -> Option<Row<K>> {
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
        // The youngest row moves to this place. The hand skips it in this round.
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

    pub(crate) fn rows(&self) -> impl Iterator<Item = (&K, &Counts)> {
        self.rows.iter().map(|row| (&row.key, &row.counts))
    }
}
