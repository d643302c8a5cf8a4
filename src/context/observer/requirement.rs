use std::borrow::Cow;

use crate::scope::{Scope, ScopePolicy};

/// What a guard or an extractor required of a request, and whether the request met it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    required: Required,
    is_met: bool,
}

/// The [requirements](super::RequestObservation::requirements) of a request, in order.
///
/// ```
/// use tower_orgkey::RequestObservation;
///
/// fn are_met(observation: &RequestObservation) -> bool {
///     observation.requirements().iter().all(|requirement| requirement.is_met())
/// }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// Almost always the only one, so it costs no allocation.
    first: Option<Requirement>,
    more: Vec<Requirement>,
}

impl Requirements {
    /// Returns the requirements in order.
    pub fn iter(&self) -> impl Iterator<Item = &Requirement> {
        self.first.iter().chain(&self.more)
    }

    /// Returns the number of requirements: at most eight.
    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    /// Returns whether nothing was required.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    #[inline]
    pub(super) fn push(&mut self, requirement: Requirement) {
        if self.first.is_none() {
            self.first = Some(requirement);
        } else {
            self.more.push(requirement);
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Required {
    Scopes(ScopePolicy),
    /// The policy of a type. Not copied.
    #[cfg_attr(
        not(feature = "axum"),
        expect(dead_code, reason = "only the extractor has one")
    )]
    StaticScopes(&'static [&'static [&'static str]]),
    Organization(Option<Cow<'static, str>>),
}

impl Requirement {
    /// Creates a requirement that the key satisfies this policy.
    pub fn scopes(policy: ScopePolicy, is_met: bool) -> Self {
        Self {
            required: Required::Scopes(policy),
            is_met,
        }
    }

    /// Creates a requirement that the request names the organization of the key, in this path parameter if it is one.
    pub fn organization(parameter: Option<Cow<'static, str>>, is_met: bool) -> Self {
        Self {
            required: Required::Organization(parameter),
            is_met,
        }
    }

    #[cfg(feature = "axum")]
    pub(crate) fn static_scopes(
        alternatives: &'static [&'static [&'static str]],
        is_met: bool,
    ) -> Self {
        Self {
            required: Required::StaticScopes(alternatives),
            is_met,
        }
    }

    /// Returns whether the request met the requirement.
    pub fn is_met(&self) -> bool {
        self.is_met
    }

    /// Returns whether the requirement is about the organization that the request names.
    pub fn is_organization(&self) -> bool {
        matches!(self.required, Required::Organization(_))
    }

    /// Returns the path parameter that had to name the key's organization.
    ///
    /// `None` for scopes, and for a guard that reads the organization from elsewhere.
    pub fn organization_parameter(&self) -> Option<&str> {
        match &self.required {
            Required::Organization(parameter) => parameter.as_deref(),
            Required::Scopes(_) | Required::StaticScopes(_) => None,
        }
    }

    /// Returns the alternatives of a scope policy: the key must hold every scope of one of them.
    ///
    /// `None` for a requirement that is not about scopes. Without alternatives, it rejects every key.
    pub fn scope_alternatives(
        &self,
    ) -> Option<impl Iterator<Item = impl Iterator<Item = &str> + Clone> + Clone> {
        // One of the two is empty, so that both kinds of policies have the same iterator.
        let (parsed, fixed) = match &self.required {
            Required::Scopes(policy) => (Some(policy), [].as_slice()),
            Required::StaticScopes(alternatives) => (None, *alternatives),
            Required::Organization(_) => return None,
        };
        let parsed = parsed.into_iter().flat_map(ScopePolicy::alternatives);
        let parsed = parsed.map(|scopes| names(scopes, &[]));
        Some(parsed.chain(fixed.iter().map(|fixed| names(&[], fixed))))
    }
}

fn names<'a>(
    scopes: &'a [Scope],
    fixed: &'a [&'static str],
) -> impl Iterator<Item = &'a str> + Clone {
    scopes
        .iter()
        .map(Scope::as_str)
        .chain(fixed.iter().copied())
}
