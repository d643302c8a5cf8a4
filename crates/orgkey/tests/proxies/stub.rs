//! A gateway with a fixed response, in all dialects.

#[allow(dead_code, reason = "shared with the gateway")]
#[path = "../../src/gateway/dialect/proto.rs"]
mod proto;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;

use self::proto::{
    CheckResponse, DeniedHttpResponse, HeaderValue as Header, HeaderValueOption, HttpResponse,
    HttpStatus, OkHttpResponse, Status,
};

/// The code of the problem document of a rejection.
pub(crate) const CODE: &str = "fixed";

#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    Allows,
    Rejects(u16),
    Silent,
}

pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    mode: watch::Sender<Mode>,
    unanswered: Arc<AtomicUsize>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Stub {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, current) = watch::channel(Mode::Allows);
        let unanswered = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&unanswered);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (current, counted) = (current.clone(), Arc::clone(&counted));
                let answer = service_fn(move |request| {
                    let (mode, counted) = (*current.borrow(), Arc::clone(&counted));
                    async move { Ok::<_, Infallible>(answer(mode, &request, &counted).await) }
                });
                tokio::spawn(async move {
                    let server = auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self {
            address,
            mode,
            unanswered,
        }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Returns how many questions were not answered.
    pub(crate) fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Relaxed)
    }
}

async fn answer(
    mode: Mode,
    request: &Request<Incoming>,
    unanswered: &AtomicUsize,
) -> Response<Body> {
    let is_grpc = request.uri().path().starts_with("/envoy.service.auth");
    let rejected = match mode {
        Mode::Allows => None,
        Mode::Rejects(status) => Some(status),
        Mode::Silent => {
            unanswered.fetch_add(1, Ordering::Relaxed);
            std::future::pending().await
        }
    };
    if is_grpc {
        over_grpc(rejected)
    } else {
        over_http(rejected)
    }
}

fn problem() -> String {
    format!(r#"{{"code":"{CODE}"}}"#)
}

fn over_http(rejected: Option<u16>) -> Response<Body> {
    let Some(status) = rejected else {
        return Response::new(Full::default().boxed_unsync());
    };
    let builder = Response::builder()
        .status(status)
        .header("content-type", "application/problem+json")
        .header("cache-control", "no-store")
        .header("x-orgkey-problem", problem());
    builder.body(Full::from(problem()).boxed_unsync()).unwrap()
}

fn over_grpc(rejected: Option<u16>) -> Response<Body> {
    let header = |key: &str, value: &str| HeaderValueOption {
        header: Some(Header {
            key: key.to_owned(),
            value: value.to_owned(),
            raw_value: Vec::new(),
        }),
        append_action: 2,
    };
    let (code, http_response) = match rejected {
        None => (0, HttpResponse::Ok(OkHttpResponse::default())),
        Some(status) => {
            let denied = DeniedHttpResponse {
                status: Some(HttpStatus {
                    code: status.into(),
                }),
                headers: vec![
                    header("content-type", "application/problem+json"),
                    header("cache-control", "no-store"),
                ],
                body: problem(),
            };
            (7, HttpResponse::Denied(denied))
        }
    };
    let message = CheckResponse {
        status: Some(Status { code }),
        http_response: Some(http_response),
    }
    .encode_to_vec();
    let len = u32::try_from(message.len()).unwrap().to_be_bytes();
    let frame = [&[0][..], &len, &message].concat();
    let ok = HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let body = Full::from(frame).with_trailers(std::future::ready(Some(Ok(ok))));
    let builder = Response::builder().header("content-type", "application/grpc");
    builder.body(body.boxed_unsync()).unwrap()
}
