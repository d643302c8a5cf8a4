//! The server: accepts, answers, and stops.

use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, PRAGMA};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::calls::{Calls, Outcome, SeenRequest};
use super::endpoint::Endpoint;
use super::fault::{Act, Fault, Faults, error_body};
use super::issuer::{Call, Issuer};
use super::line::{Body, Cutter, Line, reset_on_drop};
use super::wire::Answer;
use crate::telemetry::TARGET;

/// No request that Kinde's contract has is nearly as large.
const LONGEST_BODY: usize = 1 << 20;

/// How long calls under way may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(1);

/// What the handle, the server and every connection share.
pub(super) struct Shared {
    world: Mutex<World>,
    /// A call has arrived.
    pub(super) arrived: Notify,
    /// Faults were injected or cleared.
    pub(super) faults_changed: Notify,
    pub(super) mode: watch::Sender<Mode>,
}

/// What changes from call to call.
#[derive(Debug)]
pub(super) struct World {
    pub(super) issuer: Issuer,
    pub(super) faults: Faults,
    pub(super) calls: Calls,
    pub(super) seen: [Option<SeenRequest>; Endpoint::ALL.len()],
}

/// Whether connections are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Up,
    /// Connections are closed at once.
    Outage,
    /// The server stops.
    Stopping,
    Stopped,
}

impl Shared {
    pub(super) fn new(issuer: Issuer) -> Self {
        Self {
            world: Mutex::new(World {
                issuer,
                faults: Faults::default(),
                calls: Calls::default(),
                seen: Default::default(),
            }),
            arrived: Notify::new(),
            faults_changed: Notify::new(),
            mode: watch::Sender::new(Mode::Up),
        }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        // A user's `rewrite` runs outside of the lock, and what runs inside leaves nothing half-done.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("mode", &*self.mode.borrow())
            .finish_non_exhaustive()
    }
}

/// Accepts connections until told to stop; then gives the calls under way a moment.
pub(super) async fn run(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut mode = shared.mode.subscribe();
    let mut connections = JoinSet::new();
    loop {
        let accepted = {
            let stop = pin!(mode.wait_for(|mode| *mode == Mode::Stopping));
            match first(stop, listener.accept()).await {
                First::Left(_) => break,
                First::Right(accepted) => accepted,
            }
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) => {
                shared.world().calls.connections += 1;
                connections.spawn(connection(stream, peer, tls.clone(), Arc::clone(&shared)));
            }
            // Out of file descriptors, most likely: one will be free in a moment.
            Err(error) => {
                tracing::warn!(target: TARGET, %error, "the emulator cannot accept a connection");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
    drop(listener);
    let ended = timeout(GRACE, async {
        while connections.join_next().await.is_some() {}
    });
    if ended.await.is_err() {
        connections.shutdown().await;
    }
    shared.mode.send_replace(Mode::Stopped);
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
) {
    let mut mode = shared.mode.subscribe();
    if *mode.borrow_and_update() == Mode::Outage {
        reset_on_drop(&stream);
        shared.world().calls.cut_connections += 1;
        return;
    }
    // Answers are small and single; a failure costs nothing but time.
    let _ = stream.set_nodelay(true);
    let (line, cutter) = Line::new(stream);
    let served = {
        let cutter = cutter.clone();
        let shared = Arc::clone(&shared);
        async move {
            match tls {
                None => speak(line, peer, cutter, shared).await,
                Some(acceptor) => match acceptor.accept(line).await {
                    Ok(line) => speak(line, peer, cutter, shared).await,
                    Err(error) => {
                        tracing::debug!(target: TARGET, %error, "no TLS session with the emulator");
                        shared.world().calls.failed_handshakes += 1;
                    }
                },
            }
        }
    };
    let mut served = pin!(served);
    let outage = pin!(mode.wait_for(|mode| *mode == Mode::Outage));
    if let First::Left(Ok(_)) = first(outage, served.as_mut()).await {
        cutter.cut();
        shared.world().calls.cut_connections += 1;
    }
}

async fn speak<L>(line: L, peer: SocketAddr, cutter: Cutter, shared: Arc<Shared>)
where
    L: AsyncRead + AsyncWrite + Unpin,
{
    let mut mode = shared.mode.subscribe();
    let service = service_fn(|request| respond(request, peer, cutter.clone(), Arc::clone(&shared)));
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(line), service));
    let stopping = {
        let stop = pin!(mode.wait_for(|mode| *mode == Mode::Stopping));
        match first(stop, connection.as_mut()).await {
            First::Left(_) => true,
            // A connection that ends in error was cut on purpose, or by its client.
            First::Right(_) => false,
        }
    };
    if stopping {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

/// The connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed on purpose")]
struct Closed;

async fn respond(
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

enum First<L, R> {
    Left(L),
    Right(R),
}

/// Whichever ends first; the left one if both have.
async fn first<L: Future + Unpin, R: Future>(mut left: L, right: R) -> First<L::Output, R::Output> {
    let mut right = pin!(right);
    poll_fn(|cx| {
        if let Poll::Ready(output) = Pin::new(&mut left).poll(cx) {
            return Poll::Ready(First::Left(output));
        }
        right.as_mut().poll(cx).map(First::Right)
    })
    .await
}

/// Binds the address with a backlog that takes ten thousand clients at once, if the system lets it.
pub(super) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        tokio::net::TcpSocket::new_v4()?
    } else {
        tokio::net::TcpSocket::new_v6()?
    };
    // As tokio's own `bind` does. On Windows the option means something else.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(16_384)
}
