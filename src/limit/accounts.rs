//! The accounts of all organizations or keys, bounded in number.
//!
//! A request finds its account in a lock-free index and locks nothing else. Only a request without an account locks the list,
//! which has the accounts by organization. There is no cleanup task: adding an account examines a few others and removes those
//! without usage. If the number of accounts is still at its bound,
//!
//! * a new key of an organization with its full share takes over one of the organization's *own* accounts with its usage, so
//!   an organization with many keys uses at most its share, and gets no quota beyond it;
//! * any other evicts the account that refills first, of a few that are next in clock order. The evicted one starts with a
//!   full quota when it returns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use papaya::HashMap as Index;

use super::account::{Account, Decision};
use super::quota::Quota;
use super::subject::{Subject, SubjectRef};
use crate::clock::Tick;
use crate::identifier::OrgCode;
use crate::telemetry;

/// The number of accounts examined for removal per new account. More than one, so that accounts without usage are removed
/// faster than new ones are added.
const CLEANUP: usize = 2;

/// The number of candidates for an eviction.
const CANDIDATES: usize = 8;

/// The accounts of one rate limit.
#[derive(Debug)]
pub(super) struct Accounts {
    /// Not by a cryptographic hash: issuers choose organizations and keys.
    index: Index<Subject, Arc<Account>, RandomState>,
    list: Mutex<List>,
    capacity: usize,
    /// The maximum number of accounts of one organization.
    share: usize,
}

impl Accounts {
    /// At most `capacity` accounts, of which one organization can have a hundredth, and at least ten.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            index: Index::default(),
            list: Mutex::default(),
            capacity,
            share: (capacity / 100).max(10).min(capacity),
        }
    }

    #[inline]
    pub(super) fn request(&self, subject: SubjectRef<'_>, quota: &Quota, now: Tick) -> Decision {
        if let Some(account) = self.index.pin().get(&subject)
            && let Some(decision) = account.request(quota, now)
        {
            return decision;
        }
        self.add(subject, quota, now)
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Decides about a request without an account, or with one that was just removed.
    #[cold]
    fn add(&self, subject: SubjectRef<'_>, quota: &Quota, now: Tick) -> Decision {
        let mut list = self.lock();
        let index = self.index.pin();
        // Another request may have added it. Under this lock, accounts in the index are not removed.
        if let Some(decision) = index
            .get(&subject)
            .and_then(|account| account.request(quota, now))
        {
            return decision;
        }
        for _ in 0..CLEANUP {
            if let Some(removed) = list.clean_up(now) {
                index.remove(&removed);
            }
        }
        let subject = subject.to_subject();
        let (removed, was_in_use, account) = if list.len_of(&subject.org) >= self.share {
            let (removed, account) = list.take_over(subject.clone(), now);
            (Some(removed), false, account)
        } else {
            let is_full = list.len >= self.capacity;
            let evicted = is_full.then(|| list.evict(now)).flatten();
            let (removed, was_in_use) = evicted.unzip();
            let account = Arc::new(Account::new());
            list.add(subject.clone(), Arc::clone(&account));
            (removed, was_in_use.unwrap_or_default(), account)
        };
        if let Some(removed) = removed {
            index.remove(&removed);
        }
        index.insert(subject, Arc::clone(&account));
        let decision = account.request(quota, now).unwrap_or_else(|| {
            unreachable!("accounts are removed only under the lock of the list")
        });
        drop(list);
        if was_in_use {
            telemetry::limit::evicted();
        }
        decision
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        // No call between the first and the last change of a list panics.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The accounts by organization. Two levels of clock hands visit every account.
#[derive(Debug, Default)]
struct List {
    orgs: Vec<Organization>,
    positions: HashMap<OrgCode, usize>,
    hand: usize,
    /// The number of accounts.
    len: usize,
}

/// The accounts of one organization: at least one.
#[derive(Debug)]
struct Organization {
    accounts: Vec<(Subject, Arc<Account>)>,
    hand: usize,
}

impl List {
    fn len_of(&self, org: &OrgCode) -> usize {
        self.positions
            .get(org)
            .map_or(0, |at| self.orgs[*at].accounts.len())
    }

    fn add(&mut self, subject: Subject, account: Arc<Account>) {
        self.len += 1;
        if let Some(at) = self.positions.get(&subject.org) {
            self.orgs[*at].accounts.push((subject, account));
        } else {
            self.positions.insert(subject.org.clone(), self.orgs.len());
            self.orgs.push(Organization {
                accounts: vec![(subject, account)],
                hand: 0,
            });
        }
    }

    /// The position of the next account in clock order.
    fn next(&mut self) -> Option<(usize, usize)> {
        self.hand = (self.hand + 1).checked_rem(self.orgs.len())?;
        Some((self.hand, self.orgs[self.hand].next()))
    }

    fn remove(&mut self, (at, position): (usize, usize)) -> Subject {
        self.len -= 1;
        let org = &mut self.orgs[at];
        let (subject, _) = org.accounts.swap_remove(position);
        if org.accounts.is_empty() {
            self.positions.remove(&subject.org);
            self.orgs.swap_remove(at);
            if let Some(moved) = self.orgs.get(at) {
                // An organization in the list has at least one account.
                self.positions.insert(moved.accounts[0].0.org.clone(), at);
            }
        }
        subject
    }

    /// Removes the next account if it has no usage.
    fn clean_up(&mut self, now: Tick) -> Option<Subject> {
        let (at, position) = self.next()?;
        let is_removed = self.orgs[at].accounts[position].1.remove_if_full(now);
        is_removed.then(|| self.remove((at, position)))
    }

    /// Removes the account that refills first of the next [`CANDIDATES`]. Also returns whether it has usage.
    fn evict(&mut self, now: Tick) -> Option<(Subject, bool)> {
        let candidates = (0..CANDIDATES).map_while(|_| {
            let (at, position) = self.next()?;
            let refill = self.orgs[at].accounts[position].1.refill(now);
            Some(((at, position), refill))
        });
        let ((at, position), _) = candidates.min_by_key(|&(_, refill)| refill)?;
        let account = &self.orgs[at].accounts[position].1;
        let is_in_use = !account.remove_if_full(now);
        account.remove();
        Some((self.remove((at, position)), is_in_use))
    }

    /// Assigns an account of an organization with its full share to another of its keys: the one that refills first of the
    /// next [`CANDIDATES`].
    fn take_over(&mut self, subject: Subject, now: Tick) -> (Subject, Arc<Account>) {
        // An organization with its full share is in the list.
        let org = &mut self.orgs[self.positions[&subject.org]];
        let candidates = (0..CANDIDATES).map(|_| {
            let position = org.next();
            (position, org.accounts[position].1.refill(now))
        });
        let first = candidates.min_by_key(|&(_, refill)| refill);
        let (holder, account) = &mut org.accounts[first.map_or(0, |(position, _)| position)];
        (std::mem::replace(holder, subject), Arc::clone(account))
    }
}

impl Organization {
    fn next(&mut self) -> usize {
        self.hand = (self.hand + 1) % self.accounts.len();
        self.hand
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::context::OrgContext;
    use crate::limit::subject::Per;
    use crate::test_util::OrgContextBuilder;

    const START: Tick = Tick(1_000_000_000_000);
    const QUOTA: Quota = Quota::per_minute(2);

    fn key(org: &'static str, key: usize) -> OrgContext {
        let id = String::leak(format!("key_{key}"));
        OrgContextBuilder::new(org).key_id(id).build()
    }

    fn org(n: usize) -> OrgContext {
        OrgContextBuilder::new(String::leak(format!("org_{n}"))).build()
    }

    /// Sends a request, checks the invariants of the list, and returns whether it passes.
    fn passes(accounts: &Accounts, context: &OrgContext, per: Per, now: Tick) -> bool {
        let decision = accounts.request(SubjectRef::new(context, per), &QUOTA, now);
        let list = accounts.lock();
        let in_list: usize = list.orgs.iter().map(|org| org.accounts.len()).sum();
        assert_eq!((in_list, list.len), (accounts.len(), accounts.len()));
        assert_eq!(list.positions.len(), list.orgs.len());
        for (org, at) in &list.positions {
            assert_eq!(&list.orgs[*at].accounts[0].0.org, org);
        }
        assert!(accounts.len() <= accounts.capacity);
        matches!(decision, Decision::Allow { .. })
    }

    #[test]
    fn accounts_without_usage_are_removed_first() {
        let accounts = Accounts::new(50);
        let mut now = START;
        for n in 0..1_000 {
            assert!(passes(&accounts, &org(n), Per::Organization, now));
            now = now.after(Duration::from_secs(1));
        }
        // Thirty have usage at a time; two are examined per new account, so few others remain.
        assert!((30..=50).contains(&accounts.len()), "{}", accounts.len());
        for n in 971..1_000 {
            assert!(passes(&accounts, &org(n), Per::Organization, now), "{n}");
            let is_one_too_many = passes(&accounts, &org(n), Per::Organization, now);
            assert!(!is_one_too_many, "{n} was evicted");
        }
    }

    #[test]
    fn account_that_refills_first_is_evicted() {
        let accounts = Accounts::new(10);
        for n in 0..9 {
            assert!(passes(&accounts, &org(n), Per::Organization, START));
            assert!(passes(&accounts, &org(n), Per::Organization, START));
        }
        for n in 100..200 {
            assert!(passes(&accounts, &org(n), Per::Organization, START));
            assert_eq!(accounts.len(), 10);
        }
        let remaining = (0..9).filter(|n| !passes(&accounts, &org(*n), Per::Organization, START));
        assert!(remaining.count() >= 8, "the new accounts had less usage");
    }

    #[test]
    fn new_keys_take_over_accounts_of_their_own_org() {
        let accounts = Accounts::new(100);
        // Ten organizations of eight keys each, all used up.
        let others: Vec<OrgContext> = (0..80)
            .map(|n| key(String::leak(format!("org_{}", n / 8)), n))
            .collect();
        for context in &others {
            assert!(passes(&accounts, context, Per::Key, START));
            assert!(passes(&accounts, context, Per::Key, START));
        }
        let mut passed = 0;
        for n in 0..2_000 {
            passed += usize::from(passes(&accounts, &key("org_flood", n), Per::Key, START));
        }
        assert_eq!(accounts.len(), 90, "a hundredth, and at least ten");
        assert_eq!(passed, 20, "ten accounts of two requests");
        for context in &others {
            assert!(!passes(&accounts, context, Per::Key, START));
        }
    }
}
