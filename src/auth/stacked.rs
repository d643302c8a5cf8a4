//! Layers that accept each other's requests.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;

use super::layer::Core;
use super::per_layer::PerLayer;
use crate::config::ConfigError;
use crate::context::OrgContext;
use crate::context::observer::OuterObservation;
use crate::credential::CredentialSource;
use crate::rejection::Rejection;
use crate::verify::{Issuer, Organizations, is_name};

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
    let mut accepted: Vec<Arc<Core>> = Vec::new();
    let mut namespaces: Vec<&Issuer> = issuers.iter().collect();
    let mut are_separate = false;
    for Outer {
        core,
        organizations,
    } in outer
    {
        if !core.allow_anonymous {
            return invalid("the outer layer must allow anonymous requests");
        }
        are_separate |= *organizations == Organizations::Separate;
        for core in std::iter::once(core).chain(&core.accepted) {
            if core.credential.header() == credential.header() {
                return invalid("both layers take the key from the same header");
            }
            if accepted.iter().any(|other| Arc::ptr_eq(other, core)) {
                continue;
            }
            if *organizations == Organizations::Separate {
                namespaces.extend(core.cache.source().issuers());
            }
            accepted.push(Arc::clone(core));
        }
    }
    let mut names = HashSet::new();
    let mut is_separate = |issuer: &&Issuer| {
        issuer.has_namespace() && is_name(issuer.name()) && names.insert(issuer.name().to_owned())
    };
    if are_separate && !namespaces.iter().all(&mut is_separate) {
        return invalid("each issuer of all layers must have a separate namespace");
    }
    Ok(accepted)
}

/// The maximum ages of the layers that require a recent verification.
type MaxAges = PerLayer<Duration>;

impl Core {
    /// Notes that this layer requires a recent verification, for a layer inside that accepts its requests.
    #[cold]
    pub(super) fn with_max_age(
        self: &Arc<Self>,
        mut extensions: Extensions,
        max_age: Duration,
    ) -> Extensions {
        MaxAges::put(&mut extensions, self, max_age);
        extensions
    }

    /// Decides about a request without a key for this layer, if an accepted layer has authenticated it.
    pub(super) fn accept(
        &self,
        extensions: &Extensions,
        max_age: Option<Duration>,
    ) -> Option<Result<(), Rejection>> {
        // The next request is verified by the outer layer, so there is nothing to wait for.
        const RETRY_AFTER: Duration = Duration::from_secs(1);

        if self.accepted.is_empty() {
            return None;
        }
        let Some(context) = self.accepted_context(extensions) else {
            // A misplaced layer has removed the context, and logs where it belongs.
            return OuterObservation::has_removed_decision(extensions)
                .then(|| Err(Rejection::internal()));
        };
        if context.user_id().is_some() && !self.allow_user_keys {
            return Some(Err(Rejection::organization_required()));
        }
        let is_recent = |max_age: Duration| {
            let mut enforced = MaxAges::all(extensions).iter();
            context.age() < max_age
                || enforced.any(|(core, age)| *age <= max_age && context.belongs_to(&core.cache))
        };
        Some(match max_age {
            // The key of another layer cannot be verified here.
            Some(max_age) if !is_recent(max_age) => {
                Err(Rejection::verifier_unavailable(RETRY_AFTER))
            }
            _ => Ok(()),
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
