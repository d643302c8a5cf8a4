//! Confirmation of an invalid answer about a known key by its record, if no other key is verified.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;

use crate::support::kinde::{BAD, GOOD, Said, Stage};
use crate::support::stub::{Answer, Endpoint, until};

const ID: &str = "api_key_0001";

fn no_record() -> Answer {
    Answer::json(404, r#"{"errors":[{"code":"API_KEY_NOT_FOUND"}]}"#)
}

fn record(status: &str) -> Answer {
    let body = format!(r#"{{"code":"OK","api_key":{{"id":"{ID}","status":"{status}"}}}}"#);
    Answer::json(200, &body)
}

/// A stage where verify accepted a key a minute ago and now gives this answer.
async fn lone_key(answer: Answer) -> Stage {
    let stage = Stage::new().await;
    assert_eq!(stage.unknown(GOOD).await.0, Said::Valid);
    stage.stub.always(Endpoint::Verify, answer);
    stage.jump(60);
    stage
}

fn invalid_answers() -> [(Answer, Said); 4] {
    [
        (Answer::status(400), Said::Unconfirmed),
        (Answer::status(401), Said::Undecided),
        (Answer::status(403), Said::Undecided),
        (no_record(), Said::Unconfirmed),
    ]
}

#[tokio::test]
async fn record_confirms_a_lone_keys_answer() {
    for (answer, _) in invalid_answers() {
        for record in [no_record(), record("revoked"), record("inactive")] {
            let stage = lone_key(answer.clone()).await;
            stage.stub.always(Endpoint::Key, record.clone());
            let said = stage.known_by_id(GOOD, ID).await;
            assert_eq!(said, Said::Concluded, "{answer:?}, {record:?}");
            let looked_up = stage.stub.requests(Endpoint::Key).remove(0);
            assert_eq!(looked_up.target, "/api/v1/api_keys/api_key_0001");
            assert_eq!(looked_up.token(), Some("token-1"));
        }
    }
}

#[tokio::test]
async fn other_records_confirm_nothing() {
    let another = r#"{"api_key":{"id":"api_key_0002","status":"revoked"}}"#;
    for record in [
        record("active"),
        Answer::json(200, another),
        Answer::json(200, r#"{"api_key":{"status":null}}"#),
        Answer::json(200, r#"{"api_key":{"status":["revoked"]}}"#),
        Answer::json(200, "<html>"),
        Answer::json(404, r#"{"errors":{"code":"ROUTE_NOT_FOUND"}}"#),
        Answer::json(404, "<html>"),
        Answer::status(400),
        Answer::status(401),
        Answer::status(403),
        Answer::status(429),
        Answer::status(500),
        Answer::Bytes(Vec::new()),
    ] {
        let what = format!("{record:?}");
        for (answer, expected) in invalid_answers() {
            let stage = lone_key(answer).await;
            stage.stub.always(Endpoint::Key, record.clone());
            assert_eq!(stage.known_by_id(GOOD, ID).await, expected, "{what}");
            assert_eq!(stage.count(Endpoint::Key), 1, "{what}");
        }
    }
}

#[tokio::test]
async fn record_is_looked_up_only_without_evidence() {
    for (answer, unconfirmed) in invalid_answers() {
        let stage = Stage::new().await;
        stage.stub.always(Endpoint::Key, no_record());
        assert_eq!(stage.unknown(GOOD).await.0, Said::Valid);
        stage.stub.always(Endpoint::Verify, answer);
        // Verify answered 200 a moment ago, so it will confirm the answer soon.
        assert_eq!(stage.known_by_id(GOOD, ID).await, unconfirmed);
        stage.jump(60);
        // No identifier; an unknown key.
        assert_eq!(stage.known(GOOD).await.0, unconfirmed);
        let _ = stage.unknown(BAD).await;
        assert_eq!(stage.count(Endpoint::Key), 0);
    }
    // A token that the probe rejects would be rejected here too.
    let stage = lone_key(Answer::status(401)).await;
    stage.stub.always(Endpoint::Key, no_record());
    stage.stub.always(Endpoint::Probe, Answer::status(401));
    assert_eq!(stage.known_by_id(GOOD, ID).await, Said::TokenRejected);
    assert_eq!(stage.count(Endpoint::Key), 0);
}

#[tokio::test]
async fn one_record_is_looked_up_at_a_time() {
    let stage = lone_key(Answer::status(400)).await;
    let is_answered = Arc::<AtomicBool>::default();
    let record = no_record().once(&is_answered);
    stage.stub.always(Endpoint::Key, record);
    let others = async {
        until("the look-up", || stage.count(Endpoint::Key) == 1).await;
        let others = (0..10).map(|_| stage.known_by_id(GOOD, ID));
        let said = join_all(others).await;
        is_answered.store(true, Ordering::SeqCst);
        said
    };
    let (first, others) = tokio::join!(stage.known_by_id(GOOD, ID), others);
    assert_eq!(first, Said::Concluded);
    assert_eq!(others, [Said::Unconfirmed; 10]);
    assert_eq!(stage.count(Endpoint::Key), 1);
    // And again when that one has ended.
    assert_eq!(stage.known_by_id(GOOD, ID).await, Said::Concluded);
}

#[tokio::test]
async fn confirmed_key_makes_no_other_undecided() {
    let stage = lone_key(Answer::status(401)).await;
    stage.stub.always(Endpoint::Key, Answer::status(500));
    assert_eq!(stage.known_by_id(GOOD, ID).await, Said::Undecided);
    // A known key's answer is unconfirmed, so another key's may be about neither.
    assert_eq!(stage.unknown(BAD).await.0, Said::Undecided);
    stage.stub.always(Endpoint::Key, no_record());
    assert_eq!(stage.known_by_id(GOOD, ID).await, Said::Concluded);
    assert_eq!(stage.unknown(BAD).await.0, Said::Concluded);
    assert_eq!(stage.unknown(GOOD).await.0, Said::Concluded);
}
