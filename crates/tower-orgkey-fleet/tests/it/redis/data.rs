//! The server loses or repeats data, or returns other data than was stored.

use tower_orgkey::{NotSpread, OrgCode};

use super::{OK, UNAUTHORIZED};
use crate::engines::key_of;
use crate::redis_server::RedisServer;
use crate::support::{Issuer, KEY, Node, OTHER, key_id, nodes, until};

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

/// All data but a result is lost while the nodes wait for the log.
#[tokio::test]
async fn fault_92_a_flushed_engine_is_noticed() {
    let (server, issuer) = (RedisServer::start(), Issuer::default());
    let [first, second] = nodes(&server, &issuer).await;
    for node in [&first, &second] {
        assert_eq!(node.get(KEY).await, OK);
    }
    until("the result is stored", || server.keys("*:k:*").len() == 1).await;
    let org = OrgCode::from_static("org_2");
    let spread = first.auth.handle().spread();
    assert!(spread.block_org(&org).await.unwrap().is_complete());
    issuer.revoke(KEY);
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    let flush = "local v = redis.call('GET', KEYS[1]) redis.call('FLUSHALL') return redis.call('SET', KEYS[1], v)";
    let result = server.keys("*:k:*")[0].clone();
    assert_eq!(server.command(&["EVAL", flush, "1", &result]), "OK");
    for node in [&first, &second] {
        until("the loss is noticed", || node.fleet.status().gaps == 1).await;
    }
    // The invalidation and the block are written again.
    until("they are applied", || second.fleet.status().position == 2).await;
    assert_eq!(server.keys("*:blocks").len(), 1);
    let later = Node::start("later", issuer.clone(), server.engine());
    let later = later.followed().await;
    for node in [&first, &second, &later] {
        assert_eq!(node.get(KEY).await, UNAUTHORIZED);
    }
    assert_eq!(later.fleet.status().fetched, 0);
}
