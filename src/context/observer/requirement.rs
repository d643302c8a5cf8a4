use std::borrow::Cow;

use crate::scope::ScopePolicy;

/// What a guard or an extractor required of a request, and whether the request met it.
#[derive(Clone, Debug)]
pub struct Requirement {
    required: Required,
    is_met: bool,
}

#[derive(Clone, Debug)]
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
    /// `None` for a requirement that is not about scopes. An empty list rejects every key.
    pub fn scope_alternatives(&self) -> Option<Vec<Vec<&str>>> {
        match &self.required {
            Required::Scopes(policy) => Some(
                policy
                    .alternatives()
                    .map(|names| names.iter().map(AsRef::as_ref).collect())
                    .collect(),
            ),
            Required::StaticScopes(alternatives) => {
                Some(alternatives.iter().map(|names| names.to_vec()).collect())
            }
            Required::Organization(_) => None,
        }
    }
}
