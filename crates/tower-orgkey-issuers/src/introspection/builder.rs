use std::fmt;
use std::sync::Arc;

use tower_orgkey::{ApiKey, ConfigError, VerifyError};

use super::claims::Claims;
use super::preset::Preset;
use super::verifier::IntrospectionVerifier;
use crate::Endpoint;

type Organization = Arc<dyn Fn(&Claims) -> Result<Option<String>, VerifyError> + Send + Sync>;

/// The audience that a token must have.
#[derive(Debug)]
pub(super) enum Audience {
    Any,
    Required(String),
}

/// What a token must be, and where its organization is.
pub(super) struct Rules {
    pub(super) audience: Audience,
    pub(super) organization: Organization,
    /// Of the member or the preset.
    pub(super) organization_name: String,
    pub(super) allow_missing_token_type: bool,
    /// Whether subjects are no users.
    pub(super) service_accounts: bool,
}

/// Configures and builds an [`IntrospectionVerifier`]. An audience and the organization are required.
#[must_use]
pub struct IntrospectionVerifierBuilder {
    endpoint: Endpoint,
    audience: Option<Audience>,
    organization: Option<Organization>,
    organization_name: String,
    allow_missing_token_type: bool,
    service_accounts: bool,
    canary: Result<Option<ApiKey>, ConfigError>,
}

impl IntrospectionVerifierBuilder {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            audience: None,
            organization: None,
            organization_name: String::new(),
            allow_missing_token_type: false,
            service_accounts: false,
            canary: Ok(None),
        }
    }

    /// Requires that `aud` is this audience or contains it.
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audience = Some(Audience::Required(audience.into()));
        self
    }

    /// Accepts tokens for any audience, and without one.
    ///
    /// # Warning
    ///
    /// A token that a customer gave to another API of the same server is then a key of this one.
    pub fn any_audience(mut self) -> Self {
        self.audience = Some(Audience::Any);
        self
    }

    /// Reads the organization from this member of the reply. A token without it, or with null or blank text, belongs to no
    /// organization; another type is an invalid response.
    pub fn organization_claim(self, name: impl Into<String>) -> Self {
        let name = name.into();
        self.read_organization(format!("claim {name}"), move |claims| {
            Ok(claims.text(&[&name])?.map(str::to_owned))
        })
    }

    /// Reads the organization from the reply. `None` and blank text mean that the token belongs to none.
    ///
    /// The verifier then joins no fleet, because two functions cannot be told apart: see
    /// [`organization_named`](Self::organization_named).
    ///
    /// ```
    /// # use tower_orgkey_issuers::Endpoint;
    /// use tower_orgkey_issuers::introspection::IntrospectionVerifier;
    ///
    /// # let endpoint = Endpoint::builder("http://127.0.0.1:4000/introspect").build()?;
    /// let builder = IntrospectionVerifier::builder(endpoint)
    ///     .organization(|claims| Ok(claims.text(&["ext", "tenant"])?.map(str::to_owned)));
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn organization(
        self,
        read: impl Fn(&Claims) -> Result<Option<String>, VerifyError> + Send + Sync + 'static,
    ) -> Self {
        self.read_organization(String::new(), read)
    }

    /// Like [`organization`](Self::organization), with a name of the function, for a fleet. Nodes whose functions have the same
    /// name share results, so a function that reads other organizations needs another name.
    ///
    /// ```
    /// # use tower_orgkey_issuers::Endpoint;
    /// use tower_orgkey_issuers::introspection::IntrospectionVerifier;
    ///
    /// # let endpoint = Endpoint::builder("http://127.0.0.1:4000/introspect").build()?;
    /// let builder = IntrospectionVerifier::builder(endpoint)
    ///     .organization_named("ext.tenant, 2", |claims| Ok(claims.text(&["ext", "tenant"])?.map(str::to_owned)));
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn organization_named(
        self,
        name: impl AsRef<str>,
        read: impl Fn(&Claims) -> Result<Option<String>, VerifyError> + Send + Sync + 'static,
    ) -> Self {
        self.read_organization(format!("function {}", name.as_ref()), read)
    }

    fn read_organization(
        mut self,
        name: String,
        read: impl Fn(&Claims) -> Result<Option<String>, VerifyError> + Send + Sync + 'static,
    ) -> Self {
        self.organization = Some(Arc::new(read));
        self.organization_name = name;
        self
    }

    /// Reads the organization where this server has it.
    ///
    /// ```
    /// use tower_orgkey_issuers::Endpoint;
    /// use tower_orgkey_issuers::introspection::{IntrospectionVerifier, Preset};
    ///
    /// let endpoint = Endpoint::builder("http://127.0.0.1:4445/admin/oauth2/introspect").build()?;
    /// let hydra = IntrospectionVerifier::builder(endpoint)
    ///     .preset(Preset::Hydra)
    ///     .audience("https://api.acme.example")
    ///     .build()?;
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn preset(self, preset: Preset) -> Self {
        self.read_organization(format!("preset {preset:?}"), move |claims| {
            preset.organization(claims)
        })
    }

    /// Accepts active tokens without a `token_type`, for a server that never sends one.
    ///
    /// # Warning
    ///
    /// Some servers leave it out of refresh tokens only, which are then keys too.
    pub fn allow_missing_token_type(mut self) -> Self {
        self.allow_missing_token_type = true;
        self
    }

    /// States that the subjects of all tokens are service accounts of organizations. Unless set, a token whose `sub` is not its
    /// `client_id` acts for a user.
    ///
    /// # Warning
    ///
    /// If people get tokens for this audience too, each of them then acts for the whole organization.
    pub fn service_accounts(mut self) -> Self {
        self.service_accounts = true;
        self
    }

    /// Sets a token of your own that is always active. It shows that the server is working when the server says that a
    /// known key is inactive, see the [module documentation](super#inactive-is-not-always-an-answer).
    ///
    /// The canary costs two calls per revoked known key, and none otherwise.
    pub fn canary(mut self, token: impl AsRef<str>) -> Self {
        self.canary = ApiKey::parse(token.as_ref())
            .map(Some)
            .map_err(|_| ConfigError::new("canary", "must be a token of at least 8 characters"));
        self
    }

    /// Builds the verifier. Needs no runtime.
    ///
    /// # Errors
    ///
    /// Names the invalid setting: `audience` if neither [`audience`](Self::audience) nor [`any_audience`](Self::any_audience)
    /// is set, or if it is blank; `organization` if it is not set; `canary` if it is no token.
    pub fn build(self) -> Result<IntrospectionVerifier, ConfigError> {
        let Some(audience) = self.audience else {
            return Err(ConfigError::new(
                "audience",
                "set the audience of this API, or `any_audience`",
            ));
        };
        if matches!(&audience, Audience::Required(text) if text.trim().is_empty()) {
            return Err(ConfigError::new("audience", "must not be empty"));
        }
        let Some(organization) = self.organization else {
            return Err(ConfigError::new(
                "organization",
                "set `organization_claim`, `organization` or `preset`",
            ));
        };
        let rules = Rules {
            audience,
            organization,
            organization_name: self.organization_name,
            allow_missing_token_type: self.allow_missing_token_type,
            service_accounts: self.service_accounts,
        };
        Ok(IntrospectionVerifier::new(
            self.endpoint,
            rules,
            self.canary?,
        ))
    }
}

impl fmt::Debug for IntrospectionVerifierBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntrospectionVerifierBuilder")
            .field("endpoint", &self.endpoint)
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}
