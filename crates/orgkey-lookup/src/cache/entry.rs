//! The cached result of one valid key, and until when it may be served.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use super::recheck::CacheRef;
use super::sync;
use crate::clock::{Tick, nanos};
use crate::config::Lifetimes;
use crate::source::{Source, Value};

/// The cached result of a valid key. Whether it permits a request is decided on every request.
pub struct Entry<S: Source> {
    /// The result.
    pub value: S::Value,
    /// The key that it is cached by.
    pub key: S::Key,
    /// When the call that returned the result was sent. Ages count from here.
    pub sent_at: Tick,
    /// The version of the blocks and invalidations when the lookup began. Invalidations with a higher version apply.
    pub(super) began: u64,
    /// The end of this entry's soft TTL, or `hard_until` if that is earlier.
    fresh_until: Tick,
    /// The end of the hard TTL, or the key's expiry if that is earlier.
    hard_until: Tick,
    /// The version of the blocks and invalidations at which the entry was last found clear.
    pub(super) cleared: sync::AtomicU64,
    /// The cache that it belongs to. An entry of the test kit has none.
    pub(super) cache: Option<Arc<CacheRef<S>>>,
    /// What is kept of the query.
    pub mark: S::Mark,
    /// No background refresh begins before this time, in milliseconds after `sent_at`. The maximum is 12 days, and results
    /// live for hours. Combined with [`FAILED`] or [`DOUBTED`].
    ask_after: AtomicU32,
}

/// Marks that a lookup failed.
const FAILED: u32 = 1 << 31;
/// Marks that the next request should wait for a lookup.
const DOUBTED: u32 = 1 << 30;
/// The bits of the milliseconds.
const AGE: u32 = DOUBTED - 1;

/// How old a result is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Within the soft TTL.
    Fresh,
    /// Up to twice the soft TTL: served while one refresh is in flight.
    Stale,
    /// Served only if the verification fails.
    Overdue,
    /// The key has expired, by the issuer's `expires_at`.
    Expired,
    /// Past the hard TTL.
    Gone,
}

impl<S: Source> Entry<S> {
    #[expect(clippy::too_many_arguments, reason = "the fields of an entry")]
    pub(super) fn new(
        mut value: S::Value,
        key: S::Key,
        mark: S::Mark,
        sent_at: Tick,
        began: u64,
        lifetimes: Lifetimes,
        now: Tick,
        cache: Option<Arc<CacheRef<S>>>,
    ) -> Self {
        let expires = value.expires_at().map(|at| {
            // The wall clock is read once, so its later adjustments have no effect.
            now.after(at.duration_since(SystemTime::now()).unwrap_or_default())
        });
        let hard_until = sent_at.after(lifetimes.hard);
        let end = expires.map_or(hard_until, |at| at.min(hard_until));
        if expires.is_some_and(|at| at > hard_until) {
            // `freshness` takes an expiry for `hard_until`.
            value.clear_expiry();
        }
        let soft_until = sent_at.after(shorten(lifetimes.soft));
        Self {
            value,
            key,
            sent_at,
            began,
            fresh_until: soft_until.min(end),
            hard_until: end,
            cleared: sync::AtomicU64::new(0),
            cache,
            mark,
            ask_after: AtomicU32::new(0),
        }
    }

    /// Creates an entry that belongs to no cache, of a call sent at [`Tick::ZERO`]. For tests of what uses entries.
    pub fn detached(value: S::Value, key: S::Key, mark: S::Mark, lifetimes: Lifetimes) -> Self {
        Self::new(value, key, mark, Tick::ZERO, 0, lifetimes, Tick::ZERO, None)
    }

    /// Returns the end of the soft TTL.
    #[inline]
    pub fn fresh_until(&self) -> Tick {
        self.fresh_until
    }

    pub(super) fn hard_until(&self) -> Tick {
        self.hard_until
    }

    pub(super) fn freshness(&self, now: Tick) -> Freshness {
        if now < self.fresh_until {
            return Freshness::Fresh;
        }
        if now >= self.hard_until {
            // An expiry that is kept is `hard_until`.
            return if self.value.expires_at().is_some() {
                Freshness::Expired
            } else {
                Freshness::Gone
            };
        }
        // Before `hard_until`, so `fresh_until` is the end of the soft TTL.
        if now.since(self.fresh_until) < self.fresh_until.since(self.sent_at) {
            Freshness::Stale
        } else {
            Freshness::Overdue
        }
    }

    /// Returns whether this caller should begin a background refresh. No other caller should before `until`.
    pub(super) fn claim_refresh(&self, now: Tick, until: Tick) -> bool {
        let ask_after = self.ask_after.load(Ordering::Relaxed);
        self.age_at(now) >= ask_after & AGE
            && self
                .ask_after
                .compare_exchange(
                    ask_after,
                    self.age_at(until),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
    }

    /// Notes that a lookup failed, and when the next one may begin.
    pub(super) fn retry_after_failure(&self, at: Tick) {
        let ask_after = self.age_at(at) | FAILED;
        self.ask_after.store(ask_after, Ordering::Relaxed);
    }

    /// Returns whether a lookup failed so lately that no other one begins.
    pub(super) fn has_failed_lately(&self, now: Tick) -> bool {
        let ask_after = self.ask_after.load(Ordering::Relaxed);
        ask_after & FAILED != 0 && self.age_at(now) < ask_after & AGE
    }

    /// Returns whether the last lookup failed or left the key in doubt.
    pub(super) fn has_failed(&self) -> bool {
        self.ask_after.load(Ordering::Relaxed) & (FAILED | DOUBTED) != 0
    }

    /// Notes that the key may be invalid, until a lookup ends.
    pub(super) fn doubt(&self) {
        self.ask_after.store(DOUBTED, Ordering::Relaxed);
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.ask_after.load(Ordering::Relaxed) & DOUBTED != 0
    }

    /// Returns whether requests are served from the entry while it is refreshed.
    pub(super) fn is_served_while_refreshed(&self, now: Tick) -> bool {
        matches!(self.freshness(now), Freshness::Fresh | Freshness::Stale) && !self.is_doubted()
    }

    /// Returns the age at this time, in milliseconds.
    fn age_at(&self, at: Tick) -> u32 {
        let age = u32::try_from(at.since(self.sent_at).as_millis());
        age.map_or(AGE, |age| age.min(AGE))
    }
}

/// Returns 85 to 100 % of a time, so that entries of the same second are refreshed at different times.
pub(super) fn shorten(time: Duration) -> Duration {
    let time = nanos(time);
    Duration::from_nanos(time - fastrand::u64(0..=time / 100 * 15))
}

impl<S: Source> fmt::Debug for Entry<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("value", &self.value)
            .field("sent_at", &self.sent_at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::{Facts, LIFETIMES, TestSource, test_key};

    fn entry(facts: Facts) -> Entry<TestSource> {
        let key = test_key("12345678");
        let sent = Tick::ZERO.after(Duration::from_secs(1_000));
        Entry::new(facts, key, (), sent, 1, LIFETIMES, sent, None)
    }

    #[test]
    fn bounds_hold_to_the_nanosecond() {
        for _ in 0..1_000 {
            let entry = entry(Facts::default());
            let at = |nanos: u64| entry.freshness(Tick(entry.sent_at.0 + nanos));
            let soft = entry.fresh_until.0 - entry.sent_at.0;
            assert!((51_000_000_000..=60_000_000_000).contains(&soft));
            assert_eq!(at(soft - 1), Freshness::Fresh);
            assert_eq!(at(soft), Freshness::Stale);
            assert_eq!(at(2 * soft - 1), Freshness::Stale);
            assert_eq!(at(2 * soft), Freshness::Overdue);
            assert_eq!(at(900_000_000_000 - 1), Freshness::Overdue);
            assert_eq!(at(900_000_000_000), Freshness::Gone);
        }
    }

    #[test]
    fn soft_ttls_are_spread_over_15_percent() {
        let draws: Vec<u64> = (0..1_000).map(|_| nanos(shorten(LIFETIMES.soft))).collect();
        for second in 51..60 {
            let within = second * 1_000_000_000..(second + 1) * 1_000_000_000;
            assert!(
                draws.iter().any(|end| within.contains(end)),
                "none in second {second}"
            );
        }
    }

    #[test]
    fn an_earlier_clock_reading_is_fresh() {
        assert_eq!(
            entry(Facts::default()).freshness(Tick::ZERO),
            Freshness::Fresh
        );
    }

    #[test]
    fn an_expiry_ends_an_entry() {
        let soon = entry(Facts::expiring(SystemTime::now() + Duration::from_secs(10)));
        assert_eq!(
            soon.freshness(soon.sent_at.after(Duration::from_secs(9))),
            Freshness::Fresh
        );
        assert_eq!(
            soon.freshness(soon.sent_at.after(Duration::from_secs(10))),
            Freshness::Expired
        );
        let past = entry(Facts::expiring(SystemTime::UNIX_EPOCH));
        assert_eq!(past.freshness(past.sent_at), Freshness::Expired);
    }

    #[test]
    fn one_caller_claims_a_refresh() {
        let entry = entry(Facts::default());
        let at = |milliseconds| entry.sent_at.after(Duration::from_millis(milliseconds));
        assert!(entry.claim_refresh(at(5), at(10)));
        assert!(!entry.claim_refresh(at(5), at(10)));
        assert!(!entry.claim_refresh(at(9), at(20)));
        assert!(entry.claim_refresh(at(10), at(20)));
    }
}
