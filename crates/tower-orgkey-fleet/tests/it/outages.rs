//! The issuer is down or asks for fewer calls, with and without the engine. In memory, on the paused clock.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use tower_orgkey::{NotSpread, VerifyError};
use tower_orgkey_fleet::MemoryEngine;

use crate::support::{Issuer, KEY, Node, OTHER, get, key_id, node, nodes, until};

const OK: StatusCode = StatusCode::OK;
const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;
const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

#[tokio::test(start_paused = true)]
async fn fault_10_a_429_pauses_one_node_only() {
    let engine = MemoryEngine::new();
    let (throttled, issuer) = (Issuer::default(), Issuer::default());
    let first = node("first", &engine, &throttled).await;
    let second = node("second", &engine, &issuer).await;
    throttled.fail_with(Some(VerifyError::throttled(Some(Duration::from_secs(30)))));
    assert_eq!(first.get(KEY).await, UNAVAILABLE);
    let pause = first.auth.handle().upstream().paused_for;
    assert_eq!(pause, Some(Duration::from_secs(30)));
    assert_eq!(second.auth.handle().upstream().paused_for, None);
    assert_eq!(second.get(KEY).await, OK);
    assert_eq!(issuer.calls(), 1);
    // What the other node verified is served here as well.
    until("the result is stored", || engine.results() == 1).await;
    assert_eq!(first.get(KEY).await, OK);
    assert_eq!(throttled.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn fault_29_an_update_is_applied_after_a_cut() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    for node in [&first, &second] {
        assert_eq!(node.get(KEY).await, OK);
        assert_eq!(node.get(OTHER).await, OK);
    }
    engine.set_available(false);
    tokio::time::sleep(Duration::from_secs(5)).await;
    issuer.revoke(KEY);
    let spread = first.auth.handle().spread();
    let reach = spread.invalidate_key_id(&key_id(KEY)).await;
    assert_eq!(reach.unwrap_err(), NotSpread::Unavailable);
    assert_eq!(first.get(KEY).await, UNAUTHORIZED);
    // The other node has not heard of it.
    assert_eq!(second.get(KEY).await, OK);
    tokio::time::sleep(Duration::from_secs(25)).await;
    engine.set_available(true);
    let second = second.followed().await;
    until("the update is applied", || {
        second.fleet.status().position == 1
    })
    .await;
    assert_eq!(second.get(KEY).await, UNAUTHORIZED);

    // With the issuer up, a cut costs the other node no more than its soft TTL.
    engine.set_available(false);
    issuer.revoke(OTHER);
    first.auth.handle().invalidate_key_id(&key_id(OTHER));
    for _ in 0..60 {
        second.get(OTHER).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(second.get(OTHER).await, UNAUTHORIZED);
}

#[tokio::test(start_paused = true)]
async fn fault_30_a_double_outage_ends_with_the_hard_ttl() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    for node in [&first, &second] {
        assert_eq!(node.get(KEY).await, OK);
    }
    engine.set_available(false);
    issuer.set_down(true);
    let handle = first.auth.handle();
    let reach = handle.spread().block_key_id(&key_id(KEY)).await;
    // The caller knows, and so does whoever looks at the state of the nodes.
    assert_eq!(reach.unwrap_err(), NotSpread::Unavailable);
    assert_eq!(first.fleet.status().unsent, 1);
    assert!(!second.fleet.status().is_followed());
    assert_eq!(first.get(KEY).await, UNAUTHORIZED);
    for _ in 0..880 {
        assert_eq!(second.get(KEY).await, OK);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(second.get(KEY).await, UNAVAILABLE);
    assert_eq!(first.get(KEY).await, UNAUTHORIZED);
}

/// A node without results, and keys that are all used at once.
#[tokio::test(start_paused = true)]
async fn fault_39_a_cold_start_makes_no_burst() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let start = |name: &str, engine: &MemoryEngine| {
        Node::start_with(
            name,
            issuer.clone(),
            |fleet| fleet.memory(engine),
            |layer| layer.max_calls_per_second(50),
        )
    };
    let keys: Vec<String> = (0..5_000).map(|n| format!("k_live_cold_{n:06}")).collect();

    // Without a second tier: in order of arrival, at the rate of the issuer, and the breaker stays closed.
    let alone = start("alone", &MemoryEngine::new());
    let statuses = join_all(keys.iter().map(|key| alone.get(key))).await;
    let served = statuses.iter().filter(|status| **status == OK).count();
    assert!((50..200).contains(&served), "{served}");
    assert_eq!(statuses[..served], vec![OK; served]);
    assert_eq!(statuses[served..], vec![UNAVAILABLE; keys.len() - served]);
    let breaker = alone.auth.handle().upstream().breaker;
    assert_eq!(breaker, tower_orgkey::BreakerState::Closed);
    drop(alone);

    // With a warm second tier.
    let first = start("first", &engine).followed().await;
    for keys in keys.chunks(50) {
        let statuses = join_all(keys.iter().map(|key| first.get(key))).await;
        assert_eq!(statuses, vec![OK; keys.len()]);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    until("the results are stored", || engine.results() == keys.len()).await;
    let cold = start("cold", &engine).followed().await;
    let (calls, began) = (issuer.calls(), tokio::time::Instant::now());
    for keys in keys.chunks(1_000) {
        let statuses = join_all(keys.iter().map(|key| cold.get(key))).await;
        assert_eq!(statuses, vec![OK; keys.len()]);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (calls, elapsed) = (issuer.calls() - calls, began.elapsed());
    let permitted = (elapsed.as_millis() + 1_000) * 50 / 1_000;
    assert!(calls as u128 <= permitted, "{calls} calls in {elapsed:?}");
}

/// A result that is passed from node to node keeps the time of its verification.
#[tokio::test(start_paused = true)]
async fn fault_40_restarts_reset_no_age() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let first = node("node-0", &engine, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    until("the result is stored", || engine.results() == 1).await;
    issuer.set_down(true);
    let mut latest = first;
    for n in 1..=4 {
        tokio::time::sleep(Duration::from_secs(200)).await;
        latest = node(&format!("node-{n}"), &engine, &issuer).await;
        assert_eq!(latest.get(KEY).await, OK);
        assert_eq!(latest.get(OTHER).await, UNAVAILABLE);
    }
    tokio::time::sleep(Duration::from_secs(101)).await;
    assert_eq!(latest.get(KEY).await, UNAVAILABLE);
    let late = node("late", &engine, &issuer).await;
    assert_eq!(late.get(KEY).await, UNAVAILABLE);
}

/// A node asks the issuer about a key that it does not know, while the engine has an older result of it.
#[tokio::test(start_paused = true)]
async fn fault_222_a_rejected_key_is_not_accepted_again() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let [first, second] = nodes(&engine, &issuer).await;
    assert_eq!(first.get(KEY).await, OK);
    until("the result is stored", || engine.results() == 1).await;
    issuer.revoke(KEY);
    let strict = second.auth.clone().max_age(Duration::ZERO);
    assert_eq!(get(&strict, KEY).await, UNAUTHORIZED);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(second.get(KEY).await, UNAUTHORIZED);
    assert_eq!(issuer.calls(), 3);
    // The invalid answer is not cached any more.
    tokio::time::sleep(Duration::from_secs(11)).await;
    issuer.set_down(true);
    assert_eq!(second.get(KEY).await, UNAVAILABLE);
    assert_eq!(engine.results(), 1);
}
