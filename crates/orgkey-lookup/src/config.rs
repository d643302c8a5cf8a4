//! The configuration of a cache.

use std::time::Duration;

/// How long a result may be served.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// The longest time that a result is fresh. Each entry's is shortened at random by up to 15 %.
    pub soft: Duration,
    /// The longest time that a result is served at all.
    pub hard: Duration,
}

/// Capacity, lifetimes, deadlines and limits.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a result may be served.
    pub lifetimes: Lifetimes,
    /// The maximum number of cached values. Invalid keys have a separate cache of a tenth of this size.
    pub capacity: u64,
    /// The maximum number of calls to an upstream per second.
    pub max_calls_per_second: Option<u32>,
    /// The longest duration of one call.
    pub attempt_deadline: Duration,
    /// The longest time that a request waits for a lookup.
    pub caller_deadline: Duration,
    /// The longest duration of a lookup, with its retry and its waits.
    pub lookup_deadline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lifetimes: Lifetimes {
                soft: Duration::from_secs(60),
                hard: Duration::from_secs(15 * 60),
            },
            capacity: 100_000,
            max_calls_per_second: None,
            attempt_deadline: Duration::from_secs(1),
            caller_deadline: Duration::from_millis(2_500),
            lookup_deadline: Duration::from_secs(10),
        }
    }
}

/// A field of [`Config`] that contradicts its range or another field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {problem}")]
pub struct InvalidConfig {
    /// The name of the field.
    pub field: &'static str,
    /// What is wrong with its value.
    pub problem: &'static str,
}

/// The longest hard TTL: AWS S3 on Outposts caches authentication for 12 hours.
const LONGEST_HARD_TTL: Duration = Duration::from_secs(12 * 60 * 60);
/// The longest deadline of a lookup.
const LONGEST_LOOKUP: Duration = Duration::from_secs(60);

impl Config {
    /// Checks the fields against their ranges and each other.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let Lifetimes { soft, hard } = self.lifetimes;
        let (attempt, caller) = (self.attempt_deadline, self.caller_deadline);
        let lookup = self.lookup_deadline;
        #[rustfmt::skip]
        let checks = [
            (soft >= Duration::from_secs(1), "soft_ttl", "must be at least 1 s"),
            (hard <= LONGEST_HARD_TTL, "hard_ttl", "must be at most 12 h"),
            (hard >= soft.saturating_mul(2), "hard_ttl", "must be at least twice the soft TTL"),
            (self.capacity >= 10, "capacity", "must be at least 10"),
            (self.max_calls_per_second != Some(0), "max_calls_per_second", "must be at least 1"),
            (!attempt.is_zero(), "attempt_deadline", "must not be zero"),
            (caller >= attempt, "caller_deadline", "must be at least the deadline of an attempt"),
            (lookup >= caller, "lookup_deadline", "must be at least the deadline of a caller"),
            (lookup <= LONGEST_LOOKUP, "lookup_deadline", "must be at most 60 s"),
        ];
        match checks.into_iter().find(|&(holds, ..)| !holds) {
            Some((_, field, problem)) => Err(InvalidConfig { field, problem }),
            None => Ok(()),
        }
    }
}
