//! Fault injection.

use std::time::Duration;

use http_body_util::BodyExt;
use kinde_emulator::{Endpoint, Endpoints, Fault, IssuedKey, KeySpec, KindeEmulator};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{Caller, assert_errors_array, assert_errors_object, read};

async fn start() -> (KindeEmulator, Caller, IssuedKey) {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    let key = emulator.issue_key(KeySpec::organization("org_1").scopes(["a"]));
    (emulator, caller, key)
}

#[tokio::test]
async fn status_has_the_error_body_of_the_contract() {
    let (emulator, caller, key) = start().await;
    for status in [400, 401, 403, 404, 429, 500, 502, 503, 504] {
        emulator.inject(Endpoints::ALL, Fault::status(status));
        let (got, body) = read(caller.verify(key.secret()).await).await;
        assert_eq!(got, status);
        if status == 404 {
            assert_errors_object(&body, "NOT_FOUND");
        } else {
            assert_errors_array(&body);
        }
        let (got, body) = read(caller.fetch_token(&emulator).await).await;
        assert_eq!(got, status);
        assert!(body["error"].is_string());
        for path in [
            "/api/v1/api_keys",
            &format!("/api/v1/api_keys/{}", key.id()),
        ] {
            assert_eq!(read(caller.get(path).await).await.0, status);
        }
    }
    let calls = emulator.calls();
    for endpoint in [
        Endpoint::Verify,
        Endpoint::Token,
        Endpoint::ListKeys,
        Endpoint::GetKey,
    ] {
        let counts = calls.of(endpoint);
        assert_eq!((counts.total, counts.faulted, counts.ok), (9, 9, 0));
    }
    emulator.clear_faults();
    assert_eq!(caller.verify(key.secret()).await.status(), 200);
    assert_eq!(emulator.calls().verify.faulted, 9);
}

#[tokio::test]
async fn other_endpoints_are_unaffected() {
    let (emulator, caller, key) = start().await;
    let one = format!("/api/v1/api_keys/{}", key.id());
    for broken in Endpoint::ALL {
        emulator.clear_faults();
        emulator.inject(broken, Fault::status(503));
        let create = json!({ "name": "n", "type": "environment", "api_id": "a" });
        for (endpoint, response) in [
            (Endpoint::Token, caller.fetch_token(&emulator).await),
            (Endpoint::Verify, caller.verify(key.secret()).await),
            (Endpoint::ListKeys, caller.get("/api/v1/api_keys").await),
            (Endpoint::GetKey, caller.get(&one).await),
            (Endpoint::CreateKey, caller.create(&create).await),
            (
                Endpoint::RotateKey,
                caller.send(Method::PUT, "/api/v1/api_keys/none").await,
            ),
            (
                Endpoint::DeleteKey,
                caller.send(Method::DELETE, "/api/v1/api_keys/none").await,
            ),
        ] {
            let status = response.status().as_u16();
            assert_eq!(
                status == 503,
                endpoint == broken,
                "{endpoint:?} with {broken:?} broken: {status}"
            );
        }
    }
}

#[tokio::test]
async fn route_not_found_has_its_code() {
    let (emulator, caller, key) = start().await;
    emulator.inject(Endpoint::Verify, Fault::route_not_found());
    let (status, body) = read(caller.verify(key.secret()).await).await;
    assert_eq!(status, 404);
    assert_errors_object(&body, "ROUTE_NOT_FOUND");
}

#[tokio::test]
async fn status_can_have_any_header() {
    let (emulator, caller, key) = start().await;
    emulator.inject(Endpoint::Verify, Fault::status(429));
    let bare = caller.verify(key.secret()).await;
    assert!(!bare.headers().contains_key("ratelimit-reset"));
    assert!(!bare.headers().contains_key("retry-after"));
    for value in ["30", "-1", "1e99", "Wed, 21 Oct 2026 07:28:00 GMT", ""] {
        let fault = Fault::status(429)
            .with_header("RateLimit-Reset", value)
            .with_header("retry-after", value);
        emulator.inject(Endpoint::Verify, fault);
        let response = caller.verify(key.secret()).await;
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["ratelimit-reset"], value);
        assert_eq!(response.headers()["retry-after"], value);
    }
}

#[tokio::test]
async fn reply_is_sent_as_given() {
    let (emulator, caller, key) = start().await;
    let bytes = [0xFF, 0x00, b'{', 0x80];
    emulator.inject(
        Endpoint::Verify,
        Fault::reply(200, "application/octet-stream", bytes.to_vec()),
    );
    let response = caller.verify(key.secret()).await;
    assert_eq!(
        response.headers()["content-type"],
        "application/octet-stream"
    );
    assert_eq!(response.bytes().await.unwrap(), bytes.as_slice());

    emulator.inject(Endpoint::Verify, Fault::redirect("http://127.0.0.1:1/"));
    let response = caller.verify(key.secret()).await;
    assert_eq!(response.status(), 307);
    assert_eq!(response.headers()["location"], "http://127.0.0.1:1/");
}

#[tokio::test]
async fn regular_reply_can_be_rewritten() {
    let (emulator, caller, key) = start().await;
    emulator.inject(Endpoint::Verify, Fault::with_member("org_code", r#""""#));
    let (_, body) = read(caller.verify(key.secret()).await).await;
    assert_eq!(
        (&body["org_code"], &body["is_valid"]),
        (&json!(""), &json!(true))
    );
    emulator.inject(Endpoint::Verify, Fault::without_member("scopes"));
    let (_, body) = read(caller.verify(key.secret()).await).await;
    assert_eq!(body.get("scopes"), None);
    assert_eq!(body["org_code"], "org_1");
    emulator.inject(Endpoint::Token, Fault::without_member("expires_in"));
    let (_, body) = read(caller.fetch_token(&emulator).await).await;
    assert_eq!(body.get("expires_in"), None);
    assert!(body["access_token"].is_string());
    emulator.inject(Endpoint::Verify, Fault::rewrite(|body| format!("[{body}]")));
    let (_, body) = read(caller.verify(key.secret()).await).await;
    assert_eq!(body[0]["status"], "active");
    // Rewritten replies count as verifications.
    assert_eq!(body[0]["verification_count"], 3);
}

#[tokio::test]
async fn reject_token_rejects_valid_tokens() {
    let (emulator, caller, key) = start().await;
    emulator.inject(Endpoints::ALL, Fault::reject_token());
    let (status, body) = read(caller.verify(key.secret()).await).await;
    assert_eq!(status, 401);
    assert_errors_array(&body);
    assert_eq!(caller.get("/api/v1/api_keys").await.status(), 403);
    let (status, body) = read(caller.fetch_token(&emulator).await).await;
    assert_eq!((status, &body["error"]), (401, &json!("invalid_client")));
    let calls = emulator.calls();
    assert_eq!(calls.verify.token_rejected, 1);
    assert_eq!(calls.list_keys.token_rejected, 1);
    assert_eq!(calls.token.token_rejected, 1);
}

#[tokio::test]
async fn truncated_body_is_shorter_than_its_length() {
    for (fault, reset) in [(Fault::truncate(), false), (Fault::reset_mid_body(), true)] {
        let (emulator, caller, key) = start().await;
        emulator.inject(Endpoint::Verify, fault.clone());
        let mut response = caller.verify(key.secret()).await;
        assert_eq!(response.status(), 200, "the head is complete");
        let promised = response.content_length().unwrap();
        let mut got = 0;
        let ended = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => got += chunk.len() as u64,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let error = ended.expect_err("the body is complete");
        assert_eq!(is_reset(&error), reset, "{fault:?}: {error:?}");
        assert!(got < promised, "{fault:?}: {got} of {promised}");
        assert_eq!(emulator.calls().verify.faulted, 1);
    }
}

#[tokio::test]
async fn trickle_sends_single_bytes() {
    let (emulator, _, key) = start().await;
    emulator.inject(Endpoint::Verify, Fault::trickle(Duration::from_millis(1)));
    let stream = tokio::net::TcpStream::connect(emulator.addr())
        .await
        .unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
            .await
            .unwrap();
    let driver = tokio::spawn(connection);
    let request = http::Request::post("/api/v1/api_keys/verify")
        .header("host", "emulator")
        .header("content-type", "application/json")
        .header(
            "authorization",
            format!("Bearer {}", emulator.issue_token(["read:api_keys"])),
        )
        .body(format!(r#"{{"api_key":"{}"}}"#, key.secret()))
        .unwrap();
    let mut response = sender.send_request(request).await.unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = response.body_mut().frame().await {
        frames.push(frame.unwrap().into_data().unwrap());
    }
    let body: Value = serde_json::from_slice(&frames.concat()).unwrap();
    assert_eq!(body["is_valid"], true);
    assert!(
        frames.len() > frames.concat().len() / 4,
        "{} frames",
        frames.len()
    );
    drop(sender);
    driver.await.unwrap().unwrap();
}

#[tokio::test]
async fn close_and_reset_send_no_response() {
    for (fault, reset) in [(Fault::close(), false), (Fault::reset(), true)] {
        let (emulator, caller, key) = start().await;
        emulator.inject(Endpoint::Verify, fault.clone());
        let error = caller.try_verify(key.secret()).await.unwrap_err();
        assert_eq!(is_reset(&error), reset, "{fault:?}: {error:?}");
        assert_eq!(emulator.calls().verify.faulted, 1);
        assert_eq!(emulator.calls().verify.ok, 0);
    }
}

fn is_reset(error: &reqwest::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::ConnectionReset;
        }
        source = error.source();
    }
    false
}

#[tokio::test]
async fn no_response_outlasts_its_fault() {
    let (emulator, caller, key) = start().await;
    emulator.inject(Endpoint::Verify, Fault::no_response());
    let call = tokio::spawn({
        let request = caller
            .request(Method::POST, "/api/v1/api_keys/verify")
            .json(&json!({ "api_key": key.secret() }));
        request.send()
    });
    emulator.wait_for_calls(Endpoint::Verify, 1).await;
    // Clearing the fault only affects later calls.
    emulator.clear_faults();
    assert_eq!(caller.verify(key.secret()).await.status(), 200);
    assert!(!call.is_finished());
    assert_eq!(emulator.calls().verify.in_flight, 1);
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn held_calls_are_answered_when_cleared() {
    let (emulator, caller, key) = start().await;
    emulator.inject(Endpoint::Verify, Fault::hold());
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let request = caller
                .request(Method::POST, "/api/v1/api_keys/verify")
                .json(&json!({ "api_key": key.secret() }));
            tokio::spawn(request.send())
        })
        .collect();
    emulator.wait_for_calls(Endpoint::Verify, 20).await;
    assert_eq!(emulator.calls().verify.in_flight, 20);
    assert_eq!(emulator.calls().verify.ok, 0);
    emulator.clear(Endpoint::Verify);
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    let verify = emulator.calls().verify;
    assert_eq!((verify.ok, verify.max_in_flight), (20, 20));
}

#[tokio::test(start_paused = true)]
async fn delay_applies_to_all_faults() {
    let (emulator, caller, key) = start().await;
    let delay = Duration::from_secs(3_600);
    for (fault, status) in [
        (Fault::latency(delay), 200),
        (Fault::status(503).after(delay), 503),
    ] {
        emulator.inject(Endpoint::Verify, fault);
        // The paused clock advances only when all tasks wait.
        let began = tokio::time::Instant::now();
        assert_eq!(caller.verify(key.secret()).await.status(), status);
        assert!(began.elapsed() >= delay);
    }
}

#[tokio::test]
async fn every_and_times_select_calls() {
    let (emulator, caller, key) = start().await;
    let statuses = async |n| {
        let mut statuses = Vec::new();
        for _ in 0..n {
            statuses.push(caller.verify(key.secret()).await.status().as_u16());
        }
        statuses
    };
    emulator.inject(Endpoint::Verify, Fault::status(503).times(2));
    assert_eq!(statuses(4).await, [503, 503, 200, 200]);
    emulator.inject(Endpoint::Verify, Fault::status(500).every(2));
    assert_eq!(statuses(4).await, [200, 500, 200, 500]);
    emulator.inject(Endpoint::Verify, Fault::status(500).every(3).times(1));
    assert_eq!(statuses(6).await, [200, 200, 500, 200, 200, 200]);
    assert_eq!(emulator.calls().verify.faulted, 2 + 2 + 1);
}

#[tokio::test]
async fn outage_resets_all_connections_and_ends() {
    let (emulator, caller, key) = start().await;
    assert_eq!(caller.verify(key.secret()).await.status(), 200);
    emulator.inject(Endpoint::Token, Fault::no_response());
    let in_flight = tokio::spawn({
        let request = caller.request(Method::POST, "/oauth2/token");
        request.send()
    });
    emulator.wait_for_calls(Endpoint::Token, 1).await;
    let before = emulator.calls();

    emulator.set_outage(true);
    assert!(emulator.is_outage());
    in_flight.await.unwrap().unwrap_err();
    for _ in 0..5 {
        caller.try_verify(key.secret()).await.unwrap_err();
    }
    let during = emulator.calls();
    assert_eq!(during.verify.total, before.verify.total);
    assert!(during.reset_connections >= 6, "{during:?}");

    emulator.set_outage(false);
    assert!(!emulator.is_outage());
    assert_eq!(caller.verify(key.secret()).await.status(), 200);
}

#[test]
fn invalid_faults_panic_when_constructed() {
    for make in [
        || Fault::status(99),
        || Fault::status(600),
        || Fault::status(100),
        || Fault::reply(200, "text\n", ""),
        || Fault::redirect("\n"),
        || Fault::status(500).with_header("two words", ""),
        || Fault::status(500).every(0),
        || Fault::with_member("a", "{"),
    ] {
        assert!(std::panic::catch_unwind(make).is_err());
    }
}
