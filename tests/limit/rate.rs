//! Rates, on a clock that stands still unless told to go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::header::{CACHE_CONTROL, RETRY_AFTER};
use tower_orgkey::{Quota, RejectionKind};

use crate::support::log::Log;
use crate::*;

#[tokio::test(start_paused = true)]
async fn a_burst_passes_and_then_one_by_one_at_the_rate() {
    let clock = TestClock::new();
    let limit = build(quota(Quota::per_minute(60).burst(10)), &clock);
    let mut limited = limited(&limit);
    let org = org("org_1");
    assert_eq!(passed(&mut limited, &org), 10);
    clock.jump(Duration::from_millis(999));
    assert_eq!(passed(&mut limited, &org), 0);
    clock.jump(Duration::from_millis(1));
    assert_eq!(passed(&mut limited, &org), 1);
    clock.jump(secs(5));
    assert_eq!(passed(&mut limited, &org), 5);
    clock.jump(secs(3_600));
    assert_eq!(
        passed(&mut limited, &org),
        10,
        "no pause saves up more than a burst"
    );
}

#[tokio::test(start_paused = true)]
async fn the_refusal_is_429_and_says_honestly_when_to_try_again() {
    let clock = TestClock::new();
    let limit = build(quota(Quota::per(2, secs(5))), &clock);
    let mut limited = limited(&limit);
    let org = org("org_1");
    assert_eq!(passed(&mut limited, &org), 2);
    let refused = limited(&org);
    assert_eq!(refused.status(), 429);
    assert_eq!(wait(&refused), Some(Duration::from_millis(2_500)));
    assert_eq!(
        refused.headers()[RETRY_AFTER],
        "3",
        "whole seconds, rounded up"
    );
    assert_eq!(refused.headers()[CACHE_CONTROL], "no-store");
    assert!(!refused.headers().contains_key("ratelimit"));
    let rejection = refused.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.kind(), RejectionKind::RateLimited);
    // Refusals use nothing: it does not get later for asking.
    assert_eq!(wait(&limited(&org)), Some(Duration::from_millis(2_500)));
    clock.jump(Duration::from_millis(2_499));
    assert_eq!(wait(&limited(&org)), Some(Duration::from_millis(1)));
    clock.jump(Duration::from_millis(1));
    assert!(passes(&mut limited, &org));
}

#[tokio::test(start_paused = true)]
async fn one_organization_at_its_limit_costs_another_nothing() {
    let clock = TestClock::new();
    let limit = build(quota(Quota::per_minute(3)), &clock);
    let mut limited = limited(&limit);
    assert_eq!(passed(&mut limited, &org("org_1")), 3);
    for _ in 0..1_000 {
        assert!(!passes(&mut limited, &org("org_1")));
    }
    assert_eq!(passed(&mut limited, &org("org_2")), 3);
}

#[tokio::test(start_paused = true)]
async fn the_keys_of_an_organization_share_its_quota_unless_each_has_its_own() {
    let clock = TestClock::new();
    let together = build(quota(Quota::per_minute(3)), &clock);
    let mut limited_together = limited(&together);
    assert_eq!(passed(&mut limited_together, &key("org_1", "key_1")), 3);
    assert!(!passes(&mut limited_together, &key("org_1", "key_2")));
    assert_eq!(together.accounts(), 1);

    let each = build(quota(Quota::per_minute(3)).per_key(), &clock);
    let mut limited_each = limited(&each);
    // Two contexts of one key: its id outlives a rotation.
    assert_eq!(passed(&mut limited_each, &key("org_1", "key_1")), 3);
    assert!(!passes(&mut limited_each, &key("org_1", "key_1")));
    assert_eq!(passed(&mut limited_each, &key("org_1", "key_2")), 3);
    // Another issuer's organization may have a key of the same id.
    assert_eq!(passed(&mut limited_each, &key("org_2", "key_1")), 3);
    // Without ids, the keys themselves are told apart.
    let nameless = org("org_1");
    assert_eq!(passed(&mut limited_each, &nameless), 3);
    assert!(!passes(&mut limited_each, &nameless));
    assert_eq!(passed(&mut limited_each, &org("org_1")), 3);
    assert_eq!(each.accounts(), 5);
}

#[tokio::test(start_paused = true)]
async fn none_is_no_limit_and_a_quota_of_nothing_lets_nothing_pass() {
    let clock = TestClock::new();
    let limit = build(
        OrgRateLimitLayer::builder(|org: &OrgContext| match org.org_code().as_str() {
            "org_free" => None,
            "org_none" => Some(Quota::per_minute(0)),
            _ => Some(Quota::per_minute(5).burst(0)),
        }),
        &clock,
    );
    let mut limited = limited(&limit);
    assert_eq!(passed(&mut limited, &org("org_free")), 100_000);
    for closed in ["org_none", "org_no_burst"] {
        assert_eq!(wait(&limited(&org(closed))), Some(secs(60)), "{closed}");
    }
    clock.jump(secs(3_600));
    assert!(!passes(&mut limited, &org("org_none")));
    assert_eq!(limit.accounts(), 0, "nobody owes anything");
}

#[tokio::test(start_paused = true)]
async fn a_new_plan_holds_from_the_next_request_on_and_no_change_gives_a_fresh_burst() {
    let clock = TestClock::new();
    let plan = Arc::new(AtomicU32::new(60));
    let limit = {
        let plan = Arc::clone(&plan);
        let quota = move |_: &OrgContext| Some(Quota::per_minute(plan.load(Ordering::SeqCst)));
        build(OrgRateLimitLayer::builder(quota), &clock)
    };
    let mut limited = limited(&limit);
    let org = org("org_1");
    assert_eq!(passed(&mut limited, &org), 60);

    // Bought more: the larger rate at once, its burst by and by.
    plan.store(6_000, Ordering::SeqCst);
    assert_eq!(passed(&mut limited, &org), 0);
    clock.jump(Duration::from_millis(10));
    assert_eq!(passed(&mut limited, &org), 1);
    clock.jump(secs(30));
    assert_eq!(passed(&mut limited, &org), 3_000);

    // Back and forth, at one moment: nothing more.
    for n in 0..100 {
        plan.store([60, 6_000, 600, 59, 61, 6_001][n % 6], Ordering::SeqCst);
        let passed = passed(&mut limited, &org);
        // The first one had thirty seconds to get half of its own back.
        assert_eq!(passed, if n == 0 { 30 } else { 0 }, "change {n}");
    }
    assert_eq!(limit.accounts(), 1);
}

#[tokio::test(start_paused = true)]
async fn clones_are_one_limit_and_two_layers_are_two() {
    let clock = TestClock::new();
    let limit = build(quota(Quota::per_minute(4)), &clock);
    let (mut one, mut two) = (limited(&limit), limited(&limit.clone()));
    let mut other = limited(&build(quota(Quota::per_minute(4)), &clock));
    let org = org("org_1");
    assert!(passes(&mut one, &org) && passes(&mut two, &org));
    assert_eq!(passed(&mut one, &org), 2);
    assert!(!passes(&mut two, &org));
    assert_eq!(passed(&mut other, &org), 4);
}

#[tokio::test(start_paused = true)]
async fn the_fields_tell_how_a_caller_stands_on_every_answer() {
    let clock = TestClock::new();
    let limit = build(
        quota(Quota::per_minute(3)).ratelimit_fields("default"),
        &clock,
    );
    let mut limited = limited(&limit);
    let org = org("org_1");
    let mut told = || {
        let response = limited(&org);
        assert_eq!(
            response.headers()["ratelimit-policy"],
            r#""default";q=3;w=60"#
        );
        let limit = response.headers()["ratelimit"].to_str().unwrap().to_owned();
        (response.status().as_u16(), limit)
    };
    for (status, limit) in [
        (200, r#""default";r=2;t=40"#),
        (200, r#""default";r=1;t=20"#),
        (200, r#""default";r=0;t=20"#),
        (429, r#""default";r=0;t=20"#),
    ] {
        assert_eq!(told(), (status, limit.to_owned()));
    }
    clock.jump(secs(11));
    assert_eq!(told(), (429, r#""default";r=0;t=9"#.to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_forgets_who_is_not_idle_says_so() {
    let (log, _guard) = Log::capture();
    let clock = TestClock::new();
    let limit = build(quota(Quota::per_minute(60)).capacity(10), &clock);
    let mut limited = limited(&limit);
    let names: Vec<&'static str> = (0..31)
        .map(|n| &*String::leak(format!("org_{n}")))
        .collect();
    for (n, name) in names.iter().enumerate() {
        assert!(passes(&mut limited, &org(name)));
        // One request is given back in a second, so only few owe anything at a time; in the end nobody gets anything back.
        clock.jump(secs(u64::from(n < 20)));
        let told = log.lines("WARN", "a limit holds fewer accounts than");
        assert_eq!(told.len(), usize::from(n == 30), "{n}: {told:?}");
        assert!(limit.accounts() <= 10);
    }
}

#[test]
fn settings_that_make_no_sense_are_errors_that_name_them() {
    let field = |builder: OrgRateLimitLayerBuilder| builder.build().unwrap_err().field();
    let builder = || quota(Quota::per_second(1));
    assert_eq!(field(builder().capacity(9)), "capacity");
    assert_eq!(
        field(builder().ratelimit_fields("a\"b")),
        "ratelimit_fields"
    );
    assert!(
        builder()
            .capacity(10)
            .ratelimit_fields("a b")
            .build()
            .is_ok()
    );
}
