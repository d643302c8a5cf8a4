//! The settings of a layer, and what a builder answers when they contradict themselves.

use std::borrow::Cow;
use std::time::Duration;

use crate::cache::Lifetimes;

/// A setting that cannot be used, found when a layer or a verifier is built.
///
/// Configuration errors and request errors are two types: this one is only ever seen at start-up. It names the
/// setting and never repeats its value, which may be a secret.
///
/// ```
/// use std::time::Duration;
/// use tower_orgkey::{ApiKeyLayer, Verification, verifier_fn};
///
/// let verifier = verifier_fn(|_key| async { Ok(Verification::invalid()) });
/// let error = ApiKeyLayer::builder(verifier)
///     .soft_ttl(Duration::from_secs(600))
///     .hard_ttl(Duration::from_secs(60))
///     .build()
///     .unwrap_err();
/// assert_eq!(error.field(), "hard_ttl");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {problem}")]
pub struct ConfigError {
    field: &'static str,
    problem: Cow<'static, str>,
}

impl ConfigError {
    /// Creates an error for the setting `field`. For builders outside this crate.
    ///
    /// Neither text may hold the value of the setting, which may be a secret.
    pub fn new(field: &'static str, problem: impl Into<Cow<'static, str>>) -> Self {
        Self {
            field,
            problem: problem.into(),
        }
    }

    /// The name of the builder's method whose value is at fault.
    pub fn field(&self) -> &'static str {
        self.field
    }
}

/// The settings of a layer, checked against each other.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) lifetimes: Lifetimes,
    pub(crate) capacity: u64,
    /// What the operator knows the issuer can bear.
    pub(crate) max_calls_per_second: Option<u32>,
    pub(crate) attempt_deadline: Duration,
    pub(crate) caller_deadline: Duration,
    pub(crate) flight_deadline: Duration,
    /// What a 503 says when nothing better is known.
    pub(crate) retry_after: Duration,
}

impl Default for Settings {
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
            flight_deadline: Duration::from_secs(10),
            retry_after: Duration::from_secs(1),
        }
    }
}

/// No facts are served for longer, whatever is set: AWS S3 on Outposts keeps authentication for 12 hours.
const LONGEST_HARD_TTL: Duration = Duration::from_secs(12 * 60 * 60);

impl Settings {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let Lifetimes { soft, hard } = self.lifetimes;
        let wrong = |field, problem: &'static str| Err(ConfigError::new(field, problem));
        if soft < Duration::from_secs(1) {
            return wrong("soft_ttl", "must be at least 1 s");
        }
        if hard > LONGEST_HARD_TTL {
            return wrong("hard_ttl", "must be at most 12 h");
        }
        if hard < soft * 2 {
            return wrong("hard_ttl", "must be at least twice the soft TTL");
        }
        if self.capacity < 10 {
            return wrong("capacity", "must be at least 10");
        }
        if self.max_calls_per_second == Some(0) {
            return wrong("max_calls_per_second", "must be at least 1");
        }
        if self.attempt_deadline.is_zero() {
            return wrong("attempt_deadline", "must not be zero");
        }
        if self.caller_deadline < self.attempt_deadline {
            return wrong(
                "caller_deadline",
                "must be at least the deadline of an attempt",
            );
        }
        if self.flight_deadline < self.caller_deadline {
            return wrong(
                "flight_deadline",
                "must be at least the deadline of a caller",
            );
        }
        if self.flight_deadline > Duration::from_secs(60) {
            return wrong("flight_deadline", "must be at most 60 s");
        }
        Ok(())
    }
}
