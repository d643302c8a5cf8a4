//! Readiness belongs to an instance.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tower::{Layer, Service, ServiceExt};
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{
    ApiKeyLayer, ApiKeyService, OrgConcurrencyLimitLayer, OrgContext, OrgRateLimitLayer, Quota,
    RequestHead, require_org_with, require_scope,
};

use crate::probe::{Probe, Seen};
use crate::support::service::request;
use crate::support::{Issuer, Say, org};
use crate::{BAD, ONE};

type Service_ = ApiKeyService<Probe>;

fn service(issuer: &Issuer) -> (Service_, Arc<Seen>, TestClock) {
    let clock = TestClock::new();
    let layer = ApiKeyLayer::builder(issuer.clone())
        .test_clock(clock.clone())
        .build()
        .unwrap();
    let probe = Probe::new();
    let seen = probe.seen();
    (layer.layer(probe), seen, clock)
}

fn issuer() -> Issuer {
    Issuer::knowing([(ONE, org("org_one", &["a"]))])
}

async fn ready<S: Service<http::Request<()>>>(service: &mut S) {
    assert!(
        ServiceExt::<http::Request<()>>::ready(service)
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn poll_ready_is_the_inner_services() {
    let (mut service, seen, _) = service(&issuer());
    assert_eq!((seen.polls(), seen.clones()), (0, 0));
    seen.hold();
    let mut waiting = Box::pin(ready(&mut service));
    assert!(waiting.as_mut().now_or_never().is_none());
    assert_eq!(seen.polls(), 1);
    seen.release();
    waiting.await;
    assert_eq!((seen.polls(), seen.ready(), seen.clones()), (2, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn on_a_hit_the_very_instance_that_was_made_ready_is_called() {
    let issuer = issuer();
    let (mut service, seen, clock) = service(&issuer);
    ready(&mut service).await;
    service.call(request(ONE)).await.unwrap();
    let (clones, called) = (seen.clones(), seen.called());
    let mut last = None;
    // Fresh, and then stale with a refresh behind it.
    for jump in [0, 0, 0, 61, 0] {
        clock.jump(Duration::from_secs(jump));
        ready(&mut service).await;
        assert_eq!(seen.ready(), 1);
        service.call(request(ONE)).await.unwrap();
        assert_eq!(seen.ready(), 0);
        let by = seen.called().last().copied();
        assert!(last.is_none() || last == by, "another instance");
        last = by;
    }
    assert_eq!(seen.clones(), clones, "a hit cloned the inner service");
    assert_eq!(seen.called().len(), called.len() + 5);
    assert_eq!(seen.violations(), 0);
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn on_a_miss_the_ready_instance_is_let_go_and_a_clone_is_made_ready_after_the_answer() {
    let issuer = issuer();
    let gate = issuer.hold();
    let (mut service, seen, _) = service(&issuer);
    ready(&mut service).await;
    assert_eq!(seen.ready(), 1);
    let polls = seen.polls();
    let mut response = Box::pin(service.call(request(ONE)));
    assert_eq!(seen.ready(), 0, "held while the issuer is asked");
    assert!(response.as_mut().now_or_never().is_none());
    tokio::task::yield_now().await;
    assert_eq!(issuer.in_flight(), 1);
    assert_eq!(seen.polls(), polls, "made ready too early");
    // The answer is there, and the inner service is not.
    seen.hold();
    gate.add_permits(1);
    while issuer.finished() == 0 {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    assert!(response.as_mut().now_or_never().is_none());
    assert_eq!(seen.polls(), polls + 1);
    assert!(seen.called().is_empty());
    seen.release();
    response.await.unwrap();
    assert_eq!(
        (seen.called().len(), seen.violations(), seen.ready()),
        (1, 0, 0)
    );
    assert_ne!(seen.called(), [0], "the instance that was made ready first");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_never_calls_the_inner_service() {
    let issuer = issuer();
    issuer.set("k_test_down_012345678", Say::Unavailable);
    let (mut service, seen, _) = service(&issuer);
    for key in [BAD, BAD, "short", "k_test_down_012345678"] {
        ready(&mut service).await;
        let response = service.call(request(key)).await.unwrap();
        assert_ne!(response.status(), 200);
    }
    assert!(seen.called().is_empty());
    assert_eq!(issuer.calls_for(BAD), 1);
    ready(&mut service).await;
    service.call(request(ONE)).await.unwrap();
    assert_eq!((seen.called().len(), seen.violations()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_response_cancels_the_inner_call_and_nothing_else() {
    let issuer = issuer();
    let (mut service, seen, _) = service(&issuer);
    ready(&mut service).await;
    service.call(request(ONE)).await.unwrap();
    assert_eq!(seen.cancelled(), 0);
    ready(&mut service).await;
    let mut response = Box::pin(service.call(request(ONE)));
    assert!(response.as_mut().now_or_never().is_none());
    drop(response);
    assert_eq!(seen.cancelled(), 1);
    ready(&mut service).await;
    service.call(request(ONE)).await.unwrap();
    assert_eq!((seen.cancelled(), seen.violations()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn guards_forward_readiness_and_call_the_instance_they_made_ready() {
    let probe = Probe::new();
    let seen = probe.seen();
    let scope = require_scope("a").layer(probe);
    let mut guards = require_org_with(|_: RequestHead<'_>| Some("org_one".into())).layer(scope);
    let context = |scopes: &'static [&'static str]| {
        let mut request = http::Request::new(());
        let context = tower_orgkey::test_util::OrgContextBuilder::new("org_one")
            .scopes(scopes.iter().copied())
            .build();
        request.extensions_mut().insert(context);
        request
    };
    for n in 1..4 {
        ready(&mut guards).await;
        assert_eq!(seen.ready(), 1);
        let response = guards.call(context(&["a"])).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(seen.called(), vec![0; n]);
    }
    ready(&mut guards).await;
    assert_eq!(guards.call(context(&["b"])).await.unwrap().status(), 403);
    assert_eq!(seen.called().len(), 3);
    assert_eq!((seen.clones(), seen.violations()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn limits_forward_readiness_and_call_the_instance_they_made_ready() {
    let probe = Probe::new();
    let seen = probe.seen();
    let bodies = tower::util::MapResponseLayer::new(|response: http::Response<bytes::Bytes>| {
        response.map(http_body_util::Full::new)
    });
    let concurrency = OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(1));
    let rate = OrgRateLimitLayer::new(|_: &OrgContext| Some(Quota::per_hour(3)));
    let mut limits = rate.layer(concurrency.layer(bodies.layer(probe)));
    let request = || {
        let mut request = http::Request::new(());
        let context = tower_orgkey::test_util::OrgContextBuilder::new("org_one").build();
        request.extensions_mut().insert(context);
        request
    };
    seen.hold();
    let mut waiting = Box::pin(ready(&mut limits));
    assert!(waiting.as_mut().now_or_never().is_none());
    seen.release();
    waiting.await;
    for (n, status) in [(1, 200), (2, 200), (3, 200), (3, 429)] {
        ready(&mut limits).await;
        assert_eq!(seen.ready(), 1);
        let response = limits.call(request()).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(seen.called(), vec![0; n]);
    }
    assert_eq!((seen.clones(), seen.violations()), (0, 0));
}

#[test]
fn neither_building_nor_layering_needs_a_runtime() {
    let layer = ApiKeyLayer::new(issuer());
    let built = ApiKeyLayer::builder(issuer()).build().unwrap();
    let service = layer.layer(Probe::new());
    let _ = (built.clone().layer(Probe::new()), service.clone(), layer);
    // What is decided without the issuer needs none either.
    let mut service = service;
    let refused = service.call(request("short")).now_or_never().unwrap();
    assert_eq!(refused.unwrap().status(), 400);
}
