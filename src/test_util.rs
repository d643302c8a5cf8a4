//! For your unit tests: contexts without a server, and a clock that the test controls.
//!
//! ```
//! use std::time::Duration;
//! use tower_orgkey::test_util::OrgContextBuilder;
//!
//! let context = OrgContextBuilder::new("org_1")
//!     .key_id("api_key_0001")
//!     .scopes(["read:reports"])
//!     .age(Duration::from_secs(10))
//!     .build();
//! assert_eq!(context.org_code(), "org_1");
//!
//! // A handler that takes an `OrgContext` finds it in the request's extensions.
//! let mut request = http::Request::new(());
//! request.extensions_mut().insert(context);
//! ```
//!
//! A [`TestClock`] is for [`ApiKeyLayerBuilder::test_clock`](crate::ApiKeyLayerBuilder::test_clock):
//!
//! ```
//! use std::time::Duration;
//! use tower_orgkey::test_util::TestClock;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let clock = TestClock::new();
//! tokio::time::advance(Duration::from_secs(1)).await;
//! clock.jump(Duration::from_secs(3600));
//! assert_eq!(clock.elapsed(), Duration::from_secs(3601));
//! # }
//! ```
//!
//! To test a whole application, see [`kinde-emulator`](https://docs.rs/kinde-emulator).

use std::sync::Arc;
use std::time::Duration;

use orgkey_lookup::Lifetimes;

use crate::api_keys::Entry;
#[doc(inline)]
pub use crate::clock::TestClock;
use crate::clock::Tick;
use crate::context::OrgContext;
#[cfg(feature = "axum")]
use crate::guard::{ScopeSet, Scoped};
use crate::identifier::{KeyId, OrgCode};
use crate::key::DigestSecret;
use crate::scope::Scopes;
#[cfg(feature = "settings")]
use crate::settings::OrgSettings;
use crate::verify::Facts;

/// Creates the argument of a handler that takes [`OrgSettings`], without a layer.
///
/// ```
/// use tower_orgkey::settings::OrgSettings;
/// use tower_orgkey::test_util::{OrgContextBuilder, org_settings};
///
/// async fn seats(seats: OrgSettings<u32>) -> String {
///     format!("{} seats", *seats)
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let org = OrgContextBuilder::new("org_1").build();
/// assert_eq!(seats(org_settings(&org, 3)).await, "3 seats");
/// # }
/// ```
#[cfg(feature = "settings")]
pub fn org_settings<T>(org: &OrgContext, settings: T) -> OrgSettings<T> {
    OrgSettings::new(org.org_code().clone(), Arc::new(settings))
}

/// Creates the argument of a handler that takes [`Scoped`], without a layer.
///
/// ```
/// use tower_orgkey::test_util::{OrgContextBuilder, scoped};
/// use tower_orgkey::{ScopeSet, Scoped};
///
/// struct ReadReports;
///
/// impl ScopeSet for ReadReports {
///     const ALTERNATIVES: &'static [&'static [&'static str]] = &[&["read:reports"]];
/// }
///
/// async fn list(org: Scoped<ReadReports>) -> String {
///     format!("reports of {}", org.org_code())
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let org = OrgContextBuilder::new("org_1").scopes(["read:reports"]).build();
/// assert_eq!(list(scoped(&org)).await, "reports of org_1");
/// # }
/// ```
///
/// # Panics
///
/// If the context does not have the scopes: the extractor rejects such a request.
#[cfg(feature = "axum")]
#[track_caller]
pub fn scoped<S: ScopeSet>(org: &OrgContext) -> Scoped<S> {
    match Scoped::new(org) {
        Some(scoped) => scoped,
        None => panic!("the context does not have the scopes that `Scoped` requires"),
    }
}

/// Builds an [`OrgContext`] without a layer. See the [module documentation](crate::test_util).
#[derive(Clone, Debug)]
#[must_use]
pub struct OrgContextBuilder {
    facts: Facts,
    age: Duration,
}

impl OrgContextBuilder {
    /// Creates a builder for a context of this organization, without scopes and with age zero.
    ///
    /// # Panics
    ///
    /// If the code is not 1 to 255 visible ASCII characters.
    #[track_caller]
    pub fn new(org_code: impl Into<Arc<str>>) -> Self {
        let org = match OrgCode::new(org_code) {
            Ok(org) => org,
            Err(error) => panic!("{error}"),
        };
        Self {
            facts: Facts {
                org: Some(org),
                ..Facts::default()
            },
            age: Duration::ZERO,
        }
    }

    /// Sets the key's id.
    ///
    /// # Panics
    ///
    /// If the id is not 1 to 255 visible ASCII characters.
    #[track_caller]
    pub fn key_id(mut self, key_id: impl Into<Arc<str>>) -> Self {
        match KeyId::new(key_id) {
            Ok(key_id) => self.facts.key_id = Some(key_id),
            Err(error) => panic!("{error}"),
        }
        self
    }

    /// Sets the scopes. Names that are not a `scope-token` of RFC 6749 are skipped.
    pub fn scopes<N: Into<Box<str>>>(mut self, scopes: impl IntoIterator<Item = N>) -> Self {
        self.facts.scopes = Scopes::from_names(scopes);
        self
    }

    /// Sets the user that the key acts for.
    pub fn user_id(mut self, user_id: impl Into<Box<str>>) -> Self {
        self.facts.user = Some(Box::new(user_id.into()));
        self
    }

    /// Sets the age of the verification result; from 60 s on it is stale.
    pub fn age(mut self, age: Duration) -> Self {
        self.age = age;
        self
    }

    /// Builds the context.
    ///
    /// # Panics
    ///
    /// If the operating system has no random numbers.
    pub fn build(self) -> OrgContext {
        let secret = match DigestSecret::draw() {
            Ok(secret) => secret,
            Err(error) => panic!("no random numbers: {error}"),
        };
        let soft = Duration::from_secs(60);
        let lifetimes = Lifetimes {
            soft,
            hard: soft * 15,
        };
        let entry = Entry::detached(self.facts, secret.digest("test-key"), None, lifetimes);
        // The soft TTL of the entry is 51 to 60 s, so it is stale at 60 s.
        match OrgContext::new(Arc::new(entry), Tick::ZERO.after(self.age)) {
            Some(context) => context,
            None => unreachable!("`new` names an organization"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builder_takes_owned_strings() {
        let n = 7;
        let org = OrgContextBuilder::new(format!("org_{n}"))
            .key_id(format!("api_key_{n}"))
            .scopes(vec![format!("read:{n}"), "not a scope".to_owned()])
            .user_id(format!("kp_{n}"))
            .build();
        assert_eq!(*org.org_code(), "org_7");
        assert_eq!(org.key_id().map(AsRef::as_ref), Some("api_key_7"));
        assert_eq!(org.user_id(), Some("kp_7"));
        assert!(org.scopes().contains("read:7") && !org.scopes().contains("not a scope"));
    }

    #[cfg(feature = "axum")]
    struct Read;

    #[cfg(feature = "axum")]
    impl ScopeSet for Read {
        const ALTERNATIVES: &'static [&'static [&'static str]] = &[&["read"], &["a", "b"]];
    }

    #[cfg(feature = "axum")]
    #[test]
    fn scoped_holds_the_context() {
        let org = OrgContextBuilder::new("org_1").scopes(["a", "b"]).build();
        assert_eq!(*scoped::<Read>(&org).org_code(), "org_1");
    }

    #[cfg(feature = "axum")]
    #[test]
    #[should_panic(expected = "does not have the scopes")]
    fn scoped_requires_the_scopes() {
        let org = OrgContextBuilder::new("org_1").scopes(["a"]).build();
        scoped::<Read>(&org);
    }
}
