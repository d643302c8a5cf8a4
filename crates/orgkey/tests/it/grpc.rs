//! Envoy's protocol over gRPC.

// The messages of the gateway; real Envoy checks their numbers.
#[path = "../../src/gateway/dialect/proto.rs"]
mod proto;

use std::collections::HashMap;
use std::net::SocketAddr;

use axum::body::Bytes;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use http_body_util::Full;
use kinde_emulator::{Endpoint, Fault};
use prost::Message;

use self::proto::{
    AttributeContext, AttributeRequest, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderMap,
    HeaderValue, HeaderValueOption, HttpRequest, HttpResponse, OkHttpResponse,
};
use crate::checks::ROUTES;
use crate::status::{beside, page, parsed};
use crate::support::{Headers, Reply, World, request, send, send_h2, until_line};

const AUDIT: &str = "\n[audit]\nfile = 'DIR/audit.jsonl'\n";

const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

fn question(method: &str, path: &str, headers: &[(&str, &str)]) -> HttpRequest {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    HttpRequest {
        method: method.to_owned(),
        path: path.to_owned(),
        host: "app".to_owned(),
        headers: headers.iter().map(own).collect(),
        header_map: None,
    }
}

async fn call(to: SocketAddr, body: Vec<u8>, metadata: &[(&str, &str)]) -> Reply {
    let headers = [
        &[("content-type", "application/grpc"), ("te", "trailers")],
        metadata,
    ]
    .concat();
    let target = format!("http://{to}{PATH}");
    send_h2(
        to,
        request("POST", &target, &headers).map(|_| Full::new(Bytes::from(body))),
    )
    .await
}

fn framed(http: HttpRequest) -> Vec<u8> {
    framed_with(http, &[])
}

fn framed_with(http: HttpRequest, extensions: &[(&str, &str)]) -> Vec<u8> {
    let request = AttributeRequest { http: Some(http) };
    let attributes = AttributeContext {
        request: Some(request),
        context_extensions: extensions
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    };
    let message = CheckRequest {
        attributes: Some(attributes),
    }
    .encode_to_vec();
    let len = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &len, &message].concat()
}

async fn check(to: SocketAddr, http: HttpRequest) -> CheckResponse {
    check_with(to, http, &[]).await
}

async fn check_with(
    to: SocketAddr,
    http: HttpRequest,
    extensions: &[(&str, &str)],
) -> CheckResponse {
    let framed = framed_with(http, extensions);
    let reply = call(to, framed, &[("grpc-timeout", "5S")]).await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.header("content-type").as_deref(),
        Some("application/grpc")
    );
    assert_eq!(reply.trailers.get("grpc-status").unwrap(), "0");
    let len = u32::try_from(reply.body.len() - 5).unwrap().to_be_bytes();
    assert_eq!(&reply.body[..5], [&[0][..], &len].concat());
    let response = CheckResponse::decode(&reply.body[5..]).unwrap();
    assert!(
        response.status.is_some(),
        "a response without a status allows"
    );
    response
}

fn headers(options: &[HeaderValueOption]) -> HashMap<&str, &str> {
    let pairs = options.iter().map(|option| {
        assert_eq!(option.append_action, 2);
        let header = option.header.as_ref().unwrap();
        assert!(header.raw_value.is_empty());
        (header.key.as_str(), header.value.as_str())
    });
    let map: HashMap<_, _> = pairs.collect();
    assert_eq!(map.len(), options.len());
    map
}

fn allowed(response: &CheckResponse) -> &OkHttpResponse {
    assert_eq!(response.status.as_ref().unwrap().code, 0);
    match &response.http_response {
        Some(HttpResponse::Ok(ok)) => ok,
        other => panic!("{other:?}"),
    }
}

fn denied(response: &CheckResponse) -> &DeniedHttpResponse {
    assert_ne!(response.status.as_ref().unwrap().code, 0);
    match &response.http_response {
        Some(HttpResponse::Denied(denied)) => denied,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn allowed_requests_have_an_identity() {
    let world = World::start(ROUTES).await;
    let bearer = format!("Bearer {}", world.key("org_1", &["read:reports"]));
    let spoofed = [
        ("authorization", bearer.as_str()),
        ("x-org-code", "org_2"),
        ("x_org_code", "org_2"),
        ("X.Org.Code", "org_2"),
        ("x-org-plan", "gold"),
        ("x-organization", "kept"),
    ];
    let response = check(world.checks, question("GET", "/reports/1?q=//", &spoofed)).await;
    let ok = allowed(&response);
    let set = headers(&ok.headers);
    assert_eq!(
        (set["x-org-code"], set["x-org-scopes"]),
        ("org_1", "read:reports")
    );
    assert!(!set["x-org-key-id"].is_empty());
    for name in [
        "authorization",
        "x_org_code",
        "x.org.code",
        "x-org-plan",
        "x-org-assertion",
    ] {
        assert!(
            ok.headers_to_remove.iter().any(|removed| removed == name),
            "{name}"
        );
    }
    // A name that is set and removed would be removed.
    for name in set.keys().chain(&["x-organization"]) {
        assert!(
            !ok.headers_to_remove.iter().any(|removed| removed == name),
            "{name}"
        );
    }
}

#[tokio::test]
async fn public_routes_remove_the_identity() {
    let world = World::start(ROUTES).await;
    let headers = [("authorization", "Bearer a b"), ("x-org-code", "org_2")];
    let response = check(world.checks, question("GET", "/health", &headers)).await;
    let ok = allowed(&response);
    assert_eq!(ok.headers, []);
    for name in [
        "x-org-code",
        "x-org-key-id",
        "x-org-scopes",
        "x-org-assertion",
        "authorization",
    ] {
        assert!(
            ok.headers_to_remove.iter().any(|removed| removed == name),
            "{name}"
        );
    }
    assert_eq!(world.emulator.calls().verify.total, 0);
}

#[tokio::test]
async fn rejections_are_those_of_the_other_dialects() {
    let world = World::start(ROUTES).await;
    let bearer = format!("Bearer {}", world.key("org_1", &["other"]));
    let joined = format!("{bearer},{bearer}");
    let cases: [(u16, i32, &str, Headers<'_>); 8] = [
        (401, 16, "/reports/1", &[]),
        (
            401,
            16,
            "/reports/1",
            &[("authorization", "Bearer unknown-key-1")],
        ),
        (400, 16, "/reports/1", &[("authorization", &joined)]),
        (403, 7, "/reports/1", &[("authorization", &bearer)]),
        (403, 7, "/orgs/org_2/x", &[("authorization", &bearer)]),
        (403, 7, "/", &[("authorization", &bearer)]),
        (400, 3, "/orgs/../health", &[]),
        (400, 3, "health", &[]),
    ];
    for (status, code, path, headers_of_client) in cases {
        let response = check(world.checks, question("GET", path, headers_of_client)).await;
        let denied = denied(&response);
        let headers = headers(&denied.headers);
        assert_eq!(response.status.as_ref().unwrap().code, code, "{path}");
        assert_eq!(
            denied.status.as_ref().unwrap().code,
            i32::from(status),
            "{path}"
        );

        let own = [("x-original-method", "GET"), ("x-original-uri", path)];
        let other = send(
            world.checks,
            request("GET", "/v1/nginx", &[&own, headers_of_client].concat()),
        )
        .await;
        assert_eq!(denied.body, other.text(), "{path}");
        for name in [
            "www-authenticate",
            "retry-after",
            "content-type",
            "cache-control",
        ] {
            let expected = other.header(name);
            assert_eq!(
                headers.get(name).copied(),
                expected.as_deref(),
                "{path} {name}"
            );
        }
    }
}

#[tokio::test]
async fn raw_headers_are_read_too() {
    let world = World::start(ROUTES).await;
    let bearer = format!("Bearer {}", world.key("org_1", &["read:reports"]));
    let raw = |key: &str, value: &str| HeaderValue {
        key: key.to_owned(),
        value: String::new(),
        raw_value: value.as_bytes().to_vec(),
    };
    let with = |headers| {
        let map = Some(HeaderMap { headers });
        HttpRequest {
            header_map: map,
            ..question("GET", "/reports/1", &[])
        }
    };
    let response = check(
        world.checks,
        with(vec![
            raw("authorization", &bearer),
            raw("x_org_code", "org_2"),
        ]),
    )
    .await;
    assert!(
        allowed(&response)
            .headers_to_remove
            .contains(&"x_org_code".to_owned())
    );
    let twice = check(
        world.checks,
        with(vec![
            raw("authorization", &bearer),
            raw("authorization", &bearer),
        ]),
    )
    .await;
    assert_eq!(denied(&twice).status.as_ref().unwrap().code, 400);
}

#[tokio::test]
async fn callers_of_grpc_get_a_sentence() {
    let world = World::start(ROUTES).await;
    let headers_of_client = [("content-type", "application/grpc+proto")];
    let response = check(
        world.checks,
        question("POST", "/reports/1", &headers_of_client),
    )
    .await;
    let denied = denied(&response);
    let headers = headers(&denied.headers);
    assert_eq!(headers["grpc-status"], "16");
    let details = BASE64_STANDARD_NO_PAD.decode(headers["grpc-status-details-bin"]);
    let details = String::from_utf8_lossy(&details.unwrap()).into_owned();
    assert!(details.contains("CREDENTIAL_MISSING"), "{details}");
    assert!(headers.contains_key("www-authenticate") && !headers.contains_key("content-type"));
    assert!(
        !denied.body.is_empty() && !denied.body.contains('{'),
        "{}",
        denied.body
    );
}

#[tokio::test]
async fn fault_127_issuer_is_slower_than_envoy() {
    let world = World::start(&format!("{ROUTES}{AUDIT}")).await;
    world.emulator.inject(Endpoint::Verify, Fault::hold());
    let key = ("authorization", "Bearer never-seen-key");
    // Without a deadline of the proxy, it waits as long as the layer lets it.
    let own = [
        ("x-original-method", "GET"),
        ("x-original-uri", "/reports/1"),
        key,
    ];
    let earlier = tokio::spawn(send(world.checks, request("GET", "/v1/nginx", &own)));
    world.emulator.wait_for_calls(Endpoint::Verify, 1).await;
    let http = question("GET", "/reports/1", &[key, ("x-request-id", "too-slow")]);
    let reply = call(world.checks, framed(http), &[("grpc-timeout", "200m")]).await;
    assert!(!earlier.is_finished());
    let response = CheckResponse::decode(&reply.body[5..]).unwrap();
    let denied = denied(&response);
    assert_eq!(denied.status.as_ref().unwrap().code, 503);
    assert_eq!(headers(&denied.headers)["retry-after"], "1");
    let file = world.files.path("audit.jsonl");
    let line = until_line(&file, |line| line.contains("too-slow")).await;
    assert!(line.contains("verifier-unavailable"), "{line}");
    assert!(!earlier.is_finished());
}

/// Envoy with `failure_mode_allow` allows a request if the call fails.
#[tokio::test]
async fn fault_122b_unreadable_questions_deny() {
    let world = World::start(ROUTES).await;
    let no_method = framed(question("", "/health", &[]));
    let no_path = framed(question("GET", "", &[]));
    let large = framed(question(
        "GET",
        "/health",
        &[("x-large", &"x".repeat(300_000))],
    ));
    let empty = vec![0, 0, 0, 0, 0];
    for body in [b"junk".to_vec(), empty, no_method, no_path, large] {
        let reply = call(world.checks, body, &[]).await;
        assert_eq!(reply.trailers["grpc-status"], "0");
        let response = CheckResponse::decode(&reply.body[5..]).unwrap();
        assert_eq!(denied(&response).status.as_ref().unwrap().code, 500);
    }
    let page = parsed(&page(&world).await).await;
    assert_eq!(beside(&page, "internal"), "5", "each is counted");
    // Without HTTP/2 there are no trailers.
    let reply = send(world.checks, request("POST", PATH, &[])).await;
    assert_eq!(reply.status, 404);
}

#[tokio::test]
async fn scopes_of_a_route_of_envoy_are_required() {
    let world = World::start(&format!("{ROUTES}{AUDIT}")).await;
    let key = |scopes: &[&str]| format!("Bearer {}", world.key("org_1", scopes));
    let (some, all) = (
        key(&["read:reports", "a"]),
        key(&["read:reports", "a", "b"]),
    );
    for (bearer, scope, status) in [
        (&some, "a", None),
        (&some, "a b", Some(403)),
        (&all, " a  b ", None),
        (&all, "A", Some(403)),
        // A demand that cannot be read is no demand that is met.
        (&all, "", Some(500)),
        (&all, "a\"b", Some(500)),
    ] {
        let headers = [("authorization", bearer.as_str())];
        let http = question("GET", "/reports/1", &headers);
        let extensions = [("scope", scope), ("other", "x")];
        let response = check_with(world.checks, http, &extensions).await;
        let Some(status) = status else {
            allowed(&response);
            continue;
        };
        assert_eq!(
            denied(&response).status.as_ref().unwrap().code,
            status,
            "{scope}"
        );
    }
    // Those of the gateway's route are required too.
    let bearer = key(&["a"]);
    let http = question("GET", "/reports/1", &[("authorization", &bearer)]);
    let response = check_with(world.checks, http, &[("scope", "a")]).await;
    assert_eq!(denied(&response).status.as_ref().unwrap().code, 403);
    // A public route reads no key.
    let response = check_with(
        world.checks,
        question("GET", "/health", &[]),
        &[("scope", "a")],
    )
    .await;
    assert_eq!(denied(&response).status.as_ref().unwrap().code, 500);
    let file = world.files.path("audit.jsonl");
    until_line(&file, |line| line.contains("\"internal\"")).await;
    // The client does not choose them.
    let headers = [("authorization", some.as_str()), ("scope", "b")];
    allowed(&check(world.checks, question("GET", "/reports/1", &headers)).await);
}
