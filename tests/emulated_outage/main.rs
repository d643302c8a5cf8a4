//! Faults of the issuer and of the way to it, seen through the layer and the Kinde verifier over real sockets.
//!
//! Between the verifier and the emulator stands a proxy. Every test asserts that its fault was injected, at one or the other.

#![allow(clippy::unwrap_used)] // A test may fail on what it did not expect.

mod stage;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use kinde_emulator::{Endpoint, Fault, InvalidKeyReply, KindeEmulator};
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKeyLayer, BreakerState, Verifier, verifier_fn};

use self::stage::{A_WHILE, JUNK, Stage, code, kinde};
use self::support::proxy::{Fault as OnTheWay, FaultProxy};

#[tokio::test]
async fn fault_01_an_issuer_that_is_gone_leaves_known_keys_alone_and_tells_strangers_to_come_back()
{
    let mut stage = Stage::set().await;
    let stranger = stage.stranger();
    stage.proxy.inject(OnTheWay::Refuse).await;
    assert!(stage.proxy.is_refusing().await);
    stage.shows_an_outage(&stranger).await;
    assert!(stage.proxy.is_refusing().await);
    for n in 0..5 {
        assert_eq!(stage.status(&format!("{JUNK}{n}")).await, 503);
    }
    assert!(
        matches!(
            stage.handle.upstream().unknown_breaker,
            BreakerState::Open { .. }
        ),
        "it was tried, and then left alone"
    );
    stage.clock.jump(Duration::from_secs(900));
    assert_eq!(
        stage.status(stage.known.secret()).await,
        503,
        "past the hard TTL"
    );
    stage.proxy.heal();
    stage.shows_recovery(&stranger).await;
}

#[tokio::test]
async fn fault_01_connections_that_are_reset_as_they_begin_are_an_outage() {
    let mut stage = Stage::set().await;
    let stranger = stage.stranger();
    stage.emulator.reset_calls();
    stage.proxy.inject(OnTheWay::HangUp).await;
    stage.shows_an_outage(&stranger).await;
    assert!(stage.proxy.injected() >= 5, "{}", stage.proxy.injected());
    assert_eq!(stage.emulator.calls().verify.total, 0);
    stage.proxy.heal();
    stage.shows_recovery(&stranger).await;
}

#[tokio::test]
async fn fault_02_silence_delays_no_known_key_in_both_soft_ttls_nor_behind_the_breaker() {
    let mut stage = Stage::set().await;
    let stranger = stage.stranger();
    stage.emulator.reset_calls();
    stage.proxy.inject(OnTheWay::Silence).await;
    let at_once = |what: &str| {
        let answer = stage.call(stage.known.secret()).now_or_never();
        assert_eq!(answer.expect(what).status(), 200, "{what}");
    };
    at_once("fresh");
    stage.clock.jump(A_WHILE);
    at_once("stale, and its refresh begins");
    at_once("while its refresh is under way");

    let junk = [1, 2, 3].map(|n| format!("{JUNK}{n}"));
    let strangers = [stranger.secret(), JUNK, &junk[0], &junk[1], &junk[2]];
    for refused in futures_util::future::join_all(strangers.map(|key| stage.call(key))).await {
        assert_eq!(refused.status(), 503);
        assert_eq!(code(&refused), "verifier-unavailable");
        assert!(refused.headers().contains_key("retry-after"));
    }
    assert!(stage.proxy.injected() >= 5, "{}", stage.proxy.injected());
    assert!(
        stage.emulator.calls().verify.total >= 5,
        "the issuer got the calls whose answers were lost"
    );
    assert!(matches!(
        stage.handle.upstream().unknown_breaker,
        BreakerState::Open { .. }
    ));
    at_once("behind the breaker");
    stage.proxy.heal();
    stage.shows_recovery(&stranger).await;
}

#[tokio::test]
async fn fault_02_an_issuer_that_never_answers_is_an_outage() {
    let mut stage = Stage::set().await;
    let stranger = stage.stranger();
    stage.proxy.inject(OnTheWay::Silence).await;
    stage.shows_an_outage(&stranger).await;
    assert!(stage.proxy.injected() >= 5, "{}", stage.proxy.injected());
    stage.proxy.heal();
    stage.shows_recovery(&stranger).await;
}

#[tokio::test]
async fn fault_03_a_body_that_comes_byte_for_byte_is_an_outage() {
    let mut stage = Stage::set().await;
    let stranger = stage.stranger();
    // Ten bytes in the time that an attempt has, of the shortest of answers.
    let apart = Duration::from_millis(100);
    stage.proxy.inject(OnTheWay::Trickle { apart }).await;
    stage.shows_an_outage(&stranger).await;
    assert!(stage.proxy.injected() >= 5, "{}", stage.proxy.injected());
    stage.proxy.heal();
    stage.shows_recovery(&stranger).await;
}

#[tokio::test]
async fn fault_04_an_answer_that_breaks_off_is_neither_a_yes_nor_a_no() {
    // All of `{"is_valid":false}` but its end, and none of a body.
    for body in [17, 0] {
        for fault in [OnTheWay::Reset { body }, OnTheWay::Truncate { body }] {
            let mut stage = Stage::set().await;
            let stranger = stage.stranger();
            stage.emulator.reset_calls();
            stage.proxy.inject(fault).await;
            stage.shows_an_outage(&stranger).await;
            assert!(stage.proxy.injected() >= 5, "{fault:?}");
            assert!(
                stage.emulator.calls().verify.total >= 5,
                "{fault:?}: the issuer did answer"
            );
            stage.proxy.heal();
            stage.shows_recovery(&stranger).await;
        }
    }
}

#[tokio::test]
async fn fault_13_a_name_that_resolves_no_more_is_an_outage() {
    const GONE: &str = "issuer.invalid";

    let emulator = KindeEmulator::start().await.unwrap();
    let proxy = FaultProxy::to(emulator.addr());
    let clock = TestClock::new();
    // The issuer's name is part of a verifier, so the one whose name is gone takes the place of the other.
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
    let stranger = stage.stranger();
    assert!(tokio::net::lookup_host((GONE, 80)).await.is_err());
    is_gone.store(true, Ordering::SeqCst);
    stage.shows_an_outage(&stranger).await;
    assert!(unresolved.load(Ordering::SeqCst) >= 5);
    is_gone.store(false, Ordering::SeqCst);
    stage.shows_recovery(&stranger).await;
}

#[tokio::test]
async fn fault_08_a_429_with_its_reset_leaves_the_issuer_alone_and_the_breaker_closed() {
    let stage = Stage::set().await;
    let strangers = [stage.stranger(), stage.stranger()];
    let throttled = Fault::status(429).with_header("ratelimit-reset", "30");
    stage.emulator.inject(Endpoint::Verify, throttled);
    stage.emulator.reset_calls();
    for stranger in &strangers {
        let refused = stage.call(stranger.secret()).await;
        assert_eq!(refused.status(), 503);
        let wait: u64 = refused.headers()["retry-after"]
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
        stage.status(strangers[0].secret()).await,
        200,
        "after the reset"
    );
}

#[tokio::test]
async fn fault_33_junk_that_the_issuer_answers_with_400_is_401_and_no_outage() {
    let stage = Stage::set().await;
    stage
        .emulator
        .set_invalid_key_reply(InvalidKeyReply::BadRequest);
    stage.emulator.reset_calls();
    for n in 0..40 {
        let refused = stage.call(&format!("k_live_junk_{n:08}")).await;
        assert_eq!(
            (refused.status().as_u16(), code(&refused)),
            (401, "invalid-token")
        );
    }
    assert_eq!(
        stage.emulator.calls().verify.total,
        40,
        "each was asked about"
    );
    assert_eq!(stage.handle.upstream().breaker, BreakerState::Closed);
    assert_eq!(stage.status(stage.known.secret()).await, 200);
    assert_eq!(stage.status(stage.stranger().secret()).await, 200);
}

#[tokio::test]
async fn fault_33b_an_issuer_that_says_400_to_everything_gives_up_no_known_key() {
    let stage = Stage::set().await;
    let stranger = stage.stranger();
    stage.emulator.inject(Endpoint::Verify, Fault::status(400));
    for seconds in [0, 130, 600] {
        stage.clock.jump(Duration::from_secs(seconds));
        assert_eq!(stage.status(stage.known.secret()).await, 200, "{seconds} s");
    }
    assert!(
        stage.emulator.calls().verify.faulted > 0,
        "the known key was refused"
    );
    assert_eq!(stage.status(stranger.secret()).await, 401);
    stage.clock.jump(Duration::from_secs(900));
    assert_eq!(
        stage.status(stage.known.secret()).await,
        401,
        "past the hard TTL it is a stranger"
    );
}
