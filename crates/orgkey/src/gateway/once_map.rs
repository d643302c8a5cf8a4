//! A map for a few values that are looked up for each check.

use std::sync::OnceLock;

/// How many entries the map has at most.
const CAPACITY: usize = 256;

/// A map that only grows. A lookup takes no lock and writes to no shared memory, either of which would cost more than the rest of it.
#[derive(Debug)]
pub(super) struct OnceMap<K, V>([OnceLock<(K, V)>; CAPACITY]);

impl<K, V> Default for OnceMap<K, V> {
    fn default() -> Self {
        Self([const { OnceLock::new() }; CAPACITY])
    }
}

impl<K, V> OnceMap<K, V> {
    /// Returns the value of the key that `is_key` accepts, or the entry that `make` returns. `None` if the map is full. Equal keys
    /// have the same `hash`.
    pub(super) fn get_or_insert(
        &self,
        hash: usize,
        is_key: impl Fn(&K) -> bool,
        make: impl Fn() -> (K, V),
    ) -> Option<&V> {
        let slots = (0..CAPACITY).map(|step| &self.0[hash.wrapping_add(step) % CAPACITY]);
        slots
            .map(|slot| slot.get_or_init(&make))
            .find_map(|(key, value)| is_key(key).then_some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_one_value_until_the_map_is_full() {
        let map = OnceMap::default();
        let get = |key: usize, value: usize| {
            let found = map.get_or_insert(key / 100, |other| *other == key, || (key, value));
            found.copied()
        };
        for key in 0..CAPACITY {
            assert_eq!(get(key, key + 1), Some(key + 1));
        }
        for key in 0..CAPACITY {
            assert_eq!(get(key, 0), Some(key + 1));
        }
        assert_eq!(get(CAPACITY, 0), None);
    }
}
