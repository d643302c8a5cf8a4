//! Log events: each fault is logged once when it begins and once when it ends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::TcpSocket;
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::telemetry::TARGET;
use tower_orgkey::{ApiKey, Verifier, VerifyErrorKind};
use tracing::Subscriber;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::support::kinde::{
    BAD, GOOD, Stage, VALID_REPLY, Verdict, get, invalid_key, layer_over, token,
};
use crate::support::log::Log;
use crate::support::stub::{Answer, Endpoint, HANG};

const NEW: &str = "k_live_good_0002";
const PROBE_YES: &str = r#"{"api_keys":[],"has_more":false}"#;

#[tokio::test]
async fn fault_17_rejected_token_is_logged_once() {
    let (log, _guard) = Log::capture();
    let stage = Stage::new().await;
    for time in 1..=2 {
        stage.stub.always(Endpoint::Probe, Answer::status(401));
        for n in 0..3 {
            assert_eq!(stage.get(&invalid_key(10 * time + n)).await.0, 503);
            stage.jump(6);
        }
        let logged = log.lines("ERROR", "issuer rejects the access token");
        assert_eq!(logged.len(), time, "{logged:?}");
        assert!(logged[0].contains("verify_status=401 probe_status=401"));
        for key in [GOOD, NEW] {
            assert_eq!(stage.get(key).await.0, 200);
        }
        let logged = log.lines("INFO", "issuer accepts the access token again");
        assert_eq!(logged.len(), time, "{logged:?}");
        let accepted = Answer::json(200, PROBE_YES);
        stage.stub.always(Endpoint::Probe, accepted);
        let said = stage.unknown(&invalid_key(10 * time)).await.0;
        assert_eq!(said, Verdict::Concluded);
        stage.jump(130);
    }
    let logged = log.lines("WARN", "without the scope");
    assert!(logged.is_empty(), "{logged:?}");
}

#[tokio::test]
async fn fault_56_missing_scope_is_logged_once() {
    let (log, _guard) = Log::capture();
    let stage = Stage::new().await;
    for time in 1..=2 {
        stage.stub.always(Endpoint::Probe, Answer::status(403));
        assert_eq!(stage.unknown(BAD).await.0, Verdict::TokenRejected);
        assert_eq!(stage.unknown(GOOD).await.0, Verdict::Valid);
        for _ in 0..2 {
            assert_eq!(stage.unknown(BAD).await.0, Verdict::Undecided);
            let logged = log.lines("WARN", "without the scope `read:api_keys`");
            assert_eq!(logged.len(), time, "{logged:?}");
            // The next probe is due.
            stage.jump(1_000);
        }
        let granted = Answer::json(200, PROBE_YES);
        stage.stub.always(Endpoint::Probe, granted);
        assert_eq!(stage.unknown(BAD).await.0, Verdict::Concluded);
    }
    assert!(stage.count(Endpoint::Probe) >= 6);
}

#[tokio::test]
async fn missing_look_up_scope_is_logged_once() {
    let (log, _guard) = Log::capture();
    let stage = Stage::with(|builder| builder.api_id("api_ours")).await;
    for time in 1..=2 {
        stage.stub.always(Endpoint::Key, Answer::status(403));
        for key in [GOOD, NEW, "k_live_good_0003"] {
            assert_eq!(stage.get(key).await.0, 503);
        }
        let logged = log.lines("ERROR", "access token cannot look up keys");
        assert_eq!(logged.len(), time, "{logged:?}");
        let ours = r#"{"organization_id":"org_1","api_ids":["api_ours"]}"#;
        stage.stub.always(Endpoint::Key, Answer::json(200, ours));
        assert_eq!(stage.get(GOOD).await.0, 200);
        // After the cached record of the key has expired.
        stage.jump(3_700);
    }
}

#[tokio::test]
async fn fault_23_missing_key_id_is_logged_by_name() {
    let (log, _guard) = Log::capture();
    let stage = Stage::with(|builder| builder.api_id("api_ours")).await;
    let body = VALID_REPLY.replace(r#""key_id":"api_key_0001","#, "");
    assert_ne!(body, VALID_REPLY);
    stage
        .stub
        .always(Endpoint::Verify, Answer::json(200, &body));
    let cause = r#"cause="the reply has no `key_id`"#;
    let logged = tokio::time::timeout(HANG, async {
        loop {
            // Each layer has its own breaker.
            let layer = layer_over(stage.kinde.clone(), &stage.clock);
            let rejected = (503, "verifier-unavailable".to_owned());
            assert_eq!(get(&layer, GOOD).await, rejected);
            let warnings = log.lines("WARN", "verification failed");
            if let Some(warning) = warnings.into_iter().next() {
                return warning;
            }
            // At most one of these warnings per second, and another test may have emitted one.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let logged = logged.await.unwrap();
    assert!(logged.contains(cause), "{logged}");
    for line in log.lines("DEBUG", "verification finished") {
        assert!(line.contains(cause), "{line}");
    }
    assert_eq!(stage.count(Endpoint::Key), 0);
}

#[tokio::test]
async fn fault_16_failing_token_request_is_logged_once() {
    let (log, _guard) = Log::capture();
    let stage = Stage::new().await;
    for time in 1..=2 {
        for (answer, times) in [
            (Answer::status(500), 2 * time - 1),
            // Another failure than before.
            (Answer::json(401, r#"{"error":"invalid_client"}"#), 2 * time),
        ] {
            stage.stub.always(Endpoint::Token, answer);
            for _ in 0..3 {
                assert!(stage.verify(GOOD).await.is_err());
                stage.jump(61);
            }
            let lines = log.lines("ERROR", "access token request failed");
            assert_eq!(lines.len(), times, "{lines:?}");
        }
        let works = token("token-x", "3600");
        stage.stub.always(Endpoint::Token, works);
        assert!(stage.verify(GOOD).await.is_ok());
        let lines = log.lines("INFO", "access token request succeeded again");
        assert_eq!(lines.len(), time, "{lines:?}");
        stage.jump(3_601);
    }
    assert!(stage.count(Endpoint::Token) >= 10);
}

#[tokio::test]
async fn fault_01_refused_connection_is_no_tls_error() {
    let (log, _guard) = Log::capture();
    // Bound without listening, which reserves the port.
    let port = TcpSocket::new_v4().unwrap();
    port.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let issuer = format!("http://{}", port.local_addr().unwrap());
    let kinde = KindeVerifier::builder(issuer)
        .without_credentials()
        .build()
        .unwrap();
    let error = kinde.verify(&ApiKey::parse(GOOD).unwrap()).await;
    assert_eq!(error.err().unwrap().kind(), VerifyErrorKind::Unavailable);
    let logged = log.lines("", "certificate");
    assert_eq!(logged, Vec::<String>::new());
}

/// Starts another verification on each of this crate's events.
struct CallsBack {
    kinde: KindeVerifier,
    events: Arc<AtomicUsize>,
}

impl<S: Subscriber> Layer<S> for CallsBack {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == TARGET {
            self.events.fetch_add(1, Ordering::SeqCst);
            // Takes all locks before its first call.
            let key = ApiKey::parse(NEW).unwrap();
            let _ = self.kinde.verify(&key).now_or_never();
        }
    }
}

/// Every event that the verifier emits, under a subscriber that calls the verifier.
async fn events_call_back() -> usize {
    let stage = Stage::with(|builder| builder.api_id("api_ours")).await;
    let events = Arc::<AtomicUsize>::default();
    let calls_back = CallsBack {
        kinde: stage.kinde.clone(),
        events: Arc::clone(&events),
    };
    let _guard = tracing_subscriber::registry()
        .with(calls_back)
        .set_default();
    // The token cannot be fetched, and then can.
    let works = token("token-1", "3600");
    stage.stub.always(Endpoint::Token, Answer::status(500));
    assert!(stage.verify(GOOD).await.is_err());
    stage.jump(61);
    stage.stub.always(Endpoint::Token, works);
    // It may not look up keys.
    stage.stub.always(Endpoint::Key, Answer::status(403));
    assert!(stage.verify(GOOD).await.is_err());
    // It is rejected, accepted again, and rejected by the probe only.
    stage.stub.always(Endpoint::Probe, Answer::status(403));
    assert_eq!(stage.unknown(BAD).await.0, Verdict::TokenRejected);
    assert!(stage.verify(GOOD).await.is_err());
    assert_eq!(stage.unknown(BAD).await.0, Verdict::Undecided);
    events.load(Ordering::SeqCst)
}

#[test]
fn subscriber_may_call_the_verifier() {
    // Makes `tracing` ask each thread's own subscriber whether it wants an event.
    drop(Log::capture());
    let (done, is_done) = mpsc::channel();
    // A deadlock fails the test instead of stopping it.
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        done.send(runtime.block_on(events_call_back())).unwrap();
    });
    let events = is_done.recv_timeout(HANG);
    assert_eq!(events, Ok(6), "an event was emitted under a lock");
}
