//! An HTTP proxy between a verifier and its issuer.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, RETRY_AFTER,
};
use http::header::{HeaderName, TRANSFER_ENCODING};
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::condition::Condition;

/// 32 MiB, more than the buffers of a connection.
const HUGE_CHUNKS: usize = 512;
const CHUNK: usize = 64 * 1024;

/// The number of replies of [`Condition::Garbage`].
pub(super) const GARBAGE: usize = 5;

/// The statuses of [`Condition::GatewayError`].
pub(super) const GATEWAY_ERRORS: [u16; 5] = [400, 403, 404, 502, 504];

const JSON: &str = "application/json";

/// Headers that belong to one connection.
const HOP_BY_HOP: [HeaderName; 4] = [CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING];

type Body = BoxBody<Bytes, io::Error>;

/// A proxy on loopback, between a verifier and an issuer that is called over HTTP/1.1.
///
/// It forwards calls in [`Condition::Normal`], and answers them itself in the others. Stops when it is dropped.
///
/// ```
/// use tower_orgkey_issuers::conformance::FaultProxy;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let issuer = tokio::net::TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
/// let proxy = FaultProxy::builder(issuer)
///     .inactive(200, r#"{"active":false}"#)
///     .start()
///     .await?;
/// assert!(proxy.url().starts_with("http://127.0.0.1:"));
/// # Ok(()) }
/// ```
pub struct FaultProxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

/// Configures and starts a [`FaultProxy`].
#[derive(Clone, Debug)]
#[must_use]
pub struct FaultProxyBuilder {
    issuer: SocketAddr,
    inactive: Option<(u16, String)>,
    credentials_rejected: (u16, String),
}

struct Shared {
    config: FaultProxyBuilder,
    client: reqwest::Client,
    condition: Mutex<Condition>,
    /// Selects one of several replies in a condition.
    round: AtomicUsize,
    /// Calls that followed a redirect.
    redirected: AtomicUsize,
    is_huge_reply_read: AtomicBool,
}

impl FaultProxyBuilder {
    /// Sets the answer to every call in [`Condition::Inactive`]. Without it, this condition is not checked.
    pub fn inactive(mut self, status: u16, json: impl Into<String>) -> Self {
        self.inactive = Some((status, json.into()));
        self
    }

    /// Sets the answer to every call in [`Condition::CredentialsRejected`]; 401 unless set.
    pub fn credentials_rejected(mut self, status: u16, json: impl Into<String>) -> Self {
        self.credentials_rejected = (status, json.into());
        self
    }

    /// Starts the proxy on the current runtime.
    ///
    /// # Errors
    ///
    /// If loopback has no free port.
    pub async fn start(self) -> io::Result<FaultProxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .build()
            .map_err(io::Error::other)?;
        let shared = Arc::new(Shared {
            config: self,
            client,
            condition: Mutex::new(Condition::Normal),
            round: AtomicUsize::new(0),
            redirected: AtomicUsize::new(0),
            is_huge_reply_read: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            // Ends the connections with the proxy.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(Arc::clone(&serving).serve(stream, addr));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(FaultProxy {
            addr,
            shared,
            accepting: accepting.abort_handle(),
        })
    }
}

impl FaultProxy {
    /// Returns a builder for a proxy to the issuer at this address.
    pub fn builder(issuer: SocketAddr) -> FaultProxyBuilder {
        FaultProxyBuilder {
            issuer,
            inactive: None,
            credentials_rejected: (401, r#"{"error":"invalid_client"}"#.to_owned()),
        }
    }

    /// Returns the URL of the proxy, without a path: `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Sets the condition of the issuer, as the verifier sees it. Returns false for a condition without an answer.
    pub fn set(&self, condition: Condition) -> bool {
        if condition == Condition::Inactive && self.shared.config.inactive.is_none() {
            return false;
        }
        *self.shared.condition() = condition;
        self.begin_round(0);
        true
    }

    /// Selects the reply of a condition that has several. By call, a key might never see some of them.
    pub(super) fn begin_round(&self, round: usize) {
        self.shared.round.store(round, Ordering::SeqCst);
    }

    pub(super) fn is_bounded(&self) -> Result<(), String> {
        if self.shared.is_huge_reply_read.load(Ordering::SeqCst) {
            let mebibytes = HUGE_CHUNKS * CHUNK / (1024 * 1024);
            return Err(format!("a body of {mebibytes} MiB was read to its end"));
        }
        Ok(())
    }

    pub(super) fn is_redirect_ignored(&self) -> Result<(), String> {
        match self.shared.redirected.load(Ordering::SeqCst) {
            0 => Ok(()),
            calls => Err(format!("{calls} calls followed a redirect")),
        }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultProxy")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn condition(&self) -> std::sync::MutexGuard<'_, Condition> {
        self.condition
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, addr: SocketAddr) {
        let service = service_fn(move |request| Arc::clone(&self).answer(request, addr));
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        // A client that hangs up is no error here.
        let _ = connection.await;
    }

    /// An error closes the connection without an answer.
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        addr: SocketAddr,
    ) -> io::Result<Response<Body>> {
        const REDIRECTED: &str = "/redirected";

        if request.uri().path() == REDIRECTED {
            self.redirected.fetch_add(1, Ordering::SeqCst);
        }
        let condition = *self.condition();
        let number = self.round.load(Ordering::SeqCst);
        match condition {
            Condition::Normal => self.forward(request).await,
            Condition::Down => Err(io::ErrorKind::ConnectionReset.into()),
            Condition::Slow => std::future::pending().await,
            Condition::ServerError => {
                let json =
                    serde_json::json!({ "error": "server_error", "request": echo(request).await? });
                reply([500, 503][number % 2], JSON, json.to_string(), None)
            }
            Condition::GatewayError => {
                let status = GATEWAY_ERRORS[number % GATEWAY_ERRORS.len()];
                let page = format!("<html><h1>{status}</h1>{}", echo(request).await?);
                reply(status, "text/html", page, None)
            }
            Condition::Garbage => {
                let (media_type, body) = garbage(number, &echo(request).await?);
                reply(200, media_type, body, None)
            }
            Condition::Throttled => reply(429, JSON, "{}", Some((RETRY_AFTER, "1"))),
            Condition::CredentialsRejected => {
                let (status, json) = self.config.credentials_rejected.clone();
                reply(status, JSON, json, None)
            }
            Condition::Inactive => {
                let (status, json) = self.config.inactive.clone().unwrap_or_default();
                reply(status, JSON, json, None)
            }
            Condition::HugeReply => {
                let response = Response::builder().header(CONTENT_TYPE, JSON);
                response.body(self.huge()).map_err(io::Error::other)
            }
            Condition::Redirect => {
                let location = format!("http://{addr}{REDIRECTED}");
                reply(307, "text/plain", "", Some((LOCATION, &location)))
            }
        }
    }

    async fn forward(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let mut headers = head.headers;
        remove_hop_by_hop(&mut headers);
        let sent = self
            .client
            .request(head.method, format!("http://{}{path}", self.config.issuer))
            .headers(headers)
            .body(body)
            .send()
            .await;
        let received = sent.map_err(io::Error::other)?;
        let mut response = Response::builder().status(received.status());
        if let Some(headers) = response.headers_mut() {
            headers.clone_from(received.headers());
            remove_hop_by_hop(headers);
        }
        let body = received.bytes().await.map_err(io::Error::other)?;
        response.body(full(body)).map_err(io::Error::other)
    }

    /// White space, which a parser of JSON accepts, and a record of whether all of it was taken.
    fn huge(self: Arc<Self>) -> Body {
        let chunk = Bytes::from(vec![b' '; CHUNK]);
        let chunks = (1..=HUGE_CHUNKS).map(move |number| {
            if number == HUGE_CHUNKS {
                self.is_huge_reply_read.store(true, Ordering::SeqCst);
            }
            Ok(Frame::data(chunk.clone()))
        });
        BodyExt::boxed(StreamBody::new(stream::iter(chunks)))
    }
}

/// The request as text, which some servers and proxies show in their errors.
async fn echo(request: Request<Incoming>) -> io::Result<String> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let authorization = head.headers.get(AUTHORIZATION);
    let body = String::from_utf8_lossy(&body);
    Ok(format!("{} {authorization:?} {body}", head.uri))
}

/// Returns the media type and the body.
fn garbage(number: usize, echo: &str) -> (&'static str, String) {
    match number % GARBAGE {
        0 => ("text/html", format!("<html><h1>It works!</h1>{echo}")),
        1 => (JSON, "{}".to_owned()),
        2 => (JSON, "[]".to_owned()),
        3 => (JSON, "null".to_owned()),
        // The beginning of an object.
        _ => (
            JSON,
            format!(r#"{{"request":{}"#, serde_json::Value::from(echo)),
        ),
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

fn reply(
    status: u16,
    media_type: &str,
    body: impl Into<Bytes>,
    header: Option<(HeaderName, &str)>,
) -> io::Result<Response<Body>> {
    let mut response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, media_type);
    if let Some((name, value)) = header {
        response = response.header(name, value);
    }
    response.body(full(body.into())).map_err(io::Error::other)
}

fn full(body: Bytes) -> Body {
    Full::new(body).map_err(|never| match never {}).boxed()
}
