use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::account::{Account, KeyName, Route};
use super::counts::Counts;
use crate::identifier::{KeyId, OrgCode};

/// What was counted since the layer was built: a value, to be kept, sent or compared.
///
/// Of every request that had ended before the snapshot was taken it holds the whole, once.
///
/// ```
/// use tower_orgkey::OrgCode;
/// use tower_orgkey::usage::UsageLayer;
///
/// let usage = UsageLayer::new().handle();
/// let mark = usage.snapshot();
/// // … requests come and go …
/// let since = usage.snapshot().since(&mark);
/// let org = OrgCode::from_static("org_1");
/// println!("{} requests of {org}", since.of_organization(&org).requests());
/// # assert_eq!(since.total().requests(), 0);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageSnapshot {
    /// Which books it is of: two layers, or two runs of a process, have nothing in common.
    run: String,
    /// In order, each account, key and route once.
    lines: Vec<UsageLine>,
}

/// What one key of one account did on one route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UsageLine {
    /// Whose requests they are.
    pub account: Account,
    /// Which key made them.
    pub key: KeyName,
    /// Where they went.
    pub route: Route,
    /// How many they were, and what became of them.
    pub counts: Counts,
}

/// What lines are told apart by, in their order.
pub(super) type LineKey = (Account, KeyName, Route);

impl UsageSnapshot {
    pub(super) fn new(run: String, lines: BTreeMap<LineKey, Counts>) -> Self {
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

    /// The lines, ordered by account, key and route.
    pub fn lines(&self) -> &[UsageLine] {
        &self.lines
    }

    /// Everything.
    pub fn total(&self) -> Counts {
        self.sum(|_| true)
    }

    /// Everything of an organization, of keys and routes that had to make room too.
    pub fn of_organization(&self, org: &OrgCode) -> Counts {
        self.sum(|line| line.account.organization() == Some(org))
    }

    /// Everything of an account.
    pub fn of_account(&self, account: &Account) -> Counts {
        self.sum(|line| line.account == *account)
    }

    /// What is held of a key. A key that had to make room has a part, or all, in its organization's
    /// [other keys](KeyName::Other).
    pub fn of_key(&self, key_id: &KeyId) -> Counts {
        self.sum(|line| matches!(&line.key, KeyName::Id(id) if id == key_id))
    }

    /// Everything that went to this route, as it is written in the router.
    pub fn of_route(&self, template: &str) -> Counts {
        self.sum(|line| matches!(&line.route, Route::Template(route) if **route == *template))
    }

    /// What was counted since the mark was set, an earlier snapshot of the same layer. A mark of another layer, or of an
    /// earlier run of the process, takes nothing away.
    ///
    /// The numbers of each account are exact. What had to make room in between may have moved from a key's line to its
    /// organization's line for other keys.
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
        // From the finest lines to the coarsest. What a line of the mark has beyond ours has been folded since, so it is in
        // the coarser line of both.
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
                match now.get(&key).and_then(|counts| counts.beyond(&before)) {
                    Some(beyond) => {
                        now.remove(&key);
                        left.insert(key, beyond);
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

/// How much a line says. What has to make room goes on as the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    /// A key on a route.
    Row,
    /// All other keys of an organization on a route.
    OtherKeys,
    /// An organization's remainder; for requests of no organization, all other routes.
    Remainder,
    /// All other organizations.
    Rest,
}

impl Detail {
    const FROM_FINE_TO_COARSE: [Self; 4] =
        [Self::Row, Self::OtherKeys, Self::Remainder, Self::Rest];

    fn of((account, key, route): &LineKey) -> Self {
        match (account, key, route) {
            (Account::OtherOrganizations, ..) => Self::Rest,
            (Account::Organization(_), KeyName::Other, Route::Other)
            | (Account::Anonymous | Account::Nobody, _, Route::Other) => Self::Remainder,
            (Account::Organization(_), KeyName::Other, _) => Self::OtherKeys,
            _ => Self::Row,
        }
    }
}

/// The line that one which has to make room becomes a part of.
fn coarser(key: LineKey) -> Option<LineKey> {
    let detail = Detail::of(&key);
    let (account, key, route) = key;
    match (account, detail) {
        (Account::Organization(org), Detail::Row) => {
            Some((Account::Organization(org), KeyName::Other, route))
        }
        (Account::Organization(org), Detail::OtherKeys) => {
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
    use crate::usage::counts::{Ended, How};

    fn counts(requests: u64) -> Counts {
        let mut counts = Counts::default();
        for _ in 0..requests {
            counts.count(Ended {
                took: Duration::from_secs(1),
                how: How::Answered(None),
                request_bytes: 1,
                response_bytes: 2,
            });
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
    fn what_was_folded_since_the_mark_is_taken_from_where_it_went() {
        let mark = snapshot(&[
            (org("org_1"), key("k1"), route(), 5),
            (org("org_1"), key("k2"), route(), 2),
            (org("org_2"), key("k3"), route(), 4),
            (Account::Nobody, KeyName::Unnamed, route(), 3),
        ]);
        let now = snapshot(&[
            // Folded, and counted anew since.
            (org("org_1"), key("k1"), route(), 1),
            (org("org_1"), key("k2"), route(), 3),
            (org("org_1"), KeyName::Other, route(), 6),
            // Folded as far as it goes.
            (Account::OtherOrganizations, KeyName::Other, Route::Other, 9),
            (Account::Nobody, KeyName::Unnamed, Route::Other, 4),
        ]);
        let since = now.since(&mark);
        let expected = snapshot(&[
            (org("org_1"), key("k1"), route(), 1),
            (org("org_1"), key("k2"), route(), 1),
            (org("org_1"), KeyName::Other, route(), 1),
            (Account::OtherOrganizations, KeyName::Other, Route::Other, 5),
            (Account::Nobody, KeyName::Unnamed, Route::Other, 1),
        ]);
        assert_eq!(since, expected);
        assert_eq!(
            since.of_organization(&OrgCode::from_static("org_1")),
            counts(3)
        );
        assert_eq!(now.since(&now).lines(), []);
    }

    #[test]
    fn a_mark_of_another_run_takes_nothing_away() {
        let now = snapshot(&[(org("org_1"), key("k1"), route(), 5)]);
        let mut mark = now.clone();
        mark.run = "another".into();
        assert_eq!(now.since(&mark), now);
    }

    #[test]
    fn sums_are_of_what_they_are_asked_for_and_what_is_written_is_read() {
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
