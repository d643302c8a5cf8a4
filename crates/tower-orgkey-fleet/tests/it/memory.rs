//! An engine in memory, on the paused clock.

use std::time::Duration;

use http::StatusCode;
use tower_orgkey::auth::ApiKeyLayerBuilder;
use tower_orgkey::verify::Organizations;
use tower_orgkey::{
    ApiKey, ApiKeyLayer, NotSpread, OrgCode, PrefixVerifier, Verification, Verifier, verifier_fn,
};
use tower_orgkey_fleet::{Fleet, MemoryEngine};
use tracing::Level;

use crate::log::Log;
use crate::scenarios;
use crate::support::{Issuer, KEY, Node, OTHER, key_id, node, nodes, secret, until};

const OK: StatusCode = StatusCode::OK;
const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;

fn start(name: &str, engine: &MemoryEngine, issuer: &Issuer) -> Node {
    Node::start(name, issuer.clone(), |fleet| fleet.memory(engine))
}

#[tokio::test(start_paused = true)]
async fn one_node_verifies_for_all() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let nodes: [Node; 3] = nodes(&engine, &issuer).await;
    for node in &nodes {
        assert_eq!(node.get(KEY).await, OK);
    }
    assert_eq!(issuer.calls(), 1);
    assert_eq!(nodes[1].fleet.status().fetched, 1);
}

#[tokio::test(start_paused = true)]
async fn a_block_reaches_nodes_that_start_later() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    let (key, org) = (ApiKey::parse(KEY).unwrap(), OrgCode::from_static("org_1"));
    let spread = first.auth.handle().spread();
    assert!(spread.block_key(&key).await.unwrap().is_complete());
    assert_eq!(second.get(KEY).await, UNAUTHORIZED);
    engine.trim_log(100);
    let third = node("node-2", &engine, &issuer).await;
    assert_eq!(third.get(KEY).await, UNAUTHORIZED);
    assert_eq!(third.get(OTHER).await, OK);
    assert!(spread.unblock_key(&key).await.unwrap().is_complete());
    assert!(spread.block_org(&org).await.unwrap().is_complete());
    assert_eq!(third.get(OTHER).await, UNAUTHORIZED);
    // Another node may lift it.
    let spread = second.auth.handle().spread();
    assert!(spread.unblock_org(&org).await.unwrap().is_complete());
    for node in [&first, &second, &third] {
        assert_eq!(node.get(KEY).await, OK);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_223_a_node_says_whether_it_has_read_blocks() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let first = node("first", &engine, &issuer).await;
    assert!(first.fleet.status().has_read_blocks);
    let spread = first.auth.handle().spread();
    let reach = spread.block_org(&OrgCode::from_static("org_1")).await;
    assert!(reach.unwrap().is_complete());
    engine.set_available(false);
    let late = start("late", &engine, &issuer);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!late.fleet.status().has_read_blocks);
    assert_eq!(
        late.get(KEY).await,
        OK,
        "the layer works without the engine"
    );
    engine.set_available(true);
    until("the blocks are read", || {
        late.fleet.status().has_read_blocks
    })
    .await;
    assert_eq!(late.get(KEY).await, UNAUTHORIZED);
    // They stay, whatever happens to the engine.
    engine.set_available(false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(late.fleet.status().has_read_blocks);
    assert_eq!(late.get(KEY).await, UNAUTHORIZED);
}

#[tokio::test(start_paused = true)]
async fn a_block_survives_while_a_node_lives() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    let org = OrgCode::from_static("org_1");
    let spread = first.auth.handle().spread();
    assert!(spread.block_org(&org).await.unwrap().is_complete());
    drop(first);
    engine.wipe();
    until("the loss is noticed", || second.fleet.status().gaps == 1).await;
    until("the engine is followed", || {
        second.fleet.status().is_followed()
    })
    .await;
    let third = node("node-2", &engine, &issuer).await;
    assert_eq!(third.get(KEY).await, UNAUTHORIZED);
}

/// A known limit: no node that saw the end of the block is left. Whoever lifted it learns that it is in force again.
#[tokio::test(start_paused = true)]
async fn fault_225_a_restored_block_is_logged() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    let org = OrgCode::from_static("org_1");
    let spread = first.auth.handle().spread();
    assert!(spread.block_org(&org).await.unwrap().is_complete());
    second.stop();
    tokio::task::yield_now().await;
    assert_eq!(spread.unblock_org(&org).await.unwrap().missing, ["node-1"]);
    first.fleet.leave().await;
    drop(first);
    engine.trim_log(100);
    let third = node("node-2", &engine, &issuer).await;
    assert_eq!(third.get(KEY).await, OK);

    let (log, _guard) = Log::capture_up_to(Level::WARN);
    let _second = second.restarted().followed().await;
    third.until_status(KEY, UNAUTHORIZED).await;
    let lines = log.lines("WARN", "fleet blocks restored");
    let counts = "secrets=0 key_ids=0 organizations=1";
    assert!(lines.len() == 1 && lines[0].contains(counts), "{lines:?}");
    let spread = third.auth.handle().spread();
    assert!(spread.unblock_org(&org).await.unwrap().is_complete());
    third.until_status(KEY, OK).await;

    // A block that waits to be sent is not one that the engine lost.
    engine.set_available(false);
    let other = OrgCode::from_static("org_2");
    let reach = third.auth.handle().spread().block_org(&other).await;
    assert_eq!(reach.unwrap_err(), NotSpread::Unavailable);
    engine.set_available(true);
    until("it is sent", || third.fleet.status().unsent == 0).await;
    assert_eq!(log.lines("WARN", "fleet blocks restored").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_missing_node_is_named() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    second.stop();
    let spread = first.auth.handle().spread();
    let reach = spread.clone().invalidate_all().await.unwrap();
    assert_eq!(
        (reach.applied, reach.missing),
        (vec!["node-0".to_owned()], vec!["node-1".to_owned()])
    );
    let reach = spread.expected_nodes(5).invalidate_all().await.unwrap();
    assert_eq!(reach.hidden, 3);
    // After the hard TTL it serves nothing from before, and must have ended.
    tokio::time::sleep(Duration::from_secs(920)).await;
    let spread = first.auth.handle().spread();
    let reach = spread.invalidate_all().await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    let org = OrgCode::from_static("org_2");
    let reach = spread.block_org(&org).await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
}

/// It serves nothing from before, but does not know of the block.
#[tokio::test(start_paused = true)]
async fn a_node_is_missed_for_longer_with_a_block() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let start = |name| {
        let short = |layer: ApiKeyLayerBuilder| layer.hard_ttl(Duration::from_secs(120));
        Node::start_with(name, issuer.clone(), |fleet| fleet.memory(&engine), short)
    };
    let (first, second) = (start("node-0"), start("node-1"));
    first.until_seen(2).await;
    second.stop();
    tokio::time::sleep(Duration::from_secs(140)).await;
    let spread = first.auth.handle().spread();
    let reach = spread.invalidate_all().await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    let org = OrgCode::from_static("org_2");
    let reach = spread.block_org(&org).await.unwrap();
    assert_eq!(reach.missing, ["node-1"]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let reach = spread.block_org(&org).await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
}

/// Neither the engine nor the issuer answers the other node, which serves what it has verified.
#[tokio::test(start_paused = true)]
async fn fault_224_a_node_that_serves_old_results_is_named() {
    let (engine, issuer, other) = (MemoryEngine::new(), Issuer::default(), Issuer::default());
    let first = node("node-0", &engine, &issuer).await;
    let second = node("node-1", &engine, &other).await;
    assert_eq!(second.get(KEY).await, OK);
    first.until_seen(2).await;
    second.stop();
    other.set_down(true);
    issuer.revoke(KEY);
    let spread = first.auth.handle().spread();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(210)).await;
        assert_eq!(second.get(KEY).await, OK);
        let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
        assert_eq!(reach.missing, ["node-1"]);
    }
    tokio::time::sleep(Duration::from_secs(75)).await;
    assert_eq!(second.get(KEY).await, StatusCode::SERVICE_UNAVAILABLE);
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
}

#[tokio::test(start_paused = true)]
async fn a_restarted_node_is_counted_once() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    second.stop();
    drop(second);
    let _second = node("node-1", &engine, &issuer).await;
    let spread = first.auth.handle().spread().expected_nodes(3);
    let reach = spread.block_org(&OrgCode::from_static("org_2")).await;
    let reach = reach.unwrap();
    assert_eq!(reach.applied, ["node-0", "node-1"]);
    assert_eq!(
        (reach.missing, reach.hidden),
        (vec!["node-1".to_owned()], 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_is_not_missed() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    second.stop();
    second.fleet.leave().await;
    let spread = first.auth.handle().spread();
    let reach = spread.invalidate_all().await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    let org = OrgCode::from_static("org_2");
    assert!(spread.block_org(&org).await.unwrap().is_complete());
}

/// A node is restarted before it has sent a block, whose caller was told that it is sent later.
#[tokio::test(start_paused = true)]
async fn fault_221_a_node_that_leaves_sends_its_updates() {
    // With a task that waits to connect again, and without one.
    for is_running in [true, false] {
        let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
        let first = node("first", &engine, &issuer).await;
        engine.set_available(false);
        let handle = first.auth.handle();
        let reach = handle.spread().block_org(&OrgCode::from_static("org_1"));
        assert_eq!(reach.await.unwrap_err(), NotSpread::Unavailable);
        // More than are sent at once.
        for n in 0..250 {
            handle.invalidate_key_id(&key_id(&n.to_string()));
        }
        first.fleet.leave().await;
        assert_eq!(first.fleet.status().unsent, 251, "they still wait");
        if !is_running {
            first.stop();
            tokio::task::yield_now().await;
        }
        engine.set_available(true);
        first.fleet.leave().await;
        assert_eq!(first.fleet.status().unsent, 0);
        drop(first);
        let later = node("later", &engine, &issuer).await;
        assert_eq!(later.get(KEY).await, UNAUTHORIZED);
        assert_eq!(later.fleet.status().nodes, ["later"]);
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_engine_a_node_is_a_single_node() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    engine.set_available(false);
    let first = start("first", &engine, &issuer);
    assert_eq!(first.get(KEY).await, OK);
    assert_eq!(first.get(KEY).await, OK);
    assert_eq!(issuer.calls(), 1);
    issuer.revoke(KEY);
    let spread = first.auth.handle().spread();
    let reach = spread.invalidate_key_id(&key_id(KEY)).await;
    assert_eq!(reach.unwrap_err(), NotSpread::Unavailable);
    assert_eq!(first.get(KEY).await, UNAUTHORIZED);
    assert!(!first.fleet.status().is_followed());
    // The update is sent when the engine appears.
    engine.set_available(true);
    until("the engine is followed", || {
        first.fleet.status().is_followed()
    })
    .await;
    assert_eq!(first.fleet.status().position, 1);
    assert_eq!(first.fleet.status().unsent, 0);
}

#[tokio::test(start_paused = true)]
async fn refreshes_are_shared() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let nodes: [Node; 4] = nodes(&engine, &issuer).await;
    for _ in 0..600 {
        for node in &nodes {
            assert_eq!(node.get(KEY).await, OK);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // One node alone makes a call per 51 to 60 s.
    assert!(
        (10..=13).contains(&issuer.calls()),
        "{} calls",
        issuer.calls()
    );
}

#[tokio::test(start_paused = true)]
async fn an_invalid_answer_reaches_other_nodes() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(second.get(KEY).await, OK);
    issuer.revoke(KEY);
    // Due for a refresh on both, but only the first one gets requests.
    tokio::time::sleep(Duration::from_secs(31)).await;
    first.get(KEY).await;
    until("the first node knows", || {
        first.fleet.status().position == 1
    })
    .await;
    until("the second node knows", || {
        second.fleet.status().position == 1
    })
    .await;
    assert_eq!(second.get(KEY).await, UNAUTHORIZED);
}

/// Nodes without an identity would share the results of different issuers.
#[test]
fn a_verifier_without_an_identity_joins_no_fleet() {
    let invalid = || verifier_fn(|_| async { Ok(Verification::invalid()) });
    let several = PrefixVerifier::builder()
        .issuer("a", ["a-"], Issuer::default())
        .issuer("b", ["b-"], invalid())
        .organizations(Organizations::Separate)
        .build()
        .unwrap();
    for verifier in [invalid().boxed(), several.boxed()] {
        let fleet = Fleet::builder("fleet")
            .secret(secret(1))
            .memory(&MemoryEngine::new());
        let layer = ApiKeyLayer::builder(verifier).fleet(&fleet.build().unwrap());
        assert_eq!(layer.build().unwrap_err().field(), "fleet");
    }
}

/// Whoever presents invalid keys sends no updates to other nodes.
#[tokio::test(start_paused = true)]
async fn invalid_keys_send_no_updates() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    for n in 0..100 {
        issuer.revoke(&format!("junk_{n:08}"));
        assert_eq!(second.get(&format!("junk_{n:08}")).await, UNAUTHORIZED);
    }
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(first.fleet.status().position, 0);
}

#[tokio::test(start_paused = true)]
async fn fault_92_lost_data_is_verified_again() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    assert_eq!(second.get(KEY).await, OK);
    first.auth.handle().invalidate_key_id(&key_id(OTHER));
    until("the update is applied", || {
        second.fleet.status().position == 1
    })
    .await;
    engine.wipe();
    until("the loss is noticed", || second.fleet.status().gaps == 1).await;
    // The update is sent again, in the new epoch.
    until("the update is applied", || {
        second.fleet.status().position == 1
    })
    .await;
    issuer.revoke(KEY);
    // The key is fresh for half a minute at least, and verified again within 10 s.
    for _ in 0..11 {
        assert_eq!(first.get(OTHER).await, OK);
        second.get(KEY).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(second.get(KEY).await, UNAUTHORIZED);
}

#[tokio::test(start_paused = true)]
async fn fault_100_a_hidden_failover_is_noticed() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    engine.hide_failovers(true);
    let [first, second] = nodes(&engine, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    engine.replicate();
    issuer.revoke(KEY);
    let spread = first.auth.handle().spread();
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    // The replica has the result, and not the update.
    engine.fail_over();
    assert_eq!(engine.results(), 1);
    assert_eq!(second.get(KEY).await, UNAUTHORIZED);
    until("the failover is noticed", || {
        second.fleet.status().gaps == 1
    })
    .await;
    // And perhaps that the key is invalid.
    until("the update is sent again", || {
        second.fleet.status().position >= 1
    })
    .await;
    assert_eq!(second.get(KEY).await, UNAUTHORIZED);
}

#[tokio::test(start_paused = true)]
async fn nodes_divide_the_calls_to_the_issuer() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let start = |name: &str| {
        Node::start_with(
            name,
            issuer.clone(),
            |fleet| fleet.memory(&engine),
            |layer| layer.max_calls_per_second(100),
        )
    };
    let nodes = [start("a"), start("b"), start("c"), start("d")];
    for node in &nodes {
        let rate = || node.auth.handle().upstream().calls_per_second;
        until("a quarter is left", || rate() == Some(25.0)).await;
    }
    engine.set_available(false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    for node in &nodes {
        let rate = node.auth.handle().upstream().calls_per_second;
        assert_eq!(rate, Some(25.0), "the last share");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_28_a_revocation_reaches_every_node() {
    scenarios::a_revocation_reaches_every_node(&MemoryEngine::new()).await;
}

#[tokio::test(start_paused = true)]
async fn fault_103_a_late_valid_answer_is_not_used() {
    scenarios::a_late_valid_answer_is_not_used(&MemoryEngine::new()).await;
}

/// An invalidation by the key cancels the lookup; one by the key's id discards its answer.
#[tokio::test(start_paused = true)]
async fn fault_103b_a_cancelled_lookup_stores_nothing() {
    for by_key in [true, false] {
        let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
        let [slow, _other] = nodes(&engine, &issuer).await;
        let release = issuer.hold();
        let request = slow.get(KEY);
        tokio::pin!(request);
        tokio::select! {
            _ = &mut request => panic!("the answer was not held"),
            () = until("the call was sent", || issuer.calls() == 1) => {}
        }
        issuer.revoke(KEY);
        let handle = slow.auth.handle();
        if by_key {
            handle.invalidate_key(&ApiKey::parse(KEY).unwrap());
        } else {
            handle.invalidate_key_id(&key_id(KEY));
        }
        release.send(true).unwrap();
        assert_eq!(request.await, UNAUTHORIZED);
        assert_eq!(issuer.calls(), 2, "the first answer was discarded");
        assert_eq!(slow.get(OTHER).await, OK);
        until("another result is stored", || engine.results() > 0).await;
        assert_eq!(engine.results(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_104_a_node_that_is_behind_waits_20_ms_and_asks_the_issuer() {
    let waited = scenarios::a_node_that_is_behind_asks_the_issuer(&MemoryEngine::new()).await;
    // The clock advances by whole milliseconds.
    assert!((20..=21).contains(&waited.as_millis()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn fault_105_changed_results_are_not_used() {
    scenarios::changed_results_are_not_used(&MemoryEngine::new()).await;
}

#[tokio::test(start_paused = true)]
async fn fault_106_repeated_updates_lift_nothing() {
    scenarios::repeated_updates_lift_nothing(&MemoryEngine::new()).await;
}

#[tokio::test(start_paused = true)]
async fn fault_106_repeated_updates_apply_once() {
    scenarios::repeated_updates_apply_once(&MemoryEngine::new()).await;
}

#[tokio::test(start_paused = true)]
async fn fault_107_withheld_updates_do_not_count() {
    scenarios::withheld_updates_do_not_count(&MemoryEngine::new()).await;
}

#[tokio::test(start_paused = true)]
async fn fault_108_a_wrong_clock_shares_nothing() {
    scenarios::a_wrong_clock_shares_nothing(&MemoryEngine::new()).await;
}

#[tokio::test(start_paused = true)]
async fn fault_108_a_new_machine_uses_no_older_result() {
    scenarios::a_new_machine_uses_no_older_result(&MemoryEngine::new()).await;
}

#[tokio::test(start_paused = true)]
async fn fault_109_a_cold_fleet_serves_known_keys() {
    scenarios::a_cold_fleet_serves_known_keys(&MemoryEngine::new()).await;
}

/// Only in memory, because a busy machine may take longer than a fetch waits.
#[tokio::test(start_paused = true)]
async fn fault_109_a_flood_keeps_no_known_key_from_sharing() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    until("the result is stored", || engine.results() == 1).await;
    assert_eq!(second.get(KEY).await, OK);
    assert_eq!((issuer.calls(), second.fleet.status().fetched), (1, 1));
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(first.get(KEY).await, OK);
    until("it is refreshed", || issuer.calls() == 2).await;
    scenarios::flood(&second, 3_000).await;
    assert_eq!(second.get(KEY).await, OK);
    until("the refresh is shared", || {
        second.fleet.status().fetched == 2
    })
    .await;
}
