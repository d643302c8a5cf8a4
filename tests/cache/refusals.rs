//! How long a no is remembered.

use tower_orgkey::{ApiKeyHandle, KeyId, OrgCode};

use crate::support::service::{api, outcome, passed};
use crate::support::{Issuer, Say, org};
use crate::{BAD, MS, ONE, SECOND, TWO, layer, refused, settle, unavailable};

#[tokio::test(start_paused = true)]
async fn a_no_is_remembered_for_5_seconds_and_twice_as_long_each_time_up_to_60() {
    let issuer = Issuer::new();
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, BAD).await, refused());
    for (n, seconds) in [5, 10, 20, 40, 60, 60].into_iter().enumerate() {
        assert_eq!(issuer.calls(), n + 1);
        tokio::time::advance(seconds * SECOND - MS).await;
        assert_eq!(outcome(&api, BAD).await, refused());
        assert_eq!(issuer.calls(), n + 1, "asked again before {seconds} s");
        tokio::time::advance(MS).await;
        assert_eq!(outcome(&api, BAD).await, refused());
        assert_eq!(issuer.calls(), n + 2, "not asked again after {seconds} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_yes_after_a_no_works_when_the_no_is_over_and_starts_the_count_anew() {
    let issuer = Issuer::new();
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    for wait in [5, 10] {
        assert_eq!(outcome(&api, ONE).await, refused());
        tokio::time::advance(wait * SECOND).await;
    }
    issuer.set(ONE, org("org_one", &[]));
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    issuer.set(ONE, Say::No);
    tokio::time::advance(120 * SECOND).await;
    assert_eq!(outcome(&api, ONE).await, refused());
    tokio::time::advance(5 * SECOND - MS).await;
    let before = issuer.calls();
    assert_eq!(outcome(&api, ONE).await, refused());
    assert_eq!(issuer.calls(), before);
    tokio::time::advance(MS).await;
    assert_eq!(outcome(&api, ONE).await, refused());
    assert_eq!(issuer.calls(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn fault_34_a_bad_key_at_ten_thousand_a_second_is_one_call_per_time_it_is_remembered() {
    let issuer = Issuer::new();
    issuer.latency(20 * MS);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    let mut refusals = 0_u32;
    while clock.elapsed() < 80 * SECOND {
        // A burst of ten thousand, once a second, half of it while an answer is on its way.
        let burst: Vec<_> = (0..5_000)
            .map(|_| {
                let api = api.clone();
                tokio::spawn(async move { outcome(&api, BAD).await })
            })
            .collect();
        settle().await;
        for request in burst {
            assert_eq!(request.await.unwrap(), refused());
            refusals += 1;
        }
        for _ in 0..5_000 {
            assert_eq!(outcome(&api, BAD).await, refused());
            refusals += 1;
        }
        tokio::time::sleep(SECOND - 20 * MS).await;
    }
    assert!(refusals >= 780_000);
    // At 0, and when 5, 10, 20 and 40 s are over: at most five within 80 s.
    let calls = issuer.call_times();
    assert!((4..=5).contains(&calls.len()), "{calls:?}");
    for (pair, lasts) in calls.windows(2).zip([5, 10, 20, 40]) {
        assert!(pair[1] - pair[0] >= lasts * SECOND, "{calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn cannot_tell_is_never_remembered_as_a_no() {
    for failure in [Say::Unavailable, Say::Misconfigured, Say::Panic] {
        let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
        let (layer, _) = layer(issuer.clone());
        let api = api(&layer);
        issuer.fail(failure.clone());
        assert_ne!(outcome(&api, ONE).await, refused(), "{failure:?}");
        assert!(issuer.calls() > 0);
        issuer.recover();
        assert_eq!(outcome(&api, ONE).await, passed("org_one"), "{failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_stays_refused_while_the_issuer_is_away_and_is_unknown_after() {
    let issuer = Issuer::new();
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, BAD).await, refused());
    issuer.fail(Say::Unavailable);
    tokio::time::advance(5 * SECOND - MS).await;
    assert_eq!(outcome(&api, BAD).await, refused());
    tokio::time::advance(MS).await;
    assert_eq!(outcome(&api, BAD).await, unavailable());
}

type Decree = fn(&ApiKeyHandle);

#[tokio::test(start_paused = true)]
async fn a_no_outlives_every_invalidation_but_that_of_everything() {
    let decrees: [(Decree, usize); 4] = [
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
    for (n, (decree, calls)) in decrees.into_iter().enumerate() {
        let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
        let (layer, _) = layer(issuer.clone());
        let api = api(&layer);
        assert_eq!(outcome(&api, ONE).await, passed("org_one"));
        assert_eq!(outcome(&api, BAD).await, refused());
        assert_eq!(issuer.calls(), 2);
        decree(&layer.handle());
        assert_eq!(outcome(&api, BAD).await, refused());
        assert_eq!(issuer.calls(), calls, "decree {n}");
        // Nor is a no from after it called in question by what is decreed about others.
        layer
            .handle()
            .invalidate_org(&OrgCode::from_static("org_two"));
        assert_eq!(outcome(&api, BAD).await, refused());
        assert_eq!(issuer.calls(), calls, "decree {n}");
    }
}

#[tokio::test(start_paused = true)]
async fn refused_keys_are_counted_while_they_are_held() {
    let issuer = Issuer::new();
    let (layer, _) = layer(issuer.clone());
    let (api, handle) = (api(&layer), layer.handle());
    let mut held = Vec::new();
    for key in [ONE, TWO, BAD] {
        assert_eq!(outcome(&api, key).await, refused());
        held.push(handle.stats().invalid_entries);
    }
    issuer.set(ONE, org("org_one", &[]));
    tokio::time::advance(5 * SECOND).await;
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    held.push(handle.stats().invalid_entries);
    assert_eq!(held, [1, 2, 3, 2]);
    assert_eq!(handle.stats().entries, 1);
}
