//! Rows by account, key and route, in bounded memory: what has to make room is folded into something coarser, never lost.

use std::hash::{BuildHasher, RandomState};

use super::account::{Account, KeyName};
use super::counts::Counts;
use super::ring::Ring;
use super::routes::RouteId;
use crate::identifier::{KeyId, OrgCode};

/// What a row counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RowKey {
    pub(super) account: Account,
    pub(super) key: KeyName,
    pub(super) route: RouteId,
}

/// A [`RowKey`] that is only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RowRef<'a> {
    pub(super) account: AccountRef<'a>,
    pub(super) key: KeyRef<'a>,
    pub(super) route: RouteId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum AccountRef<'a> {
    Organization(&'a OrgCode),
    OtherOrganizations,
    Anonymous,
    Nobody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum KeyRef<'a> {
    Id(&'a KeyId),
    Unnamed,
    Other,
}

impl<'a> RowRef<'a> {
    fn of(key: &'a RowKey) -> Self {
        Self {
            account: match &key.account {
                Account::Organization(org) => AccountRef::Organization(org),
                Account::OtherOrganizations => AccountRef::OtherOrganizations,
                Account::Anonymous => AccountRef::Anonymous,
                Account::Nobody => AccountRef::Nobody,
            },
            key: match &key.key {
                KeyName::Id(id) => KeyRef::Id(id),
                KeyName::Unnamed => KeyRef::Unnamed,
                KeyName::Other => KeyRef::Other,
            },
            route: key.route,
        }
    }

    pub(super) fn to_key(self) -> RowKey {
        RowKey {
            account: match self.account {
                AccountRef::Organization(org) => Account::Organization(org.clone()),
                AccountRef::OtherOrganizations => Account::OtherOrganizations,
                AccountRef::Anonymous => Account::Anonymous,
                AccountRef::Nobody => Account::Nobody,
            },
            key: match self.key {
                KeyRef::Id(id) => KeyName::Id(id.clone()),
                KeyRef::Unnamed => KeyName::Unnamed,
                KeyRef::Other => KeyName::Other,
            },
            route: self.route,
        }
    }
}

/// The bounds of a ledger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) rows: usize,
    pub(super) organizations: usize,
}

/// Rows in two tables. A key's row that has to make room becomes a part of its organization's row for other keys on that
/// route; that one, of the organization's remainder, which has a table of its own; and that one, of the remainder of all
/// organizations, which always has a place. Each step is coarser than the last, so making room comes to an end.
#[derive(Debug)]
pub(super) struct Ledger {
    rows: Ring<RowKey>,
    /// What organizations have beyond their rows.
    remainders: Ring<OrgCode>,
    other_organizations: Counts,
    anonymous: Counts,
    nobody: Counts,
    bounds: Bounds,
    folds: u64,
}

impl Ledger {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            rows: Ring::new(bounds.rows),
            remainders: Ring::new(bounds.organizations),
            other_organizations: Counts::default(),
            anonymous: Counts::default(),
            nobody: Counts::default(),
            bounds,
            folds: 0,
        }
    }

    /// The counts of this row, which is made if there is none. `hash` is the row's, by this hasher.
    #[inline]
    pub(super) fn row(&mut self, hasher: &RandomState, hash: u64, row: RowRef<'_>) -> &mut Counts {
        let place = match self.rows.find(hash, |key| RowRef::of(key) == row) {
            Some(place) => place,
            None => self.add_row(hasher, hash, row),
        };
        self.rows.at(place)
    }

    #[cold]
    fn add_row(&mut self, hasher: &RandomState, hash: u64, row: RowRef<'_>) -> usize {
        while self.rows.is_full()
            && let Some(evicted) = self.rows.evict()
        {
            self.folds += 1;
            self.fold(hasher, evicted.key, &evicted.counts);
        }
        self.rows.insert(hash, row.to_key(), Counts::default())
    }

    /// Adds the counts of a row that has lost its place to the next coarser one. There is room for one row.
    fn fold(&mut self, hasher: &RandomState, from: RowKey, counts: &Counts) {
        match from.account {
            Account::Organization(org) => {
                if from.key == KeyName::Other || from.route == RouteId::OTHER {
                    self.add_remainder(hasher, org, counts);
                    return;
                }
                let to = RowRef {
                    account: AccountRef::Organization(&org),
                    key: KeyRef::Other,
                    route: from.route,
                };
                let hash = hasher.hash_one(to);
                let place = match self.rows.find(hash, |key| RowRef::of(key) == to) {
                    Some(place) => place,
                    None => self.rows.insert(hash, to.to_key(), Counts::default()),
                };
                self.rows.at(place).add(counts);
            }
            Account::OtherOrganizations => self.other_organizations.add(counts),
            Account::Anonymous => self.anonymous.add(counts),
            Account::Nobody => self.nobody.add(counts),
        }
    }

    fn add_remainder(&mut self, hasher: &RandomState, org: OrgCode, counts: &Counts) {
        let hash = hasher.hash_one(&org);
        let place = if let Some(place) = self.remainders.find(hash, |held| *held == org) {
            place
        } else {
            while self.remainders.is_full()
                && let Some(evicted) = self.remainders.evict()
            {
                self.folds += 1;
                self.other_organizations.add(&evicted.counts);
            }
            self.remainders.insert(hash, org, Counts::default())
        };
        self.remainders.at(place).add(counts);
    }

    /// Adds everything that another ledger counted.
    pub(super) fn absorb(&mut self, hasher: &RandomState, other: &Self) {
        for (key, counts) in other.rows.rows() {
            let row = RowRef::of(key);
            self.row(hasher, hasher.hash_one(row), row).add(counts);
        }
        for (org, counts) in other.remainders.rows() {
            self.add_remainder(hasher, org.clone(), counts);
        }
        self.other_organizations.add(&other.other_organizations);
        self.anonymous.add(&other.anonymous);
        self.nobody.add(&other.nobody);
    }

    /// Takes everything, and leaves an empty ledger of the same bounds.
    pub(super) fn take(&mut self) -> Self {
        let folds = self.folds;
        let taken = std::mem::replace(self, Self::new(self.bounds));
        self.folds = folds;
        taken
    }

    /// Everything that was counted, each with what it was counted for.
    pub(super) fn lines(&self) -> impl Iterator<Item = (RowKey, &Counts)> {
        let line = |account, key| RowKey {
            account,
            key,
            route: RouteId::OTHER,
        };
        let rows = self.rows.rows().map(|(key, counts)| (key.clone(), counts));
        let remainders = self.remainders.rows().map(move |(org, counts)| {
            let account = Account::Organization(org.clone());
            (line(account, KeyName::Other), counts)
        });
        let rest = [
            (
                line(Account::OtherOrganizations, KeyName::Other),
                &self.other_organizations,
            ),
            (line(Account::Anonymous, KeyName::Unnamed), &self.anonymous),
            (line(Account::Nobody, KeyName::Unnamed), &self.nobody),
        ];
        rows.chain(remainders)
            .chain(rest)
            .filter(|(_, counts)| !counts.is_zero())
    }

    /// How many lines it has at the most.
    pub(super) fn len(&self) -> usize {
        self.rows.len() + self.remainders.len() + 3
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() == 0
            && self.remainders.len() == 0
            && [&self.other_organizations, &self.anonymous, &self.nobody]
                .into_iter()
                .all(Counts::is_zero)
    }

    /// How many rows have had to make room, in this ledger and those that were taken from it.
    pub(super) fn folds(&self) -> u64 {
        self.folds
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use super::*;
    use crate::usage::counts::{Ended, How};

    const ENDED: Ended = Ended {
        took: Duration::ZERO,
        how: How::Answered(None),
        request_bytes: 1,
        response_bytes: 2,
    };

    fn key(org: usize, key: usize, route: u32) -> RowKey {
        RowKey {
            account: Account::Organization(OrgCode::new(format!("org_{org}")).unwrap()),
            key: KeyName::Id(KeyId::new(format!("key_{key}")).unwrap()),
            route: RouteId::nth(route),
        }
    }

    fn count(ledger: &mut Ledger, hasher: &RandomState, key: &RowKey) {
        let row = RowRef::of(key);
        ledger.row(hasher, hasher.hash_one(row), row).count(ENDED);
    }

    fn requests(ledger: &Ledger, is_wanted: impl Fn(&RowKey) -> bool) -> u64 {
        let lines = ledger.lines().filter(|(key, _)| is_wanted(key));
        lines.map(|(_, counts)| counts.requests()).sum()
    }

    #[test]
    fn folding_keeps_every_request_with_its_organization_and_the_table_within_its_bounds() {
        let hasher = RandomState::new();
        for rows in [1, 2, 3, 7, 50] {
            let bounds = Bounds {
                rows,
                organizations: 20,
            };
            let mut ledger = Ledger::new(bounds);
            let mut expected: HashMap<Account, u64> = HashMap::new();
            for n in 0..5_000_usize {
                let key = key(n % 17, n % 101, u32::try_from(n % 5).unwrap());
                count(&mut ledger, &hasher, &key);
                *expected.entry(key.account).or_default() += 1;
                assert!(ledger.rows.len() <= rows && ledger.remainders.len() <= 20);
            }
            assert!(ledger.folds() > 0, "{rows} rows were to be too few");
            for (account, count) in expected {
                assert_eq!(requests(&ledger, |key| key.account == account), count);
            }
        }
    }

    #[test]
    fn a_folded_key_keeps_its_route_while_there_is_room_for_it() {
        let hasher = RandomState::new();
        let mut ledger = Ledger::new(Bounds {
            rows: 10,
            organizations: 1,
        });
        for n in 0..1_000 {
            count(&mut ledger, &hasher, &key(1, n, 1));
        }
        let named = |key: &RowKey| matches!(key.key, KeyName::Id(_));
        let of_route = |key: &RowKey| key.key == KeyName::Other && key.route == RouteId::nth(1);
        assert_eq!(requests(&ledger, named), 9);
        assert_eq!(requests(&ledger, of_route), 991);
    }

    #[test]
    fn organizations_beyond_the_bound_are_counted_together() {
        let hasher = RandomState::new();
        let mut ledger = Ledger::new(Bounds {
            rows: 4,
            organizations: 3,
        });
        for n in 0..100 {
            count(&mut ledger, &hasher, &key(n, n, 1));
        }
        assert_eq!(requests(&ledger, |_| true), 100);
        let others = requests(&ledger, |key| key.account == Account::OtherOrganizations);
        assert_eq!(others, 100 - 4 - 3);
    }

    #[test]
    fn a_key_that_is_used_again_outlives_those_that_are_seen_once() {
        let hasher = RandomState::new();
        let mut ledger = Ledger::new(Bounds {
            rows: 10,
            organizations: 10,
        });
        let faithful = key(0, 0, 0);
        for n in 1..1_000 {
            count(&mut ledger, &hasher, &faithful);
            count(&mut ledger, &hasher, &key(1, n, 0));
        }
        assert_eq!(requests(&ledger, |key| *key == faithful), 999);
    }

    #[test]
    fn what_is_absorbed_adds_up() {
        let hasher = RandomState::new();
        let bounds = Bounds {
            rows: 5,
            organizations: 2,
        };
        let mut total = Ledger::new(bounds);
        let mut minute = Ledger::new(bounds);
        for n in 0..60 {
            count(&mut minute, &hasher, &key(n % 6, n, 2));
            if n % 20 == 19 {
                let closed = minute.take();
                assert!(minute.is_empty() && !closed.is_empty());
                total.absorb(&hasher, &closed);
            }
        }
        assert_eq!(requests(&total, |_| true), 60);
        assert!(minute.folds() > 0, "folds are counted over all minutes");
    }
}
