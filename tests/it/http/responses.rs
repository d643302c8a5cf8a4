//! The responses of the layer and its guards, byte for byte.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tower_orgkey::ApiKeyLayer;

use super::*;
use crate::support::wire::{RawRequest, RawResponse, get, raw_request, serve, until_logged};
use crate::support::{Answer, Issuer, org};

/// Asserts the status, every header, and the whole body.
#[track_caller]
fn assert_is(answer: &RawResponse, status: u16, extra: &[(&str, &str)], body: &Value) {
    assert_eq!(answer.status, status, "{answer:?}");
    let length = answer.body.len().to_string();
    let expected: BTreeSet<(&str, &str)> = extra
        .iter()
        .copied()
        .chain([
            ("content-type", "application/problem+json"),
            ("cache-control", "no-store"),
            ("content-length", &length),
        ])
        .collect();
    let found: BTreeSet<(&str, &str)> = answer
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(found.len(), answer.headers.len(), "a header stands twice");
    assert_eq!(&answer.json(), body);
}

fn problem(code: &str, status: u16, title: &str, detail: &str) -> Value {
    let kind =
        format!("https://docs.rs/tower-orgkey/latest/tower_orgkey/rejection/index.html#{code}");
    json!({"type": kind, "title": title, "status": status, "detail": detail, "code": code})
}

fn missing() -> Value {
    problem(
        "credential-missing",
        401,
        "An API key is required",
        "Send an API key of an organization with the request.",
    )
}

fn internal() -> Value {
    problem(
        "internal",
        500,
        "Internal server error",
        "The operator of this service has to fix it.",
    )
}

fn invalid_token() -> Value {
    problem(
        "invalid-token",
        401,
        "The API key is not valid",
        "The key is unknown, revoked, rotated, expired or inactive. Use another one.",
    )
}

fn unavailable() -> Value {
    problem(
        "verifier-unavailable",
        503,
        "The API key cannot be verified at the moment",
        "This says nothing about the key. Try again later.",
    )
}

const PLAIN: (&str, &str) = ("www-authenticate", r#"Bearer realm="api""#);

#[tokio::test]
async fn fault_44_missing_credential_is_401_without_code() {
    let issuer = issuer();
    let address = start(&issuer).await;
    let nothing = get(address, "/whoami").send().await;
    assert_is(&nothing, 401, &[PLAIN], &missing());
    for other in [
        "Basic YWxhZGRpbjpvcGVuc2VzYW1l",
        "Basic  YWxhZGRpbjpvcGVuc2VzYW1l",
        "DPoP a b",
        "Negotiate",
        "Bearerx k_test_one_0123456789",
    ] {
        let answer = get(address, "/whoami")
            .header("authorization", other)
            .send()
            .await;
        assert_eq!(answer, nothing, "{other}");
    }
    assert_eq!(issuer.calls(), 0);
}

#[tokio::test]
async fn fault_44_empty_credential_is_400_without_a_call() {
    let issuer = issuer();
    let address = start(&issuer).await;
    for value in ["", "Bearer", "Bearer ", "bearer    "] {
        let answer = get(address, "/whoami")
            .header("authorization", value)
            .send()
            .await;
        assert_is(
            &answer,
            400,
            &[(
                "www-authenticate",
                r#"Bearer realm="api", error="invalid_request""#,
            )],
            &problem(
                "credential-malformed",
                400,
                "The credential is malformed",
                "Send exactly one API key: letters, digits and -._~+/, followed by = signs if any, of the length that this API accepts.",
            ),
        );
    }
    assert_eq!(issuer.calls(), 0);
}

#[tokio::test]
async fn invalid_key_is_401() {
    let issuer = issuer();
    let address = start(&issuer).await;
    let answer = get(address, "/whoami").key(BAD).send().await;
    let challenge = (
        "www-authenticate",
        r#"Bearer realm="api", error="invalid_token""#,
    );
    assert_is(&answer, 401, &[challenge], &invalid_token());
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test]
async fn fault_31_all_invalid_keys_get_the_same_bytes() {
    let issuer = issuer();
    let near = &ONE[..ONE.len() - 1];
    let unconfirmed = format!("{near}u");
    issuer.set(&unconfirmed, Answer::Unconfirmed);
    let expired = format!("{near}e");
    issuer.set(
        &expired,
        crate::support::issuer::expiring("org_one", std::time::SystemTime::UNIX_EPOCH),
    );
    let address = start(&issuer).await;
    // The valid key is cached, and differs only in the last byte from the invalid ones.
    assert_eq!(get(address, "/read").key(ONE).send().await.status, 200);
    let first = get(address, "/read").key(BAD).send().await;
    assert_eq!(first.status, 401);
    assert_eq!(first.code(), "invalid-token");
    for key in [
        BAD,
        &unconfirmed,
        &unconfirmed,
        &expired,
        &expired,
        near,
        &format!("{near}x"),
        &format!("{near}y"),
        &format!("{ONE}9"),
        &ONE.to_uppercase(),
    ] {
        for path in [
            "/read",
            "/guarded",
            "/typed",
            "/orgs/org_one",
            "/misnamed/x",
        ] {
            assert_eq!(get(address, path).key(key).send().await, first, "{key}");
        }
    }
    assert_eq!(get(address, "/read").key(ONE).send().await.status, 200);
}

#[tokio::test]
async fn fault_24_key_without_organization_is_403() {
    let issuer = issuer();
    let address = start(&issuer).await;
    let expected = problem(
        "organization-required",
        403,
        "The API key belongs to no organization",
        "The key is valid but belongs to a user or an environment. Use a key of an organization.",
    );
    for key in [NOBODY, USER] {
        // A miss, then a hit.
        for path in ["/whoami", "/read", "/orgs/org_one", "/orgs/"] {
            let answer = get(address, path).key(key).send().await;
            if path == "/orgs/" {
                assert_eq!(answer.status, 404);
            } else {
                assert_is(&answer, 403, &[], &expected);
            }
        }
        assert_eq!(issuer.calls_for(key), 1);
    }
}

#[tokio::test]
async fn user_keys_pass_if_allowed() {
    let issuer = issuer();
    let layer = ApiKeyLayer::builder(issuer.clone())
        .allow_user_keys()
        .build()
        .unwrap();
    let app = Router::new()
        .route(
            "/",
            axum::routing::get(async |org: OrgContext| format!("{:?}", org.user_id())),
        )
        .route_layer(layer);
    let address = serve(app).await;
    for _ in 0..2 {
        assert_eq!(
            get(address, "/").key(USER).send().await.body,
            r#"Some("kp_7")"#
        );
        assert_eq!(get(address, "/").key(ONE).send().await.body, "None");
        assert_eq!(get(address, "/").key(NOBODY).send().await.status, 403);
    }
}

fn insufficient(scope: &str) -> Value {
    let mut body = problem(
        "insufficient-scope",
        403,
        "The API key lacks a scope",
        "The key lacks scopes that this operation requires. Use a key that has them.",
    );
    body["scope"] = scope.into();
    body
}

#[tokio::test]
async fn fault_47_guard_and_type_reject_alike() {
    let issuer = issuer();
    let address = start(&issuer).await;
    let challenge = (
        "www-authenticate",
        r#"Bearer realm="api", error="insufficient_scope", scope="read:reports write:reports""#,
    );
    for _ in 0..2 {
        let guard = get(address, "/guarded").key(ONE).send().await;
        let typed = get(address, "/typed").key(ONE).send().await;
        assert_is(
            &guard,
            403,
            &[challenge],
            &insufficient("read:reports write:reports"),
        );
        assert_eq!(guard, typed);
        assert_eq!(get(address, "/guarded").key(TWO).send().await.status, 200);
        assert_eq!(get(address, "/typed").key(TWO).send().await.status, 200);
    }
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test]
async fn fault_47_scopes_are_compared_as_a_whole() {
    for held in [
        "read",
        "read:",
        "read:report",
        "read:reports:all",
        "Read:reports",
        "READ:REPORTS",
        "*",
        "read:*",
        "read:reports write:reports",
        " read:reports",
        "read:reports\n",
        "read:reports\"",
    ] {
        let issuer = Issuer::knowing([(ONE, org("org_one", &[held]))]);
        let address = start(&issuer).await;
        for _ in 0..2 {
            let answer = get(address, "/read").key(ONE).send().await;
            assert_eq!(answer.status, 403, "{held}");
            assert_eq!(answer.json()["scope"], "read:reports");
        }
    }
}

#[tokio::test]
async fn fault_25_hostile_scopes_are_not_in_responses() {
    let hostile: Vec<String> = (0..1_000)
        .map(|n| format!("quo\"te{n}\\"))
        .chain(["new\r\nset-cookie: a=b".into(), "\u{0}".into(), "é".into()])
        .collect();
    let hostile: Vec<&str> = hostile.iter().map(String::as_str).collect();
    let clean = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let issuer = Issuer::knowing([(ONE, org("org_one", &hostile))]);
    let expected = start(&clean).await;
    let address = start(&issuer).await;
    for path in ["/read", "/guarded", "/typed", "/orgs/other"] {
        let answer = get(address, path).key(ONE).send().await;
        assert_eq!(answer.status, 403);
        assert_eq!(answer, get(expected, path).key(ONE).send().await);
    }
    assert_eq!((issuer.calls(), clean.calls()), (1, 1));
}

#[tokio::test]
async fn fault_49_other_organization_is_403_without_lookup() {
    let issuer = issuer();
    let address = start(&issuer).await;
    let expected = problem(
        "organization-mismatch",
        403,
        "The API key belongs to another organization",
        "The URL names another organization than the one that the key belongs to.",
    );
    for path in ["/orgs/org_two", "/orgs/unknown", "/orgs/%FF"] {
        let answer = get(address, path).key(ONE).send().await;
        assert_is(&answer, 403, &[], &expected);
    }
    assert_eq!(
        get(address, "/orgs/org_one").key(ONE).send().await.status,
        200
    );
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test]
async fn fault_49_other_organization_is_404_on_request() {
    let issuer = issuer();
    let address = start(&issuer).await;
    let expected = problem(
        "not-found",
        404,
        "Not found",
        "There is no resource at this URL.",
    );
    for path in ["/hidden/org_two", "/hidden/%FF"] {
        let answer = get(address, path).key(ONE).send().await;
        assert_is(&answer, 404, &[], &expected);
    }
    assert_eq!(
        get(address, "/hidden/org_one").key(ONE).send().await.status,
        200
    );
}

#[tokio::test]
async fn failed_verification_is_503_without_challenge() {
    let issuer = issuer();
    let address = start(&issuer).await;
    let answer = get(address, "/whoami").key(DOUBTFUL).send().await;
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait));
    let retry = ("retry-after", answer.header("retry-after").unwrap());
    assert_is(&answer, 503, &[retry], &unavailable());
    let answer = get(address, "/whoami").key(STRANGE).send().await;
    let retry = ("retry-after", answer.header("retry-after").unwrap());
    assert_is(
        &answer,
        503,
        &[retry],
        &problem(
            "verifier-misconfigured",
            503,
            "The API key cannot be verified at the moment",
            "This says nothing about the key. The operator of this service has to fix it.",
        ),
    );
    // Neither is cached as invalid.
    issuer.set(DOUBTFUL, org("org_one", &[]));
    assert_eq!(
        get(address, "/whoami").key(DOUBTFUL).send().await.status,
        200
    );
}

#[tokio::test]
async fn any_wait_fits_into_retry_after() {
    for wait in [
        std::time::Duration::ZERO,
        std::time::Duration::from_nanos(1),
        std::time::Duration::MAX,
    ] {
        let issuer = Issuer::knowing([(ONE, Answer::Throttled(Some(wait)))]);
        let address = start(&issuer).await;
        let answer = get(address, "/whoami").key(ONE).send().await;
        assert_eq!(answer.status, 503);
        let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!(wait >= 1);
        assert_eq!(answer.json(), unavailable());
    }
}

#[tokio::test]
async fn missing_parameter_is_500_and_logged() {
    let (log, _guard) = crate::support::log::Log::capture();
    let issuer = issuer();
    let address = start(&issuer).await;
    let request = get(address, "/misnamed/org_one").key(ONE);
    assert_is(&request.send().await, 500, &[], &internal());
    let expected = [
        "`require_org` names a path parameter",
        r#"parameter="org_code""#,
    ];
    let (answer, _) = until_logged(&log, "ERROR", &expected, &request).await;
    assert_is(&answer, 500, &[], &internal());
}

#[tokio::test]
async fn missing_layer_is_500_and_logged() {
    let (log, _guard) = crate::support::log::Log::capture();
    let app = guarded().route(
        "/optional",
        axum::routing::get(async |org: Option<OrgContext>| format!("{org:?}")),
    );
    let address = serve(app).await;
    for (path, who, has_body) in [
        ("/whoami", "the extractor `OrgContext`", true),
        ("/optional", "the extractor `Option<OrgContext>`", true),
        ("/typed", "the extractor `Scoped`", true),
        ("/read", "a scope guard", false),
        ("/orgs/org_one", "an organization guard", false),
    ] {
        let request = get(address, path).key(ONE);
        let expected = ["add it with `.route_layer(auth)`", who];
        let (answer, _) = until_logged(&log, "ERROR", &expected, &request).await;
        if has_body {
            assert_is(&answer, 500, &[], &internal());
        } else {
            assert_eq!((answer.status, answer.body.as_str()), (500, ""));
        }
    }
}

#[tokio::test]
async fn empty_policy_names_no_scope() {
    let issuer = issuer();
    let none: [&str; 0] = [];
    let app = Router::new()
        .route(
            "/",
            axum::routing::get(open).route_layer(tower_orgkey::require_any_scope(none)),
        )
        .route_layer(ApiKeyLayer::new(issuer.clone()));
    let address = serve(app).await;
    let answer = get(address, "/").key(ONE).send().await;
    let mut body = insufficient("");
    body.as_object_mut().unwrap().remove("scope");
    // RFC 6750 §3 has no empty `scope`.
    let challenge = (
        "www-authenticate",
        r#"Bearer realm="api", error="insufficient_scope""#,
    );
    assert_is(&answer, 403, &[challenge], &body);
}

#[tokio::test]
async fn fault_54_rejected_head_has_the_headers_of_get() {
    let issuer = issuer();
    let address = start(&issuer).await;
    for (path, key) in [("/whoami", BAD), ("/guarded", ONE), ("/orgs/other", ONE)] {
        let get = get(address, path).key(key).send().await;
        let head = raw_request(address, "HEAD", path).key(key).send().await;
        assert_eq!(head.body, "");
        assert_eq!((head.status, head.headers), (get.status, get.headers));
    }
}

#[tokio::test]
async fn fault_54_no_method_is_exempt() {
    let issuer = issuer();
    let address = start(&issuer).await;
    for method in [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW",
    ] {
        let answer = raw_request(address, method, "/whoami").send().await;
        assert_eq!(answer.status, 401, "{method}");
        assert_eq!(answer.header(PLAIN.0), Some(PLAIN.1), "{method}");
    }
    assert_eq!(
        raw_request(address, "GET", "/whoami")
            .key(ONE)
            .send()
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn realm_is_configurable() {
    let layer = ApiKeyLayer::builder(issuer())
        .realm("acme api")
        .build()
        .unwrap();
    let address = serve(guarded().route_layer(layer)).await;
    let challenge = async |request: RawRequest| {
        let answer = request.send().await;
        answer.header("www-authenticate").map(str::to_owned)
    };
    let is = |text: &str| Some(format!(r#"Bearer realm="acme api"{text}"#));
    assert_eq!(challenge(get(address, "/read")).await, is(""));
    assert_eq!(
        challenge(get(address, "/read").header("authorization", "")).await,
        is(r#", error="invalid_request""#)
    );
    assert_eq!(
        challenge(get(address, "/read").key(BAD)).await,
        is(r#", error="invalid_token""#)
    );
    assert_eq!(
        challenge(get(address, "/guarded").key(ONE)).await,
        is(r#", error="insufficient_scope", scope="read:reports write:reports""#)
    );
    assert_eq!(challenge(get(address, "/orgs/other").key(ONE)).await, None);
    assert_eq!(challenge(get(address, "/read").key(DOUBTFUL)).await, None);
}

#[tokio::test]
async fn responses_do_not_echo_requests() {
    let issuer = issuer();
    let address = start(&issuer).await;
    let mark = "zzmarkzz";
    let hostile = [
        format!("Bearer {mark}"),
        format!("Bearer {mark}\"><script>{mark}"),
        format!("{mark} {mark}"),
        format!("Bearer {mark}, error=\"{mark}\""),
    ];
    for value in hostile {
        for path in ["/read", "/orgs/zzmarkzz", "/misnamed/zzmarkzz?zzmarkzz"] {
            let answer = get(address, path)
                .header("authorization", &value)
                .header("x-org-id", mark)
                .header("user-agent", mark)
                .send()
                .await;
            assert!(matches!(answer.status, 400 | 401), "{answer:?}");
            assert!(!format!("{answer:?}").contains(mark), "{answer:?}");
        }
    }
    for path in ["/orgs/zzmarkzz", "/hidden/zzmarkzz", "/misnamed/zzmarkzz"] {
        let answer = get(address, path)
            .key(ONE)
            .header("x-org-id", mark)
            .send()
            .await;
        assert!(matches!(answer.status, 403 | 404 | 500), "{answer:?}");
        assert!(!format!("{answer:?}").contains(mark), "{answer:?}");
    }
}

#[tokio::test]
async fn outer_layers_find_the_rejection() {
    use axum::middleware::map_response;
    use axum::response::Response;
    use tower_orgkey::Rejection;

    async fn tell(mut response: Response) -> Response {
        let told = match response.extensions().get::<Rejection>() {
            Some(rejection) => format!(
                "{} {:?} {:?}",
                rejection.code(),
                rejection.required_scope(),
                rejection.retry_after().is_some()
            ),
            None => "passed".into(),
        };
        response
            .headers_mut()
            .insert("x-told", told.parse().unwrap());
        response
    }

    let app = guarded()
        .route(
            "/two-guards",
            axum::routing::get(open)
                .route_layer(require_scope("admin"))
                .route_layer(require_scope("read:reports")),
        )
        .route_layer(ApiKeyLayer::new(issuer()))
        .layer(map_response(tell));
    let address = serve(app).await;
    let told = async |path: &str, key: &str| {
        let answer = get(address, path).key(key).send().await;
        answer.header("x-told").unwrap().to_owned()
    };
    assert_eq!(told("/whoami", ONE).await, "passed");
    assert_eq!(
        told("/whoami", "short").await,
        "credential-malformed None false"
    );
    assert_eq!(told("/whoami", BAD).await, "invalid-token None false");
    assert_eq!(
        told("/whoami", NOBODY).await,
        "organization-required None false"
    );
    let scope = r#"insufficient-scope Some("read:reports write:reports") false"#;
    assert_eq!(told("/guarded", ONE).await, scope);
    assert_eq!(told("/typed", ONE).await, scope);
    assert_eq!(
        told("/two-guards", ONE).await,
        r#"insufficient-scope Some("admin") false"#
    );
    assert_eq!(
        told("/orgs/other", ONE).await,
        "organization-mismatch None false"
    );
    assert_eq!(told("/hidden/other", ONE).await, "not-found None false");
    assert_eq!(
        told("/whoami", DOUBTFUL).await,
        "verifier-unavailable None true"
    );
    assert_eq!(
        told("/whoami", STRANGE).await,
        "verifier-misconfigured None true"
    );
}
