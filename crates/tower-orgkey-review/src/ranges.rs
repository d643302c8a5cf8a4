//! Which sequence numbers of a trail were read.

use serde::{Deserialize, Serialize};

/// Consecutive sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Range {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// When the first and the last event were complete.
    pub(crate) since: u64,
    pub(crate) until: u64,
}

/// Ascending ranges that do not touch. A missing number costs at most one range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Ranges(Vec<Range>);

impl Ranges {
    /// Adds a number. `false` if it is there already.
    pub(crate) fn insert(&mut self, number: u64, time: u64) -> bool {
        if let Some(last) = self.0.last_mut()
            && last.last.checked_add(1) == Some(number)
        {
            last.last = number;
            last.until = last.until.max(time);
            return true;
        }
        let at = self.0.partition_point(|range| range.last < number);
        if self.0.get(at).is_some_and(|next| next.first <= number) {
            return false;
        }
        let mut range = Range {
            first: number,
            last: number,
            since: time,
            until: time,
        };
        if let Some(next) = self.0.get(at)
            && number.checked_add(1) == Some(next.first)
        {
            range.last = next.last;
            range.until = next.until.max(time);
            self.0.remove(at);
        }
        if let Some(before) = at.checked_sub(1).and_then(|at| self.0.get_mut(at))
            && before.last.checked_add(1) == Some(range.first)
        {
            before.last = range.last;
            before.until = before.until.max(range.until);
        } else {
            self.0.insert(at, range);
        }
        true
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Range> {
        self.0.iter()
    }

    /// Returns a number that both have.
    pub(crate) fn common(&self, other: &Self) -> Option<u64> {
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
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

    /// Returns whether the ranges are ascending and do not touch, as [`insert`](Self::insert) leaves them.
    pub(crate) fn is_valid(&self) -> bool {
        let ordered = |pair: &[Range]| match pair {
            [a, b] => a.last.checked_add(1).is_some_and(|next| next < b.first),
            _ => true,
        };
        self.0.iter().all(|range| range.first <= range.last) && self.0.windows(2).all(ordered)
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
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for number in order {
                prop_assert_eq!(ranges.insert(number, number), set.insert(number));
                prop_assert!(ranges.is_valid());
            }
            prop_assert_eq!(&numbers(&ranges), &set);
            for range in ranges.iter() {
                prop_assert_eq!((range.since, range.until), (range.first, range.last));
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
        assert!(ranges.is_valid());
    }
}
