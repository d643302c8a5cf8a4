//! Failures affect only the keys that they are about.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use tokio::time::{sleep, timeout};
use tower_orgkey::{
    ApiKey, ApiKeyHandle, Attempt, BreakerState, OrgCode, Verification, Verifier, VerifyError,
};

use crate::support::app::{App, HARD, SOFT, millis, pass, secs};
use crate::support::issuer::{Answer, Behavior};

const KNOWN: &str = "known-key";
const LATENCY: Duration = millis(600);
const HOUR: Duration = secs(3_600);

#[track_caller]
fn is_closed(app: &App) {
    let upstream = app.handle.upstream();
    let both = (upstream.breaker, upstream.unknown_breaker);
    assert_eq!(both, (BreakerState::Closed, BreakerState::Closed));
}

/// An issuer with calls of 600 ms each; an invalid or new key takes two.
#[derive(Clone, Default)]
struct TwoSlowCalls {
    calls: Arc<AtomicUsize>,
    /// Whether a valid key takes a second call too.
    looks_valid_keys_up: bool,
}

impl Verifier for TwoSlowCalls {
    async fn verify(&self, _: &ApiKey) -> Result<Verification, VerifyError> {
        unreachable!("the layer makes attempts")
    }

    async fn verify_attempt(
        &self,
        key: &ApiKey,
        attempt: Attempt,
    ) -> Result<Verification, VerifyError> {
        let is_valid = !key.expose_secret().starts_with("invalid");
        let is_looked_up = self.looks_valid_keys_up && !attempt.is_known();
        let calls = if is_valid && !is_looked_up { 1 } else { 2 };
        for _ in 0..calls {
            self.calls.fetch_add(1, Ordering::Relaxed);
            timeout(attempt.deadline(), sleep(LATENCY))
                .await
                .map_err(VerifyError::unavailable)?;
        }
        Ok(if is_valid {
            Verification::of_organization(OrgCode::from_static("org_1"))
        } else {
            Verification::invalid()
        })
    }
}

#[tokio::test(start_paused = true)]
async fn fault_67_slow_endpoints_reject_no_valid_key() {
    for looks_valid_keys_up in [false, true] {
        for pause in [millis(10_000), millis(1_000), millis(100)] {
            let verifier = TwoSlowCalls {
                looks_valid_keys_up,
                ..TwoSlowCalls::default()
            };
            let calls = Arc::clone(&verifier.calls);
            let app = App::over_verifier(verifier);
            assert_eq!(app.get(KNOWN).await.status, 200);
            let until = app.now() + HOUR;
            let (mut n, mut oldest) = (0, Duration::ZERO);
            while app.now() < until {
                n += 1;
                drop(app.begin(&format!("invalid-{n}")));
                pass(pause).await;
                let known = app.get_now(KNOWN);
                assert_eq!(known.status, 200);
                oldest = oldest.max(known.age());
                is_closed(&app);
                if n % 100 == 0 {
                    assert_eq!(app.get(&format!("new-key-{n}")).await.status, 200);
                }
            }
            let invalid = app.get("invalid-last").await;
            assert_eq!((invalid.status, invalid.took), (401, 2 * LATENCY));
            assert!(oldest < SOFT + pause + secs(3), "refreshed all the time");
            assert!(calls.load(Ordering::Relaxed) >= 2 * n);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fault_70_invalid_responses_cost_no_other_key() {
    for wrong_replies in [1, 5] {
        let app = App::new().knowing(&[KNOWN, "once-valid"]).await;
        let mut keys: Vec<_> = (1..wrong_replies)
            .map(|n| format!("wrong-reply-{n}"))
            .collect();
        // One that was valid before.
        keys.push("once-valid".to_owned());
        for key in &keys {
            app.issuer.set(key, Answer::InvalidResponse);
        }
        let mut oldest = Duration::ZERO;
        for n in 0..6_000 {
            for key in &keys {
                drop(app.try_now(key));
            }
            pass(millis(100)).await;
            let known = app.get_now(KNOWN);
            assert_eq!(known.status, 200);
            oldest = oldest.max(known.age());
            is_closed(&app);
            if n % 100 == 0 {
                let new = format!("new-key-{n}");
                app.issuer.issue(&new);
                assert_eq!(app.get(&new).await.status, 200);
            }
        }
        assert!(oldest < SOFT + secs(1));
        for key in &keys[..wrong_replies - 1] {
            let calls = app.issuer.calls_for(key);
            // After 1 s, 2 s, … 60 s.
            assert!((12..=17).contains(&calls), "{calls} calls for {key}");
            let wait = app.get_now(key).is_unavailable();
            assert!((1..=60).contains(&wait), "{wait}");
        }
        assert!(app.issuer.calls_for("once-valid") >= 5);
        assert_eq!(app.get_now("once-valid").status, 200);
        pass(HARD).await;
        app.get("once-valid").await.is_unavailable();
    }
}

#[tokio::test(start_paused = true)]
async fn fault_71_failing_unknown_keys_delay_no_refresh() {
    let known: Vec<_> = (0..10).map(|n| format!("known-{n:04}")).collect();
    let secrets: Vec<_> = known.iter().map(String::as_str).collect();
    let app = App::new().knowing(&secrets).await;
    app.issuer.is(Behavior::FailsForUnknown);
    let mut was_open = false;
    let unknown = |n: usize| drop(app.begin(&format!("invalid-{n}")));
    for n in 0..3_000 {
        unknown(n);
        pass(millis(200)).await;
        was_open |= app.handle.upstream().unknown_breaker != BreakerState::Closed;
        assert_eq!(app.handle.upstream().breaker, BreakerState::Closed);
        for key in &secrets {
            assert!(app.get_now(key).age() < SOFT + secs(1));
        }
    }
    assert!(was_open, "unknown keys failed");

    // The issuer fails for all keys, then for unknown keys only. By then no key is fresh.
    pass(SOFT).await;
    app.issuer.is(Behavior::Fails);
    let mut n = 3_000;
    let remaining = loop {
        n += 1;
        unknown(n);
        pass(millis(200)).await;
        for key in &secrets {
            drop(app.try_now(key));
        }
        if let BreakerState::Open { remaining } = app.handle.upstream().breaker {
            break remaining;
        }
    };
    app.issuer.is(Behavior::FailsForUnknown);
    let until = app.now() + remaining;
    while app.now() < until {
        n += 1;
        unknown(n);
        pass(millis(200)).await;
        drop(app.try_now(secrets[0]));
    }
    // Its refresh is the half-open call, however many unknown keys there are.
    pass(secs(6)).await;
    unknown(n + 1);
    drop(app.try_now(secrets[0]));
    pass(millis(100)).await;
    assert_eq!(app.handle.upstream().breaker, BreakerState::Closed);
    for key in &secrets {
        drop(app.try_now(key));
    }
    pass(millis(100)).await;
    for key in &secrets {
        assert!(!app.get_now(key).is_stale(), "refreshed");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_76_many_revoked_keys_are_removed_in_time() {
    for number in [20, 200, 2_000] {
        let app = App::new();
        app.issuer.latency(millis(50));
        let revoked: Vec<_> = (0..number).map(|n| format!("revoked-{n:05}")).collect();
        let others: Vec<_> = (0..100).map(|n| format!("other-{n:05}")).collect();
        for keys in revoked.chunks(500).chain([&others[..]]) {
            let loads: Vec<_> = keys
                .iter()
                .map(|key| {
                    app.issuer.issue(key);
                    app.begin(key)
                })
                .collect();
            for load in loads {
                assert_eq!(load.await.unwrap().status, 200);
            }
        }
        for key in &revoked {
            app.issuer.set(key, Answer::Unconfirmed);
        }
        let revoked_at = app.now();
        // Each key is sent every ten seconds, and so is a new one.
        let mut new = 0;
        while app.now() < revoked_at + 2 * SOFT {
            for key in revoked.iter().chain(&others) {
                drop(app.try_now(key));
            }
            pass(secs(5)).await;
            new += 1;
            let secret = format!("new-key-{new}");
            app.issuer.issue(&secret);
            assert_eq!(app.get(&secret).await.status, 200);
            pass(secs(5)).await;
        }
        assert!(app.issuer.calls_for(&revoked[0]) >= 2);
        // At 64 calls of 50 ms, 2,000 take 1.6 s.
        let asked: Vec<_> = revoked.iter().map(|key| app.begin(key)).collect();
        for asked in asked {
            let status = asked.await.unwrap().status;
            // Above the budget for invalid keys, a key is not verified.
            let is_out = status == 401 || (number > 500 && status == 503);
            assert!(is_out, "{status}, of {number}");
        }
        for key in &others {
            assert_eq!(app.get(key).await.status, 200);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fault_77_thousand_new_keys_are_admitted() {
    let app = App::new();
    app.issuer.latency(millis(50));
    let mut new = Vec::new();
    for n in 0..1_000 {
        let secret = format!("new-key-{n}");
        app.issuer.issue(&secret);
        new.push(app.begin(&secret));
        if n % 10 == 9 {
            pass(millis(1)).await;
        }
    }
    for new in new {
        assert_eq!(new.await.unwrap().status, 200);
    }
    assert_eq!(app.issuer.max_in_flight(), 48);
}

#[tokio::test(start_paused = true)]
async fn fault_78_forced_verifications_are_paced() {
    const BEARABLE: usize = 100;

    let app = App::new().knowing(&[KNOWN]).await;
    let forced: Vec<_> = (0..50).map(|n| format!("forced-{n:04}")).collect();
    for key in &forced {
        app.issuer.issue_as(key, "org_forced", key);
        assert_eq!(app.get(key).await.status, 200);
    }
    app.issuer.is(Behavior::PermitsPerSecond(BEARABLE));
    let strict = app.max_age(Duration::ZERO);
    let began = app.now();
    let mut asked = Vec::new();
    for n in 0..12_000 {
        asked.push(strict.begin(&forced[n % forced.len()]));
        pass(millis(5)).await;
        assert_eq!(app.get_now(KNOWN).status, 200);
        if n % 200 == 0 {
            let new = format!("new-key-{n}");
            app.issuer.issue_as(&new, "org_new", &new);
            assert_eq!(app.get(&new).await.status, 200);
        }
    }
    let took = app.now() - began;
    let calls = app
        .issuer
        .logged(|call| call.at >= began && call.key.starts_with("forced"));
    // 25 at once and 25 a second.
    let most = 25.0 * (took.as_secs_f64() + 1.0) + 1.0;
    let made = u32::try_from(calls.len()).unwrap();
    assert!(f64::from(made) <= most, "{made} in {took:?}");
    assert!(f64::from(made) >= most * 0.9, "{made} in {took:?}");
    let mut served = 0;
    for asked in asked {
        served += usize::from(asked.await.unwrap().status == 200);
    }
    // Requests for one key share its next verification.
    assert!(served >= 11_500, "{served} of 12,000");
    assert_eq!(app.issuer.faults(), 0, "a call exceeded the rate");
}

#[tokio::test(start_paused = true)]
async fn unknown_keys_displace_no_known_lookup() {
    let app = App::with(|builder| builder.max_calls_per_second(10));
    let known: Vec<_> = (0..10).map(|n| format!("known-{n:04}")).collect();
    let secrets: Vec<_> = known.iter().map(String::as_str).collect();
    let app = app.knowing(&secrets).await;
    pass(2 * SOFT).await;
    app.issuer.is(Behavior::FailsForUnknown);
    let asked: Vec<_> = known.iter().map(|key| app.begin(key)).collect();
    for n in 0..10 {
        drop(app.begin(&format!("unknown-{n}")));
    }
    for asked in asked {
        let answer = asked.await.unwrap();
        assert_eq!((answer.status, answer.is_stale()), (200, false));
    }
    let breaker = app.handle.upstream().unknown_breaker;
    assert!(matches!(breaker, BreakerState::Open { .. }), "{breaker:?}");
}

#[tokio::test(start_paused = true)]
async fn key_invalidated_in_flight_is_recently_valid() {
    let app = App::new().knowing(&[KNOWN]).await;
    pass(2 * SOFT).await;
    app.issuer.latency(millis(900));
    let asked = app.begin(KNOWN);
    pass(millis(1)).await;
    app.open_breaker().await;
    app.issuer.is(Behavior::FailsForUnknown);
    app.handle.invalidate_all();
    assert_eq!(asked.await.unwrap().status, 200);
}

/// Reads the state of the layer whenever something is recorded.
#[derive(Debug)]
struct Reader {
    handle: OnceLock<ApiKeyHandle>,
    reads: AtomicUsize,
}

impl Reader {
    fn read(&self) {
        if let Some(handle) = self.handle.get() {
            let _ = (handle.upstream(), handle.stats());
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct ReadingRecorder(Arc<Reader>);

impl CounterFn for Reader {
    fn increment(&self, _: u64) {
        self.read();
    }

    fn absolute(&self, _: u64) {
        self.read();
    }
}

impl GaugeFn for Reader {
    fn increment(&self, _: f64) {
        self.read();
    }

    fn decrement(&self, _: f64) {
        self.read();
    }

    fn set(&self, _: f64) {
        self.read();
    }
}

impl HistogramFn for Reader {
    fn record(&self, _: f64) {
        self.read();
    }
}

impl Recorder for ReadingRecorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::clone(&self.0))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::clone(&self.0))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::clone(&self.0))
    }
}

impl std::io::Write for ReadingRecorder {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.read();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Makes the layer emit each of its events about the issuer.
async fn trouble(reader: &Reader) {
    let known: Vec<_> = (0..30).map(|n| format!("known-{n:04}")).collect();
    let secrets: Vec<_> = known.iter().map(String::as_str).collect();
    let app = App::with(|builder| builder.max_calls_per_second(100))
        .knowing(&secrets)
        .await;
    let _ = reader.handle.set(app.handle.clone());
    pass(SOFT).await;
    app.issuer.is(Behavior::Unconfirmed);
    for _ in 0..4 {
        for key in &secrets {
            assert_eq!(app.get(key).await.status, 200);
        }
        pass(secs(6)).await;
    }
    app.issuer.is(Behavior::Answers);
    let crowd: Vec<_> = (0..200).map(|n| app.begin(&format!("crowd-{n}"))).collect();
    for one in crowd {
        one.await.unwrap();
    }
    app.open_breaker().await;
    pass(2 * SOFT).await;
    app.open_breaker_by(&known).await;
    app.issuer.is(Behavior::Answers);
    pass(secs(12)).await;
    assert_eq!(app.get("unknown-9").await.status, 401);
    assert_eq!(app.get(&known[0]).await.status, 200);
    app.issuer.is(Behavior::Throttles(None));
    app.get("unknown-8").await.is_unavailable();
    for key in &known {
        app.handle.invalidate_key(&crate::support::app::key(key));
    }
    app.handle.invalidate_all();
}

#[test]
fn fault_82_telemetry_may_read_the_layer() {
    let (done, is_done) = mpsc::channel();
    // On another thread, so that a deadlock fails the test.
    std::thread::spawn(move || {
        let reader = Arc::new(Reader {
            handle: OnceLock::new(),
            reads: AtomicUsize::new(0),
        });
        let recorder = ReadingRecorder(Arc::clone(&reader));
        let _recorder = metrics::set_default_local_recorder(&recorder);
        let events = Arc::clone(&reader);
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || ReadingRecorder(Arc::clone(&events)))
            .finish();
        let _subscriber = tracing::subscriber::set_default(subscriber);
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(trouble(&reader));
        let _ = done.send(reader.reads.load(Ordering::Relaxed));
    });
    let reads = is_done
        .recv_timeout(secs(60))
        .expect("telemetry is emitted under a lock");
    assert!(reads >= 100, "{reads}");
}

#[tokio::test(start_paused = true)]
async fn hour_of_mixed_faults_fails_no_known_key() {
    const KEYS: usize = 10_000;

    let app = App::new();
    app.issuer.issue("wrong-reply");
    app.issuer.set("wrong-reply", Answer::InvalidResponse);
    let keys: Vec<_> = (0..KEYS).map(|n| format!("known-{n:06}")).collect();
    for batch in keys.chunks(40) {
        let loads: Vec<_> = batch
            .iter()
            .map(|key| {
                app.issuer.issue(key);
                app.begin(key)
            })
            .collect();
        for load in loads {
            assert_eq!(load.await.unwrap().status, 200);
        }
    }
    app.issuer.latency(LATENCY);
    let (mut next, mut invalid, mut new) = (0, 0, 0);
    let mut asked = Vec::new();
    for tenth in 0..36_000 {
        drop(app.try_now("wrong-reply"));
        if tenth % 5 == 0 {
            invalid += 1;
            drop(app.try_now(&format!("invalid-{invalid}")));
        }
        // Each known key is sent once a minute: more than 64 calls of 600 ms can refresh.
        for _ in 0..17 {
            asked.push(app.begin(&keys[next]));
            next = (next + 1) % KEYS;
        }
        if asked.len() > 1_000 {
            for known in asked.drain(..500) {
                let known = known.await.unwrap();
                assert_eq!(known.status, 200);
                assert!(known.took <= millis(2_500));
            }
        }
        if tenth % 100 == 0 {
            new += 1;
            let secret = format!("new-key-{new}");
            app.issuer.issue(&secret);
            assert_eq!(app.get(&secret).await.status, 200);
        }
        pass(millis(100)).await;
        is_closed(&app);
    }
    assert!(app.issuer.faults() >= 50, "nonsense was said");
    assert!(
        app.issuer
            .logged(|call| call.key.starts_with("invalid"))
            .len()
            >= 7_000
    );
}
