//! Rate limits, on a paused clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::header::{CACHE_CONTROL, RETRY_AFTER};
use tower_orgkey::{Quota, RejectionKind};

use super::*;
use crate::support::log::Log;

#[tokio::test(start_paused = true)]
async fn burst_passes_then_requests_at_the_rate() {
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
        "a pause refills at most a burst"
    );
}

#[tokio::test(start_paused = true)]
async fn rejection_is_429_with_an_exact_wait() {
    let clock = TestClock::new();
    let limit = build(quota(Quota::per(2, secs(5))), &clock);
    let mut limited = limited(&limit);
    let org = org("org_1");
    assert_eq!(passed(&mut limited, &org), 2);
    let rejected = limited(&org);
    assert_eq!(rejected.status(), 429);
    assert_eq!(wait(&rejected), Some(Duration::from_millis(2_500)));
    assert_eq!(
        rejected.headers()[RETRY_AFTER],
        "3",
        "whole seconds, rounded up"
    );
    assert_eq!(rejected.headers()[CACHE_CONTROL], "no-store");
    assert!(!rejected.headers().contains_key("ratelimit"));
    let rejection = rejected.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.kind(), RejectionKind::RateLimited);
    // Rejected requests use no quota.
    assert_eq!(wait(&limited(&org)), Some(Duration::from_millis(2_500)));
    clock.jump(Duration::from_millis(2_499));
    assert_eq!(wait(&limited(&org)), Some(Duration::from_millis(1)));
    clock.jump(Duration::from_millis(1));
    assert!(passes(&mut limited, &org));
}

#[tokio::test(start_paused = true)]
async fn organizations_have_separate_quotas() {
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
async fn keys_share_a_quota_unless_per_key() {
    let clock = TestClock::new();
    let together = build(quota(Quota::per_minute(3)), &clock);
    let mut limited_together = limited(&together);
    assert_eq!(passed(&mut limited_together, &key("org_1", "key_1")), 3);
    assert!(!passes(&mut limited_together, &key("org_1", "key_2")));
    assert_eq!(together.accounts(), 1);

    let each = build(quota(Quota::per_minute(3)).per_key(), &clock);
    let mut limited_each = limited(&each);
    // Two contexts of one key: a rotation does not change its id.
    assert_eq!(passed(&mut limited_each, &key("org_1", "key_1")), 3);
    assert!(!passes(&mut limited_each, &key("org_1", "key_1")));
    assert_eq!(passed(&mut limited_each, &key("org_1", "key_2")), 3);
    // An organization of another issuer may have a key with the same id.
    assert_eq!(passed(&mut limited_each, &key("org_2", "key_1")), 3);
    // Without ids, the keys are distinguished by digest.
    let nameless = org("org_1");
    assert_eq!(passed(&mut limited_each, &nameless), 3);
    assert!(!passes(&mut limited_each, &nameless));
    assert_eq!(passed(&mut limited_each, &org("org_1")), 3);
    assert_eq!(each.accounts(), 5);
}

#[tokio::test(start_paused = true)]
async fn none_is_unlimited_and_zero_rejects_all() {
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
    for org_code in ["org_none", "org_no_burst"] {
        assert_eq!(wait(&limited(&org(org_code))), Some(secs(60)), "{org_code}");
    }
    clock.jump(secs(3_600));
    assert!(!passes(&mut limited, &org("org_none")));
    assert_eq!(limit.accounts(), 0, "no account has usage");
}

#[tokio::test(start_paused = true)]
async fn plan_change_keeps_the_used_percentage() {
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

    // A larger plan: its rate applies at once, its burst refills.
    plan.store(6_000, Ordering::SeqCst);
    assert_eq!(passed(&mut limited, &org), 0);
    clock.jump(Duration::from_millis(10));
    assert_eq!(passed(&mut limited, &org), 1);
    clock.jump(secs(30));
    assert_eq!(passed(&mut limited, &org), 3_000);

    // Many changes at one moment yield nothing more.
    for n in 0..100 {
        plan.store([60, 6_000, 600, 59, 61, 6_001][n % 6], Ordering::SeqCst);
        let passed = passed(&mut limited, &org);
        // The first quota has refilled by half in thirty seconds.
        assert_eq!(passed, if n == 0 { 30 } else { 0 }, "change {n}");
    }
    assert_eq!(limit.accounts(), 1);
}

#[tokio::test(start_paused = true)]
async fn clones_share_a_limit_and_layers_do_not() {
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
async fn every_response_has_ratelimit_fields() {
    let clock = TestClock::new();
    let limit = build(
        quota(Quota::per_minute(3)).ratelimit_fields("default"),
        &clock,
    );
    let mut limited = limited(&limit);
    let org = org("org_1");
    let mut fields = || {
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
        assert_eq!(fields(), (status, limit.to_owned()));
    }
    clock.jump(secs(11));
    assert_eq!(fields(), (429, r#""default";r=0;t=9"#.to_owned()));
}

#[tokio::test(start_paused = true)]
async fn eviction_of_an_active_account_is_logged() {
    let (log, _guard) = Log::capture();
    let clock = TestClock::new();
    let limit = build(quota(Quota::per_minute(60)).capacity(10), &clock);
    let mut limited = limited(&limit);
    let names: Vec<&'static str> = (0..31)
        .map(|n| &*String::leak(format!("org_{n}")))
        .collect();
    for (n, name) in names.iter().enumerate() {
        assert!(passes(&mut limited, &org(name)));
        // One request refills per second, so few accounts have usage at a time; in the end the clock stops.
        clock.jump(secs(u64::from(n < 20)));
        let lines = log.lines("WARN", "limit table full");
        assert_eq!(lines.len(), usize::from(n == 30), "{n}: {lines:?}");
        assert!(limit.accounts() <= 10);
    }
}

#[test]
fn invalid_settings_are_named() {
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
