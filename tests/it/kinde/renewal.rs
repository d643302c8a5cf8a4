//! Tokens that the issuer rejects before they expire.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use tower_orgkey::kinde::UnauthorizedMeans;
use tower_orgkey::{ApiKey, Verifier, VerifyErrorKind};

use crate::support::kinde::{
    BAD, GOOD, Stage, Verdict, invalid_key, misconfigured, rejected, served, token, valid_key,
    valid_reply,
};
use crate::support::stub::{Answer, Endpoint, HANG, Request, until};

const NEW: &str = "k_live_good_0002";

/// Every token that was or will be issued is rejected by verify and by the probe, with these statuses.
fn reject_all_tokens(stage: &Stage, verify: u16, probe: u16) {
    stage
        .stub
        .always(Endpoint::Verify, Answer::status(verify))
        .always(Endpoint::Probe, Answer::status(probe));
}

/// The probe answers a dead token with this status.
fn probe_rejects_with(stage: &Stage, status: u16) {
    let dead = stage.rejected_tokens.clone();
    stage.stub.on(Endpoint::Probe, move |request| {
        if dead.lock().unwrap().contains(request.token().unwrap()) {
            Answer::status(status)
        } else {
            Answer::json(200, "{}")
        }
    });
}

/// The tokens that this key was verified with.
fn tokens_for(stage: &Stage, key: &str) -> Vec<Option<String>> {
    let mut calls = stage.stub.requests(Endpoint::Verify);
    calls.retain(|call| call.key() == key);
    let token = |call: &Request| call.token().map(str::to_owned);
    calls.iter().map(token).collect()
}

fn first_two_tokens() -> [Option<String>; 2] {
    [1, 2].map(|n| Some(format!("token-{n}")))
}

#[tokio::test]
async fn fault_17_rejected_token_is_503_for_unknown_keys() {
    for (verify, probe) in [(401, 401), (401, 403), (403, 401)] {
        let stage = Stage::new().await;
        assert_eq!(stage.get(GOOD).await, served());
        reject_all_tokens(&stage, verify, probe);
        assert_eq!(stage.get(NEW).await, misconfigured());
        // One new token at once, then none for 5 s, then for longer and longer.
        let mut fetched = 2;
        for wait in [6, 10, 20, 40, 80] {
            assert_eq!(stage.count(Endpoint::Token), fetched, "{wait}");
            stage.jump(wait / 2);
            assert_eq!(stage.get(NEW).await, misconfigured());
            assert_eq!(stage.count(Endpoint::Token), fetched, "{wait}");
            stage.jump(wait / 2);
            assert_eq!(stage.get(NEW).await, misconfigured());
            fetched += 1;
            assert_eq!(stage.get(GOOD).await, served());
        }
        assert_eq!(stage.count(Endpoint::Token), fetched);
        assert_eq!(stage.known(GOOD).await.0, Verdict::TokenRejected);
    }
}

#[tokio::test]
async fn fault_18_missing_scope_is_a_rejected_token() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    reject_all_tokens(&stage, 403, 403);
    let keys: Vec<_> = (0..10).map(invalid_key).collect();
    let got = join_all(keys.iter().map(|key| stage.get(key))).await;
    assert!(got.iter().all(|got| *got == misconfigured()), "{got:?}");
    assert_eq!(stage.count(Endpoint::Token), 2);
    stage.jump(130);
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.count(Endpoint::Token), 3);
}

#[tokio::test]
async fn fault_17c_token_revoked_early_is_renewed() {
    for probe in [401, 403] {
        let stage = Stage::new().await;
        assert_eq!(stage.get(GOOD).await, served());
        stage.reject_token("token-1");
        probe_rejects_with(&stage, probe);
        stage.jump(130);
        assert_eq!(stage.get(GOOD).await, served());
        assert_eq!(tokens_for(&stage, GOOD).len(), 3);
        assert_eq!(stage.count(Endpoint::Token), 2);
        // And again at once, because the renewal helped.
        stage.reject_token("token-2");
        assert_eq!(stage.get(NEW).await, served());
        assert_eq!(stage.count(Endpoint::Token), 3);
        assert_eq!(stage.get(BAD).await, rejected());
        assert_eq!(stage.count(Endpoint::Token), 3);
    }
}

async fn revoked_a_second_after_its_last_200(probe: u16) {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.jump(1);
    stage.reject_token("token-1");
    probe_rejects_with(&stage, probe);
    assert_eq!(stage.get(NEW).await, served());
    assert_eq!(tokens_for(&stage, NEW), first_two_tokens());
    assert_eq!(stage.count(Endpoint::Token), 2);
    assert_eq!(stage.count(Endpoint::Probe), 1);
    assert_eq!(stage.get(&valid_key(3)).await, served());
    assert_eq!(stage.count(Endpoint::Token), 2);
}

#[tokio::test]
async fn fault_73_token_revoked_after_a_200_is_renewed() {
    revoked_a_second_after_its_last_200(401).await;
}

#[tokio::test]
async fn fault_74_probe_403_is_like_401() {
    revoked_a_second_after_its_last_200(403).await;
}

#[tokio::test]
async fn fault_74_token_without_scope_is_renewed() {
    let stage = Stage::new().await;
    stage.stub.always(Endpoint::Probe, Answer::status(403));
    for n in 1..=3 {
        assert_eq!(stage.get(&valid_key(n)).await, served());
        stage.jump(1);
        stage.reject_token(&format!("token-{n}"));
    }
    assert_eq!(stage.count(Endpoint::Token), 3);
    assert_eq!(stage.count(Endpoint::Probe), 2);
}

#[tokio::test]
async fn many_rejections_fetch_one_new_token() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.reject_token("token-1");
    stage.jump(130);
    let keys: Vec<_> = (0..40).map(valid_key).collect();
    let gets = keys.iter().map(|key| stage.get(key));
    for got in join_all(gets).await {
        assert_eq!(got, served());
    }
    assert_eq!(stage.count(Endpoint::Token), 2);
}

/// Kinde once issued every other token without scopes, for hours.
#[tokio::test]
async fn token_issued_without_scopes_is_renewed() {
    let stage = Stage::new().await;
    stage.reject_token("token-1");
    stage.reject_token("token-2");
    assert_eq!(stage.get(GOOD).await, misconfigured());
    assert_eq!(stage.count(Endpoint::Token), 2);
    stage.jump(5);
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.count(Endpoint::Token), 3);
}

#[tokio::test]
async fn fault_17_dead_token_endpoint_rejects_no_key() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.reject_token("token-1");
    stage.stub.always(Endpoint::Token, Answer::status(500));
    stage.jump(130);
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.count(Endpoint::Token), 2);
    // The rejected token is not used again although there is no other.
    assert_eq!(stage.count(Endpoint::Verify), 2);
    assert_eq!(stage.get(NEW).await.0, 503);
    assert_eq!(stage.known(GOOD).await, (Verdict::TokenRejected, 1));
}

#[tokio::test]
async fn newer_token_is_tried_before_a_probe() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    // Answered late, after another verification has fetched the next token.
    stage.jump(3_601);
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.count(Endpoint::Token), 2);
    stage.reject_token("token-2");
    let is_replaced = Arc::<AtomicBool>::default();
    stage.stub.on(Endpoint::Verify, move |request| {
        let late = request.token() == Some("token-2") && request.key() == NEW;
        match request.token() {
            Some("token-2") if late => Answer::status(401).once(&is_replaced),
            Some("token-2") => Answer::status(401),
            _ => {
                is_replaced.store(true, Ordering::SeqCst);
                valid_reply()
            }
        }
    });
    stage.jump(130);
    let late = stage.get(NEW);
    let soon = async {
        // The late call is sent before the token is replaced.
        until("the late one", || stage.count(Endpoint::Verify) >= 3).await;
        stage.get("k_live_good_0003").await
    };
    let (late, soon) = tokio::join!(late, soon);
    assert_eq!((late, soon), (served(), served()));
    assert_eq!(stage.count(Endpoint::Probe), 1);
    assert_eq!(stage.count(Endpoint::Token), 3);
}

/// A verification with the old token is in flight while the next token is fetched. The old token is rejected when other calls
/// are sent with the new one, which gets this answer.
async fn with_a_token_replaced_meanwhile<T>(
    stage: &Stage,
    new: Answer,
    verification: impl Future<Output = T>,
) -> T {
    // A call about this key only shows which token is in use.
    const ANOTHER: &str = "k_live_another_01";

    let is_replaced = Arc::<AtomicBool>::default();
    let rejected_late = Answer::status(401).once(&is_replaced);
    let seen = Arc::clone(&is_replaced);
    stage.stub.on(Endpoint::Verify, move |request| {
        let is_new = request.token() != Some("token-1");
        if request.key() == ANOTHER {
            seen.fetch_or(is_new, Ordering::SeqCst);
            Answer::status(500)
        } else if is_new {
            new.clone()
        } else {
            rejected_late.clone()
        }
    });
    let others = async {
        // No other call has the next token fetched.
        until("the fetch", || stage.count(Endpoint::Token) == 2).await;
        while !is_replaced.load(Ordering::SeqCst) {
            assert!(stage.verify(ANOTHER).await.is_err());
        }
    };
    let both = async { tokio::join!(verification, others).0 };
    tokio::time::timeout(HANG, both).await.unwrap()
}

#[tokio::test]
async fn retry_is_answered_under_the_new_token() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.jump(3_100);
    let verified =
        with_a_token_replaced_meanwhile(&stage, valid_reply(), Box::pin(stage.unknown(NEW))).await;
    assert_eq!(verified, (Verdict::Valid, 2));
    assert_eq!(tokens_for(&stage, NEW), first_two_tokens());
    assert_eq!(stage.count(Endpoint::Probe), 0);
}

#[tokio::test]
async fn fault_17_two_rejected_tokens_cost_no_third_one() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.stub.always(Endpoint::Probe, Answer::status(401));
    stage.jump(3_100);
    let answer = Answer::status(401);
    let verified =
        with_a_token_replaced_meanwhile(&stage, answer, Box::pin(stage.unknown(NEW))).await;
    assert_eq!(verified, (Verdict::TokenRejected, 2));
    assert_eq!(tokens_for(&stage, NEW), first_two_tokens());
    // The first 401 needs no probe.
    assert_eq!(stage.count(Endpoint::Probe), 1);
    assert_eq!(stage.count(Endpoint::Token), 2);
}

#[tokio::test]
async fn fault_17_pinned_401_costs_no_third_token() {
    let stage =
        Stage::with(|builder| builder.unauthorized_means(UnauthorizedMeans::AccessToken)).await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.jump(3_100);
    let answer = Answer::status(401);
    let verified =
        with_a_token_replaced_meanwhile(&stage, answer, Box::pin(stage.verify(NEW))).await;
    let error = verified.err().unwrap();
    assert_eq!(error.kind(), VerifyErrorKind::Misconfigured);
    assert_eq!(tokens_for(&stage, NEW), first_two_tokens());
    assert_eq!(stage.count(Endpoint::Token), 2);
}

#[tokio::test]
async fn token_fetched_during_a_probe_is_used() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.jump(130);
    stage.reject_token("token-1");
    // Two are rejected with the old token. The first one's new token comes when the second one has sent its probe, which is
    // answered when the first one has its 200.
    let (is_probing, is_replaced) = (Arc::default(), Arc::<AtomicBool>::default());
    let new = token("token-2", "3600").once(&is_probing);
    stage.stub.always(Endpoint::Token, new);
    let probes = AtomicUsize::new(0);
    let late = Answer::status(401).once(&is_replaced);
    stage.stub.on(Endpoint::Probe, move |_| {
        if probes.fetch_add(1, Ordering::SeqCst) == 0 {
            Answer::status(401)
        } else {
            is_probing.store(true, Ordering::SeqCst);
            late.clone()
        }
    });
    stage.stub.on(Endpoint::Verify, move |request| {
        if request.token() == Some("token-1") {
            Answer::status(401)
        } else {
            is_replaced.store(true, Ordering::SeqCst);
            valid_reply()
        }
    });
    let key = ApiKey::parse(GOOD).unwrap();
    let second = async {
        // Rejected after the first probe was sent, so it needs another probe.
        until("the first probe", || stage.count(Endpoint::Probe) >= 1).await;
        stage.kinde.reverify(&key).await
    };
    let (first, second) = tokio::join!(stage.verify(NEW), second);
    assert!(first.unwrap().is_valid());
    assert!(second.unwrap().is_valid());
    assert_eq!(stage.count(Endpoint::Probe), 2);
    assert_eq!(stage.count(Endpoint::Token), 2);
}

#[tokio::test]
async fn failed_probe_leaves_a_newer_token_to_try() {
    let stage = Stage::new().await;
    assert_eq!(stage.unknown(GOOD).await, (Verdict::Valid, 1));
    stage.reject_token("token-1");
    let is_replaced = Arc::<AtomicBool>::default();
    let fails = Answer::status(500).once(&is_replaced);
    stage.stub.always(Endpoint::Probe, fails);
    let another = async {
        until("the probe", || stage.count(Endpoint::Probe) == 1).await;
        // The token expires, and another verification fetches the next one.
        stage.jump(3_601);
        let said = stage.unknown(GOOD).await;
        is_replaced.store(true, Ordering::SeqCst);
        said
    };
    let (said, another) = tokio::join!(stage.unknown(NEW), another);
    assert_eq!((said, another), ((Verdict::Valid, 2), (Verdict::Valid, 2)));
    assert_eq!(stage.count(Endpoint::Probe), 1);
}
