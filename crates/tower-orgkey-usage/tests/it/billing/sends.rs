//! What is sent to Kinde: totals, once or again.

use std::time::Duration;

use kinde_emulator::{Endpoint, Fault};
use tower_orgkey_usage::HoldReason;

use super::world::{MINUTE, World, org};
use crate::kit::sums;

#[tokio::test]
async fn totals_are_sent_as_absolutes() {
    let world = World::new().await;
    let agreement = world.agree("org_1");
    let mut process = world.start().await;
    process.serve(&world, "org_1", 3).await;
    assert_eq!(world.calls(), 0, "a push sends nothing");
    assert_eq!(process.send().await.accepted, 1);
    let sent = world.emulator.last_request(Endpoint::RecordUsage).unwrap();
    for (field, value) in [
        ("customer_agreement_id", &*agreement),
        ("billing_feature_code", "api_calls"),
        ("meter_value", "3"),
        ("meter_type_code", "absolute"),
    ] {
        assert_eq!(sent.field(field), Some(value));
    }
    process.serve(&world, "org_1", 4).await;
    process.send().await;
    let calls = world.emulator.calls();
    process.send().await;
    assert_eq!(
        world.emulator.calls(),
        calls,
        "nothing is due, so Kinde is not asked"
    );
    assert_eq!(world.billed(), sums(&[("org_1", 7)]));
    assert_eq!(calls.token.ok, 1, "one token for all calls");
}

#[tokio::test]
async fn fault_168_a_lost_answer_bills_once() {
    let world = World::new().await;
    world.agree("org_1");
    let mut process = world.start().await;
    process.serve(&world, "org_1", 5).await;
    world
        .emulator
        .inject(Endpoint::RecordUsage, Fault::lose_reply().times(2));
    for _ in 0..2 {
        let report = process.send().await;
        assert_eq!(report.held, [(org("org_1"), HoldReason::Unavailable)]);
    }
    assert_eq!(world.emulator.calls().record_usage.faulted, 2);
    assert_eq!(process.send().await.accepted, 1);
    assert_eq!(world.billed(), sums(&[("org_1", 5)]));
    // An answer that says that nothing was recorded.
    process.serve(&world, "org_1", 1).await;
    world.advance(6 * MINUTE);
    world
        .emulator
        .inject(Endpoint::RecordUsage, Fault::status(500).times(1));
    process.send().await;
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 6)]));
    world.assert_never_lowered();
}

#[tokio::test]
async fn fault_169_a_late_request_lowers_no_total() {
    for restarts in [false, true] {
        let world = World::new().await;
        world.agree("org_1");
        let mut process = world.start().await;
        process.serve(&world, "org_1", 5).await;
        world
            .emulator
            .inject(Endpoint::RecordUsage, Fault::late().times(1));
        process.send().await;
        assert_eq!(world.emulator.calls().record_usage.faulted, 1);
        if restarts {
            drop(process);
            process = world.start().await;
        }
        process.serve(&world, "org_1", 2).await;
        process.send().await;
        assert_eq!(
            world.billed(),
            sums(&[("org_1", 5)]),
            "only the same total is repeated"
        );
        let report = process.send().await;
        assert_eq!(report.held, [(org("org_1"), HoldReason::Unanswered)]);
        world.advance(4 * MINUTE);
        world.emulator.clear_faults();
        world.advance(2 * MINUTE);
        assert_eq!(process.send().await.accepted, 1);
        assert_eq!(world.billed(), sums(&[("org_1", 7)]));
        world.assert_never_lowered();
    }
}

#[tokio::test]
async fn answer_of_a_proxy_is_no_rejection() {
    // Kinde may have recorded the total before a proxy gave up.
    for (status, parked) in [(408, 1), (409, 1), (502, 1), (400, 0), (422, 0)] {
        let world = World::new().await;
        world.agree("org_1");
        let mut process = world.start().await;
        process.serve(&world, "org_1", 5).await;
        world
            .emulator
            .inject(Endpoint::RecordUsage, Fault::status(status).times(1));
        assert_eq!(process.send().await.held.len(), 1);
        world.advance(world.left() + MINUTE);
        process.send().await;
        assert_eq!(process.unsettled().await.len(), parked, "{status}");
        let billed = if parked == 0 { 5 } else { 0 };
        assert_eq!(world.billed().values().sum::<u64>(), billed, "{status}");
    }
}

#[tokio::test]
async fn fault_175_an_unanswered_total_is_parked() {
    for (fault, was_billed) in [(Fault::lose_reply(), true), (Fault::close(), false)] {
        for changes_plan in [false, true] {
            let world = World::new().await;
            world.agree("org_1");
            let mut process = world.start().await;
            process.serve(&world, "org_1", 5).await;
            process.send().await;
            process.serve(&world, "org_1", 3).await;
            world
                .emulator
                .inject(Endpoint::RecordUsage, fault.clone().times(1));
            process.send().await;
            assert_eq!(world.emulator.calls().record_usage.faulted, 1);
            if changes_plan {
                world.agree("org_1");
            } else {
                world.advance(world.left() + MINUTE);
            }
            process.serve(&world, "org_1", 2).await;
            process.send().await;
            let parked = process.unsettled().await;
            assert_eq!(parked.len(), 1);
            assert_eq!((parked[0].units, parked[0].total), (3, 8));
            let sum = if was_billed { 10 } else { 7 };
            assert_eq!(
                world.billed(),
                sums(&[("org_1", sum)]),
                "nothing is billed twice"
            );
            assert_eq!(world.was_billed(&parked[0]), was_billed);
            process.sender.settle(&parked[0], was_billed).await.unwrap();
            assert!(process.sender.settle(&parked[0], was_billed).await.is_err());
            process.send().await;
            assert_eq!(world.billed(), sums(&[("org_1", 10)]));
        }
    }
}

#[tokio::test]
async fn fault_175_a_killed_sender_leaves_a_parked_total() {
    let world = World::new().await;
    world.agree("org_1");
    let mut process = world.start().await;
    process.serve(&world, "org_1", 5).await;
    // Recorded at once, and answered too slowly.
    let slow = Fault::trickle(Duration::from_secs(60)).times(1);
    world.emulator.inject(Endpoint::RecordUsage, slow);
    tokio::select! {
        _ = process.sender.send_due() => panic!("it was answered"),
        () = async {
            while world.billed().is_empty() {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    drop(process);
    let mut process = world.start().await;
    world.advance(world.left() + MINUTE);
    process.serve(&world, "org_1", 2).await;
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 7)]));
    assert_eq!(process.unsettled().await[0].total, 5);
}
