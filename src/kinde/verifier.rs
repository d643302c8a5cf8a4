use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::builder::KindeVerifierBuilder;
use super::evidence::{Decision, Evidence, Unauthorized};
use super::http::Http;
use super::own_api::{OwnApi, Ownership};
use super::token::{Credentials, RenewalBackoff, Token, TokenId};
use super::wire::{VerifyReading, read_verify};
use crate::key::ApiKey;
use crate::verify::{Attempt, Facts, Verification, Verifier, VerifyError, within};
use orgkey_lookup::Invalid;

/// The deadline of each call when [`Verifier::verify`] or [`Verifier::reverify`] is called directly. The layer sets its own.
const DEADLINE: Duration = Duration::from_secs(5);

/// Verifies keys with Kinde.
///
/// Cheap to clone; clones share the token, the connections and the evidence. See the [module documentation](crate::kinde).
#[derive(Clone)]
pub struct KindeVerifier(pub(super) Arc<Kinde>);

pub(super) struct Kinde {
    pub(super) issuer: String,
    /// The issuer, the client and the API, whose answers nodes of a fleet share.
    pub(super) identity: String,
    pub(super) http: Arc<Http>,
    pub(super) credentials: Credentials,
    pub(super) evidence: Arc<Evidence>,
    pub(super) unauthorized: UnauthorizedMeans,
    pub(super) own_api: Option<OwnApi>,
    /// Of calls of the management API by other crates, however many clients of it there are. One of those that were answered
    /// 401, and one of 403, which may be about the application's scopes and not be mended by a token.
    pub(super) management_renewals: [Mutex<RenewalBackoff>; 2],
}

/// Which credential a 401 or 403 from the verify endpoint is about.
///
/// Kinde's contract does not say; see the [module documentation](crate::kinde#401-and-403-are-ambiguous).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnauthorizedMeans {
    /// Evidence decides, case by case. The default.
    #[default]
    Evidence,
    /// Always the caller's key. Never costs a probe or a token.
    ///
    /// # Warning
    ///
    /// When Kinde rejects the access token of this service, every key is invalid: callers get 401, also with known keys.
    Key,
    /// Always the access token of this service: the caller gets 503, never 401. For an issuer that answers 200 or 400 for
    /// invalid keys.
    AccessToken,
}

impl KindeVerifier {
    /// Returns a builder for the Kinde business at this URL: `https://<subdomain>.kinde.com`, without a path.
    ///
    /// Use the `kinde.com` host even if you have a custom domain: Kinde's management API accepts no token of the custom
    /// domain.
    ///
    /// ```
    /// use tower_orgkey::kinde::KindeVerifier;
    ///
    /// let kinde = KindeVerifier::builder("https://acme.kinde.com")
    ///     .client_credentials("the client's id", "the client's secret")
    ///     .build();
    /// # #[cfg(any(feature = "rustls", feature = "native-tls"))] kinde?;
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn builder(issuer: impl Into<String>) -> KindeVerifierBuilder {
        KindeVerifierBuilder::new(issuer.into())
    }
}

impl Verifier for KindeVerifier {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.0.verify(key, &Attempt::new(DEADLINE)).await
    }

    /// Like [`verify`](Verifier::verify), but a 401 or 403 is confirmed only by a later 200 under the same token.
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

    fn identity(&self) -> String {
        self.0.identity.clone()
    }
}

/// The next step after a 401 or 403.
enum Next {
    Answer(Invalid),
    /// Call verify again, with this token.
    Retry(Token),
}

impl Kinde {
    async fn verify(&self, key: &ApiKey, attempt: &Attempt) -> Result<Verification, VerifyError> {
        let deadline = attempt.deadline();
        let mut token = within(deadline, self.credentials.token()).await?;
        let mut is_retry = false;
        loop {
            let id = token.as_ref().map_or_else(TokenId::default, |held| held.id);
            let sent = self.evidence.draw();
            let header = token.as_ref().map(|token| &token.header);
            let reply = within(deadline, self.http.verify(key, header)).await?;
            let verification = match read_verify(&reply) {
                VerifyReading::Valid(facts) => {
                    self.evidence.verify_answered(id, sent, is_retry);
                    self.check_api(facts, token.as_ref(), deadline).await?
                }
                VerifyReading::Invalid => {
                    self.evidence.verify_answered(id, sent, is_retry);
                    Verification::invalid()
                }
                VerifyReading::Unconfirmed
                    if self.record_confirms(token.as_ref(), attempt).await =>
                {
                    Verification::invalid_as(Invalid::Concluded)
                }
                VerifyReading::Unconfirmed => Verification::invalid_unconfirmed(),
                VerifyReading::CannotTell(error) => return Err(error),
                VerifyReading::KeyOrToken(status) => {
                    let answer = Unauthorized {
                        status,
                        token: id,
                        read: self.evidence.draw(),
                        is_known: attempt.is_known(),
                        is_retry,
                    };
                    match self.settle(token.as_ref(), &answer, attempt).await? {
                        Next::Answer(invalid) => Verification::invalid_as(invalid),
                        Next::Retry(newer) => {
                            token = Some(newer);
                            is_retry = true;
                            continue;
                        }
                    }
                }
            };
            return Ok(verification.with_credential(id.generation()));
        }
    }

    /// Decides what a 401 or 403 means.
    async fn settle(
        &self,
        token: Option<&Token>,
        answer: &Unauthorized,
        attempt: &Attempt,
    ) -> Result<Next, VerifyError> {
        let deadline = attempt.deadline();
        let token = match (self.unauthorized, token) {
            (UnauthorizedMeans::Key, _) => return Ok(Next::Answer(Invalid::Concluded)),
            (UnauthorizedMeans::AccessToken, _) => {
                let newer = self.renewed(token, answer, deadline).await;
                return newer.map(Next::Retry).ok_or_else(token_rejected);
            }
            (UnauthorizedMeans::Evidence, Some(token)) => token,
            // There is no token to probe with. Once verify has answered without one, it asks for none.
            (UnauthorizedMeans::Evidence, None) if self.evidence.has_verify_answered() => {
                return Ok(Next::Answer(Invalid::Unconfirmed));
            }
            (UnauthorizedMeans::Evidence, None) => {
                return Ok(Next::Answer(Invalid::Undecided {
                    is_misconfigured: true,
                }));
            }
        };
        if let Some(newer) = self.newer_than(token, answer) {
            return Ok(Next::Retry(newer));
        }
        let is_misconfigured = match self.evidence.decide(token, answer, deadline).await {
            Decision::Invalid => return Ok(Next::Answer(Invalid::Concluded)),
            Decision::Renew { is_misconfigured } => {
                if let Some(newer) = self.renewed(Some(token), answer, deadline).await {
                    return Ok(Next::Retry(newer));
                }
                is_misconfigured
            }
            Decision::Undecided { is_misconfigured } => {
                // Another verification may have renewed the token meanwhile.
                if let Some(newer) = self.newer_than(token, answer) {
                    return Ok(Next::Retry(newer));
                }
                is_misconfigured
            }
        };
        // A token that the probe rejects is rejected at the record too.
        if !is_misconfigured && self.record_confirms(Some(token), attempt).await {
            return Ok(Next::Answer(Invalid::Concluded));
        }
        if answer.is_known {
            self.evidence.leave_unconfirmed(answer, attempt.key_id());
        }
        Ok(Next::Answer(Invalid::Undecided { is_misconfigured }))
    }

    /// Returns the token that has replaced this one since the call was sent. There is one retry.
    fn newer_than(&self, token: &Token, answer: &Unauthorized) -> Option<Token> {
        (!answer.is_retry)
            .then(|| self.credentials.newer_than(token.id))
            .flatten()
    }

    /// Renews the token early, if the backoff allows it. There is one retry.
    async fn renewed(
        &self,
        token: Option<&Token>,
        answer: &Unauthorized,
        deadline: Duration,
    ) -> Option<Token> {
        let token = token.filter(|_| !answer.is_retry)?;
        let allow = |now| self.evidence.may_renew(now);
        // A failure is logged by the token source, and leaves the answer undecided.
        let renewed = within(deadline, self.credentials.renew(token.id, allow)).await;
        renewed.ok().flatten()
    }

    /// Returns whether the record of a known key shows that its unconfirmed answer is right.
    async fn record_confirms(&self, token: Option<&Token>, attempt: &Attempt) -> bool {
        // Only a known key has an identifier.
        let (Some(token), Some(key_id)) = (token, attempt.key_id()) else {
            return false;
        };
        let deadline = attempt.deadline();
        self.evidence.record_confirms(key_id, token, deadline).await
    }

    /// Verify answered that the key is valid. Checks that it was issued for this API.
    async fn check_api(
        &self,
        facts: Facts,
        token: Option<&Token>,
        deadline: Duration,
    ) -> Result<Verification, VerifyError> {
        if let Some(own_api) = &self.own_api {
            let check = own_api.check(&facts, &self.credentials, token, deadline);
            match check.await? {
                Ownership::ThisApi => {}
                Ownership::OtherApi | Ownership::Contradicted => return Ok(Verification::invalid()),
                Ownership::NoRecord => return Ok(Verification::invalid_unconfirmed()),
            }
        }
        Ok(Verification::valid(facts))
    }
}

fn token_rejected() -> VerifyError {
    VerifyError::misconfigured("the issuer rejects the access token of this service")
}

impl_debug!(KindeVerifier, |verifier| {
    issuer: verifier.0.issuer,
    unauthorized_means: verifier.0.unauthorized
});
