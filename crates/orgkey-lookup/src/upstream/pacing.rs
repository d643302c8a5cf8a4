//! The pace of forced verifications: those of known keys for a route with `max_age`, although the cached result is
//! fresh for other routes.
//!
//! Each organization has a token bucket, so that the requests of one organization do not use up the issuer's rate limit. Under
//! a limit of calls, an organization has at most a quarter of it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::bucket::Bucket;
use crate::clock::Tick;

/// Forced verifications of one organization per second. As many are made at once.
const PER_SECOND: f64 = 25.0;
/// The share of one organization in a limit of calls.
const SHARE: f64 = 0.25;
/// Beyond so many organizations, those with a full bucket are removed.
const SWEEP_AT: usize = 4_096;

#[derive(Default)]
pub(super) struct ForcedPace(Mutex<HashMap<Option<Box<str>>, Bucket>>);

impl ForcedPace {
    /// Takes the organization's next turn and returns how long it is away. `Err` if it is further away than `longest`. `limit`
    /// is that of all calls per second.
    pub(super) fn take(
        &self,
        organization: Option<&str>,
        limit: Option<f64>,
        longest: Duration,
        now: Tick,
    ) -> Result<Duration, Duration> {
        let rate = limit.map_or(PER_SECOND, |limit| PER_SECOND.min(limit * SHARE));
        let burst = rate.max(1.0);
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= SWEEP_AT {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        let bucket = buckets
            .entry(organization.map(Into::into))
            .or_insert_with(|| Bucket::new(burst, rate, now));
        bucket.set_rate(burst, rate, now);
        let wait = bucket.wait(now);
        if wait > longest {
            return Err(wait);
        }
        bucket.spend(now);
        Ok(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_DELAY: Duration = Duration::from_secs(2);

    fn at(millis: u64) -> Tick {
        Tick::ZERO.after(Duration::from_millis(millis))
    }

    #[test]
    fn an_organization_waits_for_its_own_turn_only() {
        let pace = ForcedPace::default();
        let one = "org_1";
        let take = |org, now| pace.take(Some(org), None, MAX_DELAY, now);
        for _ in 0..25 {
            assert_eq!(take(one, at(0)), Ok(Duration::ZERO));
        }
        for n in 1..=50 {
            assert_eq!(take(one, at(0)), Ok(Duration::from_millis(40 * n)));
        }
        assert_eq!(take(one, at(0)), Err(Duration::from_millis(2_040)));
        assert_eq!(take("org_2", at(0)), Ok(Duration::ZERO));
        assert_eq!(pace.take(None, None, MAX_DELAY, at(0)), Ok(Duration::ZERO));
        assert_eq!(take(one, at(40)), Ok(MAX_DELAY));
    }

    #[test]
    fn an_organization_has_a_quarter_of_the_limit() {
        let pace = ForcedPace::default();
        let mut limit = Some(20.0);
        let take = |limit, now| pace.take(Some("org_1"), limit, Duration::from_secs(5), now);
        for _ in 0..5 {
            assert_eq!(take(limit, at(0)), Ok(Duration::ZERO));
        }
        assert_eq!(take(limit, at(0)), Ok(Duration::from_millis(200)));
        limit = Some(1.0);
        assert_eq!(take(limit, at(200)), Ok(Duration::from_secs(4)));
        limit = Some(1_000.0);
        assert_eq!(take(limit, at(200)), Ok(Duration::from_millis(80)));
    }

    #[test]
    fn organizations_at_rest_are_forgotten() {
        let pace = ForcedPace::default();
        for n in 0..SWEEP_AT {
            let org = &format!("org_{n}");
            assert!(pace.take(Some(org), None, MAX_DELAY, at(0)).is_ok());
        }
        assert!(pace.take(None, None, MAX_DELAY, at(1_000)).is_ok());
        assert_eq!(pace.0.lock().unwrap().len(), 1);
    }
}
