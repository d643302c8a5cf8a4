//! The public layer and handle against a plain model, under random steps in paused time.
//!
//! `ORGKEY_MODEL_SEED` takes another seed, `TOWER_ORGKEY_FULL=1` takes millions of steps.

#![allow(clippy::unwrap_used)] // A test may fail on what it cannot do without.
#![allow(clippy::unchecked_time_subtraction)] // What comes later has the later time, or the test shall fail.

mod history;
mod machine;
mod oracle;
mod world;

use std::time::Duration;

use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

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

/// Runs so many cases, and returns the complaint about the smallest sequence of steps that was found to break the model.
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
    /// One second less than the layer takes while the issuer answers.
    StaleTooShort,
    Bounds { stale: PUBLISHED.stale.saturating_sub(SECOND), ..PUBLISHED }
);

belief!(
    /// One second less than the layer takes when the issuer does not answer.
    HardTooShort,
    Bounds { hard: PUBLISHED.hard.saturating_sub(SECOND), ..PUBLISHED }
);

#[test]
fn the_layer_does_what_the_model_permits() {
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

#[test]
fn a_model_whose_bound_while_the_issuer_answers_is_a_second_too_short_is_refuted() {
    let (complaint, _) = run::<StaleTooShort>(400, 100).unwrap_err();
    assert!(
        complaint.contains("served past twice the soft TTL"),
        "{complaint}"
    );
}

#[test]
fn a_model_whose_hard_bound_is_a_second_too_short_is_refuted() {
    let (complaint, _) = run::<HardTooShort>(400, 100).unwrap_err();
    assert!(
        complaint.contains("served past the hard TTL"),
        "{complaint}"
    );
}
