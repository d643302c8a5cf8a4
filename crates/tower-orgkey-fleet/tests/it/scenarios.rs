//! Scenarios that run with each kind of engine.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use tokio::time::Instant;
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKeyLayerBuilder, OrgCode};

use crate::engines::Hostile;
use crate::support::{
    Issuer, KEY, Node, OTHER, configured_nodes, key_id, node, nodes, until, wall_clock,
};

const OK: StatusCode = StatusCode::OK;
const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;

pub(crate) async fn a_revocation_reaches_every_node(engine: &impl Hostile) {
    let issuer = Issuer::default();
    let nodes: [Node; 3] = nodes(engine, &issuer).await;
    for node in &nodes {
        assert_eq!(node.get(KEY).await, OK);
        assert_eq!(node.get(OTHER).await, OK);
        // The result is stored after the first answer.
        until("results are stored", || engine.results() == 2).await;
    }
    assert_eq!(issuer.calls(), 2);
    issuer.revoke(KEY);
    let spread = nodes[0].auth.handle().spread().expected_nodes(3);
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    let mut applied = reach.applied;
    applied.sort();
    assert_eq!(applied, ["node-0", "node-1", "node-2"]);
    for node in &nodes {
        assert_eq!(node.get(KEY).await, UNAUTHORIZED);
        assert_eq!(node.get(OTHER).await, OK);
    }
    assert_eq!(issuer.calls(), 5, "the other key is still cached");
    let org = OrgCode::from_static("org_1");
    assert!(spread.block_org(&org).await.unwrap().is_complete());
    for node in &nodes {
        assert_eq!(node.get(OTHER).await, UNAUTHORIZED);
    }
    let later = node("later", engine, &issuer).await;
    assert_eq!(later.get(OTHER).await, UNAUTHORIZED);
    assert!(spread.unblock_org(&org).await.unwrap().applied.len() >= 3);
}

/// The issuer answers, the key is revoked and invalidated, and then the answer arrives at a node that has not read the update.
pub(crate) async fn a_late_valid_answer_is_not_used(engine: &impl Hostile) {
    let issuer = Issuer::default();
    // The answer comes after two reads of the log. A server may hold each for half a second.
    let patient = |layer: ApiKeyLayerBuilder| {
        let layer = layer.attempt_deadline(Duration::from_secs(10));
        let deadline = Duration::from_secs(20);
        layer.caller_deadline(deadline).lookup_deadline(deadline)
    };
    let [slow, other] = configured_nodes(engine, &issuer, patient).await;
    let release = issuer.hold();
    let request = slow.get(KEY);
    tokio::pin!(request);
    tokio::select! {
        _ = &mut request => panic!("the answer was not held"),
        () = until("the call was sent", || issuer.calls() == 1) => {}
    }
    issuer.revoke(KEY);
    engine.withhold_log(true).await;
    other.auth.handle().invalidate_key_id(&key_id(KEY));
    until("the update is sent", || other.fleet.status().unsent == 0).await;
    release.send(true).unwrap();
    assert_eq!(request.await, OK);
    until("the late result is stored", || engine.results() == 1).await;
    engine.withhold_log(false).await;
    for node in [&other, &slow] {
        until("the update is read", || node.fleet.status().position == 1).await;
        assert_eq!(node.get(KEY).await, UNAUTHORIZED);
    }
    // Each has called the issuer, and the slow node twice.
    assert_eq!(issuer.calls(), 3);
}

/// The engine has an update that the node has not applied. Returns how long a request took.
pub(crate) async fn a_node_that_is_behind_asks_the_issuer(engine: &impl Hostile) -> Duration {
    let issuer = Issuer::default();
    let [first, second] = nodes(engine, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    until("the result is stored", || engine.results() == 1).await;
    engine.withhold_log(true).await;
    first.auth.handle().invalidate_key_id(&key_id(OTHER));
    until("the update is sent", || first.fleet.status().unsent == 0).await;
    assert!(second.fleet.status().is_followed());
    let asked = Instant::now();
    assert_eq!(second.get(KEY).await, OK);
    let took = asked.elapsed();
    assert_eq!((issuer.calls(), second.fleet.status().fetched), (2, 0));
    took
}

pub(crate) async fn changed_results_are_not_used(engine: &impl Hostile) {
    let issuer = Issuer::default();
    let [first, second] = nodes(engine, &issuer).await;
    for (key, stored) in [(KEY, 1), (OTHER, 2)] {
        assert_eq!(first.get(key).await, OK);
        until("the result is stored", || engine.results() == stored).await;
    }
    engine.swap_results();
    assert_eq!(second.get(KEY).await, OK);
    assert_eq!((second.fleet.status().rejected, issuer.calls()), (1, 3));
    engine.change_results();
    assert_eq!(second.get(OTHER).await, OK);
    assert_eq!((second.fleet.status().rejected, issuer.calls()), (2, 4));
    assert_eq!(second.fleet.status().fetched, 0);
}

/// Repeats a block and its end, while another block is in force.
pub(crate) async fn repeated_updates_lift_nothing(engine: &impl Hostile) {
    let issuer = Issuer::default();
    let [first, second] = nodes(engine, &issuer).await;
    let org = OrgCode::from_static("org_1");
    let spread = first.auth.handle().spread();
    assert!(spread.block_org(&org).await.unwrap().is_complete());
    assert!(spread.unblock_org(&org).await.unwrap().is_complete());
    assert_eq!(second.get(KEY).await, OK);
    assert!(spread.block_org(&org).await.unwrap().is_complete());
    // A node that has not read these updates does not know that they are repeated.
    engine.withhold_log(true).await;
    let later = node("later", engine, &issuer).await;
    engine.withhold_log(false).await;
    engine.repeat_updates(2);
    for node in [&second, &later] {
        until("all is applied", || node.fleet.status().position == 5).await;
        assert_eq!(node.get(KEY).await, UNAUTHORIZED);
    }
    // The first block, which has ended, is not in force again either.
    assert!(spread.unblock_org(&org).await.unwrap().is_complete());
    for node in [&second, &later] {
        assert_eq!(node.get(KEY).await, OK);
        assert_eq!(node.fleet.status().gaps, 0);
    }
}

pub(crate) async fn repeated_updates_apply_once(engine: &impl Hostile) {
    let issuer = Issuer::default();
    let [first, second] = nodes(engine, &issuer).await;
    let spread = first.auth.handle().spread();
    assert!(spread.invalidate_all().await.unwrap().is_complete());
    assert_eq!(second.get(KEY).await, OK);
    let calls = issuer.calls();
    engine.repeat_updates(1);
    until("it is read", || second.fleet.status().position == 2).await;
    assert_eq!(second.get(KEY).await, OK);
    assert_eq!((issuer.calls(), second.fleet.status().gaps), (calls, 0));
}

pub(crate) async fn withheld_updates_do_not_count(engine: &impl Hostile) {
    let issuer = Issuer::default();
    let [first, second] = nodes(engine, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    assert_eq!(second.get(KEY).await, OK);
    engine.withhold_log(true).await;
    issuer.revoke(KEY);
    let spread = first.auth.handle().spread();
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert_eq!(reach.missing, ["node-1"]);
    // It shows in the head, and then cached keys are verified again within 10 s.
    until("the gap is noticed", || second.fleet.status().gaps == 1).await;
    second.clock.jump(Duration::from_secs(11));
    second.until_status(KEY, UNAUTHORIZED).await;
}

/// Starts a node whose wall clock is ahead by so many seconds, or behind.
async fn node_ahead(name: &str, seconds: i64, engine: &impl Hostile, issuer: &Issuer) -> Node {
    let wall = wall_clock();
    let by = Duration::from_secs(seconds.unsigned_abs());
    let wrong = move || {
        if seconds < 0 {
            wall() - by
        } else {
            wall() + by
        }
    };
    let set = |fleet| engine.set(fleet).wall_clock(wrong);
    Node::start(name, issuer.clone(), set).followed().await
}

/// Stores a result that is so many seconds old, by a node that leaves.
async fn store_old_result(key: &str, seconds: i64, engine: &impl Hostile, issuer: &Issuer) {
    let node = node_ahead("old", -seconds, engine, issuer).await;
    assert_eq!(node.get(key).await, OK);
    until("the result is stored", || engine.results() == 1).await;
    node.stop();
    node.fleet.leave().await;
}

pub(crate) async fn a_wrong_clock_shares_nothing(engine: &impl Hostile) {
    let issuer = Issuer::default();
    // It would look fresh to the slow node.
    store_old_result(OTHER, 120, engine, &issuer).await;
    let others: [Node; 2] = nodes(engine, &issuer).await;
    for (name, seconds) in [("slow", -90), ("late", -3_600), ("early", 3_600)] {
        let node = node_ahead(name, seconds, engine, &issuer).await;
        until("the difference is noticed", || {
            node.fleet.status().clock_differs
        })
        .await;
        assert_eq!(others[0].get(KEY).await, OK);
        let calls = issuer.calls();
        for key in [KEY, OTHER] {
            assert_eq!(node.get(key).await, OK);
        }
        assert_eq!(issuer.calls(), calls + 2);
        assert_eq!(node.fleet.status().fetched, 0);
        // Updates are applied all the same, before they are acknowledged.
        let key = format!("k_live_000000{name}");
        for node in [&node, &others[0]] {
            assert_eq!(node.get(&key).await, OK);
        }
        issuer.revoke(&key);
        for (from, to) in [(&node, &others[0]), (&others[0], &node)] {
            let spread = from.auth.handle().spread();
            let reach = spread.invalidate_key_id(&key_id(&key)).await.unwrap();
            for other in [&others[0], &others[1], &node] {
                let is_named = reach.applied.contains(&other.fleet.status().nodes[0]);
                assert!(is_named, "{name}: {reach:?}");
            }
            assert_eq!(to.get(&key).await, UNAUTHORIZED, "{name}");
        }
        node.stop();
        node.fleet.leave().await;
    }
}

/// A time before the machine booted cannot be expressed, so an older result is not used: nothing looks younger than it is.
pub(crate) async fn a_new_machine_uses_no_older_result(engine: &impl Hostile) {
    let issuer = Issuer::default();
    store_old_result(KEY, 30, engine, &issuer).await;
    for (uptime, calls) in [(3_600, 1), (20, 2)] {
        let clock = TestClock::new();
        clock.jump(Duration::from_secs(uptime));
        let name = format!("up-{uptime}");
        let node = Node::start_with(
            &name,
            issuer.clone(),
            |fleet| engine.set(fleet),
            |layer| layer.test_clock(clock),
        );
        let node = node.followed().await;
        assert_eq!(node.get(KEY).await, OK);
        assert_eq!(issuer.calls(), calls, "{name}");
        node.stop();
        node.fleet.leave().await;
    }
}

/// Requests this many invalid keys.
pub(crate) async fn flood(node: &Node, requests: usize) {
    let keys: Vec<String> = (0..requests).map(|n| format!("junk_{n:08}")).collect();
    for keys in keys.chunks(20) {
        join_all(keys.iter().map(|key| node.get(key))).await;
    }
}

pub(crate) async fn a_cold_fleet_serves_known_keys(engine: &impl Hostile) {
    let issuer = Issuer::default();
    let first = node("first", engine, &issuer).await;
    let keys: Vec<String> = (0..100).map(|n| format!("k_live_cold_{n:04}")).collect();
    for key in &keys {
        assert_eq!(first.get(key).await, OK);
    }
    assert_eq!(issuer.calls(), keys.len());
    until("the results are stored", || engine.results() == keys.len()).await;
    issuer.set_down(true);
    drop(first);
    // Every node is new, and the issuer answers none.
    for n in 0..8 {
        let node = node(&format!("cold-{n}"), engine, &issuer).await;
        for key in &keys {
            node.until_status(key, OK).await;
        }
        assert_eq!(node.fleet.status().fetched, 100);
    }
    // Invalid keys stop the fetches of others for a second at most.
    let late = node("late", engine, &issuer).await;
    flood(&late, 3_000).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    late.until_status(&keys[0], OK).await;
}
