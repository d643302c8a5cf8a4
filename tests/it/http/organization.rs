//! The organization guard over paths.

use axum::Router;
use axum::routing::get as route;
use tower::ServiceBuilder;
use tower_orgkey::{ApiKeyLayer, RequestHead, require_org, require_org_with};

use super::*;
use crate::support::wire::{get, serve};
use crate::support::{Issuer, org};

/// A key of this organization, at a route that requires it.
async fn at(code: &str, path: &str) -> u16 {
    let issuer = Issuer::knowing([(ONE, org(code, &[]))]);
    let app = Router::new()
        .route(
            "/orgs/{org_code}",
            route(whoami).route_layer(require_org("org_code")),
        )
        .route_layer(ApiKeyLayer::new(issuer.clone()));
    let address = serve(app).await;
    let first = get(address, path).key(ONE).send().await;
    let again = get(address, path).key(ONE).send().await;
    assert_eq!(first, again);
    if first.status == 200 {
        assert_eq!(first.body, code);
    } else {
        assert_eq!(first.code(), "organization-mismatch");
    }
    assert_eq!(issuer.calls(), 1);
    first.status
}

#[tokio::test]
async fn fault_49_parameter_is_decoded_once() {
    for (code, path, status) in [
        ("org_1", "/orgs/org_1", 200),
        ("org_1", "/orgs/%6frg_1", 200),
        ("org_1", "/orgs/%6F%72%67%5F%31", 200),
        ("org_1", "/orgs/org_1?org_code=org_2", 200),
        ("org/1", "/orgs/org%2F1", 200),
        ("org/1", "/orgs/org%2f1", 200),
        ("org%2F1", "/orgs/org%252F1", 200),
        ("org+1", "/orgs/org+1", 200),
        ("..", "/orgs/%2E%2E", 200),
        // Decoded twice these would be the same.
        ("org/1", "/orgs/org%252F1", 403),
        ("org_1", "/orgs/%256frg_1", 403),
        ("org%2F1", "/orgs/org%2F1", 403),
        // Near misses.
        ("org_1", "/orgs/org_2", 403),
        ("org_1", "/orgs/Org_1", 403),
        ("org_1", "/orgs/ORG_1", 403),
        ("org_1", "/orgs/org_", 403),
        ("org_1", "/orgs/org_11", 403),
        ("org_1", "/orgs/org_1%00", 403),
        ("org_1", "/orgs/org_1%20", 403),
        ("org_1", "/orgs/%20org_1", 403),
        ("org_1", "/orgs/org_1%0A", 403),
        ("org_1", "/orgs/org_1%2F", 403),
        ("org_1", "/orgs/org_1%3Fa", 403),
        ("org_1", "/orgs/org_1;a=b", 403),
        ("org_1", "/orgs/org_1,org_2", 403),
        ("org_1", "/orgs/*", 403),
        ("org_1", "/orgs/org%EF%BC%BF1", 403),
        ("org_1", "/orgs/org_1?org_code=org_1&x=", 200),
        ("org_1", "/orgs/org_2?org_code=org_1", 403),
        // Not UTF-8, whole or in part, and broken percent signs.
        ("org_1", "/orgs/%FF", 403),
        ("org_1", "/orgs/org_1%FF", 403),
        ("org_1", "/orgs/%C3%28", 403),
        ("org_1", "/orgs/org_1%", 403),
        ("org_1", "/orgs/org_1%2", 403),
        ("org%zz", "/orgs/org%zz", 200),
    ] {
        assert_eq!(at(code, path).await, status, "{code} at {path}");
    }
}

#[tokio::test]
async fn fault_49_all_parameters_of_a_name_must_match() {
    let issuer = issuer();
    let inner = Router::new()
        .route(
            "/reports/{org_code}",
            route(whoami).route_layer(require_org("org_code")),
        )
        .route("/list", route(whoami).route_layer(require_org("org_code")))
        .route(
            "/{other}/x",
            route(whoami).route_layer(require_org("org_code")),
        );
    let app = Router::new()
        .nest_service("/orgs/{org_code}", inner.clone())
        .nest(
            "/nested/{org_code}",
            Router::new().nest_service("/deep", inner),
        )
        .route_layer(ApiKeyLayer::new(issuer.clone()));
    let address = serve(app).await;
    for prefix in ["/orgs/", "/nested/"] {
        let deep = if prefix == "/nested/" { "/deep" } else { "" };
        for (outer, inner, status) in [
            ("org_one", "/reports/org_one", 200),
            ("org_two", "/reports/org_one", 403),
            ("org_one", "/reports/org_two", 403),
            ("org_two", "/reports/org_two", 403),
            ("org_one", "/list", 200),
            ("org_two", "/list", 403),
            ("org_one", "/org_two/x", 200),
            ("org_two", "/org_one/x", 403),
            ("%FF", "/reports/org_one", 403),
            ("org_one", "/reports/%FF", 403),
            ("%FF", "/list", 403),
        ] {
            let path = format!("{prefix}{outer}{deep}{inner}");
            let answer = get(address, &path).key(ONE).send().await;
            assert_eq!(answer.status, status, "{path}");
        }
    }
}

#[tokio::test]
async fn guard_applies_to_whole_routers() {
    let app = Router::new()
        .nest(
            "/orgs/{org_code}",
            Router::new()
                .route("/a", route(whoami))
                .route("/b/{id}", route(whoami))
                .route_layer(require_org("org_code")),
        )
        .route_layer(ApiKeyLayer::new(issuer()));
    let address = serve(app).await;
    for (path, status) in [
        ("/orgs/org_one/a", 200),
        ("/orgs/org_one/b/org_two", 200),
        ("/orgs/org_two/a", 403),
        ("/orgs/org_two/b/org_one", 403),
    ] {
        assert_eq!(
            get(address, path).key(ONE).send().await.status,
            status,
            "{path}"
        );
    }
}

#[tokio::test]
async fn require_org_with_reads_plain_requests() {
    use crate::support::service::{Handler, Outcome, allowed, request};
    use tower::ServiceExt;
    use tower_orgkey::RejectionKind;

    let host = |head: RequestHead<'_>| {
        let host = head.headers.get("host")?.to_str().ok()?;
        Some(host.strip_suffix(".api.test")?.to_owned())
    };
    let handler = Handler::default();
    let service = ServiceBuilder::new()
        .layer(ApiKeyLayer::new(issuer()))
        .layer(require_org_with(host))
        .service(handler.clone());
    let hidden = ServiceBuilder::new()
        .layer(ApiKeyLayer::new(issuer()))
        .layer(require_org_with(host).with_not_found())
        .service(handler.clone());
    let other = Outcome::Rejected(RejectionKind::OrganizationMismatch);
    for (host, expected) in [
        (Some("org_one.api.test"), allowed("org_one")),
        (Some("org_two.api.test"), other.clone()),
        (Some("api.test"), other.clone()),
        (Some(".api.test"), other.clone()),
        (None, other.clone()),
    ] {
        let mut request = request(ONE);
        if let Some(host) = host {
            request.headers_mut().insert("host", host.parse().unwrap());
        }
        let before = handler.reached();
        let response = service.clone().oneshot(request.clone()).await.unwrap();
        assert_eq!(Outcome::of(&response), expected, "{host:?}");
        let response = hidden.clone().oneshot(request).await.unwrap();
        if expected == other {
            assert_eq!(
                Outcome::of(&response),
                Outcome::Rejected(RejectionKind::NotFound)
            );
            assert_eq!(handler.reached(), before);
        } else {
            assert_eq!(handler.reached(), before + 2);
        }
    }
}
