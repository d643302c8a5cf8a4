//! Faults of the issuer and of the network, with the layer and the Kinde verifier over real sockets.
//!
//! The verifier calls the emulator through a proxy. Each test asserts that one of them injected its fault.

#![allow(clippy::unwrap_used)] // A test may fail on what it did not expect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use kinde_emulator::{Endpoint, Fault, InvalidKeyReply, KindeEmulator};
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKeyLayer, BreakerState, Verifier, verifier_fn};

use crate::support::emulated::{A_WHILE, INVALID_KEY, Stage, code, kinde};
use crate::support::proxy::{Fault as OnTheWay, FaultProxy};

#[tokio::test]
async fn fault_01_unreachable_issuer_costs_no_known_key() {
    let mut stage = Stage::set().await;
    let unknown_key = stage.unknown_key();
    stage.proxy.inject(OnTheWay::Refuse).await;
    assert!(stage.proxy.is_refusing().await);
    stage.shows_an_outage(&unknown_key).await;
    assert!(stage.proxy.is_refusing().await);
    for n in 0..5 {
        assert_eq!(stage.status(&format!("{INVALID_KEY}{n}")).await, 503);
    }
    assert!(
        matches!(
            stage.handle.upstream().unknown_breaker,
            BreakerState::Open { .. }
        ),
        "it was called, and then no more"
    );
    stage.clock.jump(Duration::from_secs(900));
    assert_eq!(
        stage.status(stage.known.secret()).await,
        503,
        "past the hard TTL"
    );
    stage.proxy.heal();
    stage.shows_recovery(&unknown_key).await;
}

#[tokio::test]
async fn fault_01_reset_connections_are_an_outage() {
    let mut stage = Stage::set().await;
    let unknown_key = stage.unknown_key();
    stage.emulator.reset_calls();
    stage.proxy.inject(OnTheWay::HangUp).await;
    stage.shows_an_outage(&unknown_key).await;
    assert!(stage.proxy.injected() >= 5, "{}", stage.proxy.injected());
    assert_eq!(stage.emulator.calls().verify.total, 0);
    stage.proxy.heal();
    stage.shows_recovery(&unknown_key).await;
}

#[tokio::test]
async fn fault_02_silent_issuer_delays_no_known_key() {
    let mut stage = Stage::set().await;
    let unknown_key = stage.unknown_key();
    stage.emulator.reset_calls();
    stage.proxy.inject(OnTheWay::Silence).await;
    let at_once = |what: &str| {
        let answer = stage.call(stage.known.secret()).now_or_never();
        assert_eq!(answer.expect(what).status(), 200, "{what}");
    };
    at_once("fresh");
    stage.clock.jump(A_WHILE);
    at_once("stale, and its refresh begins");
    at_once("while its refresh is in flight");

    let invalid = [1, 2, 3].map(|n| format!("{INVALID_KEY}{n}"));
    let unknown_keys = [
        unknown_key.secret(),
        INVALID_KEY,
        &invalid[0],
        &invalid[1],
        &invalid[2],
    ];
    for rejected in futures_util::future::join_all(unknown_keys.map(|key| stage.call(key))).await {
        assert_eq!(rejected.status(), 503);
        assert_eq!(code(&rejected), "verifier-unavailable");
        assert!(rejected.headers().contains_key("retry-after"));
    }
    assert!(stage.proxy.injected() >= 5, "{}", stage.proxy.injected());
    assert!(
        stage.emulator.calls().verify.total >= 5,
        "the issuer received the calls"
    );
    assert!(matches!(
        stage.handle.upstream().unknown_breaker,
        BreakerState::Open { .. }
    ));
    at_once("behind the breaker");
    stage.proxy.heal();
    stage.shows_recovery(&unknown_key).await;
}

#[tokio::test]
async fn fault_02_silent_issuer_is_an_outage() {
    let mut stage = Stage::set().await;
    let unknown_key = stage.unknown_key();
    stage.proxy.inject(OnTheWay::Silence).await;
    stage.shows_an_outage(&unknown_key).await;
    assert!(stage.proxy.injected() >= 5, "{}", stage.proxy.injected());
    stage.proxy.heal();
    stage.shows_recovery(&unknown_key).await;
}

#[tokio::test]
async fn fault_03_trickled_body_is_an_outage() {
    let mut stage = Stage::set().await;
    let unknown_key = stage.unknown_key();
    // Ten bytes of the shortest answer within the attempt deadline.
    let apart = Duration::from_millis(100);
    stage.proxy.inject(OnTheWay::Trickle { apart }).await;
    stage.shows_an_outage(&unknown_key).await;
    assert!(stage.proxy.injected() >= 5, "{}", stage.proxy.injected());
    stage.proxy.heal();
    stage.shows_recovery(&unknown_key).await;
}

#[tokio::test]
async fn fault_04_truncated_response_decides_nothing() {
    // `{"is_valid":false}` without its last byte, and an empty body.
    for body in [17, 0] {
        for fault in [OnTheWay::Reset { body }, OnTheWay::Truncate { body }] {
            let mut stage = Stage::set().await;
            let unknown_key = stage.unknown_key();
            stage.emulator.reset_calls();
            stage.proxy.inject(fault).await;
            stage.shows_an_outage(&unknown_key).await;
            assert!(stage.proxy.injected() >= 5, "{fault:?}");
            assert!(
                stage.emulator.calls().verify.total >= 5,
                "{fault:?}: the issuer did answer"
            );
            stage.proxy.heal();
            stage.shows_recovery(&unknown_key).await;
        }
    }
}

#[tokio::test]
async fn fault_13_unresolved_name_is_an_outage() {
    const GONE: &str = "issuer.invalid";

    let emulator = KindeEmulator::start().await.unwrap();
    let proxy = FaultProxy::to(emulator.addr());
    let clock = TestClock::new();
    // The issuer's name is fixed per verifier, so another verifier replaces the first one.
    let resolves = kinde(&emulator, &proxy, &clock).build().unwrap();
    let does_not = KindeVerifier::builder(format!("http://{GONE}"))
        .dangerously_allow_http()
        .without_credentials()
        .build()
        .unwrap();
    let is_gone = Arc::new(AtomicBool::new(false));
    let unresolved = Arc::new(AtomicUsize::new(0));
    let verifier = verifier_fn({
        let (is_gone, unresolved) = (Arc::clone(&is_gone), Arc::clone(&unresolved));
        move |key| {
            let is_gone = is_gone.load(Ordering::SeqCst);
            unresolved.fetch_add(usize::from(is_gone), Ordering::SeqCst);
            let kinde = if is_gone { &does_not } else { &resolves }.clone();
            async move { kinde.verify(&key).await }
        }
    });
    let auth = ApiKeyLayer::builder(verifier).test_clock(clock.clone());
    let stage = Stage::with(emulator, proxy, clock, auth.build().unwrap()).await;
    let unknown_key = stage.unknown_key();
    assert!(tokio::net::lookup_host((GONE, 80)).await.is_err());
    is_gone.store(true, Ordering::SeqCst);
    stage.shows_an_outage(&unknown_key).await;
    assert!(unresolved.load(Ordering::SeqCst) >= 5);
    is_gone.store(false, Ordering::SeqCst);
    stage.shows_recovery(&unknown_key).await;
}

#[tokio::test]
async fn fault_08_429_pauses_calls_and_opens_no_breaker() {
    let stage = Stage::set().await;
    let unknown_keys = [stage.unknown_key(), stage.unknown_key()];
    let throttled = Fault::status(429).with_header("ratelimit-reset", "30");
    stage.emulator.inject(Endpoint::Verify, throttled);
    stage.emulator.reset_calls();
    for unknown_key in &unknown_keys {
        let rejected = stage.call(unknown_key.secret()).await;
        assert_eq!(rejected.status(), 503);
        let wait: u64 = rejected.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((29..=30).contains(&wait), "{wait}");
    }
    assert_eq!(
        stage.emulator.calls().verify.faulted,
        1,
        "one 429, and no call after it"
    );
    assert_eq!(stage.handle.upstream().breaker, BreakerState::Closed);
    assert_eq!(stage.status(stage.known.secret()).await, 200);
    stage.emulator.clear_faults();
    stage.clock.jump(Duration::from_secs(31));
    assert_eq!(
        stage.status(unknown_keys[0].secret()).await,
        200,
        "after the reset"
    );
}

#[tokio::test]
async fn fault_33_400_for_invalid_keys_is_401() {
    let stage = Stage::set().await;
    stage
        .emulator
        .set_invalid_key_reply(InvalidKeyReply::BadRequest);
    stage.emulator.reset_calls();
    for n in 0..40 {
        let rejected = stage.call(&format!("k_live_none_{n:08}")).await;
        assert_eq!(
            (rejected.status().as_u16(), code(&rejected)),
            (401, "invalid-token")
        );
    }
    assert_eq!(
        stage.emulator.calls().verify.total,
        40,
        "each key was verified"
    );
    assert_eq!(stage.handle.upstream().breaker, BreakerState::Closed);
    assert_eq!(stage.status(stage.known.secret()).await, 200);
    assert_eq!(stage.status(stage.unknown_key().secret()).await, 200);
}

#[tokio::test]
async fn fault_33b_400_for_all_removes_no_known_key() {
    let stage = Stage::set().await;
    let unknown_key = stage.unknown_key();
    stage.emulator.inject(Endpoint::Verify, Fault::status(400));
    for seconds in [0, 130, 600] {
        stage.clock.jump(Duration::from_secs(seconds));
        assert_eq!(stage.status(stage.known.secret()).await, 200, "{seconds} s");
    }
    assert!(
        stage.emulator.calls().verify.faulted > 0,
        "the known key was rejected"
    );
    assert_eq!(stage.status(unknown_key.secret()).await, 401);
    stage.clock.jump(Duration::from_secs(900));
    assert_eq!(
        stage.status(stage.known.secret()).await,
        401,
        "past the hard TTL it is a unknown_key"
    );
}
