//! A primary and a replica, watched by three sentinels.

use std::time::Duration;

use http::StatusCode;
use tower_orgkey::OrgCode;

use crate::redis_server::RedisServer;
use crate::support::{Issuer, KEY, Node, OTHER, key_id, until};

const OK: StatusCode = StatusCode::OK;
const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;

struct Engine {
    primary: RedisServer,
    replica: RedisServer,
    sentinels: [RedisServer; 3],
}

impl Engine {
    /// Starts the servers, and waits until the sentinels are able to promote the replica.
    fn start() -> Self {
        let primary = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]);
        let of = format!("127.0.0.1 {}", primary.port);
        let replica = RedisServer::start_with(&["--replicaof", &of]);
        let sentinels = [(); 3].map(|()| RedisServer::start_sentinel(&primary, 2));
        RedisServer::wait_until_promotable(&replica, &sentinels);
        Self {
            primary,
            replica,
            sentinels,
        }
    }

    async fn node(&self, name: &str, issuer: &Issuer) -> Node {
        let sentinels = self.sentinels.each_ref().map(RedisServer::url);
        let node = Node::start(name, issuer.clone(), |fleet| {
            let sentinels = sentinels.iter().map(String::as_str);
            fleet.redis_with_sentinels("redis://primary", sentinels)
        });
        node.followed().await
    }
}

#[tokio::test]
async fn fault_99a_a_replica_is_promoted() {
    let (mut engine, issuer) = (Engine::start(), Issuer::default());
    let first = engine.node("first", &issuer).await;
    let second = engine.node("second", &issuer).await;
    for node in [&first, &second] {
        node.until_seen(2).await;
        assert_eq!(node.get(KEY).await, OK);
        assert_eq!(node.get(OTHER).await, OK);
    }
    until("results are stored", || {
        engine.replica.keys("*:k:*").len() == 2
    })
    .await;
    issuer.revoke(KEY);
    let blocked = OrgCode::from_static("org_2");
    let spread = first.auth.handle().spread();
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    assert!(spread.block_org(&blocked).await.unwrap().is_complete());
    until("the replica has the block", || {
        engine.replica.keys("*:blocks").len() == 1
    })
    .await;

    // The replica has not got the newest updates, one of them the block.
    let names = ["blocks", "log"].map(|name| engine.replica.keys(&format!("*:{name}")));
    let names = names.concat();
    assert_eq!(names.len(), 2);
    let writable = ["CONFIG", "SET", "replica-read-only", "no"];
    assert_eq!(engine.replica.command(&writable), "OK");
    assert_eq!(engine.replica.command(&["DEL", &names[0], &names[1]]), "2");
    engine.primary.kill();
    // The promotion closes all connections, perhaps that of this command.
    let is_promoted = || engine.replica.reply(&["ROLE"]).starts_with("master");
    let is_back = |node: &Node| node.fleet.status().gaps == 1 && node.fleet.status().is_followed();
    let served = async {
        while !is_promoted() || !is_back(&first) || !is_back(&second) {
            for node in [&first, &second] {
                assert_eq!(node.get(OTHER).await, OK);
                assert_eq!(node.get(KEY).await, UNAUTHORIZED);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let served = tokio::time::timeout(Duration::from_secs(30), served).await;
    served.expect("the nodes follow the new primary");

    until("the block is written again", || {
        engine.replica.keys("*:blocks").len() == 1
    })
    .await;
    for node in [&first, &second] {
        assert_eq!(node.get(KEY).await, UNAUTHORIZED);
        until("all is sent", || node.fleet.status().unsent == 0).await;
        node.until_seen(2).await;
    }
    issuer.revoke(OTHER);
    let reach = spread.invalidate_key_id(&key_id(OTHER)).await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    assert_eq!(reach.applied.len(), 2);
    for node in [&first, &second] {
        assert_eq!(node.get(OTHER).await, UNAUTHORIZED);
    }
    // One that starts now gets no result from before.
    let later = engine.node("later", &issuer).await;
    for key in [KEY, OTHER] {
        assert_eq!(later.get(key).await, UNAUTHORIZED);
    }
    assert_eq!(later.fleet.status().fetched, 0);
}

/// A sentinel that is silent does not keep a node from the primary.
#[tokio::test]
async fn a_silent_sentinel_is_passed_over() {
    let (engine, issuer) = (Engine::start(), Issuer::default());
    engine.sentinels[0].signal("STOP");
    let node = engine.node("node", &issuer).await;
    assert_eq!(node.get(KEY).await, OK);
    until("the result is stored", || {
        engine.primary.keys("*:k:*").len() == 1
    })
    .await;
}
