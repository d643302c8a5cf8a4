//! What each dialect over headers answers, beside what the layer itself answers.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use kinde_emulator::{Endpoint, Fault, KindeEmulator};
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::{ApiKeyLayer, require_org, require_scope};

use crate::support::{Headers, Reply, World, request, send};

pub(crate) const ROUTES: &str = r#"
[[route]]
match = "GET,POST /reports/{id}"
scopes = ["read:reports"]
[[route]]
match = "* /orgs/{org_code}/{*rest}"
organization = "org_code"
[[route]]
match = "GET /health"
public = true
"#;

/// A route of one host.
pub(crate) const HOST_ROUTE: &str =
    "[[route]]\nmatch = 'GET /only-here'\nhost = 'api.example.com'\n";

/// The sixth request is rejected unless the five before took a second.
const LIMITS: &str = "[limits]\nrequests_per_minute = 60\nburst = 5\n";

/// The dialects that put the original request into headers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Dialect {
    Nginx,
    ForwardAuth,
    EnvoyHttp,
}

const DIALECTS: [Dialect; 3] = [Dialect::Nginx, Dialect::ForwardAuth, Dialect::EnvoyHttp];

impl Dialect {
    async fn ask(
        self,
        to: SocketAddr,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Reply {
        let (method, path, own) = match self {
            Self::Nginx => (
                "GET",
                "/v1/nginx".to_owned(),
                vec![("x-original-method", method), ("x-original-uri", target)],
            ),
            Self::ForwardAuth => (
                "GET",
                "/v1/forward-auth".to_owned(),
                vec![("x-forwarded-method", method), ("x-forwarded-uri", target)],
            ),
            Self::EnvoyHttp => (method, format!("/v1/envoy{target}"), vec![]),
        };
        send(to, request(method, &path, &[&own, headers].concat())).await
    }
}

/// The same routes in a service with the layer.
async fn reference(emulator: &KindeEmulator) -> SocketAddr {
    let kinde = KindeVerifier::builder(emulator.issuer_url())
        .client_credentials(emulator.client_id(), emulator.client_secret())
        .build()
        .unwrap();
    let app = Router::new()
        .route(
            "/reports/{id}",
            get(async || "report").route_layer(require_scope("read:reports")),
        )
        .route(
            "/orgs/{org_code}/{*rest}",
            get(async || "of the organization").route_layer(require_org("org_code")),
        )
        .route_layer(ApiKeyLayer::new(kinde));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn assert_same(dialect: Dialect, answer: &Reply, reference: &Reply) {
    assert_eq!(answer.status, reference.status, "{dialect:?}");
    for name in [
        "www-authenticate",
        "retry-after",
        "content-type",
        "cache-control",
    ] {
        assert_eq!(
            answer.header(name),
            reference.header(name),
            "{dialect:?} {name}"
        );
    }
    assert_eq!(answer.body, reference.body, "{dialect:?}");
    let problem = answer.header("x-orgkey-problem");
    let expected = (dialect == Dialect::Nginx).then(|| reference.text().to_owned());
    assert_eq!(problem, expected, "{dialect:?}");
}

#[tokio::test]
async fn rejections_are_those_of_the_layer() {
    let world = World::start(ROUTES).await;
    let reference = reference(&world.emulator).await;
    let key = world.key("org_1", &["read:reports"]);
    let bearer = format!("Bearer {key}");
    let other = format!("Bearer {}", world.key("org_2", &["other"]));
    let cases: [(u16, &str, Headers<'_>); 8] = [
        (401, "/reports/1", &[]),
        (401, "/reports/1", &[("authorization", "Basic abc")]),
        (400, "/reports/1", &[("authorization", "Bearer a b")]),
        (
            400,
            "/reports/1",
            &[("authorization", &bearer), ("authorization", &bearer)],
        ),
        (
            401,
            "/reports/1",
            &[("authorization", "Bearer unknown-key-1")],
        ),
        (403, "/reports/1", &[("authorization", &other)]),
        (403, "/orgs/org_1/x", &[("authorization", &other)]),
        (403, "/orgs/%FF/x", &[("authorization", &bearer)]),
    ];
    for (status, target, headers) in cases {
        let expected = send(reference, request("GET", target, headers)).await;
        assert_eq!(expected.status, status, "{target}");
        for dialect in DIALECTS {
            let answer = dialect.ask(world.checks, "GET", target, headers).await;
            assert_same(dialect, &answer, &expected);
        }
    }
}

#[tokio::test]
async fn other_headers_of_the_client_change_nothing() {
    let world = World::start(ROUTES).await;
    let reference = reference(&world.emulator).await;
    let bearer = format!("Bearer {}", world.key("org_1", &["read:reports"]));
    let others = [
        ("accept", "text/html"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("x-api-key", "another-key-1"),
        ("x-org-code", "org_2"),
        ("x-org-scopes", "admin"),
    ];
    for key in [&bearer, "Bearer unknown-key-1"] {
        let headers = [("authorization", key)];
        let expected = send(reference, request("GET", "/reports/1", &headers)).await;
        for dialect in DIALECTS {
            let headers = [&headers[..], &others].concat();
            let answer = dialect
                .ask(world.checks, "GET", "/reports/1", &headers)
                .await;
            if expected.status == 200 {
                assert_eq!(answer.status, 200, "{dialect:?}");
                assert_eq!(answer.header("x-org-code").as_deref(), Some("org_1"));
                assert_eq!(
                    answer.header("x-org-scopes").as_deref(),
                    Some("read:reports")
                );
            } else {
                assert_same(dialect, &answer, &expected);
            }
        }
    }
}

#[tokio::test]
async fn unavailable_issuer_is_503_with_retry_after() {
    let world = World::start(ROUTES).await;
    world.emulator.inject(Endpoint::Verify, Fault::status(500));
    for dialect in DIALECTS {
        let headers = [("authorization", "Bearer never-seen-key")];
        let answer = dialect
            .ask(world.checks, "GET", "/reports/1", &headers)
            .await;
        assert_eq!(answer.status, 503, "{dialect:?}");
        assert_eq!(answer.code(), "verifier-unavailable", "{dialect:?}");
        assert!(answer.header("retry-after").is_some(), "{dialect:?}");
        assert_eq!(answer.header("www-authenticate"), None, "{dialect:?}");
    }
    assert!(world.emulator.calls().verify.faulted > 0);
}

#[tokio::test]
async fn limits_count_per_organization() {
    for dialect in DIALECTS {
        let world = World::start(&format!("{ROUTES}{LIMITS}")).await;
        let bearer = format!("Bearer {}", world.key("org_1", &["read:reports"]));
        let headers = [("authorization", bearer.as_str())];
        for _ in 0..5 {
            let answer = dialect
                .ask(world.checks, "GET", "/reports/1", &headers)
                .await;
            assert_eq!(answer.status, 200, "{dialect:?}");
        }
        let limited = dialect
            .ask(world.checks, "GET", "/reports/1", &headers)
            .await;
        assert_eq!(
            (limited.status.as_u16(), limited.code().as_str()),
            (429, "rate-limited")
        );
        assert_eq!(limited.header("retry-after").as_deref(), Some("1"));
        let bearer = format!("Bearer {}", world.key("org_2", &["read:reports"]));
        let other = [("authorization", bearer.as_str())];
        assert_eq!(
            dialect
                .ask(world.checks, "GET", "/reports/1", &other)
                .await
                .status,
            200
        );
    }
}

#[tokio::test]
async fn allowed_requests_have_an_identity() {
    let world = World::start(ROUTES).await;
    let bearer = format!("Bearer {}", world.key("org_1", &["read:reports", "a"]));
    for dialect in DIALECTS {
        // What the client says about itself is ignored.
        let headers = [
            ("authorization", bearer.as_str()),
            ("x-org-code", "org_2"),
            ("x-org-code", "org_3"),
            ("x-org-scopes", "admin"),
        ];
        let answer = dialect
            .ask(world.checks, "POST", "/reports/1?a=//", &headers)
            .await;
        assert_eq!(answer.status, 200, "{dialect:?} {}", answer.text());
        assert_eq!(
            answer.header("x-org-code").as_deref(),
            Some("org_1"),
            "{dialect:?}"
        );
        assert_eq!(
            answer.header("x-org-scopes").as_deref(),
            Some("a read:reports"),
            "{dialect:?}"
        );
        assert!(
            answer
                .header("x-org-key-id")
                .is_some_and(|id| !id.is_empty()),
            "{dialect:?}"
        );
        assert_eq!(
            answer.header("cache-control").as_deref(),
            Some("no-store"),
            "{dialect:?}"
        );
        assert_eq!(
            answer.header("content-length").as_deref(),
            Some("0"),
            "{dialect:?}"
        );
        assert_eq!(answer.header("x-org-assertion"), None, "{dialect:?}");
    }
    let in_path = Dialect::Nginx;
    let headers = [("authorization", bearer.as_str())];
    let answer = in_path
        .ask(world.checks, "DELETE", "/orgs/%6Frg_1/x/y", &headers)
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn public_routes_read_no_key() {
    let world = World::start(ROUTES).await;
    for dialect in DIALECTS {
        let headers = [
            ("authorization", "Bearer a b"),
            ("authorization", "x"),
            ("x-org-code", "org_2"),
        ];
        let answer = dialect.ask(world.checks, "HEAD", "/health", &headers).await;
        assert_eq!(answer.status, 200, "{dialect:?}");
        for name in [
            "x-org-code",
            "x-org-key-id",
            "x-org-scopes",
            "x-org-assertion",
        ] {
            assert_eq!(answer.header(name), None, "{dialect:?}");
        }
    }
    assert_eq!(world.emulator.calls().verify.total, 0);
}

#[tokio::test]
async fn requests_without_a_route_are_403() {
    let world = World::start(ROUTES).await;
    let bearer = format!("Bearer {}", world.key("org_1", &["read:reports"]));
    for dialect in DIALECTS {
        for (method, target) in [("GET", "/"), ("DELETE", "/reports/1"), ("POST", "/health")] {
            let answer = dialect
                .ask(world.checks, method, target, &[("authorization", &bearer)])
                .await;
            assert_eq!(
                (answer.status.as_u16(), answer.code().as_str()),
                (403, "no-route"),
                "{dialect:?} {target}"
            );
        }
    }
}

#[tokio::test]
async fn ambiguous_paths_are_400() {
    let world = World::start(ROUTES).await;
    let bearer = format!("Bearer {}", world.key("org_1", &["read:reports"]));
    for dialect in DIALECTS {
        for target in [
            "/reports/../health",
            "//health",
            "/reports/%2e%2e",
            "/reports/a%2Fb",
            "/Health",
            "/health/",
            "/h%65alth",
            "/health;a",
        ] {
            let answer = dialect
                .ask(world.checks, "GET", target, &[("authorization", &bearer)])
                .await;
            assert_eq!(
                (answer.status.as_u16(), answer.code().as_str()),
                (400, "ambiguous-path"),
                "{dialect:?} {target}"
            );
        }
    }
    assert_eq!(world.emulator.calls().verify.total, 0);
}

#[tokio::test]
async fn routes_of_a_host_need_the_host() {
    let world = World::start(&format!("{ROUTES}{HOST_ROUTE}")).await;
    let bearer = format!("Bearer {}", world.key("org_1", &[]));
    for (dialect, name) in [
        (Dialect::Nginx, "x-original-host"),
        (Dialect::ForwardAuth, "x-forwarded-host"),
    ] {
        let headers = [
            ("authorization", bearer.as_str()),
            (name, "API.example.com:8443"),
        ];
        let answer = dialect
            .ask(world.checks, "GET", "/only-here", &headers)
            .await;
        assert_eq!(answer.status, 200, "{dialect:?}");
        let other = [headers[0], (name, "example.com")];
        let answer = dialect.ask(world.checks, "GET", "/only-here", &other).await;
        assert_eq!(answer.status, 403, "{dialect:?}");
        // Without a host, the demands of other hosts could be the weaker ones.
        for target in ["/only-here", "/health"] {
            let answer = dialect
                .ask(world.checks, "GET", target, &headers[..1])
                .await;
            assert_eq!(answer.status, 500, "{dialect:?} {target}");
        }
        let twice = [&headers[..], &[(name, "api.example.com")]].concat();
        let answer = dialect.ask(world.checks, "GET", "/only-here", &twice).await;
        assert_eq!(answer.status, 500, "{dialect:?}");
    }
}

#[tokio::test]
async fn fault_121_headers_of_a_dialect_repeat() {
    let world = World::start(ROUTES).await;
    let nginx = [("x-original-method", "GET"), ("x-original-uri", "/health")];
    let forward = [
        ("x-forwarded-method", "GET"),
        ("x-forwarded-uri", "/health"),
    ];
    let envoy = [("x-envoy-original-path", "/health")];
    for (path, headers) in [
        ("/v1/nginx", &forward[..]),
        ("/v1/nginx", &nginx[..1]),
        ("/v1/nginx", &nginx[1..]),
        ("/v1/nginx", &[&nginx[..], &nginx[1..]].concat()),
        ("/v1/nginx", &[&nginx[..], &nginx[..1]].concat()),
        ("/v1/forward-auth", &nginx[..]),
        ("/v1/forward-auth", &forward[..1]),
        ("/v1/forward-auth", &[&forward[..], &forward[1..]].concat()),
    ] {
        let answer = send(world.checks, request("GET", path, headers)).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (500, "internal"),
            "{path} {headers:?}"
        );
    }
    for path in [
        "/v1/envoy",
        "/v1/envoyance/health",
        "/v1/nginx/",
        "/",
        "/livez",
        "/metrics",
        "/health",
        "*",
    ] {
        let headers = [&nginx[..], &forward, &envoy].concat();
        let method = if path == "*" { "OPTIONS" } else { "GET" };
        let answer = send(world.checks, request(method, path, &headers)).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.header("x-org-code"), None);
    }
    // The other headers are the client's, and mean nothing.
    let answer = send(
        world.checks,
        request(
            "GET",
            "/v1/nginx",
            &[&nginx[..], &[("x-forwarded-uri", "/none")]].concat(),
        ),
    )
    .await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn dialects_can_be_switched_off() {
    let emulator = KindeEmulator::start().await.unwrap();
    let files = crate::support::Files::new(&emulator);
    let text = files.config(&emulator, ROUTES).replacen(
        "[listen]\n",
        "[listen]\ndialects = ['nginx']\n",
        1,
    );
    let gateway = orgkey::gateway::Gateway::start(orgkey::gateway::Config::parse(&text).unwrap())
        .await
        .unwrap();
    let address = gateway.checks_address().to_string().parse().unwrap();
    tokio::spawn(gateway.run(std::future::pending()));
    for (dialect, status) in [
        (Dialect::Nginx, 200),
        (Dialect::ForwardAuth, 404),
        (Dialect::EnvoyHttp, 404),
    ] {
        assert_eq!(
            dialect.ask(address, "GET", "/health", &[]).await.status,
            status,
            "{dialect:?}"
        );
    }
}

#[tokio::test]
async fn envoy_removes_what_is_not_set() {
    let world = World::start(ROUTES).await;
    let bearer = format!("Bearer {}", world.key("org_1", &[]));
    let removed = |answer: &Reply| {
        let names = answer.header("x-envoy-auth-headers-to-remove").unwrap();
        names.split(',').map(str::to_owned).collect::<Vec<_>>()
    };
    let dialect = Dialect::EnvoyHttp;
    let answer = dialect
        .ask(
            world.checks,
            "GET",
            "/orgs/org_1/x",
            &[("authorization", &bearer)],
        )
        .await;
    let names = removed(&answer);
    for name in [
        "authorization",
        "x_org_code",
        "x.org.code",
        "x-org_code",
        "x-org-scopes",
        "x-org-assertion",
        "x_org_key_id",
    ] {
        assert!(names.iter().any(|removed| removed == name), "{name}");
    }
    // A name that is set and removed would be removed.
    for name in ["x-org-code", "x-org-key-id"] {
        assert!(
            answer.header(name).is_some() && !names.iter().any(|removed| removed == name),
            "{name}"
        );
    }
    let answer = dialect.ask(world.checks, "GET", "/health", &[]).await;
    let names = removed(&answer);
    for name in [
        "authorization",
        "x-org-code",
        "x-org-key-id",
        "x-org-scopes",
        "x-org-assertion",
    ] {
        assert!(names.iter().any(|removed| removed == name), "{name}");
    }
}

#[tokio::test]
async fn fault_129_identity_is_above_3_kib() {
    let world = World::start(ROUTES).await;
    let scopes: Vec<String> = (0..40).map(|number| format!("{number:0>75}")).collect();
    let names: Vec<&str> = scopes.iter().map(String::as_str).collect();
    let fits = format!("Bearer {}", world.key("org_1", &names[..30]));
    let too_long = format!("Bearer {}", world.key("org_1", &names));
    for dialect in DIALECTS {
        let answer = dialect
            .ask(
                world.checks,
                "GET",
                "/orgs/org_1/x",
                &[("authorization", &fits)],
            )
            .await;
        assert_eq!(answer.status, 200, "{dialect:?}");
        let answer = dialect
            .ask(
                world.checks,
                "GET",
                "/orgs/org_1/x",
                &[("authorization", &too_long)],
            )
            .await;
        assert_eq!(answer.status, 500, "{dialect:?}");
        assert_eq!(answer.header("x-org-code"), None, "{dialect:?}");
    }
}
