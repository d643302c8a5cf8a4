use std::fmt;
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

/// Builds a [`KindeVerifier`]. See the [module's guide](crate::kinde).
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

/// Which credentials were chosen.
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

    /// Our own credentials: those of a machine-to-machine application that may use the Kinde management API, with the scope
    /// `read:api_keys`. Tokens are fetched with them and renewed ahead of their end, one at a time: each one is billed.
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

    /// A bearer token that never changes, such as a key of the environment, instead of client credentials. Nothing can renew
    /// it: when Kinde refuses it, callers with unknown keys get 503.
    pub fn bearer_token(mut self, token: impl Into<String>) -> Self {
        self.choice = Some(Choice::Static(Zeroizing::new(token.into())));
        self
    }

    /// No credentials at all. Kinde's description of the endpoint calls it public; its security scheme says otherwise.
    ///
    /// Without a token nothing can be probed: a 401 or 403 is the key's once verify has answered 200 in this process,
    /// and before that it is "cannot tell".
    pub fn without_credentials(mut self) -> Self {
        self.choice = Some(Choice::None);
        self
    }

    /// The audience of our token; `<issuer>/api` unless set. Client credentials only.
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audience = Some(audience.into());
        self
    }

    /// The scopes of our token, separated by spaces: fewer than the application has. All of them unless set. Client
    /// credentials only.
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    /// Admits only keys that were issued for the API with this id.
    ///
    /// Unless set, a key of any API of the same Kinde environment is valid, with any scope of the same name: the verification
    /// response does not name the API.
    ///
    /// Costs one call per key id and hour, for which the application needs the scope `read:api_keys`. A verification response
    /// without `key_id` cannot be checked: the layer returns 503 to unknown keys, and the log names the cause.
    pub fn api_id(mut self, api_id: impl Into<String>) -> Self {
        self.api_id = Some(api_id.into());
        self
    }

    /// Pins the reading of verify's 401 and 403. By evidence unless set.
    pub fn unauthorized_means(mut self, means: UnauthorizedMeans) -> Self {
        self.unauthorized = means;
        self
    }

    /// Trusts these certificates too, one or more in PEM, for TLS to the issuer. May be called again.
    pub fn add_root_certificate_pem(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.certificates.push(pem.as_ref().to_vec());
        self
    }

    /// Goes through this proxy, `http://` or `https://`. None unless set: the environment's `HTTP_PROXY` and its kin are
    /// never read.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Some(Zeroizing::new(url.into()));
        self
    }

    /// Lets the issuer's URL be `http://` on any host. Unless set, on loopback only.
    ///
    /// # Warning
    ///
    /// Every key and our own secret then cross the network in clear.
    pub fn dangerously_allow_http(mut self) -> Self {
        self.allow_http = true;
        self
    }

    /// How long a connection may take, TLS included. Not zero; 0.5 s unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Reads the time from a test's clock.
    #[cfg(feature = "test-util")]
    pub fn test_clock(mut self, clock: crate::test_util::TestClock) -> Self {
        self.clock = Clock::Test(clock);
        self
    }

    /// The verifier. Needs no runtime, and starts nothing.
    ///
    /// # Errors
    ///
    /// Names the setting that cannot be used, and never its value:
    ///
    /// * `issuer`: not an absolute `http` or `https` URL, or one with a path, query, fragment or user; `http` beyond
    ///   loopback; `https` with neither TLS feature on,
    /// * `credentials`: none of the three choices was made,
    /// * `client_credentials`, `bearer_token`, `audience`, `scope`, `api_id`: empty, or not fit to be sent; `api_id` without
    ///   credentials,
    /// * `add_root_certificate_pem`, `proxy`, `connect_timeout`: not usable.
    pub fn build(self) -> Result<KindeVerifier, ConfigError> {
        let issuer = self.issuer()?;
        self.check_texts()?;
        let client = self.client(&issuer)?;
        let http = Arc::new(Http::new(client, &issuer));
        let origin = issuer.as_str().trim_end_matches('/').to_owned();
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
                    "looking keys up needs credentials",
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
            evidence: Arc::new(Evidence::new(Arc::clone(&http), self.clock)),
            http,
            credentials,
            unauthorized: self.unauthorized,
            own_api,
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
    let wrong = || ConfigError::new("proxy", "is no `http://` or `https://` URL");
    let parsed = Url::parse(url).map_err(|_| wrong())?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(wrong());
    }
    reqwest::Proxy::all(parsed).map_err(|_| wrong())
}

impl fmt::Debug for KindeVerifierBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KindeVerifierBuilder")
            .field("unauthorized_means", &self.unauthorized)
            .finish_non_exhaustive()
    }
}
