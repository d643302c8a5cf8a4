//! The example, called by the Python SDK, and by raw HTTP for what no SDK sends.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

#[path = "../../../tests/support/nested.rs"]
mod nested;
#[path = "../../../tests/support/python.rs"]
mod python;

use std::sync::mpsc::Sender;

use axum::Router;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_orgkey::{ApiKeyLayer, KeyId, OrgCode, Scopes, Verification, verifier_fn};
use tower_orgkey_audit::{
    AuditEvent, AuditEventKind, AuditLayer, AuditSink, AuditTrail, SinkError,
};
use tower_orgkey_usage::UsageLayer;

/// A sink that passes on the route of each request.
struct Routes(Sender<String>);

impl AuditSink for Routes {
    fn write(&mut self, events: &[AuditEvent]) -> Result<(), SinkError> {
        for event in events {
            if let AuditEventKind::Request(request) = event.kind() {
                let route = request.route().unwrap_or_default().to_owned();
                self.0.send(route).map_err(SinkError::permanent)?;
            }
        }
        Ok(())
    }
}

const READER: &str = "k_test_reader";
const WRITER: &str = "k_test_writer";

fn auth() -> ApiKeyLayer {
    ApiKeyLayer::new(verifier_fn(|key| async move {
        let (org, scopes) = match key.expose_secret() {
            READER => ("org_reader", &["read:invoices"][..]),
            WRITER => ("org_writer", &["read:invoices", "write:payments"][..]),
            _ => return Ok(Verification::invalid()),
        };
        Ok(Verification::of_organization(OrgCode::from_static(org))
            .with_key_id(KeyId::new(format!("id_of_{org}")).unwrap())
            .with_scopes(Scopes::from_names(scopes.iter().copied())))
    }))
}

async fn start() -> String {
    serve(example_mcp::app(auth()).unwrap()).await
}

async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, app).await });
    url
}

fn http() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

fn post(url: &str, key: &str, body: &Value) -> RequestBuilder {
    http()
        .post(url)
        .bearer_auth(key)
        .header("accept", "application/json, text/event-stream")
        .json(body)
}

/// Begins a session of the revision 2025-11-25 and returns its id.
async fn session(url: &str, key: &str) -> String {
    let initialize = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    });
    let response = post(url, key, &initialize).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let id = response.headers()["mcp-session-id"]
        .to_str()
        .unwrap()
        .to_owned();
    response.text().await.unwrap();
    let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    let response = post(url, key, &initialized).header("mcp-session-id", &id);
    assert_eq!(response.send().await.unwrap().status(), 202);
    id
}

fn call(tool: &str) -> Value {
    let arguments = json!({"invoice": 7});
    json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
}

async fn code(response: Response) -> (StatusCode, String) {
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    (status, body["code"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn organizations_see_their_tools_and_data() {
    let url = start().await;
    let seen = python::script("client.py", &[&url, READER]).await;
    assert_eq!(seen["tools"], json!(["list_invoices"]));
    assert_eq!(seen["list_invoices"], "invoices of org_reader: 1, 2");
    assert!(
        seen["refund"].as_str().unwrap().starts_with("error"),
        "{seen}"
    );
    let seen = python::script("client.py", &[&url, WRITER]).await;
    assert_eq!(seen["tools"], json!(["list_invoices", "refund"]));
    assert_eq!(seen["list_invoices"], "invoices of org_writer: 1, 2");
    assert_eq!(seen["refund"], "refunded invoice 7 of org_writer");
}

#[tokio::test]
async fn fault_117_sessions_belong_to_their_key() {
    let url = start().await;
    let id = session(&url, READER).await;
    let list = json!({"jsonrpc": "2.0", "id": 3, "method": "tools/list"});
    let requests = |key: &'static str, id: &str| {
        [
            post(&url, key, &list).header("mcp-session-id", id),
            http()
                .get(&url)
                .bearer_auth(key)
                .header("accept", "text/event-stream")
                .header("mcp-session-id", id),
            http()
                .delete(&url)
                .bearer_auth(key)
                .header("mcp-session-id", id),
        ]
    };
    for request in requests(WRITER, &id) {
        assert_eq!(code(request.send().await.unwrap()).await.0, 404);
    }
    for request in requests(READER, "unknown") {
        assert_eq!(
            code(request.send().await.unwrap()).await,
            (StatusCode::NOT_FOUND, "not-found".to_owned())
        );
    }
    // The session lives on for its key, until it ends it.
    let [list, events, delete] = requests(READER, &id);
    let text = list.send().await.unwrap().text().await.unwrap();
    assert!(text.contains("list_invoices"), "{text}");
    assert_eq!(events.send().await.unwrap().status(), 200);
    assert!(delete.send().await.unwrap().status().is_success());
    let [list, ..] = requests(READER, &id);
    assert_eq!(list.send().await.unwrap().status(), 404);
    // A repeated header names no session.
    let id = session(&url, READER).await;
    let [list, ..] = requests(READER, &id);
    let twice = list.header("mcp-session-id", &id).send().await.unwrap();
    assert_eq!(twice.status(), 404);
}

#[tokio::test]
async fn calls_need_all_scopes_of_their_tool() {
    let url = start().await;
    let id = session(&url, READER).await;
    let response = post(&url, READER, &call("refund"))
        .header("mcp-session-id", &id)
        .send()
        .await
        .unwrap();
    let challenge = response.headers()["www-authenticate"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(
        challenge.ends_with(r#"error="insufficient_scope", scope="read:invoices write:payments""#),
        "{challenge}"
    );
    assert_eq!(
        code(response).await,
        (StatusCode::FORBIDDEN, "insufficient-scope".to_owned())
    );
    // Without a session, and for a tool without an entry.
    for tool in ["refund", "unknown", "Refund"] {
        let response = post(&url, READER, &call(tool)).send().await.unwrap();
        assert_eq!(response.status(), 403, "{tool}");
    }
    let response = post(&url, "k_test_invalid", &call("refund"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 401);
}

#[tokio::test]
async fn requests_without_sessions_are_served() {
    let url = start().await;
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let mut call = call("list_invoices");
    call["params"]["_meta"] = meta;
    let response = post(&url, READER, &call)
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "tools/call")
        .header("mcp-name", "list_invoices");
    let text = response.send().await.unwrap().text().await.unwrap();
    assert!(text.contains("invoices of org_reader"), "{text}");
}

#[tokio::test]
async fn fault_118_headers_do_not_decide() {
    let url = start().await;
    for (method, name) in [
        ("tools/list", "refund"),
        ("tools/call", "list_invoices"),
        ("Tools/Call", "refund"),
    ] {
        let response = post(&url, READER, &call("refund"))
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", method)
            .header("mcp-name", name);
        let response = response.send().await.unwrap();
        assert_eq!(
            code(response).await,
            (StatusCode::BAD_REQUEST, "mcp-header-mismatch".to_owned())
        );
    }
    let twice = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call","params":{"name":"refund"}}"#;
    let request = http()
        .post(&url)
        .bearer_auth(READER)
        .header("content-type", "application/json");
    let response = request.body(twice).send().await.unwrap();
    assert_eq!(
        code(response).await,
        (StatusCode::BAD_REQUEST, "mcp-message-malformed".to_owned())
    );
    let request = http()
        .post(&url)
        .bearer_auth(READER)
        .header("content-type", "application/json");
    let response = request
        .body(" ".repeat(1024 * 1024 + 1))
        .send()
        .await
        .unwrap();
    assert_eq!(
        code(response).await,
        (
            StatusCode::PAYLOAD_TOO_LARGE,
            "mcp-message-too-large".to_owned()
        )
    );
}

#[tokio::test]
async fn fault_210_nested_documents_do_not_end_the_server() {
    let url = start().await;
    let nested = nested::nested_documents(64 * 1024);
    let ping = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"x/y","params":{{"a":{nested}}}}}"#);
    let call = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"list_invoices","arguments":{{"a":{nested}}}}}}}"#
    );
    for body in [&call, &ping, &format!("[{ping}]"), &nested] {
        let request = http()
            .post(&url)
            .bearer_auth(READER)
            .header("accept", "application/json, text/event-stream")
            .header("content-type", "application/json");
        let response = request.body(body.clone()).send().await.unwrap();
        assert_eq!(
            code(response).await,
            (StatusCode::BAD_REQUEST, "mcp-message-malformed".to_owned())
        );
    }
    session(&url, READER).await;
}

#[tokio::test]
async fn audit_and_usage_see_the_tool() {
    let (sink, events) = std::sync::mpsc::channel();
    let trail = AuditTrail::start(Routes(sink)).unwrap();
    let usage = UsageLayer::new();
    let app = example_mcp::app(auth())
        .unwrap()
        .route_layer(AuditLayer::new(&trail))
        .route_layer(usage.clone());
    let url = serve(app).await;
    for tool in ["list_invoices", "refund", "of-the-client"] {
        post(&url, READER, &call(tool))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
    }
    trail
        .flush(std::time::Duration::from_secs(60))
        .await
        .unwrap();
    let routes: Vec<String> = events.try_iter().collect();
    let expected = [
        "mcp:tools/call:list_invoices",
        "mcp:tools/call:refund",
        "mcp:tools/call",
    ];
    assert_eq!(routes, expected);
    for route in expected {
        assert_eq!(
            usage.handle().snapshot().of_route(route).requests(),
            1,
            "{route}"
        );
    }
}

#[tokio::test]
async fn metadata_is_404() {
    let url = start().await;
    let url = url.replace("/mcp", "/.well-known/oauth-protected-resource");
    assert_eq!(http().get(url).send().await.unwrap().status(), 404);
}
