//! The stubs of WorkOS and Unkey, and what is sent to them, against what these vendors publish.

use serde_json::{Value, json};
use tower_orgkey::{ApiKey, Verifier};
use tower_orgkey_issuers::unkey::UnkeyVerifier;
use tower_orgkey_issuers::workos::WorkOsVerifier;

use crate::python;
use crate::server::node;
use crate::stub::{Answer, Endpoint as At, Stub};
use crate::{unkey, workos};

/// Returns the request of a verifier whose endpoint has this URL in production.
async fn request<V: Verifier>(url: &str, path: &str, verifier: fn(String) -> V) -> Value {
    let stub = Stub::start().await;
    stub.always(At::Elsewhere, Answer::status(500));
    let verifier = verifier(format!("{}{path}", stub.url()));
    let key = ApiKey::parse("sk_0123456789").unwrap();
    verifier.verify(&key).await.unwrap_err();
    let request = &stub.requests(At::Elsewhere)[0];
    json!({
        "url": url, "method": request.method, "target": request.target,
        "authorization": request.headers["authorization"],
        "body": serde_json::from_str::<Value>(&request.body).unwrap(),
    })
}

/// Returns which messages differ from what the vendors publish, and how.
async fn differences(messages: &Value) -> Vec<(String, String)> {
    let mut command = node("descriptions.js");
    command.arg(messages.to_string());
    let output = python::output(command).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{errors}; `./test` installs what it needs"
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn vendors_describe_the_same_messages() {
    let workos_sent = request(WorkOsVerifier::URL, workos::PATH, workos::verifier).await;
    let unkey_sent = request(UnkeyVerifier::URL, unkey::PATH, unkey::verifier).await;
    let mut messages = json!({
        "workos": { "request": workos_sent, "replies": workos::replies() },
        "unkey": { "request": unkey_sent, "replies": unkey::replies() },
    });
    assert_eq!(differences(&messages).await, []);

    // The comparison finds what differs.
    messages["workos"]["request"]["body"] = json!({ "key": "sk_0123456789" });
    messages["workos"]["replies"][0][1]["api_key"]["owner"]["type"] = json!("team");
    messages["workos"]["replies"][2][1] = json!({});
    messages["unkey"]["replies"][0][1]["data"]["keyID"] = json!("key_1");
    messages["unkey"]["replies"][2][1]["data"]["code"] = json!("UNKNOWN");
    messages["unkey"]["request"]["target"] = json!("/v1/keys.verifyKey");
    let found = differences(&messages).await;
    let found: Vec<&str> = found.iter().map(|(what, _)| &**what).collect();
    let expected = [
        "WorkOS, request",
        "WorkOS, 200",
        "WorkOS, 200",
        "Unkey, 200",
        "Unkey, 200",
        "Unkey, request",
    ];
    assert_eq!(found, expected);
}
