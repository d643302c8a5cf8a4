//! A rotation or deletion in Kinde takes effect within one reconciliation and one verification.

#![allow(clippy::unwrap_used)] // A test may fail on what it did not expect.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::{Method, StatusCode};
use kinde_emulator::{Endpoint, Fault, IssuedKey, KeySpec, KindeEmulator};
use metrics::{
    Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use metrics_util::CompositeKey;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, advance};
use tower_orgkey::kinde::{KeyReconciler, KeyReconcilerBuilder, KindeVerifier};
use tower_orgkey::test_util::TestClock;
use tower_orgkey::verify::{Organizations, PrefixVerifier};
use tower_orgkey::{
    ApiKey, ApiKeyHandle, ApiKeyLayer, KeyId, OrgCode, OrgContext, Verification, VerifyErrorKind,
    telemetry, verifier_fn,
};

use crate::support::log::Log;
use crate::support::service::call;

/// Only a failing test waits this long.
const HANG: Duration = Duration::from_secs(30);

struct Stage {
    emulator: KindeEmulator,
    clock: TestClock,
    kinde: KindeVerifier,
    keys: ApiKeyHandle,
    app: Router,
    /// The context of the last request that passed.
    context: watch::Receiver<Option<OrgContext>>,
}

impl Stage {
    async fn set() -> Self {
        let emulator = KindeEmulator::start().await.unwrap();
        let clock = TestClock::new();
        let kinde = KindeVerifier::builder(emulator.issuer_url())
            .client_credentials(emulator.client_id(), emulator.client_secret())
            .test_clock(clock.clone())
            .build()
            .unwrap();
        let auth = ApiKeyLayer::builder(kinde.clone())
            // Long, so that only the reconciler takes effect.
            .soft_ttl(Duration::from_secs(600))
            .hard_ttl(Duration::from_secs(3600))
            .allow_user_keys()
            .test_clock(clock.clone())
            .build()
            .unwrap();
        let keys = auth.handle();
        let (sender, context) = watch::channel(None);
        let handler = move |org: OrgContext| async move { drop(sender.send(Some(org))) };
        let app = Router::new().route("/", get(handler)).route_layer(auth);
        Self {
            emulator,
            clock,
            kinde,
            keys,
            app,
            context,
        }
    }

    fn reconciler(&self) -> KeyReconcilerBuilder {
        KeyReconciler::builder(&self.kinde, self.keys.clone()).calls_per_second(1_000)
    }

    fn issue(&self, org_code: &str) -> IssuedKey {
        self.emulator.issue_key(KeySpec::organization(org_code))
    }

    async fn get(&self, secret: &str) -> StatusCode {
        call(&self.app, Method::GET, "/", secret).await.status()
    }

    /// Issues a key and verifies it.
    async fn known(&self, org_code: &str) -> IssuedKey {
        let key = self.issue(org_code);
        assert_eq!(self.get(key.secret()).await, StatusCode::OK);
        key
    }

    fn verifications(&self) -> u64 {
        self.emulator.calls().verify.total
    }

    /// Checks that the key is served from the cache.
    async fn is_cached(&self, key: &IssuedKey) {
        let before = self.verifications();
        assert_eq!(self.get(key.secret()).await, StatusCode::OK);
        assert_eq!(self.verifications(), before, "verified again");
    }

    /// Checks that the key is valid after one more verification.
    async fn is_verified_again(&self, key: &IssuedKey) {
        let before = self.verifications();
        assert_eq!(self.get(key.secret()).await, StatusCode::OK);
        assert_eq!(self.verifications(), before + 1);
    }

    async fn is_rejected(&self, key: &IssuedKey) {
        assert_eq!(self.get(key.secret()).await, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn fault_27b_rotated_secret_is_invalidated() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let old = stage.known("org_a").await;
    let bystander = stage.known("org_b").await;
    let new = stage.emulator.rotate(old.id());
    stage.clock.jump(Duration::from_secs(10));
    // The fault was injected: the cache does not know of the rotation.
    stage.is_cached(&old).await;
    stage.is_verified_again(&new).await;

    let report = reconciler.reconcile_once().await.unwrap();
    assert_eq!(
        (
            report.calls,
            report.listed,
            report.compared,
            report.invalidated
        ),
        (1, 2, 3, 1)
    );
    stage.is_rejected(&old).await;
    stage.is_cached(&new).await;
    stage.is_cached(&bystander).await;
    // Nothing remains to be invalidated, and nothing was blocked.
    assert_eq!(reconciler.reconcile_once().await.unwrap().invalidated, 0);
    stage.is_cached(&new).await;
}

#[tokio::test]
async fn fault_27b_removed_key_is_invalidated() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let removals: [fn(&KindeEmulator, &str); 3] = [
        |emulator, id| emulator.delete(id),
        |emulator, id| emulator.revoke(id),
        |emulator, id| emulator.deactivate(id),
    ];
    let bystander = stage.known("org_b").await;
    for remove in removals {
        let key = stage.known("org_a").await;
        remove(&stage.emulator, key.id());
        stage.clock.jump(Duration::from_secs(10));
        stage.is_cached(&key).await;
        assert_eq!(reconciler.reconcile_once().await.unwrap().invalidated, 1);
        stage.is_rejected(&key).await;
        stage.is_cached(&bystander).await;
    }
}

#[tokio::test]
async fn keys_of_other_issuers_are_not_compared() {
    let stage = Stage::set().await;
    let other = verifier_fn(|_| async {
        Ok(Verification::of_organization(OrgCode::from_static("org_x"))
            .with_key_id(KeyId::from_static("api_key_x")))
    });
    let verifier = PrefixVerifier::builder()
        .issuer("kinde", [""], stage.kinde.clone())
        .issuer("other", ["other-"], other)
        .organizations(Organizations::Separate)
        .build()
        .unwrap();
    let auth = ApiKeyLayer::builder(verifier)
        .soft_ttl(Duration::from_secs(600))
        .hard_ttl(Duration::from_secs(3600))
        .test_clock(stage.clock.clone())
        .build()
        .unwrap();
    let stage = Stage {
        keys: auth.handle(),
        app: Router::new()
            .route("/", get(|_: OrgContext| async {}))
            .route_layer(auth),
        ..stage
    };
    let mut reconciler = stage.reconciler().issuer("kinde").build().unwrap();
    let key = stage.known("org_a").await;
    let kept = stage.known("org_a").await;
    assert_eq!(stage.get("other-key-0").await, StatusCode::OK);
    let report = reconciler.reconcile_once().await.unwrap();
    assert_eq!((report.compared, report.invalidated), (2, 0));
    stage.emulator.delete(key.id());
    stage.clock.jump(Duration::from_secs(10));
    let report = reconciler.reconcile_once().await.unwrap();
    assert_eq!((report.compared, report.invalidated), (2, 1));
    stage.is_rejected(&key).await;
    stage.is_cached(&kept).await;
}

#[tokio::test]
async fn fault_27b_idle_key_is_verified_again() {
    let stage = Stage::set().await;
    let auth = ApiKeyLayer::builder(stage.kinde.clone())
        .test_clock(stage.clock.clone())
        .build()
        .unwrap();
    let stage = Stage {
        keys: auth.handle(),
        app: Router::new()
            .route("/", get(|_: OrgContext| async {}))
            .route_layer(auth),
        ..stage
    };
    let (rotated, deleted) = (stage.known("org_a").await, stage.known("org_a").await);
    let new = stage.emulator.rotate(rotated.id());
    stage.emulator.delete(deleted.id());
    stage.clock.jump(Duration::from_secs(10));
    stage.is_cached(&rotated).await;
    stage.is_cached(&deleted).await;
    stage.is_verified_again(&new).await;
    stage.clock.jump(Duration::from_secs(14 * 60));
    stage.is_rejected(&rotated).await;
    stage.is_rejected(&deleted).await;
    stage.is_verified_again(&new).await;
}

#[tokio::test]
async fn fault_27b_outdated_list_keeps_no_key_valid() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let key = stage.known("org_a").await;
    let listed_forever = format!(
        r#"{{"has_more":false,"api_keys":[{{"id":"{}","status":"active"}}]}}"#,
        key.id()
    );
    let fault = Fault::reply(200, "application/json", listed_forever);
    stage.emulator.inject(Endpoint::ListKeys, fault);
    stage.emulator.delete(key.id());
    assert_eq!(reconciler.reconcile_once().await.unwrap().invalidated, 0);
    stage.clock.jump(Duration::from_secs(2 * 600));
    stage.is_rejected(&key).await;
    assert!(stage.emulator.calls().list_keys.faulted > 0);
}

#[tokio::test]
async fn all_pages_are_read_before_invalidations() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().page_size(2).build().unwrap();
    let mut known = Vec::new();
    for _ in 0..5 {
        known.push(stage.known("org_a").await);
    }
    let report = reconciler.reconcile_once().await.unwrap();
    assert_eq!(
        (
            report.calls,
            report.listed,
            report.compared,
            report.invalidated
        ),
        (3, 5, 5, 0)
    );
    let request = stage.emulator.last_request(Endpoint::ListKeys).unwrap();
    let query = request.uri().query().unwrap();
    let expected = format!(
        "key_type=organization&status=active&page_size=2&starting_after={}",
        known[3].id()
    );
    assert_eq!(query, expected);
    for key in &known {
        stage.is_cached(key).await;
    }
}

#[tokio::test]
async fn failed_reconciliation_changes_nothing() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().page_size(1).build().unwrap();
    let known = [
        stage.known("org_a").await,
        stage.known("org_a").await,
        stage.known("org_a").await,
    ];
    let gone = stage.known("org_a").await;
    stage.emulator.delete(gone.id());
    let rotated = stage.known("org_a").await;
    stage.emulator.rotate(rotated.id());
    let html = "<h1>It works!</h1>";
    for fault in [
        Fault::status(500),
        Fault::status(429).with_header("ratelimit-reset", "30"),
        Fault::status(400),
        Fault::route_not_found(),
        Fault::redirect("https://example.com/"),
        Fault::truncate(),
        Fault::reset_mid_body(),
        Fault::close(),
        Fault::reply(200, "text/html", html),
        Fault::reply(200, "application/json", " ".repeat(5 << 20)),
        Fault::without_member("api_keys"),
        Fault::without_member("has_more"),
        Fault::with_member("api_keys", "null"),
        Fault::with_member("api_keys", "[{}]"),
        Fault::with_member("has_more", "null"),
    ] {
        // The second page, of four.
        let before = stage.emulator.calls().list_keys.faulted;
        stage.emulator.clear_faults();
        stage.emulator.reset_calls();
        let what = format!("{fault:?} {before}");
        stage.emulator.inject(Endpoint::ListKeys, fault.every(2));
        reconciler.reconcile_once().await.expect_err(&what);
        let calls = stage.emulator.calls();
        assert_eq!(
            (calls.list_keys.total, calls.list_keys.faulted),
            (2, 1),
            "{what}"
        );
        for key in known.iter().chain([&gone, &rotated]) {
            stage.is_cached(key).await;
        }
    }
    stage.emulator.clear_faults();
    assert_eq!(reconciler.reconcile_once().await.unwrap().invalidated, 2);
    stage.is_rejected(&gone).await;
    stage.is_rejected(&rotated).await;
}

#[tokio::test]
async fn page_has_a_deadline() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let key = stage.known("org_a").await;
    stage
        .emulator
        .inject(Endpoint::ListKeys, Fault::no_response());
    let result = tokio::time::timeout(HANG, reconciler.reconcile_once()).await;
    assert_eq!(
        result.unwrap().unwrap_err().kind(),
        VerifyErrorKind::Unavailable
    );
    assert_eq!(stage.emulator.calls().list_keys.faulted, 1);
    stage.is_cached(&key).await;
}

#[tokio::test]
async fn keys_verified_after_the_start_are_kept() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let again = stage.known("org_a").await;
    let control = stage.known("org_a").await;
    stage.emulator.inject(Endpoint::ListKeys, Fault::hold());
    let task = tokio::spawn(async move { (reconciler.reconcile_once().await, reconciler) });
    let arrived = stage.emulator.wait_for_calls(Endpoint::ListKeys, 1);
    tokio::time::timeout(HANG, arrived).await.unwrap();
    // During the reconciliation, one key is new and another, cached one is verified again.
    let new = stage.known("org_a").await;
    stage
        .keys
        .invalidate_key(&ApiKey::parse(again.secret()).unwrap());
    stage.is_verified_again(&again).await;
    for key in [&new, &again, &control] {
        stage.emulator.delete(key.id());
    }
    stage.emulator.clear_faults();
    let (report, mut reconciler) = tokio::time::timeout(HANG, task).await.unwrap().unwrap();
    let report = report.unwrap();
    assert_eq!(
        (report.listed, report.compared, report.invalidated),
        (0, 2, 1)
    );
    stage.is_cached(&new).await;
    stage.is_cached(&again).await;
    stage.is_rejected(&control).await;
    assert_eq!(reconciler.reconcile_once().await.unwrap().invalidated, 2);
    stage.is_rejected(&new).await;
    stage.is_rejected(&again).await;
}

#[tokio::test]
async fn dropped_reconciliation_changes_nothing() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let key = stage.known("org_a").await;
    stage.emulator.delete(key.id());
    stage.emulator.inject(Endpoint::ListKeys, Fault::hold());
    tokio::select! {
        _ = reconciler.reconcile_once() => panic!("the page is delayed"),
        () = stage.emulator.wait_for_calls(Endpoint::ListKeys, 1) => {}
    }
    stage.emulator.clear_faults();
    stage.is_cached(&key).await;
    assert_eq!(reconciler.reconcile_once().await.unwrap().invalidated, 1);
}

#[tokio::test]
async fn repeating_list_is_an_error() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let key = stage.known("org_a").await;
    for (keys, calls) in [
        (r#"{"id":"a"}"#, 2),
        (r#"{"id":"a"},{"id":"a"}"#, 1),
        (r#"{"id":"a"},{"id":"b"},{"id":"a"}"#, 1),
        ("", 1),
    ] {
        let body = format!(r#"{{"has_more":true,"api_keys":[{keys}]}}"#);
        stage.emulator.reset_calls();
        let fault = Fault::reply(200, "application/json", body);
        stage.emulator.inject(Endpoint::ListKeys, fault);
        reconciler.reconcile_once().await.unwrap_err();
        let seen = stage.emulator.calls().list_keys;
        assert_eq!((seen.total, seen.faulted), (calls, calls), "{keys}");
        stage.is_cached(&key).await;
    }
}

#[tokio::test]
async fn list_longer_than_max_calls_is_an_error() {
    let stage = Stage::set().await;
    let reconciler = |calls| stage.reconciler().page_size(1).max_calls(calls).build();
    let mut known = Vec::new();
    for _ in 0..8 {
        known.push(stage.known("org_a").await);
    }
    let gone = stage.known("org_a").await;
    stage.emulator.delete(gone.id());
    reconciler(7).unwrap().reconcile_once().await.unwrap_err();
    assert_eq!(stage.emulator.calls().list_keys.ok, 7);
    for key in known.iter().chain([&gone]) {
        stage.is_cached(key).await;
    }
    let report = reconciler(8).unwrap().reconcile_once().await.unwrap();
    assert_eq!((report.listed, report.invalidated), (8, 1));
}

#[tokio::test]
async fn missing_or_odd_suffix_is_ignored() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let old = stage.known("org_a").await;
    stage.emulator.rotate(old.id());
    for suffix in [
        "null",
        r#""""#,
        r#""xyz""#,
        r#""vwxyz""#,
        "1234",
        r#""éyz""#,
        r#""****""#,
    ] {
        let body = format!(
            r#"{{"has_more":false,"api_keys":[{{"id":"{}","status":"active","key_suffix":{suffix}}}]}}"#,
            old.id()
        );
        let fault = Fault::reply(200, "application/json", body);
        stage.emulator.inject(Endpoint::ListKeys, fault);
        let report = reconciler.reconcile_once().await.unwrap();
        assert_eq!((report.listed, report.invalidated), (1, 0), "{suffix}");
        stage.is_cached(&old).await;
    }
    stage.emulator.clear_faults();
    assert_eq!(reconciler.reconcile_once().await.unwrap().invalidated, 1);
}

#[tokio::test]
async fn inactive_listed_key_counts_as_missing() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let key = stage.known("org_a").await;
    let body = format!(
        r#"{{"has_more":false,"api_keys":[{{"id":"{}","status":"revoked"}}]}}"#,
        key.id()
    );
    let fault = Fault::reply(200, "application/json", body);
    stage.emulator.inject(Endpoint::ListKeys, fault);
    stage.emulator.revoke(key.id());
    assert_eq!(reconciler.reconcile_once().await.unwrap().invalidated, 1);
    stage.is_rejected(&key).await;
}

#[tokio::test]
async fn invalidated_key_ends_its_stream() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let bystander = stage.known("org_a").await;
    let other_ends = stage.context.borrow().clone().unwrap().until_invalid();
    let gone = stage.known("org_a").await;
    let ends = stage.context.borrow().clone().unwrap().until_invalid();
    stage.emulator.delete(gone.id());
    let (ends, other_ends) = (tokio::spawn(ends), tokio::spawn(other_ends));
    assert_eq!(reconciler.reconcile_once().await.unwrap().invalidated, 1);
    tokio::time::timeout(HANG, ends).await.unwrap().unwrap();
    stage.is_cached(&bystander).await;
    assert!(!other_ends.is_finished());
}

#[tokio::test]
async fn reconciliations_are_counted_and_logged() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _subscriber = tracing::subscriber::set_default(subscriber);
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recorder = metrics::set_default_local_recorder(&recorder);

    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    reconciler.reconcile_once().await.unwrap();
    let key = stage.known("org_a").await;
    let new = stage.emulator.rotate(key.id());
    stage
        .emulator
        .inject(Endpoint::ListKeys, Fault::status(500));
    for _ in 0..3 {
        reconciler.reconcile_once().await.unwrap_err();
    }
    stage.emulator.clear_faults();
    reconciler.reconcile_once().await.unwrap();
    for _ in 0..25 {
        stage.known("org_a").await;
    }
    let fault = Fault::with_member("api_keys", "[]");
    stage.emulator.inject(Endpoint::ListKeys, fault);
    assert!(!reconciler.reconcile_once().await.unwrap().is_confirmed);

    let counted: BTreeMap<String, u64> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .filter_map(|(key, _, _, value)| match value {
            DebugValue::Counter(count) => {
                let label = key
                    .key()
                    .labels()
                    .next()
                    .map(|label| label.value().to_owned());
                Some((
                    format!("{} {}", key.key().name(), label.unwrap_or_default()),
                    count,
                ))
            }
            _ => None,
        })
        .filter(|(name, _)| name.starts_with("orgkey_reconciler"))
        .collect();
    let runs = |result: &str| counted.get(&format!("{} {result}", telemetry::RECONCILER_RUNS));
    assert_eq!(runs("idle"), Some(&1));
    assert_eq!(runs("failed"), Some(&3));
    assert_eq!(runs("complete"), Some(&1));
    assert_eq!(runs("unconfirmed"), Some(&1));
    let total = |name: &str| counted[&format!("{name} ")];
    assert_eq!(total(telemetry::RECONCILER_CALLS), 5);
    assert_eq!(total(telemetry::RECONCILER_INVALIDATED), 1);

    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let logged = |message: &str| text.matches(message).count();
    assert_eq!(logged("reconciliation failed"), 1);
    assert_eq!(logged("reconciliation succeeded again"), 1);
    assert_eq!(logged("cached keys invalidated"), 1);
    assert_eq!(logged("issuer's key list contradicts most cached keys"), 1);
    for secret in [key.secret(), new.secret(), &stage.emulator.client_secret()] {
        assert_eq!(logged(secret), 0);
        assert_eq!(logged(&secret[secret.len() - 8..]), 0);
    }
}

/// Collects events as text.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn keys_outside_the_list_are_not_compared() {
    let stage = Stage::set().await;
    let mut reconciler = stage
        .reconciler()
        .only(|key_id| key_id.as_str().starts_with("api_key_"))
        .build()
        .unwrap();
    // The list has no keys of users.
    let users = KeySpec::user("kp_1").in_organization("org_a");
    let users = stage.emulator.issue_key(users);
    assert_eq!(stage.get(users.secret()).await, StatusCode::OK);
    // The list has no keys of other issuers.
    let fault = Fault::with_member("key_id", r#""other_1""#);
    stage.emulator.inject(Endpoint::Verify, fault);
    let others = stage.known("org_a").await;
    stage.emulator.clear_faults();
    let ours = stage.known("org_a").await;
    let fault = Fault::with_member("api_keys", "[]");
    stage.emulator.inject(Endpoint::ListKeys, fault);
    let report = reconciler.reconcile_once().await.unwrap();
    assert_eq!((report.compared, report.invalidated), (1, 1));
    stage.is_cached(&users).await;
    stage.is_cached(&others).await;
    stage.is_verified_again(&ours).await;
}

#[tokio::test]
async fn empty_cache_costs_no_call() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    stage.issue("org_a");
    let report = reconciler.reconcile_once().await.unwrap();
    assert_eq!((report.calls, report.compared), (0, 0));
    assert_eq!(stage.emulator.calls().total(), 0);
}

#[tokio::test]
async fn list_lacking_most_keys_needs_confirmation() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let mut known = Vec::new();
    for _ in 0..25 {
        known.push(stage.known("org_a").await);
    }
    let empty = || Fault::with_member("api_keys", "[]");
    stage.emulator.inject(Endpoint::ListKeys, empty());
    let report = reconciler.reconcile_once().await.unwrap();
    assert_eq!((report.is_confirmed, report.invalidated), (false, 0));
    for key in &known {
        stage.is_cached(key).await;
    }
    // The next list is complete, so a later incomplete one needs confirmation again.
    stage.emulator.clear_faults();
    let report = reconciler.reconcile_once().await.unwrap();
    assert_eq!((report.is_confirmed, report.invalidated), (true, 0));
    stage.emulator.inject(Endpoint::ListKeys, empty());
    assert!(!reconciler.reconcile_once().await.unwrap().is_confirmed);
    let report = reconciler.reconcile_once().await.unwrap();
    assert_eq!((report.is_confirmed, report.invalidated), (true, 25));
    // No key was blocked.
    for key in &known {
        stage.is_verified_again(key).await;
    }
    // A list with other suffixes for all keys needs confirmation too.
    let fault = Fault::rewrite(|body| {
        body.replace("\"key_suffix\":\"", "\"key_suffix\":\"0000\",\"was\":\"")
    });
    stage.emulator.inject(Endpoint::ListKeys, fault);
    let report = reconciler.reconcile_once().await.unwrap();
    assert_eq!((report.is_confirmed, report.invalidated), (false, 0));
    assert_eq!(reconciler.reconcile_once().await.unwrap().invalidated, 25);
}

#[tokio::test]
async fn list_lacking_half_needs_no_confirmation() {
    for (of, is_confirmed) in [(40, true), (39, false)] {
        let stage = Stage::set().await;
        let mut reconciler = stage.reconciler().build().unwrap();
        for n in 0..of {
            let key = stage.known("org_a").await;
            if n < 20 {
                stage.emulator.delete(key.id());
            }
        }
        stage.clock.jump(Duration::from_secs(10));
        let report = reconciler.reconcile_once().await.unwrap();
        assert_eq!(report.is_confirmed, is_confirmed, "20 of {of}");
        assert_eq!(report.invalidated, if is_confirmed { 20 } else { 0 });
    }
}

#[tokio::test]
async fn token_revoked_early_is_renewed_once() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let key = stage.known("org_a").await;
    stage.emulator.revoke_tokens();
    stage.emulator.reset_calls();
    let report = reconciler.reconcile_once().await.unwrap();
    assert_eq!((report.calls, report.listed, report.invalidated), (2, 1, 0));
    let calls = stage.emulator.calls();
    assert_eq!((calls.token.total, calls.list_keys.token_rejected), (1, 1));
    stage.is_cached(&key).await;
}

#[tokio::test]
async fn token_without_scope_is_not_renewed_each_time() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let key = stage.known("org_a").await;
    stage
        .emulator
        .inject(Endpoint::ListKeys, Fault::reject_token());
    stage.emulator.reset_calls();
    for _ in 0..10 {
        let error = reconciler.reconcile_once().await.unwrap_err();
        assert_eq!(error.kind(), VerifyErrorKind::Misconfigured);
    }
    let calls = stage.emulator.calls();
    // One renewal; the next one is permitted after 5 s on a clock that this test does not move.
    assert_eq!((calls.token.total, calls.list_keys.faulted), (1, 11));
    stage.is_cached(&key).await;
}

#[tokio::test]
async fn earlier_secrets_have_no_digest_to_compare() {
    let stage = Stage::set().await;
    let before = stage.known("org_a").await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let after = stage.known("org_a").await;
    stage.emulator.rotate(before.id());
    stage.emulator.rotate(after.id());
    assert_eq!(reconciler.reconcile_once().await.unwrap().invalidated, 1);
    stage.is_cached(&before).await;
    stage.is_rejected(&after).await;
}

#[tokio::test]
async fn reconciler_runs_once_per_period() {
    let stage = Stage::set().await;
    let reconciler = stage
        .reconciler()
        .period(Duration::from_secs(1))
        .build()
        .unwrap();
    let key = stage.known("org_a").await;
    stage
        .emulator
        .inject(Endpoint::ListKeys, Fault::status(500).times(1));
    let task = tokio::spawn(reconciler.run());
    let result = stage.emulator.wait_for_calls(Endpoint::ListKeys, 2);
    tokio::time::timeout(HANG, result).await.unwrap();
    assert_eq!(stage.emulator.calls().list_keys.faulted, 1);
    stage.emulator.delete(key.id());
    let effect = async {
        while stage.get(key.secret()).await != StatusCode::UNAUTHORIZED {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(HANG, effect).await.unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
}

/// Stops the paused clock, except for `advance`, until the guard is dropped, so that socket I/O takes no time.
fn stop_the_clock() -> std::sync::mpsc::Sender<()> {
    let (held, until_dropped) = std::sync::mpsc::channel();
    // The clock does not advance automatically while a blocking task runs.
    tokio::task::spawn_blocking(move || until_dropped.recv());
    held
}

/// Polls every woken task 20 times: enough for the tasks here to reach a timer or a socket.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

/// Waits for socket I/O while the clock is stopped, and fails after a timeout in real time.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() {
        assert!(began.elapsed() < HANG, "{what} did not come");
        yield_now().await;
    }
}

fn count(snapshotter: &Snapshotter, name: &str) -> u64 {
    let of_name = |(key, _, _, value): (CompositeKey, _, _, _)| match value {
        DebugValue::Counter(count) if key.key().name() == name => Some(count),
        _ => None,
    };
    let snapshot = snapshotter.snapshot().into_vec();
    snapshot.into_iter().filter_map(of_name).sum()
}

/// The end times of reconciliations.
#[derive(Clone, Default)]
struct EndTimes(Arc<Mutex<Vec<Instant>>>);

impl CounterFn for EndTimes {
    fn increment(&self, _: u64) {
        self.0.lock().unwrap().push(Instant::now());
    }

    fn absolute(&self, _: u64) {}
}

impl Recorder for EndTimes {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        if key.name() == telemetry::RECONCILER_RUNS {
            Counter::from_arc(Arc::new(self.clone()))
        } else {
            Counter::noop()
        }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// The times at which reconcilers with a period of 60 s that start together reconcile within this time, in milliseconds since
/// their start.
async fn run_times(reconcilers: usize, within: Duration) -> Vec<u128> {
    let run_times = EndTimes::default();
    let _recorder = metrics::set_default_local_recorder(&run_times);
    // No key is cached, so a reconciliation makes no call and takes no time.
    let kinde = KindeVerifier::builder("http://127.0.0.1:1")
        .bearer_token("static")
        .build()
        .unwrap();
    let keys = ApiKeyLayer::new(kinde.clone()).handle();
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..reconcilers {
        let reconciler = KeyReconciler::builder(&kinde, keys.clone())
            .build()
            .unwrap();
        tasks.spawn(reconciler.run());
    }
    tokio::time::sleep(within).await;
    let times = run_times.0.lock().unwrap();
    times.iter().map(|at| (*at - began).as_millis()).collect()
}

/// The probability that one of ten tenths gets none of 300 uniform draws is 2 × 10^-13.
const DRAWS: usize = 300;

#[tokio::test(start_paused = true)]
async fn first_runs_are_spread_over_a_period() {
    // No second reconciliation starts before 54 s.
    let first = run_times(DRAWS, Duration::from_secs(54)).await;
    for tenth in 0..9 {
        let begins = tenth * 6_000;
        let tenth = begins..begins + 6_000;
        assert!(first.iter().any(|at| tenth.contains(at)), "{first:?}");
    }
    assert!(first.len() < DRAWS, "none in the last tenth");
    for _ in 0..DRAWS {
        // Timers have a resolution of one millisecond.
        let run_times = run_times(1, Duration::from_millis(60_002)).await;
        assert!(!run_times.is_empty(), "not within a period");
    }
}

#[tokio::test(start_paused = true)]
async fn later_runs_are_shortened_by_up_to_10_percent() {
    let run_times = run_times(
        1,
        Duration::from_secs(60) * u32::try_from(DRAWS + 2).unwrap(),
    )
    .await;
    let waits: Vec<_> = run_times.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(waits.len() >= DRAWS, "{}", waits.len());
    // Timers have a resolution of one millisecond.
    let is_in_time = |wait: &u128| (53_998..=60_002).contains(wait);
    assert!(waits.iter().all(is_in_time), "{waits:?}");
    for tenth in 0..10 {
        let begins = 54_000 + tenth * 600;
        let tenth = begins..begins + 600;
        assert!(waits.iter().any(|wait| tenth.contains(wait)), "{waits:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn next_run_waits_as_long_as_a_429_asks() {
    let (log, _log) = Log::capture();
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recorder = metrics::set_default_local_recorder(&recorder);
    let _clock = stop_the_clock();
    let stage = Stage::set().await;
    let period = Duration::from_secs(1);
    let reconciler = stage.reconciler().period(period).build().unwrap();
    stage.known("org_a").await;
    let throttled = Fault::status(429).with_header("ratelimit-reset", "30");
    stage.emulator.inject(Endpoint::ListKeys, throttled);
    tokio::spawn(reconciler.run());
    let calls = || count(&snapshotter, telemetry::RECONCILER_CALLS);
    settle().await;
    advance(period).await;
    let is_logged = || !log.lines("WARN", "reconciliation failed").is_empty();
    until("the warning", is_logged).await;
    assert_eq!(stage.emulator.calls().list_keys.faulted, 1);
    assert_eq!(calls(), 1);
    advance(Duration::from_secs(29)).await;
    settle().await;
    assert_eq!(calls(), 0);
    advance(Duration::from_secs(2)).await;
    settle().await;
    assert_eq!(calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn default_rate_suffices_for_all_calls() {
    let _clock = stop_the_clock();
    let stage = Stage::set().await;
    let reconciler = KeyReconciler::builder(&stage.kinde, stage.keys.clone()).page_size(1);
    let mut reconciler = reconciler.build().unwrap();
    stage.known("org_a").await;
    for _ in 1..400 {
        stage.issue("org_a");
    }
    // Only keys that were verified before the reconciliation are compared.
    advance(Duration::from_millis(1)).await;
    let task = tokio::spawn(async move { reconciler.reconcile_once().await });
    let calls = || stage.emulator.calls().list_keys.total;
    for call in 1..=400 {
        until("the next call", || calls() >= call || task.is_finished()).await;
        settle().await;
        assert!(calls() <= call, "ahead of its pace");
        advance(Duration::from_millis(200)).await;
    }
    let report = task.await.unwrap().unwrap();
    assert_eq!((report.calls, report.listed), (400, 400));
}

#[tokio::test]
async fn run_without_calls_is_no_recovery() {
    let (log, _log) = Log::capture();
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    stage.known("org_a").await;
    let fault = Fault::status(500).times(1);
    stage.emulator.inject(Endpoint::ListKeys, fault);
    reconciler.reconcile_once().await.unwrap_err();
    stage.keys.invalidate_all();
    assert_eq!(reconciler.reconcile_once().await.unwrap().calls, 0);
    let logged = || log.lines("INFO", "reconciliation succeeded again").len();
    assert_eq!(logged(), 0);
    stage.known("org_a").await;
    assert_eq!(reconciler.reconcile_once().await.unwrap().calls, 1);
    assert_eq!(logged(), 1);
}

#[tokio::test]
async fn page_has_at_most_4_mib() {
    let stage = Stage::set().await;
    let mut reconciler = stage.reconciler().build().unwrap();
    let key = stage.known("org_a").await;
    let page = format!(r#"{{"has_more":false,"api_keys":[{{"id":"{}"}}]"#, key.id());
    for (len, is_read) in [(4 << 20, true), ((4 << 20) + 1, false)] {
        let padding = " ".repeat(len - page.len() - 1);
        let body = format!("{page}{padding}}}");
        assert_eq!(body.len(), len);
        let fault = Fault::reply(200, "application/json", body);
        stage.emulator.inject(Endpoint::ListKeys, fault);
        assert_eq!(reconciler.reconcile_once().await.is_ok(), is_read, "{len}");
    }
    assert_eq!(stage.emulator.calls().list_keys.faulted, 2);
}

#[tokio::test]
async fn invalid_settings_are_named() {
    let stage = Stage::set().await;
    let field = |builder: KeyReconcilerBuilder| builder.build().unwrap_err().field();
    assert_eq!(field(stage.reconciler().period(Duration::ZERO)), "period");
    for (period, is_usable) in [
        (Duration::from_millis(999), false),
        (Duration::from_secs(1), true),
        (Duration::from_secs(43_200), true),
        (Duration::from_secs(43_201), false),
    ] {
        let built = stage.reconciler().period(period).build();
        assert_eq!(built.is_ok(), is_usable, "{period:?}");
    }
    assert_eq!(field(stage.reconciler().page_size(0)), "page_size");
    assert_eq!(field(stage.reconciler().page_size(501)), "page_size");
    assert_eq!(field(stage.reconciler().max_calls(0)), "max_calls");
    assert_eq!(
        field(stage.reconciler().calls_per_second(0)),
        "calls_per_second"
    );
    let kinde = KindeVerifier::builder(stage.emulator.issuer_url())
        .without_credentials()
        .build()
        .unwrap();
    let builder = KeyReconciler::builder(&kinde, stage.keys.clone());
    assert_eq!(field(builder), "credentials");
}
