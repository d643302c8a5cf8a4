//! Unkey as the issuer: [`UnkeyVerifier`].
//!
//! ```
//! use tower_orgkey::ApiKeyLayer;
//! use tower_orgkey_issuers::unkey::UnkeyVerifier;
//!
//! # fn auth() -> Result<ApiKeyLayer, Box<dyn std::error::Error>> {
//! let verifier = UnkeyVerifier::new(std::env::var("UNKEY_ROOT_KEY")?)?;
//! let auth = ApiKeyLayer::new(verifier);
//! # Ok(auth) }
//! ```
//!
//! The root key needs the permission `api.<api_id>.verify_key`, with the identifier of the API of this service. With
//! `api.*.verify_key`, keys of all APIs of the workspace are accepted. Every verification costs 0 credits: with a cache, the number of
//! verifications says nothing about the number of requests. Rate limits that Unkey applies automatically to a key still count
//! verifications; limit requests with this project's layers instead.
//!
//! | `POST /v2/keys.verifyKey` answers | means |
//! |---|---|
//! | 200, `valid` is true and `code` is `VALID` | valid |
//! | 200, `DISABLED`, `EXPIRED` | invalid |
//! | 200, `NOT_FOUND` | an unknown key is invalid; a known one once Unkey says of another key that it is valid. Unkey also answers so if the root key may not verify keys of this API |
//! | 200, `RATE_LIMITED`, `USAGE_EXCEEDED` | cannot tell: a good key over its limit. Other keys are not affected |
//! | 200, `FORBIDDEN` | cannot tell: Unkey may reject the address of this service |
//! | 200, any other code; 400 | cannot tell; concerns this key only |
//! | 401, 403 | cannot tell: Unkey rejects the root key of this service |
//! | 429 | cannot tell: the workspace is over its limit; calls pause |
//! | any other status, no reply | cannot tell; concerns Unkey |
//!
//! The organization is `identity.externalId`, or a member of `meta`, which must be text or null; scopes are `permissions`; the key id is `keyId`, and the
//! expiry is `expires`, in milliseconds.
//!
//! Disable a key rather than delete it: a deleted key is not found, and while no other key is verified, it is accepted up to the
//! hard TTL.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tower_orgkey::{ApiKey, ConfigError, Verification, Verifier, VerifyError};

use crate::members::Members;
use crate::{Endpoint, fields};

/// Verifies keys with Unkey. See the [module documentation](self).
#[derive(Clone, Debug)]
pub struct UnkeyVerifier {
    endpoint: Endpoint,
    organization_in_meta: Option<Arc<str>>,
}

impl UnkeyVerifier {
    /// The URL that [`new`](Self::new) calls.
    pub const URL: &'static str = "https://api.unkey.com/v2/keys.verifyKey";

    /// Creates a verifier that presents this root key of Unkey.
    ///
    /// # Errors
    ///
    /// Names the invalid setting, as [`EndpointBuilder::build`](crate::EndpointBuilder::build) does.
    pub fn new(root_key: impl AsRef<str>) -> Result<Self, ConfigError> {
        let endpoint = Endpoint::builder(Self::URL);
        Ok(Self::with_endpoint(
            endpoint.bearer_token(root_key).build()?,
        ))
    }

    /// Creates a verifier with another URL, another timeout or more certificates.
    ///
    /// ```
    /// use tower_orgkey_issuers::Endpoint;
    /// use tower_orgkey_issuers::unkey::UnkeyVerifier;
    ///
    /// let endpoint = Endpoint::builder("http://127.0.0.1:4000/v2/keys.verifyKey").bearer_token("unkey_test");
    /// let verifier = UnkeyVerifier::with_endpoint(endpoint.build()?);
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn with_endpoint(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            organization_in_meta: None,
        }
    }

    /// Reads the organization from this member of the key's `meta`, instead of `identity.externalId`.
    pub fn organization_in_meta(mut self, member: impl Into<Arc<str>>) -> Self {
        self.organization_in_meta = Some(member.into());
        self
    }
}

#[derive(Serialize)]
struct Question<'a> {
    key: &'a str,
    credits: Credits,
}

#[derive(Serialize)]
struct Credits {
    cost: u32,
}

#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    valid: bool,
    code: String,
    key_id: Option<String>,
    identity: Option<Identity>,
    permissions: Option<Vec<String>>,
    expires: Option<u64>,
    meta: Option<Members>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    external_id: Option<String>,
}

impl Verifier for UnkeyVerifier {
    fn identity(&self) -> String {
        let member = self.organization_in_meta.as_deref();
        match member {
            Some(member) => self.endpoint.identity(&["unkey", "meta", member]),
            None => self.endpoint.identity(&["unkey", "externalId"]),
        }
    }

    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let question = Question {
            key: key.expose_secret(),
            credits: Credits { cost: 0 },
        };
        let reply = self.endpoint.post(&question).await?;
        match reply.status() {
            200 => self.read(&reply.json::<Answer>()?.data),
            400 => Err(VerifyError::invalid_response("Unkey answers 400")),
            _ => Err(reply.cannot_tell()),
        }
    }
}

impl UnkeyVerifier {
    fn read(&self, data: &Data) -> Result<Verification, VerifyError> {
        match (data.valid, &*data.code) {
            (true, "VALID") => self.valid(data),
            (false, "DISABLED" | "EXPIRED") => Ok(Verification::invalid()),
            // Also the answer when the root key may not verify keys of this API.
            (false, "NOT_FOUND") => Ok(Verification::invalid_unconfirmed()),
            // Not `throttled`, which would pause the verification of all keys for one customer's limit.
            (false, "RATE_LIMITED" | "USAGE_EXCEEDED") => Err(VerifyError::inconclusive(
                "the key is over its own limit at Unkey",
            )),
            (false, "FORBIDDEN") => Err(VerifyError::misconfigured(
                "Unkey forbids the use of the key: does it permit the address of this service?",
            )),
            _ => Err(VerifyError::invalid_response(
                "`valid` and `code` have no known meaning",
            )),
        }
    }

    fn valid(&self, data: &Data) -> Result<Verification, VerifyError> {
        let organization = match &self.organization_in_meta {
            Some(member) => match &data.meta {
                Some(meta) => meta.text(&[member])?,
                None => None,
            },
            None => data
                .identity
                .as_ref()
                .and_then(|identity| identity.external_id.as_deref()),
        };
        let permissions = data.permissions.as_deref().unwrap_or_default();
        let mut verification = fields::verification(organization)?
            .with_scopes(fields::scopes(permissions.iter().map(String::as_str))?);
        if let Some(id) = &data.key_id {
            verification = verification.with_key_id(fields::key_id(id)?);
        }
        if let Some(expires) = data.expires {
            verification = verification.with_expires_at(fields::expires_at_millis(expires)?);
        }
        Ok(verification)
    }
}
