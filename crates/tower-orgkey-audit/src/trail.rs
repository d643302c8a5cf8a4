use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::time::Instant;
use tower_orgkey::ConfigError;

use crate::event::{AuditedRequest, Source};
use crate::exporter::{AuditStats, Exporter};
use crate::sampling::{Sample, Sampler};
use crate::sink::AuditSink;
use crate::telemetry;
use crate::tracing_sink::TracingSink;

/// Exports audit events to a [sink](AuditSink), on a separate thread.
///
/// Clones share one trail. See the [crate documentation](crate).
#[derive(Clone)]
pub struct AuditTrail(Arc<Core>);

struct Core {
    exporter: Exporter,
    sampler: Arc<Sampler>,
}

impl AuditTrail {
    /// Starts a trail with this sink and the defaults of [`AuditTrailBuilder`].
    pub fn start(sink: impl AuditSink) -> Result<Self, ConfigError> {
        Self::builder().sink(sink).start()
    }

    /// Returns a builder.
    pub fn builder() -> AuditTrailBuilder<TracingSink> {
        AuditTrailBuilder {
            sink: TracingSink,
            capacity: 8_192,
            rejections_per_second: 10,
            service: "api".into(),
        }
    }

    /// Waits until every event that was accepted before this call is written, at most for `deadline`.
    ///
    /// After `Ok` none of them is missing, whatever happens to the process. The error says how many are missing, including
    /// those that the sink failed to write permanently since the trail was started. Events that did not fit into the
    /// queue were not accepted: [`stats`](Self::stats) counts them, and an event reports them.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub async fn flush(&self, deadline: Duration) -> Result<(), FlushError> {
        self.blocking(Exporter::flush, deadline).await
    }

    /// Stops accepting events, writes those that were accepted, and drops the sink.
    ///
    /// Call it after the server has drained its connections: later events are counted as lost. After the deadline the
    /// worker ends as soon as the sink returns, and the events that are not written are lost; the error says how many.
    /// `Ok` means the same as for [`flush`](Self::flush).
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), FlushError> {
        self.blocking(Exporter::shutdown, deadline).await
    }

    /// On a blocking thread: the deadline is about the sink's time, which a paused Tokio clock does not stop.
    async fn blocking(
        &self,
        wait: impl Fn(&Exporter, Duration) -> Result<(), u64> + Copy + Send + 'static,
        deadline: Duration,
    ) -> Result<(), FlushError> {
        let core = Arc::clone(&self.0);
        let waited = tokio::task::spawn_blocking(move || wait(&core.exporter, deadline)).await;
        // If the runtime shuts down, what is missing now is the best that can be said.
        let waited = waited.unwrap_or_else(|_| wait(&self.0.exporter, Duration::ZERO));
        waited.map_err(|missing| FlushError { missing })
    }

    /// Records that an operator changed something by hand: blocked an organization, for example.
    ///
    /// `operation` names the action, such as `/v1/block`, and `target` what it was about, such as `org_code=org_1`. Each is cut
    /// to 1,024 bytes; neither may hold a key. The event is of class 6003, its actor is `operator`, and `unmapped.target` is the
    /// target. Like the events of organizations, it is not written yet when this returns, and lost if their queue is full.
    ///
    /// ```
    /// # use tower_orgkey_audit::{AuditTrail, TracingSink};
    /// # let trail = AuditTrail::start(TracingSink)?;
    /// trail.record_operator_action("/v1/block", "org_code=org_1");
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn record_operator_action(&self, operation: &str, target: &str) {
        let record = AuditedRequest::of_operator(operation, target);
        self.0.exporter.send(Box::new(record));
    }

    /// Returns what happened to the events since the trail was started.
    pub fn stats(&self) -> AuditStats {
        self.0.exporter.stats()
    }

    /// Accepts the record of a request that has ended. Never waits for the sink.
    pub(crate) fn accept(&self, request: Box<AuditedRequest>) {
        let core = &*self.0;
        let is_rejected = request.rejection().is_some() && request.org_code().is_none();
        if is_rejected || request.is_unverified() {
            match core.sampler.sample(Instant::now(), request.code()) {
                Sample::Admitted => {}
                Sample::FirstSuppressed => {
                    telemetry::suppressed();
                    return core.exporter.wake();
                }
                Sample::Suppressed => return telemetry::suppressed(),
            }
        }
        core.exporter.send(request);
    }
}

impl fmt::Debug for AuditTrail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditTrail")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// Configures and starts an [`AuditTrail`].
///
/// ```
/// use tower_orgkey_audit::{AuditTrail, JsonLines};
///
/// let trail = AuditTrail::builder()
///     .sink(JsonLines::new(std::io::stderr()))
///     .service("reports-api")
///     .capacity(50_000)
///     .start()?;
/// # Ok::<(), tower_orgkey::ConfigError>(())
/// ```
#[must_use]
pub struct AuditTrailBuilder<S> {
    sink: S,
    capacity: usize,
    rejections_per_second: u32,
    service: String,
}

impl<S: AuditSink> AuditTrailBuilder<S> {
    /// Sets the sink. Default: [`TracingSink`].
    pub fn sink<T: AuditSink>(self, sink: T) -> AuditTrailBuilder<T> {
        AuditTrailBuilder {
            sink,
            capacity: self.capacity,
            rejections_per_second: self.rejections_per_second,
            service: self.service,
        }
    }

    /// Sets how many events of organizations can wait for the sink. At least 1. Default: 8,192.
    ///
    /// Those of rejected requests leave a quarter free, so that they cannot displace the others: one key that is beyond its limit can
    /// send any number of requests.
    ///
    /// Events of neither an organization nor an operator have a separate queue of half this size, so that they cannot displace
    /// those of a customer. An event takes about 0.5 KiB, and at most 3: what clients send is cut to a bound. Up to 256 more events
    /// are on their way to the sink.
    pub fn capacity(mut self, events: usize) -> Self {
        self.capacity = events;
        self
    }

    /// Sets how many requests without a known organization have an event if they were rejected or ended during the verification,
    /// per second and after a burst of 100. At least 1. Default: 10.
    ///
    /// The others are counted, and at most one event per second reports the count.
    pub fn rejections_per_second(mut self, events: u32) -> Self {
        self.rejections_per_second = events;
        self
    }

    /// Sets the name of your API in the events. Not empty. Default: `api`.
    pub fn service(mut self, name: impl Into<String>) -> Self {
        self.service = name.into();
        self
    }

    /// Starts the trail and its thread. Needs no runtime.
    ///
    /// # Errors
    ///
    /// Names the setting that cannot be used, or `start` if the operating system has no random numbers or no thread.
    pub fn start(self) -> Result<AuditTrail, ConfigError> {
        if self.capacity == 0 {
            return Err(ConfigError::new("capacity", "must be at least 1"));
        }
        if self.rejections_per_second == 0 {
            return Err(ConfigError::new(
                "rejections_per_second",
                "must be at least 1",
            ));
        }
        if self.service.is_empty() {
            return Err(ConfigError::new("service", "must not be empty"));
        }
        let no_random = |_| ConfigError::new("start", "the operating system has no random numbers");
        let trail = getrandom::u64().map_err(no_random)?;
        let source = Source::new(trail, &self.service);
        let sampler = Arc::new(Sampler::new(self.rejections_per_second));
        let (exporter, worker) =
            Exporter::new(self.capacity, self.sink, Arc::clone(&sampler), source);
        thread::Builder::new()
            .name("orgkey-audit".into())
            .spawn(move || worker.run())
            .map_err(|_| ConfigError::new("start", "the operating system has no thread"))?;
        Ok(AuditTrail(Arc::new(Core { exporter, sampler })))
    }
}

impl<S> fmt::Debug for AuditTrailBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditTrailBuilder")
            .field("capacity", &self.capacity)
            .field("rejections_per_second", &self.rejections_per_second)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// Accepted audit events are not written. Returned by [`AuditTrail::flush`] and [`AuditTrail::shutdown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushError {
    missing: u64,
}

impl FlushError {
    /// Returns how many events are not written.
    pub fn missing(&self) -> u64 {
        self.missing
    }
}

impl fmt::Display for FlushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} audit events are not written", self.missing)
    }
}

impl Error for FlushError {}
