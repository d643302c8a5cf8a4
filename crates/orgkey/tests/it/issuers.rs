//! Issuers of several kinds behind one gateway.

use orgkey::gateway::config::Address;
use orgkey::gateway::{Config, Gateway};
use serde_json::{Value, json};

use crate::stub::{Answer, Endpoint, Request, Stub};
use crate::support::{request, send};

/// An issuer that knows one key, of `org_acme`, and answers as the endpoint of the request does.
fn answer(request: &Request) -> Answer {
    let is_valid = request.body.contains("-valid-key");
    let reply: Value = match (&*request.target, is_valid) {
        ("/introspect", true) => {
            json!({ "active": true, "token_type": "Bearer", "aud": "api", "org": "org_acme" })
        }
        ("/introspect", false) => json!({ "active": false }),
        ("/workos", true) => json!({ "api_key": {
            "id": "api_key_1", "owner": { "type": "organization", "id": "org_acme" }
        }}),
        ("/workos", false) => json!({ "api_key": null }),
        ("/unkey", true) => json!({ "data": {
            "valid": true, "code": "VALID", "identity": { "externalId": "org_acme" }
        }}),
        _ => json!({ "data": { "valid": false, "code": "NOT_FOUND" } }),
    };
    Answer::json(200, &reply.to_string())
}

#[tokio::test]
async fn issuers_of_all_kinds_have_namespaces() {
    let stub = Stub::start().await;
    stub.on(Endpoint::Elsewhere, answer);
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "s3cret\n").unwrap();
    let (url, secret) = (stub.url(), secret.display());
    let config = format!(
        "[listen]\nchecks = '127.0.0.1:0'\n\
         [[issuer]]\nname = 'idp'\nprefixes = ['idp-']\nkind = 'introspection'\nurl = '{url}/introspect'\n\
         client_id = 'gateway'\nclient_secret_file = '{secret}'\naudience = 'api'\norganization_claim = 'org'\n\
         [[issuer]]\nname = 'workos'\nprefixes = ['workos-']\nkind = 'workos'\nurl = '{url}/workos'\n\
         token_file = '{secret}'\n\
         [[issuer]]\nname = 'unkey'\nprefixes = ['unkey-']\nkind = 'unkey'\nurl = '{url}/unkey'\n\
         token_file = '{secret}'\n\
         [[route]]\nmatch = 'GET /reports'\n"
    );
    let gateway = Gateway::start(Config::parse(&config).unwrap())
        .await
        .unwrap();
    let Address::Tcp(checks) = *gateway.checks_address() else {
        panic!("the gateway listens on a socket of a file system");
    };
    tokio::spawn(gateway.run(std::future::pending()));

    for issuer in ["idp", "workos", "unkey"] {
        let ask = async |key: String| {
            let bearer = format!("Bearer {issuer}-{key}");
            let headers = [
                ("x-original-method", "GET"),
                ("x-original-uri", "/reports"),
                ("authorization", &*bearer),
            ];
            send(checks, request("GET", "/v1/nginx", &headers)).await
        };
        let reply = ask("valid-key".to_owned()).await;
        assert!(reply.status.is_success(), "{issuer}: {reply:?}");
        let org = format!("{issuer}:org_acme");
        assert_eq!(reply.header("x-org-code"), Some(org), "{issuer}");
        let reply = ask("another-key".to_owned()).await;
        assert_eq!(reply.status, 401, "{issuer}");
    }
    // As long as a JWT with many claims.
    let long = format!("Bearer idp-valid-key{}", "x".repeat(4_000));
    let headers = [
        ("x-original-method", "GET"),
        ("x-original-uri", "/reports"),
        ("authorization", &*long),
    ];
    let reply = send(checks, request("GET", "/v1/nginx", &headers)).await;
    assert!(reply.status.is_success(), "{reply:?}");
    let credentials = |target: &str| {
        let requests = stub.requests(Endpoint::Elsewhere);
        let mut to = requests
            .into_iter()
            .filter(|request| request.target == target);
        to.next().unwrap().headers["authorization"].clone()
    };
    assert_eq!(credentials("/workos"), "Bearer s3cret");
    assert_eq!(credentials("/unkey"), "Bearer s3cret");
    // The base64 of `gateway:s3cret`.
    assert_eq!(credentials("/introspect"), "Basic Z2F0ZXdheTpzM2NyZXQ=");
}
