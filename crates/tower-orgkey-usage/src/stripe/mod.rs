//! A sink for Stripe's meters.

mod builder;
mod clock;
mod customers;
mod event;
mod session;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Deserialize;

pub use self::builder::StripeSinkBuilder;
use self::clock::StripeClock;
use self::customers::Customers;
use self::event::{Batch, Event, Payload};
use self::session::Sessions;
use crate::account::Account;
use crate::counts::Counts;
use crate::http_meter::{Endpoint, HttpMeter, HttpReply, send};
use crate::record::UsageRecord;
use crate::sink::{PushError, UsageSink};
use tower_orgkey::OrgCode;

/// The version of the API that introduced meter event streams.
const STRIPE_VERSION: HeaderValue = HeaderValue::from_static("2024-09-30.acacia");
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
const VERSION_HEADER: HeaderName = HeaderName::from_static("stripe-version");
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How old events may be.
const MAX_AGE: Duration = Duration::from_secs(35 * 24 * 60 * 60);

/// Pushes records to Stripe as meter events: through the meter event stream (version 2 of the API), or
/// [one at a time](StripeSinkBuilder::v1) for accounts without it.
///
/// | field | is |
/// |---|---|
/// | `event_name` | that of the meter |
/// | `identifier` | the record's [id](UsageRecord::id), which Stripe counts once in 24 h |
/// | `timestamp` | when the minute began; now, if this is in the future by the wall clock or by [Stripe's](#clocks) |
/// | `payload.stripe_customer_id` | the organization's customer |
/// | `payload.value` | [`measure`](StripeSinkBuilder::measure) of the counts, as a whole number; the requests that were [served](Counts::served) unless set |
///
/// The meter's `customer_mapping.event_payload_key` and `value_settings.event_payload_key` must have their default values,
/// `stripe_customer_id` and `value`, and its aggregation must be `sum`. One sink feeds one meter.
///
/// Records of no organization, with a value of 0, or of an organization that is [not billed](StripeCustomer::NotBilled) are
/// not sent. Records of an organization with an [unknown](StripeCustomer::Unknown) customer, and of
/// [organizations that were counted together](crate::Account::OtherOrganizations), are [parked](crate::ParkReason::Held); the
/// others are pushed.
///
/// # Limits
///
/// Stripe counts an identifier once within 24 hours, and accepts events of the last 35 days. What may be stored and is
/// forgotten since, and what is older, is [parked](crate::ParkedRecords). To settle it, compare with the meter's event summaries
/// (`GET /v1/billing/meters/{id}/event_summaries`).
///
/// # Clocks
///
/// Stripe rejects events that are more than 5 min ahead of its clock. The `Date` header of its replies shows that clock, also before the
/// first event: a session comes first, and with `v1` a rejected event is pushed again with the time of the reply. So while the wall
/// clock is ahead, usage is billed at Stripe's time. When the wall clock was set or the machine suspended, by more than a minute, Stripe's
/// time is unknown until the next reply: a new session comes first, and with `v1` the wall clock decides. A `Date` more than 35
/// days before the wall clock is ignored.
///
/// # Events that Stripe rejects later
///
/// Stripe validates events after it has accepted them, and this sink cannot see the result. Its events
/// `v1.billing.meter.error_report_triggered` and `v1.billing.meter.no_meter_found` report what it rejected: subscribe to both with
/// an event destination, because what they report is not billed. The notification has only the id of the event; fetch it from
/// `/v2/core/events/{id}` after you have checked the signature.
///
/// The report counts the rejected events of a short time, with a reason and samples. `identifier` is the [id](UsageRecord::id) of
/// a record:
///
/// ```
/// use serde_json::Value;
///
/// /// Tells an operator what was not billed. `event` is what `GET /v2/core/events/{id}` returned.
/// fn rejected(event: &Value) -> Vec<String> {
///     let reasons = event["data"]["reason"]["error_types"].as_array();
///     let line = |reason: &Value| {
///         let ids = reason["sample_errors"].as_array().into_iter().flatten();
///         let ids: Vec<&str> = ids.filter_map(|error| error["request"]["identifier"].as_str()).collect();
///         format!("{} events: {}, such as {}", reason["error_count"], reason["code"], ids.join(" "))
///     };
///     reasons.into_iter().flatten().map(line).collect()
/// }
/// # let event = serde_json::json!({ "data": { "reason": { "error_count": 2, "error_types": [{
/// #     "code": "meter_event_customer_not_found", "error_count": 2,
/// #     "sample_errors": [{ "error_message": "", "request": { "identifier": "0123-60-0-7" } }],
/// # }] } } });
/// # assert_eq!(rejected(&event), ["2 events: \"meter_event_customer_not_found\", such as 0123-60-0-7"]);
/// ```
///
/// Then repair the cause: a deleted customer (`meter_event_customer_not_found`), a meter with other keys
/// (`meter_event_no_customer_defined`) or an archived one (`archived_meter`). Compare the customer's event summaries with your
/// counts for the time of the report (`data.validation_start`, `data.validation_end`), and send the difference as one event with a
/// new identifier: the rejected records were stored as far as the pusher knows, and are not pushed again.
///
/// # Responses
///
/// | response | result |
/// |---|---|
/// | 2xx; with `v1`, 400 because the identifier exists | stored |
/// | 401 `billing_meter_event_session_expired` | pushed once more with a new session, then [not stored](crate::PushErrorKind::NotStored) |
/// | 401, 403, 404, 405, 409, 425, 429; no connection; no session | [not stored](crate::PushErrorKind::NotStored), and pushed again |
/// | 3xx, 408, 5xx, none | [may be stored](crate::PushErrorKind::Retry), and pushed again |
/// | all other 4xx | [permanent error](crate::PushErrorKind::Permanent) |
///
/// `Retry-After` in seconds is respected, as by every [`HttpMeter`](crate::HttpMeter#replies).
///
/// # HTTP
///
/// The sink reads no proxy from the environment, follows no redirects and retries nothing else. TLS needs the feature `rustls` or
/// `native-tls`.
///
/// ```
/// use tower_orgkey::OrgCode;
/// use tower_orgkey_usage::{StripeCustomer, StripeSink, UsageLayer};
///
/// # fn secret() -> String { "sk_test_a_key".to_owned() }
/// async fn customer(org: OrgCode) -> Result<StripeCustomer, std::io::Error> {
///     // Looked up in a table of yours.
///     Ok(match org.as_str() {
///         "org_acme" => StripeCustomer::Id("cus_NffrFeUfNV2Hib".to_owned()),
///         "org_internal" => StripeCustomer::NotBilled,
///         _ => StripeCustomer::Unknown,
///     })
/// }
///
/// let usage = UsageLayer::new();
/// let sink = StripeSink::builder(secret(), "api_requests", customer).build()?;
/// let pusher = usage.handle().pusher(sink).build()?;
/// # Ok::<(), tower_orgkey::ConfigError>(())
/// ```
#[must_use]
pub struct StripeSink {
    api: Api,
    event_name: String,
    customers: Customers,
    measure: Measure,
    clock: StripeClock,
}

/// The customer of an organization at Stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StripeCustomer {
    /// The id of the customer, such as `cus_NffrFeUfNV2Hib`.
    Id(String),
    /// The organization is not billed: its records are not sent.
    NotBilled,
    /// The customer is not known yet: the records are [parked](crate::ParkReason::Held).
    Unknown,
}

type BoxError = Box<dyn Error + Send + Sync>;
type Found = Pin<Box<dyn Future<Output = Result<StripeCustomer, BoxError>> + Send>>;
type CustomerOf = Arc<dyn Fn(OrgCode) -> Found + Send + Sync>;
type Measure = Box<dyn Fn(&Counts) -> u64 + Send + Sync>;

enum Api {
    V1(HttpMeter),
    Stream {
        events: Endpoint,
        sessions: Box<Sessions>,
    },
}

impl StripeSink {
    /// Returns a builder for the sink of a meter: the account's secret key, or a restricted one that may write billing meter
    /// events; the event name of the meter; and a function that returns the customer of an organization.
    ///
    /// The sink calls the function for the organizations of a batch at the same time, up to 100, and waits up to 3 s. It keeps
    /// [`Id`](StripeCustomer::Id) and [`NotBilled`](StripeCustomer::NotBilled) for 10 min, of up to 100,000 organizations. An error
    /// or a timeout is logged, and the records of that organization are pushed again, [after those of
    /// others](PushError::defer). After an hour of errors the customer counts as [unknown](StripeCustomer::Unknown).
    ///
    /// Set a [`push_timeout`](crate::UsagePusherBuilder::push_timeout) of more than 6 s, which leaves time for the look-ups and
    /// for a new session: a push that times out counts as sent.
    pub fn builder<F, E>(
        key: impl Into<String>,
        event_name: impl Into<String>,
        customer: impl Fn(OrgCode) -> F + Send + Sync + 'static,
    ) -> StripeSinkBuilder
    where
        F: Future<Output = Result<StripeCustomer, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let customer = move |org| -> Found {
            let found = customer(org);
            Box::pin(async move { found.await.map_err(Into::into) })
        };
        StripeSinkBuilder::new(key.into(), event_name.into(), Arc::new(customer))
    }

    /// Returns the events of a batch, and the error of the records whose customer could not be looked up.
    async fn events<'a>(
        &'a self,
        batch: &'a [UsageRecord],
    ) -> Result<(Vec<Event<'a>>, Option<PushError>), PushError> {
        let billed: Vec<_> = batch
            .iter()
            .enumerate()
            .map(|(place, record)| (place, record, (self.measure)(&record.counts)))
            .filter(|(_, _, value)| *value > 0)
            .collect();
        let orgs = billed
            .iter()
            .filter_map(|(_, record, _)| record.account.organization());
        let (customers, error) = self.customers.find(orgs).await;
        let mut events = Vec::new();
        let (mut unknown, mut missing) = (Vec::new(), Vec::new());
        for (place, record, value) in billed {
            let org = match &record.account {
                Account::Organization(org) => org,
                Account::OtherOrganizations => {
                    unknown.push(place);
                    continue;
                }
                Account::Anonymous | Account::Unauthenticated => continue,
            };
            match customers.get(org) {
                Some(StripeCustomer::Id(customer)) => events.push(Event {
                    name: &self.event_name,
                    identifier: &record.id,
                    timestamp: record.minute,
                    payload: Payload {
                        stripe_customer_id: customer.clone(),
                        value: value.to_string(),
                    },
                }),
                Some(StripeCustomer::NotBilled) => {}
                Some(StripeCustomer::Unknown) => unknown.push(place),
                None => missing.push(place),
            }
        }
        if unknown.is_empty() {
            let error = error.filter(|_| !missing.is_empty());
            Ok((events, error.map(|error| PushError::defer(error, missing))))
        } else {
            Err(PushError::park("a record has no Stripe customer", unknown))
        }
    }

    async fn post(&self, mut events: Vec<Event<'_>>) -> Result<(), PushError> {
        match &self.api {
            Api::V1(to) => {
                for event in &mut events {
                    event.timestamp = event.timestamp.min(self.clock.now());
                    self.post_v1(to, event).await?;
                }
                Ok(())
            }
            Api::Stream {
                events: to,
                sessions,
            } => {
                let minutes: Vec<u64> = events.iter().map(|event| event.timestamp).collect();
                let mut batch = Batch { events };
                let mut expired = None;
                for _ in 0..2 {
                    let session = sessions.authorization(expired.as_ref(), &self.clock);
                    let session = session.await?;
                    let now = self.clock.now();
                    for (event, minute) in batch.events.iter_mut().zip(&minutes) {
                        event.timestamp = now.min(*minute);
                    }
                    let body = serde_json::to_vec(&batch).map_err(PushError::permanent)?;
                    match self.post_stream(to, &session, body).await? {
                        Streamed::Stored => return Ok(()),
                        Streamed::Expired => expired = Some(session),
                    }
                }
                Err(PushError::not_stored("status 401"))
            }
        }
    }

    async fn post_stream(
        &self,
        to: &Endpoint,
        session: &HeaderValue,
        body: Vec<u8>,
    ) -> Result<Streamed, PushError> {
        let request = to.post();
        let request = request.header(AUTHORIZATION, session);
        let request = request.header(VERSION_HEADER, STRIPE_VERSION);
        let request = request.header(CONTENT_TYPE, "application/json").body(body);
        let reply = send(request).await?;
        self.clock.note(&reply);
        let result = answer(&reply);
        if reply.status() == StatusCode::UNAUTHORIZED {
            let code = Problem::of(reply).await?.code;
            if code.as_deref() == Some("billing_meter_event_session_expired") {
                return Ok(Streamed::Expired);
            }
        }
        result.map(|()| Streamed::Stored)
    }

    async fn post_v1(&self, to: &HttpMeter, event: &Event<'_>) -> Result<(), PushError> {
        let reply = to.post(FORM, event.form()).await?;
        self.clock.note(&reply);
        let result = answer(&reply);
        if reply.status() == StatusCode::BAD_REQUEST {
            // The error has no code.
            let message = Problem::of(reply).await?.message;
            let exists = "An event already exists with identifier";
            if message.is_some_and(|message| message.starts_with(exists)) {
                return Ok(());
            }
            // Stripe accepts 5 min, and the reply took a moment.
            if self.clock.now() + 4 * 60 < event.timestamp {
                return Err(PushError::not_stored("the wall clock is ahead of Stripe's").of_sink());
            }
        }
        result
    }
}

impl UsageSink for StripeSink {
    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        let (events, missing) = self.events(batch).await?;
        if !events.is_empty() {
            // An error is about the whole batch: records with a missing customer then count as sent, which is safe.
            self.post(events).await?;
        }
        missing.map_or(Ok(()), Err)
    }

    fn remembers(&self) -> Option<Duration> {
        Some(DAY)
    }

    fn oldest(&self) -> Option<Duration> {
        Some(MAX_AGE)
    }

    fn max_batch(&self) -> Option<usize> {
        Some(match self.api {
            Api::V1(_) => 1,
            Api::Stream { .. } => 100,
        })
    }
}

enum Streamed {
    Stored,
    Expired,
}

/// As for every meter, but that Stripe says 409 about concurrent calls.
fn answer(reply: &HttpReply) -> Result<(), PushError> {
    reply.result().map_err(|error| match reply.status() {
        StatusCode::CONFLICT => error.into_not_stored(),
        _ => error,
    })
}

/// The error of a response.
#[derive(Default, Deserialize)]
struct Problem {
    code: Option<String>,
    message: Option<String>,
}

impl Problem {
    async fn of(reply: HttpReply) -> Result<Self, PushError> {
        #[derive(Deserialize)]
        struct Body {
            error: Problem,
        }

        let body = reply.json().await?;
        Ok(body.map(|body: Body| body.error).unwrap_or_default())
    }
}

impl fmt::Debug for StripeSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = match &self.api {
            Api::V1(meter) => meter.url(),
            Api::Stream { events, .. } => events.url().as_str(),
        };
        f.debug_struct("StripeSink")
            .field("endpoint", &url)
            .field("event_name", &self.event_name)
            .finish_non_exhaustive()
    }
}
