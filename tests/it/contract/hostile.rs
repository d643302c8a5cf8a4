//! Inner services that fail if another instance than the ready one is called.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tower::buffer::BufferLayer;
use tower::limit::ConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt};
use tower_orgkey::ApiKeyLayer;

use super::{BAD, ONE, TWO};
use crate::support::probe::Probe;
use crate::support::service::{Handler, request};
use crate::support::{Issuer, Say, org};

const SILENT: &str = "k_test_silent_0123456";

fn issuer() -> Issuer {
    Issuer::knowing([
        (ONE, org("org_one", &[])),
        (TWO, org("org_two", &[])),
        (SILENT, Say::Silence),
    ])
}

async fn call<S>(service: &S, key: &str) -> Result<u16, BoxError>
where
    S: Service<Request<()>, Response = Response<Bytes>> + Clone,
    S::Error: Into<BoxError>,
{
    let response = service.clone().oneshot(request(key));
    // The clock is paused, so this completes only when all tasks are idle.
    let response = tokio::time::timeout(Duration::from_secs(600), response).await;
    response
        .expect("a deadlock")
        .map(|response| response.status().as_u16())
        .map_err(Into::into)
}

#[tokio::test(start_paused = true)]
async fn fault_57_waiting_request_holds_no_permit() {
    let issuer = issuer();
    let handler = Handler::default();
    let service = ServiceBuilder::new()
        .layer(ApiKeyLayer::new(issuer.clone()))
        .layer(ConcurrencyLimitLayer::new(1))
        .service(handler.clone());
    assert_eq!(call(&service, ONE).await.unwrap(), 200);
    let unknown_keys: Vec<_> = (0..10)
        .map(|_| {
            let mut service = service.clone();
            tokio::spawn(async move {
                let ready = ServiceExt::<Request<()>>::ready(&mut service).await;
                let response = ready.unwrap().call(request(SILENT)).await.unwrap();
                // Kept until here, as a connection keeps its service, including its permit.
                drop(service);
                response.status()
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(issuer.calls_for(SILENT), 1, "the lookup was not started");
    let start = tokio::time::Instant::now();
    for _ in 0..100 {
        assert_eq!(call(&service, ONE).await.unwrap(), 200);
        assert_eq!(call(&service, BAD).await.unwrap(), 401);
        assert_eq!(call(&service, TWO).await.unwrap(), 200);
    }
    assert_eq!(start.elapsed(), Duration::ZERO, "a known key waited");
    for unknown_key in unknown_keys {
        assert_eq!(unknown_key.await.unwrap(), 503);
    }
    assert_eq!(handler.reached(), 201);
}

#[tokio::test(start_paused = true)]
async fn misses_pass_a_concurrency_limit_of_one() {
    let issuer = Issuer::new();
    issuer.fail(org("org_one", &[]));
    issuer.latency(Duration::from_millis(10));
    let probe = Probe::new();
    let seen = probe.seen();
    let service = ServiceBuilder::new()
        .layer(ApiKeyLayer::new(issuer.clone()))
        .layer(ConcurrencyLimitLayer::new(1))
        .service(probe);
    let calls: Vec<_> = (0..100)
        .map(|n| {
            let service = service.clone();
            tokio::spawn(async move { call(&service, &format!("k_test_{n:08}")).await.unwrap() })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), 200);
    }
    assert_eq!(
        (seen.called().len(), seen.violations(), seen.ready()),
        (100, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn buffer_outside_and_inside_serves_requests() {
    let issuer = issuer();
    issuer.latency(Duration::from_millis(10));
    let probe = Probe::new();
    let seen = probe.seen();
    let service = ServiceBuilder::new()
        .layer(BufferLayer::<Request<()>>::new(1))
        .layer(ApiKeyLayer::new(issuer.clone()))
        .layer(BufferLayer::<Request<()>>::new(1))
        .service(probe);
    let calls: Vec<_> = (0..90)
        .map(|n| {
            let service = service.clone();
            tokio::spawn(async move { call(&service, [ONE, TWO, BAD][n % 3]).await.unwrap() })
        })
        .collect();
    let mut statuses = std::collections::BTreeMap::new();
    for call in calls {
        *statuses.entry(call.await.unwrap()).or_insert(0) += 1;
    }
    assert_eq!(
        statuses.into_iter().collect::<Vec<_>>(),
        [(200, 60), (401, 30)]
    );
    assert_eq!((seen.called().len(), seen.violations()), (60, 0));
    assert_eq!(issuer.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn load_shed_inside_follows_the_inner_service() {
    let issuer = issuer();
    let handler = tower::service_fn(async |_: Request<()>| {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok::<_, Infallible>(Response::new(Bytes::new()))
    });
    let service = ServiceBuilder::new()
        .layer(ApiKeyLayer::new(issuer.clone()))
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(handler);
    // A waiting request with an unknown key takes no place.
    let unknown_key = tokio::spawn({
        let service = service.clone();
        async move { call(&service, SILENT).await.unwrap() }
    });
    tokio::task::yield_now().await;
    assert_eq!(call(&service, ONE).await.unwrap(), 200);
    let busy = tokio::spawn({
        let service = service.clone();
        async move { call(&service, ONE).await.unwrap() }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Busy: a hit and a miss are shed, and a rejection is unaffected.
    for key in [ONE, TWO] {
        let shed = call(&service, key).await.unwrap_err();
        assert!(shed.is::<tower::load_shed::error::Overloaded>(), "{shed}");
    }
    assert_eq!(call(&service, BAD).await.unwrap(), 401);
    assert_eq!(busy.await.unwrap(), 200);
    assert_eq!(call(&service, TWO).await.unwrap(), 200);
    assert_eq!(unknown_key.await.unwrap(), 503);
}

/// Fails at `poll_ready` or in its future.
#[derive(Clone)]
struct Fails {
    at_ready: bool,
}

impl Service<Request<()>> for Fails {
    type Response = Response<Bytes>;
    type Error = &'static str;
    type Future = std::future::Ready<Result<Response<Bytes>, &'static str>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), &'static str>> {
        std::task::Poll::Ready(if self.at_ready {
            Err("not ready")
        } else {
            Ok(())
        })
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        std::future::ready(Err("failed"))
    }
}

#[tokio::test(start_paused = true)]
async fn inner_errors_are_passed_on() {
    let layer = ApiKeyLayer::new(issuer());
    let fails = layer.layer(Fails { at_ready: false });
    for _ in 0..2 {
        assert_eq!(
            fails.clone().oneshot(request(ONE)).await.unwrap_err(),
            "failed"
        );
    }
    let mut broken = layer.layer(Fails { at_ready: true });
    let ready = ServiceExt::<Request<()>>::ready(&mut broken).await;
    assert_eq!(ready.err(), Some("not ready"));
    // A miss makes its own instance ready and gets the error then.
    assert_eq!(broken.call(request(TWO)).await.unwrap_err(), "not ready");
}
