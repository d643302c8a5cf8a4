//! One client must not keep others out.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kinde_emulator::{Endpoint, Fault};
use orgkey::gateway::Bounds;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::checks::ROUTES;
use crate::support::{World, request, send};

/// A check over HTTP/1.1 (an origin form) or HTTP/2.
fn check(target: &str, key: &str, client: &str) -> Request<Full<Bytes>> {
    let bearer = format!("Bearer {key}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-original-method", "GET"),
        ("x-original-uri", "/reports/1"),
        ("x-real-ip", client),
    ];
    request("GET", target, &headers)
}

async fn status(world: &World, key: &str, client: &str) -> u16 {
    let reply = send(world.checks, check("/v1/nginx", key, client)).await;
    reply.status.as_u16()
}

/// Returns a connection for checks over HTTP/2.
async fn over_http_2(world: &World) -> http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(world.checks).await.unwrap();
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Starts a gateway with a limit of connections. The proxy tells it the addresses of clients, and the issuer is slow.
async fn with_addresses(connections: usize) -> World {
    let bounds = Bounds {
        connections,
        ..Bounds::default()
    };
    let tables = format!("{ROUTES}[audit]\nclient_address_header = 'x-real-ip'\n");
    let world = World::with_bounds(&tables, bounds).await;
    let slow = Fault::latency(Duration::from_millis(400));
    world.emulator.inject(Endpoint::Verify, slow);
    world
}

#[tokio::test]
async fn fault_199_one_unknown_key_holds_no_more_than_half_of_the_connections() {
    let bounds = Bounds {
        connections: 4,
        ..Bounds::default()
    };
    let world = World::with_bounds(ROUTES, bounds).await;
    let key = world.key("org_1", &["read:reports"]);
    assert_eq!(status(&world, &key, "192.0.2.1").await, 200);
    world
        .emulator
        .inject(Endpoint::Verify, Fault::no_response());
    let mut asked = JoinSet::new();
    for _ in 0..4 {
        let unknown = check("/v1/nginx", "an-unknown-key", "192.0.2.1");
        asked.spawn(send(world.checks, unknown));
    }
    // Two wait for the issuer, and hold a connection each.
    for _ in 0..2 {
        let reply = asked.join_next().await.unwrap().unwrap();
        assert_eq!(reply.status, 503);
        assert!(reply.header("retry-after").is_some());
    }
    assert_eq!(status(&world, &key, "192.0.2.1").await, 200);
    assert_eq!(asked.len(), 2);
    assert!(asked.try_join_next().is_none(), "they wait still");
}

#[tokio::test]
async fn fault_199_a_network_has_a_quarter_of_the_places() {
    let world = with_addresses(8).await;
    let key = world.key("org_1", &["read:reports"]);
    let mut asked = JoinSet::new();
    for n in 0..3 {
        let client = format!("2001:db8:1:2::{n}");
        let unknown = check("/v1/nginx", "an-unknown-key", &client);
        asked.spawn(send(world.checks, unknown));
    }
    for _ in 0..2 {
        assert_eq!(asked.join_next().await.unwrap().unwrap().status, 503);
    }
    // Another network has its own.
    assert_eq!(status(&world, &key, "2001:db8:1:3::1").await, 200);
    assert_eq!(asked.join_next().await.unwrap().unwrap().status, 401);
    // All places are free again.
    assert_eq!(status(&world, "another-key", "2001:db8:1:2::1").await, 401);
}

#[tokio::test]
async fn fault_199_copies_over_http_2_need_places_too() {
    let bounds = Bounds {
        connections: 4,
        ..Bounds::default()
    };
    let world = World::with_bounds(ROUTES, bounds).await;
    let key = world.key("org_1", &["read:reports"]);
    assert_eq!(status(&world, &key, "192.0.2.1").await, 200);
    world
        .emulator
        .inject(Endpoint::Verify, Fault::no_response());
    let sender = over_http_2(&world).await;
    let target = format!("http://{}/v1/nginx", world.checks);
    let ask = |key: &str| {
        let (mut sender, check) = (sender.clone(), check(&target, key, "192.0.2.1"));
        async move { sender.send_request(check).await.unwrap().status() }
    };
    let mut asked = JoinSet::new();
    for _ in 0..4 {
        asked.spawn(ask("an-unknown-key"));
    }
    for _ in 0..2 {
        assert_eq!(asked.join_next().await.unwrap().unwrap(), 503);
    }
    assert_eq!(ask(&key).await, 200);
    assert_eq!(asked.len(), 2);
    assert!(asked.try_join_next().is_none(), "they wait still");
}

#[tokio::test]
async fn fault_199b_the_last_quarter_is_for_other_networks() {
    let world = with_addresses(16).await;
    let key = world.key("org_1", &["read:reports"]);
    let mut asked = JoinSet::new();
    for network in 1..=4 {
        for n in 0..2 {
            let client = format!("2001:db8:1:{network}::{n}");
            let unknown = check("/v1/nginx", "an-unknown-key", &client);
            asked.spawn(send(world.checks, unknown));
        }
    }
    // Six or seven of eight places are taken: the last quarter has only first requests.
    assert_eq!(asked.join_next().await.unwrap().unwrap().status, 503);
    assert_eq!(status(&world, &key, "2001:db8:1:5::1").await, 200);
    let replies = asked.join_all().await;
    let waited = replies.iter().filter(|reply| reply.status == 401);
    assert!([6, 7].contains(&waited.count()));
}

#[tokio::test]
async fn fault_199b_clients_without_an_address_are_of_one_network() {
    let world = with_addresses(8).await;
    let key = world.key("org_1", &["read:reports"]);
    let mut asked = JoinSet::new();
    for client in ["a", "b, 192.0.2.1", "", "192.0.2.1:80", "192.0.2.256"] {
        let unknown = check("/v1/nginx", "an-unknown-key", client);
        asked.spawn(send(world.checks, unknown));
    }
    for _ in 0..4 {
        assert_eq!(asked.join_next().await.unwrap().unwrap().status, 503);
    }
    assert_eq!(status(&world, &key, "192.0.2.5").await, 200);
    assert_eq!(asked.join_next().await.unwrap().unwrap().status, 401);
}

#[tokio::test]
async fn fault_32_a_flood_of_one_client_through_the_gateway() {
    let tables = format!("{ROUTES}[audit]\nclient_address_header = 'x-real-ip'\n");
    let world = World::start(&tables).await;
    let key = world.key("org_1", &["read:reports"]);
    let sender = over_http_2(&world).await;
    let target = format!("http://{}/v1/nginx", world.checks);
    let mut flood = JoinSet::new();
    for n in 0..2_000_u32 {
        // Each from its own address, and all from one network.
        let client = format!("2001:db8:1:2:{n:x}::1");
        let check = check(&target, &format!("unknown-key-{n}"), &client);
        let mut sender = sender.clone();
        flood.spawn(async move { sender.send_request(check).await.unwrap().status() });
    }
    // The budget of invalid keys is used up, and the queue is full.
    while flood.join_next().await.unwrap().unwrap() != 503 {}
    let waited = tokio::time::timeout(
        Duration::from_secs(2),
        status(&world, &key, "2001:db8:1:3::1"),
    );
    assert_eq!(waited.await, Ok(200));
}
