//! A meter that is called over HTTP.

mod builder;
mod endpoint;
mod reply;

use std::fmt;

use http::HeaderValue;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use serde::Serialize;

pub use self::builder::HttpMeterBuilder;
#[cfg(feature = "stripe")]
pub(crate) use self::builder::HttpSettings;
#[cfg(any(feature = "openmeter", feature = "stripe"))]
pub(crate) use self::builder::http_setters;
#[cfg(feature = "stripe")]
pub(crate) use self::endpoint::authorization;
pub(crate) use self::endpoint::{Endpoint, send};
pub use self::reply::HttpReply;
use crate::sink::PushError;

/// The ingest endpoint of a meter, for a [`UsageSink`](crate::UsageSink) that calls it over HTTP.
///
/// It sends a bearer token, limits the time of a call and the size of a reply, and tells calls that stored nothing from those that
/// may have stored records. It reads no proxy from the environment, follows no redirects and retries nothing. TLS needs the
/// feature `rustls` or `native-tls`.
///
/// # Replies
///
/// | reply | result |
/// |---|---|
/// | 2xx | stored |
/// | 400, 413, 422 and all other 4xx but these | [permanent error](crate::PushErrorKind::Permanent) |
/// | 401, 403, 404, 405, 425, 429; no connection | [not stored](crate::PushErrorKind::NotStored), and pushed again: the sink is misconfigured or busy |
/// | 3xx, 408, 5xx, none | [may be stored](crate::PushErrorKind::Retry), and pushed again |
///
/// `Retry-After` and `RateLimit-Reset` in seconds are respected. After 429, and after 503 with one of them, the pusher pauses: these
/// replies are about the caller, whatever it sends. After other replies, only the records of the account that fails wait so long.
///
/// A sink looks for the meter's own rules in the [status](HttpReply::status) and the [body](HttpReply::json), such as that a known
/// event is answered with an error.
///
/// ```
/// use serde_json::json;
/// use tower_orgkey_usage::{HttpMeter, PushError, UsageRecord, UsageSink};
///
/// struct Meter(HttpMeter);
///
/// impl UsageSink for Meter {
///     async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
///         PushError::park_other_organizations(batch)?;
///         let events: Vec<_> = batch
///             .iter()
///             .filter_map(|record| {
///                 let org = record.account.organization()?.as_str();
///                 Some(json!({ "id": record.id, "customer": org, "requests": record.counts.served() }))
///             })
///             .collect();
///         if events.is_empty() {
///             return Ok(());
///         }
///         self.0.post_json(&events).await?.result()
///     }
/// }
///
/// # fn token() -> String { "a-token".to_owned() }
/// let meter = HttpMeter::builder("http://127.0.0.1:8888", "/v1/ingest").token(token()).build()?;
/// let sink = Meter(meter);
/// # Ok::<(), tower_orgkey::ConfigError>(())
/// ```
#[must_use]
pub struct HttpMeter {
    endpoint: Endpoint,
    authorization: Option<HeaderValue>,
}

impl HttpMeter {
    /// Returns a builder for the endpoint at this origin, such as `https://api.getlago.com`, and path, which begins with `/`.
    pub fn builder(origin: impl Into<String>, path: impl Into<String>) -> HttpMeterBuilder {
        HttpMeterBuilder::new(origin.into(), path.into())
    }

    #[cfg(feature = "stripe")]
    pub(crate) fn of(endpoint: Endpoint, authorization: HeaderValue) -> Self {
        Self {
            endpoint,
            authorization: Some(authorization),
        }
    }

    /// Sends a `POST` with this body as JSON.
    ///
    /// # Errors
    ///
    /// As [`post`](Self::post); [`permanent`](PushError::permanent) if the body cannot be serialized.
    pub async fn post_json(&self, body: &(impl Serialize + Sync)) -> Result<HttpReply, PushError> {
        let body = serde_json::to_vec(body).map_err(PushError::permanent)?;
        let json = HeaderValue::from_static("application/json");
        self.post(json, body).await
    }

    /// Sends a `POST` with this content type and body.
    ///
    /// # Errors
    ///
    /// There is no reply: [`not_stored`](PushError::not_stored) without a connection, else [`retry`](PushError::retry). Replies
    /// with an error status are `Ok`.
    pub async fn post(
        &self,
        content_type: HeaderValue,
        body: impl Into<Vec<u8>> + Send,
    ) -> Result<HttpReply, PushError> {
        let request = self.endpoint.post().header(CONTENT_TYPE, content_type);
        let mut request = request.body(body.into());
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        send(request).await
    }

    pub(crate) fn url(&self) -> &str {
        self.endpoint.url().as_str()
    }

    pub(crate) fn has_token(&self) -> bool {
        self.authorization.is_some()
    }
}

impl fmt::Debug for HttpMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpMeter")
            .field("endpoint", &self.url())
            .field("has_token", &self.has_token())
            .finish()
    }
}
