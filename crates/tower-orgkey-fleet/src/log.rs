//! Which updates of the log this node has applied, and which version of its cache has them.

use std::collections::VecDeque;

use tower_orgkey::fleet::Position;

use crate::wire::Id;

/// The maximum number of updates that a result may be behind.
const MAX_KNOWN: usize = 100_000;

/// The position of the engine: how many updates it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) epoch: Id,
    pub(crate) number: u64,
}

/// What the number of the next entry means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// It was read before.
    Seen,
    Next,
    /// Entries before it are missing.
    Gap,
}

/// The updates of one epoch that this node knows.
///
/// `versions[n]` is the version of the cache that has the updates up to `first + n`: those with a higher number have higher
/// versions. So an entry made of a result that began at a number gets its version, and the cache's own rules apply to it.
#[derive(Debug)]
pub(crate) struct Log {
    epoch: Id,
    first: u64,
    versions: VecDeque<u64>,
    #[cfg(test)]
    pub(crate) rules: Rules,
}

/// The rules that the model takes out one by one.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent rules")]
pub(crate) struct Rules {
    pub(crate) epoch: bool,
    pub(crate) known_from: bool,
    pub(crate) updates_since: bool,
    pub(crate) head_at_fetch: bool,
    pub(crate) head_in_records: bool,
}

#[cfg(test)]
impl Default for Rules {
    fn default() -> Self {
        Self {
            epoch: true,
            known_from: true,
            updates_since: true,
            head_at_fetch: true,
            head_in_records: true,
        }
    }
}

impl Log {
    /// Nothing is known of the updates before `number`, which the cache has at `version`.
    pub(crate) fn new(epoch: Id, number: u64, version: u64) -> Self {
        Self {
            epoch,
            first: number,
            versions: VecDeque::from([version]),
            #[cfg(test)]
            rules: Rules::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn with_rules_of(mut self, other: Option<&Self>) -> Self {
        if let Some(other) = other {
            self.rules = other.rules;
        }
        self
    }

    /// Begins again at this number, because updates up to it may be missing.
    pub(crate) fn restart(&mut self, number: u64, version: u64) {
        self.first = number;
        self.versions = VecDeque::from([version]);
    }

    #[cfg(test)]
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn epoch(&self) -> Id {
        self.epoch
    }

    /// Returns the number of the last update that was applied.
    pub(crate) fn applied(&self) -> u64 {
        self.first + (self.versions.len() as u64 - 1)
    }

    pub(crate) fn position(&self) -> Position {
        Position {
            epoch: self.epoch,
            number: self.applied(),
        }
    }

    pub(crate) fn order(&self, number: u64) -> Order {
        match number.checked_sub(self.applied()) {
            None | Some(0) => Order::Seen,
            Some(1) => Order::Next,
            Some(_) => Order::Gap,
        }
    }

    /// The next update was applied, and the cache has it at this version.
    pub(crate) fn push(&mut self, version: u64) {
        self.versions.push_back(version);
        if self.versions.len() > MAX_KNOWN {
            self.versions.pop_front();
            self.first += 1;
        }
    }

    /// Returns whether entries up to the head are missing, once all that there are were read.
    pub(crate) fn misses(&self, head: Head) -> bool {
        #[cfg(test)]
        if !self.rules.head_in_records {
            return false;
        }
        head.epoch != self.epoch || self.applied() < head.number
    }

    /// Returns whether this node has applied all updates that the engine took when a value was read.
    pub(crate) fn has_applied(&self, head: Head) -> bool {
        #[cfg(test)]
        if !self.rules.head_at_fetch {
            return true;
        }
        self.applied() >= head.number
    }

    /// Returns the version of the cache that had the same updates as the node whose lookup began there. `None` if the epoch is
    /// another one, or if it is not known which updates came since.
    pub(crate) fn version_at(&self, began: Position, head: Head) -> Option<u64> {
        #[cfg(test)]
        if !self.rules.updates_since {
            return (began.epoch == self.epoch).then_some(u64::MAX);
        }
        #[cfg(test)]
        if !self.rules.epoch {
            return self.version_of(began.number);
        }
        if began.epoch != self.epoch || head.epoch != self.epoch {
            return None;
        }
        self.version_of(began.number)
    }

    fn version_of(&self, number: u64) -> Option<u64> {
        #[cfg(test)]
        let number = if self.rules.known_from {
            number
        } else {
            number.max(self.first)
        };
        let nth = number.checked_sub(self.first)?;
        self.versions.get(usize::try_from(nth).ok()?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Id = [1; 16];
    const HEAD: Head = Head {
        epoch: EPOCH,
        number: 7,
    };

    fn at(number: u64) -> Position {
        Position {
            epoch: EPOCH,
            number,
        }
    }

    #[test]
    fn a_result_gets_the_version_of_its_position() {
        let mut log = Log::new(EPOCH, 5, 50);
        log.push(60);
        log.push(75);
        assert_eq!(log.position(), at(7));
        let versions: Vec<_> = (4..=8).map(|n| log.version_at(at(n), HEAD)).collect();
        assert_eq!(versions, [None, Some(50), Some(60), Some(75), None]);
        let other = Position {
            epoch: [2; 16],
            number: 6,
        };
        assert_eq!(log.version_at(other, HEAD), None);
        let other = Head {
            epoch: [2; 16],
            ..HEAD
        };
        assert_eq!(log.version_at(at(6), other), None);
    }

    #[test]
    fn a_gap_differs_from_a_repetition() {
        let log = Log::new(EPOCH, 5, 50);
        assert_eq!(log.order(4), Order::Seen);
        assert_eq!(log.order(5), Order::Seen);
        assert_eq!(log.order(6), Order::Next);
        assert_eq!(log.order(7), Order::Gap);
        assert!(log.misses(HEAD) && !log.has_applied(HEAD));
    }

    #[test]
    fn the_known_updates_are_bounded() {
        let mut log = Log::new(EPOCH, 0, 0);
        for version in 1..=MAX_KNOWN as u64 {
            log.push(version);
        }
        assert_eq!(log.applied(), MAX_KNOWN as u64);
        assert_eq!(log.version_at(at(0), HEAD), None);
        assert_eq!(log.version_at(at(1), HEAD), Some(1));
    }
}
