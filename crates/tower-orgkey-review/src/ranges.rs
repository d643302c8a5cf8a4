//! Which sequence numbers of a trail were read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Consecutive sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Range {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// When the first and the last event were complete. A clock that was set back makes the end earlier.
    pub(crate) since: u64,
    pub(crate) until: u64,
}

/// Ranges that do not touch, by their first number. A missing number costs at most one range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Range>", into = "Vec<Range>")]
pub(crate) struct Ranges(BTreeMap<u64, Range>);

impl Ranges {
    /// Adds a number. `false` if it is there already.
    pub(crate) fn insert(&mut self, number: u64, time: u64) -> bool {
        let before = self.0.range(..=number).next_back();
        let before = before.map(|(first, range)| (*first, range.last));
        if before.is_some_and(|(_, last)| last >= number) {
            return false;
        }
        let mut range = Range {
            first: number,
            last: number,
            since: time,
            until: time,
        };
        let next = number.checked_add(1);
        if let Some(next) = next.and_then(|next| self.0.remove(&next)) {
            range.last = next.last;
            range.until = next.until;
        }
        if let Some((first, last)) = before
            && last.checked_add(1) == Some(number)
            && let Some(held) = self.0.get_mut(&first)
        {
            held.last = range.last;
            held.until = range.until;
        } else {
            self.0.insert(number, range);
        }
        true
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Range> {
        self.0.values()
    }

    /// Returns a number that both have.
    pub(crate) fn common(&self, other: &Self) -> Option<u64> {
        let (mut a, mut b) = (self.iter().peekable(), other.iter().peekable());
        while let (Some(left), Some(right)) = (a.peek(), b.peek()) {
            if left.last < right.first {
                a.next();
            } else if right.last < left.first {
                b.next();
            } else {
                return Some(left.first.max(right.first));
            }
        }
        None
    }
}

impl From<Ranges> for Vec<Range> {
    fn from(ranges: Ranges) -> Self {
        ranges.0.into_values().collect()
    }
}

impl TryFrom<Vec<Range>> for Ranges {
    type Error = &'static str;

    /// The ranges must be ascending and not touch, as [`insert`](Self::insert) leaves them.
    fn try_from(ranges: Vec<Range>) -> Result<Self, Self::Error> {
        let ordered = |pair: &[Range]| match pair {
            [a, b] => a.last.checked_add(1).is_some_and(|next| next < b.first),
            _ => true,
        };
        let forward = |range: &Range| range.first <= range.last;
        if ranges.iter().all(forward) && ranges.windows(2).all(ordered) {
            let ranges = ranges.into_iter().map(|range| (range.first, range));
            Ok(Self(ranges.collect()))
        } else {
            Err("ranges that are not ascending")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn numbers(ranges: &Ranges) -> BTreeSet<u64> {
        ranges
            .iter()
            .flat_map(|range| range.first..=range.last)
            .collect()
    }

    proptest! {
        #[test]
        fn ranges_are_a_set(order in proptest::collection::vec(0_u64..40, 0..80)) {
            // A clock that is set back, so that a time is that of its number.
            let time = |number: u64| 100 - number;
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for number in order {
                prop_assert_eq!(ranges.insert(number, time(number)), set.insert(number));
                prop_assert!(Ranges::try_from(Vec::from(ranges.clone())).is_ok());
            }
            prop_assert_eq!(&numbers(&ranges), &set);
            for range in ranges.iter() {
                prop_assert_eq!((range.since, range.until), (time(range.first), time(range.last)));
            }
        }

        #[test]
        fn common_numbers_are_found(
            a in proptest::collection::btree_set(0_u64..40, 0..10),
            b in proptest::collection::btree_set(0_u64..40, 0..10),
        ) {
            let of = |set: &BTreeSet<u64>| {
                let mut ranges = Ranges::default();
                for number in set {
                    assert!(ranges.insert(*number, 0));
                }
                ranges
            };
            prop_assert_eq!(of(&a).common(&of(&b)), a.intersection(&b).next().copied());
        }
    }

    #[test]
    fn largest_number_does_not_overflow() {
        let mut ranges = Ranges::default();
        assert!(ranges.insert(u64::MAX, 0));
        assert!(!ranges.insert(u64::MAX, 0));
        assert!(ranges.insert(0, 0));
        assert!(Ranges::try_from(Vec::from(ranges)).is_ok());
    }
}
