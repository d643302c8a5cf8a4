//! The cached result of one valid key, and until when it may be served.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use super::recheck::CacheRef;
use super::sync;
use crate::clock::{Tick, nanos};
use crate::key::{KeyDigest, KeyTail};
use crate::verify::Facts;

/// How long a result may be served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetimes {
    /// The longest time that a result is fresh. Each entry's is shortened at random by up to 15 %.
    pub(crate) soft: Duration,
    /// The longest time that a result is served at all.
    pub(crate) hard: Duration,
}

/// The cached result of a valid key. Whether it permits a request is decided on every request.
pub(crate) struct Entry {
    pub(crate) facts: Facts,
    pub(crate) digest: KeyDigest,
    /// When the call that returned the result was sent. Ages count from here.
    pub(crate) sent_at: Tick,
    /// The version of the blocks and invalidations when the lookup began. Invalidations with a higher version apply.
    pub(crate) began: u64,
    /// The end of this entry's soft TTL, or `hard_until` if that is earlier.
    fresh_until: Tick,
    /// The end of the hard TTL, or the key's expiry if that is earlier.
    hard_until: Tick,
    /// The version of the blocks and invalidations at which the entry was last found clear.
    pub(super) cleared: sync::AtomicU64,
    /// The cache that it belongs to. An entry of the test kit has none.
    pub(super) cache: Option<Arc<CacheRef>>,
    /// Distinguishes a rotated secret from its successor. Kept only for reconciliation.
    #[cfg_attr(not(feature = "kinde"), allow(dead_code))]
    pub(super) tail: Option<KeyTail>,
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
pub(crate) enum Freshness {
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

impl Entry {
    pub(crate) fn new(
        mut facts: Facts,
        digest: KeyDigest,
        sent_at: Tick,
        began: u64,
        lifetimes: Lifetimes,
        now: Tick,
        cache: Option<Arc<CacheRef>>,
    ) -> Self {
        let expires = facts.expires_at.as_deref().map(|at| {
            // The wall clock is read once, so its later adjustments have no effect.
            now.after(at.duration_since(SystemTime::now()).unwrap_or_default())
        });
        let hard_until = sent_at.after(lifetimes.hard);
        let end = expires.map_or(hard_until, |at| at.min(hard_until));
        if expires.is_some_and(|at| at > hard_until) {
            // `freshness` takes an expiry for `hard_until`.
            facts.expires_at = None;
        }
        let soft_until = Tick(sent_at.0.saturating_add(draw_soft(lifetimes.soft)));
        Self {
            facts,
            digest,
            sent_at,
            began,
            fresh_until: soft_until.min(end),
            hard_until: end,
            cleared: sync::AtomicU64::new(0),
            cache,
            tail: None,
            ask_after: AtomicU32::new(0),
        }
    }

    /// Returns whether both are about the same organization and user.
    pub(super) fn has_owner_of(&self, other: &Self) -> bool {
        self.facts.org == other.facts.org && self.facts.user() == other.facts.user()
    }

    /// Returns whether both are about the same organization and user, with the same scopes.
    pub(super) fn is_equivalent_to(&self, other: &Self) -> bool {
        self.has_owner_of(other) && self.facts.scopes == other.facts.scopes
    }

    pub(super) fn with_tail(mut self, tail: Option<KeyTail>) -> Self {
        self.tail = tail;
        self
    }

    pub(crate) fn fresh_until(&self) -> Tick {
        self.fresh_until
    }

    pub(crate) fn hard_until(&self) -> Tick {
        self.hard_until
    }

    pub(crate) fn freshness(&self, now: Tick) -> Freshness {
        if now < self.fresh_until {
            return Freshness::Fresh;
        }
        if now >= self.hard_until {
            // An expiry that is kept is `hard_until`.
            return if self.facts.expires_at.is_some() {
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

    /// Notes that the key may be invalid, until a lookup ends.
    pub(super) fn doubt(&self) {
        self.ask_after.store(DOUBTED, Ordering::Relaxed);
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.ask_after.load(Ordering::Relaxed) & DOUBTED != 0
    }

    /// Returns the age at this time, in milliseconds.
    fn age_at(&self, at: Tick) -> u32 {
        let age = u32::try_from(at.since(self.sent_at).as_millis());
        age.map_or(AGE, |age| age.min(AGE))
    }
}

/// Returns 85 to 100 % of the soft TTL, so that entries of the same second are refreshed at different times.
fn draw_soft(soft: Duration) -> u64 {
    let soft = nanos(soft);
    soft - fastrand::u64(0..=soft / 100 * 15)
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("facts", &self.facts)
            .field("sent_at", &self.sent_at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIMES: Lifetimes = Lifetimes {
        soft: Duration::from_secs(60),
        hard: Duration::from_secs(900),
    };

    fn entry(facts: Facts) -> Entry {
        let digest = crate::key::DigestSecret::draw().unwrap().digest("12345678");
        let sent = Tick::ZERO.after(Duration::from_secs(1_000));
        Entry::new(facts, digest, sent, 1, LIFETIMES, sent, None)
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
        let draws: Vec<u64> = (0..1_000).map(|_| draw_soft(LIFETIMES.soft)).collect();
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
        let soon = entry(Facts {
            expires_at: Some(Box::new(SystemTime::now() + Duration::from_secs(10))),
            ..Facts::default()
        });
        assert_eq!(
            soon.freshness(soon.sent_at.after(Duration::from_secs(9))),
            Freshness::Fresh
        );
        assert_eq!(
            soon.freshness(soon.sent_at.after(Duration::from_secs(10))),
            Freshness::Expired
        );
        let past = entry(Facts {
            expires_at: Some(Box::new(SystemTime::UNIX_EPOCH)),
            ..Facts::default()
        });
        assert_eq!(past.freshness(past.sent_at), Freshness::Expired);
    }

    /// The documentation states the memory per key. Allocators round up, so one more word may cost a hundred bytes.
    #[cfg(target_pointer_width = "64")]
    #[test]
    fn the_size_of_an_entry_is_unchanged() {
        assert_eq!((size_of::<Facts>(), size_of::<Entry>()), (64, 136));
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
