use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tower_orgkey::verify::Attempt;
use tower_orgkey::{ApiKey, Verification, Verifier, VerifyError};

use super::builder::{Audience, IntrospectionVerifierBuilder, Rules};
use super::token::{Reading, read};
use crate::endpoint::{DEADLINE, Endpoint};

/// Verifies keys that are OAuth 2.0 access tokens, by introspection (RFC 7662).
///
/// Cheap to clone; clones share the connections. See the [module documentation](super).
#[derive(Clone)]
pub struct IntrospectionVerifier(Arc<Inner>);

struct Inner {
    endpoint: Endpoint,
    rules: Rules,
    canary: Option<ApiKey>,
    /// So that a failing canary is logged once.
    is_canary_failing: AtomicBool,
}

impl IntrospectionVerifier {
    /// Returns a builder for this introspection endpoint.
    pub fn builder(endpoint: Endpoint) -> IntrospectionVerifierBuilder {
        IntrospectionVerifierBuilder::new(endpoint)
    }

    pub(super) fn new(endpoint: Endpoint, rules: Rules, canary: Option<ApiKey>) -> Self {
        Self(Arc::new(Inner {
            endpoint,
            rules,
            canary,
            is_canary_failing: AtomicBool::new(false),
        }))
    }
}

impl Verifier for IntrospectionVerifier {
    fn identity(&self) -> String {
        let rules = &self.0.rules;
        // A function without a name cannot be told apart from another one.
        if rules.organization_name.is_empty() {
            return String::new();
        }
        let (kind, audience) = match &rules.audience {
            Audience::Any => ("any audience", ""),
            Audience::Required(audience) => ("audience", audience.as_str()),
        };
        let token_type = if rules.allow_missing_token_type {
            "any"
        } else {
            "bearer"
        };
        let subjects = if rules.service_accounts {
            "service accounts"
        } else {
            "clients"
        };
        let settings = [
            "introspection",
            kind,
            audience,
            &rules.organization_name,
            token_type,
            subjects,
        ];
        self.0.endpoint.identity(&settings)
    }

    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.0.verify(key, &Attempt::new(DEADLINE)).await
    }

    /// Like [`verify`](Verifier::verify), but an inactive key is invalid only if the canary is active.
    async fn reverify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let attempt = Attempt::new(DEADLINE).known(None);
        self.0.verify(key, &attempt).await
    }

    async fn verify_attempt(
        &self,
        key: &ApiKey,
        attempt: Attempt,
    ) -> Result<Verification, VerifyError> {
        self.0.verify(key, &attempt).await
    }
}

impl Inner {
    async fn verify(&self, key: &ApiKey, attempt: &Attempt) -> Result<Verification, VerifyError> {
        let deadline = attempt.deadline();
        if let Reading::Active(verification) = self.introspect(key, deadline).await? {
            return Ok(verification);
        }
        let Some(canary) = self.canary.as_ref().filter(|_| attempt.is_known()) else {
            return Ok(Verification::invalid_unconfirmed());
        };
        if !self.is_active(canary, deadline).await {
            // Not unconfirmed: the next answer about another key would confirm it, although the server was out of order.
            return Err(VerifyError::inconclusive("the canary is not active either"));
        }
        // The server may have recovered between the first answer and the canary's.
        match self.introspect(key, deadline).await? {
            Reading::Active(verification) => Ok(verification),
            Reading::Inactive => Ok(Verification::invalid()),
        }
    }

    async fn introspect(&self, key: &ApiKey, deadline: Duration) -> Result<Reading, VerifyError> {
        let token = key.expose_secret();
        let hint = [("token_type_hint", "access_token")];
        let call = self.endpoint.post_form("token", token, &hint);
        match tokio::time::timeout(deadline, call).await {
            Ok(reply) => read(&reply?, token, &self.rules),
            Err(elapsed) => Err(VerifyError::unavailable(elapsed)),
        }
    }

    /// Returns whether the canary shows that the server is working.
    async fn is_active(&self, canary: &ApiKey, deadline: Duration) -> bool {
        // A canary for another audience shows it too.
        let is_active = matches!(
            self.introspect(canary, deadline).await,
            Ok(Reading::Active(_))
        );
        let was_failing = self.is_canary_failing.swap(!is_active, Ordering::Relaxed);
        if !is_active && !was_failing {
            tracing::warn!(
                target: "tower_orgkey",
                "canary token is not active: no known key is rejected until it is"
            );
        }
        is_active
    }
}

impl fmt::Debug for IntrospectionVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntrospectionVerifier")
            .field("endpoint", &self.0.endpoint)
            .field("audience", &self.0.rules.audience)
            .field("has_canary", &self.0.canary.is_some())
            .finish_non_exhaustive()
    }
}
