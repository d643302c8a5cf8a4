//! Row 95: two layers for keys in different headers.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get as route;
use http::HeaderName;
use tower_orgkey::observer::OuterObservation;
use tower_orgkey::verify::{Organizations, PrefixVerifier};
use tower_orgkey::{ApiKeyLayer, ApiKeyLayerBuilder, OrgContext, require_scope};

use super::{BAD, ONE, TWO, USER, issuer, open, whoami};
use crate::support::wire::{get, serve};
use crate::support::{self, Issuer};

/// A layer for keys in `x-api-key`.
fn outer(issuer: &Issuer) -> ApiKeyLayerBuilder {
    ApiKeyLayer::builder(issuer.clone())
        .credential_header(HeaderName::from_static("x-api-key"), "ApiKey")
        .allow_anonymous()
}

fn inner(issuer: &Issuer, outer: &ApiKeyLayer) -> ApiKeyLayerBuilder {
    ApiKeyLayer::builder(issuer.clone()).allow_authenticated_by(outer, Organizations::Shared)
}

async fn start(outer: ApiKeyLayer, inner: ApiKeyLayer) -> SocketAddr {
    let optional = async |org: Option<OrgContext>| org.is_some().to_string();
    let app = Router::new()
        .route("/", route(whoami))
        .route("/optional", route(optional))
        .route(
            "/write",
            route(open).route_layer(require_scope("write:reports")),
        )
        .route_layer(inner)
        .route_layer(outer);
    serve(app).await
}

#[tokio::test]
async fn fault_115_either_key_is_accepted() {
    let (by_header, by_bearer) = (issuer(), issuer());
    for strip in [false, true] {
        let outer = outer(&by_header).strip_credential(strip).build().unwrap();
        let inner = inner(&by_bearer, &outer).strip_credential(strip);
        let address = start(outer, inner.build().unwrap()).await;
        for _ in 0..2 {
            let answer = get(address, "/").header("x-api-key", ONE).send().await;
            assert_eq!((answer.status, &*answer.body), (200, "org_one"));
            let answer = get(address, "/").key(TWO).send().await;
            assert_eq!((answer.status, &*answer.body), (200, "org_two"));
            let answer = get(address, "/write").header("x-api-key", ONE).send().await;
            assert_eq!(answer.status, 403);
            // An invalid key is not anonymous.
            for path in ["/", "/optional"] {
                let answer = get(address, path).header("x-api-key", BAD).send().await;
                assert_eq!(
                    (answer.status, answer.code().as_str()),
                    (401, "invalid-token")
                );
                let answer = get(address, path).key(BAD).send().await;
                assert_eq!(
                    (answer.status, answer.code().as_str()),
                    (401, "invalid-token")
                );
                let answer = get(address, path).send().await;
                assert_eq!(
                    (answer.status, answer.code().as_str()),
                    (401, "credential-missing")
                );
            }
        }
    }
    assert_eq!((by_header.calls_for(TWO), by_bearer.calls_for(ONE)), (0, 0));
}

#[tokio::test]
async fn fault_115_two_keys_are_rejected() {
    let (by_header, by_bearer) = (issuer(), issuer());
    let outer = outer(&by_header).build().unwrap();
    let inner = inner(&by_bearer, &outer).build().unwrap();
    let address = start(outer, inner).await;
    for _ in 0..2 {
        for path in ["/", "/optional"] {
            let both = get(address, path).key(TWO).header("x-api-key", ONE);
            let answer = both.send().await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (400, "credential-malformed")
            );
        }
    }
}

#[tokio::test]
async fn fault_115_only_the_named_layer_is_accepted() {
    let (by_header, by_bearer) = (issuer(), issuer());
    let named = outer(&by_header).build().unwrap();
    let other = outer(&by_header).build().unwrap();
    let inner = inner(&by_bearer, &named).build().unwrap();
    let address = start(other, inner).await;
    let answer = get(address, "/").header("x-api-key", ONE).send().await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (401, "credential-missing")
    );
}

#[tokio::test]
async fn fault_115_policies_of_the_inner_layer_hold() {
    let (by_header, by_bearer) = (issuer(), issuer());
    let outer = outer(&by_header).allow_user_keys().build().unwrap();
    let strict = inner(&by_bearer, &outer).build().unwrap();
    let lax = inner(&by_bearer, &outer).allow_user_keys().build().unwrap();
    let recent = lax.clone().max_age(Duration::ZERO);
    // The inner layer cannot verify the key of the outer one.
    let cases = [
        (strict, 403, 200),
        (lax, 200, 200),
        (recent.clone(), 503, 503),
    ];
    for (inner, user, org) in cases {
        let address = start(outer.clone(), inner).await;
        for (key, status) in [(USER, user), (ONE, org)] {
            for path in ["/", "/optional"] {
                let answer = get(address, path).header("x-api-key", key).send().await;
                assert_eq!(answer.status, status, "{key} {path}");
            }
        }
    }
    // If the outer layer verifies it for this request, it is recent.
    let calls = by_header.calls();
    let address = start(outer.clone().max_age(Duration::ZERO), recent.clone()).await;
    for _ in 0..2 {
        let answer = get(address, "/").header("x-api-key", ONE).send().await;
        assert_eq!((answer.status, &*answer.body), (200, "org_one"));
    }
    assert_eq!(by_header.calls(), calls + 2);
    let address = start(outer.max_age(Duration::from_secs(60)), recent).await;
    let answer = get(address, "/").header("x-api-key", ONE).send().await;
    assert_eq!(answer.status, 503);
}

#[tokio::test]
async fn fault_115_an_unaccepted_key_is_not_anonymous() {
    let (by_header, by_bearer) = (issuer(), issuer());
    let outer = outer(&by_header).allow_user_keys().build().unwrap();
    let anonymous = inner(&by_bearer, &outer).allow_anonymous().build().unwrap();
    let address = start(outer.clone(), anonymous.clone()).await;
    let answer = get(address, "/optional").send().await;
    assert_eq!((answer.status, &*answer.body), (200, "false"));
    let answer = get(address, "/optional").header("x-api-key", USER);
    assert_eq!(answer.send().await.status, 403);
    let address = start(outer, anonymous.max_age(Duration::ZERO)).await;
    let answer = get(address, "/optional").header("x-api-key", ONE);
    assert_eq!(answer.send().await.status, 503);
}

#[tokio::test]
async fn fault_115_a_layer_in_between_that_is_misplaced_is_500() {
    let (by_header, by_bearer) = (issuer(), issuer());
    let outer = outer(&by_header).build().unwrap();
    let inner = inner(&by_bearer, &outer).allow_anonymous().build().unwrap();
    let between = axum::middleware::from_fn(
        async |mut request: axum::extract::Request, next: axum::middleware::Next| {
            let observation = OuterObservation::attach(request.extensions_mut(), "RecordLayer");
            observation.check(next.run(request).await)
        },
    );
    let app = Router::new()
        .route("/", route(whoami))
        .route_layer(inner)
        .route_layer(between)
        .route_layer(outer);
    let address = serve(app).await;
    let answer = get(address, "/").header("x-api-key", ONE).send().await;
    assert_eq!((answer.status, answer.code().as_str()), (500, "internal"));
    let answer = get(address, "/").key(TWO).send().await;
    assert_eq!((answer.status, &*answer.body), (200, "org_two"));
}

#[tokio::test]
async fn fault_115_a_chain_of_layers_is_accepted() {
    let issuer = issuer();
    let first = outer(&issuer).build().unwrap();
    let second = inner(&issuer, &first)
        .credential_header(HeaderName::from_static("x-other-key"), "ApiKey")
        .allow_anonymous()
        .build()
        .unwrap();
    let third = inner(&issuer, &second).build().unwrap();
    let app = Router::new()
        .route("/", route(whoami))
        .route_layer(third)
        .route_layer(second.clone())
        .route_layer(first);
    let address = serve(app).await;
    for (name, value) in [
        ("x-api-key", ONE.to_owned()),
        ("x-other-key", ONE.to_owned()),
        ("authorization", format!("Bearer {ONE}")),
    ] {
        let answer = get(address, "/").header(name, value).send().await;
        assert_eq!((answer.status, &*answer.body), (200, "org_one"), "{name}");
    }
    let same_header = outer(&issuer).allow_authenticated_by(&second, Organizations::Shared);
    assert!(same_header.build().is_err());
}

#[test]
fn layers_that_cannot_work_are_not_built() {
    let issuer = issuer();
    let fails = |inner: ApiKeyLayerBuilder| inner.build().unwrap_err().field();
    let required = ApiKeyLayer::builder(issuer.clone())
        .credential_header(HeaderName::from_static("x-api-key"), "ApiKey")
        .build()
        .unwrap();
    assert_eq!(fails(inner(&issuer, &required)), "allow_authenticated_by");
    let same = ApiKeyLayer::builder(issuer.clone()).allow_anonymous();
    let same = same.build().unwrap();
    assert_eq!(fails(inner(&issuer, &same)), "allow_authenticated_by");

    let named = |name: &'static str| {
        PrefixVerifier::builder()
            .issuer(name, [""], issuer.clone())
            .organizations(Organizations::Separate)
            .build()
            .unwrap()
    };
    let outer = |verifier: PrefixVerifier| {
        ApiKeyLayer::builder(verifier)
            .credential_header(HeaderName::from_static("x-api-key"), "ApiKey")
            .allow_anonymous()
            .build()
            .unwrap()
    };
    let separate = Organizations::Separate;
    let inner = |outer: &ApiKeyLayer, name| {
        ApiKeyLayer::builder(named(name)).allow_authenticated_by(outer, separate)
    };
    assert!(inner(&outer(named("a")), "b").build().is_ok());
    assert_eq!(
        fails(inner(&outer(named("a")), "a")),
        "allow_authenticated_by"
    );
    let unnamed = self::outer(&issuer).build().unwrap();
    assert_eq!(fails(inner(&unnamed, "b")), "allow_authenticated_by");
    let unnamed =
        ApiKeyLayer::builder(issuer.clone()).allow_authenticated_by(&outer(named("a")), separate);
    assert_eq!(fails(unnamed), "allow_authenticated_by");
}

#[tokio::test]
async fn fault_115_an_inner_layer_alone_requires_its_key() {
    let issuer = Issuer::knowing([(ONE, support::org("org_one", &[]))]);
    let outer = outer(&issuer).build().unwrap();
    let inner = inner(&issuer, &outer).build().unwrap();
    let address = serve(Router::new().route("/", route(whoami)).route_layer(inner)).await;
    let answer = get(address, "/").header("x-api-key", ONE).send().await;
    assert_eq!(answer.status, 401);
    assert_eq!(issuer.calls(), 0);
}
