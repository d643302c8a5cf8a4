//! Counts by account, key and route, in bounded memory.
//!
//! An evicted row of an organization is merged into the organization's row "other keys". When more organizations have such
//! a row than the bound allows, evicted ones are merged into the row "other organizations". No count is lost.

use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::quality::RandomState;

use crate::account::{Account, KeyName};
use crate::clock_table::ClockTable;
use crate::counts::Counts;
use crate::routes::RouteId;
use tower_orgkey::{KeyId, OrgCode};

/// What a row counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowKey {
    pub(crate) account: Account,
    pub(crate) key: KeyName,
    pub(crate) route: RouteId,
}

/// A borrowed [`RowKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowRef<'a> {
    pub(crate) account: AccountRef<'a>,
    pub(crate) key: KeyRef<'a>,
    pub(crate) route: RouteId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AccountRef<'a> {
    Organization(&'a OrgCode),
    OtherOrganizations,
    Anonymous,
    Unauthenticated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum KeyRef<'a> {
    Id(&'a KeyId),
    Unnamed,
    Other,
}

/// Without what the derived implementation adds to each part: most rows have an organization and a key.
impl Hash for RowRef<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        if let (AccountRef::Organization(org), KeyRef::Id(id)) = (self.account, self.key) {
            state.write(org.as_str().as_bytes());
            state.write(id.as_str().as_bytes());
        } else {
            self.account.hash(state);
            self.key.hash(state);
        }
        self.route.hash(state);
    }
}

impl<'a> RowRef<'a> {
    fn of(key: &'a RowKey) -> Self {
        Self {
            account: match &key.account {
                Account::Organization(org) => AccountRef::Organization(org),
                Account::OtherOrganizations => AccountRef::OtherOrganizations,
                Account::Anonymous => AccountRef::Anonymous,
                Account::Unauthenticated => AccountRef::Unauthenticated,
            },
            key: match &key.key {
                KeyName::Id(id) => KeyRef::Id(id),
                KeyName::Unnamed => KeyRef::Unnamed,
                KeyName::Other => KeyRef::Other,
            },
            route: key.route,
        }
    }

    pub(crate) fn to_key(self) -> RowKey {
        RowKey {
            account: match self.account {
                AccountRef::Organization(org) => Account::Organization(org.clone()),
                AccountRef::OtherOrganizations => Account::OtherOrganizations,
                AccountRef::Anonymous => Account::Anonymous,
                AccountRef::Unauthenticated => Account::Unauthenticated,
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

/// The bounds of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) rows: usize,
    pub(crate) organizations: usize,
}

#[derive(Debug)]
pub(crate) struct Table {
    rows: ClockTable<RowKey>,
    /// The row "other keys" of each organization that has one.
    other_keys: ClockTable<OrgCode>,
    other_organizations: Counts,
    /// Evicted rows of requests without an organization.
    anonymous: Counts,
    unauthenticated: Counts,
    bounds: Bounds,
    merged: u64,
}

impl Table {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            rows: ClockTable::new(bounds.rows),
            other_keys: ClockTable::new(bounds.organizations),
            other_organizations: Counts::default(),
            anonymous: Counts::default(),
            unauthenticated: Counts::default(),
            bounds,
            merged: 0,
        }
    }

    /// Returns the counts of a row, which is inserted if it is missing. `hash` is the hash of the row by this hasher.
    #[inline]
    pub(crate) fn row(&mut self, hasher: &RandomState, hash: u64, row: RowRef<'_>) -> &mut Counts {
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
            self.merged += 1;
            self.merge(hasher, evicted.key.account, &evicted.counts);
        }
        self.rows.insert(hash, row.to_key())
    }

    /// Merges counts into the "other" row of their account.
    fn merge(&mut self, hasher: &RandomState, account: Account, counts: &Counts) {
        match account {
            Account::Organization(org) => self.merge_other_keys(hasher, org, counts),
            Account::OtherOrganizations => self.other_organizations.add(counts),
            Account::Anonymous => self.anonymous.add(counts),
            Account::Unauthenticated => self.unauthenticated.add(counts),
        }
    }

    fn merge_other_keys(&mut self, hasher: &RandomState, org: OrgCode, counts: &Counts) {
        let hash = hasher.hash_one(&org);
        let place = if let Some(place) = self.other_keys.find(hash, |held| *held == org) {
            place
        } else {
            while self.other_keys.is_full()
                && let Some(evicted) = self.other_keys.evict()
            {
                self.merged += 1;
                self.other_organizations.add(&evicted.counts);
            }
            self.other_keys.insert(hash, org)
        };
        self.other_keys.at(place).add(counts);
    }

    /// Adds everything that another table counted.
    pub(crate) fn add(&mut self, hasher: &RandomState, other: &Self) {
        for (key, counts) in other.rows.rows() {
            let row = RowRef::of(key);
            self.row(hasher, hasher.hash_one(row), row).add(counts);
        }
        for (org, counts) in other.other_keys.rows() {
            self.merge_other_keys(hasher, org.clone(), counts);
        }
        self.other_organizations.add(&other.other_organizations);
        self.anonymous.add(&other.anonymous);
        self.unauthenticated.add(&other.unauthenticated);
    }

    /// Takes all counts, and leaves an empty table with the same bounds.
    pub(crate) fn take(&mut self) -> Self {
        let merged = self.merged;
        let taken = std::mem::replace(self, Self::new(self.bounds));
        self.merged = merged;
        taken
    }

    /// Returns all rows that counted anything.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (RowKey, &Counts)> {
        let other = |account, key| RowKey {
            account,
            key,
            route: RouteId::OTHER,
        };
        let rows = self.rows.rows().map(|(key, counts)| (key.clone(), counts));
        let other_keys = self.other_keys.rows().map(move |(org, counts)| {
            let account = Account::Organization(org.clone());
            (other(account, KeyName::Other), counts)
        });
        let rest = [
            (
                other(Account::OtherOrganizations, KeyName::Other),
                &self.other_organizations,
            ),
            (other(Account::Anonymous, KeyName::Unnamed), &self.anonymous),
            (
                other(Account::Unauthenticated, KeyName::Unnamed),
                &self.unauthenticated,
            ),
        ];
        rows.chain(other_keys)
            .chain(rest)
            .filter(|(_, counts)| !counts.is_zero())
    }

    /// Returns the most lines that it can have now.
    pub(crate) fn len(&self) -> usize {
        self.rows.len() + self.other_keys.len() + 3
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lines().next().is_none()
    }

    /// Returns how many rows were merged, in this table and in those that were taken from it.
    pub(crate) fn merged(&self) -> u64 {
        self.merged
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use super::*;
    use crate::counts::{Ended, How};

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

    fn count(table: &mut Table, hasher: &RandomState, key: &RowKey) {
        let row = RowRef::of(key);
        table
            .row(hasher, hasher.hash_one(row), row)
            .count(ENDED, true);
    }

    fn requests(table: &Table, is_wanted: impl Fn(&RowKey) -> bool) -> u64 {
        let lines = table.lines().filter(|(key, _)| is_wanted(key));
        lines.map(|(_, counts)| counts.requests()).sum()
    }

    #[test]
    fn merging_keeps_sums_and_bounds() {
        let hasher = RandomState::default();
        for rows in [1, 2, 3, 7, 50] {
            let bounds = Bounds {
                rows,
                organizations: 20,
            };
            let mut table = Table::new(bounds);
            let mut expected: HashMap<Account, u64> = HashMap::new();
            for n in 0..5_000_usize {
                let key = key(n % 17, n % 101, u32::try_from(n % 5).unwrap());
                count(&mut table, &hasher, &key);
                *expected.entry(key.account).or_default() += 1;
                assert!(table.rows.len() <= rows && table.other_keys.len() <= 20);
            }
            assert!(table.merged() > 0, "{rows} rows were to be too few");
            for (account, count) in expected {
                assert_eq!(requests(&table, |key| key.account == account), count);
            }
        }
    }

    #[test]
    fn excess_organizations_are_merged() {
        let hasher = RandomState::default();
        let mut table = Table::new(Bounds {
            rows: 4,
            organizations: 3,
        });
        for n in 0..100 {
            count(&mut table, &hasher, &key(n, n, 1));
        }
        assert_eq!(requests(&table, |_| true), 100);
        let others = requests(&table, |key| key.account == Account::OtherOrganizations);
        assert_eq!(others, 100 - 4 - 3);
    }

    #[test]
    fn used_keys_outlive_keys_seen_once() {
        let hasher = RandomState::default();
        let mut table = Table::new(Bounds {
            rows: 10,
            organizations: 10,
        });
        let used = key(0, 0, 0);
        for n in 1..1_000 {
            count(&mut table, &hasher, &used);
            count(&mut table, &hasher, &key(1, n, 0));
        }
        assert_eq!(requests(&table, |key| *key == used), 999);
    }

    #[test]
    fn added_tables_add_up() {
        let hasher = RandomState::default();
        let bounds = Bounds {
            rows: 5,
            organizations: 2,
        };
        let mut total = Table::new(bounds);
        let mut minute = Table::new(bounds);
        for n in 0..60 {
            count(&mut minute, &hasher, &key(n % 6, n, 2));
            if n % 20 == 19 {
                let closed = minute.take();
                assert!(minute.is_empty() && !closed.is_empty());
                total.add(&hasher, &closed);
            }
        }
        assert_eq!(requests(&total, |_| true), 60);
        assert!(minute.merged() > 0, "merges are counted over all minutes");
    }
}
