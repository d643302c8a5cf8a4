//! Requests and responses pass unchanged.

use axum::Router;
use axum::body::Body;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::routing::{any, get as route, post};
use futures_util::stream;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tower_orgkey::{ApiKeyLayer, require_org, require_scope};

use super::*;
use crate::support::wire::{get, raw_request, serve};

#[tokio::test]
async fn fault_54_request_body_is_streamed() {
    let (seen, mut arrived) = mpsc::unbounded_channel();
    let issuer = issuer();
    let handler = move |body: Body| {
        let seen = seen.clone();
        async move {
            let mut body = body;
            let mut length = 0;
            while let Some(frame) = body.frame().await {
                let chunk = frame.unwrap().into_data().unwrap();
                length += chunk.len();
                seen.send(chunk).unwrap();
            }
            length.to_string()
        }
    };
    let app = Router::new()
        .route(
            "/orgs/{org}",
            post(handler)
                .route_layer(require_scope("read:reports"))
                .route_layer(require_org("org")),
        )
        .route_layer(ApiKeyLayer::new(issuer.clone()));
    let address = serve(app).await;
    // A miss, then a hit.
    for _ in 0..2 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /orgs/org_one HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\
             authorization: Bearer {ONE}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        for chunk in ["one", "three"] {
            let framed = format!("{:x}\r\n{chunk}\r\n", chunk.len());
            stream.write_all(framed.as_bytes()).await.unwrap();
            // The handler has it before the rest is sent.
            assert_eq!(arrived.recv().await.unwrap(), chunk);
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n8"),
            "{answer}"
        );
    }
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test]
async fn fault_54_response_body_is_streamed() {
    let (send, receive) = mpsc::unbounded_channel::<&'static str>();
    let receive = std::sync::Arc::new(tokio::sync::Mutex::new(receive));
    let handler = move || async move {
        let chunks = stream::unfold(receive, |receive| async {
            let chunk = receive.lock().await.recv().await?;
            Some((Ok::<_, std::io::Error>(chunk), receive))
        });
        Body::from_stream(chunks)
    };
    let app = Router::new()
        .route(
            "/",
            route(handler).route_layer(require_scope("read:reports")),
        )
        .route_layer(ApiKeyLayer::new(issuer()));
    let address = serve(app).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(&get(address, "/").key(ONE).bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    for chunk in ["first", "second"] {
        send.send(chunk).unwrap();
        while !answer.contains(chunk) {
            let mut buffer = [0; 1_024];
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "{answer}");
            answer.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
    }
}

#[tokio::test]
async fn fault_54_upgrade_needs_a_valid_key() {
    let handler = async |org: OrgContext, upgrade: WebSocketUpgrade| {
        let org = org.org_code().to_string();
        upgrade.on_upgrade(async move |mut socket| {
            let _ = socket.send(Message::text(org)).await;
        })
    };
    let app = Router::new()
        .route("/", any(handler))
        .route_layer(ApiKeyLayer::new(issuer()));
    let address = serve(app).await;
    for (key, status) in [(ONE, "101"), (ONE, "101"), (BAD, "401"), (NOBODY, "403")] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nauthorization: Bearer {key}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let is_whole = |answer: &[u8]| match status {
            "101" => answer.windows(7).any(|window| window == b"org_one"),
            _ => answer.ends_with(b"}"),
        };
        while !is_whole(&answer) {
            let mut buffer = [0; 1_024];
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&buffer[..read]);
        }
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn fault_54_handler_responses_are_unchanged() {
    let app = Router::new()
        .route(
            "/",
            route(async || ([("x-own", "1"), ("cache-control", "public")], "body")),
        )
        .route(
            "/fails",
            route(async || (http::StatusCode::UNAUTHORIZED, "the handler's own")),
        );
    let bare = serve(app.clone()).await;
    let layered = serve(app.route_layer(ApiKeyLayer::new(issuer()))).await;
    for (method, path) in [
        ("GET", "/"),
        ("HEAD", "/"),
        ("GET", "/fails"),
        ("HEAD", "/fails"),
    ] {
        for _ in 0..2 {
            let expected = raw_request(bare, method, path).key(ONE).send().await;
            let found = raw_request(layered, method, path).key(ONE).send().await;
            assert_eq!(found, expected, "{method} {path}");
        }
    }
}
