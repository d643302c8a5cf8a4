//! A gateway in front of an emulated issuer, and clients that send heads byte for byte.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kinde_emulator::{KeySpec, KindeEmulator};
use orgkey::gateway::config::Address;
use orgkey::gateway::{Bounds, Config, Gateway, GatewayHandle};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) const ADMIN_TOKEN: &str = "an-admin-token-for-tests";

/// The configuration of a gateway, and the files that it names.
pub(crate) struct Files {
    dir: TempDir,
}

impl Files {
    pub(crate) fn new(emulator: &KindeEmulator) -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::write(
            dir.path().join("secret"),
            format!("{}\n", emulator.client_secret()),
        )
        .unwrap();
        std::fs::write(dir.path().join("token"), ADMIN_TOKEN).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns a configuration with these tables beside listeners and issuer. `DIR` is the directory of the files.
    pub(crate) fn config(&self, emulator: &KindeEmulator, tables: &str) -> String {
        let mut text = String::new();
        let dir = self.dir.path().display().to_string();
        write!(
            text,
            "[listen]\nchecks = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nadmin_token_file = '{dir}/token'\n\
             [issuer]\nkind = 'kinde'\nurl = '{}'\nclient_id = '{}'\nclient_secret_file = '{dir}/secret'\n{}",
            emulator.issuer_url(),
            emulator.client_id(),
            tables.replace("DIR", &dir),
        )
        .unwrap();
        text
    }
}

/// A running gateway.
pub(crate) struct World {
    pub(crate) emulator: KindeEmulator,
    pub(crate) files: Files,
    pub(crate) handle: GatewayHandle,
    pub(crate) checks: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) running: JoinHandle<()>,
}

impl World {
    pub(crate) async fn start(tables: &str) -> Self {
        Self::with_bounds(tables, Bounds::default()).await
    }

    pub(crate) async fn with_bounds(tables: &str, bounds: Bounds) -> Self {
        Self::try_with_bounds(tables, bounds).await.unwrap()
    }

    /// Returns the error of a gateway that does not start.
    pub(crate) async fn try_start(tables: &str) -> Result<Self, orgkey::gateway::Error> {
        Self::try_with_bounds(tables, Bounds::default()).await
    }

    async fn try_with_bounds(tables: &str, bounds: Bounds) -> Result<Self, orgkey::gateway::Error> {
        let emulator = KindeEmulator::start().await.unwrap();
        Self::before(emulator, tables, bounds).await
    }

    /// Starts a gateway for this issuer.
    pub(crate) async fn before(
        emulator: KindeEmulator,
        tables: &str,
        bounds: Bounds,
    ) -> Result<Self, orgkey::gateway::Error> {
        let files = Files::new(&emulator);
        let config = Config::parse(&files.config(&emulator, tables)).unwrap();
        let gateway = Gateway::start_with(config, bounds).await?;
        let (stop, stopped) = oneshot::channel();
        Ok(Self {
            handle: gateway.handle(),
            checks: tcp(gateway.checks_address()),
            admin: tcp(gateway.admin_address().unwrap()),
            stop: Some(stop),
            running: tokio::spawn(gateway.run(async {
                let _ = stopped.await;
            })),
            emulator,
            files,
        })
    }

    pub(crate) fn key(&self, org: &str, scopes: &[&str]) -> String {
        let spec = KeySpec::organization(org).scopes(scopes.iter().copied());
        self.emulator.issue_key(spec).secret().to_owned()
    }

    pub(crate) fn reload(&self, tables: &str) -> Result<(), orgkey::gateway::Error> {
        let config = Config::parse(&self.files.config(&self.emulator, tables)).unwrap();
        self.handle.reload(&config)
    }
}

fn tcp(address: &Address) -> SocketAddr {
    match address {
        Address::Tcp(address) => *address,
        Address::Unix(path) => panic!("{}", path.display()),
    }
}

/// A response that was read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Reply {
    /// Returns the values of a header, joined.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let values = self.headers.get_all(name).iter();
        let values: Vec<_> = values.map(|value| value.to_str().unwrap()).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Returns the code of the problem document.
    pub(crate) fn code(&self) -> String {
        let document: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        document["code"].as_str().unwrap().to_owned()
    }

    async fn read(response: http::Response<hyper::body::Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        Self {
            status: parts.status,
            headers: parts.headers,
            body: body.to_bytes(),
            trailers,
        }
    }
}

/// The headers of a client.
pub(crate) type Headers<'a> = &'a [(&'a str, &'a str)];

/// Returns a request with these headers, which may repeat.
pub(crate) fn request(
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Request<Full<Bytes>> {
    let builder = Request::builder()
        .method(method)
        .uri(target)
        .header("host", "gateway");
    let builder = headers.iter().fold(builder, |builder, (name, value)| {
        builder.header(*name, *value)
    });
    builder.body(Full::default()).unwrap()
}

/// Sends a request over HTTP/1.1.
pub(crate) async fn send(to: SocketAddr, request: Request<Full<Bytes>>) -> Reply {
    let stream = TcpStream::connect(to).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    Reply::read(sender.send_request(request).await.unwrap()).await
}

/// Sends a request over HTTP/2 without TLS.
pub(crate) async fn send_h2(to: SocketAddr, request: Request<Full<Bytes>>) -> Reply {
    let stream = TcpStream::connect(to).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    Reply::read(sender.send_request(request).await.unwrap()).await
}

/// Waits until a function returns a value.
pub(crate) async fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = found() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap()
}

/// Reads a file until it has a line for which `is_it` returns true.
pub(crate) async fn until_line(path: &Path, is_it: impl Fn(&str) -> bool) -> String {
    until(|| {
        let text = std::fs::read_to_string(path).ok()?;
        text.lines().find(|line| is_it(line)).map(str::to_owned)
    })
    .await
}
