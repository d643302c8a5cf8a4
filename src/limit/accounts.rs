//! The accounts of all organizations or keys, in bounded room.
//!
//! A request finds its accounts in a lock-free index and locks nothing but them. Only who has none yet takes the lock of the
//! shelf, on which the accounts stand by organization. No clock and no task tidies up: whoever comes new looks at a few
//! others and takes those from the shelf that owe nothing, which loses nothing, for a new account owes nothing either.
//! If all room is taken nevertheless,
//!
//! * an organization with its full share of it takes over one of its *own* accounts, together with what that owes. So a flood of
//!   keys of one organization takes no more than this share, and gives it so many quotas and never one more;
//! * any other takes the place of the account that owes least of a few that come next in turn. Whose that was begins anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use papaya::HashMap as Index;

use super::account::{Accounts, Verdict};
use super::quota::Quota;
use super::subject::{Asked, Subject};
use crate::clock::Tick;
use crate::context::OrgCode;
use crate::telemetry;

/// How many accounts a newcomer looks at, to take away those that owe nothing. More than one, so that what is idle goes
/// faster than new ones come.
const TIDIED: usize = 2;

/// Of how many accounts the one that owes least makes room.
const CANDIDATES: usize = 8;

/// Accounts, found by whose they are.
#[derive(Debug)]
pub(super) struct Book {
    index: Index<Subject, Arc<Accounts>>,
    shelf: Mutex<Shelf>,
    capacity: usize,
    /// How many accounts one organization may have.
    share: usize,
}

impl Book {
    /// A book of so many accounts, of which each organization may have a hundredth, and ten in any case.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            index: Index::new(),
            shelf: Mutex::default(),
            capacity,
            share: (capacity / 100).max(10).min(capacity),
        }
    }

    #[inline]
    pub(super) fn spend(&self, who: Asked<'_>, quota: &Quota, now: Tick) -> Verdict {
        if let Some(accounts) = self.index.pin().get(&who)
            && let Some(verdict) = accounts.spend(quota, now)
        {
            return verdict;
        }
        self.open(who, quota, now)
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Spends of accounts that are not there yet, or were given up a moment ago.
    #[cold]
    fn open(&self, who: Asked<'_>, quota: &Quota, now: Tick) -> Verdict {
        let mut places = self.lock();
        let index = self.index.pin();
        // Another request of the same came first. What the index has under this lock is not given up.
        if let Some(verdict) = index
            .get(&who)
            .and_then(|accounts| accounts.spend(quota, now))
        {
            return verdict;
        }
        for _ in 0..TIDIED {
            if let Some(gone) = places.tidy(now) {
                index.remove(&gone);
            }
        }
        let subject = who.to_subject();
        let (gone, accounts) = if places.held_by(who.org) >= self.share {
            let (gone, accounts) = places.take_over(subject.clone(), now);
            (Some(gone), accounts)
        } else {
            let gone = (places.held >= self.capacity).then(|| places.make_room(now));
            let accounts = Arc::new(Accounts::new(*quota));
            places.add(subject.clone(), Arc::clone(&accounts));
            (gone.flatten(), accounts)
        };
        if let Some(gone) = gone {
            index.remove(&gone);
        }
        index.insert(subject, Arc::clone(&accounts));
        accounts
            .spend(quota, now)
            .unwrap_or_else(|| unreachable!("under the lock of the shelf nobody else gives it up"))
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        // Nothing panics between the first change of a shelf and its last.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the accounts stand, by organization. Hands go round, so that everybody's turn comes.
#[derive(Debug, Default)]
struct Shelf {
    orgs: Vec<Organization>,
    places: HashMap<OrgCode, usize>,
    hand: usize,
    /// How many accounts there are.
    held: usize,
}

/// The accounts of one organization: at least one.
#[derive(Debug)]
struct Organization {
    accounts: Vec<(Subject, Arc<Accounts>)>,
    hand: usize,
}

impl Shelf {
    fn held_by(&self, org: &OrgCode) -> usize {
        self.places
            .get(org)
            .map_or(0, |at| self.orgs[*at].accounts.len())
    }

    fn add(&mut self, subject: Subject, accounts: Arc<Accounts>) {
        self.held += 1;
        if let Some(at) = self.places.get(&subject.org) {
            self.orgs[*at].accounts.push((subject, accounts));
        } else {
            self.places.insert(subject.org.clone(), self.orgs.len());
            self.orgs.push(Organization {
                accounts: vec![(subject, accounts)],
                hand: 0,
            });
        }
    }

    /// The place whose turn it is.
    fn next(&mut self) -> Option<(usize, usize)> {
        self.hand = (self.hand + 1).checked_rem(self.orgs.len())?;
        Some((self.hand, self.orgs[self.hand].next()))
    }

    fn remove(&mut self, (at, place): (usize, usize)) -> Subject {
        self.held -= 1;
        let org = &mut self.orgs[at];
        let (subject, _) = org.accounts.swap_remove(place);
        if org.accounts.is_empty() {
            self.places.remove(&subject.org);
            self.orgs.swap_remove(at);
            if let Some(moved) = self.orgs.get(at) {
                // An organization on the shelf has an account.
                self.places.insert(moved.accounts[0].0.org.clone(), at);
            }
        }
        subject
    }

    /// Takes the next account from the shelf if it owes nothing.
    fn tidy(&mut self, now: Tick) -> Option<Subject> {
        let (at, place) = self.next()?;
        let is_settled = self.orgs[at].accounts[place].1.give_up(now, true);
        is_settled.then(|| self.remove((at, place)))
    }

    /// Takes that one of the next accounts from the shelf that owes least.
    fn make_room(&mut self, now: Tick) -> Option<Subject> {
        let mut least = None;
        for _ in 0..CANDIDATES {
            let (at, place) = self.next()?;
            let debt = self.orgs[at].accounts[place].1.debt(now);
            if least.is_none_or(|(_, before)| debt < before) {
                least = Some(((at, place), debt));
            }
        }
        let ((at, place), _) = least?;
        let accounts = &self.orgs[at].accounts[place].1;
        if !accounts.give_up(now, true) {
            telemetry::limit::forgotten();
            accounts.give_up(now, false);
        }
        Some(self.remove((at, place)))
    }

    /// Gives a new key of an organization that has its full share that one of its next accounts that owes least.
    fn take_over(&mut self, subject: Subject, now: Tick) -> (Subject, Arc<Accounts>) {
        // Whoever has a share is on the shelf.
        let org = &mut self.orgs[self.places[&subject.org]];
        let mut least = None;
        for _ in 0..CANDIDATES {
            let place = org.next();
            let debt = org.accounts[place].1.debt(now);
            if least.is_none_or(|(_, before)| debt < before) {
                least = Some((place, debt));
            }
        }
        let (held, accounts) = &mut org.accounts[least.map_or(0, |(place, _)| place)];
        (std::mem::replace(held, subject), Arc::clone(accounts))
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

    /// Whether a request passes.
    fn passes(book: &Book, context: &OrgContext, per: Per, now: Tick) -> bool {
        let verdict = book.spend(Asked::of(context, per), &QUOTA, now);
        let shelf = book.lock();
        let on_shelf: usize = shelf.orgs.iter().map(|org| org.accounts.len()).sum();
        assert_eq!((on_shelf, shelf.held), (book.len(), book.len()));
        assert_eq!(shelf.places.len(), shelf.orgs.len());
        for (org, at) in &shelf.places {
            assert_eq!(&shelf.orgs[*at].accounts[0].0.org, org);
        }
        assert!(book.len() <= book.capacity);
        matches!(verdict, Verdict::Pass { .. })
    }

    #[test]
    fn whoever_is_idle_makes_room_without_losing_anything() {
        let book = Book::new(50);
        let mut now = START;
        for n in 0..1_000 {
            assert!(passes(&book, &org(n), Per::Organization, now));
            now = now.after(Duration::from_secs(1));
        }
        // Thirty owe something at a time. Twice as many are looked at as come, so not many more are held.
        assert!((30..=50).contains(&book.len()), "{}", book.len());
        for n in 971..1_000 {
            assert!(passes(&book, &org(n), Per::Organization, now), "{n}");
            let is_one_too_many = passes(&book, &org(n), Per::Organization, now);
            assert!(!is_one_too_many, "{n} was forgotten");
        }
    }

    #[test]
    fn the_one_that_owes_least_of_a_few_makes_room_where_nobody_is_idle() {
        let book = Book::new(10);
        for n in 0..9 {
            assert!(passes(&book, &org(n), Per::Organization, START));
            assert!(passes(&book, &org(n), Per::Organization, START));
        }
        for n in 100..200 {
            assert!(passes(&book, &org(n), Per::Organization, START));
            assert_eq!(book.len(), 10);
        }
        let still_held = (0..9).filter(|n| !passes(&book, &org(*n), Per::Organization, START));
        assert!(still_held.count() >= 8, "the newcomers owed less");
    }

    #[test]
    fn a_flood_of_keys_takes_over_accounts_of_its_own_organization_only() {
        let book = Book::new(100);
        // Ten organizations of eight keys each, all used up.
        let others: Vec<OrgContext> = (0..80)
            .map(|n| key(String::leak(format!("org_{}", n / 8)), n))
            .collect();
        for context in &others {
            assert!(passes(&book, context, Per::Key, START));
            assert!(passes(&book, context, Per::Key, START));
        }
        let mut passed = 0;
        for n in 0..2_000 {
            passed += usize::from(passes(&book, &key("org_flood", n), Per::Key, START));
        }
        assert_eq!(book.len(), 90, "a hundredth, and ten in any case");
        assert_eq!(passed, 20, "ten accounts of two requests");
        for context in &others {
            assert!(!passes(&book, context, Per::Key, START));
        }
    }
}
