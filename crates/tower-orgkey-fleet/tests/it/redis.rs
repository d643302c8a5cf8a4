//! Real servers.

use http::StatusCode;
use tower_orgkey::{ApiKey, NotSpread, OrgCode};

use crate::proxy::{Fault, FaultProxy};
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
async fn fault_28_a_revocation_reaches_every_node() {
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

/// The name of a key of the fleet.
fn key_of(server: &RedisServer, name: &str) -> String {
    let keys = server.keys(&format!("*:{name}"));
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys[0].clone()
}

/// Kills the server again and again, while updates are sent.
#[tokio::test]
async fn fault_86_a_kill_loses_no_acknowledged_update() {
    let (mut server, issuer) = (RedisServer::start(), Issuer::default());
    let [first, second] = nodes(&server, &issuer).await;
    let mut kills = 0;
    let mut acknowledged = 0;
    for n in 0..6 {
        let key = format!("k_live_kill_{n:04}");
        assert_eq!(first.get(&key).await, OK);
        assert_eq!(second.get(&key).await, OK);
        issuer.revoke(&key);
        let spread = first.auth.handle().spread().expected_nodes(2);
        let reach = tokio::spawn(spread.invalidate_key_id(&key_id(&key)));
        if n % 2 == 1 {
            server.kill();
            kills += 1;
            server.restart();
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
async fn fault_93_a_deleted_log_is_noticed() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let [first, second] = nodes(&server, &issuer).await;
    // While the second node does not read, an update is lost.
    second.stop();
    until("the second node has stopped", || {
        !second.fleet.status().is_followed()
    })
    .await;
    let handle = first.auth.handle();
    assert!(
        !handle
            .spread()
            .invalidate_all()
            .await
            .unwrap()
            .is_complete()
    );
    assert_eq!(server.command(&["DEL", &key_of(&server, "log")]), "1");
    let second = second.restarted();
    until("the loss is noticed", || second.fleet.status().gaps == 1).await;
    assert_eq!(second.fleet.status().position, 1);
}

#[tokio::test]
async fn fault_94_a_trimmed_log_is_noticed() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let [first, second] = nodes(&server, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    second.stop();
    until("the second node has stopped", || {
        !second.fleet.status().is_followed()
    })
    .await;
    issuer.revoke(KEY);
    for _ in 0..3 {
        let spread = first.auth.handle().spread();
        spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    }
    let log = key_of(&server, "log");
    assert_eq!(server.command(&["XTRIM", &log, "MAXLEN", "1"]), "2");
    let second = second.restarted();
    until("the loss is noticed", || second.fleet.status().gaps == 1).await;
    assert_eq!(second.get(KEY).await, UNAUTHORIZED);
    assert_eq!(second.fleet.status().fetched, 0);
}

#[tokio::test]
async fn fault_95_an_evicted_log_is_noticed() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let [first, second] = nodes(&server, &issuer).await;
    for node in [&first, &second] {
        assert_eq!(node.get(KEY).await, OK);
    }
    first.auth.handle().invalidate_key_id(&key_id(OTHER));
    for node in [&first, &second] {
        until("the update is applied", || {
            node.fleet.status().position == 1
        })
        .await;
    }
    let names = [key_of(&server, "head"), key_of(&server, "log")];
    let policy = [
        "CONFIG",
        "SET",
        "maxmemory-policy",
        "allkeys-random",
        "maxmemory",
        "3mb",
    ];
    assert_eq!(server.command(&policy), "OK");
    let mut filled = 0;
    until("the head and the log are evicted", || {
        filled += 1;
        let prefix = format!("filler-{filled}");
        assert_eq!(
            server.command(&["DEBUG", "POPULATE", "50000", &prefix]),
            "OK"
        );
        // Keys that the command added are evicted by the next write.
        server.command(&["SET", "filler", "x"]);
        let left = server.command(&["EXISTS", &names[0], &names[1]]);
        left == "0" || second.fleet.status().gaps > 0
    })
    .await;
    assert_eq!(server.command(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
    for node in [&first, &second] {
        until("the loss is noticed", || node.fleet.status().gaps > 0).await;
    }
    let (first, second) = (first.followed().await, second.followed().await);
    issuer.revoke(KEY);
    let spread = first.auth.handle().spread();
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    assert_eq!(second.get(KEY).await, UNAUTHORIZED);
}

#[tokio::test]
async fn fault_96_an_engine_without_memory_fails_no_request() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let [first, second] = nodes(&server, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    assert_eq!(server.command(&["CONFIG", "SET", "maxmemory", "1"]), "OK");
    assert_eq!(second.get(KEY).await, OK);
    assert_eq!(second.get(OTHER).await, OK);
    assert_eq!(issuer.calls(), 3);
    let reach = first.auth.handle().spread().invalidate_all().await;
    assert_eq!(reach.unwrap_err(), NotSpread::Unavailable);
    assert_eq!(server.command(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
    let first = first.followed().await;
    until("the update is sent", || first.fleet.status().unsent == 0).await;
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
async fn an_unreadable_entry_is_skipped() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let [first, second] = nodes(&server, &issuer).await;
    first.auth.handle().invalidate_all();
    until("the update is applied", || {
        second.fleet.status().position == 1
    })
    .await;
    let log = key_of(&server, "log");
    server.command(&["XADD", &log, "*", "x", "y"]);
    server.command(&[
        "XADD",
        &log,
        "*",
        "e",
        "0123456789abcdef",
        "s",
        "7",
        "p",
        "y",
    ]);
    until("they are counted", || second.fleet.status().rejected >= 1).await;
    let reach = first.auth.handle().spread().invalidate_all().await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
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
    let start = |name: &'static str| {
        let url = url.clone();
        Node::start(name, issuer.clone(), move |fleet| fleet.redis(&url))
    };
    let first = start("first").followed().await;
    let second = start("second").followed().await;
    until("the nodes see each other", || {
        first.fleet.status().nodes.len() == 2
    })
    .await;
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
    let proxy = FaultProxy::to(([127, 0, 0, 1], server.port).into());
    let url = format!("redis://{}", proxy.addr());
    let first = Node::start("first", issuer.clone(), server.engine())
        .followed()
        .await;
    let second = Node::start("second", issuer.clone(), move |fleet| fleet.redis(&url));
    let second = second.followed().await;
    for node in [&first, &second] {
        until("the nodes see each other", || {
            node.fleet.status().nodes.len() == 2
        })
        .await;
    }
    ([first, second], proxy)
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

/// A copy from before an acknowledged update takes over, as after a failover to a replica that lagged, or a restore from a
/// backup.
#[tokio::test]
async fn fault_97_a_lost_update_is_sent_again() {
    let (mut server, issuer) = (RedisServer::start(), Issuer::default());
    let [first, second] = nodes(&server, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    until("the result is stored", || server.keys("*:k:*").len() == 1).await;
    assert_eq!(server.command(&["SAVE"]), "OK");
    issuer.revoke(KEY);
    let org = OrgCode::from_static("org_2");
    let spread = first.auth.handle().spread();
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    assert!(spread.block_org(&org).await.unwrap().is_complete());
    server.kill();
    server.restart();
    assert_eq!(server.keys("*:k:*").len(), 1, "the old result is back");
    // The block is written by the other node.
    drop(first);
    let second = second.followed().await;
    assert_eq!(second.get(KEY).await, UNAUTHORIZED);
    assert_eq!(second.fleet.status().fetched, 0);
    until("the block is written", || {
        server.keys("*:blocks").len() == 1
    })
    .await;
    let third = Node::start("third", issuer.clone(), server.engine())
        .followed()
        .await;
    assert_eq!(third.get(KEY).await, UNAUTHORIZED);
    assert_eq!(third.fleet.status().fetched, 0);
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
