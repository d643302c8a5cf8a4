//! Real servers.

use http::StatusCode;
use tower_orgkey::{ApiKey, NotSpread, OrgCode};

use crate::redis_server::RedisServer;
use crate::support::{Issuer, KEY, Node, OTHER, key_id, until};

const OK: StatusCode = StatusCode::OK;
const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;

/// Starts nodes that follow one server and have seen each other.
async fn nodes<const N: usize>(server: &RedisServer, issuer: &Issuer) -> [Node; N] {
    let mut nodes = Vec::new();
    for n in 0..N {
        let node = Node::start(&format!("node-{n}"), issuer.clone(), server.engine());
        nodes.push(node.followed().await);
    }
    for node in &nodes {
        until("all nodes are seen", || {
            node.fleet.status().nodes.len() == N
        })
        .await;
    }
    let Ok(nodes) = nodes.try_into() else {
        unreachable!()
    };
    nodes
}

#[tokio::test]
async fn results_and_updates_are_shared() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let nodes: [Node; 3] = nodes(&server, &issuer).await;
    for node in &nodes {
        assert_eq!(node.get(KEY).await, OK);
        assert_eq!(node.get(OTHER).await, OK);
        // The result is stored after the first answer.
        until("results are stored", || server.keys("*:k:*").len() == 2).await;
    }
    assert_eq!(issuer.calls(), 2);
    issuer.revoke(KEY);
    let spread = nodes[0].auth.handle().spread().expected_nodes(3);
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    for node in &nodes {
        assert_eq!(node.get(KEY).await, UNAUTHORIZED);
        assert_eq!(node.get(OTHER).await, OK);
    }
    // The first node verifies the other key for nobody else.
    assert_eq!(issuer.calls(), 5);
    let org = OrgCode::from_static("org_1");
    assert!(spread.block_org(&org).await.unwrap().is_complete());
    for node in &nodes {
        assert_eq!(node.get(OTHER).await, UNAUTHORIZED);
    }
    let later = Node::start("later", issuer.clone(), server.engine())
        .followed()
        .await;
    assert_eq!(later.get(OTHER).await, UNAUTHORIZED);
    assert!(spread.unblock_org(&org).await.unwrap().applied.len() >= 3);
}

#[tokio::test]
async fn nothing_readable_is_stored() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let [node] = nodes(&server, &issuer).await;
    assert_eq!(node.get(KEY).await, OK);
    let handle = node.auth.handle();
    let key = ApiKey::parse(KEY).unwrap();
    assert!(handle.spread().block_key(&key).await.unwrap().is_complete());
    until("the result is stored", || server.keys("*:k:*").len() == 1).await;
    let mut stored = String::new();
    for key in server.keys("*") {
        stored += &key;
        stored += &server.command(&["DUMP", &key]);
    }
    assert!(stored.contains("orgkey:{test}:"));
    for secret in [KEY, "org_1", "id_", "node-0"] {
        assert!(!stored.contains(secret), "{secret} is stored");
    }
}

#[tokio::test]
async fn fault_85_an_engine_may_appear_later() {
    let (mut server, issuer) = (RedisServer::reserve(&[]), Issuer::default());
    let node = Node::start("node", issuer.clone(), server.engine());
    assert_eq!(node.get(KEY).await, OK);
    assert_eq!(node.get(KEY).await, OK);
    assert_eq!(issuer.calls(), 1);
    let reach = node.auth.handle().spread().invalidate_all().await;
    assert_eq!(reach.unwrap_err(), NotSpread::Unavailable);
    assert!(!node.fleet.status().is_followed());
    server.restart();
    let node = node.followed().await;
    assert_eq!(node.fleet.status().position, 1);
}

#[tokio::test]
async fn fault_87_a_hung_engine_fails_no_request() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let [first, second] = nodes(&server, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    server.signal("STOP");
    // A hit, and misses that cannot be fetched.
    assert_eq!(first.get(KEY).await, OK);
    for key in [KEY, OTHER] {
        assert_eq!(second.get(key).await, OK);
    }
    assert_eq!(issuer.calls(), 3, "the engine answered");
    until("the loss is noticed", || {
        !first.fleet.status().is_followed()
    })
    .await;
    let reach = first.auth.handle().spread().invalidate_all().await;
    assert_eq!(reach.unwrap_err(), NotSpread::Unavailable);
    server.signal("CONT");
    let first = first.followed().await;
    let second = second.followed().await;
    until("the update is applied", || {
        second.fleet.status().position == 1
    })
    .await;
    let reach = first.auth.handle().spread().invalidate_all().await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
}
