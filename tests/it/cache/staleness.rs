//! Staleness, expiry, capacity, and unconfirmed invalid answers.

use std::time::SystemTime;

use tower_orgkey::OrgContext;

use super::{
    BAD, Duration, MINUTE, MS, NEW, ONE, SECOND, TWO, builder, layer, rejected, settle, unavailable,
};
use crate::support::issuer::expiring;
use crate::support::service::{Api, allowed, answer, api, outcome};
use crate::support::{Answer, Issuer, org};

/// Returns the age of a context and whether it is stale.
async fn served(api: &Api, key: &str) -> (Duration, bool) {
    let response = answer(api, key).await;
    let context = response.extensions().get::<OrgContext>().unwrap();
    (context.age(), context.is_stale())
}

#[tokio::test(start_paused = true)]
async fn results_are_fresh_for_51_to_60_s() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    issuer.latency(500 * MS);
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(served(&api, ONE).await, (500 * MS, false));
    tokio::time::advance(50 * SECOND).await;
    assert_eq!(served(&api, ONE).await, (50_500 * MS, false));
    settle().await;
    assert_eq!(issuer.calls(), 1);
    tokio::time::advance(9_500 * MS).await;
    // 60 s after the call: stale, and one refresh is in flight.
    assert_eq!(served(&api, ONE).await, (MINUTE, true));
    assert_eq!(served(&api, ONE).await, (MINUTE, true));
    settle().await;
    assert_eq!((issuer.calls(), issuer.calls_for_known()), (2, 1));
    tokio::time::sleep(600 * MS).await;
    assert_eq!(served(&api, ONE).await, (600 * MS, false));
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_key_is_served_for_two_soft_ttls() {
    // Used once, revoked, and used again after this many seconds.
    for (idle, expected) in [
        (50, allowed("org_one")),
        (60, allowed("org_one")),
        (120, rejected()),
        (600, rejected()),
    ] {
        let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
        let (layer, _) = layer(issuer.clone());
        let api = api(&layer);
        assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
        issuer.set(ONE, Answer::Invalid);
        tokio::time::advance(idle * SECOND).await;
        assert_eq!(outcome(&api, ONE).await, expected, "{idle} s");
    }
    // In constant use, the refresh rejects the key after the soft TTL.
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    issuer.set(ONE, Answer::Invalid);
    while outcome(&api, ONE).await == allowed("org_one") {
        tokio::time::sleep(SECOND).await;
        assert!(clock.elapsed() <= 61 * SECOND);
    }
    assert_eq!(outcome(&api, ONE).await, rejected());
}

#[tokio::test(start_paused = true)]
async fn fault_21_a_definitive_answer_rejects_at_once() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let (layer, _) = layer(issuer.clone());
    let usual = api(&layer);
    let recent = api(&layer.clone().max_age(Duration::ZERO));
    assert_eq!(outcome(&usual, ONE).await, allowed("org_one"));
    issuer.set(ONE, Answer::Invalid);
    tokio::time::advance(MS).await;
    assert_eq!(outcome(&usual, ONE).await, allowed("org_one"));
    assert_eq!(outcome(&recent, ONE).await, rejected());
    assert_eq!(outcome(&usual, ONE).await, rejected());
    // The key stays rejected while verifications fail.
    issuer.fail(Answer::Unavailable);
    assert_eq!(outcome(&usual, ONE).await, rejected());
    tokio::time::advance(MINUTE).await;
    assert_eq!(outcome(&usual, ONE).await, unavailable());
}

#[tokio::test(start_paused = true)]
async fn fault_07_known_keys_are_served_to_the_hard_ttl() {
    for failure in [
        Answer::Unavailable,
        Answer::Silence,
        Answer::Misconfigured,
        Answer::Throttled(None),
    ] {
        let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
        let (layer, clock) = layer(issuer.clone());
        let api = api(&layer);
        assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
        let sent = clock.elapsed();
        issuer.fail(failure.clone());
        while clock.elapsed() - sent < 15 * MINUTE - 20 * SECOND {
            assert_eq!(outcome(&api, ONE).await, allowed("org_one"), "{failure:?}");
            tokio::time::sleep(7 * SECOND).await;
        }
        assert!(issuer.calls() > 2, "nothing was injected");
        // A request shortly before the hard TTL.
        tokio::time::advance(15 * MINUTE - MS - (clock.elapsed() - sent)).await;
        if !matches!(failure, Answer::Silence) {
            assert_eq!(outcome(&api, ONE).await, allowed("org_one"), "{failure:?}");
            assert_eq!(clock.elapsed() - sent, 15 * MINUTE - MS);
        }
        tokio::time::advance(MS).await;
        let gone = outcome(&api, ONE).await;
        assert!(
            matches!(gone, super::Outcome::Rejected(kind) if kind != tower_orgkey::RejectionKind::InvalidToken),
            "{failure:?} {gone:?}"
        );
        issuer.recover();
        tokio::time::sleep(2 * MINUTE).await;
        assert_eq!(outcome(&api, ONE).await, allowed("org_one"), "{failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_07_a_wait_past_the_hard_ttl_is_503() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    issuer.fail(Answer::Silence);
    tokio::time::advance(15 * MINUTE - 500 * MS).await;
    // The request begins before the hard TTL, and its wait ends after it.
    assert_eq!(outcome(&api, ONE).await, unavailable());
    assert!(clock.elapsed() >= 15 * MINUTE);
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn fault_12_a_slow_issuer_does_not_delay_hits() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[])), (TWO, org("org_two", &[]))]);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    issuer.latency(900 * MS);
    let unknown = tokio::spawn({
        let api = api.clone();
        async move { outcome(&api, TWO).await }
    });
    settle().await;
    // Fresh, then stale with a slow refresh.
    for age in [0, 60, 61, 90, 100] {
        tokio::time::advance((age * SECOND).saturating_sub(clock.elapsed())).await;
        let before = clock.elapsed();
        for _ in 0..1_000 {
            assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
        }
        assert_eq!(clock.elapsed(), before, "a hit waited");
        tokio::time::sleep(100 * MS).await;
    }
    assert!(issuer.calls_for(ONE) >= 2);
    assert_eq!(unknown.await.unwrap(), allowed("org_two"));
}

#[tokio::test(start_paused = true)]
async fn failing_refreshes_are_paced_and_delay_nothing() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    issuer.fail(Answer::Unavailable);
    tokio::time::advance(60 * SECOND).await;
    while clock.elapsed() < 101 * SECOND {
        let before = clock.elapsed();
        assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
        assert_eq!(clock.elapsed(), before);
        tokio::time::sleep(100 * MS).await;
    }
    // At 60 s, and then at most every 5 s.
    assert!((2..=10).contains(&issuer.calls()), "{}", issuer.calls());
    assert_eq!(issuer.calls_for_known(), issuer.calls() - 1);
}

#[tokio::test(start_paused = true)]
async fn fault_19b_an_expired_key_is_rejected() {
    let issuer = Issuer::knowing([(ONE, expiring("org_one", SystemTime::now() + 30 * SECOND))]);
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    tokio::time::advance(29 * SECOND).await;
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    tokio::time::advance(SECOND).await;
    assert_eq!(issuer.calls(), 1, "still inside the soft TTL");
    assert_eq!(outcome(&api, ONE).await, rejected());
    // Not served as stale while verifications fail either.
    issuer.fail(Answer::Unavailable);
    assert_eq!(outcome(&api, ONE).await, rejected());
    tokio::time::advance(10 * SECOND).await;
    assert_eq!(outcome(&api, ONE).await, unavailable());
}

#[tokio::test(start_paused = true)]
async fn fault_19b_an_expired_key_is_not_served_stale() {
    let issuer = Issuer::knowing([(ONE, expiring("org_one", SystemTime::now() + 100 * SECOND))]);
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    issuer.fail(Answer::Unavailable);
    tokio::time::advance(95 * SECOND).await;
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    settle().await;
    assert_eq!(issuer.calls(), 2);
    tokio::time::advance(5 * SECOND).await;
    assert_eq!(outcome(&api, ONE).await, rejected());
}

#[tokio::test(start_paused = true)]
async fn fault_19b_expiries_in_the_past_and_far_future() {
    for (at, expected) in [
        (SystemTime::UNIX_EPOCH, rejected()),
        (SystemTime::now() - SECOND, rejected()),
        (
            SystemTime::now() + Duration::from_secs(1 << 40),
            allowed("org_one"),
        ),
    ] {
        let issuer = Issuer::knowing([(ONE, expiring("org_one", at))]);
        let (layer, _) = layer(issuer.clone());
        let api = api(&layer);
        assert_eq!(outcome(&api, ONE).await, expected);
        assert_eq!(outcome(&api, ONE).await, expected);
        assert_eq!(issuer.calls(), 1);
        issuer.fail(Answer::Unavailable);
        tokio::time::advance(15 * MINUTE).await;
        assert_eq!(outcome(&api, ONE).await, unavailable());
    }
}

#[tokio::test(start_paused = true)]
async fn fault_20_the_wall_clock_is_read_once() {
    // A test cannot set the wall clock. This test shows that after the answer only the monotonic clock matters: it advances,
    // and the wall clock hardly does.
    let issuer = Issuer::knowing([(ONE, expiring("org_one", SystemTime::now() + 40 * SECOND))]);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    clock.jump(39 * SECOND);
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    clock.jump(SECOND);
    assert_eq!(outcome(&api, ONE).await, rejected());
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn fault_20b_time_asleep_counts() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[])), (TWO, org("org_two", &[]))]);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    let tokios = tokio::time::Instant::now();
    issuer.fail(Answer::Unavailable);
    clock.jump(15 * MINUTE - MS);
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    clock.jump(MS);
    assert_eq!(outcome(&api, ONE).await, unavailable());
    assert!(tokios.elapsed() < 10 * SECOND, "only our clock jumped");
    issuer.recover();
    clock.jump(60 * MINUTE);
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    assert_eq!(outcome(&api, TWO).await, allowed("org_two"));
    issuer.set(TWO, Answer::Invalid);
    clock.jump(60 * MINUTE);
    // The issuer answers, so no stale result is served after a sleep.
    assert_eq!(outcome(&api, TWO).await, rejected());
}

#[tokio::test(start_paused = true)]
async fn fault_38_refreshes_are_spread_in_time() {
    const KEYS: usize = 20_000;
    let issuer = Issuer::new();
    let keys: Vec<String> = (0..KEYS).map(|n| format!("k_test_{n:08}")).collect();
    for key in &keys {
        issuer.set(key, org("org_one", &[]));
    }
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    for keys in keys.chunks(20) {
        for key in keys {
            assert_eq!(outcome(&api, key).await, allowed("org_one"));
        }
        tokio::time::advance(MS).await;
    }
    assert_eq!((issuer.calls(), clock.elapsed()), (KEYS, SECOND));
    // Every key is used in every second.
    let mut refreshes = Vec::new();
    for _ in 0..61 {
        tokio::time::advance(SECOND).await;
        let before = issuer.calls();
        for key in &keys {
            assert_eq!(outcome(&api, key).await, allowed("org_one"));
            // Not spread by the limit of calls in flight.
            tokio::task::yield_now().await;
        }
        settle().await;
        refreshes.push(issuer.calls() - before);
    }
    assert_eq!(refreshes.iter().sum::<usize>(), KEYS, "{refreshes:?}");
    assert!(refreshes[..49].iter().all(|&n| n == 0), "{refreshes:?}");
    let seconds = refreshes.iter().filter(|&&n| n > 0).count();
    assert!(seconds >= 9, "{refreshes:?}");
    assert!(
        refreshes.iter().all(|&n| n <= 2 * KEYS / 9),
        "{refreshes:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn invalid_keys_evict_no_valid_key() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let (builder, _) = builder(issuer.clone());
    let layer = builder.capacity(10).build().unwrap();
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    for n in 0..400 {
        let junk = format!("k_bad__{n:08}");
        assert_eq!(outcome(&api, &junk).await, rejected());
    }
    assert_eq!(issuer.calls(), 401);
    assert_eq!(outcome(&api, ONE).await, allowed("org_one"));
    assert_eq!(issuer.calls(), 401);
}

#[tokio::test(start_paused = true)]
async fn invalid_keys_use_a_tenth_of_the_capacity() {
    let issuer = Issuer::new();
    let (builder, _) = builder(issuer.clone());
    let layer = builder.capacity(1_000).build().unwrap();
    let api = api(&layer);
    let mut most = 0;
    for n in 0..10_000 {
        // Stays within the budget for invalid keys.
        if n % 400 == 0 {
            tokio::time::advance(10 * SECOND).await;
        }
        assert_eq!(outcome(&api, &format!("k_bad__{n:08}")).await, rejected());
        most = most.max(layer.handle().stats().invalid_entries);
    }
    assert_eq!(issuer.calls(), 10_000);
    // A tenth, and keys that the policy has not processed yet.
    assert!((100..=200).contains(&most), "{most}");
}

#[tokio::test(start_paused = true)]
async fn the_capacity_bounds_cached_keys() {
    let issuer = Issuer::new();
    let keys: Vec<String> = (0..1_000).map(|n| format!("k_test_{n:08}")).collect();
    for key in &keys {
        issuer.set(key, org("org_one", &[]));
    }
    let (builder, _) = builder(issuer.clone());
    let layer = builder.capacity(10).build().unwrap();
    let api = api(&layer);
    for _ in 0..2 {
        for key in &keys {
            assert_eq!(outcome(&api, key).await, allowed("org_one"));
        }
    }
    assert!(issuer.calls() >= 1_000 + 900, "{}", issuer.calls());
}

#[tokio::test(start_paused = true)]
async fn unconfirmed_answers_reject_unknown_keys_only() {
    let issuer = Issuer::knowing([
        (ONE, org("org_one", &[])),
        (TWO, org("org_two", &[])),
        (BAD, Answer::Unconfirmed),
    ]);
    let (layer, _) = layer(issuer.clone());
    let usual = api(&layer);
    let recent = api(&layer.clone().max_age(Duration::ZERO));
    assert_eq!(outcome(&usual, BAD).await, rejected());
    assert_eq!(outcome(&usual, ONE).await, allowed("org_one"));
    issuer.set(ONE, Answer::Unconfirmed);
    tokio::time::advance(SECOND).await;
    assert_eq!(outcome(&recent, ONE).await, unavailable());
    assert_eq!(outcome(&usual, ONE).await, allowed("org_one"));
    // Another unconfirmed answer confirms nothing.
    tokio::time::advance(SECOND).await;
    issuer.set(NEW, Answer::Unconfirmed);
    assert_eq!(outcome(&usual, NEW).await, rejected());
    assert_eq!(outcome(&usual, ONE).await, allowed("org_one"));
    // The answer of a later call does.
    assert_eq!(outcome(&usual, TWO).await, allowed("org_two"));
    assert_eq!(outcome(&usual, ONE).await, rejected());
}

#[tokio::test(start_paused = true)]
async fn fault_33b_unconfirmed_answers_cost_no_valid_key() {
    let issuer = Issuer::new();
    let keys: Vec<String> = (0..100).map(|n| format!("k_test_{n:08}")).collect();
    for key in &keys {
        issuer.set(key, org("org_one", &[]));
    }
    let (log, _guard) = crate::support::log::Log::capture();
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    for key in &keys {
        assert_eq!(outcome(&api, key).await, allowed("org_one"));
    }
    issuer.fail(Answer::Unconfirmed);
    while clock.elapsed() < 14 * MINUTE {
        tokio::time::sleep(30 * SECOND).await;
        for key in &keys {
            assert_eq!(outcome(&api, key).await, allowed("org_one"));
        }
        settle().await;
        assert_eq!(
            outcome(&api, &format!("{BAD}{}", clock.elapsed().as_secs())).await,
            rejected()
        );
    }
    assert!(issuer.calls() > 200, "nothing was injected");
    assert!(!log.lines("ERROR", "issuer rejects known keys").is_empty());
    issuer.recover();
    tokio::time::sleep(30 * SECOND).await;
    for key in &keys {
        assert_eq!(outcome(&api, key).await, allowed("org_one"));
    }
}
