//! A probe that rejects tokens which verify accepts: the application lacks the probe's scope, or verify ignores tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::kinde::{
    BAD, GOOD, Said, Stage, invalid_key, misconfigured, rejected, served, unavailable, valid_key,
    yes,
};
use crate::support::stub::{Answer, Endpoint, until};

const NEW: &str = "k_live_good_0002";

/// A stage where the probe is known to be unusable: it answers this status. Verify accepts token 2.
async fn with_unusable_probe(status: u16) -> Stage {
    let stage = Stage::new().await;
    stage.stub.always(Endpoint::Probe, Answer::status(status));
    assert_eq!(stage.unknown(GOOD).await, (Said::Valid, 1));
    // Until verify accepts the token after the probe has rejected it, it may as well have been revoked.
    assert_eq!(stage.unknown(BAD).await, (Said::TokenRejected, 2));
    assert_eq!(stage.unknown(NEW).await, (Said::Valid, 2));
    // The scope may have been granted in between.
    assert_eq!(stage.unknown(BAD).await, (Said::Undecided, 2));
    assert_eq!(stage.count(Endpoint::Probe), 3);
    assert_eq!(stage.count(Endpoint::Token), 2);
    stage
}

#[tokio::test]
async fn fault_56_invalid_key_costs_no_probe_or_token() {
    let stage = with_unusable_probe(403).await;
    for n in 0..14 {
        assert_eq!(stage.unknown(NEW).await, (Said::Valid, 2));
        // The next 200 under this token confirms it.
        assert_eq!(stage.unknown(BAD).await, (Said::Undecided, 2));
        assert_eq!(stage.known(&invalid_key(n)).await, (Said::Undecided, 2));
        stage.jump(60);
    }
    assert_eq!(stage.count(Endpoint::Probe), 3);
    // One more after 15 minutes.
    stage.jump(60);
    assert_eq!(stage.unknown(NEW).await, (Said::Valid, 2));
    for n in 0..3 {
        let said = stage.unknown(&invalid_key(n)).await;
        assert_eq!(said, (Said::Undecided, 2));
    }
    assert_eq!(stage.count(Endpoint::Probe), 4);
    assert_eq!(stage.count(Endpoint::Token), 2);
}

#[tokio::test]
async fn fault_56_earlier_calls_200_decides_nothing() {
    let stage = Stage::with(|builder| builder.bearer_token("static")).await;
    stage.stub.always(Endpoint::Probe, Answer::status(403));
    let is_probed = Arc::<AtomicBool>::default();
    // Sent before the probe, answered after it: the token may have been revoked in between.
    let late = yes().once(&is_probed);
    stage.stub.on(Endpoint::Verify, move |request| {
        if request.key() == NEW {
            late.clone()
        } else {
            Answer::status(401)
        }
    });
    let soon = async {
        until("the late one", || stage.count(Endpoint::Verify) >= 1).await;
        let said = stage.unknown(BAD).await;
        is_probed.store(true, Ordering::SeqCst);
        said.0
    };
    let (late, soon) = tokio::join!(stage.unknown(NEW), soon);
    assert_eq!((late.0, soon), (Said::Valid, Said::TokenRejected));
    assert_eq!(stage.unknown(BAD).await.0, Said::TokenRejected);
    assert_eq!(stage.unknown(BAD).await.0, Said::TokenRejected);
    assert_eq!(stage.count(Endpoint::Probe), 3);
}

#[tokio::test]
async fn fault_56_revoked_key_is_removed_on_a_200() {
    let stage = with_unusable_probe(403).await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.stub.on(Endpoint::Verify, |request| {
        if request.key() == GOOD {
            Answer::status(401)
        } else {
            yes()
        }
    });
    stage.jump(100);
    assert_eq!(stage.get(&valid_key(3)).await, served());
    stage.jump(30);
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.get(&valid_key(4)).await, served());
    assert_eq!(stage.get(GOOD).await, rejected());
    assert_eq!(stage.count(Endpoint::Token), 2);
}

#[tokio::test]
async fn fault_56_revoked_token_is_renewed_too() {
    let stage = with_unusable_probe(403).await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.kill_token("token-2");
    stage.jump(130);
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.count(Endpoint::Token), 3);
    assert_eq!(stage.get(&valid_key(3)).await, served());
}

#[tokio::test]
async fn fault_74_revoked_token_is_503_until_renewed() {
    let stage = with_unusable_probe(403).await;
    stage.jump(1);
    stage.kill_token("token-2");
    for n in 3..6 {
        assert_eq!(stage.get(&valid_key(n)).await, unavailable());
    }
    assert_eq!(stage.count(Endpoint::Token), 2);
    stage.jump(60);
    assert_eq!(stage.get(&valid_key(6)).await, served());
    assert_eq!(stage.count(Endpoint::Token), 3);
}

#[tokio::test]
async fn fault_56_invalid_keys_alone_cost_few_tokens() {
    let stage = with_unusable_probe(403).await;
    for n in 0..100 {
        stage.jump(60);
        assert_eq!(stage.unknown(&invalid_key(n)).await.0, Said::Undecided);
    }
    let fetched = stage.count(Endpoint::Token);
    // Doubling waits of up to 15 minutes, in 100 minutes.
    assert!((3..=15).contains(&fetched), "{fetched}");
    assert!(stage.count(Endpoint::Probe) <= 3 + 2 * 7);
}

#[tokio::test]
async fn granted_scope_makes_the_probe_usable() {
    let stage = with_unusable_probe(403).await;
    stage.stub.always(Endpoint::Probe, Answer::json(200, "{}"));
    assert_eq!(stage.unknown(BAD).await, (Said::Undecided, 2));
    stage.jump(15 * 60);
    assert_eq!(stage.unknown(NEW).await, (Said::Valid, 2));
    for probes in 4..7 {
        assert_eq!(stage.unknown(BAD).await, (Said::Concluded, 2));
        assert_eq!(stage.count(Endpoint::Probe), probes);
    }
}

#[tokio::test]
async fn fault_75_invalid_key_waits_for_the_next_200() {
    let stage = Stage::new().await;
    stage.stub.always(Endpoint::Probe, Answer::status(401));
    for _ in 0..3 {
        assert_eq!(stage.get(BAD).await, misconfigured());
    }
    assert_eq!(stage.count(Endpoint::Token), 2);
    let stage = with_unusable_probe(401).await;
    for n in 0..50 {
        // Verify accepts the token from time to time.
        if n % 10 == 0 {
            assert_eq!(stage.unknown(NEW).await, (Said::Valid, 2));
        }
        // The layer waits for the next 200 under the credential of this answer.
        let said = stage.unknown(&invalid_key(n)).await;
        assert_eq!(said, (Said::Undecided, 2));
        stage.jump(5);
    }
    assert_eq!(stage.count(Endpoint::Token), 2);
    assert_eq!(stage.count(Endpoint::Probe), 3);
}

#[tokio::test]
async fn fault_75_revoked_key_goes_on_a_later_200() {
    let stage = with_unusable_probe(401).await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.stub.on(Endpoint::Verify, |request| {
        if request.key() == GOOD {
            Answer::status(401)
        } else {
            yes()
        }
    });
    stage.jump(100);
    assert_eq!(stage.get(&valid_key(3)).await, served());
    stage.jump(30);
    // Within two soft TTLs and one verification.
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.get(&valid_key(4)).await, served());
    assert_eq!(stage.get(GOOD).await, rejected());
    assert_eq!(stage.count(Endpoint::Token), 2);
}
