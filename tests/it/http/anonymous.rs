//! Requests without a key, where they are allowed.

use axum::routing::get as route;
use tower_orgkey::ApiKeyLayer;

use super::*;
use crate::support::wire::{get, serve};

#[tokio::test]
async fn only_requests_without_a_key_are_anonymous() {
    let issuer = issuer();
    let layer = ApiKeyLayer::builder(issuer.clone())
        .allow_anonymous()
        .build()
        .unwrap();
    let optional = async |org: Option<OrgContext>| match org {
        Some(org) => org.org_code().to_string(),
        None => "nobody".into(),
    };
    let app = guarded()
        .route("/open", route(open))
        .route("/optional", route(optional))
        .route_layer(layer);
    let address = serve(app).await;
    let strict = start(&issuer).await;
    let missing = get(strict, "/whoami").send().await;
    assert_eq!(missing.status, 401);

    let basic = "Basic YWxhZGRpbjpvcGVuc2VzYW1l";
    let asked = [
        "/whoami",
        "/read",
        "/guarded",
        "/typed",
        "/orgs/org_one",
        "/misnamed/x",
    ];
    for credential in [
        None,
        Some(basic),
        Some("Basic  YWxhZGRpbjpvcGVu"),
        Some("Negotiate"),
    ] {
        let request = |path: &str| match credential {
            Some(value) => get(address, path).header("authorization", value),
            None => get(address, path),
        };
        assert_eq!(request("/open").send().await.body, "open", "{credential:?}");
        assert_eq!(
            request("/optional").send().await.body,
            "nobody",
            "{credential:?}"
        );
        for path in asked {
            // The same bytes as without `allow_anonymous`.
            assert_eq!(request(path).send().await, missing, "{path} {credential:?}");
        }
    }
    assert_eq!(issuer.calls(), 0);

    let refused = [
        (format!("Bearer {BAD}"), 401, "invalid-token"),
        (format!("Bearer {NOBODY}"), 403, "organization-required"),
        (format!("Bearer {USER}"), 403, "organization-required"),
        ("Bearer short".into(), 400, "credential-malformed"),
        ("Bearer".into(), 400, "credential-malformed"),
        (String::new(), 400, "credential-malformed"),
        (
            format!("Bearer {ONE}, {basic}"),
            400,
            "credential-malformed",
        ),
        (format!("Bearer {STRANGE}"), 503, "verifier-misconfigured"),
        // The last one, because its failures open the breaker.
        (format!("Bearer {DOUBTFUL}"), 503, "verifier-unavailable"),
    ];
    assert_eq!(
        get(address, "/whoami").key(ONE).send().await.body,
        "org_one"
    );
    for (value, status, code) in &refused {
        for path in ["/open", "/optional"].iter().chain(&asked) {
            for _ in 0..2 {
                let answer = get(address, path)
                    .header("authorization", value)
                    .send()
                    .await;
                assert_eq!(
                    (answer.status, answer.code().as_str()),
                    (*status, *code),
                    "{path}"
                );
            }
        }
    }
    assert_eq!(get(address, "/open").key(ONE).send().await.body, "open");
    assert_eq!(
        get(address, "/optional").key(ONE).send().await.body,
        "org_one"
    );
    assert_eq!(
        get(address, "/whoami").key(ONE).send().await.body,
        "org_one"
    );
    assert_eq!(get(address, "/guarded").key(ONE).send().await.status, 403);
}
