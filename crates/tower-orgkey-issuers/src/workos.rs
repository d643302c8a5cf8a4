//! WorkOS as the issuer: [`WorkOsVerifier`].
//!
//! ```
//! use tower_orgkey::ApiKeyLayer;
//! use tower_orgkey_issuers::workos::WorkOsVerifier;
//!
//! # fn auth() -> Result<ApiKeyLayer, Box<dyn std::error::Error>> {
//! let verifier = WorkOsVerifier::new(std::env::var("WORKOS_SECRET_KEY")?)?;
//! let auth = ApiKeyLayer::new(verifier);
//! # Ok(auth) }
//! ```
//!
//! | `POST /api_keys/validations` answers | means |
//! |---|---|
//! | 200, `api_key` is null | invalid |
//! | 200, `api_key` is an object | valid: `id`, `permissions`, and the organization in `owner` |
//! | 200, anything else | cannot tell; concerns this key only |
//! | 401, 403 | cannot tell: WorkOS rejects the secret key of this service |
//! | 422 | an unknown key is invalid; a known one once WorkOS answers a later call |
//! | 429 | cannot tell; calls pause |
//! | any other status, no reply | cannot tell; concerns WorkOS |
//!
//! The organization is `owner.id` if `owner.type` is `organization`. A key of a user has the user `owner.id` and the
//! organization `owner.organization_id`; the layer rejects it unless
//! [`allow_user_keys`](tower_orgkey::auth::ApiKeyLayerBuilder::allow_user_keys) is set. The reply has no expiry.

use serde::{Deserialize, Serialize};
use tower_orgkey::{ApiKey, ConfigError, Verification, Verifier, VerifyError};

use crate::{Endpoint, fields};

/// Verifies keys with WorkOS. See the [module documentation](self).
#[derive(Clone, Debug)]
pub struct WorkOsVerifier(Endpoint);

impl WorkOsVerifier {
    /// The URL that [`new`](Self::new) calls.
    pub const URL: &'static str = "https://api.workos.com/api_keys/validations";

    /// Creates a verifier that presents this secret key of WorkOS.
    ///
    /// # Errors
    ///
    /// Names the invalid setting, as [`EndpointBuilder::build`](crate::EndpointBuilder::build) does.
    pub fn new(secret_key: impl AsRef<str>) -> Result<Self, ConfigError> {
        let endpoint = Endpoint::builder(Self::URL);
        Ok(Self(endpoint.bearer_token(secret_key).build()?))
    }

    /// Creates a verifier with another URL, another timeout or more certificates.
    ///
    /// ```
    /// use tower_orgkey_issuers::Endpoint;
    /// use tower_orgkey_issuers::workos::WorkOsVerifier;
    ///
    /// let endpoint = Endpoint::builder("http://127.0.0.1:4000/api_keys/validations").bearer_token("sk_test");
    /// let verifier = WorkOsVerifier::with_endpoint(endpoint.build()?);
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn with_endpoint(endpoint: Endpoint) -> Self {
        Self(endpoint)
    }
}

#[derive(Serialize)]
struct Question<'a> {
    value: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    // Null means invalid; absent is not an answer.
    #[serde(deserialize_with = "Option::deserialize")]
    api_key: Option<Record>,
}

#[derive(Deserialize)]
struct Record {
    id: String,
    owner: Owner,
    #[serde(default)]
    permissions: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Owner {
    Organization {
        id: String,
    },
    User {
        id: String,
        organization_id: Option<String>,
    },
}

impl Verifier for WorkOsVerifier {
    fn identity(&self) -> String {
        self.0.identity(&["workos"])
    }

    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let value = key.expose_secret();
        let reply = self.0.post(&Question { value }).await?;
        match reply.status() {
            200 => match reply.json::<Answer>()?.api_key {
                None => Ok(Verification::invalid()),
                Some(record) => record.verification(),
            },
            // WorkOS also answers so to a request that it does not understand.
            422 => Ok(Verification::invalid_unconfirmed()),
            _ => Err(reply.cannot_tell()),
        }
    }
}

impl Record {
    fn verification(self) -> Result<Verification, VerifyError> {
        let permissions = self.permissions.as_deref().unwrap_or_default();
        let verification = match self.owner {
            Owner::Organization { id } => fields::verification(Some(&id)),
            Owner::User {
                id,
                organization_id,
            } => fields::verification(organization_id.as_deref())
                .map(|verification| verification.with_user_id(id)),
        };
        Ok(verification?
            .with_key_id(fields::key_id(&self.id)?)
            .with_scopes(fields::scopes(permissions.iter().map(String::as_str))?))
    }
}
