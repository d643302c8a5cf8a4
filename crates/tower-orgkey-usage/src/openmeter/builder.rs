use std::fmt;
use std::time::Duration;

use http::HeaderValue;
use orgkey_http::Pinned;
use zeroize::Zeroizing;

use super::OpenMeterSink;
use super::event::Names;
use tower_orgkey::ConfigError;

/// Configures an [`OpenMeterSink`].
#[must_use]
pub struct OpenMeterSinkBuilder {
    origin: String,
    token: Option<Zeroizing<String>>,
    names: Names,
    certificates: Vec<Vec<u8>>,
    allow_http: bool,
    connect_timeout: Duration,
    timeout: Duration,
}

impl OpenMeterSinkBuilder {
    pub(super) fn new(origin: String) -> Self {
        Self {
            origin,
            token: None,
            names: Names {
                source: "tower-orgkey".to_owned(),
                event_type: "tower-orgkey.usage".to_owned(),
                unattributed: None,
            },
            certificates: Vec::new(),
            allow_http: false,
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(10),
        }
    }

    /// Sets the bearer token. Default: none, as a self-hosted OpenMeter may not need one.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Zeroizing::new(token.into()));
        self
    }

    /// Sets the name of the service that the events come from, the same for all its instances. Not empty. Default:
    /// `tower-orgkey`.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.names.source = source.into();
        self
    }

    /// Sets the event type, by which meters select events. Not empty. Default: `tower-orgkey.usage`.
    pub fn event_type(mut self, event_type: impl Into<String>) -> Self {
        self.names.event_type = event_type.into();
        self
    }

    /// Sets a subject for records without an organization. Default: they are not sent.
    pub fn unattributed_subject(mut self, subject: impl Into<String>) -> Self {
        self.names.unattributed = Some(subject.into());
        self
    }

    /// Adds root certificates, one or more in PEM. May be called again.
    pub fn add_root_certificate_pem(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.certificates.push(pem.as_ref().to_vec());
        self
    }

    /// Allows `http://` for any host. Default: for loopback only.
    ///
    /// # Warning
    ///
    /// The token and the usage of each customer are sent in clear text.
    pub fn dangerously_allow_http(mut self) -> Self {
        self.allow_http = true;
        self
    }

    /// Sets how long a connection may take, TLS included. Not zero. Default: 2 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long a call may take. Not zero. Default: 10 s. The pusher's
    /// [timeout](crate::UsagePusherBuilder::push_timeout) may be shorter.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Builds the sink. Needs no runtime.
    ///
    /// # Errors
    ///
    /// Names the setting that cannot be used, and never its value: `origin` is no absolute `http` or `https` URL, has a path,
    /// query, fragment or user, is `http` beyond loopback, or `https` with neither TLS feature on; `token` is empty or not
    /// visible ASCII; `source`, `event_type` or `unattributed_subject` is empty; `add_root_certificate_pem` holds no
    /// certificate; `connect_timeout` or `timeout` is zero.
    pub fn build(self) -> Result<OpenMeterSink, ConfigError> {
        let origin = orgkey_http::origin(&self.origin, self.allow_http)
            .map_err(|problem| ConfigError::new("origin", problem))?;
        self.check()?;
        let authorization = match &self.token {
            Some(token) => Some(bearer(token)?),
            None => None,
        };
        let client = Pinned {
            origin: &origin,
            connect_timeout: self.connect_timeout,
            certificates: &self.certificates,
            proxy: None,
        }
        .build()
        .map_err(|error| ConfigError::new(error.field, error.problem))?;
        let mut endpoint = origin;
        endpoint.set_path("/api/v1/events");
        Ok(OpenMeterSink {
            client,
            endpoint,
            authorization,
            names: self.names,
            timeout: self.timeout,
        })
    }

    fn check(&self) -> Result<(), ConfigError> {
        let texts = [
            ("source", Some(&self.names.source)),
            ("event_type", Some(&self.names.event_type)),
            ("unattributed_subject", self.names.unattributed.as_ref()),
        ];
        for (field, text) in texts {
            if text.is_some_and(|text| text.trim().is_empty()) {
                return Err(ConfigError::new(field, "must not be empty"));
            }
        }
        for (field, timeout) in [
            ("connect_timeout", self.connect_timeout),
            ("timeout", self.timeout),
        ] {
            if timeout.is_zero() {
                return Err(ConfigError::new(field, "must not be zero"));
            }
        }
        Ok(())
    }
}

fn bearer(token: &str) -> Result<HeaderValue, ConfigError> {
    let wrong = || ConfigError::new("token", "must be visible ASCII, and not empty");
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong());
    }
    let text = Zeroizing::new(format!("Bearer {token}"));
    let mut header = HeaderValue::from_str(&text).map_err(|_| wrong())?;
    header.set_sensitive(true);
    Ok(header)
}

impl fmt::Debug for OpenMeterSinkBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenMeterSinkBuilder")
            .field("names", &self.names)
            .field("has_token", &self.token.is_some())
            .finish_non_exhaustive()
    }
}
