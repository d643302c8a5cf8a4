//! The server is absent, hangs, ends or is replaced, or a node is cut off.

use std::time::Duration;

use tower_orgkey::auth::ApiKeyLayerBuilder;
use tower_orgkey::{NotSpread, OrgCode};

use super::{OK, UNAUTHORIZED, nodes_with, nodes_with_proxy};
use crate::proxy::{Fault, FaultProxy};
use crate::redis_server::RedisServer;
use crate::support::{Issuer, KEY, Node, OTHER, key_id, nodes, until};

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
    until("the update is applied", || {
        node.fleet.status().position == 1
    })
    .await;
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

/// Kills the server again and again, while updates are sent.
#[tokio::test]
async fn fault_86_a_kill_loses_no_acknowledged_update() {
    let (mut server, issuer) = (RedisServer::start(), Issuer::default());
    let ([first, second], mut proxy) = nodes_with_proxy(&server, &issuer).await;
    let logged = |server: &RedisServer| -> u64 {
        let logs = server.keys("*:log");
        logs.iter()
            .map(|log| server.command(&["XLEN", log]).parse::<u64>().unwrap())
            .sum()
    };
    let (mut kills, mut acknowledged) = (0, 0);
    for n in 0..6 {
        let key = format!("k_live_kill_{n:04}");
        assert_eq!(first.get(&key).await, OK);
        assert_eq!(second.get(&key).await, OK);
        issuer.revoke(&key);
        let spread = first.auth.handle().spread().expected_nodes(2);
        let before = logged(&server);
        let is_killed = n % 2 == 1;
        if is_killed {
            // The second node reads nothing, and acknowledges nothing.
            proxy.inject(Fault::Silence).await;
        }
        let reach = tokio::spawn(spread.invalidate_key_id(&key_id(&key)));
        if is_killed {
            until("the update is appended", || logged(&server) > before).await;
            assert!(
                !reach.is_finished(),
                "acknowledged by a node that is silent"
            );
            server.kill();
            kills += 1;
            server.restart();
            proxy.heal();
        }
        let reach = reach.await.unwrap();
        if reach.is_ok_and(|reach| reach.is_complete()) {
            acknowledged += 1;
            assert_eq!(second.get(&key).await, UNAUTHORIZED, "acknowledged");
        }
        // Without an acknowledgement, it is in force here, and sent again.
        assert_eq!(first.get(&key).await, UNAUTHORIZED);
        until("both nodes are back", || {
            first.fleet.status().is_followed() && second.fleet.status().is_followed()
        })
        .await;
        until("the update is sent", || first.fleet.status().unsent == 0).await;
    }
    assert_eq!(kills, 3);
    assert!(acknowledged >= 3, "{acknowledged}");
    for n in 0..6 {
        let key = format!("k_live_kill_{n:04}");
        let mut is_rejected = false;
        for _ in 0..100 {
            is_rejected = second.get(&key).await == UNAUTHORIZED;
            if is_rejected {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert!(is_rejected, "{key} was not invalidated on the second node");
    }
}

#[tokio::test]
async fn fault_88_paused_writes_are_not_acknowledged() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let [first, second] = nodes(&server, &issuer).await;
    for node in [&first, &second] {
        assert_eq!(node.get(KEY).await, OK);
    }
    issuer.revoke(KEY);
    assert_eq!(server.command(&["CLIENT", "PAUSE", "5000", "WRITE"]), "OK");
    let spread = first.auth.handle().spread();
    let reach = spread.invalidate_key_id(&key_id(KEY)).await;
    assert_eq!(reach.unwrap_err(), NotSpread::Unavailable);
    assert_eq!(first.get(KEY).await, UNAUTHORIZED);
    assert_eq!(server.command(&["CLIENT", "UNPAUSE"]), "OK");
    let second = second.followed().await;
    until("the update is applied", || {
        second.fleet.status().position >= 1
    })
    .await;
    assert_eq!(second.get(KEY).await, UNAUTHORIZED);
}

#[tokio::test]
async fn fault_91_closed_connections_lose_no_update() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let [first, second] = nodes(&server, &issuer).await;
    let mut closed = 0;
    for n in 1..=20 {
        first.auth.handle().invalidate_key_id(&key_id(KEY));
        if n % 5 == 0 {
            let reply = server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            closed += reply.parse::<u32>().unwrap();
        }
    }
    assert!(closed > 0);
    until("all updates are sent", || first.fleet.status().unsent == 0).await;
    until("all updates are applied", || {
        let (first, second) = (first.fleet.status(), second.fleet.status());
        first.position >= 20 && first.position == second.position
    })
    .await;
    assert_eq!(second.fleet.status().gaps, 0);
}

#[tokio::test]
async fn fault_99_a_replica_is_not_followed() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let primary = RedisServer::start();
    let [node] = nodes(&server, &issuer).await;
    let port = primary.port.to_string();
    assert_eq!(server.command(&["REPLICAOF", "127.0.0.1", &port]), "OK");
    until("the replica is not followed", || {
        !node.fleet.status().is_followed()
    })
    .await;
    assert_eq!(node.get(KEY).await, OK);
    assert_eq!(server.command(&["REPLICAOF", "NO", "ONE"]), "OK");
    let node = node.followed().await;
    assert!(node.auth.handle().spread().invalidate_all().await.is_ok());
}

#[tokio::test]
async fn fault_102_removed_scripts_are_loaded_again() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let [first, second] = nodes(&server, &issuer).await;
    assert_eq!(server.command(&["SCRIPT", "FLUSH"]), "OK");
    assert_eq!(first.get(KEY).await, OK);
    let reach = first.auth.handle().spread().invalidate_all().await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    // Without permission, each node is a single node.
    assert_eq!(
        server.command(&["ACL", "SETUSER", "default", "-evalsha", "-eval"]),
        "OK"
    );
    until("the server denies a script", || {
        server.command(&["ACL", "LOG"]).contains("eval")
    })
    .await;
    for node in [&first, &second] {
        until("the engine is not followed", || {
            !node.fleet.status().is_followed()
        })
        .await;
        assert_eq!(node.get(KEY).await, OK);
        assert_eq!(node.get(OTHER).await, OK);
    }
}

#[tokio::test]
async fn fault_89_a_node_that_is_cut_off_is_missing() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let ([first, second], mut proxy) = nodes_with_proxy(&server, &issuer).await;
    for node in [&first, &second] {
        assert_eq!(node.get(KEY).await, OK);
    }
    proxy.inject(Fault::Refuse).await;
    assert!(proxy.is_refusing().await);
    until("the node knows", || !second.fleet.status().is_followed()).await;
    issuer.revoke(KEY);
    let spread = first.auth.handle().spread();
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert_eq!(reach.missing, ["second"]);
    // It keeps the bounds of a single node.
    assert_eq!(second.get(KEY).await, OK);
    proxy.heal();
    let second = second.followed().await;
    until("the update is applied", || {
        second.fleet.status().position == 1
    })
    .await;
    assert_eq!(second.get(KEY).await, UNAUTHORIZED);
}

#[tokio::test]
async fn fault_90_a_silent_connection_is_replaced() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let ([first, second], mut proxy) = nodes_with_proxy(&server, &issuer).await;
    proxy.inject(Fault::Silence).await;
    until("the node knows", || !second.fleet.status().is_followed()).await;
    assert!(proxy.injected() > 0);
    assert_eq!(second.get(KEY).await, OK);
    proxy.heal();
    let second = second.followed().await;
    let reach = first.auth.handle().spread().invalidate_all().await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    assert_eq!(second.fleet.status().position, 1);
}

/// Two servers, each with nodes: a split brain.
#[tokio::test]
async fn fault_98_a_split_brain_is_reported() {
    let (server, other, issuer) = (
        RedisServer::start(),
        RedisServer::start(),
        Issuer::default(),
    );
    let ([first, second], mut proxy) = nodes_with_proxy(&server, &issuer).await;
    for node in [&first, &second] {
        assert_eq!(node.get(KEY).await, OK);
    }
    let to = ([127, 0, 0, 1], other.port).into();
    proxy.inject(Fault::Divert(to)).await;
    until("the node follows the other server", || {
        other.keys("*:nodes").len() == 1
    })
    .await;
    let second = second.followed().await;
    issuer.revoke(KEY);
    let spread = first.auth.handle().spread();
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert_eq!(reach.missing, ["second"]);
    // The other side knows that updates may be missing, and verifies the key again within 10 s.
    assert_eq!(second.fleet.status().gaps, 1);
}

/// A node that is cut off serves its keys for the hard TTL if the issuer does not answer it, and does not know of a block.
#[tokio::test]
async fn fault_98_a_late_update_is_not_complete() {
    let (server, other, issuer) = (
        RedisServer::start(),
        RedisServer::start(),
        Issuer::default(),
    );
    let short = |layer: ApiKeyLayerBuilder| layer.soft_ttl(Duration::from_secs(1));
    let ([first, second], mut proxy) = nodes_with(&server, &issuer, short).await;
    let to = ([127, 0, 0, 1], other.port).into();
    proxy.inject(Fault::Divert(to)).await;
    until("the node follows the other server", || {
        other.keys("*:nodes").len() == 1
    })
    .await;
    let spread = first.auth.handle().spread();
    until("two soft TTLs have passed", || {
        first.fleet.status().nodes == ["first"]
    })
    .await;
    let reach = spread.invalidate_all().await.unwrap();
    assert_eq!(reach.missing, ["second"]);
    let reach = spread.block_org(&OrgCode::from_static("org_1")).await;
    assert_eq!(reach.unwrap().missing, ["second"]);
    assert_eq!(first.get(KEY).await, UNAUTHORIZED);
    assert_eq!(second.get(KEY).await, OK);
}

#[tokio::test]
async fn fault_101_a_loading_engine_fails_no_request() {
    let (mut server, issuer) = (RedisServer::start(), Issuer::default());
    let [node] = nodes(&server, &issuer).await;
    assert_eq!(server.command(&["DEBUG", "POPULATE", "20000"]), "OK");
    assert_eq!(server.command(&["SAVE"]), "OK");
    server.kill();
    server.add_arguments(&["--key-load-delay", "200"]);
    server.add_arguments(&["--loading-process-events-interval-bytes", "1024"]);
    server.spawn();
    let mut seen = false;
    until("the engine is loading", || {
        seen |= server.reply(&["PING"]).contains("LOADING");
        seen
    })
    .await;
    until("the node knows", || !node.fleet.status().is_followed()).await;
    assert_eq!(node.get(KEY).await, OK);
    server.wait_until_it_answers();
    let node = node.followed().await;
    assert!(node.auth.handle().spread().invalidate_all().await.is_ok());
}

/// The address stays that of a proxy. Its server has the result, and not the update that the old one acknowledged.
#[tokio::test]
async fn fault_100_a_failover_behind_a_proxy_is_noticed() {
    let (old, new, issuer) = (
        RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]),
        RedisServer::start(),
        Issuer::default(),
    );
    let port = old.port.to_string();
    assert_eq!(new.command(&["REPLICAOF", "127.0.0.1", &port]), "OK");
    let mut proxy = FaultProxy::to(([127, 0, 0, 1], old.port).into());
    let url = format!("redis://{}", proxy.addr());
    let node = Node::start("node", issuer.clone(), |fleet| fleet.redis(&url));
    let node = node.followed().await;
    assert_eq!(node.get(KEY).await, OK);
    until("the replica has the result", || {
        new.keys("*:k:*").len() == 1
    })
    .await;
    assert_eq!(new.command(&["REPLICAOF", "NO", "ONE"]), "OK");
    issuer.revoke(KEY);
    let spread = node.auth.handle().spread();
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    let to = ([127, 0, 0, 1], new.port).into();
    proxy.inject(Fault::Divert(to)).await;
    until("the failover is noticed", || node.fleet.status().gaps == 1).await;
    assert!(proxy.injected() > 0);
    until("the update is sent again", || {
        node.fleet.status().position == 1
    })
    .await;
    let later = Node::start("later", issuer.clone(), |fleet| fleet.redis(&url));
    let later = later.followed().await;
    for node in [&node, &later] {
        assert_eq!(node.get(KEY).await, UNAUTHORIZED);
    }
    assert_eq!(later.fleet.status().fetched, 0);
}
