//! Concurrent connections.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use kinde_emulator::{Endpoint, Fault, KeySpec, KindeEmulator};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Returns the number of connections to open: 10,000, or as many as the limit on open files allows. Both ends of each
/// connection are in this process.
fn connections() -> usize {
    let limit = std::fs::read_to_string("/proc/self/limits")
        .ok()
        .and_then(|limits| {
            let line = limits
                .lines()
                .find(|line| line.starts_with("Max open files"))?;
            line.split_whitespace().nth(3)?.parse::<usize>().ok()
        })
        .unwrap_or(1_024);
    (limit / 2).saturating_sub(200).min(10_000)
}

#[tokio::test]
async fn ten_thousand_concurrent_calls_are_answered() {
    let emulator = KindeEmulator::start().await.unwrap();
    let key = emulator.issue_key(KeySpec::organization("org_1"));
    let token = Arc::new(emulator.issue_token(["read:api_keys"]));
    let body = Arc::new(format!(r#"{{"api_key":"{}"}}"#, key.secret()));
    emulator.inject(Endpoint::Verify, Fault::hold());

    let connections = connections();
    let mut calls = JoinSet::new();
    for _ in 0..connections {
        let (addr, token, body) = (emulator.addr(), Arc::clone(&token), Arc::clone(&body));
        calls.spawn(async move {
            let stream = TcpStream::connect(addr).await.unwrap();
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .unwrap();
            let driver = tokio::spawn(connection);
            let request = http::Request::post("/api/v1/api_keys/verify")
                .header("host", "emulator")
                .header("content-type", "application/json")
                .header("authorization", format!("Bearer {token}"))
                .body(body.to_string())
                .unwrap();
            let response = sender.send_request(request).await.unwrap();
            let status = response.status();
            response.into_body().collect().await.unwrap();
            drop(sender);
            driver.await.unwrap().unwrap();
            status
        });
    }
    let expected = connections as u64;
    emulator.wait_for_calls(Endpoint::Verify, expected).await;
    assert_eq!(emulator.calls().verify.in_flight, expected);
    emulator.clear_faults();
    while let Some(status) = calls.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    let verify = emulator.calls().verify;
    assert_eq!(
        (verify.ok, verify.in_flight, verify.max_in_flight),
        (expected, 0, expected)
    );
}
