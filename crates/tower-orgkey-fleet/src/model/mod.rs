//! The rules of a fleet under random faults: three nodes, two keys, and an engine that loses, trims, fails over and disconnects.
//!
//! Each node has a cache of the simplest kind. Three things must never happen:
//!
//! * **fetched**: a node uses a result from before an invalidation that it has made itself, or that the engine had acknowledged
//!   when it was called;
//! * **held**: a node serves a result from before an invalidation that all nodes have acknowledged;
//! * **healed**: after the faults end, a node holds a result from before an acknowledged invalidation, and does not know that it is
//!   to be verified again.
//!
//! A rule that is taken out makes one of them happen.

mod cache;
mod world;

use tower_orgkey::KeyId;
use tower_orgkey::fleet::{Subject, Update};

use self::world::{Violation, World};
use crate::log::Rules;

const NODES: usize = 3;
const KEYS: usize = 2;
const STEPS: usize = 60;

fn key_id(key: usize) -> KeyId {
    KeyId::new(format!("id-{key}")).unwrap()
}

fn name(key: usize) -> String {
    format!("k_live_0000000{key}")
}

/// What is taken out.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent rules")]
struct Broken {
    log: Option<fn(&mut Rules)>,
    /// Another server process founds no epoch.
    epoch_by_run: bool,
    /// A server without data has the same epoch as before.
    epoch_of_nothing: bool,
    /// A result gets the version of its arrival.
    version_before_fetch: bool,
    /// Fetches go on while an own update waits.
    outbox: bool,
}

async fn run(seed: u64, broken: Broken) -> Result<(), Violation> {
    let mut world = World::new(seed, broken);
    for n in 0..NODES {
        world.connect(n).await;
    }
    for _ in 0..STEPS {
        world.step().await?;
    }
    world.heal().await
}

/// Returns the first history that a violation ends, of so many.
async fn search(histories: u64, broken: Broken) -> Option<(u64, Violation)> {
    for seed in 0..histories {
        if let Err(violation) = run(seed, broken).await {
            return Some((seed, violation));
        }
    }
    None
}

/// Random histories rarely have a result of an old epoch whose number is within the new one.
#[tokio::test(start_paused = true)]
async fn the_epoch_of_a_result_is_needed() {
    for (is_broken, expected) in [(false, Ok(())), (true, Err(("fetched", 0, 0)))] {
        let broken = Broken {
            log: is_broken.then_some(|rules: &mut Rules| rules.epoch = false),
            ..Broken::default()
        };
        let mut world = World::new(0, broken);
        let other = Update::Invalidate(Subject::KeyId(KeyId::from_static("other")));
        for _ in 0..2 {
            world.members[0].node.enqueue(&other, None);
        }
        world.catch_up().await;
        world.look_up(1, 0);
        world.land(1, 0).await;
        assert_eq!(world.engine.results(), 1);
        world.engine.replicate();
        world.now += 1;
        world.revoke(2, 0);
        world.flush(2).await;
        // They were sent so long ago that they are not sent again.
        world.members[0].node.state().own.clear();
        world.engine.fail_over();
        // The invalidation has number 1 there, and the result of the old epoch began at 2.
        world.record(2).await;
        world.flush(2).await;
        for _ in 0..2 {
            world.members[0].node.enqueue(&other, None);
        }
        world.catch_up().await;
        world.fetch(0, 0).await;
        assert_eq!(world.take_fetched(0, 0), expected);
    }
}

/// A hundred times as many with `TOWER_ORGKEY_FULL=1`.
#[tokio::test(start_paused = true)]
async fn no_history_uses_a_revoked_result() {
    let is_full = std::env::var_os("TOWER_ORGKEY_FULL").is_some();
    let histories = if is_full { 500_000 } else { 5_000 };
    let found = search(histories, Broken::default()).await;
    assert_eq!(found, None, "seed, and what happened to which node and key");
}

#[tokio::test(start_paused = true)]
async fn each_rule_is_needed() {
    let log = |rule: fn(&mut Rules)| Broken {
        log: Some(rule),
        ..Broken::default()
    };
    let broken = [
        ("known updates", log(|rules| rules.known_from = false)),
        ("updates since", log(|rules| rules.updates_since = false)),
        (
            "the head at a fetch",
            log(|rules| rules.head_at_fetch = false),
        ),
        (
            "the head in records",
            log(|rules| rules.head_in_records = false),
        ),
        (
            "an epoch per server process",
            Broken {
                epoch_by_run: true,
                ..Broken::default()
            },
        ),
        (
            "an epoch of a server without data",
            Broken {
                epoch_of_nothing: true,
                ..Broken::default()
            },
        ),
        (
            "the version before a fetch",
            Broken {
                version_before_fetch: true,
                ..Broken::default()
            },
        ),
        (
            "no fetch while an own update waits",
            Broken {
                outbox: true,
                ..Broken::default()
            },
        ),
    ];
    let mut unneeded = Vec::new();
    for (rule, broken) in broken {
        match search(20_000, broken).await {
            Some((seed, violation)) => println!("{rule}: {violation:?} in history {seed}"),
            None => unneeded.push(rule),
        }
    }
    assert!(unneeded.is_empty(), "no history fails without {unneeded:?}");
}
