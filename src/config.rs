//! The settings of a layer and their validation.

use std::borrow::Cow;

use orgkey_lookup::config::InvalidConfig;

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

impl From<InvalidConfig> for ConfigError {
    fn from(invalid: InvalidConfig) -> Self {
        Self::new(invalid.field, invalid.problem)
    }
}

/// Defines the methods of a builder that set fields of its [`Config`](orgkey_lookup::Config).
macro_rules! config_setters {
    ($($(#[$doc:meta])* $name:ident($value:ident: $type:ty) => $($field:ident).+;)+) => {
        $($(#[$doc])*
        pub fn $name(mut self, $value: $type) -> Self {
            self.config.$($field).+ = $value.into();
            self
        })+
    };
}

pub(crate) use config_setters;
