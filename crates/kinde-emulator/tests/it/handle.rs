//! The handle: lifetime of the server, recorded requests, redaction.

use kinde_emulator::{Calls, Endpoint, Fault, KeySpec, KindeEmulator};

use crate::Caller;

#[tokio::test]
async fn server_stops_with_its_last_handle() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    let clone = emulator.clone();
    drop(emulator);
    assert_eq!(caller.get("/api/v1/api_keys").await.status(), 200);
    drop(clone);
    // Lets the aborted server task end.
    tokio::task::yield_now().await;
    let error = caller.http.get(&caller.url).send().await.unwrap_err();
    assert!(!error.is_status());
}

#[tokio::test]
async fn shutdown_waits_for_calls_in_flight() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    emulator.inject(
        Endpoint::Verify,
        Fault::latency(std::time::Duration::from_millis(20)),
    );
    emulator.inject(Endpoint::ListKeys, Fault::no_response());
    let verify = tokio::spawn(
        caller
            .request(reqwest::Method::POST, "/api/v1/api_keys/verify")
            .json(&serde_json::json!({ "api_key": "k_live_0" }))
            .send(),
    );
    let list = tokio::spawn(
        caller
            .request(reqwest::Method::GET, "/api/v1/api_keys")
            .send(),
    );
    emulator.wait_for_calls(Endpoint::Verify, 1).await;
    emulator.wait_for_calls(Endpoint::ListKeys, 1).await;
    emulator.shutdown().await;
    assert_eq!(verify.await.unwrap().unwrap().status(), 200);
    list.await.unwrap().unwrap_err();
    // After a shutdown, another one and an outage have no effect.
    emulator.shutdown().await;
    emulator.set_outage(true);
    assert!(!emulator.is_outage());
    assert!(
        caller
            .try_verify("k_live_0")
            .await
            .unwrap_err()
            .is_connect()
    );
}

#[tokio::test]
async fn address_in_use_is_an_error() {
    let emulator = KindeEmulator::start().await.unwrap();
    let second = KindeEmulator::builder().addr(emulator.addr()).start().await;
    assert_eq!(second.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn last_request_redacts_secrets() {
    let emulator = KindeEmulator::start().await.unwrap();
    assert!(emulator.last_request(Endpoint::Verify).is_none());
    let caller = Caller::new(&emulator);
    let key = emulator.issue_key(KeySpec::organization("org_1"));
    caller
        .request(reqwest::Method::POST, "/api/v1/api_keys/verify")
        .header("cookie", "session=cookie-secret")
        .header("x-trace", "7")
        .json(&serde_json::json!({ "api_key": key.secret() }))
        .send()
        .await
        .unwrap();
    let request = emulator.last_request(Endpoint::Verify).unwrap();
    assert_eq!(request.method(), "POST");
    assert_eq!(request.uri(), "/api/v1/api_keys/verify");
    assert_eq!(request.header("x-trace"), Some("7"));
    assert_eq!(request.header("authorization"), Some("Bearer [redacted]"));
    assert_eq!(request.headers().get_all("authorization").iter().count(), 1);
    assert_eq!(request.field("api_key"), Some("[redacted]"));

    caller.fetch_token(&emulator).await;
    let token = emulator.last_request(Endpoint::Token).unwrap();
    assert_eq!(token.field("audience"), Some(&*emulator.audience()));
    assert_eq!(token.field("client_secret"), Some("[redacted]"));

    let shown = format!("{request:?} {token:?} {emulator:?} {key:?}");
    for secret in [
        key.secret(),
        caller.token.as_deref().unwrap(),
        &emulator.client_secret(),
        "cookie-secret",
    ] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[tokio::test]
async fn reset_calls_resets_all_counts() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    caller.verify("k_live_0").await;
    assert_eq!(emulator.calls().verify.total, 1);
    assert_eq!(emulator.calls().connections, 1);
    emulator.reset_calls();
    assert_eq!(emulator.calls(), Calls::default());
}

#[tokio::test]
async fn reset_calls_keeps_calls_in_flight() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    emulator.inject(Endpoint::ListKeys, Fault::hold());
    let request = caller.request(reqwest::Method::GET, "/api/v1/api_keys");
    let list = tokio::spawn(request.send());
    emulator.wait_for_calls(Endpoint::ListKeys, 1).await;
    emulator.reset_calls();
    let calls = emulator.calls().list_keys;
    assert_eq!(
        (calls.total, calls.in_flight, calls.max_in_flight),
        (0, 1, 1)
    );
    emulator.clear_faults();
    assert_eq!(list.await.unwrap().unwrap().status(), 200);
    assert_eq!(emulator.calls().list_keys.ok, 1);
}

#[tokio::test]
async fn secret_can_be_set_but_not_twice() {
    let emulator = KindeEmulator::start().await.unwrap();
    let spec = KeySpec::organization("org_1").secret("k_live_mine");
    assert_eq!(emulator.issue_key(spec.clone()).secret(), "k_live_mine");
    assert!(!format!("{spec:?}").contains("k_live_mine"));
    let twice = std::panic::AssertUnwindSafe(|| emulator.issue_key(spec));
    assert!(std::panic::catch_unwind(twice).is_err());
    // The panic does not affect the emulator.
    assert_eq!(
        Caller::new(&emulator).verify("k_live_mine").await.status(),
        200
    );
}
