//! The settings of a layer and their validation.

use std::borrow::Cow;
use std::time::Duration;

use crate::cache::Lifetimes;

/// An invalid setting, returned when a layer or a verifier is built.
///
/// The error names the setting, never its value, which may be a secret. It does not occur while requests are handled.
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
    pub(crate) fn new(field: &'static str, problem: impl Into<Cow<'static, str>>) -> Self {
        Self {
            field,
            problem: problem.into(),
        }
    }

    /// Returns the name of the builder method that set the invalid value.
    pub fn field(&self) -> &'static str {
        self.field
    }
}

/// The settings of a layer, checked against each other.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) lifetimes: Lifetimes,
    pub(crate) capacity: u64,
    /// The rate that the issuer permits, if configured.
    pub(crate) max_calls_per_second: Option<u32>,
    pub(crate) attempt_deadline: Duration,
    pub(crate) caller_deadline: Duration,
    pub(crate) flight_deadline: Duration,
    /// The `Retry-After` of a 503 for which no other wait is known.
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

/// The upper bound of the hard TTL.
const MAX_HARD_TTL: Duration = Duration::from_secs(12 * 60 * 60);

impl Settings {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let Lifetimes { soft, hard } = self.lifetimes;
        let invalid = |field, problem: &'static str| Err(ConfigError::new(field, problem));
        if soft < Duration::from_secs(1) {
            return invalid("soft_ttl", "must be at least 1 s");
        }
        if hard > MAX_HARD_TTL {
            return invalid("hard_ttl", "must be at most 12 h");
        }
        if hard < soft * 2 {
            return invalid("hard_ttl", "must be at least twice the soft TTL");
        }
        if self.capacity < 10 {
            return invalid("capacity", "must be at least 10");
        }
        if self.max_calls_per_second == Some(0) {
            return invalid("max_calls_per_second", "must be at least 1");
        }
        if self.attempt_deadline.is_zero() {
            return invalid("attempt_deadline", "must not be zero");
        }
        if self.caller_deadline < self.attempt_deadline {
            return invalid(
                "caller_deadline",
                "must be at least the deadline of an attempt",
            );
        }
        if self.flight_deadline < self.caller_deadline {
            return invalid(
                "flight_deadline",
                "must be at least the deadline of a caller",
            );
        }
        if self.flight_deadline > Duration::from_secs(60) {
            return invalid("flight_deadline", "must be at most 60 s");
        }
        Ok(())
    }
}
