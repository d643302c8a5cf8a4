//! A sink for OpenMeter, and for other services that accept CloudEvents in the same way.

mod builder;
mod event;

use std::fmt;
use std::time::Duration;

use http::HeaderValue;

pub use self::builder::OpenMeterSinkBuilder;
use self::event::{Event, Names};
use crate::http_meter::HttpMeter;
use crate::record::UsageRecord;
use crate::sink::{PushError, UsageSink};

const BATCH: HeaderValue = HeaderValue::from_static("application/cloudevents-batch+json");

/// Pushes records to OpenMeter's ingest endpoint, `POST /api/v1/events`, as a batch of CloudEvents 1.0 in JSON. Kong Konnect has
/// the same endpoint at another [path](OpenMeterSinkBuilder::path).
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
/// [`unattributed_subject`](OpenMeterSinkBuilder::unattributed_subject) names a subject for records without an organization. Without
/// it, records of [organizations that were counted together](crate::Account::OtherOrganizations) are
/// [parked](crate::ParkReason::Held), and records of no organization are not sent.
///
/// # Responses
///
/// As every [`HttpMeter`](crate::HttpMeter#replies).
///
/// # Deduplication
///
/// A record is pushed again if its push failed, for example because the response was lost after the record was stored. OpenMeter
/// then counts it once only while it remembers the id. Set how long in [`remembers`](OpenMeterSinkBuilder::remembers): a record
/// that it may have stored and forgotten is [parked](crate::ParkedRecords) instead of counted twice.
///
/// * **The hosted OpenMeter** deduplicates ids for 32 days by its documentation, which is the default here.
/// * **A self-hosted OpenMeter deduplicates nothing unless you enable it**: `dedupe.enabled` and `sink.dedupe.enabled` are false
///   by default; set `remembers` to zero then. Enable `sink.dedupe`, with the driver `redis` and an `expiration` (24 h by default)
///   longer than the meter may be unreachable, and set `remembers` to that. Prefer it to `dedupe`, which remembers an id before it
///   stores the event: if that fails, the event is discarded when it is pushed again.
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
    meter: HttpMeter,
    names: Names,
    remembers: Option<Duration>,
}

impl OpenMeterSink {
    /// Returns a builder for the sink at this origin, for instance `https://openmeter.cloud`.
    pub fn builder(origin: impl Into<String>) -> OpenMeterSinkBuilder {
        OpenMeterSinkBuilder::new(origin.into())
    }
}

impl UsageSink for OpenMeterSink {
    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        if self.names.unattributed.is_none() {
            PushError::park_other_organizations(batch)?;
        }
        let events: Vec<Event<'_>> = batch
            .iter()
            .filter_map(|record| Event::of(record, &self.names))
            .collect();
        if events.is_empty() {
            return Ok(());
        }
        let body = serde_json::to_vec(&events).map_err(PushError::permanent)?;
        self.meter.post(BATCH, body).await?.result()
    }

    fn remembers(&self) -> Option<Duration> {
        self.remembers
    }
}

impl fmt::Debug for OpenMeterSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenMeterSink")
            .field("endpoint", &self.meter.url())
            .field("names", &self.names)
            .field("has_token", &self.meter.has_token())
            .finish_non_exhaustive()
    }
}
