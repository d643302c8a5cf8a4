//! Readiness belongs to an instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{
    ApiKey, ApiKeyHandle, ApiKeyLayer, ApiKeyService, KeyId, OrgCode, OrgConcurrencyLimitLayer,
    OrgContext, OrgRateLimitLayer, Quota, Rejection, RejectionKind, RequestHead, require_org_with,
    require_scope,
};

use super::{BAD, ONE, TWO};
use crate::support::issuer::expiring;
use crate::support::probe::{Probe, Seen};
use crate::support::service::{Handler, Outcome, answer, outcome, passed, request};
use crate::support::{Issuer, Say, org};

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
async fn hit_calls_the_ready_instance() {
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
async fn miss_drops_the_ready_instance() {
    let issuer = issuer();
    let gate = issuer.hold();
    let (mut service, seen, _) = service(&issuer);
    ready(&mut service).await;
    assert_eq!(seen.ready(), 1);
    let polls = seen.polls();
    let mut response = Box::pin(service.call(request(ONE)));
    assert_eq!(seen.ready(), 0, "a ready instance during the lookup");
    assert!(response.as_mut().now_or_never().is_none());
    tokio::task::yield_now().await;
    assert_eq!(issuer.in_flight(), 1);
    assert_eq!(seen.polls(), polls, "made ready too early");
    // The lookup is complete, but the inner service is not ready.
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
async fn rejection_does_not_call_the_inner_service() {
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
async fn dropped_response_cancels_the_inner_call_only() {
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
async fn guards_call_the_ready_instance() {
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
async fn limits_call_the_ready_instance() {
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

const MINUTE: Duration = Duration::from_secs(60);

/// A change of a key while a request with it waits.
struct Meanwhile {
    issuer: Issuer,
    clock: TestClock,
    layer: ApiKeyLayer,
    keys: ApiKeyHandle,
}

impl Meanwhile {
    /// The status of another request with the key, which verifies it.
    async fn verified_again(&self) -> u16 {
        let service = self.layer.clone().max_age(Duration::ZERO);
        let response = answer(&service.layer(Handler::default()), ONE).await;
        response.status().as_u16()
    }
}

/// The status, code and `Retry-After` of a request that was authenticated and then waited a minute for its inner service.
async fn waited(meanwhile: impl AsyncFnOnce(&Meanwhile)) -> (u16, Option<&'static str>, String) {
    let issuer = issuer();
    let clock = TestClock::new();
    let layer = ApiKeyLayer::builder(issuer.clone())
        .test_clock(clock.clone())
        .build()
        .unwrap();
    let probe = Probe::new();
    let seen = probe.seen();
    let mut service = layer.clone().layer(probe);
    ready(&mut service).await;
    seen.hold();
    let mut response = Box::pin(service.call(request(ONE)));
    while seen.polls() < 2 {
        assert!(response.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    assert_eq!(issuer.finished(), 1, "authenticated");
    tokio::time::advance(MINUTE).await;
    assert!(response.as_mut().now_or_never().is_none());
    let changed = Meanwhile {
        keys: layer.handle(),
        issuer,
        clock,
        layer,
    };
    meanwhile(&changed).await;
    assert!(seen.called().is_empty(), "it did not wait");
    seen.release();
    let response = response.await.unwrap();
    let status = response.status().as_u16();
    let is_called = !seen.called().is_empty();
    assert_eq!(is_called, status == 200, "{status}");
    assert_eq!(seen.ready(), 0, "an instance is still ready");
    let retry_after = response.headers().get("retry-after");
    (
        status,
        response.extensions().get().map(Rejection::code),
        retry_after.map_or_else(String::new, |after| after.to_str().unwrap().to_owned()),
    )
}

fn goes_on() -> (u16, Option<&'static str>, String) {
    (200, None, String::new())
}

fn invalid() -> (u16, Option<&'static str>, String) {
    (401, Some("invalid-token"), String::new())
}

fn cannot_tell() -> (u16, Option<&'static str>, String) {
    (503, Some("verifier-unavailable"), "1".to_owned())
}

#[tokio::test(start_paused = true)]
async fn fault_79_key_blocked_while_waiting_is_401() {
    type Block = fn(&ApiKeyHandle);
    let blocks: [Block; 3] = [
        |keys| keys.block_key(&ApiKey::parse(ONE).unwrap()).unwrap(),
        |keys| {
            let id = KeyId::from_static("id_of_org_one");
            keys.block_key_id(&id).unwrap();
        },
        |keys| keys.block_org(&OrgCode::from_static("org_one")).unwrap(),
    ];
    for block in blocks {
        assert_eq!(waited(async |now| block(&now.keys)).await, invalid());
    }
    let others = |now: &Meanwhile| {
        now.keys
            .block_org(&OrgCode::from_static("org_two"))
            .unwrap();
    };
    assert_eq!(waited(async |now| others(now)).await, goes_on());
}

#[tokio::test(start_paused = true)]
async fn fault_79_invalidation_is_for_later_requests() {
    type Invalidate = fn(&ApiKeyHandle);
    let invalidations: [Invalidate; 4] = [
        |keys| keys.invalidate_key(&ApiKey::parse(ONE).unwrap()),
        |keys| keys.invalidate_key_id(&KeyId::from_static("id_of_org_one")),
        |keys| keys.invalidate_org(&OrgCode::from_static("org_one")),
        ApiKeyHandle::invalidate_all,
    ];
    for invalidate in invalidations {
        assert_eq!(waited(async |now| invalidate(&now.keys)).await, goes_on());
        // A later answer of the issuer counts.
        for (answer, status, expected) in [
            (org("org_one", &["a"]), 200, goes_on()),
            (Say::No, 401, invalid()),
        ] {
            let verified = waited(async |now| {
                now.issuer.set(ONE, answer);
                invalidate(&now.keys);
                assert_eq!(now.verified_again().await, status);
            });
            assert_eq!(verified.await, expected);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fault_79_result_expired_while_waiting_is_503() {
    let hard = 15 * MINUTE;
    for (past, expected) in [(false, goes_on()), (true, cannot_tell())] {
        let outcome = waited(async |now| {
            let left = hard.checked_sub(now.clock.elapsed()).unwrap();
            let nanosecond = Duration::from_nanos(u64::from(!past));
            now.clock.jump(left.checked_sub(nanosecond).unwrap());
        });
        assert_eq!(outcome.await, expected, "{past}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_79_key_expired_while_waiting_is_401() {
    let issuer = issuer();
    // The wall clock is not paused, so this is slightly less than a minute.
    issuer.set(ONE, expiring("org_one", SystemTime::now() + MINUTE));
    let (mut service, seen, clock) = service(&issuer);
    ready(&mut service).await;
    seen.hold();
    let mut response = Box::pin(service.call(request(ONE)));
    while seen.polls() < 2 {
        assert!(response.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    clock.jump(MINUTE);
    seen.release();
    let response = response.await.unwrap();
    assert_eq!((response.status().as_u16(), seen.called().len()), (401, 0));
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn fault_79_later_answer_while_waiting_counts() {
    let rejected = async |now: &Meanwhile| {
        now.issuer.set(ONE, Say::No);
        assert_eq!(now.verified_again().await, 401);
    };
    assert_eq!(waited(rejected).await, invalid());
    // That answer is no longer cached.
    let rejected_long_ago = async |now: &Meanwhile| {
        rejected(now).await;
        now.clock.jump(MINUTE);
    };
    assert_eq!(waited(rejected_long_ago).await, cannot_tell());
    for (answer, expected) in [
        (org("org_one", &["a"]), goes_on()),
        (org("org_one", &[]), cannot_tell()),
        (org("org_two", &["a"]), cannot_tell()),
    ] {
        let outcome = waited(async |now| {
            now.issuer.set(ONE, answer);
            assert_eq!(now.verified_again().await, 200);
        });
        assert_eq!(outcome.await, expected);
    }
    // Without an answer, nothing changes.
    let outage = async |now: &Meanwhile| {
        now.issuer.set(ONE, Say::Unavailable);
        assert_eq!(now.verified_again().await, 503);
    };
    assert_eq!(waited(outage).await, goes_on());
}

/// Tower's limit makes a request that was authenticated wait for a permit.
#[tokio::test(start_paused = true)]
async fn fault_79_key_blocked_before_its_permit_is_401() {
    let issuer = issuer();
    issuer.set(TWO, org("org_two", &[]));
    let answers = issuer.hold();
    let layer = ApiKeyLayer::new(issuer.clone());
    let (handler, entered) = (Handler::default(), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new(Semaphore::new(0));
    let slow = {
        let (handler, entered, gate) = (handler.clone(), Arc::clone(&entered), Arc::clone(&gate));
        tower::service_fn(move |request: http::Request<()>| {
            let (handler, gate) = (handler.clone(), Arc::clone(&gate));
            entered.fetch_add(1, Ordering::SeqCst);
            async move {
                gate.acquire().await.unwrap().forget();
                handler.oneshot(request).await
            }
        })
    };
    let service = ServiceBuilder::new()
        .layer(layer.clone())
        .concurrency_limit(1)
        .service(slow);
    let begin = |key| {
        let service = service.clone();
        tokio::spawn(async move { outcome(&service, key).await })
    };
    let first = begin(TWO);
    until(|| issuer.in_flight() == 1).await;
    let second = begin(ONE);
    until(|| issuer.in_flight() == 2).await;
    answers.add_permits(1);
    until(|| entered.load(Ordering::SeqCst) == 1).await;
    answers.add_permits(1);
    until(|| issuer.finished() == 2).await;
    tokio::time::advance(MINUTE).await;
    assert!(!second.is_finished(), "it did not wait");
    let keys = layer.handle();
    keys.block_org(&OrgCode::from_static("org_one")).unwrap();
    gate.add_permits(2);
    assert_eq!(first.await.unwrap(), passed("org_two"));
    let rejected = Outcome::Refused(RejectionKind::InvalidToken);
    assert_eq!(second.await.unwrap(), rejected);
    assert_eq!((handler.reached(), entered.load(Ordering::SeqCst)), (1, 1));
    // The permit is free.
    assert_eq!(outcome(&service, TWO).await, passed("org_two"));
}

/// Runs all tasks that do not wait for time, until the condition is true.
async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
}

#[test]
fn building_and_layering_need_no_runtime() {
    let layer = ApiKeyLayer::new(issuer());
    let built = ApiKeyLayer::builder(issuer()).build().unwrap();
    let service = layer.layer(Probe::new());
    let _ = (built.clone().layer(Probe::new()), service.clone(), layer);
    // A decision without the issuer needs no runtime either.
    let mut service = service;
    let rejected = service.call(request("short")).now_or_never().unwrap();
    assert_eq!(rejected.unwrap().status(), 400);
}
