use std::sync::Arc;
use std::time::Duration;

use orgkey_http::Pinned;
use reqwest::Client;
use url::Url;
use zeroize::Zeroizing;

use super::evidence::Evidence;
use super::http::Http;
use super::own_api::OwnApi;
use super::token::{Credentials, TokenRequest, TokenSource, static_token};
use super::verifier::{Kinde, KindeVerifier, UnauthorizedMeans};
use super::wire::bearer;
use crate::clock::Clock;
use crate::config::ConfigError;

/// Configures and builds a [`KindeVerifier`]. See the [module documentation](crate::kinde).
///
/// Unless [`api_id`](Self::api_id) is set, the verifier accepts keys of every API of the Kinde environment.
#[must_use]
pub struct KindeVerifierBuilder {
    issuer: String,
    choice: Option<Choice>,
    audience: Option<String>,
    scope: Option<String>,
    api_id: Option<String>,
    unauthorized: UnauthorizedMeans,
    certificates: Vec<Vec<u8>>,
    proxy: Option<Zeroizing<String>>,
    allow_http: bool,
    connect_timeout: Duration,
    clock: Clock,
}

/// The credentials of this service.
enum Choice {
    Client {
        id: Zeroizing<String>,
        secret: Zeroizing<String>,
    },
    Static(Zeroizing<String>),
    None,
}

impl KindeVerifierBuilder {
    pub(super) fn new(issuer: String) -> Self {
        Self {
            issuer,
            choice: None,
            audience: None,
            scope: None,
            api_id: None,
            unauthorized: UnauthorizedMeans::default(),
            certificates: Vec::new(),
            proxy: None,
            allow_http: false,
            connect_timeout: Duration::from_millis(500),
            clock: Clock::default(),
        }
    }

    /// Sets the credentials of a machine-to-machine application that is authorized for the Kinde management API with the scope
    /// `read:api_keys`. Access tokens are fetched with them and renewed before they expire, one at a time: Kinde bills each.
    pub fn client_credentials(
        mut self,
        client_id: impl Into<String>,
        client_secret: impl Into<String>,
    ) -> Self {
        self.choice = Some(Choice::Client {
            id: Zeroizing::new(client_id.into()),
            secret: Zeroizing::new(client_secret.into()),
        });
        self
    }

    /// Sets a static bearer token instead of client credentials. It is never renewed: if Kinde rejects it, callers with unknown
    /// keys get 503.
    pub fn bearer_token(mut self, token: impl Into<String>) -> Self {
        self.choice = Some(Choice::Static(Zeroizing::new(token.into())));
        self
    }

    /// Sends no credentials. Kinde's description of the endpoint calls it public; its security scheme does not.
    ///
    /// Without a token there are no probes: a 401 or 403 is about the key once verify has answered 200 in this process; before
    /// that, the verifier cannot tell.
    pub fn without_credentials(mut self) -> Self {
        self.choice = Some(Choice::None);
        self
    }

    /// Sets the audience of the access token; `<issuer>/api` unless set. For client credentials only.
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audience = Some(audience.into());
        self
    }

    /// Sets the scopes of the access token, separated by spaces. All scopes of the application unless set. For client
    /// credentials only.
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    /// Accepts only keys that were issued for the API with this id.
    ///
    /// Unless set, a key of any API of the same Kinde environment is valid, with any scope of the same name: the verification
    /// response does not name the API.
    ///
    /// This costs one request per key id and hour, also for keys of other APIs, for which the application needs the scope
    /// `read:api_keys`. A verification response without `key_id` cannot be checked: the layer returns 503 for unknown keys, and the
    /// log names the cause.
    pub fn api_id(mut self, api_id: impl Into<String>) -> Self {
        self.api_id = Some(api_id.into());
        self
    }

    /// Sets which credential a 401 or 403 from verify is about. Decided by evidence unless set.
    pub fn unauthorized_means(mut self, means: UnauthorizedMeans) -> Self {
        self.unauthorized = means;
        self
    }

    /// Adds trusted root certificates for TLS to the issuer, one or more in PEM. May be called more than once.
    pub fn add_root_certificate_pem(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.certificates.push(pem.as_ref().to_vec());
        self
    }

    /// Sets a proxy, `http://` or `https://`. None unless set; `HTTP_PROXY` and similar variables of the environment are never
    /// read.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Some(Zeroizing::new(url.into()));
        self
    }

    /// Permits an `http://` issuer on any host. By default, only on loopback.
    ///
    /// # Warning
    ///
    /// All keys and the client secret are then sent unencrypted.
    pub fn dangerously_allow_http(mut self) -> Self {
        self.allow_http = true;
        self
    }

    /// Sets the timeout for connecting, including the TLS handshake. Not zero; 0.5 s unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Reads the time from a [`TestClock`](crate::test_util::TestClock).
    #[cfg(feature = "test-util")]
    pub fn test_clock(mut self, clock: crate::test_util::TestClock) -> Self {
        self.clock = Clock::Test(clock);
        self
    }

    /// Builds the verifier. Needs no runtime and spawns no task.
    ///
    /// # Errors
    ///
    /// Names the invalid setting, never its value:
    ///
    /// * `issuer`: not an absolute `http` or `https` URL, or one with a path, query, fragment or user; `http` on a host other
    ///   than loopback; `https` without a TLS feature,
    /// * `credentials`: no credentials were chosen,
    /// * `client_credentials`, `bearer_token`, `audience`, `scope`, `api_id`: empty, or not valid in a header; `api_id` without
    ///   credentials,
    /// * `add_root_certificate_pem`, `proxy`, `connect_timeout`: invalid.
    pub fn build(self) -> Result<KindeVerifier, ConfigError> {
        let issuer = self.issuer()?;
        self.check_texts()?;
        let client = self.client(&issuer)?;
        let http = Arc::new(Http::new(client, &issuer));
        let origin = issuer.as_str().trim_end_matches('/').to_owned();
        let client_id = match &self.choice {
            Some(Choice::Client { id, .. }) => id.as_str(),
            _ => "",
        };
        let api_id = self.api_id.as_deref().unwrap_or_default();
        let identity = format!("kinde {origin} client={client_id} api={api_id}");
        let own_api = self
            .api_id
            .map(|api_id| OwnApi::new(Arc::clone(&http), self.clock.clone(), api_id));
        let credentials = match self.choice {
            Some(Choice::Client { id, secret }) => {
                let request = TokenRequest {
                    client_id: id,
                    client_secret: secret,
                    audience: self.audience.unwrap_or_else(|| format!("{origin}/api")),
                    scope: self.scope,
                };
                let source = TokenSource::new(Arc::clone(&http), self.clock.clone(), request);
                Credentials::Client(Arc::new(source))
            }
            Some(Choice::Static(token)) => {
                let header = bearer(&token).ok_or_else(|| {
                    ConfigError::new("bearer_token", "must be visible ASCII, and not empty")
                })?;
                Credentials::Static(static_token(header))
            }
            Some(Choice::None) if own_api.is_some() => {
                return Err(ConfigError::new(
                    "api_id",
                    "needs credentials, to look up keys",
                ));
            }
            Some(Choice::None) => Credentials::None,
            None => {
                return Err(ConfigError::new(
                    "credentials",
                    "choose `client_credentials`, `bearer_token` or `without_credentials`",
                ));
            }
        };
        Ok(KindeVerifier(Arc::new(Kinde {
            issuer: origin,
            identity,
            evidence: Arc::new(Evidence::new(Arc::clone(&http), self.clock)),
            http,
            credentials,
            unauthorized: self.unauthorized,
            own_api,
            management_renewals: Default::default(),
        })))
    }

    fn issuer(&self) -> Result<Url, ConfigError> {
        orgkey_http::origin(&self.issuer, self.allow_http)
            .map_err(|problem| ConfigError::new("issuer", problem))
    }

    fn check_texts(&self) -> Result<(), ConfigError> {
        let empty = |field| Err(ConfigError::new(field, "must not be empty"));
        if let Some(Choice::Client { id, secret }) = &self.choice
            && (id.trim().is_empty() || secret.trim().is_empty())
        {
            return empty("client_credentials");
        }
        for (field, text) in [
            ("audience", &self.audience),
            ("scope", &self.scope),
            ("api_id", &self.api_id),
        ] {
            if text.as_ref().is_some_and(|text| text.trim().is_empty()) {
                return empty(field);
            }
        }
        if self.connect_timeout.is_zero() {
            return Err(ConfigError::new("connect_timeout", "must not be zero"));
        }
        Ok(())
    }

    fn client(&self, issuer: &Url) -> Result<Client, ConfigError> {
        let proxy = match &self.proxy {
            Some(proxy) => Some(proxy_at(proxy)?),
            None => None,
        };
        let pinned = Pinned {
            origin: issuer,
            connect_timeout: self.connect_timeout,
            certificates: &self.certificates,
            proxy,
        };
        pinned
            .build()
            .map_err(|error| ConfigError::new(error.field, error.problem))
    }
}

fn proxy_at(url: &str) -> Result<reqwest::Proxy, ConfigError> {
    let invalid = || ConfigError::new("proxy", "is not an `http://` or `https://` URL");
    let parsed = Url::parse(url).map_err(|_| invalid())?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(invalid());
    }
    reqwest::Proxy::all(parsed).map_err(|_| invalid())
}

impl_debug!(KindeVerifierBuilder, |builder| { unauthorized_means: builder.unauthorized });
