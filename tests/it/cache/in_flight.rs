//! In-flight lookups: one verification per key at a time.

use std::sync::Arc;

use futures_util::FutureExt;
use tower::{Service, ServiceExt};
use tower_orgkey::{ApiKey, ApiKeyHandle, ApiKeyLayer, KeyId, OrgCode};

use super::{
    BAD, Duration, MINUTE, MS, NEW, ONE, SECOND, TWO, builder, layer, rejected, settle, unavailable,
};
use crate::support::issuer::PanicsAtOnce;
use crate::support::service::{Api, Outcome, allowed, api, outcome, request};
use crate::support::{Answer, Issuer, org};

fn start(api: &Api, key: &'static str) -> tokio::task::JoinHandle<Outcome> {
    let api = api.clone();
    tokio::spawn(async move { outcome(&api, key).await })
}

#[tokio::test(start_paused = true)]
async fn fault_35_first_uses_of_a_key_share_one_call() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    issuer.latency(200 * MS);
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    let waiting: Vec<_> = (0..10_000).map(|_| start(&api, ONE)).collect();
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), allowed("org_one"));
    }
    assert_eq!((issuer.calls(), issuer.finished()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn fault_35_late_waiters_take_a_completed_result() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let (layer, _) = layer(issuer.clone());
    let mut service = api(&layer);
    for (n, key, expected) in [(1, ONE, allowed("org_one")), (2, BAD, rejected())] {
        let late = Service::call(&mut service, request(key));
        assert_eq!(outcome(&service, key).await, expected);
        assert_eq!(issuer.calls(), n);
        // This request read the cache before the result was cached.
        assert_eq!(Outcome::of(&late.await.unwrap()), expected);
        assert_eq!(issuer.calls(), n);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fault_35_four_threads_share_one_call() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let gate = issuer.hold();
    let api = api(&ApiKeyLayer::new(issuer.clone()));
    let waiting: Vec<_> = (0..10_000).map(|_| start(&api, ONE)).collect();
    // A second call would wait for a permit forever.
    gate.add_permits(1);
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), allowed("org_one"));
    }
    assert_eq!((issuer.calls(), issuer.max_in_flight()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn fault_35_first_uses_of_a_bad_key_share_one_call() {
    let issuer = Issuer::new();
    issuer.latency(200 * MS);
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    let waiting: Vec<_> = (0..10_000).map(|_| start(&api, BAD)).collect();
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), rejected());
    }
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn fault_36_dropped_leader_does_not_fail_waiters() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    issuer.latency(200 * MS);
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    let mut first = Box::pin(api.clone().oneshot(request(ONE)));
    assert!(first.as_mut().now_or_never().is_none());
    settle().await;
    let others: Vec<_> = (0..10_000).map(|_| start(&api, ONE)).collect();
    settle().await;
    assert_eq!(issuer.in_flight(), 1);
    drop(first);
    tokio::time::advance(100 * MS).await;
    let late = start(&api, ONE);
    for waiting in others.into_iter().chain([late]) {
        assert_eq!(waiting.await.unwrap(), allowed("org_one"));
    }
    assert_eq!(
        (issuer.calls(), issuer.finished(), issuer.dropped()),
        (1, 1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn fault_36_a_result_without_waiters_is_cached() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    issuer.latency(200 * MS);
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    let first = api.clone().oneshot(request(ONE));
    assert!(first.now_or_never().is_none());
    tokio::time::sleep(300 * MS).await;
    assert_eq!(
        api.clone()
            .oneshot(request(ONE))
            .now_or_never()
            .map(|r| Outcome::of(&r.unwrap())),
        Some(allowed("org_one"))
    );
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn impatient_callers_make_one_call() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    issuer.latency(150 * MS);
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    let mut given_up = 0;
    for n in 0..40 {
        let call = tokio::time::timeout(100 * MS, outcome(&api, ONE));
        match call.await {
            Err(_) => given_up += 1,
            Ok(found) => assert_eq!(found, allowed("org_one"), "{n}"),
        }
    }
    assert_eq!(given_up, 1);
    assert_eq!((issuer.calls(), issuer.finished()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn fault_37_a_panicking_verifier_is_503_for_waiters() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[])), (TWO, org("org_two", &[]))]);
    let (layer, clock) = layer(PanicsAtOnce(issuer.clone()));
    let api = api(&layer);
    assert_eq!(outcome(&api, TWO).await, allowed("org_two"));
    for say in [Answer::Panic, Answer::PanicAtOnce] {
        let before = (issuer.calls(), issuer.panicked());
        issuer.fail(say.clone());
        let waiting: Vec<_> = (0..100).map(|_| start(&api, ONE)).collect();
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap(), unavailable());
        }
        assert_eq!(issuer.panicked(), before.1 + 1);
        assert_eq!(issuer.calls(), before.0 + 1);
        // Known keys are not affected.
        assert_eq!(outcome(&api, TWO).await, allowed("org_two"));
        // Not even when their refresh panics.
        clock.jump(70 * SECOND);
        assert_eq!(outcome(&api, TWO).await, allowed("org_two"));
        settle().await;
        assert_eq!(issuer.panicked(), before.1 + 2);
        assert_eq!(outcome(&api, TWO).await, allowed("org_two"));
        issuer.recover();
        clock.jump(6 * SECOND);
        assert_eq!(outcome(&api, ONE).await, allowed("org_one"), "{say:?}");
        issuer.set(NEW, Answer::Invalid);
        assert_eq!(outcome(&api, NEW).await, rejected());
        // The next round begins with an unknown key.
        clock.jump(20 * MINUTE);
        assert_eq!(outcome(&api, TWO).await, allowed("org_two"));
    }
}

#[tokio::test(start_paused = true)]
async fn fault_51_dropped_callers_leave_no_tasks() {
    let issuer = Issuer::new();
    issuer.fail(Answer::Silence);
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    let holders = issuer.holders();
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    let mut most = 0;
    for n in 0..20_000_u32 {
        // Most callers join a lookup of another caller.
        let key = format!("k_test_{:08}", n % 100);
        let mut request = Box::pin(api.clone().oneshot(request(&key)));
        assert!(request.as_mut().now_or_never().is_none() || n > 4);
        drop(request);
        if n % 1_000 == 0 {
            settle().await;
        }
        most = most.max(tasks());
    }
    assert!(issuer.calls() > 0, "nothing was injected");
    assert!(most <= before + 110, "{most} tasks for 100 keys");
    // Past the deadline of every lookup.
    tokio::time::sleep(11 * SECOND).await;
    settle().await;
    assert_eq!(issuer.in_flight(), 0);
    assert_eq!(issuer.holders(), holders);
    assert_eq!(tasks(), before);
    // No lookup is left to join.
    issuer.recover();
    issuer.set("k_test_00000000", org("org_one", &[]));
    tokio::time::sleep(2 * MINUTE).await;
    assert_eq!(outcome(&api, "k_test_00000000").await, allowed("org_one"));
}

#[tokio::test(start_paused = true)]
async fn a_silent_issuer_is_503_at_the_deadline() {
    let issuer = Issuer::new();
    issuer.fail(Answer::Silence);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, unavailable());
    assert!(clock.elapsed() <= 2_500 * MS, "{:?}", clock.elapsed());
    assert!(issuer.calls() >= 1);
    issuer.recover();
    issuer.set(ONE, org("org_one", &[]));
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_slower_than_the_soft_ttl_is_served() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    issuer.latency(3 * SECOND);
    let (builder, clock) = builder(issuer.clone());
    let layer = builder
        .soft_ttl(SECOND)
        .attempt_deadline(5 * SECOND)
        .caller_deadline(8 * SECOND)
        .build()
        .unwrap();
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    assert_eq!(issuer.calls(), 1);
    assert_eq!(clock.elapsed(), 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn fault_20b_an_answer_from_before_a_sleep_is_old() {
    // Past the hard TTL, and past twice the soft TTL, when the issuer answers.
    for slept in [60 * MINUTE, 5 * MINUTE] {
        let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
        let gate = issuer.hold();
        let (layer, clock) = layer(issuer.clone());
        let api = api(&layer);
        let waiting = start(&api, ONE);
        settle().await;
        assert_eq!(issuer.in_flight(), 1);
        clock.jump(slept);
        issuer.set(ONE, Answer::Invalid);
        gate.add_permits(2);
        // The result of the first call is from before the sleep.
        assert_eq!(waiting.await.unwrap(), rejected(), "{slept:?}");
        assert_eq!(issuer.calls(), 2, "{slept:?}");
    }
}

type Update = fn(&ApiKeyHandle);

/// Returns the outcome of a request whose lookup has completed, if this update is made before the request takes the result.
async fn updated_before_it_is_taken(issuer: &Issuer, update: Update) -> Outcome {
    let (layer, _) = layer(issuer.clone());
    let mut waiting = Box::pin(api(&layer).oneshot(request(ONE)));
    assert!(waiting.as_mut().now_or_never().is_none());
    // The lookup's task runs, and the request is not polled.
    tokio::time::sleep(SECOND).await;
    assert!(issuer.calls() > 0 && issuer.in_flight() == 0);
    issuer.recover();
    update(&layer.handle());
    Outcome::of(&waiting.await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn fault_27_an_update_applies_to_completed_lookups() {
    let invalidations: [Update; 7] = [
        |handle| handle.invalidate_key(&ApiKey::parse(ONE).unwrap()),
        |handle| handle.invalidate_key_id(&KeyId::from_static("id_of_org_one")),
        |handle| handle.invalidate_org(&OrgCode::from_static("org_one")),
        ApiKeyHandle::invalidate_all,
        // Results from before a block are not served after it.
        |handle| {
            let key = ApiKey::parse(ONE).unwrap();
            handle.block_key(&key).unwrap();
            assert!(handle.unblock_key(&key));
        },
        |handle| {
            let id = KeyId::from_static("id_of_org_one");
            handle.block_key_id(&id).unwrap();
            assert!(handle.unblock_key_id(&id));
        },
        |handle| {
            let org = OrgCode::from_static("org_one");
            handle.block_org(&org).unwrap();
            assert!(handle.unblock_org(&org));
        },
    ];
    for (n, invalidation) in invalidations.into_iter().enumerate() {
        let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
        issuer.fail(org("org_one", &["from before"]));
        let outcome = updated_before_it_is_taken(&issuer, invalidation).await;
        assert_eq!(outcome, allowed("org_one"), "{n}");
        assert_eq!(issuer.calls(), 2, "{n}: a call from after the update");
    }
    let blocks: [Update; 3] = [
        |handle| handle.block_key(&ApiKey::parse(ONE).unwrap()).unwrap(),
        |handle| {
            let id = KeyId::from_static("id_of_org_one");
            handle.block_key_id(&id).unwrap();
        },
        |handle| {
            let org = OrgCode::from_static("org_one");
            handle.block_org(&org).unwrap();
        },
    ];
    for (n, block) in blocks.into_iter().enumerate() {
        let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
        let outcome = updated_before_it_is_taken(&issuer, block).await;
        assert_eq!(outcome, rejected(), "{n}");
        assert_eq!(issuer.calls(), 1, "{n}");
    }
    // `invalidate_all` applies to invalid answers too.
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    issuer.fail(Answer::Invalid);
    let outcome = updated_before_it_is_taken(&issuer, ApiKeyHandle::invalidate_all).await;
    assert_eq!(outcome, allowed("org_one"));
    // A block takes precedence over a failed verification.
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    issuer.fail(Answer::Panic);
    let outcome = updated_before_it_is_taken(&issuer, blocks[0]).await;
    assert_eq!(outcome, rejected());
}

#[tokio::test(start_paused = true)]
async fn different_keys_do_not_wait_for_each_other() {
    let issuer = Issuer::knowing([(ONE, Answer::Silence), (TWO, org("org_two", &[]))]);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    let waiting = start(&api, ONE);
    settle().await;
    assert_eq!(outcome(&api, TWO).await, allowed("org_two"));
    assert_eq!(clock.elapsed(), Duration::ZERO);
    assert_eq!(waiting.await.unwrap(), unavailable());
}

#[tokio::test(start_paused = true)]
async fn the_peer_is_computed_for_lookups_only() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (builder, _) = builder(issuer.clone());
    let count = Arc::clone(&asked);
    let layer: ApiKeyLayer = builder
        .peer(move |_| Some(count.fetch_add(1, std::sync::atomic::Ordering::SeqCst)))
        .build()
        .unwrap();
    let api = api(&layer);
    for _ in 0..3 {
        assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
        assert_eq!(outcome(&api, BAD).await, rejected());
        let _malformed = outcome(&api, "short").await;
    }
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn max_age_joins_no_call_that_was_sent_earlier() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let (layer, clock) = layer(issuer.clone());
    let recent = api(&layer.clone().max_age(Duration::ZERO));
    let usual = api(&layer);
    assert_eq!(outcome(&usual, ONE).await, allowed("org_one"));
    for calls in 2..5 {
        tokio::time::advance(SECOND).await;
        assert_eq!(outcome(&recent, ONE).await, allowed("org_one"));
        assert_eq!(issuer.calls(), calls);
    }
    // The key is revoked while a call is in flight, and then a request requires a later call.
    clock.jump(MS);
    let gate = issuer.hold();
    let early = start(&recent, ONE);
    settle().await;
    assert_eq!(issuer.in_flight(), 1);
    clock.jump(MS);
    issuer.set(ONE, Answer::Invalid);
    let late = start(&recent, ONE);
    settle().await;
    assert_eq!(issuer.in_flight(), 2);
    gate.add_permits(2);
    assert_eq!(late.await.unwrap(), rejected());
    early.await.unwrap();
    assert_eq!(outcome(&usual, ONE).await, rejected());
}

#[tokio::test(start_paused = true)]
async fn of_two_simultaneous_calls_invalid_wins() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let gate = issuer.hold();
    let (layer, _) = layer(issuer.clone());
    let usual = api(&layer);
    let recent = api(&layer.clone().max_age(Duration::ZERO));
    tokio::time::advance(SECOND).await;
    let first = start(&recent, ONE);
    settle().await;
    issuer.set(ONE, Answer::Invalid);
    // The first call was not sent after this request, so this one starts another call.
    let second = start(&recent, ONE);
    settle().await;
    assert_eq!(issuer.in_flight(), 2);
    // The valid answer arrives first.
    gate.add_permits(1);
    settle().await;
    assert_eq!(issuer.finished(), 1);
    assert_eq!(first.await.unwrap(), allowed("org_one"));
    gate.add_permits(1);
    assert_eq!(second.await.unwrap(), rejected());
    assert_eq!(outcome(&usual, ONE).await, rejected());
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_older_invalid_answer_removes_nothing() {
    let issuer = Issuer::knowing([(ONE, Answer::Invalid)]);
    issuer.latency(500 * MS);
    let (layer, _) = layer(issuer.clone());
    let usual = api(&layer);
    let recent = api(&layer.clone().max_age(Duration::ZERO));
    tokio::time::advance(SECOND).await;
    let early = start(&recent, ONE);
    settle().await;
    assert_eq!(issuer.in_flight(), 1);
    // The key is created now, and the issuer becomes faster.
    tokio::time::advance(100 * MS).await;
    issuer.set(ONE, org("org_one", &[]));
    issuer.latency(100 * MS);
    assert_eq!(outcome(&recent, ONE).await, allowed("org_one"));
    assert_eq!((issuer.calls(), issuer.in_flight()), (2, 1));
    tokio::time::sleep(SECOND).await;
    // A waiter of the older invalid answer gets the newer valid one, without another call.
    assert_eq!(early.await.unwrap(), allowed("org_one"));
    assert_eq!(outcome(&usual, ONE).await, allowed("org_one"));
    assert_eq!((issuer.calls(), issuer.finished()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn max_age_is_503_while_verifications_fail() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let (layer, _) = layer(issuer.clone());
    let usual = api(&layer);
    let recent = api(&layer.clone().max_age(10 * SECOND));
    assert_eq!(outcome(&usual, ONE).await, allowed("org_one"));
    issuer.fail(Answer::Unavailable);
    tokio::time::advance(10 * SECOND - MS).await;
    assert_eq!(outcome(&recent, ONE).await, allowed("org_one"));
    assert_eq!(issuer.calls(), 1);
    tokio::time::advance(MS).await;
    assert_eq!(outcome(&recent, ONE).await, unavailable());
    assert!(issuer.calls() > 1);
    assert_eq!(outcome(&usual, ONE).await, allowed("org_one"));
}

#[tokio::test(start_paused = true)]
async fn a_service_can_be_called_repeatedly() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let (layer, _) = layer(issuer.clone());
    let mut api = api(&layer);
    for _ in 0..3 {
        for (key, expected) in [(ONE, allowed("org_one")), (BAD, rejected())] {
            let ready = ServiceExt::<http::Request<()>>::ready(&mut api)
                .await
                .unwrap();
            let response = ready.call(request(key)).await.unwrap();
            assert_eq!(Outcome::of(&response), expected);
        }
    }
    assert_eq!(issuer.calls(), 2);
}
