//! Organizations whose totals wait, and calls that Kinde does not answer.

use std::time::Duration;

use kinde_emulator::{Endpoint, Fault};
use tower::ServiceExt;
use tower_orgkey_usage::{
    Account, HoldReason, KindeBillingSink, ParkReason, ParkedRecord, SendReport, TotalsFile,
};

use super::world::{World, org};
use crate::kit::{app, next_minute, read_times, request, sums, usage};

#[tokio::test]
async fn fault_173_a_held_organization_holds_no_other() {
    let world = World::new().await;
    world.emulator.add_organization("org_free");
    world.agree("org_1");
    let mut process = world.start().await;
    for name in ["org_free", "org_none", "org_1"] {
        process.serve(&world, name, 2).await;
    }
    let report = process.send().await;
    let none = |name| (org(name), HoldReason::NoAgreement);
    assert_eq!(report.held, [none("org_free"), none("org_none")]);
    assert_eq!(world.billed(), sums(&[("org_1", 2)]));

    // Null, and several agreements.
    process.serve(&world, "org_1", 2).await;
    let null = |body: &str| {
        body.replace(
            "\"current_period_end\":\"",
            "\"current_period_end\":null,\"x\":\"",
        )
    };
    let twice = |body: &str| {
        let mut body: serde_json::Value = serde_json::from_str(body).unwrap();
        let first = body["agreements"][0].clone();
        body["agreements"].as_array_mut().unwrap().push(first);
        body.to_string()
    };
    for (fault, reason) in [
        (Fault::rewrite(null), HoldReason::UnknownPeriod),
        (Fault::rewrite(twice), HoldReason::SeveralAgreements),
        (Fault::status(400), HoldReason::Rejected),
        (Fault::status(503), HoldReason::Unavailable),
        (
            Fault::reply(200, "application/json", "{"),
            HoldReason::Unavailable,
        ),
    ] {
        world.emulator.inject(Endpoint::ListAgreements, fault);
        let report = process.send().await;
        assert!(report.held.contains(&(org("org_1"), reason)), "{report:?}");
    }
    world.emulator.clear_faults();
    world.agree("org_free");
    world.agree("org_none");
    process.send().await;
    assert_eq!(
        world.billed(),
        sums(&[("org_1", 4), ("org_free", 2), ("org_none", 2)])
    );
}

#[tokio::test]
async fn fault_173b_a_shared_agreement_bills_one() {
    let world = World::new().await;
    let agreement = world.agree("org_1");
    let other = world.agree("org_2");
    let mut process = world.start().await;
    // Kinde shows the agreement of the first organization for the second one too.
    let both = {
        let agreement = agreement.clone();
        Fault::rewrite(move |body: &str| body.replace(&other, &agreement))
    };
    world.emulator.inject(Endpoint::ListAgreements, both);
    let shared = [(org("org_2"), HoldReason::SharedAgreement)];
    for units in [5, 3] {
        process.serve(&world, "org_1", units).await;
        process.serve(&world, "org_2", units).await;
        let report = process.send().await;
        assert_eq!((report.accepted, &report.held[..]), (1, &shared[..]));
        // Also after a restart, and if the first one has no units to bill.
        drop(process);
        process = world.start().await;
        assert_eq!(process.send().await.held, shared);
    }
    assert_eq!(world.billed(), sums(&[("org_1", 8)]));
    assert_eq!(world.calls(), 2);
    world.assert_never_lowered();

    // With an agreement of its own, the second one is billed.
    world.emulator.clear_faults();
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 8), ("org_2", 8)]));
}

#[tokio::test]
async fn fault_173b_a_shared_agreement_stays_with_its_organization() {
    let world = World::new().await;
    let other = world.agree("org_1");
    let agreement = world.agree("org_2");
    let mut process = world.start().await;
    process.serve(&world, "org_2", 5).await;
    process.send().await;
    let both = Fault::rewrite(move |body: &str| body.replace(&other, &agreement));
    world.emulator.inject(Endpoint::ListAgreements, both);
    let shared = [(org("org_1"), HoldReason::SharedAgreement)];
    // The first organization comes first in every round, also in the first one of a billing period.
    for _ in 0..3 {
        process.serve(&world, "org_1", 4).await;
        process.serve(&world, "org_2", 2).await;
        assert_eq!(process.send().await.held, shared);
        world.advance(world.left() + 1);
        assert_eq!(process.send().await.held, shared);
    }
    assert_eq!(world.billed(), sums(&[("org_2", 11)]));
    world.assert_never_lowered();
}

/// Kinde may answer 500 about a customer that the organization no longer has.
#[tokio::test]
async fn fault_173c_a_failed_customer_is_looked_up_again() {
    let world = World::new().await;
    world.agree("org_1");
    let mut process = world.start().await;
    let looked_up = || world.emulator.calls().get_organization.total;
    for (times, fault) in [
        (1, Fault::status(500)),
        (2, Fault::reply(200, "application/json", "{")),
        (3, Fault::status(404)),
    ] {
        process.serve(&world, "org_1", 2).await;
        world
            .emulator
            .inject(Endpoint::ListAgreements, fault.times(1));
        let report = process.send().await;
        assert_eq!((report.held.len(), report.accepted), (1, 0));
        assert_eq!(looked_up(), times);
        assert_eq!(process.send().await.accepted, 1);
        assert_eq!(looked_up(), times + 1);
    }
    process.serve(&world, "org_1", 2).await;
    process.send().await;
    assert_eq!(looked_up(), 4, "a customer that does not fail is kept");
    assert_eq!(world.billed(), sums(&[("org_1", 8)]));
}

#[tokio::test]
async fn round_ends_while_kinde_is_down() {
    let world = World::new().await;
    let mut process = world.start().await;
    for n in 0..8 {
        process.serve(&world, &format!("org_{n}"), 1).await;
    }
    world
        .emulator
        .inject(Endpoint::GetOrganization, Fault::status(503));
    for (last, calls) in [("org_4", 5), ("org_1", 10)] {
        process.send().await;
        assert_eq!(world.emulator.calls().get_organization.total, calls);
        let request = world.emulator.last_request(Endpoint::GetOrganization);
        let query = request.unwrap().uri().query().unwrap().to_owned();
        assert!(query.contains(&format!("code={last}&")), "{query}");
    }
}

#[tokio::test]
async fn sends_end_while_kinde_does_not_answer() {
    let world = World::new().await;
    let mut process = world.start().await;
    let mut agreements = Vec::new();
    for n in 0..8 {
        let name = format!("org_{n}");
        agreements.push(world.agree(&name));
        process.serve(&world, &name, 1).await;
    }
    world
        .emulator
        .inject(Endpoint::RecordUsage, Fault::status(503).times(5));
    assert_eq!(process.send().await.held.len(), 8);
    assert_eq!(world.calls(), 5);
    // Those that were not sent are first.
    world
        .emulator
        .inject(Endpoint::RecordUsage, Fault::status(429));
    process.send().await;
    let sent = world.emulator.last_request(Endpoint::RecordUsage).unwrap();
    assert_eq!(sent.field("customer_agreement_id"), Some(&*agreements[5]));
}

#[tokio::test]
async fn revoked_token_is_renewed() {
    let world = World::new().await;
    world.agree("org_1");
    let mut process = world.start().await;
    process.serve(&world, "org_1", 1).await;
    process.send().await;
    world.emulator.revoke_tokens();
    process.serve(&world, "org_1", 1).await;
    assert_eq!(process.send().await.accepted, 1);
    assert_eq!(world.emulator.calls().token.ok, 2);
    // A scope that is missing is a reason for one more token, because the last renewal helped.
    world
        .emulator
        .inject(Endpoint::RecordUsage, Fault::reject_token());
    for _ in 0..5 {
        process.serve(&world, "org_1", 1).await;
        let report = process.send().await;
        assert_eq!(report.held, [(org("org_1"), HoldReason::Rejected)]);
    }
    assert_eq!(world.emulator.calls().token.ok, 3);
    world.emulator.clear_faults();
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 7)]));
}

#[tokio::test]
async fn throttled_sender_waits() {
    let world = World::new().await;
    world.agree("org_1");
    world.agree("org_2");
    let mut process = world.start().await;
    process.serve(&world, "org_1", 1).await;
    process.serve(&world, "org_2", 1).await;
    let busy = Fault::status(429).with_header("ratelimit-reset", "60");
    world.emulator.inject(Endpoint::RecordUsage, busy);
    assert_eq!(process.send().await.held.len(), 2);
    let calls = world.emulator.calls();
    assert_eq!(calls.record_usage.total, 1);
    assert_eq!(process.send().await, SendReport::default());
    assert_eq!(world.emulator.calls(), calls);
    let agreement = || {
        let sent = world.emulator.last_request(Endpoint::RecordUsage).unwrap();
        sent.field("customer_agreement_id").unwrap().to_owned()
    };
    let first = agreement();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    process.send().await;
    assert_eq!(world.calls(), 2);
    assert_ne!(agreement(), first, "the other one is first");
}

#[tokio::test]
async fn fault_204_merged_organizations_are_parked() {
    let world = World::new().await;
    let totals = TotalsFile::single_node(world.path()).unwrap();
    let builder = KindeBillingSink::builder(&world.verifier(), "api_calls");
    let builder = builder.test_wall_clock(world.wall.clone());
    let (sink, mut sender) = builder.build(totals).unwrap();
    let usage = usage(&world.wall).capacity(1).organizations(1);
    let usage = usage.build().unwrap();
    let mut pusher = usage.handle().pusher(sink).build().unwrap();
    let app = app(&usage);
    let served = |parked: &ParkedRecord| parked.record.counts.served();
    for n in 1..5 {
        let name = format!("org_{n}");
        world.agree(&name);
        read_times(&app, n, &format!("key.{name}.k1")).await;
    }
    next_minute(&world.wall);
    pusher.push_closed().await;
    let parked = pusher.parked().list();
    sender.send_due().await;
    let billed: u64 = world.billed().values().sum();
    assert_eq!(billed + parked.iter().map(served).sum::<u64>(), 10);
    let is_merged = |parked: &ParkedRecord| {
        parked.reason == ParkReason::Held && parked.record.account == Account::OtherOrganizations
    };
    assert!(
        !parked.is_empty() && parked.iter().all(is_merged),
        "{parked:?}"
    );

    // Without units there is nothing to settle.
    for org in ["org_1", "org_2", "org_3"] {
        let request = request("GET", "/guarded", Some(&format!("key.{org}.k1")));
        app.clone().oneshot(request).await.unwrap();
    }
    next_minute(&world.wall);
    let report = pusher.push_closed().await;
    assert_eq!((report.waiting, report.parked), (0, parked.len()));
}

#[tokio::test]
async fn fault_205_a_low_rate_limit_bills() {
    let world = World::new().await;
    let mut process = world.start().await;
    for n in 0..40 {
        let name = format!("org_{n}");
        world.agree(&name);
        read_times(&process.app, 1, &format!("key.{name}.k1")).await;
    }
    next_minute(&world.wall);
    world.advance(0);
    process.push().await;
    for _ in 0..10 {
        // Kinde permits 25 calls of each kind, then the next window begins.
        for endpoint in [
            Endpoint::GetOrganization,
            Endpoint::ListAgreements,
            Endpoint::RecordUsage,
        ] {
            let busy = Fault::status(429).with_header("ratelimit-reset", "60");
            world.emulator.inject(endpoint, busy.every(26));
        }
        process.send().await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(61)).await;
        tokio::time::resume();
    }
    let looked_up = world.emulator.calls().get_organization;
    assert!(looked_up.faulted > 0);
    assert_eq!(looked_up.ok, 40, "customers are kept");
    assert_eq!(world.billed().len(), 40);
    let once = world.billed().values().all(|units| *units == 1);
    assert!(once, "{:?}", world.billed());
}
