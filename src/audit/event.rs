//! What a sink is handed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};

use super::peer::AuditPeer;
use crate::clock::Tick;
use crate::identifier::{KeyId, OrgCode};
use crate::rejection::Rejection;
use crate::witness::{Asked, Caller, Left};

/// One event of the trail.
///
/// It serializes (`serde`) as an event of OCSF 1.8.0; the [module's guide](crate::audit) tells which field means what.
#[derive(Clone, Debug)]
pub struct AuditEvent {
    pub(super) kind: AuditEventKind,
    pub(super) source: Arc<Source>,
    pub(super) sequence: u64,
}

/// What all events of one trail have in common.
#[derive(Debug)]
pub(super) struct Source {
    /// Drawn when the trail starts.
    pub(super) trail: u64,
    pub(super) service: Box<str>,
}

impl AuditEvent {
    /// What the event tells.
    pub fn kind(&self) -> &AuditEventKind {
        &self.kind
    }

    /// The event's own identifier: a number drawn when the trail started, and the event's place in it.
    ///
    /// An event that a sink is handed again after it failed has the same.
    pub fn uid(&self) -> String {
        format!("{:016x}-{}", self.source.trail, self.sequence)
    }

    /// The event's place in its trail, from zero on. A number that is missing between two others was lost.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The request that the event tells of.
    pub fn request(&self) -> Option<&AuditedRequest> {
        match &self.kind {
            AuditEventKind::Request(request) => Some(request),
            AuditEventKind::LeftOut(_) | AuditEventKind::Lost(_) => None,
        }
    }
}

/// What an [`AuditEvent`] tells.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AuditEventKind {
    /// A request that was decided on.
    Request(Box<AuditedRequest>),
    /// Refusals of nobody's that have no event of their own, since there were too many of them.
    LeftOut(LeftOutRefusals),
    /// Events that are lost: the queue was full, or the sink gave them up.
    Lost(LostEvents),
}

/// Refusals of requests without a known organization, counted since the last count was told.
#[derive(Clone, Debug)]
pub struct LeftOutRefusals {
    pub(super) period: Period,
    pub(super) by_code: Vec<(&'static str, u64)>,
}

impl LeftOutRefusals {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.by_code.iter().map(|(_, count)| count).sum()
    }

    /// How many there were of each [code](crate::Rejection::code).
    pub fn by_code(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.by_code.iter().copied()
    }

    /// The time that the count began at.
    pub fn since(&self) -> SystemTime {
        self.period.since
    }
}

/// Events that are missing in the trail, counted since the last count was told.
#[derive(Clone, Debug)]
pub struct LostEvents {
    pub(super) period: Period,
    pub(super) count: u64,
}

impl LostEvents {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The time that the count began at.
    pub fn since(&self) -> SystemTime {
        self.period.since
    }
}

/// What a count is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Period {
    pub(super) since: SystemTime,
    pub(super) until: SystemTime,
}

/// How the body of a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BodyEnd {
    /// It was read to its end.
    Ended,
    /// It was dropped before: the client went away, or the server gave up.
    Dropped,
    /// It ended in an error.
    Failed,
}

/// A request that was decided on.
#[derive(Clone, Debug)]
pub struct AuditedRequest {
    pub(super) time: SystemTime,
    pub(super) arrived: Tick,
    pub(super) request_id: Box<str>,
    pub(super) method: Method,
    pub(super) route: Option<Route>,
    pub(super) path: Option<Box<str>>,
    pub(super) peer: Option<AuditPeer>,
    pub(super) who: Who,
    pub(super) asked: Vec<Asked>,
    pub(super) outcome: Outcome,
    pub(super) status: Option<StatusCode>,
    pub(super) duration: Duration,
    pub(super) body: Option<Body>,
}

/// Whose request it is.
#[derive(Clone, Debug)]
pub(super) enum Who {
    Nobody,
    Anonymous,
    Organization {
        org: OrgCode,
        key_id: Option<KeyId>,
        user_id: Option<Box<str>>,
        is_cached: bool,
        is_stale: bool,
    },
}

impl From<Option<Caller>> for Who {
    fn from(caller: Option<Caller>) -> Self {
        match caller {
            None => Self::Nobody,
            Some(Caller::Anonymous) => Self::Anonymous,
            // Not the context itself, which keeps a cache's entry alive.
            Some(Caller::Organization { context, cached }) => Self::Organization {
                org: context.org_code().clone(),
                key_id: context.key_id().cloned(),
                user_id: context.user_id().map(Into::into),
                is_cached: cached,
                is_stale: context.is_stale(),
            },
        }
    }
}

/// What became of a request.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    LetIn,
    Refused(Rejection),
    Left(Left),
}

#[derive(Clone, Debug)]
pub(super) enum Route {
    #[cfg(feature = "axum")]
    Matched(axum::extract::MatchedPath),
    Named(Box<str>),
}

/// The body of a response, as far as it went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body {
    pub(super) end: BodyEnd,
    pub(super) after: Duration,
    pub(super) bytes: u64,
}

impl AuditedRequest {
    /// When the request arrived, on the wall clock.
    pub fn time(&self) -> SystemTime {
        self.time
    }

    /// The request's id, taken over or made: 1 to 128 visible ASCII characters.
    ///
    /// A client chooses it as it likes: it does not identify an event. [`AuditEvent::uid`] does.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The organization, if the key was let in, even where a guard refused the request then.
    pub fn org_code(&self) -> Option<&OrgCode> {
        match &self.who {
            Who::Organization { org, .. } => Some(org),
            Who::Nobody | Who::Anonymous => None,
        }
    }

    /// The key's identifier at the issuer, if the issuer gives its keys one.
    pub fn key_id(&self) -> Option<&KeyId> {
        match &self.who {
            Who::Organization { key_id, .. } => key_id.as_ref(),
            Who::Nobody | Who::Anonymous => None,
        }
    }

    /// The user that the key acts for.
    pub fn user_id(&self) -> Option<&str> {
        match &self.who {
            Who::Organization { user_id, .. } => user_id.as_deref(),
            Who::Nobody | Who::Anonymous => None,
        }
    }

    /// Whether the key's facts were held already, so that the request did not wait for the issuer. `None` without a key.
    pub fn is_cached(&self) -> Option<bool> {
        match self.who {
            Who::Organization { is_cached, .. } => Some(is_cached),
            Who::Nobody | Who::Anonymous => None,
        }
    }

    /// Whether the key's facts were past their soft TTL. `None` without a key.
    pub fn is_stale(&self) -> Option<bool> {
        match self.who {
            Who::Organization { is_stale, .. } => Some(is_stale),
            Who::Nobody | Who::Anonymous => None,
        }
    }

    /// The method; of one that is longer than 32 bytes, their first 32.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The route, if it is known: at most 1,024 bytes.
    pub fn route(&self) -> Option<&str> {
        match &self.route {
            None => None,
            #[cfg(feature = "axum")]
            Some(Route::Matched(path)) => Some(shortened(path.as_str(), MAX_TEXT)),
            Some(Route::Named(name)) => Some(name),
        }
    }

    /// The path as the client sent it, if [`record_path`](super::AuditLayer::record_path) is on: at most 1,024 bytes.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// From where the request came, if [`peer`](super::AuditLayer::peer) says so.
    pub fn peer(&self) -> Option<AuditPeer> {
        self.peer
    }

    /// What became of the request: `allowed`, `anonymous`, the [code](crate::Rejection::code) of a rejection, or, where
    /// there is no response, `failed`, `dropped`, `panicked`.
    pub fn code(&self) -> &'static str {
        match &self.outcome {
            Outcome::LetIn if matches!(self.who, Who::Anonymous) => "anonymous",
            Outcome::LetIn => "allowed",
            Outcome::Refused(rejection) => rejection.code(),
            Outcome::Left(Left::Failed) => "failed",
            Outcome::Left(Left::Dropped) => "dropped",
            Outcome::Left(Left::Panicked) => "panicked",
        }
    }

    /// What the request was refused for, if it was refused.
    pub fn rejection(&self) -> Option<&Rejection> {
        match &self.outcome {
            Outcome::Refused(rejection) => Some(rejection),
            Outcome::LetIn | Outcome::Left(_) => None,
        }
    }

    /// The status of the response. `None` where there is none.
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// From the arrival to the head of the response, or to the end without one.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// How the body of the response ended. `None` where there was none to send.
    pub fn body_end(&self) -> Option<BodyEnd> {
        self.body.map(|body| body.end)
    }

    /// From the arrival to the end of the body. `None` where there was none to send.
    pub fn body_duration(&self) -> Option<Duration> {
        self.body.map(|body| body.after)
    }

    /// How many bytes of the body were taken by the server. `None` where there was none to send.
    pub fn body_bytes(&self) -> Option<u64> {
        self.body.map(|body| body.bytes)
    }

    /// Whether no organization is known for it.
    pub(super) fn is_strangers(&self) -> bool {
        self.org_code().is_none()
    }
}

/// The most bytes of a route or a path that are kept.
const MAX_TEXT: usize = 1_024;

/// The beginning of a text that is too long for the queue's bound.
fn shortened(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let boundary = (0..=most).rev().find(|at| text.is_char_boundary(*at));
    &text[..boundary.unwrap_or_default()]
}

pub(super) fn kept(text: &str) -> Box<str> {
    shortened(text, MAX_TEXT).into()
}

/// The method, or the beginning of one that somebody made up.
pub(super) fn kept_method(method: &Method) -> Method {
    const MAX_METHOD: usize = 32;

    // Every method is ASCII, and so is its beginning a method.
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
    fn what_a_client_sends_is_kept_up_to_a_bound() {
        let long = "é".repeat(1_000);
        assert_eq!(kept(&long).len(), 1_024);
        assert_eq!(&*kept("/short"), "/short");
        assert_eq!(kept(&format!("x{long}")).len(), 1_023);
        let made_up = Method::from_bytes(&[b'X'; 5_000]).unwrap();
        assert_eq!(kept_method(&made_up).as_str(), "X".repeat(32));
        assert_eq!(kept_method(&Method::DELETE), Method::DELETE);
        assert_eq!(
            kept_method(&Method::from_bytes(&[b'X'; 32]).unwrap())
                .as_str()
                .len(),
            32
        );
    }
}
