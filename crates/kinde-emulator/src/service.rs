//! One call: what befalls it, and its answer.

use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, PRAGMA};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::sleep;

use super::calls::{Outcome, SeenRequest};
use super::endpoint::Endpoint;
use super::fault::{Act, Fault, error_body};
use super::issuer::Call;
use super::line::{Body, Cutter};
use super::shared::{Mode, Shared};
use super::wire::Answer;
use crate::telemetry::TARGET;

/// No request that Kinde's contract has is nearly as large.
const LONGEST_BODY: usize = 1 << 20;

/// The connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed on purpose")]
pub(super) struct Closed;

/// Answers a call truthfully, or as a fault wants it.
pub(super) async fn respond(
    request: Request<Incoming>,
    peer: SocketAddr,
    cutter: Cutter,
    shared: Arc<Shared>,
) -> Result<Response<Body>, Closed> {
    let (parts, body) = request.into_parts();
    let Some((endpoint, key_id)) = Endpoint::of(&parts.method, parts.uri.path()) else {
        shared.world().calls.unrouted += 1;
        return Ok(response(&Answer::route_not_found()));
    };
    let body = collect(body).await?;
    let (fault, _in_flight) = arrive(&shared, endpoint, &parts, &body);
    let (fault, injection) = fault.unwrap_or_else(|| (Fault::none(), 0));
    if !fault.delay.is_zero() {
        sleep(fault.delay).await;
    }

    let truth = || {
        let call = Call {
            endpoint,
            key_id: key_id.as_deref(),
            parts: &parts,
            body: &body,
            peer: peer.ip().to_string(),
        };
        let mut world = shared.world();
        let (answer, outcome) = world.issuer.answer(&call);
        world.calls.of_mut(endpoint).answered(outcome);
        drop(world);
        tracing::debug!(target: TARGET, ?endpoint, ?outcome, "the emulator answers");
        answer
    };
    let mut response = match fault.act {
        Act::Truth => response(&truth()),
        Act::Rewrite(change) => {
            let mut answer = truth();
            answer.body = change(&answer.body);
            response(&answer)
        }
        Act::Truncate => response_with(&truth(), |body| Body::cut(body, None)),
        Act::ResetMidBody => response_with(&truth(), |body| Body::cut(body, Some(cutter))),
        Act::Trickle(apart) => response_with(&truth(), |body| Body::trickle(body, apart)),
        Act::Hold => {
            released(&shared, endpoint, injection).await;
            response(&truth())
        }
        Act::RefuseToken => {
            let mut world = shared.world();
            let (answer, outcome) = world.issuer.refuse_token(endpoint);
            debug_assert_eq!(outcome, Outcome::TokenRefused);
            world.calls.of_mut(endpoint).answered(outcome);
            response(&answer)
        }
        Act::Status(status) => response(&error_body(endpoint, status)),
        Act::RouteNotFound => response(&Answer::route_not_found()),
        Act::Reply {
            status,
            content_type,
            body,
        } => {
            let mut response = Response::new(Body::whole(body));
            *response.status_mut() = checked_status(status);
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            response
        }
        Act::Silence => {
            silence(&shared).await;
            return Err(Closed);
        }
        Act::Close => return Err(Closed),
        Act::Reset => {
            cutter.cut();
            return Err(Closed);
        }
    };
    for (name, value) in fault.headers {
        response.headers_mut().append(name, value);
    }
    Ok(response)
}

/// Takes note of a call, and sees what befalls it.
fn arrive<'a>(
    shared: &'a Shared,
    endpoint: Endpoint,
    parts: &Parts,
    body: &[u8],
) -> (Option<(Fault, u64)>, InFlight<'a>) {
    let seen = SeenRequest::new(parts, body);
    let mut world = shared.world();
    world.seen[endpoint as usize] = Some(seen);
    let fault = world.faults.next(endpoint);
    let counts = world.calls.of_mut(endpoint);
    counts.arrived();
    counts.faulted += u64::from(fault.is_some());
    drop(world);
    shared.arrived.notify_waiters();
    (fault, InFlight { shared, endpoint })
}

/// Counts a call as under way until it is answered or given up.
struct InFlight<'a> {
    shared: &'a Shared,
    endpoint: Endpoint,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.shared.world().calls.of_mut(self.endpoint).in_flight -= 1;
    }
}

/// Waits until the injection is cleared or replaced.
async fn released(shared: &Shared, endpoint: Endpoint, injection: u64) {
    loop {
        let mut changed = pin!(shared.faults_changed.notified());
        // Hears of changes from here on, so that none is lost between the look and the wait.
        changed.as_mut().enable();
        if !shared.world().faults.is_installed(endpoint, injection) {
            return;
        }
        changed.await;
    }
}

/// Waits for the server's end.
async fn silence(shared: &Shared) {
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
            if bytes.len() + data.remaining() > LONGEST_BODY {
                return Err(Closed);
            }
            bytes.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
    }
    Ok(bytes.into())
}

fn response(answer: &Answer) -> Response<Body> {
    response_with(answer, Body::whole)
}

fn response_with(answer: &Answer, body: impl FnOnce(Bytes) -> Body) -> Response<Body> {
    let bytes = Bytes::copy_from_slice(answer.body.as_bytes());
    let length = bytes.len();
    let mut response = Response::new(body(bytes));
    *response.status_mut() = checked_status(answer.status);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    if answer.no_store {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    }
    response
}

fn checked_status(status: u16) -> StatusCode {
    match StatusCode::from_u16(status) {
        Ok(status) => status,
        Err(_) => unreachable!("a fault's status is checked when it is made"),
    }
}
