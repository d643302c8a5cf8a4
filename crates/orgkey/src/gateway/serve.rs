//! Serves a listener: HTTP/1.1 and HTTP/2 without TLS, with bounds on slow and large requests.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Either;
use http::{Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::config::Address;
use super::when_woken::when_woken;

/// The bounds of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The most connections at a time. More wait to be accepted. Half as many checks may wait for the issuer, over HTTP/2 too, and
    /// of one network a quarter of these, if the proxy says who the client is.
    pub connections: usize,
    /// How long a connection may take to its first request.
    pub first_request: Duration,
    /// How long the head of an HTTP/1.1 request may take, and how long a connection may be unused, over HTTP/2 too, and up to half
    /// as much longer. Not counted before the end of `first_request`. Longer than nginx keeps unused connections, and Envoy in the
    /// configuration of this repository, so that they do not send on one that is being closed. Traefik and Caddy send again.
    pub head: Duration,
    /// The most bytes of the head of a request.
    pub head_len: usize,
    /// How long the body of a request may take.
    pub body: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 4_096,
            first_request: Duration::from_secs(10),
            head: Duration::from_secs(75),
            head_len: 64 * 1_024,
            body: Duration::from_secs(5),
        }
    }
}

/// How often a connection is checked in [`Bounds::head`]. It is closed when this many checks have found it unused.
const CHECKS: u32 = 2;

/// How long an unused connection may take to close.
const CLOSING: Duration = Duration::from_secs(10);

/// A socket that listens.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// Removes the file of a unix socket when the listener is closed.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode. Another process may have put its own file in this place since.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: PathBuf) -> Self {
        Self {
            identity: Self::identity(&path),
            path,
        }
    }

    fn identity(path: &Path) -> Option<(u64, u64)> {
        let file = std::fs::symlink_metadata(path).ok()?;
        Some((file.dev(), file.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && self.identity == Self::identity(&self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Listens at an address. Replaces a unix socket without a listener.
    pub(super) async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp),
            Address::Unix(path) => {
                remove_unused(path).await?;
                let listener = UnixListener::bind(path)?;
                Ok(Self::Unix(listener, SocketFile::new(path.clone())))
            }
        }
    }

    /// Returns where the listener listens, with the port that the operating system chose.
    pub(super) fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Self::Unix(_, file) => Ok(Address::Unix(file.path.clone())),
        }
    }
}

async fn remove_unused(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket
        && let Err(error) = tokio::net::UnixStream::connect(path).await
        // Any other error may come from a listener that is busy.
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// Serves requests until `stop` holds the time at which the last connection must be closed.
pub(super) async fn serve<S, F, B>(
    listener: Listener,
    service: S,
    bounds: Bounds,
    mut stop: watch::Receiver<Option<Instant>>,
) where
    S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let server = Server {
        service,
        bounds,
        builder: builder(bounds),
    };
    let free = Arc::new(Semaphore::new(bounds.connections));
    let mut connections = JoinSet::new();
    let last = loop {
        if let Some(last) = *stop.borrow_and_update() {
            break last;
        }
        while connections.try_join_next().is_some() {}
        let accepted = async {
            // The semaphore is never closed.
            let permit = Arc::clone(&free).acquire_owned().await.ok();
            let stream = match &listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    // Only costs latency if it fails.
                    let _ = stream.set_nodelay(true);
                    Stream::Tcp(stream)
                }),
                Listener::Unix(listener, _) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| Stream::Unix(stream)),
            };
            (permit, stream)
        };
        let (permit, stream) = tokio::select! {
            accepted = accepted => accepted,
            changed = stop.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                // No file descriptor is left, or the client is gone.
                tracing::warn!(%error, "connection is not accepted");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (server, stop) = (server.clone(), stop.clone());
        connections.spawn(async move {
            match stream {
                Stream::Tcp(stream) => server.connection(stream, stop).await,
                Stream::Unix(stream) => server.connection(stream, stop).await,
            }
            drop(permit);
        });
    };
    drop(listener);
    let ended = timeout_at(last, async {
        while connections.join_next().await.is_some() {}
    })
    .await;
    if ended.is_err() {
        tracing::warn!("connections are closed with requests in flight");
    }
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

#[derive(Clone)]
struct Server<S> {
    service: S,
    bounds: Bounds,
    builder: auto::Builder<TokioExecutor>,
}

fn builder(bounds: Bounds) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Without a timer of hyper's for heads, which it would start for each request: `until_close` finds connections without a request
    // in time. Copying the small response to a check into one buffer costs less than a vectored write.
    builder.http1().max_buf_size(bounds.head_len).writev(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(bounds.head_len).unwrap_or(u32::MAX))
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

impl<S, F, B> Server<S>
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Serves a connection. Errors are the client's, and concern this connection alone.
    async fn connection<I>(self, stream: I, stop: watch::Receiver<Option<Instant>>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let uses = Arc::new(Uses::default());
        let (service, begun) = (self.service, Arc::clone(&uses));
        let service = service_fn(move |request: Request<Incoming>| {
            let in_use = InUse::new(Arc::clone(&begun));
            let response = if request.version() == Version::HTTP_2 {
                // A connection has many requests. In separate tasks, a panic ends one of them, and several threads serve them.
                let service = service.clone();
                Either::Left(async move { service(request).await }.boxed())
            } else {
                Either::Right(service(request))
            };
            response.map(move |response| {
                drop(in_use);
                Ok::<_, Infallible>(response)
            })
        });
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let until_close = pin!(when_woken(until_close(&uses, stop, self.bounds)));
        let close = tokio::select! {
            biased;
            close = until_close => close,
            // Last: a client that sends without a pause may use up the budget of this task.
            _ = connection.as_mut() => return,
        };
        if matches!(close, Close::AtOnce) {
            return;
        }
        connection.as_mut().graceful_shutdown();
        // A client may keep it open.
        let _ = timeout(CLOSING, connection).await;
    }
}

/// How a connection is closed.
enum Close {
    /// Without a response: no request has begun.
    AtOnce,
    /// After the requests in flight, within [`CLOSING`].
    Gracefully,
}

/// Waits until a connection must be closed, because no request begins in time, it is unused, or the server stops. Returns how.
async fn until_close(
    uses: &Uses,
    mut stop: watch::Receiver<Option<Instant>>,
    bounds: Bounds,
) -> Close {
    // A request begins when its head is complete.
    let mut check_at = Instant::now() + bounds.first_request;
    let mut unused = Unused::default();
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return Close::Gracefully,
            () = sleep_until(check_at) => {}
        }
        let (begun, ended) = uses.get();
        if begun == 0 {
            return Close::AtOnce;
        }
        if unused.check(begun, ended) {
            return Close::Gracefully;
        }
        check_at = Instant::now() + bounds.head / CHECKS;
    }
}

/// The requests of a connection: counted, because reading the clock for each of them would cost more.
#[derive(Default)]
struct Uses {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Uses {
    /// Returns how many requests have begun and ended.
    fn get(&self) -> (u64, u64) {
        // Read first: a request that begins and ends in between is not missed.
        let ended = self.ended.load(Ordering::Acquire);
        let begun = self.begun.load(Ordering::Relaxed);
        (begun, ended)
    }
}

/// Finds out, by regular checks, that a connection is unused.
#[derive(Default)]
struct Unused {
    ended: u64,
    checks: u32,
}

impl Unused {
    /// Whether no request has ended since [`CHECKS`] checks, and none is in flight.
    fn check(&mut self, begun: u64, ended: u64) -> bool {
        let is_unused = begun == ended && ended == self.ended;
        self.checks = if is_unused { self.checks + 1 } else { 0 };
        self.ended = ended;
        self.checks == CHECKS
    }
}

/// A request in flight.
struct InUse(Arc<Uses>);

impl InUse {
    fn new(uses: Arc<Uses>) -> Self {
        uses.begun.fetch_add(1, Ordering::Relaxed);
        Self(uses)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use http_body_util::Empty;
    use hyper::client::conn::http2;

    use super::*;

    #[tokio::test]
    async fn panic_over_http_2_ends_one_request() {
        let any_port = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let listener = Listener::bind(&any_port).await.unwrap();
        let Address::Tcp(address) = listener.address().unwrap() else {
            unreachable!();
        };
        let service = |request: Request<Incoming>| {
            assert_eq!(request.uri().path(), "/");
            ready(Response::new(Empty::<Bytes>::new()))
        };
        let (_stop, stopped) = watch::channel(None);
        tokio::spawn(serve(listener, service, Bounds::default(), stopped));
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let mut get = |path: &str| {
            let request = Request::get(format!("http://{address}{path}"));
            sender.send_request(request.body(Empty::<Bytes>::new()).unwrap())
        };
        let panics = get("/panics");
        assert!(panics.await.is_err());
        assert_eq!(get("/").await.unwrap().status(), 200);
    }

    #[test]
    fn connection_is_unused_from_the_end_of_a_request() {
        let mut unused = Unused::default();
        let mut checks = |numbers: &[(u64, u64)]| -> Vec<bool> {
            let check = |&(begun, ended)| unused.check(begun, ended);
            numbers.iter().map(check).collect()
        };
        assert_eq!(checks(&[(1, 1), (1, 1)]), [false, false]);
        // One is in flight at a check, and ends before the next.
        assert_eq!(checks(&[(2, 1), (2, 2), (2, 2)]), [false, false, false]);
        // One begins and ends between two checks.
        assert_eq!(checks(&[(3, 3), (3, 3), (3, 3)]), [false, false, true]);
    }
}
