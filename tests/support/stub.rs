//! A server with scripted replies that records requests.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// Only a failing test waits this long.
pub(crate) const HANG: Duration = Duration::from_secs(20);

/// Waits until the condition is true, and fails if it never is.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let is_so = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(HANG, is_so).await;
    assert!(waited.is_ok(), "{what} did not come");
}

/// A request as received.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn token(&self) -> Option<&str> {
        self.headers.get("authorization")?.strip_prefix("Bearer ")
    }

    /// The key in the body of a call to verify.
    pub(crate) fn key(&self) -> String {
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        body["api_key"].as_str().unwrap().to_owned()
    }

    fn endpoint(&self) -> Endpoint {
        match (&*self.method, &*self.target) {
            ("POST", "/oauth2/token") => Endpoint::Token,
            ("POST", "/api/v1/api_keys/verify") => Endpoint::Verify,
            ("GET", "/api/v1/api_keys?page_size=1") => Endpoint::Probe,
            ("GET", target) if target.starts_with("/api/v1/api_keys/") => Endpoint::Key,
            _ => Endpoint::Elsewhere,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Endpoint {
    Token,
    Verify,
    Probe,
    Key,
    Elsewhere,
}

/// The server's response to a request.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Reply {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// These bytes, then the end of the connection.
    Bytes(Vec<u8>),
    /// These bytes, then a reset.
    Reset(Vec<u8>),
    /// Nothing, for as long as the client waits.
    Silence,
    /// A head, then one byte of a body every 10 ms, without an end.
    Trickle,
    /// A head, then a chunked body without an end, as fast as it goes.
    Endless,
    /// Another answer, after a wait.
    After(Duration, Box<Answer>),
    /// Another answer, once the flag is set.
    Once(Arc<AtomicBool>, Box<Answer>),
}

impl Answer {
    pub(crate) fn json(status: u16, body: &str) -> Self {
        Self::Reply {
            status,
            headers: vec![(
                "Content-Type".into(),
                "application/json; charset=utf-8".into(),
            )],
            body: body.into(),
        }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::json(
            status,
            r#"{"errors":[{"code":"SOME_CODE","message":"some message"}]}"#,
        )
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        if let Self::Reply { headers, .. } = &mut self {
            headers.retain(|(held, _)| !held.eq_ignore_ascii_case(name));
            if !value.is_empty() {
                headers.push((name.into(), value.into()));
            }
        }
        self
    }

    pub(crate) fn after(self, wait: Duration) -> Self {
        Self::After(wait, Box::new(self))
    }

    pub(crate) fn once(self, is_so: &Arc<AtomicBool>) -> Self {
        Self::Once(Arc::clone(is_so), Box::new(self))
    }
}

type Script = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

pub(crate) struct Stub {
    pub(crate) addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

#[derive(Default)]
struct Shared {
    scripts: Mutex<HashMap<Endpoint, Script>>,
    requests: Mutex<Vec<(Endpoint, Request)>>,
    /// The duration of every answer.
    delay: Mutex<Duration>,
    /// The number of bytes that were written of endless bodies.
    poured: AtomicUsize,
    connections: AtomicUsize,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Stub {
    pub(crate) async fn start() -> Self {
        Self::serve(|stream| async move { Some(stream) }).await
    }

    pub(crate) async fn serve<F, Fut, S>(accept: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Option<S>> + Send,
        S: AsyncRead + AsyncWrite + Unpin + Linger + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepting = {
            let shared = Arc::clone(&shared);
            let accept = Arc::new(accept);
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    shared.connections.fetch_add(1, Ordering::SeqCst);
                    let shared = Arc::clone(&shared);
                    let accept = Arc::clone(&accept);
                    tokio::spawn(async move {
                        if let Some(stream) = accept(stream).await {
                            shared.converse(stream).await;
                        }
                    });
                }
            })
            .abort_handle()
        };
        Self {
            addr,
            shared,
            accepting,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Sets the answer of an endpoint.
    pub(crate) fn on(
        &self,
        endpoint: Endpoint,
        script: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> &Self {
        self.shared
            .scripts
            .lock()
            .unwrap()
            .insert(endpoint, Arc::new(script));
        self
    }

    pub(crate) fn always(&self, endpoint: Endpoint, answer: Answer) -> &Self {
        self.on(endpoint, move |_| answer.clone())
    }

    /// Sets the duration of every answer.
    pub(crate) fn delay(&self, wait: Duration) {
        *self.shared.delay.lock().unwrap() = wait;
    }

    pub(crate) fn requests(&self, endpoint: Endpoint) -> Vec<Request> {
        let requests = self.shared.requests.lock().unwrap();
        let to = |(to, request): &(Endpoint, Request)| (*to == endpoint).then(|| request.clone());
        requests.iter().filter_map(to).collect()
    }

    pub(crate) fn count(&self, endpoint: Endpoint) -> usize {
        self.requests(endpoint).len()
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn poured(&self) -> usize {
        self.shared.poured.load(Ordering::SeqCst)
    }
}

impl Shared {
    async fn converse<S: AsyncRead + AsyncWrite + Unpin + Linger>(&self, mut stream: S) {
        while let Some(request) = read_request(&mut stream).await {
            let endpoint = request.endpoint();
            let script = self.scripts.lock().unwrap().get(&endpoint).cloned();
            let mut answer = match script {
                Some(script) => script(&request),
                None => Answer::status(418),
            };
            self.requests.lock().unwrap().push((endpoint, request));
            let delay = *self.delay.lock().unwrap();
            tokio::time::sleep(delay).await;
            loop {
                answer = match answer {
                    Answer::After(wait, then) => {
                        tokio::time::sleep(wait).await;
                        *then
                    }
                    Answer::Once(is_so, then) => {
                        until("what an answer waits for", || is_so.load(Ordering::SeqCst)).await;
                        *then
                    }
                    _ => break,
                };
            }
            if self.answer(&mut stream, answer).await.is_none() {
                return;
            }
        }
    }

    /// `None` ends the connection.
    async fn answer<S: AsyncRead + AsyncWrite + Unpin + Linger>(
        &self,
        stream: &mut S,
        answer: Answer,
    ) -> Option<()> {
        const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";

        match answer {
            Answer::Reply {
                status,
                headers,
                body,
            } => {
                let mut head = format!("HTTP/1.1 {status} Scripted\r\n");
                for (name, value) in headers {
                    write!(head, "{name}: {value}\r\n").unwrap();
                }
                if status != 204 {
                    write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
                }
                head += "\r\n";
                // One write, because a second one would wait for the acknowledgement of the first.
                let reply = [head.as_bytes(), &body].concat();
                stream.write_all(&reply).await.ok()?;
                stream.flush().await.ok()
            }
            Answer::Bytes(bytes) => {
                stream.write_all(&bytes).await.ok()?;
                stream.shutdown().await.ok()?;
                None
            }
            Answer::Reset(bytes) => {
                stream.write_all(&bytes).await.ok()?;
                stream.flush().await.ok()?;
                // Let the bytes arrive before the reset overtakes them.
                tokio::time::sleep(Duration::from_millis(20)).await;
                stream.reset_on_close();
                None
            }
            Answer::Silence => {
                // Ends when the client hangs up.
                let _ = stream.read(&mut [0]).await;
                None
            }
            Answer::Trickle => {
                stream.write_all(HEAD).await.ok()?;
                stream
                    .write_all(b"Content-Length: 1000000\r\n\r\n{")
                    .await
                    .ok()?;
                loop {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    stream.write_all(b" ").await.ok()?;
                    stream.flush().await.ok()?;
                    self.poured.fetch_add(1, Ordering::SeqCst);
                }
            }
            Answer::Endless => {
                stream.write_all(HEAD).await.ok()?;
                stream
                    .write_all(b"Transfer-Encoding: chunked\r\n\r\n")
                    .await
                    .ok()?;
                let chunk = [b"1000\r\n", &[b' '; 0x1000][..], b"\r\n"].concat();
                loop {
                    stream.write_all(&chunk).await.ok()?;
                    self.poured.fetch_add(0x1000, Ordering::SeqCst);
                }
            }
            Answer::After(..) | Answer::Once(..) => unreachable!("taken apart before"),
        }
    }
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        // Not HTTP, for example a TLS handshake.
        if !head[0].is_ascii_uppercase() {
            return None;
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let len = headers
        .get("content-length")
        .map_or(0, |len| len.parse().unwrap());
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request {
        method,
        target,
        headers,
        body: String::from_utf8(body).unwrap(),
    })
}

/// A stream that can end with a reset.
pub(crate) trait Linger {
    fn reset_on_close(&self);
}

impl Linger for TcpStream {
    fn reset_on_close(&self) {
        self.set_zero_linger().unwrap();
    }
}
