use std::fmt;
use std::time::Duration;

use tower_orgkey::ConfigError;
use zeroize::Zeroizing;

use super::HttpMeter;
use super::endpoint::authorization;

/// The settings of the client.
#[derive(Debug)]
pub(crate) struct HttpSettings {
    pub(crate) certificates: Vec<Vec<u8>>,
    pub(crate) allow_http: bool,
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
}

/// The setters of a builder with [`HttpSettings`] in this field.
macro_rules! http_setters {
    ($($field:ident).+) => {
        /// Adds root certificates, one or more in PEM. May be called again.
        pub fn add_root_certificate_pem(mut self, pem: impl AsRef<[u8]>) -> Self {
            self.$($field).+.certificates.push(pem.as_ref().to_vec());
            self
        }

        /// Allows `http://` for any host. Default: for loopback only.
        ///
        /// # Warning
        ///
        /// Secrets and the usage of each customer are sent in clear text.
        pub fn dangerously_allow_http(mut self) -> Self {
            self.$($field).+.allow_http = true;
            self
        }

        /// Sets how long a connection may take, TLS included. Not zero. Default: 2 s.
        pub fn connect_timeout(mut self, timeout: Duration) -> Self {
            self.$($field).+.connect_timeout = timeout;
            self
        }

        /// Sets how long a call may take. Not zero. Default: 10 s. The pusher's
        /// [timeout](crate::UsagePusherBuilder::push_timeout) may be shorter.
        pub fn timeout(mut self, timeout: Duration) -> Self {
            self.$($field).+.timeout = timeout;
            self
        }
    };
}
#[cfg(any(feature = "openmeter", feature = "stripe"))]
pub(crate) use http_setters;

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            certificates: Vec::new(),
            allow_http: false,
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(10),
        }
    }
}

/// Configures an [`HttpMeter`].
#[must_use]
pub struct HttpMeterBuilder {
    origin: String,
    path: String,
    token: Option<Zeroizing<String>>,
    pub(crate) http: HttpSettings,
}

impl HttpMeterBuilder {
    pub(super) fn new(origin: String, path: String) -> Self {
        Self {
            origin,
            path,
            token: None,
            http: HttpSettings::default(),
        }
    }

    /// Sets the bearer token. Default: none.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Zeroizing::new(token.into()));
        self
    }

    #[cfg(feature = "openmeter")]
    pub(crate) fn path(mut self, path: String) -> Self {
        self.path = path;
        self
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    http_setters!(http);

    /// Builds the meter. Needs no runtime.
    ///
    /// # Errors
    ///
    /// Names the setting that cannot be used, and never its value: `origin` is no absolute `http` or `https` URL, has a path,
    /// query, fragment or user, is `http` beyond loopback, or `https` with neither TLS feature on; `path` does not begin with `/`,
    /// or has a query or fragment; `token` is empty or not visible ASCII; `add_root_certificate_pem` holds no certificate;
    /// `connect_timeout` or `timeout` is zero.
    pub fn build(self) -> Result<HttpMeter, ConfigError> {
        let token = self.token.as_ref();
        let authorization = token.map(|token| authorization("token", token));
        Ok(HttpMeter {
            endpoint: self.http.endpoint("origin", &self.origin, &self.path)?,
            authorization: authorization.transpose()?,
        })
    }
}

impl fmt::Debug for HttpMeterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpMeterBuilder")
            .field("has_token", &self.has_token())
            .finish_non_exhaustive()
    }
}
