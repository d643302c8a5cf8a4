//! A sink for OpenMeter, and for other services that accept CloudEvents in the same way.

mod builder;
mod event;

use std::fmt;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use reqwest::Client;
use url::Url;

pub use self::builder::OpenMeterSinkBuilder;
use self::event::{Event, Names};
use crate::record::UsageRecord;
use crate::sink::{PushError, UsageSink};

const BATCH: HeaderValue = HeaderValue::from_static("application/cloudevents-batch+json");

/// Pushes records to OpenMeter's ingest endpoint, `POST /api/v1/events`, as a batch of CloudEvents 1.0 in JSON.
///
/// | attribute | is |
/// |---|---|
/// | `id` | the record's [id](UsageRecord::id), by which OpenMeter counts each event once (with `source`) |
/// | `source` | [`source`](OpenMeterSinkBuilder::source); `tower-orgkey` unless set |
/// | `type` | [`event_type`](OpenMeterSinkBuilder::event_type); `tower-orgkey.usage` unless set |
/// | `time` | when the minute began |
/// | `subject` | the organization's code |
/// | `data` | `requests`, `served`, `rejected`, `failed`, `dropped`, `panicked`, `request_bytes`, `response_bytes`, `duration_seconds` (a sum): numbers to add up; `key` and `route`: strings to group by; `rejections`: numbers by code |
///
/// To bill requests, define a meter with `SUM` over `$.served`, grouped by `$.route` if need be: [`served`] counts the requests
/// that reached the handler, and `$.requests` also those that were rejected, for example by a rate limit.
///
/// `key` is the key's id; keys without an id are `(unnamed)`, merged ones `(other keys)`, and routes likewise `(unmatched)` and
/// `(other routes)`.
///
/// Records without an organization are not sent, unless
/// [`unattributed_subject`](OpenMeterSinkBuilder::unattributed_subject) names a subject for them.
///
/// # Responses
///
/// | response | result |
/// |---|---|
/// | 2xx | stored |
/// | 400, 413, 422 and all other 4xx but these | [permanent error](crate::PushErrorKind::Permanent) |
/// | 401, 403, 404, 405, 408, 425, 429 | [retried](crate::PushErrorKind::Retry): the sink is misconfigured or busy |
/// | 3xx, 5xx, none | retried |
///
/// `Retry-After` in seconds is respected.
///
/// # Deduplication
///
/// A record is pushed again if its push failed, for example because the response was lost after the record was stored. OpenMeter
/// then counts it once only while it remembers the id:
///
/// * **The hosted OpenMeter** deduplicates ids for 32 days by its documentation. A record that is pushed again later is counted
///   twice.
/// * **A self-hosted OpenMeter deduplicates nothing unless you enable it**: `dedupe.enabled` and `sink.dedupe.enabled` are false
///   by default. Enable `sink.dedupe`, with the driver `redis` and an `expiration` (24 h by default) longer than the meter may
///   be unreachable. Prefer it to `dedupe`, which remembers an id before it stores the event: if that fails, the event is
///   discarded when it is pushed again.
///
/// # HTTP
///
/// The sink reads no proxy from the environment, follows no redirects and retries nothing. TLS needs the feature `rustls`
/// or `native-tls`.
///
/// [`served`]: crate::Counts::served
///
/// ```
/// use tower_orgkey_usage::{OpenMeterSink, UsageLayer};
///
/// # fn token() -> String { "a-token".to_owned() }
/// let usage = UsageLayer::new();
/// let sink = OpenMeterSink::builder("https://openmeter.cloud")
///     .token(token())
///     .source("acme-api")
///     .build()?;
/// let pusher = usage.handle().pusher(sink).build()?;
/// # Ok::<(), tower_orgkey::ConfigError>(())
/// ```
#[must_use]
pub struct OpenMeterSink {
    client: Client,
    endpoint: Url,
    authorization: Option<HeaderValue>,
    names: Names,
    timeout: Duration,
}

impl OpenMeterSink {
    /// Returns a builder for the sink at this origin, for instance `https://openmeter.cloud`.
    pub fn builder(origin: impl Into<String>) -> OpenMeterSinkBuilder {
        OpenMeterSinkBuilder::new(origin.into())
    }

    async fn post(&self, events: &[Event<'_>]) -> Result<(), PushError> {
        let body = serde_json::to_vec(events).map_err(PushError::permanent)?;
        let mut request = self
            .client
            .post(self.endpoint.clone())
            .header(CONTENT_TYPE, BATCH)
            .timeout(self.timeout)
            .body(body);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        match request.send().await {
            Ok(response) => classify(response.status(), response.headers()),
            Err(error) => Err(PushError::retry(error.without_url())),
        }
    }
}

impl UsageSink for OpenMeterSink {
    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        let events: Vec<Event<'_>> = batch
            .iter()
            .filter_map(|record| Event::of(record, &self.names))
            .collect();
        if events.is_empty() {
            return Ok(());
        }
        self.post(&events).await
    }
}

fn classify(status: StatusCode, headers: &HeaderMap) -> Result<(), PushError> {
    if status.is_success() {
        return Ok(());
    }
    let answer = format!("status {}", status.as_u16());
    let is_about_us = matches!(status.as_u16(), 401 | 403 | 404 | 405 | 408 | 425 | 429);
    if status.is_client_error() && !is_about_us {
        return Err(PushError::permanent(answer));
    }
    let error = PushError::retry(answer);
    let wait = headers
        .get(RETRY_AFTER)
        .and_then(|wait| wait.to_str().ok()?.trim().parse().ok());
    Err(match wait {
        Some(seconds) => error.after(Duration::from_secs(seconds)),
        None => error,
    })
}

impl fmt::Debug for OpenMeterSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenMeterSink")
            .field("endpoint", &self.endpoint.as_str())
            .field("names", &self.names)
            .field("has_token", &self.authorization.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
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
        let retry = |after| Err(PushErrorKind::Retry { after });
        for status in [301, 307, 401, 403, 404, 405, 408, 425, 429, 500, 502, 503] {
            assert_eq!(answer(status, None), retry(None));
            let asked = Some(Duration::from_secs(30));
            assert_eq!(answer(status, Some("30")), retry(asked));
        }
        for absurd in ["-1", "soon", "Wed, 21 Oct 2026 07:28:00 GMT", "1e9"] {
            assert_eq!(answer(429, Some(absurd)), retry(None));
        }
    }
}
