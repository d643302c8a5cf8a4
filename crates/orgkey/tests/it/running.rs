//! Listeners, reload and shutdown.

use std::convert::Infallible;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use axum::body::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kinde_emulator::{Endpoint, Fault};
use orgkey::gateway::{Bounds, Config, Error, Gateway};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::checks::ROUTES;
use crate::support::{ADMIN_TOKEN, Files, World, request, send, send_h2, until_line};

async fn status_of(world: &World, target: &str, key: &str) -> u16 {
    let bearer = format!("Bearer {key}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-original-method", "GET"),
        ("x-original-uri", target),
    ];
    send(world.checks, request("GET", "/v1/nginx", &headers))
        .await
        .status
        .as_u16()
}

/// Reads until the other side closes the connection.
async fn rest_of(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut text)).await;
    read.expect("the gateway closes the connection").ok();
    String::from_utf8_lossy(&text).into_owned()
}

const BOUNDS: Bounds = Bounds {
    connections: 2,
    // Long enough for a busy machine to send the first request.
    first_request: Duration::from_millis(500),
    head: Duration::from_millis(50),
    head_len: 16 * 1_024,
    body: Duration::from_millis(50),
};

#[tokio::test]
async fn both_versions_of_http_are_served() {
    let world = World::start(ROUTES).await;
    let headers = [("x-original-method", "GET"), ("x-original-uri", "/health")];
    assert_eq!(
        send(world.checks, request("GET", "/v1/nginx", &headers))
            .await
            .status,
        200
    );
    let target = format!("http://{}/v1/nginx", world.checks);
    assert_eq!(
        send_h2(world.checks, request("GET", &target, &headers))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn fault_122_slow_connections() {
    let world = World::with_bounds(ROUTES, BOUNDS).await;
    for address in [world.checks, world.admin] {
        for start in [
            "",
            "PRI * HT",
            "GET /v1/ngi",
            "GET /v1/nginx HTTP/1.1\r\nhost: x\r\n",
        ] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(start.as_bytes()).await.unwrap();
            assert!(!rest_of(stream).await.contains(" 200 "), "{start}");
        }
    }
    // More connections than there may be at a time were served, one after another.
    assert_eq!(status_of(&world, "/health", "unread-key").await, 200);
}

#[tokio::test]
async fn fault_122_slow_second_heads() {
    let bounds = Bounds {
        first_request: Duration::from_secs(3),
        ..BOUNDS
    };
    let world = World::with_bounds(ROUTES, bounds).await;
    let mut stream = TcpStream::connect(world.checks).await.unwrap();
    let check = "GET /v1/nginx HTTP/1.1\r\nhost: x\r\nx-original-method: GET\r\nx-original-uri: /health\r\n";
    let heads = format!("{check}\r\n{check}");
    stream.write_all(heads.as_bytes()).await.unwrap();
    assert_eq!(rest_of(stream).await.matches(" 200 ").count(), 1);
}

/// Some proxies send the body of the original request too.
#[tokio::test]
async fn late_body_keeps_the_connection() {
    let world = World::start(ROUTES).await;
    world.emulator.inject(Endpoint::Verify, Fault::hold());
    let key = world.key("org_1", &["read:reports"]);
    let check = format!(
        "POST /v1/nginx HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nx-original-method: GET\r\nx-original-uri: /reports/1\r\n"
    );
    let mut stream = TcpStream::connect(world.checks).await.unwrap();
    let head = format!("{check}content-length: 4\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    world.emulator.wait_for_calls(Endpoint::Verify, 1).await;
    stream.write_all(b"body").await.unwrap();
    world.emulator.clear_faults();
    let next = format!("{check}connection: close\r\n\r\n");
    stream.write_all(next.as_bytes()).await.unwrap();
    assert_eq!(rest_of(stream).await.matches("HTTP/1.1 200 ").count(), 2);
}

#[tokio::test]
async fn fault_122_large_heads() {
    let world = World::with_bounds(
        ROUTES,
        Bounds {
            first_request: Duration::from_secs(30),
            ..BOUNDS
        },
    )
    .await;
    for address in [world.checks, world.admin] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET /v1/nginx HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n",
            "x".repeat(20_000)
        );
        // The gateway may close the connection before all is written.
        let _ = stream.write_all(head.as_bytes()).await;
        let reply = rest_of(stream).await;
        assert!(
            reply.is_empty() || reply.starts_with("HTTP/1.1 431"),
            "{reply}"
        );
    }
    assert_eq!(status_of(&world, "/health", "unread-key").await, 200);
}

#[tokio::test]
async fn reload_changes_routes_and_keeps_state() {
    // The limit has no new request while the test runs.
    let limits = "[limits]\nrequests_per_minute = 1\nburst = 5\n";
    let world = World::start(&format!("{ROUTES}{limits}")).await;
    let key = world.key("org_1", &["read:reports"]);
    for _ in 0..5 {
        assert_eq!(status_of(&world, "/reports/1", &key).await, 200);
    }
    assert_eq!(status_of(&world, "/reports/1", &key).await, 429);
    let moved = format!("{ROUTES}{limits}").replace("/reports/{id}", "/documents/{id}");
    world.reload(&moved).unwrap();
    assert_eq!(status_of(&world, "/reports/1", &key).await, 403);
    // What the limit has counted is kept, and the entry too.
    assert_eq!(status_of(&world, "/documents/1", &key).await, 429);
    let without_limit = moved.split("[limits]").next().unwrap();
    world.reload(without_limit).unwrap();
    assert_eq!(status_of(&world, "/documents/1", &key).await, 200);
    world.reload(&moved).unwrap();
    assert_eq!(status_of(&world, "/documents/1", &key).await, 429);
    assert_eq!(world.emulator.calls().verify.total, 1);

    world
        .handle
        .keys()
        .block_org(&"org_1".parse().unwrap())
        .unwrap();
    world.reload(ROUTES).unwrap();
    assert_eq!(status_of(&world, "/reports/1", &key).await, 401);
}

#[tokio::test]
async fn fault_123_other_tables_are_reloaded() {
    let world = World::start(ROUTES).await;
    let text = world
        .files
        .config(&world.emulator, &ROUTES.replace("/health", "/moved"));
    for (from, to, table) in [
        (
            "checks = '127.0.0.1:0'",
            "checks = '127.0.0.1:1'",
            "[listen]",
        ),
        ("kind = 'kinde'", "kind = 'kinde'\napi_id = 'x'", "[issuer]"),
        ("[issuer]", "[keys]\nsoft_ttl = '5s'\n[issuer]", "[keys]"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        let error = world
            .handle
            .reload(&Config::parse(&changed).unwrap())
            .unwrap_err();
        assert!(
            matches!(&error, Error::NeedsRestart(tables) if tables == &[table]),
            "{error}"
        );
        assert!(error.to_string().contains("restart"), "{error}");
        assert_eq!(status_of(&world, "/health", "unread-key").await, 200);
        assert_eq!(status_of(&world, "/moved", "unread-key").await, 403);
    }
}

#[tokio::test]
async fn decisions_are_recorded() {
    let world = World::start(&format!(
        "{ROUTES}\n[audit]\nfile = 'DIR/audit.jsonl'\nclient_address_header = 'x-real-ip'\n"
    ))
    .await;
    let key = world.key("org_1", &["read:reports"]);
    let bearer = format!("Bearer {key}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-original-method", "POST"),
        ("x-original-uri", "/reports/secret-id?q=1"),
        ("x-real-ip", "192.0.2.7"),
        ("x-request-id", "request-1"),
    ];
    assert_eq!(
        send(world.checks, request("GET", "/v1/nginx", &headers))
            .await
            .status,
        200
    );
    let file = world.files.path("audit.jsonl");
    let line = until_line(&file, |line| line.contains("request-1")).await;
    for part in ["org_1", "POST /reports/{id}", "192.0.2.7", "read:reports"] {
        assert!(line.contains(part), "{part} {line}");
    }
    assert!(
        !line.contains("secret-id") && !line.contains(&key),
        "{line}"
    );
}

#[tokio::test]
async fn shutdown_answers_what_is_in_flight() {
    let mut world = World::start(&format!("{ROUTES}\n[audit]\nfile = 'DIR/audit.jsonl'\n")).await;
    let key = world.key("org_1", &["read:reports"]);
    world.emulator.inject(
        kinde_emulator::Endpoint::Verify,
        kinde_emulator::Fault::latency(Duration::from_millis(300)),
    );
    let bearer = format!("Bearer {key}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-original-method", "GET"),
        ("x-original-uri", "/reports/1"),
    ];
    let asked = tokio::spawn(send(world.checks, request("GET", "/v1/nginx", &headers)));
    world
        .emulator
        .wait_for_calls(kinde_emulator::Endpoint::Verify, 1)
        .await;
    world.stop.take().unwrap().send(()).unwrap();
    assert_eq!(asked.await.unwrap().status, 200);
    world.running.await.unwrap();
    assert!(TcpStream::connect(world.checks).await.is_err());
    let written = std::fs::read_to_string(world.files.path("audit.jsonl")).unwrap();
    assert_eq!(written.lines().count(), 1);
}

#[tokio::test]
async fn unix_socket_replaces_an_unused_one() {
    let emulator = kinde_emulator::KindeEmulator::start().await.unwrap();
    let files = Files::new(&emulator);
    let socket = files.path("checks.sock");
    // A process that was killed leaves its file.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let text = files.config(&emulator, ROUTES).replacen(
        "127.0.0.1:0",
        &format!("unix:{}", socket.display()),
        1,
    );
    let config = Config::parse(&text).unwrap();
    let gateway = Gateway::start(config.clone()).await.unwrap();
    assert!(matches!(
        Gateway::start(config).await,
        Err(Error::Listen(..))
    ));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(gateway.run(async {
        let _ = stopped.await;
    }));
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    let head = "GET /v1/envoy/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    // A process that was started meanwhile keeps the file that it put in this place.
    std::fs::remove_file(&socket).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    drop(stop);
    running.await.unwrap();
    assert!(socket.exists());
    drop(other);
}

#[tokio::test]
async fn unix_socket_of_a_busy_process_is_not_replaced() {
    let emulator = kinde_emulator::KindeEmulator::start().await.unwrap();
    let files = Files::new(&emulator);
    let socket = files.path("checks.sock");
    let listening = tokio::net::UnixSocket::new_stream().unwrap();
    listening.bind(&socket).unwrap();
    let listener = listening.listen(1).unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = UnixStream::connect(&socket).await {
        waiting.push(stream);
    }
    let inode = || std::fs::metadata(&socket).unwrap().ino();
    let before = inode();
    let text = files.config(&emulator, ROUTES).replacen(
        "127.0.0.1:0",
        &format!("unix:{}", socket.display()),
        1,
    );
    let started = Gateway::start(Config::parse(&text).unwrap()).await;
    assert!(matches!(started, Err(Error::Listen(..))));
    assert_eq!(inode(), before);
    drop((listener, waiting));
}

#[tokio::test]
async fn unix_socket_is_removed_at_the_end() {
    let emulator = kinde_emulator::KindeEmulator::start().await.unwrap();
    let files = Files::new(&emulator);
    let socket = files.path("checks.sock");
    let text = files.config(&emulator, ROUTES).replacen(
        "127.0.0.1:0",
        &format!("unix:{}", socket.display()),
        1,
    );
    let gateway = Gateway::start(Config::parse(&text).unwrap()).await.unwrap();
    assert!(socket.exists());
    gateway.run(std::future::ready(())).await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn requests_without_a_route_are_recorded() {
    let world = World::start(&format!(
        "{ROUTES}\n[audit]\nfile = 'DIR/audit.jsonl'\nclient_address_header = 'x-real-ip'\n"
    ))
    .await;
    let file = world.files.path("audit.jsonl");
    for (id, target, code) in [
        ("request-1", "/none/secret-id", "no-route"),
        ("request-2", "/reports/secret-id//", "ambiguous-path"),
        ("request-3", "/health", ""),
        ("request-4", "/none/secret-id", "no-route"),
    ] {
        let headers = [
            ("authorization", "Bearer unread-key"),
            ("x-original-method", "GET"),
            ("x-original-uri", target),
            ("x-real-ip", "192.0.2.7"),
            ("x-request-id", id),
        ];
        send(world.checks, request("GET", "/v1/nginx", &headers)).await;
        if code.is_empty() {
            continue;
        }
        let line = until_line(&file, |line| line.contains(id)).await;
        assert!(line.contains(code) && line.contains("192.0.2.7"), "{line}");
        assert!(
            !line.contains("secret-id") && !line.contains("unread-key"),
            "{line}"
        );
    }
    // Public requests are recorded on request only.
    let written = std::fs::read_to_string(&file).unwrap();
    assert_eq!(written.lines().count(), 3, "{written}");
}

/// The service did not get the request, so the event must not say that the organization was allowed.
#[tokio::test]
async fn unusable_identities_are_recorded_as_500() {
    let world = World::start(&format!("{ROUTES}\n[audit]\nfile = 'DIR/audit.jsonl'\n")).await;
    let mut scopes: Vec<String> = (0..60).map(|n| format!("{n}:{}", "a".repeat(60))).collect();
    scopes.push("read:reports".to_owned());
    let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
    let bearer = format!("Bearer {}", world.key("org_1", &scopes));
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-original-method", "GET"),
        ("x-original-uri", "/reports/1"),
        ("x-request-id", "request-1"),
    ];
    let reply = send(world.checks, request("GET", "/v1/nginx", &headers)).await;
    assert_eq!(reply.status, 500, "{reply:?}");
    let file = world.files.path("audit.jsonl");
    let line = until_line(&file, |line| line.contains("request-1")).await;
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["http_response"]["code"], 500, "{line}");
    assert_eq!(event["status"], "Failure", "{line}");
    assert!(line.contains("org_1"), "{line}");
}

#[tokio::test]
async fn public_requests_are_recorded_on_request() {
    let world = World::start(&format!(
        "{ROUTES}\n[audit]\nfile = 'DIR/audit.jsonl'\npublic_requests = true\n"
    ))
    .await;
    let headers = [
        ("authorization", "Bearer unread-key"),
        ("x-original-method", "GET"),
        ("x-original-uri", "/health?q=1"),
        ("x-request-id", "request-1"),
    ];
    let reply = send(world.checks, request("GET", "/v1/nginx", &headers)).await;
    assert_eq!(reply.status, 200);
    let line = until_line(&world.files.path("audit.jsonl"), |line| {
        line.contains("request-1")
    })
    .await;
    assert!(
        line.contains("GET /health") && line.contains("anonymous"),
        "{line}"
    );
    assert!(
        !line.contains("unread-key") && !line.contains("q=1"),
        "{line}"
    );
    assert_eq!(world.emulator.calls().verify.total, 0);
}

#[tokio::test]
async fn fault_122_slow_bodies() {
    let bounds = Bounds {
        first_request: Duration::from_secs(30),
        head: Duration::from_secs(30),
        ..BOUNDS
    };
    let world = World::with_bounds(ROUTES, bounds).await;
    let mut stream = TcpStream::connect(world.admin).await.unwrap();
    let head = format!(
        "POST /v1/block HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_TOKEN}\r\nconnection: close\r\n\
         content-length: 20\r\n\r\n{{\"org_code\":"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let reply = rest_of(stream).await;
    assert!(reply.starts_with("HTTP/1.1 408"), "{reply}");

    // A message of gRPC that does not end.
    let stream = TcpStream::connect(world.checks).await.unwrap();
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let target = format!(
        "http://{}/envoy.service.auth.v3.Authorization/Check",
        world.checks
    );
    let body = StreamBody::new(futures_util::stream::pending::<
        Result<Frame<Bytes>, Infallible>,
    >());
    let reply = sender
        .send_request(request("POST", &target, &[]).map(|_| body))
        .await
        .unwrap();
    // A denial, not a failure of the call.
    let body = reply.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(status_of(&world, "/health", "unread-key").await, 200);
}

#[tokio::test]
async fn fault_122_unused_connections() {
    let world = World::with_bounds(ROUTES, BOUNDS).await;
    for address in [world.checks, world.admin] {
        let stream = TcpStream::connect(address).await.unwrap();
        let handshake =
            http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        let target = format!("http://{address}/livez");
        let reply = async {
            let reply = sender
                .send_request(request("GET", &target, &[]))
                .await
                .unwrap();
            reply.into_body().collect().await.unwrap();
            // Not dropped, which would close the connection.
            sender
        };
        // It answers pings, and has no further request.
        let ended = tokio::time::timeout(Duration::from_secs(30), async {
            tokio::join!(connection, reply)
        });
        ended
            .await
            .expect("the gateway closes the connection")
            .0
            .unwrap();
    }
}

#[tokio::test]
async fn fault_124_audit_disk_is_full() {
    let mut world = World::start(&format!("{ROUTES}\n[audit]\nfile = '/dev/full'\n")).await;
    let key = world.key("org_1", &["read:reports"]);
    for _ in 0..20 {
        assert_eq!(status_of(&world, "/reports/1", &key).await, 200);
        assert_eq!(status_of(&world, "/reports/1", "never-seen-key").await, 401);
    }
    // What is lost is known.
    let bearer = format!("Bearer {ADMIN_TOKEN}");
    let metrics = send(
        world.admin,
        request("GET", "/metrics", &[("authorization", &bearer)]),
    )
    .await;
    assert!(
        metrics.text().contains("orgkey_audit_events_total"),
        "{}",
        metrics.text()
    );
    world.stop.take().unwrap().send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(60), world.running)
        .await
        .unwrap()
        .unwrap();
}
