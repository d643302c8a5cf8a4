//! Real servers.

mod both;
mod connection;
mod data;

use http::StatusCode;
use tower_orgkey::auth::ApiKeyLayerBuilder;
use tower_orgkey::{ApiKey, OrgCode};

use crate::engines::{at, key_of};
use crate::proxy::FaultProxy;
use crate::redis_server::RedisServer;
use crate::support::{Issuer, KEY, Node, nodes, until};

const OK: StatusCode = StatusCode::OK;
const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;

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
async fn failed_stores_are_counted() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let rules = tower_orgkey_fleet::ACL_RULES.replace("acme-api", "test");
    let mut command = vec!["ACL", "SETUSER", "orgkey", "on", ">password"];
    command.extend(rules.split_whitespace());
    command.push("-set");
    assert_eq!(server.command(&command), "OK");
    let url = format!("redis://orgkey:password@127.0.0.1:{}", server.port);
    let node = Node::start("node", issuer, move |fleet| fleet.redis(&url));
    let node = node.followed().await;
    assert_eq!(node.get(KEY).await, OK);
    until("it is counted", || node.fleet.status().not_stored == 1).await;
}

/// The commands that the documentation permits are enough.
#[tokio::test]
async fn the_documented_acl_is_enough() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let rules = tower_orgkey_fleet::ACL_RULES.replace("acme-api", "test");
    let mut command = vec!["ACL", "SETUSER", "orgkey", "on", ">password"];
    command.extend(rules.split_whitespace());
    assert_eq!(server.command(&command), "OK");
    let url = format!("redis://orgkey:password@127.0.0.1:{}", server.port);
    let start = |name| Node::start(name, issuer.clone(), at(url.clone()));
    let first = start("first").followed().await;
    let second = start("second").followed().await;
    first.until_seen(2).await;
    assert_eq!(first.get(KEY).await, OK);
    until("the result is stored", || server.keys("*:k:*").len() == 1).await;
    assert_eq!(second.get(KEY).await, OK);
    assert_eq!(issuer.calls(), 1);
    let org = OrgCode::from_static("org_1");
    let spread = first.auth.handle().spread();
    assert!(spread.block_org(&org).await.unwrap().is_complete());
    assert!(spread.unblock_org(&org).await.unwrap().is_complete());
    // The log is trimmed with every thousandth update.
    let head = key_of(&server, "head");
    server.command(&["HSET", &head, "s", "999"]);
    for _ in 0..2 {
        spread.invalidate_all().await.unwrap();
    }
    assert_eq!(first.fleet.status().not_stored, 0);
    let log = server.command(&["ACL", "LOG"]);
    assert_eq!(log, "", "commands were denied");
}

/// Starts two nodes; the second one reaches the server through a proxy.
async fn nodes_with_proxy(server: &RedisServer, issuer: &Issuer) -> ([Node; 2], FaultProxy) {
    nodes_with(server, issuer, |layer| layer).await
}

/// The same, with settings of the layer.
async fn nodes_with(
    server: &RedisServer,
    issuer: &Issuer,
    layer: fn(ApiKeyLayerBuilder) -> ApiKeyLayerBuilder,
) -> ([Node; 2], FaultProxy) {
    let proxy = FaultProxy::to(([127, 0, 0, 1], server.port).into());
    let url = format!("redis://{}", proxy.addr());
    let first = Node::start_with("first", issuer.clone(), at(server.url()), layer);
    let first = first.followed().await;
    let second = Node::start_with("second", issuer.clone(), at(url), layer);
    let second = second.followed().await;
    for node in [&first, &second] {
        node.until_seen(2).await;
    }
    ([first, second], proxy)
}

/// Each node of a fleet is replaced, one after the other, while the issuer is down.
#[tokio::test]
async fn fault_40_a_rolling_restart_needs_no_issuer() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let mut old: [Node; 3] = nodes(&server, &issuer).await;
    assert_eq!(old[0].get(KEY).await, OK);
    until("the result is stored", || server.keys("*:k:*").len() == 1).await;
    issuer.set_down(true);
    for (n, node) in old.iter_mut().enumerate() {
        let new = Node::start(&format!("new-{n}"), issuer.clone(), server.engine());
        *node = new.followed().await;
        assert_eq!(node.get(KEY).await, OK);
        assert_eq!(node.fleet.status().fetched, 1);
    }
    assert_eq!(issuer.calls(), 1);
}
