//! Both bounds of staleness, and the key's own expiry.

use std::time::SystemTime;

use tower_orgkey::OrgContext;

use crate::support::issuer::expiring;
use crate::support::service::{Api, answer, api, outcome, passed};
use crate::support::{Issuer, Say, org};
use crate::{
    BAD, Duration, MINUTE, MS, NEW, ONE, SECOND, TWO, builder, layer, refused, settle, unavailable,
};

/// A context's age and whether it is stale.
async fn served(api: &Api, key: &str) -> (Duration, bool) {
    let response = answer(api, key).await;
    let context = response.extensions().get::<OrgContext>().unwrap();
    (context.age(), context.is_stale())
}

#[tokio::test(start_paused = true)]
async fn facts_are_fresh_for_51_to_60_seconds_and_ages_count_from_the_call() {
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
    // Sixty seconds after the call: stale whatever was drawn, and one refresh is begun behind it.
    assert_eq!(served(&api, ONE).await, (MINUTE, true));
    assert_eq!(served(&api, ONE).await, (MINUTE, true));
    settle().await;
    assert_eq!((issuer.calls(), issuer.calls_again()), (2, 1));
    tokio::time::sleep(600 * MS).await;
    assert_eq!(served(&api, ONE).await, (600 * MS, false));
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_key_is_served_no_longer_than_twice_the_soft_ttl_however_rarely_it_is_used() {
    // Used once, revoked, and used again after so many seconds.
    for (idle, expected) in [
        (50, passed("org_one")),
        (60, passed("org_one")),
        (120, refused()),
        (600, refused()),
    ] {
        let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
        let (layer, _) = layer(issuer.clone());
        let api = api(&layer);
        assert_eq!(outcome(&api, ONE).await, passed("org_one"));
        issuer.set(ONE, Say::No);
        tokio::time::advance(idle * SECOND).await;
        assert_eq!(outcome(&api, ONE).await, expected, "{idle} s");
    }
    // And in constant use: the refresh finds it, within the soft TTL.
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    issuer.set(ONE, Say::No);
    while outcome(&api, ONE).await == passed("org_one") {
        tokio::time::sleep(SECOND).await;
        assert!(clock.elapsed() <= 61 * SECOND);
    }
    assert_eq!(outcome(&api, ONE).await, refused());
}

#[tokio::test(start_paused = true)]
async fn fault_21_a_definitive_no_ends_a_known_key_at_once() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let (layer, _) = layer(issuer.clone());
    let usual = api(&layer);
    let anew = api(&layer.clone().max_age(Duration::ZERO));
    assert_eq!(outcome(&usual, ONE).await, passed("org_one"));
    issuer.set(ONE, Say::No);
    tokio::time::advance(MS).await;
    assert_eq!(outcome(&usual, ONE).await, passed("org_one"));
    assert_eq!(outcome(&anew, ONE).await, refused());
    assert_eq!(outcome(&usual, ONE).await, refused());
    // The issuer is out of order from here on, and nothing brings the yes back.
    issuer.fail(Say::Unavailable);
    assert_eq!(outcome(&usual, ONE).await, refused());
    tokio::time::advance(MINUTE).await;
    assert_eq!(outcome(&usual, ONE).await, unavailable());
}

#[tokio::test(start_paused = true)]
async fn fault_07_known_keys_are_served_to_the_hard_ttl_and_not_a_millisecond_past_it() {
    for failure in [
        Say::Unavailable,
        Say::Silence,
        Say::Misconfigured,
        Say::Throttled(None),
    ] {
        let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
        let (layer, clock) = layer(issuer.clone());
        let api = api(&layer);
        assert_eq!(outcome(&api, ONE).await, passed("org_one"));
        let sent = clock.elapsed();
        issuer.fail(failure.clone());
        while clock.elapsed() - sent < 15 * MINUTE - 20 * SECOND {
            assert_eq!(outcome(&api, ONE).await, passed("org_one"), "{failure:?}");
            tokio::time::sleep(7 * SECOND).await;
        }
        assert!(issuer.calls() > 2, "nothing was injected");
        // A request that comes in just before the bound, and then nothing is asked any more.
        tokio::time::advance(15 * MINUTE - MS - (clock.elapsed() - sent)).await;
        if !matches!(failure, Say::Silence) {
            assert_eq!(outcome(&api, ONE).await, passed("org_one"), "{failure:?}");
            assert_eq!(clock.elapsed() - sent, 15 * MINUTE - MS);
        }
        tokio::time::advance(MS).await;
        let gone = outcome(&api, ONE).await;
        assert!(
            matches!(gone, crate::Outcome::Refused(kind) if kind != tower_orgkey::RejectionKind::InvalidToken),
            "{failure:?} {gone:?}"
        );
        issuer.recover();
        tokio::time::sleep(2 * MINUTE).await;
        assert_eq!(outcome(&api, ONE).await, passed("org_one"), "{failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_07_an_issuer_that_goes_silent_just_before_the_hard_ttl_gains_a_key_nothing() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    issuer.fail(Say::Silence);
    tokio::time::advance(15 * MINUTE - 500 * MS).await;
    // The request comes in inside the bound, and its wait ends outside it.
    assert_eq!(outcome(&api, ONE).await, unavailable());
    assert!(clock.elapsed() >= 15 * MINUTE);
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn fault_12_a_slow_issuer_does_not_delay_hits() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[])), (TWO, org("org_two", &[]))]);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    issuer.latency(900 * MS);
    let stranger = tokio::spawn({
        let api = api.clone();
        async move { outcome(&api, TWO).await }
    });
    settle().await;
    // Fresh, then stale with a refresh that takes its time.
    for age in [0, 60, 61, 90, 100] {
        tokio::time::advance((age * SECOND).saturating_sub(clock.elapsed())).await;
        let before = clock.elapsed();
        for _ in 0..1_000 {
            assert_eq!(outcome(&api, ONE).await, passed("org_one"));
        }
        assert_eq!(clock.elapsed(), before, "a hit waited");
        tokio::time::sleep(100 * MS).await;
    }
    assert!(issuer.calls_for(ONE) >= 2);
    assert_eq!(stranger.await.unwrap(), passed("org_two"));
}

#[tokio::test(start_paused = true)]
async fn a_failing_refresh_never_delays_and_is_repeated_at_a_measured_pace() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    issuer.fail(Say::Unavailable);
    tokio::time::advance(60 * SECOND).await;
    while clock.elapsed() < 101 * SECOND {
        let before = clock.elapsed();
        assert_eq!(outcome(&api, ONE).await, passed("org_one"));
        assert_eq!(clock.elapsed(), before);
        tokio::time::sleep(100 * MS).await;
    }
    // Once at 60 s, and then every 5 s at most.
    assert!((2..=10).contains(&issuer.calls()), "{}", issuer.calls());
    assert_eq!(issuer.calls_again(), issuer.calls() - 1);
}

#[tokio::test(start_paused = true)]
async fn fault_19b_a_key_with_an_expiry_is_refused_from_that_moment() {
    let issuer = Issuer::knowing([(ONE, expiring("org_one", SystemTime::now() + 30 * SECOND))]);
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    tokio::time::advance(29 * SECOND).await;
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    tokio::time::advance(SECOND).await;
    assert_eq!(issuer.calls(), 1, "still inside the soft TTL");
    assert_eq!(outcome(&api, ONE).await, refused());
    // Nor as stale, when the issuer is gone.
    issuer.fail(Say::Unavailable);
    assert_eq!(outcome(&api, ONE).await, refused());
    tokio::time::advance(10 * SECOND).await;
    assert_eq!(outcome(&api, ONE).await, unavailable());
}

#[tokio::test(start_paused = true)]
async fn fault_19b_an_expiry_ends_the_stale_window_too() {
    let issuer = Issuer::knowing([(ONE, expiring("org_one", SystemTime::now() + 100 * SECOND))]);
    let (layer, _) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    issuer.fail(Say::Unavailable);
    tokio::time::advance(95 * SECOND).await;
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    settle().await;
    assert_eq!(issuer.calls(), 2);
    tokio::time::advance(5 * SECOND).await;
    assert_eq!(outcome(&api, ONE).await, refused());
}

#[tokio::test(start_paused = true)]
async fn fault_19b_an_expiry_in_the_past_is_a_no_and_one_in_the_far_future_is_none() {
    for (at, expected) in [
        (SystemTime::UNIX_EPOCH, refused()),
        (SystemTime::now() - SECOND, refused()),
        (
            SystemTime::now() + Duration::from_secs(1 << 40),
            passed("org_one"),
        ),
    ] {
        let issuer = Issuer::knowing([(ONE, expiring("org_one", at))]);
        let (layer, _) = layer(issuer.clone());
        let api = api(&layer);
        assert_eq!(outcome(&api, ONE).await, expected);
        assert_eq!(outcome(&api, ONE).await, expected);
        assert_eq!(issuer.calls(), 1);
        issuer.fail(Say::Unavailable);
        tokio::time::advance(15 * MINUTE).await;
        assert_eq!(outcome(&api, ONE).await, unavailable());
    }
}

#[tokio::test(start_paused = true)]
async fn fault_20_what_is_left_of_a_key_is_read_off_the_wall_once() {
    // No test may move the machine's clock. So this shows the other half: after the answer arrived only the monotonic
    // clock moves anything, and the wall clock, which stands nearly still here, moves nothing.
    let issuer = Issuer::knowing([(ONE, expiring("org_one", SystemTime::now() + 40 * SECOND))]);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    clock.jump(39 * SECOND);
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    clock.jump(SECOND);
    assert_eq!(outcome(&api, ONE).await, refused());
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn fault_20b_time_asleep_counts() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[])), (TWO, org("org_two", &[]))]);
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    let tokios = tokio::time::Instant::now();
    issuer.fail(Say::Unavailable);
    clock.jump(15 * MINUTE - MS);
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    clock.jump(MS);
    assert_eq!(outcome(&api, ONE).await, unavailable());
    assert!(tokios.elapsed() < 10 * SECOND, "only our clock jumped");
    issuer.recover();
    clock.jump(60 * MINUTE);
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    assert_eq!(outcome(&api, TWO).await, passed("org_two"));
    issuer.set(TWO, Say::No);
    clock.jump(60 * MINUTE);
    // The issuer answers, so nothing stale is served after a sleep.
    assert_eq!(outcome(&api, TWO).await, refused());
}

#[tokio::test(start_paused = true)]
async fn fault_38_keys_of_one_second_are_not_refreshed_in_one_second() {
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
            assert_eq!(outcome(&api, key).await, passed("org_one"));
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
            assert_eq!(outcome(&api, key).await, passed("org_one"));
            // The cap on calls in flight is not what spreads them.
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
async fn junk_pushes_out_nothing_that_is_good() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let (builder, _) = builder(issuer.clone());
    let layer = builder.capacity(10).build().unwrap();
    let api = api(&layer);
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    for n in 0..400 {
        let junk = format!("k_junk_{n:08}");
        assert_eq!(outcome(&api, &junk).await, refused());
    }
    assert_eq!(issuer.calls(), 401);
    assert_eq!(outcome(&api, ONE).await, passed("org_one"));
    assert_eq!(issuer.calls(), 401);
}

#[tokio::test(start_paused = true)]
async fn junk_takes_little_more_room_than_a_tenth_of_the_capacity() {
    let issuer = Issuer::new();
    let (builder, _) = builder(issuer.clone());
    let layer = builder.capacity(1_000).build().unwrap();
    let api = api(&layer);
    let mut most = 0;
    for n in 0..10_000 {
        // The budget of refusals would stop more at once.
        if n % 400 == 0 {
            tokio::time::advance(10 * SECOND).await;
        }
        assert_eq!(outcome(&api, &format!("k_junk_{n:08}")).await, refused());
        most = most.max(layer.handle().stats().invalid_entries);
    }
    assert_eq!(issuer.calls(), 10_000);
    // The tenth, and what the policy has yet to be told of.
    assert!((100..=200).contains(&most), "{most}");
}

#[tokio::test(start_paused = true)]
async fn the_capacity_bounds_what_is_held() {
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
            assert_eq!(outcome(&api, key).await, passed("org_one"));
        }
    }
    assert!(issuer.calls() >= 1_000 + 900, "{}", issuer.calls());
}

#[tokio::test(start_paused = true)]
async fn an_unconfirmed_no_refuses_a_stranger_and_not_a_known_key() {
    let issuer = Issuer::knowing([
        (ONE, org("org_one", &[])),
        (TWO, org("org_two", &[])),
        (BAD, Say::Unconfirmed),
    ]);
    let (layer, _) = layer(issuer.clone());
    let usual = api(&layer);
    let anew = api(&layer.clone().max_age(Duration::ZERO));
    assert_eq!(outcome(&usual, BAD).await, refused());
    assert_eq!(outcome(&usual, ONE).await, passed("org_one"));
    issuer.set(ONE, Say::Unconfirmed);
    tokio::time::advance(SECOND).await;
    assert_eq!(outcome(&anew, ONE).await, unavailable());
    assert_eq!(outcome(&usual, ONE).await, passed("org_one"));
    // Another unconfirmed no confirms nothing.
    tokio::time::advance(SECOND).await;
    issuer.set(NEW, Say::Unconfirmed);
    assert_eq!(outcome(&usual, NEW).await, refused());
    assert_eq!(outcome(&usual, ONE).await, passed("org_one"));
    // An answer to a call that began later does.
    assert_eq!(outcome(&usual, TWO).await, passed("org_two"));
    assert_eq!(outcome(&usual, ONE).await, refused());
}

#[tokio::test(start_paused = true)]
async fn fault_33b_an_issuer_that_refuses_everything_unconfirmed_costs_no_good_key() {
    let issuer = Issuer::new();
    let keys: Vec<String> = (0..100).map(|n| format!("k_test_{n:08}")).collect();
    for key in &keys {
        issuer.set(key, org("org_one", &[]));
    }
    let (log, _guard) = crate::support::log::Log::capture();
    let (layer, clock) = layer(issuer.clone());
    let api = api(&layer);
    for key in &keys {
        assert_eq!(outcome(&api, key).await, passed("org_one"));
    }
    issuer.fail(Say::Unconfirmed);
    while clock.elapsed() < 14 * MINUTE {
        tokio::time::sleep(30 * SECOND).await;
        for key in &keys {
            assert_eq!(outcome(&api, key).await, passed("org_one"));
        }
        settle().await;
        assert_eq!(
            outcome(&api, &format!("{BAD}{}", clock.elapsed().as_secs())).await,
            refused()
        );
    }
    assert!(issuer.calls() > 200, "nothing was injected");
    assert!(!log.lines("ERROR", "issuer rejects known keys").is_empty());
    issuer.recover();
    tokio::time::sleep(30 * SECOND).await;
    for key in &keys {
        assert_eq!(outcome(&api, key).await, passed("org_one"));
    }
}
