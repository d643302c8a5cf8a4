//! The access token: fetching, renewal and caching.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tower_orgkey::VerifyErrorKind;
use tower_orgkey::kinde::KindeVerifierBuilder;

use crate::support::kinde::{GOOD, SECRET, Stage, token};
use crate::support::stub::{Answer, Endpoint};

fn kind<T>(result: Result<T, tower_orgkey::VerifyError>) -> VerifyErrorKind {
    result.err().unwrap().kind()
}

/// Waits for the effect of another task.
async fn until(is_so: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never came to pass");
}

#[tokio::test]
async fn token_is_requested_by_form_and_sent() {
    let stage = Stage::with(|builder| builder.scope("read:api_keys")).await;
    assert!(stage.verify(GOOD).await.unwrap().is_valid());
    let asked = stage.stub.requests(Endpoint::Token).remove(0);
    assert_eq!(
        asked.headers["content-type"],
        "application/x-www-form-urlencoded"
    );
    assert!(!asked.headers.contains_key("authorization"));
    let form: HashMap<String, String> = url(&asked.body);
    let audience = format!("{}/api", stage.stub.url());
    assert_eq!(form.len(), 5);
    assert_eq!(form["grant_type"], "client_credentials");
    assert_eq!(form["client_id"], "the client");
    assert_eq!(form["client_secret"], SECRET);
    assert_eq!(form["audience"], audience);
    assert_eq!(form["scope"], "read:api_keys");
    let verify = stage.stub.requests(Endpoint::Verify).remove(0);
    assert_eq!(verify.token(), Some("token-1"));
    assert_eq!(verify.headers["content-type"], "application/json");
    assert_eq!(verify.body, format!(r#"{{"api_key":"{GOOD}"}}"#));
}

/// The pairs of a form.
fn url(form: &str) -> HashMap<String, String> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        let mut bytes = Vec::new();
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            bytes.push(if byte == b'%' {
                let hex = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            } else {
                byte
            });
        }
        String::from_utf8(bytes).unwrap()
    };
    form.split('&')
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

#[tokio::test]
async fn audience_and_scope_are_sent_as_set() {
    let stage = Stage::with(|builder| builder.audience("https://other/api/v1")).await;
    stage.verify(GOOD).await.unwrap();
    let form = url(&stage.stub.requests(Endpoint::Token)[0].body);
    assert_eq!(form["audience"], "https://other/api/v1");
    assert!(!form.contains_key("scope"));
}

#[tokio::test]
async fn static_token_is_sent_unchanged() {
    let stage = Stage::with(|builder| builder.bearer_token("static.token")).await;
    stage.verify(GOOD).await.unwrap();
    let verify = stage.stub.requests(Endpoint::Verify).remove(0);
    assert_eq!(verify.token(), Some("static.token"));

    let stage = Stage::with(KindeVerifierBuilder::without_credentials).await;
    stage.verify(GOOD).await.unwrap();
    let verify = stage.stub.requests(Endpoint::Verify).remove(0);
    assert!(!verify.headers.contains_key("authorization"));
    assert_eq!(stage.count(Endpoint::Token), 0);
}

#[tokio::test]
async fn fault_15_expired_token_is_renewed_once() {
    let stage = Stage::new().await;
    stage.get(GOOD).await;
    stage.jump(3_601);
    stage.reject_token("token-1");
    let gets = (0..50).map(|n| {
        let layer = stage.layer.clone();
        async move { crate::support::kinde::get(&layer, &format!("k_live_good_{n:04}")).await }
    });
    for got in futures_util::future::join_all(gets).await {
        assert_eq!(got, (200, "org_1".into()));
    }
    assert_eq!(stage.count(Endpoint::Token), 2);
    let with_it = |request: &crate::support::stub::Request| request.token() == Some("token-2");
    let calls = stage.stub.requests(Endpoint::Verify);
    assert_eq!(calls.iter().filter(|call| with_it(call)).count(), 50);
}

#[tokio::test]
async fn token_is_renewed_while_the_old_one_serves() {
    let stage = Stage::new().await;
    stage.verify(GOOD).await.unwrap();
    stage.jump(2_699); // 75 % of 3,600 s is 2,700 s.
    stage.verify(GOOD).await.unwrap();
    assert_eq!(stage.count(Endpoint::Token), 1);
    stage.jump(362); // 85 %
    let slow = token("token-2", "3600").after(Duration::from_secs(1));
    stage.stub.always(Endpoint::Token, slow);
    for _ in 0..5 {
        stage.verify(GOOD).await.unwrap();
    }
    let calls = stage.stub.requests(Endpoint::Verify);
    assert_eq!(calls.last().unwrap().token(), Some("token-1"));
    until(|| stage.count(Endpoint::Token) == 2).await;
    for _ in 0..500 {
        stage.verify(GOOD).await.unwrap();
        let calls = stage.stub.requests(Endpoint::Verify);
        if calls.last().unwrap().token() == Some("token-2") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let calls = stage.stub.requests(Endpoint::Verify);
    assert_eq!(calls.last().unwrap().token(), Some("token-2"));
    assert_eq!(stage.count(Endpoint::Token), 2);
}

#[tokio::test]
async fn fault_16_old_token_is_used_until_it_expires() {
    let stage = Stage::new().await;
    stage.verify(GOOD).await.unwrap();
    stage.stub.always(Endpoint::Token, Answer::status(503));
    let mut failed = 0;
    for _ in 0..5 {
        stage.jump(if failed == 0 { 3_200 } else { 70 });
        assert!(stage.verify(GOOD).await.unwrap().is_valid());
        failed += 1;
        until(|| stage.count(Endpoint::Token) == 1 + failed).await;
        // A second verification does not retry at once.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(stage.verify(GOOD).await.unwrap().is_valid());
        assert_eq!(stage.count(Endpoint::Token), 1 + failed);
    }
    stage.jump(400);
    assert_eq!(kind(stage.verify(GOOD).await), VerifyErrorKind::Unavailable);
    assert_eq!(stage.count(Endpoint::Verify), 11);
    // A known key is served, and unknown keys get 503.
    assert_eq!(stage.get(GOOD).await.0, 503);
}

#[tokio::test]
async fn fault_19_invalid_token_reply_keeps_the_old_token() {
    let with_lifetime = |expires_in: &str| token("token-x", expires_in);
    let useless = [
        with_lifetime("0"),
        with_lifetime("-1"),
        with_lifetime("-1e300"),
        with_lifetime("0.5"),
        with_lifetime(r#""3600""#),
        with_lifetime("true"),
        with_lifetime("[3600]"),
        with_lifetime("1e999"),
        with_lifetime("60,\"expires_in\":60"),
        token("", "3600"),
        token("two words", "3600"),
        token("line\\nbreak", "3600"),
        token("\u{fc}", "3600"),
        token(&"x".repeat(16 * 1024 + 1), "3600"),
        Answer::json(200, r#"{"expires_in":3600}"#),
        Answer::json(200, r#"{"access_token":null,"expires_in":3600}"#),
        Answer::json(200, r#"{"access_token":["x"],"expires_in":3600}"#),
        Answer::json(200, r#"{"access_token":"x","access_token":"y"}"#),
        Answer::json(
            200,
            r#"{"access_token":"x","expires_in":3600,"token_type":"mac"}"#,
        ),
        Answer::json(
            200,
            r#"{"access_token":"x","expires_in":3600,"token_type":7}"#,
        ),
        Answer::json(200, r#"["x","bearer",3600]"#),
        Answer::json(200, "not JSON"),
        with_lifetime("3600").with("Content-Type", "text/html"),
        Answer::json(201, r#"{"access_token":"x","expires_in":3600}"#),
        Answer::status(404),
        Answer::status(429),
        Answer::Reset(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".into()),
        Answer::Endless,
    ];
    for answer in useless {
        let what = format!("{answer:.120?}");
        let stage = Stage::new().await;
        stage.verify(GOOD).await.unwrap();
        stage.stub.always(Endpoint::Token, answer);
        stage.jump(3_300);
        assert!(stage.verify(GOOD).await.unwrap().is_valid(), "{what}");
        until(|| stage.count(Endpoint::Token) == 2).await;
        stage.jump(200);
        assert!(stage.verify(GOOD).await.unwrap().is_valid(), "{what}");
        let with_it = stage.stub.requests(Endpoint::Verify);
        assert!(
            with_it.iter().all(|call| call.token() == Some("token-1")),
            "{what}"
        );
        stage.jump(200);
        assert!(stage.verify(GOOD).await.is_err(), "{what}");
        // No busy loop: a failed request is not retried at once.
        let tried = stage.count(Endpoint::Token);
        for _ in 0..20 {
            assert!(stage.verify(GOOD).await.is_err(), "{what}");
        }
        assert_eq!(stage.count(Endpoint::Token), tried, "{what}");
    }
}

#[tokio::test]
async fn fault_19_lifetime_has_default_and_maximum() {
    let unsaid = Answer::json(200, r#"{"access_token":"t"}"#);
    for (answer, last) in [
        (unsaid, 300),
        (token("t", "null"), 300),
        (token("t", "1e300"), 86_400),
        (token("t", "18446744073709551615"), 86_400),
        (token("t", "86401"), 86_400),
        (token("t", "1.5e3"), 1_500),
        (token("t", "7"), 7),
    ] {
        let stage = Stage::new().await;
        stage.stub.always(Endpoint::Token, answer);
        stage.verify(GOOD).await.unwrap();
        stage.stub.always(Endpoint::Token, Answer::status(500));
        stage.jump(last - 1);
        stage.verify(GOOD).await.unwrap();
        until(|| stage.count(Endpoint::Token) == 2).await;
        stage.jump(2);
        assert!(stage.verify(GOOD).await.is_err(), "{last}");
    }
}

#[tokio::test]
async fn rejected_credentials_are_retried_with_backoff() {
    let oauth = |status, code| Answer::json(status, &format!(r#"{{"error":"{code}"}}"#));
    for answer in [
        oauth(401, "invalid_client"),
        oauth(400, "invalid_client"),
        oauth(400, "unauthorized_client"),
        oauth(400, "invalid_scope"),
        oauth(400, "something_new"),
        Answer::json(401, ""),
    ] {
        let stage = Stage::new().await;
        stage.stub.always(Endpoint::Token, answer);
        for _ in 0..3 {
            assert_eq!(
                kind(stage.verify(GOOD).await),
                VerifyErrorKind::Misconfigured
            );
        }
        assert_eq!(stage.count(Endpoint::Token), 1);
        let mut tried = 1;
        for wait in [5, 10, 20, 40, 80, 160, 320, 640, 900, 900] {
            stage.jump(wait - 1);
            assert!(stage.verify(GOOD).await.is_err());
            assert_eq!(stage.count(Endpoint::Token), tried, "{wait}");
            stage.jump(1);
            assert!(stage.verify(GOOD).await.is_err());
            tried += 1;
            assert_eq!(stage.count(Endpoint::Token), tried, "{wait}");
        }
        assert_eq!(stage.count(Endpoint::Verify), 0);
    }
}

#[tokio::test]
async fn failed_token_request_is_retried_with_backoff() {
    let stage = Stage::new().await;
    stage.stub.always(Endpoint::Token, Answer::status(500));
    assert_eq!(kind(stage.verify(GOOD).await), VerifyErrorKind::Unavailable);
    let mut tried = 1;
    for wait in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
        // The clock of the test runs too, so a slow machine needs some time before the end of the pause.
        let rest = (wait / 4).clamp(900, 5_000);
        stage.clock.jump(Duration::from_millis(wait - rest));
        assert!(stage.verify(GOOD).await.is_err());
        assert_eq!(stage.count(Endpoint::Token), tried, "{wait}");
        stage.clock.jump(Duration::from_millis(rest));
        assert!(stage.verify(GOOD).await.is_err());
        tried += 1;
        assert_eq!(stage.count(Endpoint::Token), tried, "{wait}");
    }
    stage.stub.always(Endpoint::Token, token("token-9", "3600"));
    stage.jump(60);
    assert!(stage.verify(GOOD).await.unwrap().is_valid());
}

#[tokio::test]
async fn token_endpoint_429_pauses_token_requests_only() {
    let stage = Stage::new().await;
    let answer = Answer::status(429).with("RateLimit-Reset", "30");
    stage.stub.always(Endpoint::Token, answer);
    // Only verify's own 429 may pause verifications.
    for _ in 0..2 {
        let error = kind(stage.verify(GOOD).await);
        assert_eq!(error, VerifyErrorKind::Inconclusive);
        assert_eq!(stage.count(Endpoint::Token), 1);
        stage.jump(14);
    }
    stage.jump(2);
    assert!(stage.verify(GOOD).await.is_err());
    assert_eq!(stage.count(Endpoint::Token), 2);
}

#[tokio::test]
async fn invalid_token_reply_is_about_no_key() {
    let stage = Stage::new().await;
    stage.stub.always(Endpoint::Token, Answer::json(200, "{}"));
    let error = kind(stage.verify(GOOD).await);
    assert_eq!(error, VerifyErrorKind::Unavailable);
}

#[tokio::test]
async fn expired_new_token_is_not_refetched_at_once() {
    let stage = Stage::new().await;
    let clock = stage.clock.clone();
    let is_slow = AtomicBool::new(true);
    stage.stub.on(Endpoint::Token, move |_| {
        if is_slow.swap(false, Ordering::SeqCst) {
            clock.jump(Duration::from_secs(10));
        }
        token("token-short", "5")
    });
    assert_eq!(kind(stage.verify(GOOD).await), VerifyErrorKind::Unavailable);
    assert_eq!(stage.count(Endpoint::Token), 1);
    assert!(stage.verify(GOOD).await.unwrap().is_valid());
    assert_eq!(stage.count(Endpoint::Token), 2);
}

#[tokio::test]
async fn dropped_verification_leaves_its_token() {
    let stage = Stage::new().await;
    let slow = token("token-slow", "3600").after(Duration::from_millis(300));
    stage.stub.always(Endpoint::Token, slow);
    let dropped = tokio::time::timeout(Duration::from_millis(50), stage.verify(GOOD)).await;
    assert!(dropped.is_err(), "the fetch was meant to take longer");
    assert!(stage.verify(GOOD).await.unwrap().is_valid());
    assert_eq!(stage.count(Endpoint::Token), 1);
}

#[tokio::test]
async fn fifty_first_verifications_fetch_one_token() {
    let stage = Stage::new().await;
    let verifications = (0..50).map(|_| stage.verify(GOOD));
    for verified in futures_util::future::join_all(verifications).await {
        assert!(verified.unwrap().is_valid());
    }
    assert_eq!(stage.count(Endpoint::Token), 1);
}
