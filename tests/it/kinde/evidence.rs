//! The meaning of a 401 or 403 from verify: the table of the module documentation, with a token that the issuer accepts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tower_orgkey::kinde::{KindeVerifierBuilder, UnauthorizedMeans};

use crate::support::kinde::{
    BAD, GOOD, Said, Stage, invalid_key, misconfigured, rejected, served, unavailable, valid_key,
    yes,
};
use crate::support::stub::{Answer, Endpoint, until};

const NEW: &str = "k_live_good_0002";

/// From now on verify answers 401 about this key and accepts all others.
fn revoke(stage: &Stage, key: &'static str) {
    stage.stub.on(Endpoint::Verify, move |request| {
        if request.key() == key {
            Answer::status(401)
        } else {
            yes()
        }
    });
}

#[tokio::test]
async fn fault_17b_invalid_key_is_401_if_a_probe_passes() {
    for status in [401, 403] {
        let stage = Stage::new().await;
        stage.stub.on(Endpoint::Verify, move |request| {
            if request.key() == GOOD {
                yes()
            } else {
                Answer::status(status)
            }
        });
        // Before verify has accepted anything, and after.
        assert_eq!(stage.get(BAD).await, rejected());
        assert_eq!(stage.get(GOOD).await, served());
        stage.jump(1_000);
        assert_eq!(stage.get(BAD).await, rejected());
        assert_eq!(stage.unknown(BAD).await, (Said::Concluded, 1));
        assert_eq!(stage.count(Endpoint::Probe), 3);
        let probe = stage.stub.requests(Endpoint::Probe).remove(0);
        assert_eq!(probe.token(), Some("token-1"));
        assert_eq!(stage.count(Endpoint::Token), 1);
        assert_eq!(stage.get(GOOD).await, served());
    }
}

#[tokio::test]
async fn fault_17b_invalid_keys_cost_five_probes_a_second() {
    let stage = Stage::new().await;
    let began = Instant::now();
    for batch in 0..5 {
        let keys: Vec<_> = (0..50).map(|n| invalid_key(50 * batch + n)).collect();
        let said = join_all(keys.iter().map(|key| stage.unknown(key))).await;
        assert_eq!(said, [(Said::Concluded, 1); 50]);
    }
    let most = began.elapsed().as_millis() / 200 + 1;
    let probes = stage.count(Endpoint::Probe) as u128;
    assert!((5..=most).contains(&probes), "{probes} of {most}");
    assert_eq!(stage.count(Endpoint::Verify), 250);
    assert_eq!(stage.count(Endpoint::Token), 1);
}

#[tokio::test]
async fn probe_sent_before_the_answer_is_ignored() {
    let stage = Stage::new().await;
    let is_sent = Arc::<AtomicBool>::default();
    let probe = Answer::json(200, "{}").once(&is_sent);
    stage.stub.always(Endpoint::Probe, probe);
    let second = async {
        until("the first probe", || stage.count(Endpoint::Probe) == 1).await;
        // Called and answered while the first probe is in flight.
        let second = invalid_key(2);
        let end_probe = async {
            until("the second call", || stage.count(Endpoint::Verify) == 2).await;
            is_sent.store(true, Ordering::SeqCst);
        };
        tokio::join!(stage.unknown(&second), end_probe).0
    };
    let first = invalid_key(1);
    let (first, second) = tokio::join!(stage.unknown(&first), second);
    assert_eq!((first.0, second.0), (Said::Concluded, Said::Concluded));
    assert_eq!(stage.count(Endpoint::Probe), 2);
}

#[tokio::test]
async fn dropped_verification_leaves_its_probe_running() {
    let stage = Stage::new().await;
    let is_answered = Arc::<AtomicBool>::default();
    let probe = Answer::json(200, "{}").once(&is_answered);
    stage.stub.always(Endpoint::Probe, probe);
    tokio::select! {
        _ = stage.unknown(BAD) => panic!("the probe has no answer yet"),
        () = until("the probe", || stage.count(Endpoint::Probe) == 1) => {}
    }
    is_answered.store(true, Ordering::SeqCst);
    assert_eq!(stage.unknown(BAD).await.0, Said::Concluded);
}

#[tokio::test]
async fn known_key_is_removed_by_a_later_200_only() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    revoke(&stage, GOOD);
    for _ in 0..3 {
        stage.jump(130);
        // A probe passes, which decides nothing about a known key.
        assert_eq!(stage.get(GOOD).await, served());
        assert_eq!(stage.known(GOOD).await, (Said::Undecided, 1));
    }
    assert!(stage.count(Endpoint::Probe) >= 6);
    assert_eq!(stage.get(NEW).await, served());
    assert_eq!(stage.get(GOOD).await, rejected());
}

#[tokio::test]
async fn later_200_during_a_probe_decides() {
    let stage = Stage::new().await;
    assert_eq!(stage.unknown(GOOD).await, (Said::Valid, 1));
    revoke(&stage, GOOD);
    let is_confirmed = Arc::<AtomicBool>::default();
    let probe = Answer::json(200, "{}").once(&is_confirmed);
    stage.stub.always(Endpoint::Probe, probe);
    let another = async {
        until("the probe", || stage.count(Endpoint::Probe) == 1).await;
        let said = stage.unknown(NEW).await;
        is_confirmed.store(true, Ordering::SeqCst);
        said
    };
    let (known, another) = tokio::join!(stage.known(GOOD), another);
    assert_eq!(another, (Said::Valid, 1));
    assert_eq!(known, (Said::Concluded, 1));
}

#[tokio::test]
async fn fault_72_401_for_all_removes_no_known_key() {
    for status in [401, 403] {
        let stage = Stage::new().await;
        assert_eq!(stage.get(GOOD).await, served());
        stage.stub.always(Endpoint::Verify, Answer::status(status));
        // To the end of the hard TTL.
        for _ in 0..6 {
            stage.jump(130);
            assert_eq!(stage.get(GOOD).await, served());
            for key in [NEW, BAD] {
                // The next probe need not wait.
                stage.jump(1);
                assert_eq!(stage.get(key).await, unavailable());
                stage.jump(1);
                assert_eq!(stage.unknown(key).await, (Said::Undecided, 1));
            }
        }
        assert!(stage.count(Endpoint::Probe) >= 12);
        stage.jump(130);
        assert_eq!(stage.get(GOOD).await, unavailable());
        assert_eq!(stage.count(Endpoint::Token), 1);
        // Verify answers 200 again, so its answers are about the key.
        revoke(&stage, BAD);
        assert_eq!(stage.get(NEW).await, served());
        assert_eq!(stage.unknown(BAD).await, (Said::Concluded, 1));
    }
}

#[tokio::test]
async fn fault_76_many_revoked_known_keys_share_probes() {
    let stage = Stage::new().await;
    assert_eq!(stage.unknown(GOOD).await.0, Said::Valid);
    stage.stub.delay(Duration::from_millis(50));
    // These are revoked, and others are verified.
    let revoked: Vec<_> = (0..200).map(invalid_key).collect();
    let valid: Vec<_> = (0..20).map(valid_key).collect();
    let began = Instant::now();
    let others = async {
        for key in &valid {
            assert_eq!(stage.unknown(key).await, (Said::Valid, 1));
        }
    };
    let known = join_all(revoked.iter().map(|key| stage.known(key)));
    let (said, ()) = tokio::join!(known, others);
    for said in said {
        // The next 200 under this token confirms it at the latest.
        let expected = [(Said::Concluded, 1), (Said::Undecided, 1)];
        assert!(expected.contains(&said), "{said:?}");
    }
    let most = began.elapsed().as_millis() / 200 + 1;
    let probes = stage.count(Endpoint::Probe) as u128;
    assert!((1..=most).contains(&probes), "{probes} of {most}");
    assert_eq!(stage.count(Endpoint::Token), 1);
}

#[tokio::test]
async fn probe_body_is_not_read() {
    let stage = Stage::new().await;
    stage.stub.always(Endpoint::Probe, Answer::Endless);
    assert_eq!(stage.get(BAD).await, rejected());
    assert!(stage.stub.poured() > 0, "no body was sent");
}

#[tokio::test]
async fn without_credentials_a_200_comes_first() {
    let stage = Stage::with(KindeVerifierBuilder::without_credentials).await;
    assert_eq!(stage.unknown(BAD).await, (Said::TokenRejected, 0));
    assert_eq!(stage.known(BAD).await, (Said::TokenRejected, 0));
    assert_eq!(stage.get(BAD).await, misconfigured());
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.unknown(BAD).await, (Said::Unconfirmed, 0));
    assert_eq!(stage.get(&invalid_key(1)).await, rejected());
    // A known key is removed by a later 200.
    revoke(&stage, GOOD);
    stage.jump(130);
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.known(GOOD).await, (Said::Unconfirmed, 0));
    assert_eq!(stage.get(NEW).await, served());
    assert_eq!(stage.get(GOOD).await, rejected());
    assert_eq!(stage.count(Endpoint::Probe), 0);
    assert_eq!(stage.count(Endpoint::Token), 0);
}

#[tokio::test]
async fn without_credentials_a_401_to_all_removes_none() {
    let stage = Stage::with(KindeVerifierBuilder::without_credentials).await;
    let keys: Vec<_> = (0..5).map(valid_key).collect();
    for key in &keys {
        assert_eq!(stage.get(key).await, served());
    }
    stage.stub.always(Endpoint::Verify, Answer::status(401));
    stage.jump(130);
    for key in &keys {
        assert_eq!(stage.get(key).await, served());
    }
    assert_eq!(stage.count(Endpoint::Verify), 10);
}

#[tokio::test]
async fn static_token_is_probed_and_never_renewed() {
    let stage = Stage::with(|builder| builder.bearer_token("static")).await;
    assert_eq!(stage.get(BAD).await, rejected());
    assert_eq!(stage.get(GOOD).await, served());
    stage.kill_token("static");
    stage.jump(130);
    assert_eq!(stage.get(NEW).await, misconfigured());
    assert_eq!(stage.unknown(NEW).await, (Said::TokenRejected, 0));
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.count(Endpoint::Token), 0);
}

#[tokio::test]
async fn a_401_can_be_pinned_to_the_key() {
    let stage = Stage::with(|builder| builder.unauthorized_means(UnauthorizedMeans::Key)).await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.stub.always(Endpoint::Verify, Answer::status(403));
    stage.jump(130);
    assert_eq!(stage.get(BAD).await, rejected());
    assert_eq!(stage.get(GOOD).await, rejected());
    assert_eq!(stage.unknown(BAD).await, (Said::Concluded, 1));
    assert_eq!(stage.count(Endpoint::Probe), 0);
    assert_eq!(stage.count(Endpoint::Token), 1);
}

#[tokio::test]
async fn a_401_can_be_pinned_to_the_token() {
    let stage =
        Stage::with(|builder| builder.unauthorized_means(UnauthorizedMeans::AccessToken)).await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.jump(130);
    for n in 0..5 {
        assert_eq!(stage.get(&invalid_key(n)).await, misconfigured());
    }
    assert_eq!(stage.count(Endpoint::Probe), 0);
    assert_eq!(stage.count(Endpoint::Token), 2);
    assert_eq!(stage.get(NEW).await, served());
    let last = stage.stub.requests(Endpoint::Verify).pop().unwrap();
    assert_eq!(last.token(), Some("token-2"));
}

#[tokio::test]
async fn a_401_confirms_no_other_keys_400() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.stub.on(Endpoint::Verify, |request| {
        Answer::status(if request.key() == GOOD { 400 } else { 401 })
    });
    stage.jump(130);
    assert_eq!(stage.get(GOOD).await, served());
    // Sent later, and rejected by a 401 and a probe: verify has still not answered 200.
    assert_eq!(stage.get(BAD).await, rejected());
    assert_eq!(stage.get(GOOD).await, served());
}
