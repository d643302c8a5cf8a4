//! Layers that accept each other's requests.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;

use super::layer::Core;
use crate::config::ConfigError;
use crate::context::OrgContext;
use crate::credential::CredentialSource;
use crate::verify::{Issuer, Organizations};

/// An outer layer whose requests are accepted.
pub(super) struct Outer {
    pub(super) core: Arc<Core>,
    pub(super) organizations: Organizations,
}

/// Checks the outer layers of a layer with this credential and these issuers, and returns all that it accepts.
pub(super) fn accepted(
    outer: &[Outer],
    credential: &CredentialSource,
    issuers: &[Issuer],
) -> Result<Vec<Arc<Core>>, ConfigError> {
    let invalid = |problem: &'static str| Err(ConfigError::new("allow_authenticated_by", problem));
    let mut accepted = Vec::new();
    for Outer {
        core,
        organizations,
    } in outer
    {
        if !core.allow_anonymous {
            return invalid("the outer layer must allow anonymous requests");
        }
        let cores = || std::iter::once(core).chain(&core.accepted);
        if cores().any(|core| core.credential.header() == credential.header()) {
            return invalid("both layers take the key from the same header");
        }
        if *organizations == Organizations::Separate {
            let others = cores().flat_map(|core| core.cache.source().issuers());
            let mut names = HashSet::new();
            let are_separate = issuers
                .iter()
                .chain(others)
                .all(|issuer| issuer.has_namespace() && names.insert(issuer.name()));
            if !are_separate {
                return invalid("each issuer of both layers must have a separate namespace");
            }
        }
        accepted.extend(cores().map(Arc::clone));
    }
    Ok(accepted)
}

impl Core {
    /// Returns whether a request without a key for this layer passes, because an accepted layer has authenticated it.
    pub(super) fn accepts(&self, extensions: &Extensions, max_age: Option<Duration>) -> bool {
        !self.accepted.is_empty() && self.accepts_context(extensions, max_age)
    }

    #[cold]
    fn accepts_context(&self, extensions: &Extensions, max_age: Option<Duration>) -> bool {
        self.accepted_context(extensions).is_some_and(|context| {
            // The key of another layer cannot be verified here.
            let is_recent = max_age.is_none_or(|max_age| context.age() < max_age);
            is_recent && (self.allow_user_keys || context.user_id().is_none())
        })
    }

    /// Returns the context that an accepted layer gave the request.
    pub(super) fn accepted_context<'a>(
        &self,
        extensions: &'a Extensions,
    ) -> Option<&'a OrgContext> {
        let context: &OrgContext = extensions.get()?;
        let mut accepted = self.accepted.iter();
        accepted
            .any(|outer| context.belongs_to(&outer.cache))
            .then_some(context)
    }
}
