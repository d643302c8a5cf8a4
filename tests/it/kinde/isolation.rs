//! The failure of one call affects no other: each has its own deadline, and only verify's failures count as the issuer's.

use std::time::Duration;

use futures_util::future::join_all;
use tower_orgkey::{ApiKey, ApiKeyLayer, Attempt, BreakerState, Verifier, VerifyErrorKind};

use crate::support::kinde::{
    BAD, GOOD, Stage, VALID_REPLY, Verdict, default_layer, get, invalid_key, rejected, served,
    unavailable,
};
use crate::support::stub::{Answer, Endpoint, until};

const NEW: &str = "k_live_good_0002";
const RECORD: &str = r#"{"organization_id":"org_1","api_ids":["api_ours"]}"#;

fn breaker(layer: &ApiKeyLayer) -> BreakerState {
    layer.handle().upstream().breaker
}

#[tokio::test]
async fn fault_67_three_slow_calls_verify_a_key() {
    let cases = [None, Some("api_ours")].map(slow_endpoints);
    join_all(cases).await;
}

async fn slow_endpoints(api_id: Option<&str>) {
    let stage = Stage::with(|builder| match api_id {
        Some(api_id) => builder.api_id(api_id),
        None => builder,
    })
    .await;
    stage.stub.always(Endpoint::Key, Answer::json(200, RECORD));
    // Each key has its own record.
    stage.stub.on(Endpoint::Verify, |request| {
        if request.key().contains("good") {
            Answer::json(200, &VALID_REPLY.replace("api_key_0001", &request.key()))
        } else {
            Answer::status(401)
        }
    });
    // Two calls take longer than the deadline of one.
    stage.stub.delay(Duration::from_millis(1_200));
    let layer = ApiKeyLayer::builder(stage.kinde.clone())
        .test_clock(stage.clock.clone())
        .attempt_deadline(Duration::from_secs(2))
        .caller_deadline(Duration::from_secs(8))
        .build()
        .unwrap();
    // A token, the key, and its record; a token, the key, and a probe.
    assert_eq!(get(&layer, GOOD).await, served());
    let invalid: Vec<_> = (0..5).map(invalid_key).collect();
    let got = async {
        let keys = invalid.iter().map(|key| get(&layer, key));
        tokio::join!(join_all(keys), get(&layer, NEW))
    };
    let (invalid, valid) = got.await;
    assert!(invalid.iter().all(|got| *got == rejected()), "{invalid:?}");
    assert_eq!(valid, served());
    assert_eq!(breaker(&layer), BreakerState::Closed);
    let looked_up = if api_id.is_some() { 2 } else { 0 };
    assert_eq!(stage.count(Endpoint::Key), looked_up);
    assert!(stage.count(Endpoint::Probe) > 0);
}

#[tokio::test]
async fn fault_68_a_failing_probe_costs_no_valid_key() {
    let cases = [
        Answer::status(500),
        Answer::status(404),
        Answer::status(302),
        Answer::Bytes(Vec::new()),
        Answer::json(200, "{}").after(Duration::from_millis(1_500)),
        Answer::Silence,
    ];
    join_all(cases.map(failing_probe)).await;
}

async fn failing_probe(probe: Answer) {
    let what = format!("{probe:?}");
    let stage = Stage::new().await;
    let layer = default_layer(&stage);
    assert_eq!(get(&layer, GOOD).await, served(), "{what}");
    stage.stub.always(Endpoint::Probe, probe);
    let invalid: Vec<_> = (0..30).map(invalid_key).collect();
    let got = join_all(invalid.iter().map(|key| get(&layer, key))).await;
    assert!(got.iter().all(|got| *got == unavailable()), "{what}");
    assert!(stage.count(Endpoint::Probe) > 0, "{what}");
    assert_eq!(breaker(&layer), BreakerState::Closed, "{what}");
    assert_eq!(get(&layer, NEW).await, served(), "{what}");
    // A known key is refreshed.
    let verified = stage.count(Endpoint::Verify);
    stage.jump(130);
    assert_eq!(get(&layer, GOOD).await, served(), "{what}");
    assert_eq!(stage.count(Endpoint::Verify), verified + 1, "{what}");
    assert_eq!(stage.count(Endpoint::Token), 1, "{what}");
    let attempt = || Attempt::new(Duration::from_secs(1));
    for attempt in [attempt(), attempt().known(None)] {
        let said = stage.attempt(BAD, attempt).await;
        assert_eq!(said, Verdict::Undecided, "{what}");
    }
}

#[tokio::test]
async fn fault_69_a_429_on_the_probe_pauses_nothing() {
    let stage = Stage::new().await;
    let throttled = Answer::status(429).with("RateLimit-Reset", "30");
    stage.stub.always(Endpoint::Probe, throttled);
    assert_eq!(stage.unknown(BAD).await, (Verdict::Undecided, 1));
    assert_eq!(stage.get(BAD).await, unavailable());
    let upstream = stage.layer.handle().upstream();
    assert_eq!(upstream.paused_for, None);
    assert_eq!(upstream.breaker, BreakerState::Closed);
    assert_eq!(stage.get(NEW).await, served());
    assert_eq!(stage.count(Endpoint::Probe), 2);
}

/// The kind of the error of one attempt with a short deadline.
async fn kind(stage: &Stage, attempt: Attempt) -> VerifyErrorKind {
    let key = ApiKey::parse(GOOD).unwrap();
    let verified = stage.kinde.verify_attempt(&key, attempt).await;
    verified.err().unwrap().kind()
}

#[tokio::test]
async fn attempt_deadline_applies_to_each_call() {
    let attempt = || Attempt::new(Duration::from_secs(1));
    let stage = Stage::with(|builder| builder.api_id("api_ours")).await;
    let slow = crate::support::kinde::token("token-1", "3600").after(Duration::from_secs(2));
    stage.stub.always(Endpoint::Token, slow);
    let unavailable = VerifyErrorKind::Unavailable;
    assert_eq!(kind(&stage, attempt()).await, unavailable);
    assert_eq!(stage.count(Endpoint::Verify), 0);
    // The fetch continues, and the next verification finds the token.
    let is_verified = async {
        while stage.count(Endpoint::Verify) == 0 {
            let _ = kind(&stage, attempt()).await;
        }
    };
    tokio::time::timeout(crate::support::stub::HANG, is_verified)
        .await
        .unwrap();
    assert_eq!(stage.count(Endpoint::Token), 1);

    stage.stub.always(Endpoint::Verify, Answer::Silence);
    assert_eq!(kind(&stage, attempt()).await, unavailable);
    assert_eq!(kind(&stage, attempt().known(None)).await, unavailable);

    let stage = Stage::with(|builder| builder.api_id("api_ours")).await;
    assert!(stage.verify(GOOD).await.is_err(), "it has no record");
    let late = Answer::json(200, "{}").after(Duration::from_secs(3));
    stage.stub.always(Endpoint::Probe, late);
    assert_eq!(stage.attempt(BAD, attempt()).await, Verdict::Undecided);
    stage.stub.always(Endpoint::Key, Answer::Silence);
    let inconclusive = VerifyErrorKind::Inconclusive;
    assert_eq!(kind(&stage, attempt()).await, inconclusive);
    until("the look-up", || stage.count(Endpoint::Key) == 2).await;
}

#[tokio::test]
async fn failing_record_is_no_issuer_failure() {
    for record in [
        Answer::status(429).with("RateLimit-Reset", "30"),
        Answer::status(500),
        Answer::json(200, "{}"),
        Answer::Bytes(Vec::new()),
    ] {
        let what = format!("{record:?}");
        let stage = Stage::with(|builder| builder.api_id("api_ours")).await;
        stage.stub.always(Endpoint::Key, record);
        let attempt = Attempt::new(Duration::from_secs(5));
        let inconclusive = VerifyErrorKind::Inconclusive;
        assert_eq!(kind(&stage, attempt).await, inconclusive, "{what}");
        for n in 0..30 {
            let key = crate::support::kinde::valid_key(n);
            assert_eq!(stage.get(&key).await, unavailable(), "{what}");
        }
        let upstream = stage.layer.handle().upstream();
        assert_eq!(upstream.breaker, BreakerState::Closed, "{what}");
        assert_eq!(upstream.paused_for, None, "{what}");
    }
}

#[tokio::test]
async fn reply_without_key_id_names_its_cause() {
    let stage = Stage::with(|builder| builder.api_id("api_ours")).await;
    let without = VALID_REPLY.replace(r#""key_id":"api_key_0001","#, "");
    stage
        .stub
        .always(Endpoint::Verify, Answer::json(200, &without));
    let error = stage.verify(GOOD).await.err().unwrap();
    assert_eq!(error.kind(), VerifyErrorKind::InvalidResponse);
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        cause.contains("key_id") && cause.contains("api_id"),
        "{cause}"
    );
}
