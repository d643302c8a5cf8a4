//! An engine in memory, on the paused clock.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use tower_orgkey::test_util::TestClock;
use tower_orgkey::verify::Organizations;
use tower_orgkey::{
    ApiKey, ApiKeyLayer, KeyId, NotSpread, OrgCode, PrefixVerifier, Verification, Verifier,
    verifier_fn,
};
use tower_orgkey_fleet::{Fleet, MemoryEngine};

use crate::support::{Issuer, KEY, Node, OTHER, key_id, secret, until};

const OK: StatusCode = StatusCode::OK;
const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;

/// Starts nodes that follow one engine. Their wall clocks are the paused clock.
pub(crate) async fn nodes<const N: usize>(engine: &MemoryEngine, issuer: &Issuer) -> [Node; N] {
    let mut nodes = Vec::new();
    for n in 0..N {
        nodes.push(node(&format!("node-{n}"), engine, issuer).await);
    }
    // Each has seen the records of the others.
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

pub(crate) async fn node(name: &str, engine: &MemoryEngine, issuer: &Issuer) -> Node {
    start(name, engine, issuer).followed().await
}

fn start(name: &str, engine: &MemoryEngine, issuer: &Issuer) -> Node {
    let wall = wall_clock();
    let engine = engine.clone();
    Node::start_with(
        name,
        issuer.clone(),
        |fleet| fleet.memory(&engine).wall_clock(wall),
        |layer| layer.test_clock(clock()),
    )
}

/// The clock of a machine that runs for a day.
pub(crate) fn clock() -> TestClock {
    let clock = TestClock::new();
    clock.jump(Duration::from_secs(86_400));
    clock
}

/// A wall clock that follows tokio's.
pub(crate) fn wall_clock() -> impl Fn() -> SystemTime + Clone + Send + Sync + 'static {
    use std::sync::OnceLock;

    thread_local! {
        static ORIGIN: OnceLock<(SystemTime, tokio::time::Instant)> = const { OnceLock::new() };
    }
    let (wall, origin) = ORIGIN
        .with(|origin| *origin.get_or_init(|| (SystemTime::now(), tokio::time::Instant::now())));
    move || wall + origin.elapsed()
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
async fn fault_28_an_acknowledged_invalidation_is_in_force() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let nodes: [Node; 3] = nodes(&engine, &issuer).await;
    for node in &nodes {
        assert_eq!(node.get(KEY).await, OK);
        assert_eq!(node.get(OTHER).await, OK);
    }
    issuer.revoke(KEY);
    let spread = nodes[0].auth.handle().spread().expected_nodes(3);
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    let mut applied = reach.applied;
    applied.sort();
    assert_eq!(applied, ["node-0", "node-1", "node-2"]);
    let calls = issuer.calls();
    for node in &nodes {
        assert_eq!(node.get(KEY).await, UNAUTHORIZED);
        assert_eq!(node.get(OTHER).await, OK);
    }
    assert_eq!(issuer.calls(), calls + 3, "the other key is still cached");
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
    // Two soft TTLs later it serves nothing from before.
    tokio::time::sleep(Duration::from_secs(130)).await;
    let reach = first.auth.handle().spread().invalidate_all().await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_is_not_missed() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    second.stop();
    second.fleet.leave().await;
    let reach = first.auth.handle().spread().invalidate_all().await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
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

/// The issuer answers, the key is revoked and invalidated, and then the answer arrives.
#[tokio::test(start_paused = true)]
async fn fault_103_a_late_valid_answer_is_not_used() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [slow, other] = nodes(&engine, &issuer).await;
    let release = issuer.hold();
    let request = slow.get(KEY);
    tokio::pin!(request);
    tokio::select! {
        _ = &mut request => panic!("the answer was not held"),
        () = until("the call was sent", || issuer.calls() == 1) => {}
    }
    issuer.revoke(KEY);
    let spread = other.auth.handle().spread();
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert!(reach.is_complete(), "{reach:?}");
    release.send(true).unwrap();
    assert_eq!(request.await, UNAUTHORIZED);
    until("the late result is stored", || engine.results() == 1).await;
    assert_eq!(other.get(KEY).await, UNAUTHORIZED);
    assert_eq!(slow.get(KEY).await, UNAUTHORIZED);
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
async fn fault_105_changed_results_are_not_used() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    for key in [KEY, OTHER] {
        assert_eq!(first.get(key).await, OK);
    }
    assert_eq!(engine.swap_results(), 2);
    assert_eq!(second.get(KEY).await, OK);
    assert_eq!((second.fleet.status().rejected, issuer.calls()), (1, 3));
    let changed = engine.tamper(|sealed| {
        if let Some(last) = sealed.last_mut() {
            *last ^= 1;
        }
    });
    assert_eq!(changed, 2);
    assert_eq!(second.get(OTHER).await, OK);
    assert_eq!((second.fleet.status().rejected, issuer.calls()), (2, 4));
    assert_eq!(second.fleet.status().fetched, 0);
}

#[tokio::test(start_paused = true)]
async fn fault_106_repeated_updates_lift_nothing() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    let org = OrgCode::from_static("org_1");
    let spread = first.auth.handle().spread();
    assert!(spread.block_org(&org).await.unwrap().is_complete());
    assert!(spread.unblock_org(&org).await.unwrap().is_complete());
    assert_eq!(second.get(KEY).await, OK);
    assert!(spread.block_org(&org).await.unwrap().is_complete());
    assert_eq!(engine.replay_log(), 3);
    until("all is applied", || second.fleet.status().position == 6).await;
    assert_eq!(second.get(KEY).await, UNAUTHORIZED);
    // The first block, which has ended, is not in force again either.
    assert!(spread.unblock_org(&org).await.unwrap().is_complete());
    assert_eq!(second.get(KEY).await, OK);
}

#[tokio::test(start_paused = true)]
async fn fault_106_repeated_updates_apply_once() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    let spread = first.auth.handle().spread();
    assert!(spread.invalidate_all().await.unwrap().is_complete());
    assert_eq!(second.get(KEY).await, OK);
    let calls = issuer.calls();
    assert_eq!(engine.replay_log(), 1);
    until("it is read", || second.fleet.status().position == 2).await;
    assert_eq!(second.get(KEY).await, OK);
    assert_eq!((issuer.calls(), second.fleet.status().gaps), (calls, 0));
}

#[tokio::test(start_paused = true)]
async fn fault_107_withheld_updates_do_not_count() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    assert_eq!(second.get(KEY).await, OK);
    engine.withhold_log(true);
    issuer.revoke(KEY);
    let spread = first.auth.handle().spread();
    let reach = spread.invalidate_key_id(&key_id(KEY)).await.unwrap();
    assert_eq!(reach.missing, ["node-1"]);
    // It shows in the head.
    until("the gap is noticed", || second.fleet.status().gaps == 1).await;
    for _ in 0..11 {
        second.get(KEY).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(second.get(KEY).await, UNAUTHORIZED);
}

#[tokio::test(start_paused = true)]
async fn fault_108_a_wrong_clock_shares_nothing() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let others: [Node; 2] = nodes(&engine, &issuer).await;
    let wall = wall_clock();
    let hour = Duration::from_secs(3_600);
    for (name, is_late) in [("late", true), ("early", false)] {
        let wall = wall.clone();
        let node = Node::start_with(
            name,
            issuer.clone(),
            |fleet| {
                let now = move || {
                    if is_late {
                        wall() - hour
                    } else {
                        wall() + hour
                    }
                };
                fleet.memory(&engine).wall_clock(now)
            },
            |layer| layer.test_clock(clock()),
        );
        let node = node.followed().await;
        until("the difference is noticed", || {
            node.fleet.status().clock_differs
        })
        .await;
        assert_eq!(others[0].get(KEY).await, OK);
        let calls = issuer.calls();
        assert_eq!(node.get(KEY).await, OK);
        assert_eq!(issuer.calls(), calls + 1);
        assert_eq!(node.fleet.status().fetched, 0);
        // Updates are applied all the same, before they are acknowledged.
        let (key, id) = (
            format!("k_live_000000{name}"),
            format!("id_k_live_000000{name}"),
        );
        let id = KeyId::new(id).unwrap();
        for node in [&node, &others[0]] {
            assert_eq!(node.get(&key).await, OK);
        }
        issuer.revoke(&key);
        for (from, to) in [(&node, &others[0]), (&others[0], &node)] {
            let reach = from.auth.handle().spread().invalidate_key_id(&id).await;
            let reach = reach.unwrap();
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

#[tokio::test(start_paused = true)]
async fn nodes_divide_the_calls_to_the_issuer() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let start = |name: &str| {
        let (wall, engine) = (wall_clock(), engine.clone());
        Node::start_with(
            name,
            issuer.clone(),
            |fleet| fleet.memory(&engine).wall_clock(wall),
            |layer| layer.test_clock(clock()).max_calls_per_second(100),
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
async fn fault_104_a_node_that_is_behind_asks_the_issuer() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    engine.withhold_log(true);
    first.auth.handle().invalidate_key_id(&key_id(OTHER));
    until("the update is sent", || first.fleet.status().unsent == 0).await;
    // The engine has an update that this node has not applied.
    assert!(second.fleet.status().is_followed());
    assert_eq!(second.get(KEY).await, OK);
    assert_eq!((issuer.calls(), second.fleet.status().fetched), (2, 0));
    engine.withhold_log(false);
}

#[tokio::test(start_paused = true)]
async fn fault_109_a_cold_fleet_serves_known_keys() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let first = node("first", &engine, &issuer).await;
    let keys: Vec<String> = (0..100).map(|n| format!("k_live_cold_{n:04}")).collect();
    for key in &keys {
        assert_eq!(first.get(key).await, OK);
    }
    assert_eq!(issuer.calls(), keys.len());
    issuer.set_down(true);
    drop(first);
    // Every node is new, and no call is made for a known key.
    for n in 0..8 {
        let node = node(&format!("cold-{n}"), &engine, &issuer).await;
        for key in &keys {
            assert_eq!(node.get(key).await, OK);
        }
    }
    assert_eq!(issuer.calls(), keys.len());
    // Invalid keys stop the fetches of others for a second at most.
    let late = node("late", &engine, &issuer).await;
    for n in 0..3_000 {
        late.get(&format!("junk_{n:08}")).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(late.get(&keys[0]).await, OK);
}

#[tokio::test(start_paused = true)]
async fn fault_109_a_flood_keeps_no_known_key_from_sharing() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    assert_eq!((first.get(KEY).await, second.get(KEY).await), (OK, OK));
    assert_eq!((issuer.calls(), second.fleet.status().fetched), (1, 1));
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(first.get(KEY).await, OK);
    until("it is refreshed", || issuer.calls() == 2).await;
    for n in 0..3_000 {
        second.get(&format!("junk_{n:08}")).await;
    }
    until("nothing waits", || second.fleet.status().unsent == 0).await;
    assert_eq!(second.get(KEY).await, OK);
    until("the refresh is shared", || {
        second.fleet.status().fetched == 2
    })
    .await;
}

/// A time before the machine booted cannot be expressed, so an older result is not used: nothing looks younger than it is.
#[tokio::test(start_paused = true)]
async fn fault_108_a_new_machine_uses_no_older_result() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let first = node("first", &engine, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let clock = TestClock::new();
    clock.jump(Duration::from_secs(20));
    let wall = wall_clock();
    let new = Node::start_with(
        "new",
        issuer.clone(),
        |fleet| fleet.memory(&engine).wall_clock(wall),
        |layer| layer.test_clock(clock),
    );
    let new = new.followed().await;
    assert_eq!(new.get(KEY).await, OK);
    assert_eq!(issuer.calls(), 2);
}
