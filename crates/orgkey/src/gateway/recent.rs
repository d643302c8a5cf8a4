//! The outcomes of the last hour by minute, for the status page.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use foldhash::fast::RandomState;
use tower_orgkey::OrgCode;

/// The minutes that are kept, the current one included.
pub(super) const MINUTES: usize = 60;

/// The most organizations that are counted in a minute. Later ones of the minute are not: the busy ones come early.
const MAX_ORGANIZATIONS: usize = 256;

/// Counts outcomes by minute. Only [`Recent::advance`] reads the clock.
pub(super) struct Recent {
    start: Instant,
    /// The number of the current minute.
    now: AtomicU64,
    minutes: Mutex<VecDeque<Minute>>,
}

/// The counts of a minute.
#[derive(Default)]
struct Minute {
    /// From the start of the gateway.
    number: u64,
    outcomes: BTreeMap<&'static str, u64>,
    organizations: HashMap<OrgCode, u64, RandomState>,
}

/// The counts of the last hour.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LastHour {
    /// By outcome, from the oldest minute to the current one.
    pub(super) outcomes: BTreeMap<&'static str, [u64; MINUTES]>,
    /// The allowed requests of each organization, from the most to the least.
    pub(super) organizations: Vec<(OrgCode, u64)>,
}

impl Recent {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            now: AtomicU64::new(0),
            minutes: Mutex::default(),
        }
    }

    /// Counts an outcome, and the organization of an allowed request.
    pub(super) fn record(&self, outcome: &'static str, organization: Option<&OrgCode>) {
        self.record_at(self.now.load(Ordering::Relaxed), outcome, organization);
    }

    pub(super) fn last_hour(&self) -> LastHour {
        self.advance();
        self.last_hour_at(self.now.load(Ordering::Relaxed))
    }

    /// Begins the next minute, if it is time.
    pub(super) fn advance(&self) {
        let minute = self.start.elapsed().as_secs() / 60;
        self.now.fetch_max(minute, Ordering::Relaxed);
    }

    fn minutes(&self) -> MutexGuard<'_, VecDeque<Minute>> {
        // A count is complete after each statement.
        self.minutes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record_at(&self, now: u64, outcome: &'static str, organization: Option<&OrgCode>) {
        let mut minutes = self.minutes();
        // Another thread may have begun the next minute.
        if minutes.back().is_none_or(|last| last.number < now) {
            if minutes.len() == MINUTES {
                minutes.pop_front();
            }
            minutes.push_back(Minute {
                number: now,
                ..Minute::default()
            });
        }
        let Some(minute) = minutes.back_mut() else {
            return;
        };
        *minute.outcomes.entry(outcome).or_default() += 1;
        if let Some(organization) = organization {
            if let Some(count) = minute.organizations.get_mut(organization) {
                *count += 1;
            } else if minute.organizations.len() < MAX_ORGANIZATIONS {
                minute.organizations.insert(organization.clone(), 1);
            }
        }
    }

    fn last_hour_at(&self, now: u64) -> LastHour {
        let mut hour = LastHour::default();
        let mut organizations: HashMap<OrgCode, u64> = HashMap::new();
        for minute in &*self.minutes() {
            let age = usize::try_from(now.saturating_sub(minute.number)).unwrap_or(usize::MAX);
            let Some(index) = (MINUTES - 1).checked_sub(age) else {
                continue;
            };
            for (outcome, count) in &minute.outcomes {
                hour.outcomes.entry(outcome).or_insert([0; MINUTES])[index] += count;
            }
            for (organization, count) in &minute.organizations {
                *organizations.entry(organization.clone()).or_default() += count;
            }
        }
        hour.organizations = organizations.into_iter().collect();
        hour.organizations.sort_by(|(a, of_a), (b, of_b)| {
            of_b.cmp(of_a).then_with(|| a.as_str().cmp(b.as_str()))
        });
        hour
    }
}

impl fmt::Debug for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recent").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn minutes_older_than_an_hour_are_dropped() {
        let recent = Recent::new();
        for now in [0, 1, 1, 5, 64] {
            recent.record_at(now, "allowed", None);
        }
        let counts = recent.last_hour_at(64).outcomes["allowed"];
        let counted: Vec<_> = (0..MINUTES).filter(|at| counts[*at] > 0).collect();
        assert_eq!((counted, counts[0]), (vec![0, MINUTES - 1], 1));
        assert_eq!(recent.last_hour_at(1_000), LastHour::default());
        for now in 100..300 {
            recent.record_at(now, "allowed", None);
        }
        assert_eq!(recent.minutes().len(), MINUTES);
    }

    #[test]
    fn minutes_begin_when_the_clock_is_read() {
        let start = Instant::now().checked_sub(Duration::from_secs(125));
        let recent = Recent {
            start: start.unwrap(),
            ..Recent::new()
        };
        recent.record("allowed", None);
        recent.advance();
        recent.record("allowed", None);
        let counts = recent.last_hour().outcomes["allowed"];
        assert_eq!((counts[MINUTES - 3], counts[MINUTES - 1]), (1, 1));
    }

    #[test]
    fn organizations_of_a_minute_are_bounded() {
        let recent = Recent::new();
        let busy = OrgCode::from_static("busy");
        recent.record_at(0, "allowed", Some(&busy));
        for number in 0..1_000 {
            let organization = OrgCode::new(format!("org_{number}")).unwrap();
            recent.record_at(0, "allowed", Some(&organization));
        }
        for _ in 0..1_000 {
            recent.record_at(1, "allowed", Some(&busy));
        }
        let hour = recent.last_hour_at(1);
        assert_eq!(hour.organizations.len(), MAX_ORGANIZATIONS);
        assert_eq!(hour.organizations[0], (busy, 1_001));
        assert_eq!(hour.outcomes["allowed"].iter().sum::<u64>(), 2_001);
    }
}
