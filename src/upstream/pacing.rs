//! The pace of forced verifications: those of known keys that a route with `max_age` asks for although the cached result is
//! good enough for every other route.
//!
//! Each organization has a token bucket, so that one organization's requests to such routes do not use up what the issuer
//! grants to all.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::bucket::Bucket;
use crate::clock::Tick;
use crate::context::OrgCode;

/// Forced verifications of one organization per second, and at once.
pub(super) const PER_SECOND: f64 = 25.0;
const BURST: f64 = 25.0;
/// Beyond so many organizations, those with a full bucket are forgotten.
const SWEEP_AT: usize = 4_096;

#[derive(Debug, Default)]
pub(super) struct ForcedPace(Mutex<HashMap<Option<OrgCode>, Bucket>>);

impl ForcedPace {
    /// Takes the organization's next turn and returns how long it is away. `Err` if it is further away than `longest`.
    pub(super) fn take(
        &self,
        org: Option<&OrgCode>,
        longest: Duration,
        now: Tick,
    ) -> Result<Duration, Duration> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= SWEEP_AT {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        let bucket = buckets
            .entry(org.cloned())
            .or_insert_with(|| Bucket::new(BURST, PER_SECOND, now));
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

    const LONGEST: Duration = Duration::from_secs(2);

    fn at(millis: u64) -> Tick {
        Tick::ZERO.after(Duration::from_millis(millis))
    }

    #[test]
    fn an_organization_waits_for_its_own_turn_only() {
        let pace = ForcedPace::default();
        let one = OrgCode::from_static("org_1");
        let take = |org: &OrgCode, now| pace.take(Some(org), LONGEST, now);
        for _ in 0..25 {
            assert_eq!(take(&one, at(0)), Ok(Duration::ZERO));
        }
        for n in 1..=50 {
            assert_eq!(take(&one, at(0)), Ok(Duration::from_millis(40 * n)));
        }
        assert_eq!(take(&one, at(0)), Err(Duration::from_millis(2_040)));
        assert_eq!(
            take(&OrgCode::from_static("org_2"), at(0)),
            Ok(Duration::ZERO)
        );
        assert_eq!(pace.take(None, LONGEST, at(0)), Ok(Duration::ZERO));
        assert_eq!(take(&one, at(40)), Ok(LONGEST));
    }

    #[test]
    fn organizations_at_rest_are_forgotten() {
        let pace = ForcedPace::default();
        for n in 0..SWEEP_AT {
            let org = OrgCode::new(format!("org_{n}")).unwrap();
            assert!(pace.take(Some(&org), LONGEST, at(0)).is_ok());
        }
        assert!(pace.take(None, LONGEST, at(1_000)).is_ok());
        assert_eq!(pace.0.lock().unwrap().len(), 1);
    }
}
