//! Outage simulation: 100,000 known keys, and an issuer that is down for an hour and answers 429 to excess calls in the next.
//!
//! In paused time and in memory. 1,000 requests a second; 10,000 with `TOWER_ORGKEY_FULL=1` in the environment. Prints the
//! figures of `BENCHMARKS.md`: run it with `--nocapture`.

// The lints do not recognize shared functions of tests as tests; their clock only moves forward.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::unchecked_time_subtraction,
    clippy::too_many_lines
)]

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, Response};
use tower::{Layer, Service};
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{
    ApiKey, ApiKeyLayer, BreakerState, OrgCode, OrgContext, Verification, Verifier, VerifyError,
};

const KEYS: usize = 100_000;
/// One new key per second.
const NEW_KEYS: usize = 2 * 3_600;
const HARD_TTL: Duration = Duration::from_secs(65 * 60);
const CALLS_PER_SECOND: u32 = 200;
/// The calls per second that the issuer permits after its return: fewer than the layer sends.
const PERMITTED_PER_SECOND: u32 = 150;
const HOUR: Duration = Duration::from_secs(3_600);
const STEP: Duration = Duration::from_millis(10);

/// An issuer in memory that records when it last called each key valid.
#[derive(Clone)]
struct Issuer(Arc<State>);

struct State {
    clock: TestClock,
    org: OrgCode,
    is_dead: AtomicBool,
    is_back: AtomicBool,
    /// The time when the last call with a valid answer was sent, in nanoseconds; zero for never.
    valid_at: Vec<AtomicU64>,
    calls: Mutex<Vec<Duration>>,
    too_many: Mutex<TooMany>,
}

#[derive(Default)]
struct TooMany {
    second: u64,
    calls: u32,
    until: Duration,
    answers: u64,
}

impl TooMany {
    /// Returns whether this call gets a 429; then all calls of the next 5 s do.
    fn is(&mut self, now: Duration) -> bool {
        if self.second != now.as_secs() {
            (self.second, self.calls) = (now.as_secs(), 0);
        }
        self.calls += 1;
        if self.calls > PERMITTED_PER_SECOND && now >= self.until {
            self.until = now + Duration::from_secs(5);
        }
        let is = now < self.until;
        self.answers += u64::from(is);
        is
    }
}

impl Verifier for Issuer {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let state = &self.0;
        let sent = state.clock.elapsed();
        let number = {
            let mut calls = state.calls.lock().unwrap();
            calls.push(sent);
            calls.len()
        };
        if state.is_dead.load(Ordering::Relaxed) {
            if number.is_multiple_of(2) {
                return Err(VerifyError::unavailable("connection refused"));
            }
            // No answer.
            return std::future::pending().await;
        }
        if state.is_back.load(Ordering::Relaxed) && state.too_many.lock().unwrap().is(sent) {
            return Err(VerifyError::throttled(Some(Duration::from_secs(5))));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        let nanos = u64::try_from(sent.as_nanos()).unwrap();
        state.valid_at[index(key.expose_secret())].store(nanos, Ordering::Relaxed);
        Ok(Verification::of_organization(state.org.clone()))
    }
}

fn secret(index: usize) -> String {
    format!("k_live_{index:08}")
}

fn index(secret: &str) -> usize {
    secret["k_live_".len()..].parse().unwrap()
}

/// A body with the age of the result.
enum Body {
    Passed { is_stale: bool, age: Duration },
    Refused,
}

impl From<Bytes> for Body {
    fn from(_: Bytes) -> Self {
        Self::Refused
    }
}

#[derive(Clone)]
struct Handler;

impl Service<Request<()>> for Handler {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let org = request.extensions().get::<OrgContext>().unwrap();
        ready(Ok(Response::new(Body::Passed {
            is_stale: org.is_stale(),
            age: org.age(),
        })))
    }
}

/// The responses of an hour.
#[derive(Default)]
struct Tally {
    requests: AtomicU64,
    fresh: AtomicU64,
    stale: AtomicU64,
    /// 503 for a key past the hard TTL.
    past: AtomicU64,
    /// Requests that had to wait.
    waited: AtomicU64,
    new_keys: AtomicU64,
    new_keys_passed: AtomicU64,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counts a response and compares it with the issuer's last answer about the key.
fn judge(issuer: &State, tally: &Tally, index: usize, response: &Response<Body>) {
    let now = issuer.clock.elapsed();
    let yes = issuer.valid_at[index].load(Ordering::Relaxed);
    let since_yes = (yes != 0).then(|| now - Duration::from_nanos(yes));
    match (response.status().as_u16(), response.body()) {
        (200, Body::Passed { is_stale, age }) => {
            let since_yes = since_yes.expect("accepted without any yes");
            assert!(since_yes < HARD_TTL, "accepted {since_yes:?} after its yes");
            assert_eq!(*age, since_yes, "the age of the context is wrong");
            add(if *is_stale {
                &tally.stale
            } else {
                &tally.fresh
            });
            if index >= KEYS {
                add(&tally.new_keys_passed);
            }
        }
        (503, Body::Refused) => {
            if index < KEYS {
                let since_yes = since_yes.expect("each known key was verified");
                assert!(
                    since_yes >= HARD_TTL,
                    "a known key failed {since_yes:?} after its yes"
                );
                add(&tally.past);
            }
        }
        (status, _) => panic!("{status} for a key that was never rejected"),
    }
}

/// The maximum number of calls in any second.
fn most_in_a_second(calls: &[Duration]) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (last, &at) in calls.iter().enumerate() {
        while calls[first] + Duration::from_secs(1) <= at {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}

#[tokio::test(start_paused = true)]
async fn fault_06_outage_simulation_fails_no_known_key() {
    let is_full = std::env::var_os("TOWER_ORGKEY_FULL").is_some_and(|full| full == "1");
    let per_step = if is_full { 100 } else { 10 };

    let clock = TestClock::new();
    clock.jump(Duration::from_secs(1_000));
    let issuer = Issuer(Arc::new(State {
        clock: clock.clone(),
        org: OrgCode::from_static("org_1"),
        is_dead: AtomicBool::new(false),
        is_back: AtomicBool::new(false),
        valid_at: (0..KEYS + NEW_KEYS).map(|_| AtomicU64::new(0)).collect(),
        calls: Mutex::default(),
        too_many: Mutex::default(),
    }));
    let layer = ApiKeyLayer::builder(issuer.clone())
        .test_clock(clock.clone())
        .hard_ttl(HARD_TTL)
        .capacity(150_000)
        .max_calls_per_second(CALLS_PER_SECOND)
        .build()
        .unwrap();
    let handle = layer.handle();
    let mut service = layer.layer(Handler);
    let headers: Vec<_> = (0..KEYS + NEW_KEYS)
        .map(|index| HeaderValue::try_from(format!("Bearer {}", secret(index))).unwrap())
        .collect();
    let state = Arc::clone(&issuer.0);

    // A request is polled once, as a server does; one that has to wait is spawned.
    let mut send = |index: usize, tally: &Arc<Tally>| {
        let mut request = Request::new(());
        request
            .headers_mut()
            .insert(AUTHORIZATION, headers[index].clone());
        add(&tally.requests);
        if index >= KEYS {
            add(&tally.new_keys);
        }
        let mut response = service.call(request);
        match Pin::new(&mut response).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(response)) => judge(&state, tally, index, &response),
            Poll::Pending => {
                add(&tally.waited);
                let (state, tally) = (Arc::clone(&state), Arc::clone(tally));
                tokio::spawn(async move {
                    let Ok(response) = response.await;
                    judge(&state, &tally, index, &response);
                });
            }
        }
    };

    // Warm-up: every key is verified, at the permitted rate.
    let warm = Arc::new(Tally::default());
    for index in 0..KEYS {
        send(index, &warm);
        tokio::time::sleep(Duration::from_secs(1) / CALLS_PER_SECOND).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(warm.fresh.load(Ordering::Relaxed), KEYS as u64);
    assert_eq!(handle.stats().entries, KEYS);

    let mut random = fastrand::Rng::with_seed(6);
    let mut new_key = KEYS;
    let mut hours = Vec::new();
    for is_dead in [true, false] {
        issuer.0.is_dead.store(is_dead, Ordering::Relaxed);
        issuer.0.is_back.store(!is_dead, Ordering::Relaxed);
        let began = clock.elapsed();
        let calls_before = issuer.0.calls.lock().unwrap().len();
        let tally = Arc::new(Tally::default());
        let mut opened = None;
        let mut next_second = began;
        while clock.elapsed() < began + HOUR {
            for _ in 0..per_step {
                send(random.usize(..KEYS), &tally);
            }
            if clock.elapsed() >= next_second && new_key < KEYS + NEW_KEYS {
                next_second += Duration::from_secs(1);
                send(new_key, &tally);
                new_key += 1;
            }
            tokio::time::sleep(STEP).await;
            if opened.is_none() && matches!(handle.upstream().breaker, BreakerState::Open { .. }) {
                opened = Some(issuer.0.calls.lock().unwrap().len() - calls_before);
            }
        }
        let calls = issuer.0.calls.lock().unwrap()[calls_before..].to_vec();
        hours.push((tally, calls, opened));
    }
    // Waiting requests end within the caller deadline.
    tokio::time::sleep(Duration::from_secs(3)).await;

    println!(
        "{:<9} {:>10} {:>10} {:>10} {:>9} {:>8} {:>8} {:>8} {:>13}",
        "hour", "requests", "fresh", "stale", "503", "waited", "calls", "calls/s", "new keys"
    );
    for ((tally, calls, _), name) in hours.iter().zip(["dead", "recovery"]) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        println!(
            "{name:<9} {:>10} {:>10} {:>10} {:>9} {:>8} {:>8} {:>8} {:>6} of {:>4}",
            of(&tally.requests),
            of(&tally.fresh),
            of(&tally.stale),
            of(&tally.past),
            of(&tally.waited),
            calls.len(),
            most_in_a_second(calls),
            of(&tally.new_keys_passed),
            of(&tally.new_keys),
        );
    }
    let too_many = issuer.0.too_many.lock().unwrap().answers;
    let known = (0..KEYS)
        .filter(|&index| {
            let yes = issuer.0.valid_at[index].load(Ordering::Relaxed);
            clock.elapsed() - Duration::from_nanos(yes) < HARD_TTL
        })
        .count();
    println!("answers 429 during the recovery: {too_many}; known keys at its end: {known}");

    let (dead, calls, opened) = &hours[0];
    assert!(dead.stale.load(Ordering::Relaxed) > 1_000_000);
    assert!(
        dead.past.load(Ordering::Relaxed) > 10_000,
        "keys pass their bound within the hour"
    );
    assert_eq!(dead.new_keys_passed.load(Ordering::Relaxed), 0);
    // Before the breaker opened, at most the permitted calls in flight; afterwards, one half-open call at a time.
    let opened = opened.unwrap();
    assert!(opened <= 64, "{opened}");
    let probes = &calls[opened..];
    assert!((60..=85).contains(&probes.len()), "{} probes", probes.len());
    for (n, pair) in calls[opened - 1..].windows(2).enumerate() {
        let shortest = Duration::from_secs(5 << n.min(4)).min(Duration::from_secs(60)) * 4 / 5;
        let gap = pair[1] - pair[0];
        assert!(gap >= shortest, "probe {n} after {gap:?}");
    }

    let (recovery, calls, _) = &hours[1];
    assert!(too_many >= 10, "{too_many} answers 429");
    assert!(most_in_a_second(calls) <= (CALLS_PER_SECOND + CALLS_PER_SECOND / 100) as usize);
    assert!(calls.len() > 150_000, "{} calls", calls.len());
    assert!(recovery.past.load(Ordering::Relaxed) > 0);
    // All keys recover: first those past their hard TTL, then the new ones.
    assert!(known > KEYS * 99 / 100, "{known}");
    assert!(recovery.new_keys_passed.load(Ordering::Relaxed) > 0);
}
