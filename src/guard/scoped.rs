#[cfg(feature = "axum")]
use std::{marker::PhantomData, ops::Deref};

#[cfg(feature = "axum")]
use super::scope::{Policy, permitted, rejection};
#[cfg(feature = "axum")]
use crate::context::OrgContext;
#[cfg(feature = "axum")]
use crate::context::observer::Requirement;
use crate::scope::is_scope;
#[cfg(feature = "axum")]
use crate::scope::{Scopes, permits, wanted};

/// A scope policy in a type, for [`Scoped`](crate::Scoped).
///
/// A key must have all scopes of one alternative, as in [`ScopePolicy`](crate::ScopePolicy). Without an alternative, every
/// request is rejected. With an empty alternative, or a name that is not a `scope-token` of RFC 6749, handlers that use the
/// type do not compile:
///
/// ```compile_fail
/// # use tower_orgkey::{ScopeSet, Scoped};
/// struct Bad;
/// impl ScopeSet for Bad {
///     const ALTERNATIVES: &'static [&'static [&'static str]] = &[&["two words"]];
/// }
/// async fn handler(_: Scoped<Bad>) {}
/// let app: axum::Router = axum::Router::new().route("/", axum::routing::get(handler));
/// ```
pub trait ScopeSet: Send + Sync + 'static {
    /// The alternatives.
    const ALTERNATIVES: &'static [&'static [&'static str]];
}

#[cfg(feature = "axum")]
const NOT_A_POLICY: &str =
    "a scope set has an empty alternative, or a name that is not an RFC 6749 scope-token";

/// Returns whether the alternatives are valid. Evaluated at compile time.
#[cfg_attr(
    not(feature = "axum"),
    expect(dead_code, reason = "only the extractor evaluates it")
)]
const fn is_policy(alternatives: &[&[&str]]) -> bool {
    let mut at = 0;
    while at < alternatives.len() {
        let names = alternatives[at];
        if names.is_empty() {
            return false;
        }
        let mut name = 0;
        while name < names.len() {
            if !is_scope(names[name].as_bytes()) {
                return false;
            }
            name += 1;
        }
        at += 1;
    }
    true
}

/// An [`OrgContext`] whose key satisfies a [`ScopeSet`]: the scope check in the type of a handler.
///
/// Decides and rejects like the guard. See the [module documentation](crate::guard) for an example.
#[cfg(feature = "axum")]
pub struct Scoped<S> {
    context: OrgContext,
    scopes: PhantomData<fn() -> S>,
}

#[cfg(feature = "axum")]
impl<S> Scoped<S> {
    /// Creates the argument of a handler for a test. `None` if the context does not have the scopes.
    #[cfg(feature = "test-util")]
    pub(crate) fn new(context: &OrgContext) -> Option<Self>
    where
        S: ScopeSet,
    {
        const { assert!(is_policy(S::ALTERNATIVES), "{}", NOT_A_POLICY) }
        StaticPolicy(S::ALTERNATIVES)
            .permits(context.scopes())
            .then(|| Self {
                context: context.clone(),
                scopes: PhantomData,
            })
    }

    /// Returns the context.
    pub fn into_inner(self) -> OrgContext {
        self.context
    }
}

#[cfg(feature = "axum")]
impl<S> Clone for Scoped<S> {
    fn clone(&self) -> Self {
        Self {
            context: self.context.clone(),
            scopes: PhantomData,
        }
    }
}

#[cfg(feature = "axum")]
impl<S> Deref for Scoped<S> {
    type Target = OrgContext;

    fn deref(&self) -> &OrgContext {
        &self.context
    }
}

#[cfg(feature = "axum")]
impl_debug!([S] Scoped<S>, |scoped| { context: scoped.context });

#[cfg(feature = "axum")]
#[derive(Clone, Copy)]
struct StaticPolicy(&'static [&'static [&'static str]]);

#[cfg(feature = "axum")]
impl Policy for StaticPolicy {
    fn permits(self, held: &Scopes) -> bool {
        permits(self.0.iter().copied(), held)
    }

    fn wanted(self, held: &Scopes) -> String {
        wanted(self.0.iter().copied(), held)
    }

    fn requirement(self, is_met: bool) -> Requirement {
        Requirement::static_scopes(self.0, is_met)
    }
}

#[cfg(feature = "axum")]
impl<S: ScopeSet, T: Send + Sync> axum::extract::FromRequestParts<T> for Scoped<S> {
    type Rejection = crate::rejection::Rejection;

    async fn from_request_parts(
        parts: &mut http::request::Parts,
        _: &T,
    ) -> Result<Self, Self::Rejection> {
        const {
            assert!(is_policy(S::ALTERNATIVES), "{}", NOT_A_POLICY);
        }
        let policy = StaticPolicy(S::ALTERNATIVES);
        let context = permitted(&parts.extensions, policy)
            .ok_or_else(|| rejection(&parts.extensions, policy, "the extractor `Scoped`"))?;
        Ok(Self {
            context: context.clone(),
            scopes: PhantomData,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::is_policy;

    #[test]
    fn every_alternative_has_valid_scopes() {
        let good: [&[&[&str]]; 4] = [
            &[],
            &[&["a"]],
            &[&["a", "read:users"]],
            &[&["a"], &["b", "c"], &["d"]],
        ];
        for good in good {
            assert!(is_policy(good), "{good:?}");
        }
        let bad: [&[&[&str]]; 7] = [
            &[&[]],
            &[&["a"], &[]],
            &[&[], &["a"]],
            &[&["two words"]],
            &[&["a", ""]],
            &[&["a"], &["b", "quo\"te", "c"], &["d"]],
            &[&["a"], &["b"], &["c", "d", "back\\slash"]],
        ];
        for bad in bad {
            assert!(!is_policy(bad), "{bad:?}");
        }
    }
}
