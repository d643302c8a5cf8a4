//! A client for one URL.

use std::time::Duration;

use http::HeaderValue;
use orgkey_http::Pinned;
use reqwest::{Client, RequestBuilder};
use tower_orgkey::ConfigError;
use url::Url;

use super::builder::HttpSettings;
use super::reply::HttpReply;
use crate::sink::PushError;

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
pub(crate) async fn send(request: RequestBuilder) -> Result<HttpReply, PushError> {
    let sent = request.send().await;
    sent.map(HttpReply::new).map_err(|error| {
        let is_sent = !error.is_connect();
        let error = error.without_url();
        if is_sent {
            PushError::retry(error)
        } else {
            PushError::not_stored(error).of_sink()
        }
    })
}
