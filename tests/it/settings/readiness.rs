//! Readiness of the inner service, and the second check of a key after a wait.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::Response;
use tokio::sync::Semaphore;
use tower::{Layer, Service, ServiceExt};
use tower_orgkey::observer::RequestObservation;
use tower_orgkey::settings::{OrgSettingsLayer, ResponseFuture, SettingsError, settings_fn};
use tower_orgkey::test_util::{OrgContextBuilder, TestClock};
use tower_orgkey::{ApiKey, ApiKeyHandle, ApiKeyLayer, Rejection};

use super::store::{Fault, Plan, Store};
use super::{MINUTE, auth, code, key_of};
use crate::support::probe::{Probe, Seen};
use crate::support::service::request as keyed_request;
use crate::support::{Issuer, org};

fn request(org: &'static str) -> http::Request<()> {
    let mut request = http::Request::new(());
    let context = OrgContextBuilder::new(org).build();
    request.extensions_mut().insert(context);
    request
}

async fn ready<S: Service<http::Request<()>>>(service: &mut S) {
    assert!(
        ServiceExt::<http::Request<()>>::ready(service)
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn a_hit_calls_the_ready_instance() {
    let store = Store::default();
    let probe = Probe::new();
    let seen = probe.seen();
    let mut service = OrgSettingsLayer::<Plan>::new(&auth().0.handle(), store).layer(probe);
    ready(&mut service).await;
    service.call(request("one")).await.unwrap();
    let clones = seen.clones();
    for _ in 0..3 {
        ready(&mut service).await;
        assert_eq!(seen.ready(), 1);
        service.call(request("one")).await.unwrap();
        assert_eq!(seen.ready(), 0);
    }
    assert_eq!((seen.clones(), seen.violations()), (clones, 0));
    assert_eq!(seen.called()[1..], [seen.called()[1]; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_miss_releases_the_ready_instance() {
    let store = Store::default();
    let gate = store.hold();
    let probe = Probe::new();
    let seen = probe.seen();
    let mut service = OrgSettingsLayer::<Plan>::new(&auth().0.handle(), store.clone()).layer(probe);
    ready(&mut service).await;
    let polls = seen.polls();
    let mut response = Box::pin(service.call(request("one")));
    assert_eq!(seen.ready(), 0, "held while the loader is asked");
    assert!(response.as_mut().now_or_never().is_none());
    tokio::task::yield_now().await;
    assert_eq!((store.calls(), seen.polls()), (1, polls));
    // The settings are loaded, and the inner service is not ready.
    seen.hold();
    gate.add_permits(1);
    while store.finished() == 0 {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    assert!(response.as_mut().now_or_never().is_none());
    assert_eq!((seen.polls(), seen.called().len()), (polls + 1, 0));
    seen.release();
    response.await.unwrap();
    assert_eq!((seen.called().len(), seen.violations()), (1, 0));
    assert_ne!(seen.called(), [0], "the instance that was made ready first");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_response_cancels_the_inner_call() {
    let probe = Probe::new();
    let seen = probe.seen();
    let store = Store::default();
    let mut service = OrgSettingsLayer::<Plan>::new(&auth().0.handle(), store.clone()).layer(probe);
    for cancelled in 1..3 {
        ready(&mut service).await;
        service.call(request("one")).await.unwrap();
        ready(&mut service).await;
        let mut response = Box::pin(service.call(request("one")));
        assert!(response.as_mut().now_or_never().is_none());
        drop(response);
        assert_eq!((seen.cancelled(), seen.violations()), (cancelled, 0));
    }
    assert_eq!(store.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_request_is_not_forwarded() {
    let store = Store::default();
    store.fails(Fault::Broken);
    let probe = Probe::new();
    let seen = probe.seen();
    let mut service = OrgSettingsLayer::<Plan>::new(&auth().0.handle(), store).layer(probe);
    ready(&mut service).await;
    let response = service.call(request("one")).await.unwrap();
    assert_eq!(response.status(), 503);
    ready(&mut service).await;
    let response = service.call(http::Request::new(())).await.unwrap();
    assert_eq!(response.status(), 500);
    assert!(seen.called().is_empty());
}

/// A request that was authenticated and waits for a load, with a probe as inner service.
struct Waiting {
    clock: TestClock,
    gate: Arc<Semaphore>,
    store: Store,
    seen: Arc<Seen>,
    observation: RequestObservation,
    response: Pin<Box<dyn Future<Output = Result<Response<Bytes>, Infallible>> + Send>>,
}

impl Waiting {
    async fn begin(auth: ApiKeyLayer, clock: TestClock) -> Self {
        let store = Store::default();
        let (probe, gate) = (Probe::new(), store.hold());
        let seen = probe.seen();
        let settings = OrgSettingsLayer::<Plan>::new(&auth.handle(), store.clone());
        let service = auth.layer(settings.layer(probe));
        let mut request = keyed_request(&key_of("one"));
        let observation = RequestObservation::attach(request.extensions_mut());
        let mut response = Box::pin(service.oneshot(request));
        while store.calls() == 0 {
            assert!(response.as_mut().now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        Self {
            clock,
            gate,
            store,
            seen,
            observation,
            response,
        }
    }

    /// Completes the load. The request then waits for the probe.
    async fn load(&mut self) {
        self.seen.hold();
        let polls = self.seen.polls();
        self.gate.add_permits(1);
        while self.seen.polls() == polls {
            assert!(self.response.as_mut().now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        assert_eq!(self.store.finished(), 1);
    }

    /// Completes the request. Returns its status and code.
    async fn end(self) -> (u16, Option<&'static str>) {
        assert!(self.seen.called().is_empty(), "it did not wait");
        self.gate.add_permits(1);
        self.seen.release();
        let response = self.response.await.unwrap();
        assert_eq!(self.store.finished(), 1);
        let status = response.status().as_u16();
        assert_eq!(self.seen.called().len(), usize::from(status == 200));
        assert_eq!((self.seen.violations(), self.seen.ready()), (0, 0));
        let code = response.extensions().get().map(Rejection::code);
        let recorded = self.observation.rejection();
        assert_eq!(recorded.as_ref().map(Rejection::code), code);
        (status, code)
    }
}

const INVALID: (u16, Option<&str>) = (401, Some("invalid-token"));
const CANNOT_TELL: (u16, Option<&str>) = (503, Some("verifier-unavailable"));

#[tokio::test(start_paused = true)]
async fn fault_79_a_key_is_rechecked_after_a_load() {
    type Meanwhile = fn(&ApiKeyHandle, &ApiKey);
    let cases: [(Meanwhile, (u16, Option<&str>)); 4] = [
        (|_, _| (), (200, None)),
        (|keys, _| keys.block_org(&code("one")).unwrap(), INVALID),
        (|keys, key| keys.block_key(key).unwrap(), INVALID),
        (ApiKeyHandle::invalidate_key, (200, None)),
    ];
    let key = ApiKey::parse(&key_of("one")).unwrap();
    for (meanwhile, expected) in cases {
        for is_loaded in [false, true] {
            let (auth, clock) = auth();
            let keys = auth.handle();
            let mut waiting = Waiting::begin(auth, clock).await;
            if is_loaded {
                waiting.load().await;
            }
            meanwhile(&keys, &key);
            assert_eq!(waiting.end().await, expected, "{is_loaded}");
        }
    }
}

/// With and without the layer: after the layer was dropped, only the times of the result are checked.
#[tokio::test(start_paused = true)]
async fn fault_79_a_result_gone_during_a_load_is_503() {
    let hard = 15 * MINUTE;
    for (is_past, expected) in [(false, (200, None)), (true, CANNOT_TELL)] {
        for is_dropped in [false, true] {
            let issuer = Issuer::knowing([(&key_of("one"), org("one", &[]))]);
            let clock = TestClock::new();
            let auth = ApiKeyLayer::builder(issuer.clone())
                .test_clock(clock.clone())
                .build()
                .unwrap();
            let keys = auth.handle();
            let mut waiting = Waiting::begin(auth, clock).await;
            waiting.load().await;
            // The service and the layer were dropped. Only the handle keeps the cache alive.
            if is_dropped {
                drop(keys);
                assert_eq!(issuer.holders(), 1, "the layer was not dropped");
            } else {
                assert_eq!(issuer.holders(), 2);
            }
            let nanosecond = Duration::from_nanos(u64::from(!is_past));
            let left = hard.checked_sub(waiting.clock.elapsed()).unwrap();
            waiting.clock.jump(left.checked_sub(nanosecond).unwrap());
            assert_eq!(waiting.end().await, expected, "{is_dropped}");
        }
    }
}

#[test]
fn building_needs_no_runtime() {
    struct NotClone;

    let keys = tower_orgkey::ApiKeyLayer::new(crate::support::Issuer::new()).handle();
    let loader = settings_fn(|_| async { Ok::<_, SettingsError>(NotClone) });
    let layer = OrgSettingsLayer::new(&keys, loader);
    let service = layer.clone().layer(Probe::new());
    let shown = format!("{layer:?} {:?} {:?}", service.clone(), layer.handle());
    assert!(shown.contains("NotClone"), "{shown}");

    static_assertions::assert_impl_all!(OrgSettingsLayer<NotClone>: Clone, Send, Sync, Unpin);
    static_assertions::assert_impl_all!(tower_orgkey::OrgSettings<NotClone>: Clone, Send, Sync, Unpin);
    static_assertions::assert_impl_all!(tower_orgkey::OrgSettingsHandle: Clone, Send, Sync, Unpin);
    static_assertions::assert_impl_all!(SettingsError: Clone, std::error::Error, Send, Sync);
    static_assertions::assert_impl_all!(ResponseFuture<Probe, NotClone, ()>: Send, Unpin, std::fmt::Debug);
}
