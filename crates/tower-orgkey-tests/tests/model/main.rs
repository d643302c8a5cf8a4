//! Drives the public layer and handle with random steps in paused time, and checks them against a plain model.
//!
//! `ORGKEY_MODEL_SEED` sets another seed, `TOWER_ORGKEY_FULL=1` runs ten million steps.

#![allow(clippy::unwrap_used)] // A test may panic.
#![allow(clippy::unchecked_time_subtraction)] // Later moments have later times, or the test fails.

mod circuits;
mod history;
mod machine;
mod oracle;
mod properties;
#[path = "../../../../tests/support/mod.rs"]
mod support;
mod world;

use std::time::Duration;

use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

use crate::circuits::Counting;
use crate::machine::{Belief, Machine, PUBLISHED, Tally};
use crate::oracle::Bounds;
use crate::world::{Step, World};

const STEPS_A_CASE: usize = 250;

fn seed() -> u64 {
    std::env::var("ORGKEY_MODEL_SEED").map_or(20_260_801, |seed| seed.parse().unwrap())
}

fn is_full() -> bool {
    std::env::var_os("TOWER_ORGKEY_FULL").is_some_and(|full| full == "1")
}

/// Runs this many cases. Returns the complaint about the shortest sequence of steps that refutes the model.
fn run<B: Belief>(cases: u32, max_shrink_iters: u32) -> Result<(), (String, Vec<Step>)> {
    let seed = seed();
    println!("seed {seed}: ORGKEY_MODEL_SEED={seed}");
    let config = Config {
        cases,
        max_shrink_iters,
        failure_persistence: None,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config.clone(), rng);
    let steps = World::sequential_strategy(STEPS_A_CASE..=STEPS_A_CASE);
    let result = runner.run(&steps, |(world, steps, seen)| {
        Machine::<B>::test_sequential(config.clone(), world, steps, seen);
        Ok(())
    });
    for (what, count) in B::tally().each() {
        println!("{count:>10} {what}");
    }
    match result {
        Ok(()) => Ok(()),
        Err(TestError::Fail(reason, (_, steps, _))) => Err((reason.message().to_owned(), steps)),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

macro_rules! belief {
    ($(#[$doc:meta])* $name:ident, $bounds:expr) => {
        $(#[$doc])*
        struct $name;

        impl Belief for $name {
            const BOUNDS: Bounds = $bounds;

            fn tally() -> &'static Tally {
                static TALLY: std::sync::LazyLock<Tally> = std::sync::LazyLock::new(Tally::default);
                &TALLY
            }
        }
    };
}

belief!(
    /// What the documentation promises.
    Published,
    PUBLISHED
);

const SECOND: Duration = Duration::from_secs(1);

belief!(
    /// One second less than the layer takes while verifications succeed.
    StaleTooShort,
    Bounds { stale: PUBLISHED.stale.saturating_sub(SECOND), ..PUBLISHED }
);

belief!(
    /// One second less than the layer takes while verifications fail.
    HardTooShort,
    Bounds { hard: PUBLISHED.hard.saturating_sub(SECOND), ..PUBLISHED }
);

belief!(
    /// Failures of unknown keys open the circuit of known keys.
    UnknownKeysCount,
    Bounds {
        counting: Counting { unknown_for_known: true, ..PUBLISHED.counting },
        ..PUBLISHED
    }
);

belief!(
    /// Failures of one key open a circuit.
    RepeatsCount,
    Bounds {
        counting: Counting { repeats: true, ..PUBLISHED.counting },
        ..PUBLISHED
    }
);

#[test]
fn layer_does_what_the_model_permits() {
    let cases = if is_full() { 40_000 } else { 4_000 };
    if let Err((complaint, steps)) = run::<Published>(cases, 2_000) {
        panic!("{complaint}\nafter {} steps: {steps:#?}", steps.len());
    }
    for (what, count) in Published::tally().each() {
        assert!(count > 0, "the run has shown nothing about: {what}");
    }
    let steps = u64::from(cases) * STEPS_A_CASE as u64;
    assert_eq!(Published::tally().each()[0].1, steps);
}

#[track_caller]
fn is_refuted<B: Belief>(by: &str) {
    let (complaint, _) = run::<B>(400, 100).unwrap_err();
    assert!(complaint.contains(by), "{complaint}");
}

#[test]
fn too_short_a_stale_bound_is_refuted() {
    is_refuted::<StaleTooShort>("served past twice the soft TTL");
}

#[test]
fn too_short_a_hard_bound_is_refuted() {
    is_refuted::<HardTooShort>("served past the hard TTL");
}

#[test]
fn unknown_keys_opening_the_known_circuit_is_refuted() {
    is_refuted::<UnknownKeysCount>("the circuit of known keys is closed");
}

#[test]
fn one_key_opening_a_circuit_is_refuted() {
    is_refuted::<RepeatsCount>("keys is closed though enough keys failed");
}
