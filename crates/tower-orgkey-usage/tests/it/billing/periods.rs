//! The ends of billing periods and agreements.

use std::time::Duration;

use kinde_emulator::{Endpoint, Fault};
use tower_orgkey_usage::{HoldReason, SendReport};

use super::world::{MINUTE, World, org};
use crate::kit::sums;

#[tokio::test]
async fn fault_170_the_end_of_a_period_moves_no_unit() {
    let world = World::new().await;
    world.agree("org_1");
    world.agree("org_2");
    let mut process = world.start().await;
    process.serve(&world, "org_1", 5).await;
    process.serve(&world, "org_2", 4).await;
    process.send().await;
    let sent = world.calls();
    world.advance(world.left() - 4 * MINUTE);
    process.serve(&world, "org_1", 3).await;
    let report = process.send().await;
    assert_eq!(report.held, [(org("org_1"), HoldReason::PeriodEnds)]);
    assert_eq!(world.calls(), sent);

    // The period is over, and Kinde shows it still.
    world.advance(world.left() + MINUTE);
    world.emulator.set_period_lag(Duration::from_secs(3_600));
    let report = process.send().await;
    let unknown = |name| (org(name), HoldReason::UnknownPeriod);
    assert_eq!(report.held, [unknown("org_1"), unknown("org_2")]);
    assert_eq!(world.calls(), sent);

    world.emulator.set_period_lag(Duration::ZERO);
    assert_eq!(process.send().await.accepted, 2);
    assert_eq!(world.totals_of("org_1"), [5, 3]);
    assert_eq!(
        world.totals_of("org_2"),
        [4, 0],
        "the first total is sent even if it is 0"
    );
    world.assert_never_lowered();
}

#[tokio::test]
async fn fault_171_a_new_agreement_gets_the_rest() {
    let world = World::new().await;
    let old = world.agree("org_1");
    let mut process = world.start().await;
    process.serve(&world, "org_1", 5).await;
    process.send().await;
    process.serve(&world, "org_1", 3).await;
    let new = world.agree("org_1");
    let stale = format!("{{\"agreements\":[{{\"id\":\"{old}\",");
    process.send().await;
    let mut billed: Vec<_> = world.emulator.usage();
    billed.sort_by_key(|period| period.total);
    let billed: Vec<_> = billed
        .iter()
        .map(|period| (&*period.agreement_id, period.total))
        .collect();
    assert_eq!(billed, [(&*new, 3), (&*old, 5)]);

    // An old reply that shows the closed agreement again.
    process.serve(&world, "org_1", 2).await;
    world.emulator.inject(
        Endpoint::ListAgreements,
        Fault::rewrite(move |body| {
            let (_, rest) = body.split_once("\"id\":\"").unwrap();
            let (_, rest) = rest.split_once("\",").unwrap();
            let (head, _) = body.split_once("\"id\":\"").unwrap();
            let old = stale.split('"').nth(5).unwrap();
            format!("{head}\"id\":\"{old}\",{rest}")
        })
        .times(1),
    );
    let report = process.send().await;
    assert_eq!(world.emulator.calls().list_agreements.faulted, 1);
    assert_eq!(report.held, [(org("org_1"), HoldReason::UnknownPeriod)]);
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 10)]));
    world.assert_never_lowered();
}

#[tokio::test]
async fn ended_agreement_is_not_asked_for_again() {
    let world = World::new().await;
    world.agree("org_1");
    let mut process = world.start().await;
    process.serve(&world, "org_1", 3).await;
    process.send().await;
    world.advance(world.left() + MINUTE);
    let none = Fault::reply(200, "application/json", r#"{"agreements":[]}"#);
    world.emulator.inject(Endpoint::ListAgreements, none);
    assert_eq!(process.send().await, SendReport::default());
    let calls = world.emulator.calls();
    process.send().await;
    assert_eq!(world.emulator.calls(), calls);
    process.serve(&world, "org_1", 2).await;
    let none = (org("org_1"), HoldReason::NoAgreement);
    assert_eq!(process.send().await.held, [none]);
    world.emulator.clear_faults();
    process.send().await;
    assert_eq!(world.totals_of("org_1"), [3, 2]);
}
