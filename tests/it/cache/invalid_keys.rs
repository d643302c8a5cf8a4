//! The negative cache.

use tower_orgkey::{ApiKeyHandle, KeyId, OrgCode};

use super::{BAD, MS, ONE, SECOND, TWO, layer, rejected, settle, unavailable};
use crate::support::service::{allowed, api, outcome};
use crate::support::{Answer, Issuer, org};

#[tokio::test(start_paused = true)]
async fn invalid_keys_are_cached_for_5_s_up_to_60_s() {
    let issuer = Issuer::new();
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, BAD).await, rejected());
    for (n, seconds) in [5, 10, 20, 40, 60, 60].into_iter().enumerate() {
        assert_eq!(issuer.calls(), n + 1);
        tokio::time::advance(seconds * SECOND - MS).await;
        assert_eq!(outcome(&api, BAD).await, rejected());
        assert_eq!(issuer.calls(), n + 1, "asked again before {seconds} s");
        tokio::time::advance(MS).await;
        assert_eq!(outcome(&api, BAD).await, rejected());
        assert_eq!(issuer.calls(), n + 2, "not asked again after {seconds} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_valid_answer_resets_the_negative_cache() {
    let issuer = Issuer::new();
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    for wait in [5, 10] {
        assert_eq!(outcome(&api, ONE).await, rejected());
        tokio::time::advance(wait * SECOND).await;
    }
    issuer.set(ONE, org("org_one", &[]));
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    issuer.set(ONE, Answer::Invalid);
    tokio::time::advance(120 * SECOND).await;
    assert_eq!(outcome(&api, ONE).await, rejected());
    tokio::time::advance(5 * SECOND - MS).await;
    let before = issuer.calls();
    assert_eq!(outcome(&api, ONE).await, rejected());
    assert_eq!(issuer.calls(), before);
    tokio::time::advance(MS).await;
    assert_eq!(outcome(&api, ONE).await, rejected());
    assert_eq!(issuer.calls(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn fault_34_a_flood_of_one_bad_key_is_cached() {
    let issuer = Issuer::new();
    issuer.latency(20 * MS);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    let mut refusals = 0_u32;
    while clock.elapsed() < 80 * SECOND {
        // Ten thousand requests per second, half of them while a call is in flight.
        let burst: Vec<_> = (0..5_000)
            .map(|_| {
                let api = api.clone();
                tokio::spawn(async move { outcome(&api, BAD).await })
            })
            .collect();
        settle().await;
        for request in burst {
            assert_eq!(request.await.unwrap(), rejected());
            refusals += 1;
        }
        for _ in 0..5_000 {
            assert_eq!(outcome(&api, BAD).await, rejected());
            refusals += 1;
        }
        tokio::time::sleep(SECOND - 20 * MS).await;
    }
    assert!(refusals >= 780_000);
    // At 0 s, and after 5, 10, 20 and 40 s: at most five within 80 s.
    let calls = issuer.call_times();
    assert!((4..=5).contains(&calls.len()), "{calls:?}");
    for (pair, lasts) in calls.windows(2).zip([5, 10, 20, 40]) {
        assert!(pair[1] - pair[0] >= lasts * SECOND, "{calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_never_cached_as_invalid() {
    for failure in [Answer::Unavailable, Answer::Misconfigured, Answer::Panic] {
        let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
        let (layer, _) = layer(issuer.clone());
        let api = api(&layer);
        issuer.fail(failure.clone());
        assert_ne!(outcome(&api, ONE).await, rejected(), "{failure:?}");
        assert!(issuer.calls() > 0);
        issuer.recover();
        assert_eq!(outcome(&api, ONE).await, allowed("org_one"), "{failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_invalid_key_stays_cached_during_an_outage() {
    let issuer = Issuer::new();
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, BAD).await, rejected());
    issuer.fail(Answer::Unavailable);
    tokio::time::advance(5 * SECOND - MS).await;
    assert_eq!(outcome(&api, BAD).await, rejected());
    tokio::time::advance(MS).await;
    assert_eq!(outcome(&api, BAD).await, unavailable());
}

type Update = fn(&ApiKeyHandle);

#[tokio::test(start_paused = true)]
async fn only_invalidate_all_removes_invalid_keys() {
    let updates: [(Update, usize); 4] = [
        (
            |handle| handle.invalidate_org(&OrgCode::from_static("org_one")),
            2,
        ),
        (
            |handle| handle.invalidate_key_id(&KeyId::from_static("id_of_org_one")),
            2,
        ),
        (
            |handle| {
                handle.block_org(&OrgCode::from_static("org_one")).unwrap();
            },
            2,
        ),
        (ApiKeyHandle::invalidate_all, 3),
    ];
    for (n, (update, calls)) in updates.into_iter().enumerate() {
        let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
        let (layer, _) = layer(issuer.clone());
        let api = api(&layer);
        assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
        assert_eq!(outcome(&api, BAD).await, rejected());
        assert_eq!(issuer.calls(), 2);
        update(&layer.handle());
        assert_eq!(outcome(&api, BAD).await, rejected());
        assert_eq!(issuer.calls(), calls, "update {n}");
        // Updates about other organizations do not affect invalid keys.
        layer
            .handle()
            .invalidate_org(&OrgCode::from_static("org_two"));
        assert_eq!(outcome(&api, BAD).await, rejected());
        assert_eq!(issuer.calls(), calls, "update {n}");
    }
}

#[tokio::test(start_paused = true)]
async fn cached_invalid_keys_are_counted() {
    let issuer = Issuer::new();
    let (layer, _) = layer(issuer.clone());
    let (api, handle) = (api(&layer), layer.handle());
    let mut held = Vec::new();
    for key in [ONE, TWO, BAD] {
        assert_eq!(outcome(&api, key).await, rejected());
        held.push(handle.stats().invalid_entries);
    }
    issuer.set(ONE, org("org_one", &[]));
    tokio::time::advance(5 * SECOND).await;
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    held.push(handle.stats().invalid_entries);
    assert_eq!(held, [1, 2, 3, 2]);
    assert_eq!(handle.stats().entries, 1);
}
