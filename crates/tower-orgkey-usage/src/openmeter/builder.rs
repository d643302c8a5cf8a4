use std::fmt;
use std::time::Duration;

use super::OpenMeterSink;
use super::event::Names;
use crate::http_meter::{HttpMeter, HttpMeterBuilder, http_setters};
use tower_orgkey::ConfigError;

/// Configures an [`OpenMeterSink`].
#[must_use]
pub struct OpenMeterSinkBuilder {
    meter: HttpMeterBuilder,
    names: Names,
    remembers: Option<Duration>,
}

impl OpenMeterSinkBuilder {
    pub(super) fn new(origin: String) -> Self {
        Self {
            meter: HttpMeter::builder(origin, "/api/v1/events"),
            names: Names {
                source: "tower-orgkey".to_owned(),
                event_type: "tower-orgkey.usage".to_owned(),
                unattributed: None,
            },
            remembers: Some(Duration::from_secs(32 * 24 * 60 * 60)),
        }
    }

    /// Sets the bearer token. Default: none, as a self-hosted OpenMeter may not need one.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.meter = self.meter.token(token);
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

    /// Sets a subject for records without an organization. Default: those of
    /// [other organizations](crate::Account::OtherOrganizations) are [parked](crate::ParkReason::Held), all others are not sent.
    pub fn unattributed_subject(mut self, subject: impl Into<String>) -> Self {
        self.names.unattributed = Some(subject.into());
        self
    }

    /// Sets the path of the endpoint: `/api/v3/openmeter/events` for Kong Konnect. Begins with `/`, without query. Default:
    /// `/api/v1/events`.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.meter = self.meter.path(path.into());
        self
    }

    /// Sets how long the meter counts each id once: `None` for ever, zero if not at all. Default: 32 days, as the hosted OpenMeter.
    ///
    /// See [Deduplication](OpenMeterSink#deduplication).
    pub fn remembers(mut self, remembers: Option<Duration>) -> Self {
        self.remembers = remembers;
        self
    }

    http_setters!(meter.http);

    /// Builds the sink. Needs no runtime.
    ///
    /// # Errors
    ///
    /// Names the setting that cannot be used, and never its value: `origin` is no absolute `http` or `https` URL, has a path,
    /// query, fragment or user, is `http` beyond loopback, or `https` with neither TLS feature on; `path` does not begin with `/`,
    /// or has a query or fragment; `token` is empty or not visible ASCII; `source`, `event_type` or `unattributed_subject` is empty; `add_root_certificate_pem` holds no
    /// certificate; `connect_timeout` or `timeout` is zero.
    pub fn build(self) -> Result<OpenMeterSink, ConfigError> {
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
        Ok(OpenMeterSink {
            meter: self.meter.build()?,
            names: self.names,
            remembers: self.remembers,
        })
    }
}

impl fmt::Debug for OpenMeterSinkBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenMeterSinkBuilder")
            .field("names", &self.names)
            .field("has_token", &self.meter.has_token())
            .finish_non_exhaustive()
    }
}
