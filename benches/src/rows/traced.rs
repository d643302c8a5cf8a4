//! What logs of others cost: one line of JSON per request, written to a file.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use tower_http::trace::{DefaultMakeSpan, DefaultOnResponse, TraceLayer};
use tracing::{Dispatch, Level};

use super::log_file::LogFile;
use super::{Call, api, passes};

pub(super) fn trace_layer() -> Call {
    traced(passes(trace_layer_router()))
}

pub(super) fn from_fn_line() -> Call {
    traced(passes(from_fn_router()))
}

/// With the span and the event of a response at the level that is logged.
pub(crate) fn trace_layer_router() -> Router {
    let trace = TraceLayer::new_for_http()
        .make_span_with(DefaultMakeSpan::new().level(Level::INFO))
        .on_response(DefaultOnResponse::new().level(Level::INFO));
    api().layer(trace)
}

pub(crate) fn from_fn_router() -> Router {
    api().layer(from_fn(line))
}

async fn line(request: Request, next: Next) -> Response {
    let began = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    tracing::info!(
        %method,
        path,
        status = response.status().as_u16(),
        latency = ?began.elapsed(),
        "request"
    );
    response
}

fn subscriber() -> Dispatch {
    let lines = tracing_subscriber::fmt()
        .json()
        .with_writer(Arc::new(LogFile::new()));
    Dispatch::new(lines.finish())
}

fn traced(mut call: Call) -> Call {
    let subscriber = subscriber();
    Box::new(move || tracing::dispatcher::with_default(&subscriber, &mut call))
}

/// For all threads of a server.
pub(crate) fn globally(router: fn() -> Router) -> Router {
    tracing::dispatcher::set_global_default(subscriber()).expect("the only one");
    router()
}
