//! Whose refusal a 401 or 403 is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tower_orgkey::kinde::{KindeVerifierBuilder, UnauthorizedMeans};
use tower_orgkey::{ApiKey, Verifier, VerifyErrorKind};

use super::stage::{BAD, GOOD, Stage, token, yes};
use super::stub::{Answer, Endpoint, HANG, Request, until};

const NEW: &str = "k_live_good_0002";

fn junk(n: usize) -> String {
    format!("k_live_junk_{n:06}")
}

fn served() -> (u16, String) {
    (200, "org_1".into())
}

fn refused() -> (u16, String) {
    (401, "invalid-token".into())
}

fn misconfigured() -> (u16, String) {
    (503, "verifier-misconfigured".into())
}

fn unavailable() -> (u16, String) {
    (503, "verifier-unavailable".into())
}

fn token_number(n: usize) -> String {
    format!("token-{n}")
}

/// Every token that was or will be issued is refused at verify and at the probe, with these statuses.
fn refuse_all_tokens(stage: &Stage, verify: u16, probe: u16) {
    stage
        .stub
        .always(Endpoint::Verify, Answer::status(verify))
        .always(Endpoint::Probe, Answer::status(probe));
}

#[tokio::test]
async fn fault_17_a_refused_token_is_503_for_strangers_and_nothing_for_known_keys() {
    for (verify, probe) in [(401, 401), (401, 403), (403, 401)] {
        let stage = Stage::new().await;
        assert_eq!(stage.get(GOOD).await, served());
        refuse_all_tokens(&stage, verify, probe);
        assert_eq!(stage.get(NEW).await, misconfigured());
        assert_eq!(stage.count(Endpoint::Probe), 1);
        // Verify has just accepted that token, so no other is fetched.
        assert_eq!(stage.count(Endpoint::Token), 1);
        stage.jump(130);
        assert_eq!(stage.get(GOOD).await, served());
        assert_eq!(stage.get(NEW).await, misconfigured());
        // Verify had not accepted it for a minute: one new token, then none for 5 s, then ever fewer.
        assert_eq!(stage.count(Endpoint::Token), 2);
        let mut fetched = 2;
        for wait in [5, 10, 20, 40, 80] {
            stage.jump(wait - 1);
            assert_eq!(stage.get(NEW).await, misconfigured());
            assert_eq!(stage.count(Endpoint::Token), fetched, "{wait}");
            stage.jump(1);
            assert_eq!(stage.get(NEW).await, misconfigured());
            fetched += 1;
            assert_eq!(stage.count(Endpoint::Token), fetched, "{wait}");
            assert_eq!(stage.get(GOOD).await, served());
        }
    }
}

#[tokio::test]
async fn fault_18_scope_missing_is_as_a_refused_token() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    refuse_all_tokens(&stage, 403, 403);
    assert_eq!(stage.get(NEW).await, misconfigured());
    assert_eq!(stage.count(Endpoint::Token), 1);
    stage.jump(130);
    assert_eq!(stage.get(GOOD).await, served());
    for n in 0..10 {
        assert_eq!(stage.get(&junk(n)).await, misconfigured());
    }
    assert_eq!(stage.count(Endpoint::Token), 2);
}

#[tokio::test]
async fn fault_17b_a_bad_key_is_refused_on_a_probe_that_accepts_our_token() {
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
        assert_eq!(stage.get(BAD).await, refused());
        assert_eq!(stage.get(GOOD).await, served());
        stage.jump(1_000);
        assert_eq!(stage.get(BAD).await, refused());
        assert_eq!(stage.count(Endpoint::Probe), 2);
        let probe = stage.stub.requests(Endpoint::Probe).remove(0);
        assert_eq!(probe.token(), Some("token-1"));
        assert_eq!(stage.count(Endpoint::Token), 1);
        assert_eq!(stage.get(GOOD).await, served());
    }
}

#[tokio::test]
async fn fault_17b_a_flood_of_junk_costs_a_probe_in_five_seconds_and_no_token() {
    let stage = Stage::new().await;
    for second in 0..20 {
        for n in 0..5 {
            let key = junk(second * 5 + n);
            assert!(!stage.verify(&key).await.unwrap().is_valid());
        }
        stage.jump(1);
    }
    assert_eq!(stage.count(Endpoint::Verify), 100);
    let probes = stage.count(Endpoint::Probe) as u64;
    let most = stage.clock.elapsed().as_secs() / 5 + 1;
    assert!((3..=most).contains(&probes), "{probes}");
    assert_eq!(stage.count(Endpoint::Token), 1);
}

#[tokio::test]
async fn junk_that_comes_at_once_shares_one_probe() {
    let stage = Stage::new().await;
    let probe = Answer::json(200, "{}").after(Duration::from_millis(200));
    stage.stub.always(Endpoint::Probe, probe);
    let keys: Vec<_> = (0..50).map(junk).collect();
    let verifications = keys.iter().map(|key| stage.verify(key));
    for verified in futures_util::future::join_all(verifications).await {
        assert!(!verified.unwrap().is_valid());
    }
    assert_eq!(stage.count(Endpoint::Verify), 50);
    assert_eq!(stage.count(Endpoint::Probe), 1);
}

#[tokio::test]
async fn a_probe_outlives_the_verification_that_sent_it() {
    let stage = Stage::new().await;
    let probe = Answer::json(200, "{}").after(Duration::from_millis(300));
    stage.stub.always(Endpoint::Probe, probe);
    let dropped = tokio::time::timeout(Duration::from_millis(100), stage.verify(BAD)).await;
    assert!(dropped.is_err(), "the probe was meant to take longer");
    assert!(!stage.verify(BAD).await.unwrap().is_valid());
    assert_eq!(stage.count(Endpoint::Probe), 1);
}

#[tokio::test]
async fn a_known_key_is_given_up_only_on_a_probe_sent_after_its_refusal() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.jump(130);
    // A proof that is a moment old, enough for strangers.
    assert_eq!(stage.get(BAD).await, refused());
    assert_eq!(stage.get(&junk(1)).await, refused());
    assert_eq!(stage.count(Endpoint::Probe), 1);
    stage.stub.always(Endpoint::Verify, Answer::status(401));
    stage.stub.always(Endpoint::Probe, Answer::status(500));
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.count(Endpoint::Probe), 2);
    stage.stub.always(Endpoint::Probe, Answer::json(200, "{}"));
    stage.jump(130);
    assert_eq!(stage.get(GOOD).await, refused());
    assert_eq!(stage.count(Endpoint::Probe), 3);
}

#[tokio::test]
async fn known_keys_refused_together_share_the_probe_that_comes_after_them_all() {
    let stage = Stage::new().await;
    let keys: Vec<_> = (0..20).map(|n| format!("k_live_good_{n:04}")).collect();
    for key in &keys {
        assert_eq!(stage.get(key).await, served());
    }
    stage.jump(130);
    stage.stub.always(Endpoint::Verify, Answer::status(401));
    let slow = Answer::json(200, "{}").after(Duration::from_millis(300));
    stage.stub.always(Endpoint::Probe, slow);
    let gets = keys.iter().map(|key| stage.get(key));
    for got in futures_util::future::join_all(gets).await {
        assert_eq!(got, refused());
    }
    // One for the first refusal, and one for those that came in while it was under way.
    let probes = stage.count(Endpoint::Probe);
    assert!((1..=3).contains(&probes), "{probes}");
}

#[tokio::test]
async fn fault_17c_a_token_revoked_early_is_replaced_and_no_key_suffers() {
    for probe in [401, 403] {
        let stage = Stage::new().await;
        assert_eq!(stage.get(GOOD).await, served());
        stage.kill_token("token-1");
        let dead = stage.dead_tokens.clone();
        stage.stub.on(Endpoint::Probe, move |request| {
            if dead.lock().unwrap().contains(request.token().unwrap()) {
                Answer::status(probe)
            } else {
                Answer::json(200, "{}")
            }
        });
        // While verify's last yes to it is young, it is not replaced; a good key is not refused for that.
        assert_eq!(stage.get(NEW).await, misconfigured());
        stage.jump(61);
        assert_eq!(stage.get(NEW).await, served());
        assert_eq!(stage.get(GOOD).await, served());
        assert_eq!(stage.count(Endpoint::Token), 2);
        let last = stage.stub.requests(Endpoint::Verify).pop().unwrap();
        assert_eq!(last.token(), Some("token-2"));
        // And so again: what was learnt of the first token is not held against the second.
        stage.jump(130);
        stage.kill_token("token-2");
        assert_eq!(stage.get(GOOD).await, served());
        assert_eq!(stage.count(Endpoint::Token), 3);
        assert_eq!(stage.get(BAD).await, refused());
    }
}

#[tokio::test]
async fn many_refusals_of_one_token_fetch_one_new_one() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.kill_token("token-1");
    stage.jump(130);
    let keys: Vec<_> = (0..40).map(|n| format!("k_live_good_{n:04}")).collect();
    let gets = keys.iter().map(|key| stage.get(key));
    for got in futures_util::future::join_all(gets).await {
        assert_eq!(got, served());
    }
    assert_eq!(stage.count(Endpoint::Token), 2);
}

/// Kinde once issued tokens without scopes for hours, every other time.
#[tokio::test]
async fn a_token_that_was_born_without_its_scopes_is_replaced() {
    let stage = Stage::new().await;
    stage.kill_token("token-1");
    stage.kill_token("token-2");
    assert_eq!(stage.get(GOOD).await, misconfigured());
    assert_eq!(stage.count(Endpoint::Token), 2);
    stage.jump(5);
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.count(Endpoint::Token), 3);
}

#[tokio::test]
async fn fault_17_a_dead_token_and_a_dead_token_endpoint_refuse_nobody() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.kill_token("token-1");
    stage.stub.always(Endpoint::Token, Answer::status(500));
    stage.jump(130);
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.count(Endpoint::Token), 2);
    // The token that was refused is not presented once more for want of another.
    assert_eq!(stage.count(Endpoint::Verify), 2);
    assert_eq!(stage.get(NEW).await.0, 503);
}

#[tokio::test]
async fn a_probe_that_fails_proves_nothing() {
    for (probe, seen) in [
        (Answer::status(500), unavailable()),
        (Answer::status(404), unavailable()),
        (Answer::status(302), unavailable()),
        (Answer::status(429), unavailable()),
        (Answer::Bytes(Vec::new()), unavailable()),
    ] {
        let stage = Stage::new().await;
        assert_eq!(stage.get(GOOD).await, served());
        stage.stub.always(Endpoint::Probe, probe);
        assert_eq!(stage.get(BAD).await, seen);
        assert_eq!(stage.count(Endpoint::Probe), 1);
        assert_eq!(stage.count(Endpoint::Token), 1);
    }
    let stage = Stage::new().await;
    let throttled = Answer::status(429).with("RateLimit-Reset", "30");
    stage.stub.always(Endpoint::Probe, throttled);
    let error = stage.verify(BAD).await.err().unwrap();
    let retry_after = Some(Duration::from_secs(30));
    assert_eq!(error.kind(), VerifyErrorKind::Throttled { retry_after });
}

#[tokio::test]
async fn the_probes_body_is_not_read() {
    let stage = Stage::new().await;
    stage.stub.always(Endpoint::Probe, Answer::Endless);
    assert_eq!(stage.get(BAD).await, refused());
    assert!(stage.stub.poured() > 0, "no body was sent");
}

/// A stage where the application lacks the scope for the probe, and verify needs none; that is known there.
async fn without_scope() -> Stage {
    let stage = Stage::new().await;
    stage.stub.always(Endpoint::Probe, Answer::status(403));
    assert_eq!(stage.get(GOOD).await, served());
    // Until verify has accepted the token after the probe, it might as well have been revoked.
    assert_eq!(stage.get(BAD).await, misconfigured());
    assert_eq!(stage.count(Endpoint::Probe), 1);
    assert_eq!(stage.get(NEW).await, served());
    stage
}

#[tokio::test]
async fn fault_56_without_the_probes_scope_bad_keys_are_refused_and_cost_no_token() {
    let stage = without_scope().await;
    assert_eq!(stage.get(BAD).await, refused());
    for n in 0..10 {
        assert_eq!(stage.get(&junk(n)).await, refused());
        stage.jump(80);
    }
    // Nothing is probed for 15 minutes.
    assert_eq!(stage.count(Endpoint::Probe), 1);
    stage.jump(110);
    assert_eq!(stage.get("k_live_good_0003").await, served());
    assert_eq!(stage.get(&junk(11)).await, refused());
    assert_eq!(stage.count(Endpoint::Probe), 2);
    assert_eq!(stage.get(&junk(12)).await, refused());
    assert_eq!(stage.count(Endpoint::Probe), 2);
    assert_eq!(stage.count(Endpoint::Token), 1);
}

#[tokio::test]
async fn fault_56_only_a_yes_to_a_later_call_shows_that_the_scope_is_missing() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
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
        until("the late one", || stage.count(Endpoint::Verify) >= 2).await;
        let answered = stage.get(BAD).await;
        is_probed.store(true, Ordering::SeqCst);
        answered
    };
    let (late, soon) = tokio::join!(stage.get(NEW), soon);
    assert_eq!((late, soon), (served(), misconfigured()));
    assert_eq!(stage.count(Endpoint::Probe), 1);
    assert_eq!(stage.get(BAD).await, misconfigured());
}

#[tokio::test]
async fn fault_56_a_refusal_of_a_token_that_was_replaced_meanwhile_is_not_the_keys() {
    let stage = without_scope().await;
    stage.jump(2_600);
    assert_eq!(stage.get("k_live_good_0003").await, served());
    assert_eq!(stage.get(BAD).await, refused());
    // From here on for 15 minutes nothing is probed, and a refusal is read as the key's. This is the time for a new token.
    stage.jump(500);
    let key = "k_live_good_0004";
    let verified = with_a_token_that_is_replaced_meanwhile(&stage, yes(), stage.get(key)).await;
    assert_eq!(verified, served());
    let tokens = [Some(token_number(1)), Some(token_number(2))];
    assert_eq!(tokens_for(&stage, key), tokens);
}

#[tokio::test]
async fn fault_56_a_known_key_is_given_up_when_verify_has_accepted_another() {
    let stage = without_scope().await;
    stage.stub.on(Endpoint::Verify, |request| {
        if request.key() == GOOD {
            Answer::status(401)
        } else {
            yes()
        }
    });
    stage.jump(100);
    assert_eq!(stage.get("k_live_good_0003").await, served());
    stage.jump(5);
    // Stale by now, so it is refreshed behind the request.
    assert_eq!(stage.get(GOOD).await, served());
    stage.jump(20);
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.get("k_live_good_0004").await, served());
    assert_eq!(stage.get(GOOD).await, refused());
    assert_eq!(stage.count(Endpoint::Token), 1);
}

#[tokio::test]
async fn fault_56_a_token_revoked_where_the_scope_is_missing_is_replaced_too() {
    let stage = without_scope().await;
    stage.kill_token("token-1");
    stage.jump(130);
    // A known key that is refused while verify has accepted nothing for a minute is the sign.
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.count(Endpoint::Token), 2);
    assert_eq!(stage.get("k_live_good_0003").await, served());
}

#[tokio::test]
async fn fault_56_with_nothing_but_junk_another_token_is_tried_once_in_fifteen_minutes() {
    let stage = without_scope().await;
    for n in 0..100 {
        stage.jump(60);
        assert_eq!(stage.get(&junk(n)).await, refused(), "{n}");
    }
    let fetched = stage.count(Endpoint::Token);
    // The hundred minutes are longer than a token's life of 60.
    assert!((2..=10).contains(&fetched), "{fetched}");
    assert!(stage.count(Endpoint::Probe) <= 2 * 7 + 1);
}

#[tokio::test]
async fn the_scope_is_noticed_when_it_is_granted() {
    let stage = without_scope().await;
    stage.stub.always(Endpoint::Probe, Answer::json(200, "{}"));
    stage.jump(15 * 60 + 1);
    assert_eq!(stage.get(BAD).await, refused());
    assert_eq!(stage.count(Endpoint::Probe), 2);
    stage.jump(6);
    assert_eq!(stage.get(&junk(1)).await, refused());
    assert_eq!(stage.count(Endpoint::Probe), 3);
}

#[tokio::test]
async fn without_credentials_a_refusal_is_the_keys_once_verify_has_answered() {
    let stage = Stage::with(KindeVerifierBuilder::without_credentials).await;
    assert_eq!(stage.get(BAD).await, misconfigured());
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.get(BAD).await, refused());
    // A known key takes a later yes of verify's.
    stage.stub.on(Endpoint::Verify, |request| {
        if request.key() == GOOD {
            Answer::status(401)
        } else {
            yes()
        }
    });
    stage.jump(130);
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.get(NEW).await, served());
    assert_eq!(stage.get(GOOD).await, refused());
    assert_eq!(stage.count(Endpoint::Probe), 0);
    assert_eq!(stage.count(Endpoint::Token), 0);
}

#[tokio::test]
async fn without_credentials_a_refusal_of_all_gives_no_known_key_up() {
    let stage = Stage::with(KindeVerifierBuilder::without_credentials).await;
    let keys: Vec<_> = (0..5).map(|n| format!("k_live_good_{n:04}")).collect();
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
async fn a_static_token_is_probed_and_cannot_be_renewed() {
    let stage = Stage::with(|builder| builder.bearer_token("static")).await;
    assert_eq!(stage.get(BAD).await, refused());
    assert_eq!(stage.get(GOOD).await, served());
    stage.kill_token("static");
    stage.jump(130);
    assert_eq!(stage.get(NEW).await, misconfigured());
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.count(Endpoint::Token), 0);
}

#[tokio::test]
async fn a_refusal_can_be_pinned_to_the_key() {
    let stage = Stage::with(|builder| builder.unauthorized_means(UnauthorizedMeans::TheKey)).await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.stub.always(Endpoint::Verify, Answer::status(403));
    stage.jump(130);
    assert_eq!(stage.get(BAD).await, refused());
    assert_eq!(stage.get(GOOD).await, refused());
    assert_eq!(stage.count(Endpoint::Probe), 0);
    assert_eq!(stage.count(Endpoint::Token), 1);
}

#[tokio::test]
async fn a_refusal_can_be_pinned_to_our_token() {
    let stage =
        Stage::with(|builder| builder.unauthorized_means(UnauthorizedMeans::OurToken)).await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.jump(130);
    for n in 0..5 {
        assert_eq!(stage.get(&junk(n)).await, misconfigured());
    }
    assert_eq!(stage.count(Endpoint::Probe), 0);
    assert_eq!(stage.count(Endpoint::Token), 2);
    assert_eq!(stage.get(NEW).await, served());
    let last = stage.stub.requests(Endpoint::Verify).pop().unwrap();
    assert_eq!(last.token(), Some(&*token_number(2)));
}

#[tokio::test]
async fn a_refusal_of_a_token_that_was_replaced_meanwhile_is_asked_again_with_the_new_one() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    // Refused late: by then another verification has brought the next token in.
    stage.jump(3_601);
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.count(Endpoint::Token), 2);
    stage.kill_token("token-2");
    let is_replaced = Arc::<AtomicBool>::default();
    stage.stub.on(Endpoint::Verify, move |request| {
        let late = request.token() == Some("token-2") && request.key() == NEW;
        match request.token() {
            Some("token-2") if late => Answer::status(401).once(&is_replaced),
            Some("token-2") => Answer::status(401),
            _ => {
                is_replaced.store(true, Ordering::SeqCst);
                yes()
            }
        }
    });
    stage.jump(130);
    let late = stage.get(NEW);
    let soon = async {
        // The late one is on its way before the token is replaced.
        until("the late one", || stage.count(Endpoint::Verify) >= 3).await;
        stage.get("k_live_good_0003").await
    };
    let (late, soon) = tokio::join!(late, soon);
    assert_eq!((late, soon), (served(), served()));
    assert_eq!(stage.count(Endpoint::Probe), 1);
    assert_eq!(stage.count(Endpoint::Token), 3);
}

/// At the time for a new token a verification sets out with the old one, and has the next one fetched meanwhile.
/// The old one is refused when other calls go out with the new one, which is answered so.
async fn with_a_token_that_is_replaced_meanwhile<T>(
    stage: &Stage,
    new: Answer,
    verification: impl Future<Output = T>,
) -> T {
    // A call about this key shows which token is in use, and no more than that: it gets an answer about neither.
    const ANOTHER: &str = "k_live_another_01";

    let is_replaced = Arc::<AtomicBool>::default();
    let refused_late = Answer::status(401).once(&is_replaced);
    let seen = Arc::clone(&is_replaced);
    stage.stub.on(Endpoint::Verify, move |request| {
        let is_new = request.token() != Some("token-1");
        if request.key() == ANOTHER {
            seen.fetch_or(is_new, Ordering::SeqCst);
            Answer::status(500)
        } else if is_new {
            new.clone()
        } else {
            refused_late.clone()
        }
    });
    let others = async {
        // Nobody but the verification has the next token fetched.
        until("the fetch", || stage.count(Endpoint::Token) == 2).await;
        while !is_replaced.load(Ordering::SeqCst) {
            assert!(stage.verify(ANOTHER).await.is_err());
        }
    };
    let both = async { tokio::join!(verification, others).0 };
    tokio::time::timeout(HANG, both).await.unwrap()
}

/// The tokens that this key was verified with.
fn tokens_for(stage: &Stage, key: &str) -> Vec<Option<String>> {
    let mut calls = stage.stub.requests(Endpoint::Verify);
    calls.retain(|call| call.key() == key);
    let token = |call: &Request| call.token().map(str::to_owned);
    calls.iter().map(token).collect()
}

#[tokio::test]
async fn fault_17_two_refused_tokens_cost_a_verification_no_third_one() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.stub.always(Endpoint::Probe, Answer::status(401));
    stage.jump(3_100);
    let refused = Answer::status(401);
    let verified =
        with_a_token_that_is_replaced_meanwhile(&stage, refused, stage.verify(NEW)).await;
    let error = verified.err().unwrap();
    assert_eq!(error.kind(), VerifyErrorKind::Misconfigured);
    let tokens = [Some(token_number(1)), Some(token_number(2))];
    assert_eq!(tokens_for(&stage, NEW), tokens);
    // The first refusal is no matter for a probe.
    assert_eq!(stage.count(Endpoint::Probe), 1);
    assert_eq!(stage.count(Endpoint::Token), 2);
}

#[tokio::test]
async fn fault_56_a_key_refused_with_two_tokens_is_refused_though_the_next_probe_is_due() {
    let stage = without_scope().await;
    let (earlier, probes) = (tokens_for(&stage, BAD).len(), stage.count(Endpoint::Probe));
    stage.jump(3_100);
    let answer = Answer::status(401);
    let answered = with_a_token_that_is_replaced_meanwhile(&stage, answer, stage.get(BAD)).await;
    assert_eq!(answered, refused());
    let tokens = [Some(token_number(1)), Some(token_number(2))];
    assert_eq!(tokens_for(&stage, BAD)[earlier..], tokens);
    // The first refusal is no matter for a probe.
    let probes = stage.stub.requests(Endpoint::Probe).split_off(probes);
    let with: Vec<_> = probes.iter().map(Request::token).collect();
    assert_eq!(with, [Some("token-2")]);
    assert_eq!(stage.count(Endpoint::Token), 2);
}

#[tokio::test]
async fn a_refusal_settled_after_another_has_brought_a_new_token_in_takes_that_one() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.jump(130);
    stage.kill_token("token-1");
    // Two are refused with the old token. The first one's new token comes when the second one has sent its probe, and that
    // is answered when the first one has its yes.
    let (is_probing, is_replaced) = (Arc::default(), Arc::<AtomicBool>::default());
    let new = token(&token_number(2), "3600").once(&is_probing);
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
            yes()
        }
    });
    let key = ApiKey::parse(GOOD).unwrap();
    let second = async {
        // Refused after the first probe was sent, so that, of a key that is known, it takes a probe of its own.
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
async fn a_doubted_key_is_not_given_up_on_anothers_401() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, served());
    stage.stub.on(Endpoint::Verify, |request| {
        Answer::status(if request.key() == GOOD { 400 } else { 401 })
    });
    stage.jump(130);
    assert_eq!(stage.get(GOOD).await, served());
    // Begun after the doubt, and refused by a 401 and a probe: verify has still not answered 200.
    assert_eq!(stage.get(BAD).await, refused());
    assert_eq!(stage.get(GOOD).await, served());
}
