//! A flood of organizations and of keys: memory is bounded, and limits still apply.
//!
//! A separate binary, because it measures the memory of the process.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use tower::{Layer, Service, service_fn};
use tower_orgkey::test_util::{OrgContextBuilder, TestClock};
use tower_orgkey::{OrgContext, OrgRateLimitLayer, OrgRateLimitLayerBuilder, Quota};

const MILLION: usize = 1_000_000;
const CAPACITY: usize = 50_000;
const BURST: u32 = 3;

/// A million names in one allocation, made before the measurement.
fn names() -> impl Iterator<Item = &'static str> + Clone {
    use std::fmt::Write as _;

    let mut all = String::with_capacity(MILLION * 10);
    for n in 0..MILLION {
        write!(all, "id_{n:07}").unwrap();
    }
    let all: &'static str = String::leak(all);
    (0..MILLION).map(move |n| &all[n * 10..(n + 1) * 10])
}

fn per_year() -> OrgRateLimitLayerBuilder {
    // Nothing refills while the test runs, however slow it is.
    let quota = Quota::per(BURST, Duration::from_secs(365 * 24 * 3_600));
    OrgRateLimitLayer::builder(move |_: &OrgContext| Some(quota)).capacity(CAPACITY)
}

fn caller(limit: &OrgRateLimitLayer) -> impl FnMut(OrgContext) -> bool + use<> {
    let handler =
        service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Bytes::new())));
    let mut service = limit.layer(handler);
    move |context| {
        let mut request = Request::new(());
        request.extensions_mut().insert(context);
        let response = service.call(request).now_or_never().unwrap().unwrap();
        assert!([200, 429].contains(&response.status().as_u16()));
        response.status() == 200
    }
}

/// The resident memory of the process, in bytes.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes * 1024
}

#[cfg(not(target_os = "linux"))]
fn resident() -> u64 {
    0
}

#[test]
fn fault_53_flood_of_keys_has_bounded_memory() {
    let names = names();

    // A million organizations with usage.
    let limit = per_year().test_clock(TestClock::new()).build().unwrap();
    let mut passes = caller(&limit);
    let mut at_capacity = 0;
    for (n, name) in names.clone().enumerate() {
        assert!(passes(OrgContextBuilder::new(name).build()));
        assert!(limit.accounts() <= CAPACITY);
        if n == 4 * CAPACITY {
            assert_eq!(limit.accounts(), CAPACITY, "too few organizations");
            at_capacity = resident();
        }
    }
    let grown = resident().saturating_sub(at_capacity);
    // Some 400 bytes for each of the 800,000 organizations since then would be 320 MB.
    assert!(
        grown < 40_000_000,
        "grown by {grown} bytes since the capacity was reached"
    );
    drop((passes, limit));

    // A million keys of one organization, and others with used-up quotas.
    let limit = per_year()
        .per_key()
        .test_clock(TestClock::new())
        .build()
        .unwrap();
    let mut passes = caller(&limit);
    let others: Vec<OrgContext> = names
        .clone()
        .take(CAPACITY / 2)
        .map(|name| OrgContextBuilder::new(name).key_id("key").build())
        .collect();
    for _ in 0..BURST {
        assert!(others.iter().all(|other| passes(other.clone())));
    }
    let mut allowed = 0;
    for name in names {
        allowed += usize::from(passes(
            OrgContextBuilder::new("org_flood").key_id(name).build(),
        ));
    }
    let share = CAPACITY / 100;
    assert_eq!(limit.accounts(), others.len() + share);
    assert_eq!(allowed, share * BURST as usize, "a key got a fresh burst");
    let rejected = others.into_iter().filter(|other| !passes(other.clone()));
    assert_eq!(
        rejected.count(),
        CAPACITY / 2,
        "an account of another organization was evicted"
    );
}
