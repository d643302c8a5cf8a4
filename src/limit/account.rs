//! What one organization or key has used of its quotas.
//!
//! An account is one number: the moment from which on nothing is owed. How a request changes it is `governor`'s rule, the
//! generic cell rate algorithm. Its own limiters keep a quota and a state of their own for as long as they live; here the
//! quota may be another at each request, so a limiter is made on the stack for one request, over a clock that stands at zero,
//! and is lent what is owed.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::RateLimiter;
use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};

use super::quota::Quota;
use crate::clock::Tick;

/// So many quotas of one organization or key are told apart.
const QUOTAS: usize = 4;

/// What a limit says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It passes; so many more would at this moment, and the next one after `next`.
    Pass { remaining: u32, next: Duration },
    /// It does not; one would after `wait`.
    Refuse { wait: Duration },
}

/// Stands still: what is owed is counted from the moment of the request.
struct Standstill;

impl Clock for Standstill {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(0)
    }
}

/// What is owed, lent to a limiter for one request.
struct Debt(Cell<u64>);

impl StateStore for Debt {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (outcome, debt) = decide(Some(Nanos::new(self.0.get())))?;
        self.0.set(debt.as_u64());
        Ok(outcome)
    }
}

/// What a limiter is, for one request.
type Limiter = RateLimiter<NotKeyed, Debt, Standstill, StateInformationMiddleware>;

/// What is owed under one quota.
#[derive(Clone, Copy, Debug)]
struct Account {
    quota: Quota,
    /// From this moment on nothing is.
    until: Tick,
}

impl Account {
    fn debt(&self, now: Tick) -> u64 {
        self.until.0.saturating_sub(now.0)
    }

    fn spend(&mut self, now: Tick) -> Verdict {
        let Some(quota) = self.quota.governors() else {
            return closed(&self.quota);
        };
        let debt = Debt(Cell::new(self.debt(now)));
        let limiter = Limiter::new(quota, debt, Standstill);
        match limiter.check() {
            Ok(snapshot) => {
                let debt = limiter.into_state_store().0.get();
                self.until = Tick(now.0.saturating_add(debt));
                let tolerated = self.quota.fill() - self.quota.period();
                Verdict::Pass {
                    remaining: snapshot.remaining_burst_capacity(),
                    next: Duration::from_nanos(debt.saturating_sub(tolerated)),
                }
            }
            Err(not_until) => Verdict::Refuse {
                wait: not_until.wait_time_from(Nanos::new(0)),
            },
        }
    }
}

/// The answer of a quota that lets nothing pass: there is no better time to name than its window's end.
pub(super) fn closed(quota: &Quota) -> Verdict {
    Verdict::Refuse {
        wait: quota.window(),
    }
}

/// The accounts of one organization or key: one for each quota that it was given lately.
#[derive(Debug)]
pub(super) struct Accounts(Mutex<Held>);

#[derive(Debug)]
struct Held {
    /// The usual one.
    first: Account,
    others: Vec<Account>,
    /// None of those that were forgotten for want of room owes anything from this moment on.
    forgotten: Tick,
    /// Nobody finds these accounts any more: what would be spent here has to be spent elsewhere.
    is_given_up: bool,
}

impl Accounts {
    /// Accounts that owe nothing.
    pub(super) fn new(quota: Quota) -> Self {
        Self(Mutex::new(Held {
            first: Account {
                quota,
                until: Tick::ZERO,
            },
            others: Vec::new(),
            forgotten: Tick::ZERO,
            is_given_up: false,
        }))
    }

    /// `None` if these accounts have been given up.
    pub(super) fn spend(&self, quota: &Quota, now: Tick) -> Option<Verdict> {
        let mut held = self.lock();
        (!held.is_given_up).then(|| held.account(quota, now).spend(now))
    }

    /// How long it takes until nothing is owed.
    pub(super) fn debt(&self, now: Tick) -> Duration {
        Duration::from_nanos(self.lock().debt(now))
    }

    /// Gives the accounts up; if told to, only where nothing is owed. Whether they now are.
    pub(super) fn give_up(&self, now: Tick, only_if_settled: bool) -> bool {
        let mut held = self.lock();
        held.is_given_up |= !only_if_settled || held.debt(now) == 0;
        held.is_given_up
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Whatever panics under the lock has changed one number or none.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn all(&self) -> impl Iterator<Item = &Account> {
        std::iter::once(&self.first).chain(&self.others)
    }

    fn debt(&self, now: Tick) -> u64 {
        self.all()
            .map(|account| account.debt(now))
            .max()
            .unwrap_or_default()
    }

    fn account(&mut self, quota: &Quota, now: Tick) -> &mut Account {
        if self.first.quota == *quota {
            return &mut self.first;
        }
        let at = match self.others.iter().position(|held| held.quota == *quota) {
            Some(at) => at,
            None => self.open(*quota, now),
        };
        &mut self.others[at]
    }

    /// Opens an account under another quota. It owes the same part of its whole as the account that owes most, so that no
    /// new quota gives anything back; and no less than it did, should it be one that was forgotten.
    #[cold]
    fn open(&mut self, quota: Quota, now: Tick) -> usize {
        let parts = self.all().map(|held| held.part_of(&quota, now));
        let forgotten = self.forgotten.0.saturating_sub(now.0).min(quota.fill());
        let debt = parts.fold(forgotten, u64::max);
        let account = Account {
            quota,
            until: Tick(now.0.saturating_add(debt)),
        };
        if self.others.len() + 1 < QUOTAS {
            self.others.push(account);
            return self.others.len() - 1;
        }
        // The one goes that owes nothing the soonest. There are others: `QUOTAS` is more than one.
        let others = self.others.iter().enumerate();
        let at = others
            .min_by_key(|(_, held)| held.until)
            .map_or(0, |(at, _)| at);
        if self.first.until < self.others[at].until {
            std::mem::swap(&mut self.first, &mut self.others[at]);
        }
        self.forgotten = self.forgotten.max(self.others[at].until);
        self.others[at] = account;
        at
    }
}

impl Account {
    /// What would be owed under another quota if the same part of it were used up. Rounded up.
    fn part_of(&self, other: &Quota, now: Tick) -> u64 {
        let debt = self.debt(now);
        if debt == 0 {
            return 0;
        }
        // Who owes has a quota that lets something pass, and owes no more than the whole of it.
        let (whole, fill) = (u128::from(other.fill()), u128::from(self.quota.fill()));
        let part = (u128::from(debt) * whole).div_ceil(fill);
        u64::try_from(part).map_or(other.fill(), |part| part.min(other.fill()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Tick = Tick(1_000_000_000_000);

    fn passed(accounts: &Accounts, quota: Quota, now: Tick) -> usize {
        let pass = |_: &usize| matches!(accounts.spend(&quota, now), Some(Verdict::Pass { .. }));
        (0..10_000).take_while(pass).count()
    }

    #[test]
    fn a_new_quota_begins_as_far_used_up_as_the_one_before() {
        let (small, large) = (Quota::per_minute(10), Quota::per_second(1_000));
        let accounts = Accounts::new(small);
        for _ in 0..5 {
            assert!(accounts.spend(&small, START).is_some());
        }
        assert_eq!(passed(&accounts, large, START), 500);
        // What is used of the large one is not given back by the small one, nor the other way round.
        assert_eq!(passed(&accounts, small, START), 5);
        assert_eq!(passed(&accounts, large, START), 0);
        let later = START.after(Duration::from_secs(1));
        assert_eq!(passed(&accounts, large, later), 1_000);
        assert_eq!(passed(&accounts, small, later), 0);
    }

    #[test]
    fn ever_new_quotas_give_nothing_back() {
        let accounts = Accounts::new(Quota::per_minute(100));
        assert_eq!(passed(&accounts, Quota::per_minute(100), START), 100);
        for n in 1..1_000 {
            assert_eq!(passed(&accounts, Quota::per_minute(100 + n), START), 0);
            assert_eq!(passed(&accounts, Quota::per_hour(n), START), 0);
        }
        assert!(accounts.lock().others.len() < QUOTAS);
    }

    #[test]
    fn a_quota_that_was_forgotten_comes_back_owing_no_less() {
        let daily = |n: u32| Quota::per(100 + n, Duration::from_secs(24 * 3_600));
        let (minutely, quick) = (Quota::per_minute(60), Quota::per_second(5));
        let accounts = Accounts::new(daily(0));
        for n in 0..3 {
            assert!(accounts.spend(&daily(n), START).is_some());
        }
        assert!(passed(&accounts, minutely, START) > 50);
        // Makes the minutely one be forgotten, which owes for a minute while the others owe for many.
        assert_eq!(passed(&accounts, quick, START), 0);
        assert!(accounts.lock().all().all(|held| held.quota != minutely));
        let later = START.after(Duration::from_secs(2));
        assert_eq!(passed(&accounts, minutely, later), 2);
    }

    #[test]
    fn accounts_that_were_given_up_spend_nothing() {
        let quota = Quota::per_minute(2);
        let accounts = Accounts::new(quota);
        assert!(accounts.spend(&quota, START).is_some());
        assert!(!accounts.give_up(START, true), "something is owed");
        assert!(accounts.spend(&quota, START).is_some());
        let settled = START.after(Duration::from_secs(60));
        assert!(!accounts.give_up(Tick(settled.0 - 1), true));
        assert!(accounts.give_up(settled, true));
        assert_eq!(accounts.spend(&quota, settled), None);
    }

    #[test]
    fn the_wait_of_a_refusal_is_exact() {
        let quota = Quota::per_second(3).burst(2);
        let accounts = Accounts::new(quota);
        assert_eq!(passed(&accounts, quota, START), 2);
        let Some(Verdict::Refuse { wait }) = accounts.spend(&quota, START) else {
            panic!("passed")
        };
        assert_eq!(wait, Duration::from_nanos(333_333_334));
        let then = START.after(wait);
        assert_eq!(passed(&accounts, quota, Tick(then.0 - 1)), 0);
        assert_eq!(passed(&accounts, quota, then), 1);
    }
}
