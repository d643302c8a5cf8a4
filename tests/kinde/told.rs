//! What an operator reads: each trouble once, and once when it is over.

use std::time::Duration;

use tokio::net::TcpSocket;
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::{ApiKey, Verifier, VerifyErrorKind};

use super::log::Log;
use super::stage::{BAD, GOOD, Stage, YES, get, layer_over, token};
use super::stub::{Answer, Endpoint, HANG};

const NEW: &str = "k_live_good_0002";
const PROBE_YES: &str = r#"{"api_keys":[],"has_more":false}"#;

#[tokio::test]
async fn fault_17_a_refused_token_is_told_once_until_one_is_accepted_again() {
    let (log, _guard) = Log::capture();
    let stage = Stage::new().await;
    for time in 1..=2 {
        stage.stub.always(Endpoint::Probe, Answer::status(401));
        for key in [BAD, "k_live_bad_00002", "k_live_bad_00003"] {
            assert_eq!(stage.get(key).await.0, 503);
            stage.jump(6);
        }
        let told = log.lines("ERROR", "the issuer refuses our own token");
        assert_eq!(told.len(), time, "{told:?}");
        assert!(told[0].contains("verify_status=401 probe_status=401"));
        for key in [GOOD, NEW] {
            assert_eq!(stage.get(key).await.0, 200);
        }
        let told = log.lines("INFO", "the issuer accepts our own token again");
        assert_eq!(told.len(), time, "{told:?}");
        stage.jump(130);
    }
}

#[tokio::test]
async fn fault_56_a_missing_scope_is_told_once_until_it_was_granted() {
    let (log, _guard) = Log::capture();
    let stage = Stage::new().await;
    for time in 1..=2 {
        stage.stub.always(Endpoint::Probe, Answer::status(403));
        assert_eq!(stage.get(BAD).await.0, 503);
        // Known from here on, and known still when the next probe is due.
        for _ in 0..2 {
            assert_eq!(stage.get(GOOD).await.0, 200);
            assert_eq!(stage.get(BAD).await.0, 401);
            let told = log.lines("WARN", "without the scope `read:api_keys`");
            assert_eq!(told.len(), time, "{told:?}");
            stage.jump(1_000);
        }
        let granted = Answer::json(200, PROBE_YES);
        stage.stub.always(Endpoint::Probe, granted);
        assert_eq!(stage.get(BAD).await.0, 401);
        stage.jump(130);
    }
    assert!(stage.count(Endpoint::Probe) >= 6);
}

#[tokio::test]
async fn a_token_that_may_not_look_keys_up_is_told_once_until_it_may() {
    let (log, _guard) = Log::capture();
    let stage = Stage::with(|builder| builder.api_id("api_ours")).await;
    for time in 1..=2 {
        stage.stub.always(Endpoint::Key, Answer::status(403));
        for key in [GOOD, NEW, "k_live_good_0003"] {
            assert_eq!(stage.get(key).await.0, 503);
        }
        let told = log.lines("ERROR", "our own token may not look keys up");
        assert_eq!(told.len(), time, "{told:?}");
        let ours = r#"{"organization_id":"org_1","api_ids":["api_ours"]}"#;
        stage.stub.always(Endpoint::Key, Answer::json(200, ours));
        assert_eq!(stage.get(GOOD).await.0, 200);
        // Past what is remembered of the key.
        stage.jump(3_700);
    }
}

#[tokio::test]
async fn fault_23_a_missing_key_id_is_logged_by_name() {
    let (log, _guard) = Log::capture();
    let stage = Stage::with(|builder| builder.api_id("api_ours")).await;
    let body = YES.replace(r#""key_id":"api_key_0001","#, "");
    assert_ne!(body, YES);
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
            // At most one of these warnings a second; the last one was another test's.
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
async fn fault_16_a_token_that_cannot_be_fetched_is_told_once_and_once_when_it_can() {
    let (log, _guard) = Log::capture();
    let stage = Stage::new().await;
    for time in 1..=2 {
        for (answer, told) in [
            (Answer::status(500), 2 * time - 1),
            // Another trouble than before.
            (Answer::json(401, r#"{"error":"invalid_client"}"#), 2 * time),
        ] {
            stage.stub.always(Endpoint::Token, answer);
            for _ in 0..3 {
                assert!(stage.verify(GOOD).await.is_err());
                stage.jump(61);
            }
            let lines = log.lines("ERROR", "cannot fetch our own token");
            assert_eq!(lines.len(), told, "{lines:?}");
        }
        let works = token("token-x", "3600");
        stage.stub.always(Endpoint::Token, works);
        assert!(stage.verify(GOOD).await.is_ok());
        let lines = log.lines("INFO", "our own token can be fetched again");
        assert_eq!(lines.len(), time, "{lines:?}");
        stage.jump(3_601);
    }
    assert!(stage.count(Endpoint::Token) >= 10);
}

#[tokio::test]
async fn fault_01_a_refused_connection_is_no_matter_of_certificates() {
    let (log, _guard) = Log::capture();
    // Held, so that nobody else takes it, and not listened on.
    let port = TcpSocket::new_v4().unwrap();
    port.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let issuer = format!("http://{}", port.local_addr().unwrap());
    let kinde = KindeVerifier::builder(issuer)
        .without_credentials()
        .build()
        .unwrap();
    let error = kinde.verify(&ApiKey::parse(GOOD).unwrap()).await;
    assert_eq!(error.err().unwrap().kind(), VerifyErrorKind::Unavailable);
    let told = log.lines("", "certificate");
    assert_eq!(told, Vec::<String>::new());
}
