//! What is stored: totals in a file that can be lost, and records that are pushed again.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tower_orgkey_usage::{HoldReason, KindeBillingSink, Settlement, SpoolFileError, TotalsFile};

use super::world::{MINUTE, Totals as _, World, org};
use crate::kit::{Counting, app, next_minute, read_times, sums, usage};

#[tokio::test]
async fn fault_172_lost_totals_are_not_sent() {
    for loss in ["missing", "older", "no second file"] {
        let world = World::new().await;
        world.agree("org_1");
        world.agree("org_2");
        let mut process = world.start().await;
        process.serve(&world, "org_1", 5).await;
        process.serve(&world, "org_2", 5).await;
        process.send().await;
        drop(process);
        drop(world.totals.open().await);
        let older = fs::read(world.path()).unwrap();
        let mut process = world.start().await;
        process.serve(&world, "org_1", 4).await;
        process.serve(&world, "org_2", 4).await;
        process.send().await;
        drop(process);
        drop(world.totals.open().await);
        match loss {
            "missing" => fs::remove_file(world.path()).unwrap(),
            "older" => fs::write(world.path(), &older).unwrap(),
            _ => fs::remove_file(world.directory.join("totals.sent")).unwrap(),
        }
        let sent = world.calls();

        // Counting goes on, nothing is sent.
        let mut process = world.start().await;
        process.serve(&world, "org_1", 2).await;
        process.serve(&world, "org_2", 2).await;
        let lost = |name| (org(name), HoldReason::UnknownTotal);
        assert_eq!(process.send().await.held, [lost("org_1"), lost("org_2")]);
        drop(process);
        let mut process = world.start().await;
        assert_eq!(process.send().await.held, [lost("org_1"), lost("org_2")]);
        assert_eq!(world.calls(), sent, "{loss}");

        // One is continued by hand, the other one in its next period.
        process.sender.resume(&org("org_1"), 9).await.unwrap();
        process.send().await;
        assert_eq!(
            world.billed(),
            sums(&[("org_1", 11), ("org_2", 9)]),
            "{loss}"
        );
        world.advance(world.left() + MINUTE);
        process.send().await;
        assert_eq!(
            world.billed(),
            sums(&[("org_1", 11), ("org_2", 11)]),
            "{loss}"
        );
        world.assert_never_lowered();
    }
}

#[tokio::test]
async fn fault_174_a_repeated_push_counts_once() {
    let world = World::new().await;
    world.agree("org_1");
    let mut process = world.start().await;
    process.loses.store(true, Ordering::SeqCst);
    process.serve(&world, "org_1", 5).await;
    assert!(!process.loses.load(Ordering::SeqCst), "no answer was lost");
    // Killed after the records were added, and before the pusher knew.
    read_times(&process.app, 3, "key.org_1.k1").await;
    next_minute(&world.wall);
    process.loses.store(true, Ordering::SeqCst);
    assert_eq!(process.pusher.push_closed().await.waiting, 1);
    drop(process);
    let mut process = world.start().await;
    process.push().await;
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 8)]));
}

#[tokio::test]
async fn fault_174_a_record_after_later_ones_counts() {
    let world = World::new().await;
    world.agree("org_1");
    let mut process = world.start().await;
    process.serve(&world, "org_1", 1).await;
    process.parks.store(true, Ordering::SeqCst);
    process.serve(&world, "org_1", 2).await;
    assert_eq!(process.handle.stats().parked, 1);
    process.serve(&world, "org_1", 4).await;
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 5)]));
    let parked = process.pusher.parked();
    let settled = parked.settle(Settlement::PushAgain, |_| true).await;
    assert_eq!(settled.unwrap(), 1);
    // The answer is lost, and the next process repeats it.
    process.loses.store(true, Ordering::SeqCst);
    assert_eq!(process.pusher.push_closed().await.waiting, 1);
    drop(parked);
    drop(process);
    let mut process = world.start().await;
    process.push().await;
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 7)]));
}

#[tokio::test]
async fn fault_172b_totals_of_another_issuer_are_rejected() {
    let world = World::new().await;
    let other = World::new().await;
    drop(world.start().await);
    let store = Arc::new(world.totals.open().await);
    let build = |of: &World, feature| {
        let builder = KindeBillingSink::builder(&of.verifier(), feature);
        builder.build(Arc::clone(&store)).map_err(|error| {
            assert_eq!(error.field(), "store");
            error.to_string()
        })
    };
    let error = build(&world, "tokens").unwrap_err();
    assert!(error.contains("another feature"), "{error}");
    let error = build(&other, "api_calls").unwrap_err();
    assert!(error.contains("another issuer"), "{error}");
    assert!(build(&world, "api_calls").is_ok());
}

#[tokio::test]
async fn totals_that_cannot_be_written_keep_the_order() {
    let world = World::new().await;
    let (sink, _sender) = KindeBillingSink::builder(&world.verifier(), "api_calls")
        .build(world.totals.open().await)
        .unwrap();
    let sink = Counting::new(sink);
    let usage = usage(&world.wall).build().unwrap();
    let pusher = usage.handle().pusher(Arc::clone(&sink));
    let mut pusher = pusher.build().unwrap();
    for org in 0..5 {
        read_times(&app(&usage), 1, &format!("key.org_{org}.k1")).await;
    }
    next_minute(&world.wall);
    let blocks = world.directory.join("totals.new");
    fs::create_dir(&blocks).unwrap();
    for calls in 1..4 {
        assert_eq!(pusher.push_closed().await.waiting, 5);
        assert_eq!(sink.calls(), calls, "no account is tried before others");
    }
    fs::remove_dir(&blocks).unwrap();
    assert_eq!(pusher.push_closed().await.pushed, 5);
}

#[tokio::test]
async fn fault_218_a_first_start_that_fails_is_repeated() {
    let world = World::new().await;
    world.agree("org_1");
    let witness = world.directory.join("totals.sent");
    for file in [world.path(), &witness] {
        fs::remove_file(file).unwrap();
    }
    // The second file cannot be written.
    let blocks = world.directory.join("totals.sent.new");
    fs::create_dir(&blocks).unwrap();
    assert!(TotalsFile::first_start(world.path()).is_err());
    assert!(world.path().exists() && !witness.exists());
    fs::remove_dir(&blocks).unwrap();
    drop(TotalsFile::first_start(world.path()).unwrap());
    let mut process = world.start().await;
    process.serve(&world, "org_1", 5).await;
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 5)]));
    drop(process);

    // A file that was used is not a new one.
    drop(world.totals.open().await);
    fs::remove_file(&witness).unwrap();
    assert!(TotalsFile::first_start(world.path()).is_err());
}

#[tokio::test]
async fn totals_file_has_one_process() {
    let world = World::new().await;
    let totals = world.totals.open().await;
    assert!(matches!(
        TotalsFile::single_node(world.path()),
        Err(SpoolFileError::InUse { .. })
    ));
    drop(totals);
    assert!(matches!(
        TotalsFile::first_start(world.path()),
        Err(SpoolFileError::Io { .. })
    ));
    let mut bytes = fs::read(world.path()).unwrap();
    bytes[30] ^= 1;
    fs::write(world.path(), &bytes).unwrap();
    assert!(matches!(
        TotalsFile::single_node(world.path()),
        Err(SpoolFileError::Damaged { .. })
    ));
    assert_eq!(fs::read(world.path()).unwrap(), bytes);
}
