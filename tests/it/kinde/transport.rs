//! Faults of the connection to the issuer.

use std::process::Command;
use std::time::Duration;

use tower_orgkey::VerifyErrorKind;
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::test_util::TestClock;

use crate::support::kinde::{GOOD, Said, Stage, default_layer, get, served, unavailable, yes};
use crate::support::stub::{Answer, Endpoint, Stub};

const UNKNOWN_KEY: &str = "k_live_good_9999";

#[tokio::test]
async fn fault_02_silent_issuer_is_unavailable() {
    let stage = Stage::new().await;
    let layer = default_layer(&stage);
    assert_eq!(get(&layer, GOOD).await, served());
    stage.stub.always(Endpoint::Verify, Answer::Silence);
    assert_eq!(get(&layer, UNKNOWN_KEY).await, unavailable());
    stage.jump(130);
    assert_eq!(get(&layer, GOOD).await, served());
    assert!(stage.count(Endpoint::Verify) >= 3, "verify was not called");
}

#[tokio::test]
async fn fault_03_trickled_body_is_unavailable() {
    let stage = Stage::new().await;
    let layer = default_layer(&stage);
    assert_eq!(get(&layer, GOOD).await, served());
    stage.stub.always(Endpoint::Verify, Answer::Trickle);
    assert_eq!(get(&layer, UNKNOWN_KEY).await, unavailable());
    stage.jump(130);
    assert_eq!(get(&layer, GOOD).await, served());
    assert!(stage.stub.poured() > 0, "nothing trickled in");
}

#[tokio::test]
async fn fault_04_reset_or_truncation_is_not_invalid() {
    let head = |status: &str, len: usize| {
        format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n"
        )
    };
    let negative = r#"{"is_valid":false}"#;
    let cut = |status: &str| format!("{}{negative}", head(status, negative.len() + 1)).into_bytes();
    for answer in [
        Answer::Reset(cut("200")),
        Answer::Bytes(cut("200")),
        Answer::Bytes(cut("400")),
        Answer::Bytes(cut("401")),
        Answer::Bytes(cut("403")),
        Answer::Bytes(cut("404")),
        Answer::Reset(Vec::new()),
        Answer::Bytes(Vec::new()),
        Answer::Bytes(b"HTTP/1.1 20".into()),
        Answer::Bytes(b"is_valid: false\r\n\r\n".into()),
        Answer::Bytes(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n12\r\n{\"is_valid\":false}\r\n".into()),
        Answer::Bytes(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(2_000_000)).into()),
    ] {
        let what = format!("{answer:.200?}");
        let stage = Stage::new().await;
        assert_eq!(stage.get(GOOD).await, served(), "{what}");
        stage.stub.always(Endpoint::Verify, answer);
        let asked = stage.count(Endpoint::Verify);
        assert_eq!(stage.get(UNKNOWN_KEY).await, unavailable(), "{what}");
        let error = stage.verify(UNKNOWN_KEY).await.err().unwrap();
        assert_eq!(error.kind(), VerifyErrorKind::Unavailable, "{what}");
        stage.jump(130);
        assert_eq!(stage.get(GOOD).await, served(), "{what}");
        assert!(stage.count(Endpoint::Verify) > asked + 2, "{what}");
        assert_eq!(stage.count(Endpoint::Probe), 0, "{what}");
    }
}

#[tokio::test]
async fn fault_09_429_may_have_a_wait() {
    let huge = "9".repeat(100_000);
    for (name, value, expected) in [
        ("RateLimit-Reset", "30", Some(30)),
        ("Retry-After", "12", Some(12)),
        ("X", "x", None),
        ("RateLimit-Reset", "-1", None),
        ("RateLimit-Reset", "1e99", None),
        ("Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("Retry-After", &huge, None),
    ] {
        let stage = Stage::new().await;
        let answer = Answer::status(429).with(name, value);
        stage.stub.always(Endpoint::Verify, answer);
        let error = stage.verify(GOOD).await.err().unwrap();
        let retry_after = expected.map(Duration::from_secs);
        assert_eq!(
            error.kind(),
            VerifyErrorKind::Throttled { retry_after },
            "{name}: {value:.40}"
        );
        assert_eq!(stage.count(Endpoint::Verify), 1);
    }
}

#[tokio::test]
async fn fault_09_429_needs_no_complete_body() {
    let stage = Stage::new().await;
    let cut = b"HTTP/1.1 429 X\r\nRateLimit-Reset: 30\r\nContent-Length: 99\r\n\r\n{";
    stage
        .stub
        .always(Endpoint::Verify, Answer::Bytes(cut.into()));
    let error = stage.verify(GOOD).await.err().unwrap();
    let retry_after = Some(Duration::from_secs(30));
    assert_eq!(error.kind(), VerifyErrorKind::Throttled { retry_after });
    assert_eq!(stage.count(Endpoint::Verify), 1);
}

#[tokio::test]
async fn fault_14_redirects_are_not_followed() {
    let other = Stub::start().await;
    let stage = Stage::with(|builder| builder.api_id("api")).await;
    other
        .always(Endpoint::Verify, yes())
        .always(Endpoint::Elsewhere, yes());
    for status in [301, 302, 303, 307, 308] {
        for to in [other.url(), stage.stub.url()] {
            let redirect =
                Answer::status(status).with("Location", &format!("{to}/api/v1/api_keys/verify"));
            stage
                .stub
                .always(Endpoint::Verify, redirect)
                .always(Endpoint::Key, Answer::status(500));
            let asked = stage.count(Endpoint::Verify);
            assert!(stage.verify(GOOD).await.is_err());
            assert_eq!(stage.count(Endpoint::Verify), asked + 1);
        }
    }
    let redirect = Answer::status(307).with("Location", &other.url());
    for endpoint in [Endpoint::Probe, Endpoint::Key, Endpoint::Token] {
        stage.stub.always(endpoint, redirect.clone());
    }
    stage.stub.always(Endpoint::Verify, Answer::status(401));
    assert_eq!(stage.unknown(GOOD).await.0, Said::Undecided);
    stage.stub.always(Endpoint::Verify, yes());
    assert!(stage.verify(GOOD).await.is_err());
    stage.jump(3_601);
    assert!(stage.verify(GOOD).await.is_err());
    for endpoint in [Endpoint::Probe, Endpoint::Key, Endpoint::Token] {
        assert!(stage.count(endpoint) > 0, "{endpoint:?} was not called");
    }
    assert_eq!(other.connections(), 0);
}

/// Runs in a child process with proxies in its environment.
#[tokio::test]
async fn verifies_without_environment_proxies() {
    let stage = Stage::new().await;
    assert!(stage.verify(GOOD).await.unwrap().is_valid());
    assert_eq!(stage.get(GOOD).await, served());
    // The parent sets the environment; without it, this is an ordinary test.
    if std::env::var_os("PROXIED").is_some() {
        assert!(std::env::var_os("HTTP_PROXY").is_some());
    }
}

#[tokio::test]
async fn fault_14b_environment_proxies_are_not_used() {
    let proxy = Stub::start().await;
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args([
            "--exact",
            "kinde::transport::verifies_without_environment_proxies",
        ])
        .env("PROXIED", "1")
        .env_remove("NO_PROXY")
        .env_remove("no_proxy");
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        child.env(name, proxy.url());
        child.env(name.to_lowercase(), proxy.url());
    }
    let output = tokio::task::spawn_blocking(move || child.output().unwrap())
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
    assert_eq!(proxy.connections(), 0);
}

#[tokio::test]
async fn configured_proxy_is_used() {
    let proxy = Stub::start().await;
    proxy.always(Endpoint::Elsewhere, yes());
    let kinde = KindeVerifier::builder("http://issuer.invalid")
        .dangerously_allow_http()
        .bearer_token("static")
        .proxy(proxy.url())
        .test_clock(TestClock::new())
        .build()
        .unwrap();
    let layer = crate::support::kinde::layer_over(kinde, &TestClock::new());
    assert_eq!(get(&layer, GOOD).await, served());
    let seen = proxy.requests(Endpoint::Elsewhere).remove(0);
    assert_eq!(seen.target, "http://issuer.invalid/api/v1/api_keys/verify");
}

#[tokio::test]
async fn fault_13_unresolved_name_is_unavailable() {
    let clock = TestClock::new();
    let kinde = KindeVerifier::builder("http://issuer.invalid")
        .dangerously_allow_http()
        .without_credentials()
        .build()
        .unwrap();
    let layer = crate::support::kinde::layer_over(kinde, &clock);
    assert_eq!(get(&layer, GOOD).await, unavailable());
}

#[tokio::test]
async fn requests_have_expected_headers_only() {
    let stage = Stage::new().await;
    stage.stub.on(Endpoint::Verify, |request| {
        if request.key() == GOOD {
            yes().with("Set-Cookie", "session=1; Path=/")
        } else {
            Answer::status(401)
        }
    });
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.get("k_live_bad_00001").await.0, 401);
    for endpoint in [Endpoint::Token, Endpoint::Verify, Endpoint::Probe] {
        for request in stage.stub.requests(endpoint) {
            let mut names: Vec<_> = request.headers.keys().map(String::as_str).collect();
            names.sort_unstable();
            names.retain(|name| {
                !matches!(*name, "authorization" | "content-length" | "content-type")
            });
            assert_eq!(names, ["accept", "host", "user-agent"], "{endpoint:?}");
        }
    }
    // One connection for all calls except the probe: its body is not read.
    assert!(stage.stub.connections() <= 2);
}

#[tokio::test]
async fn failed_call_is_not_retried_by_the_client() {
    for answer in [
        Answer::Bytes(Vec::new()),
        Answer::status(503),
        Answer::status(429).with("Retry-After", "0"),
    ] {
        let stage = Stage::new().await;
        stage.stub.always(Endpoint::Verify, answer);
        assert!(stage.verify(GOOD).await.is_err());
        assert_eq!(stage.count(Endpoint::Verify), 1);
    }
}
