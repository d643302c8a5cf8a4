//! What sinks that call a meter over HTTP share.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use orgkey_http::Pinned;
use reqwest::{Client, RequestBuilder, Response};
use tower_orgkey::ConfigError;
use url::Url;

use crate::sink::PushError;

/// The settings of the client.
#[derive(Debug)]
pub(crate) struct HttpSettings {
    pub(crate) certificates: Vec<Vec<u8>>,
    pub(crate) allow_http: bool,
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
}

/// The setters of a builder with [`HttpSettings`] in its field `http`.
macro_rules! http_setters {
    () => {
        /// Adds root certificates, one or more in PEM. May be called again.
        pub fn add_root_certificate_pem(mut self, pem: impl AsRef<[u8]>) -> Self {
            self.http.certificates.push(pem.as_ref().to_vec());
            self
        }

        /// Allows `http://` for any host. Default: for loopback only.
        ///
        /// # Warning
        ///
        /// Secrets and the usage of each customer are sent in clear text.
        pub fn dangerously_allow_http(mut self) -> Self {
            self.http.allow_http = true;
            self
        }

        /// Sets how long a connection may take, TLS included. Not zero. Default: 2 s.
        pub fn connect_timeout(mut self, timeout: Duration) -> Self {
            self.http.connect_timeout = timeout;
            self
        }

        /// Sets how long a call may take. Not zero. Default: 10 s. The pusher's
        /// [timeout](crate::UsagePusherBuilder::push_timeout) may be shorter.
        pub fn timeout(mut self, timeout: Duration) -> Self {
            self.http.timeout = timeout;
            self
        }
    };
}
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

impl HttpSettings {
    /// Builds the client for this path of an origin. `field` is the name of the setting that holds the origin.
    pub(crate) fn endpoint(
        &self,
        field: &'static str,
        origin: &str,
        path: &str,
    ) -> Result<Endpoint, ConfigError> {
        let timeouts = [
            ("connect_timeout", self.connect_timeout),
            ("timeout", self.timeout),
        ];
        for (field, timeout) in timeouts {
            if timeout.is_zero() {
                return Err(ConfigError::new(field, "must not be zero"));
            }
        }
        let origin = orgkey_http::origin(origin, self.allow_http)
            .map_err(|problem| ConfigError::new(field, problem))?;
        let client = Pinned {
            origin: &origin,
            connect_timeout: self.connect_timeout,
            certificates: &self.certificates,
            proxy: None,
        }
        .build()
        .map_err(|error| ConfigError::new(error.field, error.problem))?;
        if !path.starts_with('/') || path.contains(['?', '#']) {
            return Err(ConfigError::new(
                "path",
                "must begin with `/`, and have no query or fragment",
            ));
        }
        let mut url = origin;
        url.set_path(path);
        Ok(Endpoint {
            client,
            url,
            timeout: self.timeout,
        })
    }
}

/// An endpoint of a meter.
pub(crate) struct Endpoint {
    client: Client,
    url: Url,
    timeout: Duration,
}

impl Endpoint {
    pub(crate) fn post(&self) -> RequestBuilder {
        self.client.post(self.url.clone()).timeout(self.timeout)
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }
}

/// Returns `Bearer <secret>`, zeroized on drop. `field` is the name of the setting.
pub(crate) fn authorization(field: &'static str, secret: &str) -> Result<HeaderValue, ConfigError> {
    let problem = "must be visible ASCII, not empty, and at most 16 KiB";
    orgkey_http::bearer(secret).ok_or_else(|| ConfigError::new(field, problem))
}

/// Sends a request that stores records.
pub(crate) async fn send(request: RequestBuilder) -> Result<Response, PushError> {
    request.send().await.map_err(|error| {
        let is_sent = !error.is_connect();
        let error = error.without_url();
        if is_sent {
            PushError::retry(error)
        } else {
            PushError::not_stored(error)
        }
    })
}

/// What a response says about the batch that was sent.
pub(crate) fn classify(status: StatusCode, headers: &HeaderMap) -> Result<(), PushError> {
    if status.is_success() {
        return Ok(());
    }
    let answer = format!("status {}", status.as_u16());
    let error = match status.as_u16() {
        401 | 403 | 404 | 405 | 425 | 429 => PushError::not_stored(answer),
        // A proxy may say 408 about a request that the meter has read.
        400..=499 if status != StatusCode::REQUEST_TIMEOUT => {
            return Err(PushError::permanent(answer));
        }
        _ => PushError::retry(answer),
    };
    Err(match orgkey_http::retry_after(headers) {
        Some(wait) => error.after(wait),
        None => error,
    })
}

#[cfg(test)]
mod tests {
    use http::header::RETRY_AFTER;

    use super::*;
    use crate::PushErrorKind;

    fn answer(status: u16, retry_after: Option<&'static str>) -> Result<(), PushErrorKind> {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
        }
        let status = StatusCode::from_u16(status).unwrap();
        classify(status, &headers).map_err(|error| error.kind())
    }

    #[test]
    fn responses_are_classified() {
        for status in [200, 202, 204] {
            assert_eq!(answer(status, None), Ok(()));
        }
        for status in [400, 402, 409, 413, 415, 422] {
            assert_eq!(answer(status, Some("5")), Err(PushErrorKind::Permanent));
        }
        let seconds = |asked: Option<u64>| asked.map(Duration::from_secs);
        for (asked, text) in [(None, None), (Some(30), Some("30"))] {
            for status in [401, 403, 404, 405, 425, 429] {
                let after = seconds(asked);
                let expected = Err(PushErrorKind::NotStored { after });
                assert_eq!(answer(status, text), expected);
            }
            for status in [301, 307, 408, 500, 502, 503] {
                let after = seconds(asked);
                assert_eq!(answer(status, text), Err(PushErrorKind::Retry { after }));
            }
        }
        for absurd in ["-1", "soon", "Wed, 21 Oct 2026 07:28:00 GMT", "1e9"] {
            let expected = Err(PushErrorKind::NotStored { after: None });
            assert_eq!(answer(429, Some(absurd)), expected);
        }
    }
}
