use std::fmt;
use std::time::Duration;

use zeroize::Zeroizing;

use super::clock::StripeClock;
use super::customers::Customers;
use super::session::Sessions;
use super::{Api, CustomerOf, Measure, StripeSink};
use crate::counts::Counts;
use crate::http_meter::{HttpMeter, HttpSettings, authorization, http_setters};
use crate::wall_clock::WallClock;
use tower_orgkey::ConfigError;

/// Configures a [`StripeSink`].
#[must_use]
pub struct StripeSinkBuilder {
    key: Zeroizing<String>,
    event_name: String,
    customer: CustomerOf,
    measure: Measure,
    is_v1: bool,
    api_origin: String,
    stream_origin: String,
    http: HttpSettings,
    wall: WallClock,
}

impl StripeSinkBuilder {
    pub(super) fn new(key: String, event_name: String, customer: CustomerOf) -> Self {
        Self {
            key: Zeroizing::new(key),
            event_name,
            customer,
            measure: Box::new(Counts::served),
            is_v1: false,
            api_origin: "https://api.stripe.com".to_owned(),
            stream_origin: "https://meter-events.stripe.com".to_owned(),
            http: HttpSettings::default(),
            wall: WallClock::default(),
        }
    }

    /// Sets what is billed. Default: [`Counts::served`].
    ///
    /// ```
    /// # use tower_orgkey_usage::{Counts, StripeSinkBuilder};
    /// fn bytes(builder: StripeSinkBuilder) -> StripeSinkBuilder {
    ///     builder.measure(Counts::response_bytes)
    /// }
    /// ```
    pub fn measure(mut self, measure: impl Fn(&Counts) -> u64 + Send + Sync + 'static) -> Self {
        self.measure = Box::new(measure);
        self
    }

    /// Sends one event per call to `POST /v1/billing/meter_events`, for accounts without version 2 of the API. Default: the meter
    /// event stream, with up to 100 events per call.
    pub fn v1(mut self) -> Self {
        self.is_v1 = true;
        self
    }

    /// Sets the origin of the API. Default: `https://api.stripe.com`.
    pub fn api_origin(mut self, origin: impl Into<String>) -> Self {
        self.api_origin = origin.into();
        self
    }

    /// Sets the origin of the meter event stream. Default: `https://meter-events.stripe.com`.
    pub fn stream_origin(mut self, origin: impl Into<String>) -> Self {
        self.stream_origin = origin.into();
        self
    }

    /// Sets a wall clock for tests, by which no event is in the future.
    #[cfg(feature = "test-util")]
    pub fn test_wall_clock(mut self, clock: crate::test_util::TestWallClock) -> Self {
        self.wall = WallClock::Test(clock);
        self
    }

    http_setters!(http);

    /// Builds the sink. Needs no runtime.
    ///
    /// # Errors
    ///
    /// Names the setting that cannot be used, and never its value: `key` is empty or not visible ASCII; `event_name` is empty or
    /// longer than 100 characters; `api_origin` or `stream_origin` is no absolute `http` or `https` URL, has a path, query,
    /// fragment or user, is `http` beyond loopback, or `https` with neither TLS feature on; `add_root_certificate_pem` holds no
    /// certificate; `connect_timeout` or `timeout` is zero.
    pub fn build(self) -> Result<StripeSink, ConfigError> {
        if self.event_name.trim().is_empty() || self.event_name.chars().count() > 100 {
            let problem = "must have 1 to 100 characters";
            return Err(ConfigError::new("event_name", problem));
        }
        let key = authorization("key", &self.key)?;
        let api = |path| self.http.endpoint("api_origin", &self.api_origin, path);
        let api = if self.is_v1 {
            Api::V1(HttpMeter::of(api("/v1/billing/meter_events")?, key))
        } else {
            let path = "/v2/billing/meter_event_stream";
            Api::Stream {
                events: self
                    .http
                    .endpoint("stream_origin", &self.stream_origin, path)?,
                sessions: Box::new(Sessions::new(api("/v2/billing/meter_event_session")?, key)),
            }
        };
        Ok(StripeSink {
            api,
            event_name: self.event_name,
            customers: Customers::new(self.customer),
            measure: self.measure,
            clock: StripeClock::new(self.wall),
        })
    }
}

impl fmt::Debug for StripeSinkBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StripeSinkBuilder")
            .field("event_name", &self.event_name)
            .field("is_v1", &self.is_v1)
            .finish_non_exhaustive()
    }
}
