//! What can go wrong on the wire, each in one call.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use super::endpoint::{Endpoint, Endpoints};
use super::wire::Answer;

/// A thing that goes wrong at an endpoint until it is [cleared](super::KindeEmulator::clear_faults), or so many
/// [times](Fault::times).
///
/// ```
/// use std::time::Duration;
/// use tower_orgkey::emulator::Fault;
///
/// // Half of the calls fail, and slowly.
/// let flapping = Fault::status(503).every(2).after(Duration::from_millis(50));
/// // One call is asked to come back in 30 s.
/// let throttled = Fault::status(429).with_header("ratelimit-reset", "30").times(1);
/// // A header that makes no sense.
/// let absurd = Fault::status(429).with_header("retry-after", "1e99");
/// // A body that makes no sense.
/// let html = Fault::reply(200, "text/html", "<h1>It works!</h1>");
/// ```
#[derive(Clone)]
#[must_use]
pub struct Fault {
    pub(super) act: Act,
    pub(super) delay: Duration,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    every: u64,
    times: Option<u64>,
}

/// What is done in place of the truthful answer, or to it.
#[derive(Clone)]
pub(super) enum Act {
    Truth,
    Rewrite(Arc<dyn Fn(&str) -> String + Send + Sync>),
    Truncate,
    ResetMidBody,
    Trickle(Duration),
    Hold,
    RefuseToken,
    Status(u16),
    RouteNotFound,
    Reply {
        status: u16,
        content_type: HeaderValue,
        body: Bytes,
    },
    Silence,
    Close,
    Reset,
}

impl Fault {
    fn new(act: Act) -> Self {
        Self {
            act,
            delay: Duration::ZERO,
            headers: Vec::new(),
            every: 1,
            times: None,
        }
    }

    pub(super) fn none() -> Self {
        Self::new(Act::Truth)
    }

    /// The truthful answer, so much later.
    pub fn latency(delay: Duration) -> Self {
        Self::none().after(delay)
    }

    /// This status, with the error body that Kinde's contract has for it: `errors` as an array, or as an object for 404
    /// (its code is not `ROUTE_NOT_FOUND`), or RFC 6749's at the token endpoint.
    ///
    /// # Panics
    ///
    /// When the status is not in 200–599.
    #[track_caller]
    pub fn status(status: u16) -> Self {
        Self::new(Act::Status(checked(status)))
    }

    /// 404 with the code `ROUTE_NOT_FOUND`: the address itself is said not to exist.
    pub fn route_not_found() -> Self {
        Self::new(Act::RouteNotFound)
    }

    /// Any answer at all.
    ///
    /// # Panics
    ///
    /// When the status is not in 200–599, or the media type cannot stand in a header.
    #[track_caller]
    pub fn reply(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let Ok(content_type) = HeaderValue::from_str(content_type) else {
            panic!("the media type cannot stand in a header");
        };
        Self::new(Act::Reply {
            status: checked(status),
            content_type,
            body: body.into(),
        })
    }

    /// 307 to this address, which asks for the same request, body and all, to be sent there.
    ///
    /// # Panics
    ///
    /// When the address cannot stand in a header.
    #[track_caller]
    pub fn redirect(location: &str) -> Self {
        Self::reply(307, "text/plain", "").with_header("location", location)
    }

    /// The bearer token (at the token endpoint: the client's credentials) is refused, good or not.
    pub fn refuse_token() -> Self {
        Self::new(Act::RefuseToken)
    }

    /// The truthful answer with its body changed.
    ///
    /// ```
    /// use tower_orgkey::emulator::Fault;
    ///
    /// let fault = Fault::rewrite(|body| body.replace("\"active\"", "\"suspended\""));
    /// ```
    pub fn rewrite(change: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::new(Act::Rewrite(Arc::new(change)))
    }

    /// The truthful answer with this member of its JSON object set to another value, given as JSON.
    ///
    /// ```
    /// use tower_orgkey::emulator::Fault;
    ///
    /// let blank = Fault::with_member("org_code", r#""""#);
    /// let soon = Fault::with_member("expires_in", "-1");
    /// ```
    ///
    /// # Panics
    ///
    /// When the value is not JSON.
    #[track_caller]
    pub fn with_member(name: impl Into<String>, value: &str) -> Self {
        let Ok(value) = serde_json::from_str::<Value>(value) else {
            panic!("the value is not JSON");
        };
        let name = name.into();
        Self::edit(move |body| {
            body.insert(name.clone(), value.clone());
        })
    }

    /// The truthful answer without this member of its JSON object.
    pub fn without_member(name: impl Into<String>) -> Self {
        let name = name.into();
        Self::edit(move |body| {
            body.remove(&name);
        })
    }

    fn edit(change: impl Fn(&mut Map<String, Value>) + Send + Sync + 'static) -> Self {
        Self::rewrite(move |body| match serde_json::from_str(body) {
            Ok(Value::Object(mut members)) => {
                change(&mut members);
                Value::Object(members).to_string()
            }
            _ => body.to_owned(),
        })
    }

    /// The truthful answer, its body cut off half-way by the end of the connection.
    pub fn truncate() -> Self {
        Self::new(Act::Truncate)
    }

    /// The truthful answer, its body cut off half-way by a reset of the connection.
    pub fn reset_mid_body() -> Self {
        Self::new(Act::ResetMidBody)
    }

    /// The truthful answer, its body one byte at a time, so far apart.
    pub fn trickle(apart: Duration) -> Self {
        Self::new(Act::Trickle(apart))
    }

    /// The truthful answer, once the fault is cleared: everything that came meanwhile waits.
    pub fn hold() -> Self {
        Self::new(Act::Hold)
    }

    /// No answer, ever, on a connection that stays open.
    pub fn silence() -> Self {
        Self::new(Act::Silence)
    }

    /// No answer: the connection is closed.
    pub fn close() -> Self {
        Self::new(Act::Close)
    }

    /// No answer: the connection is reset.
    pub fn reset() -> Self {
        Self::new(Act::Reset)
    }

    /// So much later than it would happen otherwise.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// With a header more.
    ///
    /// # Panics
    ///
    /// When the name or the value cannot stand in a header.
    #[track_caller]
    pub fn with_header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_bytes(value.as_ref()),
        ) else {
            panic!("this cannot stand in a header");
        };
        self.headers.push((name, value));
        self
    }

    /// Only on every `n`th call of an endpoint, beginning with its `n`th.
    ///
    /// # Panics
    ///
    /// When `n` is 0.
    #[track_caller]
    pub fn every(mut self, n: u64) -> Self {
        assert!(n > 0, "a fault cannot happen on every 0th call");
        self.every = n;
        self
    }

    /// Only so many times at each endpoint; after that all is well again.
    pub fn times(mut self, n: u64) -> Self {
        self.times = Some(n);
        self
    }
}

#[track_caller]
fn checked(status: u16) -> u16 {
    assert!(
        (200..600).contains(&status),
        "a final status is between 200 and 599"
    );
    status
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault")
            .field("act", &self.act)
            .field("delay", &self.delay)
            .field("every", &self.every)
            .field("times", &self.times)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truth => "Truth",
            Self::Rewrite(_) => "Rewrite",
            Self::Truncate => "Truncate",
            Self::ResetMidBody => "ResetMidBody",
            Self::Trickle(_) => "Trickle",
            Self::Hold => "Hold",
            Self::RefuseToken => "RefuseToken",
            Self::Status(status) => return write!(f, "Status({status})"),
            Self::RouteNotFound => "RouteNotFound",
            Self::Reply { status, .. } => return write!(f, "Reply({status})"),
            Self::Silence => "Silence",
            Self::Close => "Close",
            Self::Reset => "Reset",
        })
    }
}

/// The body that the contract has for a status at an endpoint.
pub(super) fn error_body(endpoint: Endpoint, status: u16) -> Answer {
    if endpoint == Endpoint::Token {
        let error = match status {
            400 => "invalid_request",
            401 => "invalid_client",
            403 => "unauthorized_client",
            _ => "server_error",
        };
        return Answer::oauth_error(status, error, "Injected fault");
    }
    match status {
        404 => Answer::not_found("NOT_FOUND", "Injected fault"),
        429 => Answer::error(429, "TOO_MANY_REQUESTS", "Injected fault"),
        200..400 => Answer::json(status, &json!({})),
        _ => Answer::error(status, "INJECTED_FAULT", "Injected fault"),
    }
}

/// The faults at each endpoint: at most one.
#[derive(Debug, Default)]
pub(super) struct Faults {
    installed: [Option<Installed>; Endpoint::ALL.len()],
    /// Tells one injection from the next.
    injections: u64,
}

#[derive(Debug)]
struct Installed {
    fault: Fault,
    injection: u64,
    calls: u64,
    fired: u64,
}

impl Faults {
    pub(super) fn inject(&mut self, at: Endpoints, fault: &Fault) {
        self.injections += 1;
        for endpoint in Endpoint::ALL {
            if at.contains(endpoint) {
                self.installed[endpoint as usize] = Some(Installed {
                    fault: fault.clone(),
                    injection: self.injections,
                    calls: 0,
                    fired: 0,
                });
            }
        }
    }

    pub(super) fn clear(&mut self, at: Endpoints) {
        for endpoint in Endpoint::ALL {
            if at.contains(endpoint) {
                self.installed[endpoint as usize] = None;
            }
        }
    }

    /// The fault that befalls the next call, and which injection it comes from.
    pub(super) fn next(&mut self, at: Endpoint) -> Option<(Fault, u64)> {
        let installed = self.installed[at as usize].as_mut()?;
        installed.calls += 1;
        let spent = installed
            .fault
            .times
            .is_some_and(|times| installed.fired >= times);
        if spent || installed.calls % installed.fault.every != 0 {
            return None;
        }
        installed.fired += 1;
        Some((installed.fault.clone(), installed.injection))
    }

    pub(super) fn is_installed(&self, at: Endpoint, injection: u64) -> bool {
        self.installed[at as usize]
            .as_ref()
            .is_some_and(|installed| installed.injection == injection)
    }
}
