use std::fmt;
use std::sync::Arc;

use super::builder::KindeVerifierBuilder;
use super::evidence::{Evidence, Refused, Verdict};
use super::http::Http;
use super::own_api::{OwnApi, Ownership};
use super::token::{Credentials, Token, TokenId};
use super::wire::{VerifyReading, read_verify};
use crate::clock::Clock;
use crate::key::ApiKey;
use crate::verify::{Facts, Invalid, Verification, Verifier, VerifyError};

/// Asks Kinde whether a key is good.
///
/// Cheap to clone; clones share the token, the connections and the evidence. See the [module's guide](crate::kinde).
#[derive(Clone)]
pub struct KindeVerifier(pub(super) Arc<Kinde>);

pub(super) struct Kinde {
    pub(super) issuer: String,
    pub(super) http: Arc<Http>,
    pub(super) clock: Clock,
    pub(super) credentials: Credentials,
    pub(super) evidence: Arc<Evidence>,
    pub(super) unauthorized: UnauthorizedMeans,
    pub(super) own_api: Option<OwnApi>,
}

/// Whose credential a 401 or 403 of the verify endpoint refuses.
///
/// Kinde's contract leaves it open; see the [module's guide](crate::kinde#401-and-403-are-ambiguous).
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
    /// When our own token is refused, every key is taken for a bad one: customers get 401 and known keys are given up.
    TheKey,
    /// Always our own token: the caller gets 503, never 401. For an issuer that answers 200 or 400 for bad keys.
    OurToken,
}

impl KindeVerifier {
    /// A verifier for the Kinde business at this URL: `https://<subdomain>.kinde.com`, without a path.
    ///
    /// Take the `kinde.com` host even where you have a domain of your own: Kinde's management API takes no token of the
    /// other.
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
        self.0.verify(key, false).await
    }

    /// As [`verify`](Verifier::verify), but a 401 or 403 ends a known key only on a proof that came after it.
    async fn reverify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.0.verify(key, true).await
    }
}

/// What an ambiguous refusal comes to.
enum Next {
    Answer(Verification),
    /// Once more, with this token.
    Retry(Token),
}

impl Kinde {
    async fn verify(&self, key: &ApiKey, is_known: bool) -> Result<Verification, VerifyError> {
        let mut token = self.credentials.token().await?;
        let mut is_second = false;
        loop {
            let sent_at = self.clock.now();
            let header = token.as_ref().map(|token| &token.header);
            let reply = self.http.verify(key, header).await?;
            let status = match read_verify(&reply) {
                VerifyReading::Yes(facts) => {
                    self.accepted(token.as_ref(), sent_at);
                    return self.admit(facts, token.as_ref()).await;
                }
                VerifyReading::No => {
                    self.accepted(token.as_ref(), sent_at);
                    return Ok(Verification::invalid());
                }
                VerifyReading::Unconfirmed => return Ok(Verification::invalid_unconfirmed()),
                VerifyReading::CannotTell(error) => return Err(error),
                VerifyReading::KeyOrToken(status) => status,
            };
            let refused = Refused {
                status,
                at: self.clock.now(),
                is_known,
                is_second,
            };
            match self.settle(token.as_ref(), refused).await? {
                Next::Answer(verification) => return Ok(verification),
                Next::Retry(renewed) => token = Some(renewed),
            }
            is_second = true;
        }
    }

    fn accepted(&self, token: Option<&Token>, sent_at: crate::clock::Tick) {
        let id = token.map_or_else(TokenId::default, |token| token.id);
        self.evidence.verify_accepted(id, sent_at);
    }

    async fn settle(&self, token: Option<&Token>, refused: Refused) -> Result<Next, VerifyError> {
        let verdict = match (self.unauthorized, token) {
            (UnauthorizedMeans::TheKey, _) => Verdict::Key,
            (UnauthorizedMeans::Evidence, Some(token)) => {
                if !refused.is_second
                    && let Some(newer) = self.newer_than(token).await?
                {
                    return Ok(Next::Retry(newer));
                }
                self.evidence.settle(token, refused).await
            }
            // Nothing to probe with. Once verify has answered us without credentials, it wants none of us.
            (UnauthorizedMeans::Evidence, None) if self.evidence.has_verify_accepted() => {
                Verdict::KeyLikely
            }
            (UnauthorizedMeans::Evidence, None) | (UnauthorizedMeans::OurToken, _) => {
                Verdict::Token
            }
        };
        let key_likely = || Ok(Next::Answer(Verification::invalid_unconfirmed()));
        match verdict {
            Verdict::Key => Ok(Next::Answer(Verification::invalid_as(Invalid::Concluded))),
            // Enough for a stranger. A known key is given up when verify answers a later call, which shows that it was
            // not about us.
            Verdict::KeyLikely => key_likely(),
            Verdict::CannotTell(error) => Err(error),
            Verdict::Token | Verdict::TokenOrKey if refused.is_second => Err(token_refused()),
            Verdict::Token => self.renewed(token).await?.ok_or_else(token_refused),
            Verdict::TokenOrKey => self.renewed(token).await?.map_or_else(key_likely, Ok),
        }
    }

    /// The token that has taken this one's place while the call was under way.
    async fn newer_than(&self, token: &Token) -> Result<Option<Token>, VerifyError> {
        let current = self.credentials.token().await?;
        Ok(current.filter(|current| current.id != token.id))
    }

    /// Another token in place of this one, if there may be one now.
    async fn renewed(&self, token: Option<&Token>) -> Result<Option<Next>, VerifyError> {
        let (Credentials::Client(source), Some(token)) = (&self.credentials, token) else {
            return Ok(None);
        };
        let gate = |now| self.evidence.may_renew(token.id, now);
        Ok(source.renew(token.id, gate).await?.map(Next::Retry))
    }

    /// Verify said yes; whether the key is for this API is another question.
    async fn admit(
        &self,
        facts: Facts,
        token: Option<&Token>,
    ) -> Result<Verification, VerifyError> {
        if let Some(own_api) = &self.own_api {
            match own_api.check(&facts, &self.credentials, token).await? {
                Ownership::Ours => {}
                Ownership::NotOurs => return Ok(Verification::invalid()),
                Ownership::NoRecord => return Ok(Verification::invalid_unconfirmed()),
            }
        }
        Ok(Verification::valid(facts))
    }
}

fn token_refused() -> VerifyError {
    VerifyError::misconfigured("the issuer refuses our own token")
}

impl fmt::Debug for KindeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KindeVerifier")
            .field("issuer", &self.0.issuer)
            .field("unauthorized_means", &self.0.unauthorized)
            .finish_non_exhaustive()
    }
}
