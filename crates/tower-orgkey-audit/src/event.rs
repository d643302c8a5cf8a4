use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use tokio::time::Instant;
use tower_orgkey::observer::{Caller, EarlyEnd, Requirements};
use tower_orgkey::{KeyId, OrgCode, Rejection};

use crate::peer::AuditPeer;
use crate::pseudonym::{self, Pseudonym, PseudonymKey};

/// One event of an [`AuditTrail`](crate::AuditTrail).
///
/// It is written, by [`write_json`](Self::write_json) or `serde`, as an event of OCSF 1.8.0: see the [fields](crate#fields).
#[derive(Clone, Debug)]
pub struct AuditEvent {
    pub(crate) kind: AuditEventKind,
    /// `None` until the worker delivers the event, so that the reference count stays on the worker's processor.
    pub(crate) source: Option<Arc<Source>>,
    pub(crate) sequence: u64,
}

/// What all events of a trail share.
#[derive(Debug)]
pub(crate) struct Source {
    /// The beginning of [`AuditEvent::uid`].
    pub(crate) uid: String,
    /// The name of the service as JSON.
    pub(crate) service: String,
}

impl Source {
    /// `trail` is random.
    pub(crate) fn new(trail: u64, service: &str) -> Self {
        Self {
            uid: format!("{trail:016x}-"),
            service: serde_json::Value::from(service).to_string(),
        }
    }
}

impl AuditEvent {
    /// Returns an event that is not delivered yet.
    pub(crate) fn new(kind: AuditEventKind) -> Self {
        Self {
            kind,
            source: None,
            sequence: 0,
        }
    }

    /// Returns what the event is about.
    pub fn kind(&self) -> &AuditEventKind {
        &self.kind
    }

    /// Returns the identifier of the event: a random number of the trail, and the [`sequence`](Self::sequence).
    ///
    /// An event that is written again after the sink failed has the same identifier.
    pub fn uid(&self) -> String {
        format!("{}{}", self.uid_start(), self.sequence)
    }

    pub(crate) fn uid_start(&self) -> &str {
        self.source.as_ref().map_or("", |source| &source.uid)
    }

    /// The name of the service as JSON.
    pub(crate) fn service_json(&self) -> &str {
        let source = self.source.as_ref();
        source.map_or("\"\"", |source| &source.service)
    }

    /// Returns the position of the event in its trail, from zero. A missing number is a lost event.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns the request, if the event is about one.
    pub fn request(&self) -> Option<&AuditedRequest> {
        match &self.kind {
            AuditEventKind::Request(request) => Some(request),
            AuditEventKind::Suppressed(_) | AuditEventKind::Lost(_) => None,
        }
    }
}

/// What an [`AuditEvent`] is about.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "almost all events are about requests, and those that wait are kept in place"
)]
pub enum AuditEventKind {
    /// A request that was decided on, or that ended during the verification of its key.
    Request(AuditedRequest),
    /// Requests without an event that were rejected or ended during the verification, because there were too many.
    Suppressed(SuppressedRejections),
    /// Lost events: the queue was full, or the sink failed permanently.
    Lost(LostEvents),
}

/// A count of rejected requests without a known organization, since the previous count.
#[derive(Clone, Debug)]
pub struct SuppressedRejections {
    pub(crate) period: Period,
    pub(crate) by_code: Vec<(&'static str, u64)>,
}

impl SuppressedRejections {
    /// Returns the number of requests.
    pub fn count(&self) -> u64 {
        self.by_code.iter().map(|(_, count)| count).sum()
    }

    /// Returns the number of requests for each [code](AuditedRequest::code): of a rejection, or of an end during the verification.
    pub fn by_code(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.by_code.iter().copied()
    }

    /// Returns when the count began.
    pub fn since(&self) -> SystemTime {
        self.period.since
    }
}

/// A count of lost events, since the previous count.
#[derive(Clone, Debug)]
pub struct LostEvents {
    pub(crate) period: Period,
    pub(crate) count: u64,
}

impl LostEvents {
    /// Returns the number of events.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns when the count began.
    pub fn since(&self) -> SystemTime {
        self.period.since
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Period {
    pub(crate) since: SystemTime,
    pub(crate) until: SystemTime,
}

/// How the body of a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BodyEnd {
    /// It was read to its end.
    Ended,
    /// It was dropped before its end: the client disconnected, or the server gave up.
    Dropped,
    /// It ended with an error.
    Failed,
}

/// A request that was decided on, or that ended during the verification of its key.
#[derive(Clone, Debug)]
pub struct AuditedRequest {
    pub(crate) time: SystemTime,
    pub(crate) arrived: Instant,
    pub(crate) request_id: Option<Box<str>>,
    pub(crate) method: Method,
    pub(crate) route: Option<Route>,
    pub(crate) path: Option<Box<str>>,
    pub(crate) peer: Option<AuditPeer>,
    /// Instead of the peer.
    pub(crate) peer_pseudonym: Option<Pseudonym>,
    pub(crate) actor: Actor,
    pub(crate) requirements: Requirements,
    pub(crate) outcome: Outcome,
    pub(crate) status: Option<StatusCode>,
    pub(crate) duration: Duration,
    pub(crate) body: Option<Body>,
}

#[derive(Clone, Debug)]
pub(crate) enum Actor {
    /// Rejected before the organization was known.
    Unknown,
    Anonymous,
    /// A credential that is not a key, passed to an inner authentication.
    OtherCredential,
    /// An operator of the service, who changed this.
    Operator {
        target: Box<str>,
    },
    Organization {
        org: OrgCode,
        key_id: Option<KeyId>,
        user_id: Option<Box<str>>,
        is_cached: bool,
        is_stale: bool,
    },
}

impl Actor {
    /// Replaces the id of the user that the key acts for.
    pub(crate) fn pseudonymize(&mut self, key: &PseudonymKey) {
        if let Self::Organization {
            user_id: Some(user_id),
            ..
        } = self
        {
            *user_id = key.of_user(user_id).into();
        }
    }
}

impl From<Option<&Caller>> for Actor {
    fn from(caller: Option<&Caller>) -> Self {
        match caller {
            // Copied out of the context, which keeps an entry of the cache alive.
            Some(Caller::Organization { context, is_cached }) => Self::Organization {
                org: context.org_code().clone(),
                key_id: context.key_id().cloned(),
                user_id: context.user_id().map(Into::into),
                is_cached: *is_cached,
                is_stale: context.is_stale(),
            },
            Some(Caller::Anonymous) => Self::Anonymous,
            Some(Caller::OtherCredential) => Self::OtherCredential,
            Some(_) | None => Self::Unknown,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Allowed,
    Rejected(Rejection),
    EndedEarly(EarlyEnd),
}

#[derive(Clone, Debug)]
pub(crate) enum Route {
    #[cfg(feature = "axum")]
    Matched(axum::extract::MatchedPath),
    Named(Box<str>),
}

impl Route {
    /// Returns a route with this name, cut to [`MAX_TEXT`] bytes.
    pub(crate) fn named(mut name: String) -> Self {
        name.truncate(shortened(&name, MAX_TEXT).len());
        Self::Named(name.into())
    }
}

/// The body of a response, as far as it was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Body {
    pub(crate) end: BodyEnd,
    pub(crate) after: Duration,
    pub(crate) bytes: u64,
}

impl AuditedRequest {
    /// Returns the record of what an operator changed now.
    pub(crate) fn of_operator(operation: &str, target: &str) -> Self {
        Self {
            time: SystemTime::now(),
            arrived: Instant::now(),
            request_id: None,
            method: Method::POST,
            route: Some(Route::Named(bounded_text(operation))),
            path: None,
            peer: None,
            peer_pseudonym: None,
            actor: Actor::Operator {
                target: bounded_text(target),
            },
            requirements: Requirements::default(),
            outcome: Outcome::Allowed,
            status: None,
            duration: Duration::ZERO,
            body: None,
        }
    }

    /// Returns when the request arrived, by the wall clock.
    pub fn time(&self) -> SystemTime {
        self.time
    }

    /// Returns the request's id, if [its header](crate::AuditLayer::request_id_header) holds one: 1 to 128 visible ASCII characters.
    ///
    /// A client can choose any id, so it does not identify the event. [`AuditEvent::uid`] does.
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }

    /// Returns the organization, if the key was authenticated, even if a guard rejected the request afterwards.
    pub fn org_code(&self) -> Option<&OrgCode> {
        match &self.actor {
            Actor::Organization { org, .. } => Some(org),
            Actor::Unknown | Actor::Anonymous | Actor::OtherCredential | Actor::Operator { .. } => {
                None
            }
        }
    }

    /// Returns the key's identifier at the issuer, if the issuer gives its keys one.
    pub fn key_id(&self) -> Option<&KeyId> {
        match &self.actor {
            Actor::Organization { key_id, .. } => key_id.as_ref(),
            Actor::Unknown | Actor::Anonymous | Actor::OtherCredential | Actor::Operator { .. } => {
                None
            }
        }
    }

    /// Returns the user that the key acts for, or the pseudonym of its id with
    /// [`pseudonymize`](crate::AuditLayer::pseudonymize).
    pub fn user_id(&self) -> Option<&str> {
        match &self.actor {
            Actor::Organization { user_id, .. } => user_id.as_deref(),
            Actor::Unknown | Actor::Anonymous | Actor::OtherCredential | Actor::Operator { .. } => {
                None
            }
        }
    }

    /// Returns whether the verification result was cached, so that the request did not wait for the issuer. `None`
    /// without an organization.
    pub fn is_cached(&self) -> Option<bool> {
        match self.actor {
            Actor::Organization { is_cached, .. } => Some(is_cached),
            Actor::Unknown | Actor::Anonymous | Actor::OtherCredential | Actor::Operator { .. } => {
                None
            }
        }
    }

    /// Returns whether the verification result was past its soft TTL. `None` without an organization.
    pub fn is_stale(&self) -> Option<bool> {
        match self.actor {
            Actor::Organization { is_stale, .. } => Some(is_stale),
            Actor::Unknown | Actor::Anonymous | Actor::OtherCredential | Actor::Operator { .. } => {
                None
            }
        }
    }

    /// Returns what an operator changed, if the event is about
    /// [that](crate::AuditTrail::record_operator_action), cut to 1,024 bytes.
    pub fn operator_target(&self) -> Option<&str> {
        match &self.actor {
            Actor::Operator { target } => Some(target),
            Actor::Unknown
            | Actor::Anonymous
            | Actor::OtherCredential
            | Actor::Organization { .. } => None,
        }
    }

    /// Returns the method, cut to 32 bytes.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Returns the route, if it is known, cut to 1,024 bytes.
    pub fn route(&self) -> Option<&str> {
        match &self.route {
            None => None,
            #[cfg(feature = "axum")]
            Some(Route::Matched(path)) => Some(shortened(path.as_str(), MAX_TEXT)),
            Some(Route::Named(name)) => Some(name),
        }
    }

    /// Returns the path as the client sent it, with [`record_path`](crate::AuditLayer::record_path), cut to 1,024 bytes.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Returns where the request comes from, with [`peer`](crate::AuditLayer::peer). `None` if it has a
    /// [pseudonym](Self::peer_pseudonym).
    pub fn peer(&self) -> Option<AuditPeer> {
        self.peer
    }

    /// Returns the pseudonym of the peer's address, with [`pseudonymize`](crate::AuditLayer::pseudonymize).
    pub fn peer_pseudonym(&self) -> Option<&str> {
        self.peer_pseudonym.as_ref().map(pseudonym::text)
    }

    /// Returns the outcome: `allowed`, `anonymous`, `other-credential`, `timed-out` for a status of 408 or 504, the
    /// [code](tower_orgkey::Rejection::code) of a rejection, or the [name](EarlyEnd::code) of an early end.
    pub fn code(&self) -> &'static str {
        match &self.outcome {
            Outcome::Allowed | Outcome::EndedEarly(_) if self.has_timed_out() => "timed-out",
            Outcome::Allowed => match self.actor {
                Actor::Anonymous => "anonymous",
                Actor::OtherCredential => "other-credential",
                Actor::Unknown | Actor::Operator { .. } | Actor::Organization { .. } => "allowed",
            },
            Outcome::Rejected(rejection) => rejection.code(),
            Outcome::EndedEarly(end) => end.code(),
        }
    }

    /// Whether the response is that of a layer such as tower-http's `TimeoutLayer`, or of a handler whose backend timed out.
    fn has_timed_out(&self) -> bool {
        matches!(
            self.status,
            Some(StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT)
        )
    }

    /// Whether the request ended before its key was verified.
    pub(crate) fn is_unverified(&self) -> bool {
        matches!(self.outcome, Outcome::EndedEarly(_)) && matches!(self.actor, Actor::Unknown)
    }

    /// Returns the rejection, if the request was rejected.
    pub fn rejection(&self) -> Option<&Rejection> {
        match &self.outcome {
            Outcome::Rejected(rejection) => Some(rejection),
            Outcome::Allowed | Outcome::EndedEarly(_) => None,
        }
    }

    /// Returns the status of the response, if there is one.
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// Returns the time from the arrival to the head of the response, or to the early end.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// Returns how the body of the response ended. `None` if there was none to send.
    pub fn body_end(&self) -> Option<BodyEnd> {
        self.body.map(|body| body.end)
    }

    /// Returns the time from the arrival to the end of the body. `None` if there was none to send.
    pub fn body_duration(&self) -> Option<Duration> {
        self.body.map(|body| body.after)
    }

    /// Returns how many bytes of the body the server took. `None` if there was none to send.
    pub fn body_bytes(&self) -> Option<u64> {
        self.body.map(|body| body.bytes)
    }
}

/// The most bytes of a route or a path that are kept.
const MAX_TEXT: usize = 1_024;

fn shortened(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let boundary = (0..=most).rev().find(|at| text.is_char_boundary(*at));
    &text[..boundary.unwrap_or_default()]
}

pub(crate) fn bounded_text(text: &str) -> Box<str> {
    shortened(text, MAX_TEXT).into()
}

pub(crate) fn bounded_method(method: &Method) -> Method {
    const MAX_METHOD: usize = 32;

    // A method is ASCII, so its beginning is a method too.
    match method.as_str().get(..MAX_METHOD) {
        Some(beginning) if method.as_str().len() > MAX_METHOD => {
            Method::from_bytes(beginning.as_bytes()).unwrap_or_default()
        }
        _ => method.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_clients_are_cut() {
        let long = "é".repeat(1_000);
        assert_eq!(bounded_text(&long).len(), 1_024);
        assert_eq!(&*bounded_text("/short"), "/short");
        assert_eq!(bounded_text(&format!("x{long}")).len(), 1_023);
        match Route::named(format!("x{long}")) {
            Route::Named(name) => assert_eq!(name.len(), 1_023),
            #[cfg(feature = "axum")]
            Route::Matched(_) => unreachable!(),
        }
        let method = |length| Method::from_bytes(&vec![b'X'; length]).unwrap();
        assert_eq!(bounded_method(&method(5_000)).as_str(), "X".repeat(32));
        assert_eq!(bounded_method(&Method::DELETE), Method::DELETE);
        assert_eq!(bounded_method(&method(32)).as_str().len(), 32);
    }
}
