//! The usage of one organization or key, by the generic cell rate algorithm (GCRA).
//!
//! The state under one quota is one number: the moment at which the quota is full again. A request moves it by the quota's
//! period, and is rejected if it would then be further ahead than a full burst takes to refill.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::quota::Quota;
use crate::clock::Tick;

/// The maximum number of quotas per account.
const QUOTAS: usize = 4;

/// The decision of a rate limit about one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The request passes. `remaining` more would pass now; if none would, the next one passes after `next`.
    Allow { remaining: u32, next: Duration },
    /// The request is rejected. One would pass after `wait`.
    Reject { wait: Duration },
}

impl Decision {
    /// The decision under a quota that permits no request. Waiting does not help; the wait is the window.
    pub(super) fn reject_all(quota: &Quota) -> Self {
        Self::Reject {
            wait: quota.window(),
        }
    }
}

/// The usage of one quota.
#[derive(Clone, Copy, Debug)]
struct Usage {
    quota: Quota,
    full_at: Tick,
}

impl Usage {
    /// The time until the quota is full, in nanoseconds.
    fn refill(&self, now: Tick) -> u64 {
        self.full_at.0.saturating_sub(now.0)
    }

    fn request(&mut self, now: Tick) -> Decision {
        let (period, burst) = (self.quota.period(), self.quota.refill());
        if burst == 0 {
            return Decision::reject_all(&self.quota);
        }
        // At most 2 × 2^62: see `MAX_REFILL`.
        let refill = self.refill(now) + period;
        if refill > burst {
            return Decision::Reject {
                wait: Duration::from_nanos(refill - burst),
            };
        }
        self.full_at = Tick(now.0.saturating_add(refill));
        let remaining = (burst - refill) / period;
        Decision::Allow {
            // At most the burst, which is a `u32`.
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            next: Duration::from_nanos((refill + period).saturating_sub(burst)),
        }
    }

    /// The refill time under another quota with the same used percentage, rounded up.
    fn convert(&self, other: &Quota, now: Tick) -> u64 {
        let refill = self.refill(now);
        if refill == 0 {
            return 0;
        }
        // A quota with usage permits requests, so its burst is not zero.
        let (to, from) = (other.refill(), self.quota.refill());
        let part = (u128::from(refill) * u128::from(to)).div_ceil(u128::from(from));
        u64::try_from(part).map_or(to, |part| part.min(to))
    }
}

/// The account of one organization or key.
#[derive(Debug)]
pub(super) struct Account(Mutex<State>);

#[derive(Debug)]
struct State {
    /// One per quota, at most [`QUOTAS`].
    usage: Vec<Usage>,
    /// From then on every quota that was dropped from `usage` would be full.
    dropped_full_at: Tick,
    /// The account is no longer in the table, so a request must not use it.
    is_removed: bool,
}

impl Account {
    /// An account without usage.
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            usage: Vec::with_capacity(1),
            dropped_full_at: Tick::ZERO,
            is_removed: false,
        }))
    }

    /// Decides about a request and counts it if it passes. `None` if the account was removed.
    pub(super) fn request(&self, quota: &Quota, now: Tick) -> Option<Decision> {
        let mut state = self.lock();
        (!state.is_removed).then(|| state.usage_of(quota, now).request(now))
    }

    /// The time until all quotas are full.
    pub(super) fn refill(&self, now: Tick) -> Duration {
        Duration::from_nanos(self.lock().refill(now))
    }

    /// Marks the account as removed if it has no usage. Returns whether it is removed.
    pub(super) fn remove_if_full(&self, now: Tick) -> bool {
        let mut state = self.lock();
        state.is_removed |= state.refill(now) == 0;
        state.is_removed
    }

    /// Marks the account as removed.
    pub(super) fn remove(&self) {
        self.lock().is_removed = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves at most one number changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refill(&self, now: Tick) -> u64 {
        let refills = self.usage.iter().map(|usage| usage.refill(now));
        refills.max().unwrap_or_default()
    }

    fn usage_of(&mut self, quota: &Quota, now: Tick) -> &mut Usage {
        let at = match self.usage.iter().position(|usage| usage.quota == *quota) {
            Some(at) => at,
            None => self.add(*quota, now),
        };
        &mut self.usage[at]
    }

    /// Adds a quota with the highest used percentage of the others, and at least the usage it had if it was dropped before.
    #[cold]
    fn add(&mut self, quota: Quota, now: Tick) -> usize {
        let dropped = self.dropped_full_at.0.saturating_sub(now.0);
        let converted = self.usage.iter().map(|usage| usage.convert(&quota, now));
        let refill = converted.fold(dropped.min(quota.refill()), u64::max);
        let usage = Usage {
            quota,
            full_at: Tick(now.0.saturating_add(refill)),
        };
        if self.usage.len() < QUOTAS {
            self.usage.push(usage);
            return self.usage.len() - 1;
        }
        let by_refill = self.usage.iter().enumerate();
        let at = by_refill
            .min_by_key(|(_, usage)| usage.full_at)
            .map_or(0, |(at, _)| at);
        self.dropped_full_at = self.dropped_full_at.max(self.usage[at].full_at);
        self.usage[at] = usage;
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Tick = Tick(1_000_000_000_000);

    fn allowed(account: &Account, quota: Quota, now: Tick) -> usize {
        let allows =
            |_: &usize| matches!(account.request(&quota, now), Some(Decision::Allow { .. }));
        (0..10_000).take_while(allows).count()
    }

    #[test]
    fn new_quota_keeps_the_used_percentage() {
        let (small, large) = (Quota::per_minute(10), Quota::per_second(1_000));
        let account = Account::new();
        for _ in 0..5 {
            assert!(account.request(&small, START).is_some());
        }
        assert_eq!(allowed(&account, large, START), 500);
        assert_eq!(allowed(&account, small, START), 5);
        assert_eq!(allowed(&account, large, START), 0);
        let later = START.after(Duration::from_secs(1));
        assert_eq!(allowed(&account, large, later), 1_000);
        assert_eq!(allowed(&account, small, later), 0);
    }

    #[test]
    fn many_quotas_yield_no_fresh_burst() {
        let account = Account::new();
        assert_eq!(allowed(&account, Quota::per_minute(100), START), 100);
        for n in 1..1_000 {
            assert_eq!(allowed(&account, Quota::per_minute(100 + n), START), 0);
            assert_eq!(allowed(&account, Quota::per_hour(n), START), 0);
        }
        assert_eq!(account.lock().usage.len(), QUOTAS);
    }

    #[test]
    fn dropped_quota_returns_with_its_usage() {
        let daily = |n: u32| Quota::per(100 + n, Duration::from_secs(24 * 3_600));
        let (per_minute, per_second) = (Quota::per_minute(60), Quota::per_second(5));
        let account = Account::new();
        for n in 0..3 {
            assert!(account.request(&daily(n), START).is_some());
        }
        assert!(allowed(&account, per_minute, START) > 50);
        // Drops `per_minute`, which refills in a minute while the others take longer.
        assert_eq!(allowed(&account, per_second, START), 0);
        let has = |quota| {
            account
                .lock()
                .usage
                .iter()
                .any(|usage| usage.quota == quota)
        };
        assert!(!has(per_minute));
        let later = START.after(Duration::from_secs(2));
        assert_eq!(allowed(&account, per_minute, later), 2);
    }

    #[test]
    fn removed_account_decides_nothing() {
        let quota = Quota::per_minute(2);
        let account = Account::new();
        assert!(account.request(&quota, START).is_some());
        assert!(!account.remove_if_full(START));
        assert!(account.request(&quota, START).is_some());
        let full = START.after(Duration::from_secs(60));
        assert!(!account.remove_if_full(Tick(full.0 - 1)));
        assert!(account.remove_if_full(full));
        assert_eq!(account.request(&quota, full), None);
    }

    #[test]
    fn wait_of_a_rejection_is_exact() {
        let quota = Quota::per_second(3).burst(2);
        let account = Account::new();
        assert_eq!(allowed(&account, quota, START), 2);
        let Some(Decision::Reject { wait }) = account.request(&quota, START) else {
            panic!("allowed")
        };
        assert_eq!(wait, Duration::from_nanos(333_333_334));
        let then = START.after(wait);
        assert_eq!(allowed(&account, quota, Tick(then.0 - 1)), 0);
        assert_eq!(allowed(&account, quota, then), 1);
    }
}
