use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use crate::endpoint::Endpoint;
use crate::reply::Reply;

/// A fault at an endpoint, injected by [`KindeEmulator::inject`](crate::KindeEmulator::inject).
///
/// It affects every call until it is [cleared](crate::KindeEmulator::clear_faults), unless [`every`](Fault::every) or
/// [`times`](Fault::times) limits it.
///
/// ```
/// use std::time::Duration;
/// use kinde_emulator::Fault;
///
/// // Every second call fails, after 50 ms.
/// let flapping = Fault::status(503).every(2).after(Duration::from_millis(50));
/// // One call is throttled for 30 s.
/// let throttled = Fault::status(429).with_header("ratelimit-reset", "30").times(1);
/// // A header with an absurd value.
/// let absurd = Fault::status(429).with_header("retry-after", "1e99");
/// // A body that is not JSON.
/// let html = Fault::reply(200, "text/html", "<h1>It works!</h1>");
/// ```
#[derive(Clone)]
#[must_use]
pub struct Fault {
    pub(crate) effect: Effect,
    pub(crate) delay: Duration,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) every: u64,
    pub(crate) times: Option<u64>,
}

/// What a fault does to the regular reply, or sends in its place.
#[derive(Clone)]
pub(crate) enum Effect {
    /// The regular reply.
    None,
    Rewrite(Arc<dyn Fn(&str) -> String + Send + Sync>),
    Truncate,
    ResetMidBody,
    Trickle(Duration),
    Hold,
    RejectToken,
    Status(u16),
    RouteNotFound,
    Reply {
        status: u16,
        content_type: HeaderValue,
        body: Bytes,
    },
    NoResponse,
    Close,
    Reset,
    LoseReply,
    Late,
}

impl Fault {
    fn new(effect: Effect) -> Self {
        Self {
            effect,
            delay: Duration::ZERO,
            headers: Vec::new(),
            every: 1,
            times: None,
        }
    }

    pub(crate) fn none() -> Self {
        Self::new(Effect::None)
    }

    /// Delays the regular reply.
    pub fn latency(delay: Duration) -> Self {
        Self::none().after(delay)
    }

    /// Replies with this status and the error body that Kinde's contract defines for it.
    ///
    /// `errors` is an array, or an object for 404 (its code is not `ROUTE_NOT_FOUND`). The token endpoint replies as RFC 6749
    /// defines.
    ///
    /// # Panics
    ///
    /// Panics if the status is not in 200–599.
    #[track_caller]
    pub fn status(status: u16) -> Self {
        Self::new(Effect::Status(checked(status)))
    }

    /// Replies with 404 and the code `ROUTE_NOT_FOUND`, as for an unknown path.
    pub fn route_not_found() -> Self {
        Self::new(Effect::RouteNotFound)
    }

    /// Replies with this status, media type and body.
    ///
    /// # Panics
    ///
    /// Panics if the status is not in 200–599, or if the media type is not a valid header value.
    #[track_caller]
    pub fn reply(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let Ok(content_type) = HeaderValue::from_str(content_type) else {
            panic!("the media type is not a valid header value");
        };
        Self::new(Effect::Reply {
            status: checked(status),
            content_type,
            body: body.into(),
        })
    }

    /// Redirects to this URL with 307, which asks the client to repeat the request there with its body.
    ///
    /// # Panics
    ///
    /// Panics if the URL is not a valid header value.
    #[track_caller]
    pub fn redirect(location: &str) -> Self {
        Self::reply(307, "text/plain", "").with_header("location", location)
    }

    /// Rejects the access token, or at the token endpoint the client credentials, although they are valid.
    pub fn reject_token() -> Self {
        Self::new(Effect::RejectToken)
    }

    /// Changes the body of the regular reply.
    ///
    /// ```
    /// use kinde_emulator::Fault;
    ///
    /// let fault = Fault::rewrite(|body| body.replace("\"active\"", "\"suspended\""));
    /// ```
    pub fn rewrite(change: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::new(Effect::Rewrite(Arc::new(change)))
    }

    /// Sets a member of the JSON object in the regular reply. The value is JSON.
    ///
    /// ```
    /// use kinde_emulator::Fault;
    ///
    /// let blank = Fault::with_member("org_code", r#""""#);
    /// let negative = Fault::with_member("expires_in", "-1");
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if the value is not JSON.
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

    /// Removes a member of the JSON object in the regular reply.
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

    /// Closes the connection after half of the body of the regular reply.
    pub fn truncate() -> Self {
        Self::new(Effect::Truncate)
    }

    /// Resets the connection after half of the body of the regular reply.
    pub fn reset_mid_body() -> Self {
        Self::new(Effect::ResetMidBody)
    }

    /// Sends the body of the regular reply one byte at a time, with this interval between bytes.
    pub fn trickle(interval: Duration) -> Self {
        Self::new(Effect::Trickle(interval))
    }

    /// Holds calls back, and sends the regular replies when the fault is cleared or replaced.
    pub fn hold() -> Self {
        Self::new(Effect::Hold)
    }

    /// Never responds. The connection stays open, also after the fault is cleared.
    pub fn no_response() -> Self {
        Self::new(Effect::NoResponse)
    }

    /// Closes the connection without a response.
    pub fn close() -> Self {
        Self::new(Effect::Close)
    }

    /// Resets the connection without a response.
    pub fn reset() -> Self {
        Self::new(Effect::Reset)
    }

    /// Carries the call out and closes the connection without a response: the answer is lost.
    pub fn lose_reply() -> Self {
        Self::new(Effect::LoseReply)
    }

    /// Closes the connection without a response, and carries the call out when the fault is cleared or replaced: the request
    /// was delayed on its way.
    pub fn late() -> Self {
        Self::new(Effect::Late)
    }

    /// Delays the effect of the fault.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Adds a header to the response.
    ///
    /// # Panics
    ///
    /// Panics if the name or the value is not valid in a header.
    #[track_caller]
    pub fn with_header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_bytes(value.as_ref()),
        ) else {
            panic!("the name or the value is not valid in a header");
        };
        self.headers.push((name, value));
        self
    }

    /// Limits the fault to every `n`th call of an endpoint, starting with the `n`th.
    ///
    /// # Panics
    ///
    /// Panics if `n` is 0.
    #[track_caller]
    pub fn every(mut self, n: u64) -> Self {
        assert!(n > 0, "every(0) selects no call");
        self.every = n;
        self
    }

    /// Limits the fault to `n` calls per endpoint.
    pub fn times(mut self, n: u64) -> Self {
        self.times = Some(n);
        self
    }
}

#[track_caller]
fn checked(status: u16) -> u16 {
    assert!((200..600).contains(&status), "the status is not in 200–599");
    status
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault")
            .field("effect", &self.effect)
            .field("delay", &self.delay)
            .field("every", &self.every)
            .field("times", &self.times)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Rewrite(_) => "Rewrite",
            Self::Truncate => "Truncate",
            Self::ResetMidBody => "ResetMidBody",
            Self::Trickle(_) => "Trickle",
            Self::Hold => "Hold",
            Self::RejectToken => "RejectToken",
            Self::Status(status) => return write!(f, "Status({status})"),
            Self::RouteNotFound => "RouteNotFound",
            Self::Reply { status, .. } => return write!(f, "Reply({status})"),
            Self::NoResponse => "NoResponse",
            Self::Close => "Close",
            Self::Reset => "Reset",
            Self::LoseReply => "LoseReply",
            Self::Late => "Late",
        })
    }
}

/// Returns the reply that the contract defines for a status at an endpoint.
pub(crate) fn error_reply(endpoint: Endpoint, status: u16) -> Reply {
    if endpoint == Endpoint::Token {
        let error = match status {
            400 => "invalid_request",
            401 => "invalid_client",
            403 => "unauthorized_client",
            _ => "server_error",
        };
        return Reply::oauth_error(status, error, "Injected fault");
    }
    match status {
        404 => Reply::not_found("NOT_FOUND", "Injected fault"),
        429 => Reply::error(429, "TOO_MANY_REQUESTS", "Injected fault"),
        200..400 => Reply::json(status, &json!({})),
        _ => Reply::error(status, "INJECTED_FAULT", "Injected fault"),
    }
}
