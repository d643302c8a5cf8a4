use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::account::{Account, KeyName, Route};
use crate::counts::Counts;
use tower_orgkey::{KeyId, OrgCode};

/// All counts of a layer at one moment. A value that can be stored, sent and compared.
///
/// It contains every request that ended before the snapshot was taken, once.
///
/// ```
/// use tower_orgkey::OrgCode;
/// use tower_orgkey_usage::UsageLayer;
///
/// let usage = UsageLayer::new().handle();
/// let mark = usage.snapshot();
/// // … requests come and go …
/// let since = usage.snapshot().since(&mark);
/// let org = OrgCode::from_static("org_1");
/// println!("{} requests of {org} were served", since.of_organization(&org).served());
/// # assert_eq!(since.total().requests(), 0);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageSnapshot {
    /// Identifies the layer and the run of the process.
    run: String,
    /// Sorted, each account, key and route once.
    lines: Vec<UsageLine>,
}

/// The counts of a key on a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UsageLine {
    /// The account.
    pub account: Account,
    /// The key.
    pub key: KeyName,
    /// The route.
    pub route: Route,
    /// The counts.
    pub counts: Counts,
}

/// Identifies a line.
pub(crate) type LineKey = (Account, KeyName, Route);

impl UsageSnapshot {
    pub(crate) fn new(run: String, lines: BTreeMap<LineKey, Counts>) -> Self {
        let line = |((account, key, route), counts)| UsageLine {
            account,
            key,
            route,
            counts,
        };
        Self {
            run,
            lines: lines.into_iter().map(line).collect(),
        }
    }

    /// Returns the lines, sorted by account, key and route.
    pub fn lines(&self) -> &[UsageLine] {
        &self.lines
    }

    /// Returns the sum of all lines.
    pub fn total(&self) -> Counts {
        self.sum(|_| true)
    }

    /// Returns the sum of an organization, including its merged rows.
    pub fn of_organization(&self, org: &OrgCode) -> Counts {
        self.sum(|line| line.account.organization() == Some(org))
    }

    /// Returns the sum of an account.
    pub fn of_account(&self, account: &Account) -> Counts {
        self.sum(|line| line.account == *account)
    }

    /// Returns the sum of the rows of a key. Merged rows are not included: they are a part of the organization's
    /// [other keys](KeyName::Other).
    pub fn of_key(&self, key_id: &KeyId) -> Counts {
        self.sum(|line| matches!(&line.key, KeyName::Id(id) if id == key_id))
    }

    /// Returns the sum of the rows of a route, as it is written in the router. Merged rows are not included.
    pub fn of_route(&self, template: &str) -> Counts {
        self.sum(|line| matches!(&line.route, Route::Template(route) if **route == *template))
    }

    /// Returns what was counted since an earlier snapshot of the same layer. Returns everything if `mark` is of another layer
    /// or of another run of the process.
    ///
    /// The sums of organizations are exact. Counts of a row that was merged in between are in the line for other keys.
    pub fn since(&self, mark: &Self) -> Self {
        if self.run != mark.run {
            return self.clone();
        }
        let mut now: HashMap<LineKey, &Counts> = self.lines.iter().map(UsageLine::entry).collect();
        let mut left = BTreeMap::new();
        let mut marked: BTreeMap<LineKey, Counts> = BTreeMap::new();
        for line in &mark.lines {
            let (key, counts) = line.entry();
            marked.insert(key, counts.clone());
        }
        // From fine to coarse: what a line of the mark has beyond ours was merged since, so it is in the coarser line of
        // both.
        for detail in Detail::FROM_FINE_TO_COARSE {
            let of_detail: Vec<LineKey> = marked
                .keys()
                .filter(|key| Detail::of(key) == detail)
                .cloned()
                .collect();
            for key in of_detail {
                let Some(before) = marked.remove(&key) else {
                    continue;
                };
                match now.get(&key).and_then(|counts| counts.checked_sub(&before)) {
                    Some(rest) => {
                        now.remove(&key);
                        left.insert(key, rest);
                    }
                    None => {
                        if let Some(coarser) = coarser(key) {
                            marked.entry(coarser).or_default().add(&before);
                        }
                    }
                }
            }
        }
        for (key, counts) in now {
            left.insert(key, counts.clone());
        }
        left.retain(|_, counts| !counts.is_zero());
        Self::new(self.run.clone(), left)
    }

    fn sum(&self, is_wanted: impl Fn(&UsageLine) -> bool) -> Counts {
        let mut sum = Counts::default();
        for line in self.lines.iter().filter(|line| is_wanted(line)) {
            sum.add(&line.counts);
        }
        sum
    }
}

impl UsageLine {
    fn entry(&self) -> (LineKey, &Counts) {
        let key = (self.account.clone(), self.key.clone(), self.route.clone());
        (key, &self.counts)
    }
}

/// The order in which rows are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    /// A key on a route.
    Row,
    /// Other keys of an organization; for requests without an organization, other routes.
    OtherKeys,
    OtherOrganizations,
}

impl Detail {
    const FROM_FINE_TO_COARSE: [Self; 3] = [Self::Row, Self::OtherKeys, Self::OtherOrganizations];

    fn of((account, key, route): &LineKey) -> Self {
        match (account, key, route) {
            (Account::OtherOrganizations, ..) => Self::OtherOrganizations,
            (Account::Organization(_), KeyName::Other, _)
            | (Account::Anonymous | Account::Unauthenticated, _, Route::Other) => Self::OtherKeys,
            _ => Self::Row,
        }
    }
}

/// The line that a merged one becomes a part of.
fn coarser(key: LineKey) -> Option<LineKey> {
    let detail = Detail::of(&key);
    let (account, key, _) = key;
    match (account, detail) {
        (Account::Organization(org), Detail::Row) => {
            Some((Account::Organization(org), KeyName::Other, Route::Other))
        }
        (Account::Organization(_), _) => {
            Some((Account::OtherOrganizations, KeyName::Other, Route::Other))
        }
        (account, Detail::Row) => Some((account, key, Route::Other)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::counts::{Ended, How};

    fn counts(requests: u64) -> Counts {
        let mut counts = Counts::default();
        for _ in 0..requests {
            counts.count(
                Ended {
                    took: Duration::from_secs(1),
                    how: How::Answered(None),
                    request_bytes: 1,
                    response_bytes: 2,
                },
                true,
            );
        }
        counts
    }

    fn org(name: &'static str) -> Account {
        Account::Organization(OrgCode::from_static(name))
    }

    fn key(name: &'static str) -> KeyName {
        KeyName::Id(KeyId::from_static(name))
    }

    fn route() -> Route {
        Route::Template("/a".into())
    }

    fn snapshot(lines: &[(Account, KeyName, Route, u64)]) -> UsageSnapshot {
        let lines = lines
            .iter()
            .cloned()
            .map(|(account, key, route, n)| ((account, key, route), counts(n)));
        UsageSnapshot::new("run".into(), lines.collect())
    }

    #[test]
    fn since_follows_merged_rows() {
        let mark = snapshot(&[
            (org("org_1"), key("k1"), route(), 5),
            (org("org_1"), key("k2"), route(), 2),
            (org("org_2"), key("k3"), route(), 4),
            (Account::Unauthenticated, KeyName::Unnamed, route(), 3),
        ]);
        let now = snapshot(&[
            // Merged, and counted again since.
            (org("org_1"), key("k1"), route(), 1),
            (org("org_1"), key("k2"), route(), 3),
            (org("org_1"), KeyName::Other, Route::Other, 6),
            // Merged twice.
            (Account::OtherOrganizations, KeyName::Other, Route::Other, 9),
            (Account::Unauthenticated, KeyName::Unnamed, Route::Other, 4),
        ]);
        let since = now.since(&mark);
        let expected = snapshot(&[
            (org("org_1"), key("k1"), route(), 1),
            (org("org_1"), key("k2"), route(), 1),
            (org("org_1"), KeyName::Other, Route::Other, 1),
            (Account::OtherOrganizations, KeyName::Other, Route::Other, 5),
            (Account::Unauthenticated, KeyName::Unnamed, Route::Other, 1),
        ]);
        assert_eq!(since, expected);
        assert_eq!(
            since.of_organization(&OrgCode::from_static("org_1")),
            counts(3)
        );
        assert_eq!(now.since(&now).lines(), []);
    }

    #[test]
    fn since_ignores_a_mark_of_another_run() {
        let now = snapshot(&[(org("org_1"), key("k1"), route(), 5)]);
        let mut mark = now.clone();
        mark.run = "another".into();
        assert_eq!(now.since(&mark), now);
    }

    #[test]
    fn sums_select_lines_and_serialize() {
        let all = snapshot(&[
            (org("org_1"), key("k1"), route(), 5),
            (org("org_1"), KeyName::Other, Route::Other, 2),
            (org("org_2"), key("k2"), route(), 4),
            (org("org_2"), KeyName::Unnamed, Route::Unmatched, 3),
            (Account::Anonymous, KeyName::Unnamed, route(), 1),
        ]);
        assert_eq!(all.total(), counts(15));
        assert_eq!(
            all.of_organization(&OrgCode::from_static("org_1")),
            counts(7)
        );
        assert_eq!(all.of_key(&KeyId::from_static("k2")), counts(4));
        assert_eq!(all.of_route("/a"), counts(10));
        assert_eq!(all.of_account(&Account::Anonymous), counts(1));
        let written = serde_json::to_string(&all).unwrap();
        assert_eq!(
            serde_json::from_str::<UsageSnapshot>(&written).unwrap(),
            all
        );
    }
}
