//! Limits of organizations and keys.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

mod composition;
mod concurrency;
mod properties;
mod rate;
mod threads;

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use futures_util::FutureExt;
use http::{Request, Response};
use tower::{Layer, Service, service_fn};
use tower_orgkey::limit::OrgRateLimit;
use tower_orgkey::test_util::{OrgContextBuilder, TestClock};
use tower_orgkey::{OrgContext, OrgRateLimitLayer, OrgRateLimitLayerBuilder, Quota, Rejection};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn org(code: &'static str) -> OrgContext {
    OrgContextBuilder::new(code).build()
}

fn key(org: &'static str, id: &'static str) -> OrgContext {
    OrgContextBuilder::new(org).key_id(id).build()
}

fn request_of(context: &OrgContext) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(context.clone());
    request
}

/// A limit with a handler that responds at once.
type Limited = Box<dyn FnMut(&OrgContext) -> Response<Body>>;

fn limited(limit: &OrgRateLimitLayer) -> Limited {
    let handler =
        service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Body::empty())));
    let mut service: OrgRateLimit<_> = limit.layer(handler);
    Box::new(move |context| {
        let response = service.call(request_of(context)).now_or_never();
        response.expect("nothing waits here").unwrap()
    })
}

fn build(builder: OrgRateLimitLayerBuilder, clock: &TestClock) -> OrgRateLimitLayer {
    builder.test_clock(clock.clone()).build().unwrap()
}

fn quota(quota: Quota) -> OrgRateLimitLayerBuilder {
    OrgRateLimitLayer::builder(move |_: &OrgContext| Some(quota))
}

/// The `Retry-After` of a rejected request; `None` for one that passed.
fn wait(response: &Response<Body>) -> Option<Duration> {
    response.extensions().get::<Rejection>()?.retry_after()
}

fn passes(limited: &mut Limited, context: &OrgContext) -> bool {
    wait(&limited(context)).is_none()
}

/// The number of requests that pass before one is rejected.
fn passed(limited: &mut Limited, context: &OrgContext) -> usize {
    (0..100_000)
        .take_while(|_| passes(limited, context))
        .count()
}
