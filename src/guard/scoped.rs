//! The extractor that checks scopes.

use std::marker::PhantomData;
use std::ops::Deref;

use super::ScopeSet;
use super::scope::{Policy, permitted, rejection};
use crate::context::OrgContext;
use crate::context::observer::Requirement;
use crate::scope::{Scopes, is_scope, permits, wanted};

const NOT_A_POLICY: &str =
    "a scope set has an empty alternative, or a name that is not an RFC 6749 scope-token";

/// Returns whether the alternatives are valid. Evaluated at compile time.
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
pub struct Scoped<S> {
    context: OrgContext,
    scopes: PhantomData<fn() -> S>,
}

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

impl<S> Clone for Scoped<S> {
    fn clone(&self) -> Self {
        Self {
            context: self.context.clone(),
            scopes: PhantomData,
        }
    }
}

impl<S> Deref for Scoped<S> {
    type Target = OrgContext;

    fn deref(&self) -> &OrgContext {
        &self.context
    }
}

impl_debug!([S] Scoped<S>, |scoped| { context: scoped.context });

#[derive(Clone, Copy)]
struct StaticPolicy(&'static [&'static [&'static str]]);

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
