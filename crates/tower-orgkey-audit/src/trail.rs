use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::event::{AuditedRequest, Source};
use super::left_out::{Admission, LeftOut};
use super::queue::{Queue, Ticket};
use super::request_id::Ids;
use super::sink::AuditSink;
use super::tracing_sink::TracingSink;
use super::writer::Writer;
use crate::telemetry;
use tokio::time::Instant;
use tower_orgkey::ConfigError;

/// A trail of audit events: a queue, the thread that empties it, and the [sink](AuditSink) it is emptied into.
///
/// Clones are one trail. See the [crate's guide](crate).
#[derive(Clone)]
pub struct AuditTrail(Arc<Core>);

struct Core {
    queue: Arc<Queue>,
    left_out: Arc<LeftOut>,
    ids: Ids,
}

/// The last layer and the last handle are gone: the writer ends when it has written what there is.
impl Drop for Core {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl AuditTrail {
    /// Starts a trail into this sink, on a thread of its own.
    pub fn start(sink: impl AuditSink) -> Result<Self, ConfigError> {
        Self::builder().sink(sink).start()
    }

    /// A builder for settings of your own.
    pub fn builder() -> AuditTrailBuilder<TracingSink> {
        AuditTrailBuilder {
            sink: TracingSink,
            capacity: 8_192,
            refusals_per_second: 10,
            service: "api".into(),
        }
    }

    /// Waits until every event that was accepted before this call is written, for as long as `deadline` at most.
    ///
    /// After `Ok` not one of them is missing, whatever becomes of the process. Otherwise the error says how many are, among
    /// them those that the sink gave up since the trail was started. Events that found no room in the queue were never
    /// accepted: [`stats`](Self::stats) counts them, and an event tells of them.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub async fn flush(&self, deadline: Duration) -> Result<(), AuditIncomplete> {
        self.wait(self.0.queue.ask(), deadline).await
    }

    /// Ends the trail: accepts no event any more, writes those there are, and drops the sink.
    ///
    /// Call it when the server has drained its connections: what comes later is counted as lost. When the deadline is
    /// over, the writer ends as soon as the sink lets it, and what it has not written is lost; the error says how many
    /// that are. The promise of `Ok` is that of [`flush`](Self::flush).
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), AuditIncomplete> {
        let ended = self.wait(self.0.queue.close(), deadline).await;
        self.0.queue.abandon();
        ended
    }

    async fn wait(&self, ticket: Ticket, deadline: Duration) -> Result<(), AuditIncomplete> {
        let queue = Arc::clone(&self.0.queue);
        // On a thread that may block: the time that counts is the sink's, which is the machine's and not the runtime's.
        let waited = tokio::task::spawn_blocking(move || queue.wait(ticket, deadline));
        let waited = match waited.await {
            Ok(waited) => waited,
            // The runtime goes down and waits for nobody. What is missing now is the best that can be said.
            Err(_) => self.0.queue.wait(ticket, Duration::ZERO),
        };
        waited.map_err(|missing| AuditIncomplete { missing })
    }

    /// How things stand.
    pub fn stats(&self) -> AuditStats {
        self.0.queue.stats()
    }

    pub(super) fn ids(&self) -> &Ids {
        &self.0.ids
    }

    /// Takes in what is known of a request at its end. Waits for nothing.
    pub(super) fn accept(&self, request: Box<AuditedRequest>) {
        let core = &self.0;
        if let Some(rejection) = request.rejection()
            && request.is_strangers()
        {
            match core.left_out.admit(Instant::now(), rejection.code()) {
                Admission::Admitted => {}
                Admission::FirstLeftOut => {
                    telemetry::left_out();
                    return core.queue.nudge();
                }
                Admission::LeftOut => return telemetry::left_out(),
            }
        }
        if !core.queue.push(request) {
            telemetry::lost();
        }
    }
}

impl fmt::Debug for AuditTrail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditTrail")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// Starts an [`AuditTrail`] with settings of your own.
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
    refusals_per_second: u32,
    service: String,
}

impl<S: AuditSink> AuditTrailBuilder<S> {
    /// Where the events go; [`TracingSink`] unless set.
    pub fn sink<T: AuditSink>(self, sink: T) -> AuditTrailBuilder<T> {
        AuditTrailBuilder {
            sink,
            capacity: self.capacity,
            refusals_per_second: self.refusals_per_second,
            service: self.service,
        }
    }

    /// How many events wait for the sink at most. At least 2; 8,192 unless set.
    ///
    /// An event takes about half a kilobyte, and at most three: what clients send is cut to a bound. Up to 256 more are on
    /// their way to the sink.
    pub fn capacity(mut self, events: usize) -> Self {
        self.capacity = events;
        self
    }

    /// How many refused requests without a known organization have an event of their own in a second, after a first
    /// hundred. At least 1; 10 unless set.
    ///
    /// The others are counted, and the count is an event: at most one a second.
    pub fn refusals_per_second(mut self, events: u32) -> Self {
        self.refusals_per_second = events;
        self
    }

    /// The name of your API in the events. Not empty; `api` unless set.
    pub fn service(mut self, name: impl Into<String>) -> Self {
        self.service = name.into();
        self
    }

    /// Starts the trail: the one place of this module that starts a thread. Needs no runtime.
    pub fn start(self) -> Result<AuditTrail, ConfigError> {
        if self.capacity < 2 {
            return Err(ConfigError::new("capacity", "must be at least 2"));
        }
        if self.refusals_per_second == 0 {
            return Err(ConfigError::new(
                "refusals_per_second",
                "must be at least 1",
            ));
        }
        if self.service.is_empty() {
            return Err(ConfigError::new("service", "must not be empty"));
        }
        let no_random = |_| ConfigError::new("start", "the operating system has no random numbers");
        let source = Source {
            trail: getrandom::u64().map_err(no_random)?,
            service: self.service.into(),
        };
        let core = Core {
            queue: Arc::new(Queue::new(self.capacity)),
            left_out: Arc::new(LeftOut::new(self.refusals_per_second)),
            ids: Ids::draw().map_err(no_random)?,
        };
        let writer = Writer::new(
            self.sink,
            Arc::clone(&core.queue),
            Arc::clone(&core.left_out),
            Arc::new(source),
        );
        thread::Builder::new()
            .name("orgkey-audit".into())
            .spawn(move || writer.run())
            .map_err(|_| ConfigError::new("start", "the operating system gives no thread"))?;
        Ok(AuditTrail(Arc::new(core)))
    }
}

impl<S> fmt::Debug for AuditTrailBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditTrailBuilder")
            .field("capacity", &self.capacity)
            .field("refusals_per_second", &self.refusals_per_second)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// How an [`AuditTrail`] stands: counts since it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditStats {
    /// Events of requests that found a place in the queue.
    pub accepted: u64,
    /// Events of requests that the sink has taken.
    pub written: u64,
    /// Events of requests that are lost: no place in the queue, or given up by the sink.
    pub lost: u64,
    /// Events of requests that wait for the sink, or are on their way to it.
    pub waiting: u64,
}

/// Audit events that were accepted are not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditIncomplete {
    missing: u64,
}

impl AuditIncomplete {
    /// How many events.
    pub fn missing(&self) -> u64 {
        self.missing
    }
}

impl fmt::Display for AuditIncomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} audit events are not written", self.missing)
    }
}

impl Error for AuditIncomplete {}
