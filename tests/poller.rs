//! What is taken away in Kinde's own pages takes effect within one walk and one verification.

#![allow(clippy::unwrap_used)] // A test may fail on what it did not expect.

#[path = "support/log.rs"]
mod log;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{Request, StatusCode};
use kinde_emulator::{Endpoint, Fault, IssuedKey, KeySpec, KindeEmulator};
use metrics::{
    Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use metrics_util::CompositeKey;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, advance};
use tower::ServiceExt;
use tower_orgkey::kinde::{KeyPoller, KeyPollerBuilder, KindeVerifier};
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKey, ApiKeyHandle, ApiKeyLayer, OrgContext, VerifyErrorKind, telemetry};

/// Only a test that fails waits for so long.
const HANG: Duration = Duration::from_secs(30);

struct Stage {
    emulator: KindeEmulator,
    clock: TestClock,
    kinde: KindeVerifier,
    keys: ApiKeyHandle,
    app: Router,
    /// Of the last request that was let through.
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
            // So that it is the poller that takes effect, and not the soft TTL.
            .soft_ttl(Duration::from_secs(600))
            .hard_ttl(Duration::from_secs(3600))
            .allow_user_keys()
            .test_clock(clock.clone())
            .build()
            .unwrap();
        let keys = auth.handle();
        let (told, context) = watch::channel(None);
        let handler = move |org: OrgContext| async move { drop(told.send(Some(org))) };
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

    fn poller(&self) -> KeyPollerBuilder {
        KeyPoller::builder(&self.kinde, self.keys.clone()).calls_per_second(1_000)
    }

    fn issue(&self, org_code: &str) -> IssuedKey {
        self.emulator.issue_key(KeySpec::organization(org_code))
    }

    async fn get(&self, secret: &str) -> StatusCode {
        let request = Request::get("/").header("authorization", format!("Bearer {secret}"));
        let request = request.body(Body::empty()).unwrap();
        self.app.clone().oneshot(request).await.unwrap().status()
    }

    /// A key that is held.
    async fn known(&self, org_code: &str) -> IssuedKey {
        let key = self.issue(org_code);
        assert_eq!(self.get(key.secret()).await, StatusCode::OK);
        key
    }

    fn verifications(&self) -> u64 {
        self.emulator.calls().verify.total
    }

    /// The key is served from what is held.
    async fn is_held(&self, key: &IssuedKey) {
        let before = self.verifications();
        assert_eq!(self.get(key.secret()).await, StatusCode::OK);
        assert_eq!(self.verifications(), before, "asked again");
    }

    /// The key is good, and it took one more verification to know.
    async fn is_verified_anew(&self, key: &IssuedKey) {
        let before = self.verifications();
        assert_eq!(self.get(key.secret()).await, StatusCode::OK);
        assert_eq!(self.verifications(), before + 1);
    }

    async fn is_refused(&self, key: &IssuedKey) {
        assert_eq!(self.get(key.secret()).await, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn fault_27b_a_rotated_secret_ends_with_the_next_walk_and_the_new_one_works_at_once() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
    let old = stage.known("org_a").await;
    let bystander = stage.known("org_b").await;
    let new = stage.emulator.rotate(old.id());
    stage.clock.jump(Duration::from_secs(10));
    // The fault is there: nobody has told us.
    stage.is_held(&old).await;
    stage.is_verified_anew(&new).await;

    let report = poller.walk_once().await.unwrap();
    assert_eq!(
        (
            report.calls,
            report.listed,
            report.compared,
            report.invalidated
        ),
        (1, 2, 3, 1)
    );
    stage.is_refused(&old).await;
    stage.is_held(&new).await;
    stage.is_held(&bystander).await;
    // Nothing is left to do, and nothing was blocked.
    assert_eq!(poller.walk_once().await.unwrap().invalidated, 0);
    stage.is_held(&new).await;
}

#[tokio::test]
async fn fault_27b_a_key_taken_away_in_any_manner_ends_with_the_next_walk() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
    let ways: [fn(&KindeEmulator, &str); 3] = [
        |emulator, id| emulator.delete(id),
        |emulator, id| emulator.revoke(id),
        |emulator, id| emulator.deactivate(id),
    ];
    let bystander = stage.known("org_b").await;
    for take_away in ways {
        let key = stage.known("org_a").await;
        take_away(&stage.emulator, key.id());
        stage.clock.jump(Duration::from_secs(10));
        stage.is_held(&key).await;
        assert_eq!(poller.walk_once().await.unwrap().invalidated, 1);
        stage.is_refused(&key).await;
        stage.is_held(&bystander).await;
    }
}

#[tokio::test]
async fn fault_27b_a_key_that_rested_for_14_minutes_is_verified_anew_with_or_without_a_poller() {
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
    stage.is_held(&rotated).await;
    stage.is_held(&deleted).await;
    stage.is_verified_anew(&new).await;
    stage.clock.jump(Duration::from_secs(14 * 60));
    stage.is_refused(&rotated).await;
    stage.is_refused(&deleted).await;
    stage.is_verified_anew(&new).await;
}

#[tokio::test]
async fn fault_27b_a_list_that_still_shows_a_key_does_not_keep_it_alive() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
    let key = stage.known("org_a").await;
    let listed_for_ever = format!(
        r#"{{"has_more":false,"api_keys":[{{"id":"{}","status":"active"}}]}}"#,
        key.id()
    );
    let fault = Fault::reply(200, "application/json", listed_for_ever);
    stage.emulator.inject(Endpoint::ListKeys, fault);
    stage.emulator.delete(key.id());
    assert_eq!(poller.walk_once().await.unwrap().invalidated, 0);
    stage.clock.jump(Duration::from_secs(2 * 600));
    stage.is_refused(&key).await;
    assert!(stage.emulator.calls().list_keys.faulted > 0);
}

#[tokio::test]
async fn a_walk_reads_every_page_before_it_judges() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().page_size(2).build().unwrap();
    let mut known = Vec::new();
    for _ in 0..5 {
        known.push(stage.known("org_a").await);
    }
    let report = poller.walk_once().await.unwrap();
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
        stage.is_held(key).await;
    }
}

#[tokio::test]
async fn a_walk_that_fails_half_way_proves_nothing() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().page_size(1).build().unwrap();
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
        poller.walk_once().await.expect_err(&what);
        let calls = stage.emulator.calls();
        assert_eq!(
            (calls.list_keys.total, calls.list_keys.faulted),
            (2, 1),
            "{what}"
        );
        for key in known.iter().chain([&gone, &rotated]) {
            stage.is_held(key).await;
        }
    }
    stage.emulator.clear_faults();
    assert_eq!(poller.walk_once().await.unwrap().invalidated, 2);
    stage.is_refused(&gone).await;
    stage.is_refused(&rotated).await;
}

#[tokio::test]
async fn a_page_that_never_comes_ends_the_walk() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
    let key = stage.known("org_a").await;
    stage
        .emulator
        .inject(Endpoint::ListKeys, Fault::no_response());
    let walked = tokio::time::timeout(HANG, poller.walk_once()).await;
    assert_eq!(
        walked.unwrap().unwrap_err().kind(),
        VerifyErrorKind::Unavailable
    );
    assert_eq!(stage.emulator.calls().list_keys.faulted, 1);
    stage.is_held(&key).await;
}

#[tokio::test]
async fn keys_verified_after_the_walk_began_are_left_alone() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
    let again = stage.known("org_a").await;
    let control = stage.known("org_a").await;
    stage.emulator.inject(Endpoint::ListKeys, Fault::hold());
    let walking = tokio::spawn(async move { (poller.walk_once().await, poller) });
    let arrived = stage.emulator.wait_for_calls(Endpoint::ListKeys, 1);
    tokio::time::timeout(HANG, arrived).await.unwrap();
    // One is new, the other was held and is verified once more, both while the walk is under way.
    let new = stage.known("org_a").await;
    stage
        .keys
        .invalidate_key(&ApiKey::parse(again.secret()).unwrap());
    stage.is_verified_anew(&again).await;
    for key in [&new, &again, &control] {
        stage.emulator.delete(key.id());
    }
    stage.emulator.clear_faults();
    let (report, mut poller) = tokio::time::timeout(HANG, walking).await.unwrap().unwrap();
    let report = report.unwrap();
    assert_eq!(
        (report.listed, report.compared, report.invalidated),
        (0, 2, 1)
    );
    stage.is_held(&new).await;
    stage.is_held(&again).await;
    stage.is_refused(&control).await;
    assert_eq!(poller.walk_once().await.unwrap().invalidated, 2);
    stage.is_refused(&new).await;
    stage.is_refused(&again).await;
}

#[tokio::test]
async fn a_walk_that_is_dropped_has_changed_nothing() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
    let key = stage.known("org_a").await;
    stage.emulator.delete(key.id());
    stage.emulator.inject(Endpoint::ListKeys, Fault::hold());
    tokio::select! {
        _ = poller.walk_once() => panic!("the page is held back"),
        () = stage.emulator.wait_for_calls(Endpoint::ListKeys, 1) => {}
    }
    stage.emulator.clear_faults();
    stage.is_held(&key).await;
    assert_eq!(poller.walk_once().await.unwrap().invalidated, 1);
}

#[tokio::test]
async fn a_list_that_goes_round_is_given_up_and_proves_nothing() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
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
        poller.walk_once().await.unwrap_err();
        let seen = stage.emulator.calls().list_keys;
        assert_eq!((seen.total, seen.faulted), (calls, calls), "{keys}");
        stage.is_held(&key).await;
    }
}

#[tokio::test]
async fn a_list_longer_than_the_budget_of_a_walk_proves_nothing() {
    let stage = Stage::set().await;
    let walks = |calls| {
        stage
            .poller()
            .page_size(1)
            .max_calls_per_walk(calls)
            .build()
    };
    let mut known = Vec::new();
    for _ in 0..8 {
        known.push(stage.known("org_a").await);
    }
    let gone = stage.known("org_a").await;
    stage.emulator.delete(gone.id());
    walks(7).unwrap().walk_once().await.unwrap_err();
    assert_eq!(stage.emulator.calls().list_keys.ok, 7);
    for key in known.iter().chain([&gone]) {
        stage.is_held(key).await;
    }
    let report = walks(8).unwrap().walk_once().await.unwrap();
    assert_eq!((report.listed, report.invalidated), (8, 1));
}

#[tokio::test]
async fn a_suffix_that_is_not_shown_proves_nothing() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
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
        let report = poller.walk_once().await.unwrap();
        assert_eq!((report.listed, report.invalidated), (1, 0), "{suffix}");
        stage.is_held(&old).await;
    }
    stage.emulator.clear_faults();
    assert_eq!(poller.walk_once().await.unwrap().invalidated, 1);
}

#[tokio::test]
async fn an_inactive_key_is_absent_even_where_the_list_shows_it() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
    let key = stage.known("org_a").await;
    let body = format!(
        r#"{{"has_more":false,"api_keys":[{{"id":"{}","status":"revoked"}}]}}"#,
        key.id()
    );
    let fault = Fault::reply(200, "application/json", body);
    stage.emulator.inject(Endpoint::ListKeys, fault);
    stage.emulator.revoke(key.id());
    assert_eq!(poller.walk_once().await.unwrap().invalidated, 1);
    stage.is_refused(&key).await;
}

#[tokio::test]
async fn a_stream_ends_when_its_key_is_found_gone() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
    let bystander = stage.known("org_a").await;
    let going_on = stage.context.borrow().clone().unwrap().until_invalid();
    let gone = stage.known("org_a").await;
    let ends = stage.context.borrow().clone().unwrap().until_invalid();
    stage.emulator.delete(gone.id());
    let (ends, going_on) = (tokio::spawn(ends), tokio::spawn(going_on));
    assert_eq!(poller.walk_once().await.unwrap().invalidated, 1);
    tokio::time::timeout(HANG, ends).await.unwrap().unwrap();
    stage.is_held(&bystander).await;
    assert!(!going_on.is_finished());
}

#[tokio::test]
async fn what_a_poller_does_is_counted_and_told_without_any_key() {
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
    let mut poller = stage.poller().build().unwrap();
    poller.walk_once().await.unwrap();
    let key = stage.known("org_a").await;
    let new = stage.emulator.rotate(key.id());
    stage
        .emulator
        .inject(Endpoint::ListKeys, Fault::status(500));
    for _ in 0..3 {
        poller.walk_once().await.unwrap_err();
    }
    stage.emulator.clear_faults();
    poller.walk_once().await.unwrap();
    for _ in 0..25 {
        stage.known("org_a").await;
    }
    let fault = Fault::with_member("api_keys", "[]");
    stage.emulator.inject(Endpoint::ListKeys, fault);
    assert!(!poller.walk_once().await.unwrap().is_believed);

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
        .filter(|(name, _)| name.starts_with("orgkey_poller"))
        .collect();
    let walks = |result: &str| counted.get(&format!("{} {result}", telemetry::POLLER_WALKS));
    assert_eq!(walks("idle"), Some(&1));
    assert_eq!(walks("failed"), Some(&3));
    assert_eq!(walks("complete"), Some(&1));
    assert_eq!(walks("not-believed"), Some(&1));
    let total = |name: &str| counted[&format!("{name} ")];
    assert_eq!(total(telemetry::POLLER_CALLS), 5);
    assert_eq!(total(telemetry::POLLER_INVALIDATED), 1);

    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let told = |message: &str| text.matches(message).count();
    assert_eq!(told("the poller cannot walk the issuer's keys"), 1);
    assert_eq!(told("the poller walks the issuer's keys again"), 1);
    assert_eq!(told("keys were rotated or taken away at the issuer"), 1);
    assert_eq!(
        told("the issuer's list speaks against most of the keys held"),
        1
    );
    for secret in [key.secret(), new.secret(), &stage.emulator.client_secret()] {
        assert_eq!(told(secret), 0);
        assert_eq!(told(&secret[secret.len() - 8..]), 0);
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
async fn what_the_list_cannot_hold_is_left_alone() {
    let stage = Stage::set().await;
    let mut poller = stage
        .poller()
        .only(|key_id| key_id.as_str().starts_with("api_key_"))
        .build()
        .unwrap();
    // A user's key is in no list of organizations' keys.
    let users = KeySpec::user("kp_1").in_organization("org_a");
    let users = stage.emulator.issue_key(users);
    assert_eq!(stage.get(users.secret()).await, StatusCode::OK);
    // A key of another issuer neither.
    let fault = Fault::with_member("key_id", r#""other_1""#);
    stage.emulator.inject(Endpoint::Verify, fault);
    let others = stage.known("org_a").await;
    stage.emulator.clear_faults();
    let ours = stage.known("org_a").await;
    let fault = Fault::with_member("api_keys", "[]");
    stage.emulator.inject(Endpoint::ListKeys, fault);
    let report = poller.walk_once().await.unwrap();
    assert_eq!((report.compared, report.invalidated), (1, 1));
    stage.is_held(&users).await;
    stage.is_held(&others).await;
    stage.is_verified_anew(&ours).await;
}

#[tokio::test]
async fn nothing_is_asked_where_nothing_is_held() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
    stage.issue("org_a");
    let report = poller.walk_once().await.unwrap();
    assert_eq!((report.calls, report.compared), (0, 0));
    assert_eq!(stage.emulator.calls().total(), 0);
}

#[tokio::test]
async fn a_list_that_lacks_most_keys_is_believed_when_the_next_one_does_too() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
    let mut known = Vec::new();
    for _ in 0..25 {
        known.push(stage.known("org_a").await);
    }
    let empty = || Fault::with_member("api_keys", "[]");
    stage.emulator.inject(Endpoint::ListKeys, empty());
    let report = poller.walk_once().await.unwrap();
    assert_eq!((report.is_believed, report.invalidated), (false, 0));
    for key in &known {
        stage.is_held(key).await;
    }
    // It was a moment's fault: the next list is whole, so one after it has to be confirmed once more.
    stage.emulator.clear_faults();
    let report = poller.walk_once().await.unwrap();
    assert_eq!((report.is_believed, report.invalidated), (true, 0));
    stage.emulator.inject(Endpoint::ListKeys, empty());
    assert!(!poller.walk_once().await.unwrap().is_believed);
    let report = poller.walk_once().await.unwrap();
    assert_eq!((report.is_believed, report.invalidated), (true, 25));
    // Even so nobody is banned.
    for key in &known {
        stage.is_verified_anew(key).await;
    }
    // Ends that are all other ones look just as much like a fault.
    let fault = Fault::rewrite(|body| {
        body.replace("\"key_suffix\":\"", "\"key_suffix\":\"0000\",\"was\":\"")
    });
    stage.emulator.inject(Endpoint::ListKeys, fault);
    let report = poller.walk_once().await.unwrap();
    assert_eq!((report.is_believed, report.invalidated), (false, 0));
    assert_eq!(poller.walk_once().await.unwrap().invalidated, 25);
}

#[tokio::test]
async fn a_list_that_lacks_half_of_many_keys_is_believed_at_once_and_one_that_lacks_more_is_not() {
    for (of, is_believed) in [(40, true), (39, false)] {
        let stage = Stage::set().await;
        let mut poller = stage.poller().build().unwrap();
        for n in 0..of {
            let key = stage.known("org_a").await;
            if n < 20 {
                stage.emulator.delete(key.id());
            }
        }
        stage.clock.jump(Duration::from_secs(10));
        let report = poller.walk_once().await.unwrap();
        assert_eq!(report.is_believed, is_believed, "20 of {of}");
        assert_eq!(report.invalidated, if is_believed { 20 } else { 0 });
    }
}

#[tokio::test]
async fn a_token_that_was_revoked_early_is_replaced_once() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
    let key = stage.known("org_a").await;
    stage.emulator.revoke_tokens();
    stage.emulator.reset_calls();
    let report = poller.walk_once().await.unwrap();
    assert_eq!((report.calls, report.listed, report.invalidated), (2, 1, 0));
    let calls = stage.emulator.calls();
    assert_eq!((calls.token.total, calls.list_keys.token_rejected), (1, 1));
    stage.is_held(&key).await;
}

#[tokio::test]
async fn a_token_that_may_not_list_costs_no_token_a_walk() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
    let key = stage.known("org_a").await;
    stage
        .emulator
        .inject(Endpoint::ListKeys, Fault::reject_token());
    stage.emulator.reset_calls();
    for _ in 0..10 {
        let error = poller.walk_once().await.unwrap_err();
        assert_eq!(error.kind(), VerifyErrorKind::Misconfigured);
    }
    let calls = stage.emulator.calls();
    // One attempt to mend it; the next is due after 5 s on a clock that this test does not move.
    assert_eq!((calls.token.total, calls.list_keys.faulted), (1, 11));
    stage.is_held(&key).await;
}

#[tokio::test]
async fn a_secret_verified_before_there_was_a_poller_is_not_compared_by_its_end() {
    let stage = Stage::set().await;
    let before = stage.known("org_a").await;
    let mut poller = stage.poller().build().unwrap();
    let after = stage.known("org_a").await;
    stage.emulator.rotate(before.id());
    stage.emulator.rotate(after.id());
    assert_eq!(poller.walk_once().await.unwrap().invalidated, 1);
    stage.is_held(&before).await;
    stage.is_refused(&after).await;
}

#[tokio::test]
async fn a_poller_walks_in_every_period_until_it_is_dropped() {
    let stage = Stage::set().await;
    let poller = stage
        .poller()
        .period(Duration::from_secs(1))
        .build()
        .unwrap();
    let key = stage.known("org_a").await;
    stage
        .emulator
        .inject(Endpoint::ListKeys, Fault::status(500).times(1));
    let polling = tokio::spawn(poller.run());
    let walked = stage.emulator.wait_for_calls(Endpoint::ListKeys, 2);
    tokio::time::timeout(HANG, walked).await.unwrap();
    assert_eq!(stage.emulator.calls().list_keys.faulted, 1);
    stage.emulator.delete(key.id());
    let effect = async {
        while stage.get(key.secret()).await != StatusCode::UNAUTHORIZED {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(HANG, effect).await.unwrap();
    polling.abort();
    assert!(polling.await.unwrap_err().is_cancelled());
}

/// Keeps paused time where it is, until it is dropped, but for `advance`: what crosses a socket takes none of it.
fn stop_the_clock() -> std::sync::mpsc::Sender<()> {
    let (held, until_dropped) = std::sync::mpsc::channel();
    // Time does not pass on its own while a thread is at work.
    tokio::task::spawn_blocking(move || until_dropped.recv());
    held
}

/// Gives every task that is awake 20 turns: more than those here take to come to a timer or a socket.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

/// Waits for what crosses a socket while the clock stands still, and fails when it does not come in real time.
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

/// When walks ended.
#[derive(Clone, Default)]
struct Walks(Arc<Mutex<Vec<Instant>>>);

impl CounterFn for Walks {
    fn increment(&self, _: u64) {
        self.0.lock().unwrap().push(Instant::now());
    }

    fn absolute(&self, _: u64) {}
}

impl Recorder for Walks {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        if key.name() == telemetry::POLLER_WALKS {
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

/// When so many pollers that start together, with periods of 60 s, walk within this time. In milliseconds since their start.
async fn walks(pollers: usize, within: Duration) -> Vec<u128> {
    let walks = Walks::default();
    let _recorder = metrics::set_default_local_recorder(&walks);
    // Nothing is held, so nothing is asked, and a walk takes no time.
    let kinde = KindeVerifier::builder("http://127.0.0.1:1")
        .bearer_token("static")
        .build()
        .unwrap();
    let keys = ApiKeyLayer::new(kinde.clone()).handle();
    let began = Instant::now();
    let mut polling = JoinSet::new();
    for _ in 0..pollers {
        let poller = KeyPoller::builder(&kinde, keys.clone()).build().unwrap();
        polling.spawn(poller.run());
    }
    tokio::time::sleep(within).await;
    let times = walks.0.lock().unwrap();
    times.iter().map(|at| (*at - began).as_millis()).collect()
}

/// The odds that one of ten tenths gets none of 300 even draws are one in five million millions.
const DRAWS: usize = 300;

#[tokio::test(start_paused = true)]
async fn the_first_walks_of_pollers_that_start_together_are_spread_over_a_period() {
    // Nobody's second walk comes before 54 s.
    let first = walks(DRAWS, Duration::from_secs(54)).await;
    for tenth in 0..9 {
        let begins = tenth * 6_000;
        let tenth = begins..begins + 6_000;
        assert!(first.iter().any(|at| tenth.contains(at)), "{first:?}");
    }
    assert!(first.len() < DRAWS, "none in the last tenth");
    for _ in 0..DRAWS {
        // The clock of the timers counts whole milliseconds.
        let walks = walks(1, Duration::from_millis(60_002)).await;
        assert!(!walks.is_empty(), "not within a period");
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_walk_begins_anywhere_in_the_last_tenth_of_a_period() {
    let walks = walks(
        1,
        Duration::from_secs(60) * u32::try_from(DRAWS + 2).unwrap(),
    )
    .await;
    let waits: Vec<_> = walks.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(waits.len() >= DRAWS, "{}", waits.len());
    // The clock of the timers counts whole milliseconds.
    let is_in_time = |wait: &u128| (53_998..=60_002).contains(wait);
    assert!(waits.iter().all(is_in_time), "{waits:?}");
    for tenth in 0..10 {
        let begins = 54_000 + tenth * 600;
        let tenth = begins..begins + 600;
        assert!(waits.iter().any(|wait| tenth.contains(wait)), "{waits:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_429_puts_the_next_walk_off_for_as_long_as_it_says() {
    let (log, _log) = log::Log::capture();
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recorder = metrics::set_default_local_recorder(&recorder);
    let _clock = stop_the_clock();
    let stage = Stage::set().await;
    let period = Duration::from_secs(1);
    let poller = stage.poller().period(period).build().unwrap();
    stage.known("org_a").await;
    let throttled = Fault::status(429).with_header("ratelimit-reset", "30");
    stage.emulator.inject(Endpoint::ListKeys, throttled);
    tokio::spawn(poller.run());
    let calls = || count(&snapshotter, telemetry::POLLER_CALLS);
    settle().await;
    advance(period).await;
    let is_told = || !log.lines("WARN", "cannot walk").is_empty();
    until("the warning", is_told).await;
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
async fn the_whole_budget_of_a_walk_can_be_used_at_the_default_pace() {
    let _clock = stop_the_clock();
    let stage = Stage::set().await;
    let poller = KeyPoller::builder(&stage.kinde, stage.keys.clone()).page_size(1);
    let mut poller = poller.build().unwrap();
    stage.known("org_a").await;
    for _ in 1..400 {
        stage.issue("org_a");
    }
    // The walk judges what was verified before it.
    advance(Duration::from_millis(1)).await;
    let walking = tokio::spawn(async move { poller.walk_once().await });
    let asked = || stage.emulator.calls().list_keys.total;
    for call in 1..=400 {
        until("the next call", || asked() >= call || walking.is_finished()).await;
        settle().await;
        assert!(asked() <= call, "ahead of its pace");
        advance(Duration::from_millis(200)).await;
    }
    let report = walking.await.unwrap().unwrap();
    assert_eq!((report.calls, report.listed), (400, 400));
}

#[tokio::test]
async fn a_walk_that_asked_nothing_does_not_show_that_walks_work_again() {
    let (log, _log) = log::Log::capture();
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
    stage.known("org_a").await;
    let fault = Fault::status(500).times(1);
    stage.emulator.inject(Endpoint::ListKeys, fault);
    poller.walk_once().await.unwrap_err();
    stage.keys.invalidate_all();
    assert_eq!(poller.walk_once().await.unwrap().calls, 0);
    let told = || log.lines("INFO", "walks the issuer's keys again").len();
    assert_eq!(told(), 0);
    stage.known("org_a").await;
    assert_eq!(poller.walk_once().await.unwrap().calls, 1);
    assert_eq!(told(), 1);
}

#[tokio::test]
async fn a_page_of_4_mib_is_read_and_a_longer_one_is_not() {
    let stage = Stage::set().await;
    let mut poller = stage.poller().build().unwrap();
    let key = stage.known("org_a").await;
    let page = format!(r#"{{"has_more":false,"api_keys":[{{"id":"{}"}}]"#, key.id());
    for (len, is_read) in [(4 << 20, true), ((4 << 20) + 1, false)] {
        let padding = " ".repeat(len - page.len() - 1);
        let body = format!("{page}{padding}}}");
        assert_eq!(body.len(), len);
        let fault = Fault::reply(200, "application/json", body);
        stage.emulator.inject(Endpoint::ListKeys, fault);
        assert_eq!(poller.walk_once().await.is_ok(), is_read, "{len}");
    }
    assert_eq!(stage.emulator.calls().list_keys.faulted, 2);
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_named() {
    let stage = Stage::set().await;
    let field = |builder: KeyPollerBuilder| builder.build().unwrap_err().field();
    assert_eq!(field(stage.poller().period(Duration::ZERO)), "period");
    for (period, is_usable) in [
        (Duration::from_millis(999), false),
        (Duration::from_secs(1), true),
        (Duration::from_secs(43_200), true),
        (Duration::from_secs(43_201), false),
    ] {
        let built = stage.poller().period(period).build();
        assert_eq!(built.is_ok(), is_usable, "{period:?}");
    }
    assert_eq!(field(stage.poller().page_size(0)), "page_size");
    assert_eq!(field(stage.poller().page_size(501)), "page_size");
    assert_eq!(
        field(stage.poller().max_calls_per_walk(0)),
        "max_calls_per_walk"
    );
    assert_eq!(
        field(stage.poller().calls_per_second(0)),
        "calls_per_second"
    );
    let kinde = KindeVerifier::builder(stage.emulator.issuer_url())
        .without_credentials()
        .build()
        .unwrap();
    let builder = KeyPoller::builder(&kinde, stage.keys.clone());
    assert_eq!(field(builder), "credentials");
}
