//! Responds to one call: with the regular reply, or as an injected fault says.

use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, DATE, Entry, HeaderValue, PRAGMA};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use httpdate::fmt_http_date;
use hyper::body::Incoming;
use tokio::time::sleep;

use crate::TARGET;
use crate::body::Body;
use crate::calls::Outcome;
use crate::connection::ResetHandle;
use crate::control;
use crate::endpoint::Endpoint;
use crate::fault::{Effect, Fault, error_reply};
use crate::injected::InjectionId;
use crate::issuer::Call;
use crate::late::LateCall;
use crate::recorded::RecordedRequest;
use crate::reply::Reply;
use crate::shared::{Mode, Shared};

/// Much larger than any request that Kinde's contract defines.
const MAX_BODY_LEN: usize = 1 << 20;

/// Makes hyper close the connection without a response.
#[derive(Debug, thiserror::Error)]
#[error("connection closed by an injected fault")]
pub(crate) struct Closed;

/// Responds, with the date of the emulator's clock.
pub(crate) async fn respond(
    request: Request<Incoming>,
    peer: SocketAddr,
    reset: ResetHandle,
    shared: Arc<Shared>,
) -> Result<Response<Body>, Closed> {
    let mut response = answer(request, peer, reset, &shared).await?;
    let now = fmt_http_date(shared.state().issuer.clock.now());
    if let (Entry::Vacant(date), Ok(now)) = (
        response.headers_mut().entry(DATE),
        HeaderValue::try_from(now),
    ) {
        date.insert(now);
    }
    Ok(response)
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    reset: ResetHandle,
    shared: &Shared,
) -> Result<Response<Body>, Closed> {
    let (parts, body) = request.into_parts();
    if shared.control && control::is_control(parts.uri.path()) {
        let body = collect(body).await?;
        return Ok(response(&control::answer(shared, &parts, &body, peer)));
    }
    let Some((endpoint, key_id)) = Endpoint::of(&parts.method, parts.uri.path()) else {
        shared.state().calls.unrouted += 1;
        return Ok(response(&Reply::route_not_found()));
    };
    let body = collect(body).await?;
    let (fault, _in_flight) = record(shared, endpoint, &parts, &body);
    let (fault, injection) = fault.unwrap_or_else(|| (Fault::none(), InjectionId::default()));
    if !fault.delay.is_zero() {
        sleep(fault.delay).await;
    }

    if matches!(fault.effect, Effect::Late) {
        let mut state = shared.state();
        state.late.push(LateCall {
            endpoint,
            injection,
            key_id,
            parts,
            body,
            peer_ip: peer.ip().to_string(),
        });
        // The fault may have been cleared meanwhile.
        state.carry_out_late_calls();
        return Err(Closed);
    }
    let regular = || {
        let call = Call {
            endpoint,
            key_id: key_id.as_deref(),
            parts: &parts,
            body: &body,
            peer_ip: peer.ip().to_string(),
        };
        let mut state = shared.state();
        let (reply, outcome) = state.issuer.answer(&call);
        state.calls.of_mut(endpoint).count_outcome(outcome);
        drop(state);
        tracing::debug!(target: TARGET, ?endpoint, ?outcome, "call answered");
        reply
    };
    let mut response = match fault.effect {
        Effect::None => response(&regular()),
        Effect::Rewrite(change) => {
            let mut reply = regular();
            reply.body = change(&reply.body);
            response(&reply)
        }
        Effect::Truncate => response_with(&regular(), |body| Body::truncated(body, None)),
        Effect::ResetMidBody => {
            response_with(&regular(), |body| Body::truncated(body, Some(reset)))
        }
        Effect::Trickle(interval) => response_with(&regular(), |body| Body::slow(body, interval)),
        Effect::Hold => {
            released(shared, endpoint, injection).await;
            response(&regular())
        }
        Effect::RejectToken => {
            let mut state = shared.state();
            let (reply, outcome) = state.issuer.reject_token(endpoint);
            debug_assert_eq!(outcome, Outcome::TokenRejected);
            state.calls.of_mut(endpoint).count_outcome(outcome);
            response(&reply)
        }
        Effect::Status(status) => response(&error_reply(endpoint, status)),
        Effect::RouteNotFound => response(&Reply::route_not_found()),
        Effect::Reply {
            status,
            content_type,
            body,
        } => {
            let mut response = Response::new(Body::whole(body));
            *response.status_mut() = checked_status(status);
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            response
        }
        Effect::NoResponse => {
            stopping(shared).await;
            return Err(Closed);
        }
        Effect::LoseReply => {
            regular();
            return Err(Closed);
        }
        // `Late` is handled above.
        Effect::Close | Effect::Late => return Err(Closed),
        Effect::Reset => {
            reset.reset();
            return Err(Closed);
        }
    };
    for (name, value) in fault.headers {
        response.headers_mut().append(name, value);
    }
    Ok(response)
}

/// Records a call, and returns the fault that affects it.
fn record<'a>(
    shared: &'a Shared,
    endpoint: Endpoint,
    parts: &Parts,
    body: &[u8],
) -> (Option<(Fault, InjectionId)>, InFlight<'a>) {
    let request = RecordedRequest::new(parts, body);
    let mut state = shared.state();
    state.last_requests[endpoint as usize] = Some(request);
    let fault = state.faults.next(endpoint);
    let counts = state.calls.of_mut(endpoint);
    counts.count_arrival();
    counts.faulted += u64::from(fault.is_some());
    drop(state);
    shared.call_arrived.notify_waiters();
    (fault, InFlight { shared, endpoint })
}

/// Counts a call as in flight until it is dropped.
struct InFlight<'a> {
    shared: &'a Shared,
    endpoint: Endpoint,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.shared.state().calls.of_mut(self.endpoint).in_flight -= 1;
    }
}

/// Waits until the fault is cleared or replaced.
async fn released(shared: &Shared, endpoint: Endpoint, injection: InjectionId) {
    loop {
        let mut changed = pin!(shared.faults_changed.notified());
        // Registers before the check, so that a change in between is not missed.
        changed.as_mut().enable();
        if !shared.state().faults.is_active(endpoint, injection) {
            return;
        }
        changed.await;
    }
}

/// Waits until the server shuts down.
async fn stopping(shared: &Shared) {
    let mut mode = shared.mode.subscribe();
    if mode.wait_for(|mode| *mode == Mode::Stopping).await.is_err() {
        pending::<()>().await;
    }
}

async fn collect(body: Incoming) -> Result<Bytes, Closed> {
    let mut body = pin!(body);
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        if let Ok(mut data) = frame.map_err(|_| Closed)?.into_data() {
            if bytes.len() + data.remaining() > MAX_BODY_LEN {
                return Err(Closed);
            }
            bytes.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
    }
    Ok(bytes.into())
}

fn response(reply: &Reply) -> Response<Body> {
    response_with(reply, Body::whole)
}

fn response_with(reply: &Reply, body: impl FnOnce(Bytes) -> Body) -> Response<Body> {
    let bytes = Bytes::copy_from_slice(reply.body.as_bytes());
    let length = bytes.len();
    let mut response = Response::new(body(bytes));
    *response.status_mut() = checked_status(reply.status);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    if reply.no_store {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    }
    response
}

fn checked_status(status: u16) -> StatusCode {
    match StatusCode::from_u16(status) {
        Ok(status) => status,
        Err(_) => unreachable!("`Fault` checks its status"),
    }
}
