//! A sink that speaks to OpenMeter, or to whatever takes CloudEvents as it does.

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
use super::record::UsageRecord;
use super::sink::{PushError, UsageSink};

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
/// | `data` | `requests`, `refused`, `failed`, `dropped`, `panicked`, `request_bytes`, `response_bytes`, `duration_seconds` (a sum): numbers to add up; `key` and `route`: texts to group by; `refusals`: numbers by code |
///
/// So a meter of requests is `SUM` over `$.requests`, grouped by `$.route` if need be. `key` is the key's id; keys without an
/// id are `(unnamed)`, those that had to make room `(other keys)`, and routes likewise `(unmatched)` and `(other routes)`.
///
/// Records that belong to no organization are nobody's bill: they are taken and not sent, unless
/// [`unattributed_subject`](OpenMeterSinkBuilder::unattributed_subject) names whom to send them for.
///
/// # Answers
///
/// | answer | means |
/// |---|---|
/// | 2xx | taken |
/// | 400, 413, 422 and all other 4xx but these | [refused](super::PushErrorKind::Refused) |
/// | 401, 403, 404, 405, 408, 425, 429 | to be [pushed again](super::PushErrorKind::Retry): the sink is set up wrongly, or busy |
/// | 3xx, 5xx, none | to be pushed again |
///
/// `Retry-After` in seconds is heeded. OpenMeter remembers ids for a limited time (32 days, by its documentation): what was
/// taken without our hearing of it, and comes again after that, is counted twice there.
///
/// The client goes straight to the host: it reads no proxy from the environment, follows no redirect and retries nothing by
/// itself. TLS is that of the feature `rustls` or `native-tls`.
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
    /// A builder for the sink at this origin: `https://openmeter.cloud`, or where yours stands.
    pub fn builder(origin: impl Into<String>) -> OpenMeterSinkBuilder {
        OpenMeterSinkBuilder::new(origin.into())
    }

    async fn post(&self, events: &[Event<'_>]) -> Result<(), PushError> {
        let body = serde_json::to_vec(events).map_err(PushError::refused)?;
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
            Ok(response) => judge(response.status(), response.headers()),
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

fn judge(status: StatusCode, headers: &HeaderMap) -> Result<(), PushError> {
    if status.is_success() {
        return Ok(());
    }
    let answer = format!("it answered {}", status.as_u16());
    let is_about_us = matches!(status.as_u16(), 401 | 403 | 404 | 405 | 408 | 425 | 429);
    if status.is_client_error() && !is_about_us {
        return Err(PushError::refused(answer));
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
        judge(status, &headers).map_err(|error| error.kind())
    }

    #[test]
    fn answers_are_read_as_the_table_says() {
        for status in [200, 202, 204] {
            assert_eq!(answer(status, None), Ok(()));
        }
        for status in [400, 402, 409, 413, 415, 422] {
            assert_eq!(answer(status, Some("5")), Err(PushErrorKind::Refused));
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
