//! Random requests, faults, restarts, ends of periods and changes of plan: the sums stay exact.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kinde_emulator::{Endpoint, Fault};
use proptest::prelude::*;

use super::world::{MINUTE, Totals, World};

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Serve {
        org: usize,
        times: u64,
        loses: bool,
    },
    Send,
    /// With a fault for the next `times` calls of an endpoint.
    Faulted {
        at: Endpoint,
        fault: Breaks,
        times: u64,
    },
    /// A total that arrives while others are sent.
    Late {
        org: usize,
        more: u64,
    },
    Wait {
        minutes: u64,
    },
    /// Shortly before, or after, the end of a period.
    NearEnd,
    Roll,
    Lag {
        minutes: u64,
    },
    ChangePlan {
        org: usize,
    },
    Restart,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Breaks {
    LosesReply,
    Closes,
    Fails,
    RejectsToken,
    Truncates,
}

impl Breaks {
    fn fault(self) -> Fault {
        match self {
            Self::LosesReply => Fault::lose_reply(),
            Self::Closes => Fault::close(),
            Self::Fails => Fault::status(503),
            Self::RejectsToken => Fault::reject_token(),
            Self::Truncates => Fault::truncate(),
        }
    }
}

/// Up to 40 steps.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..40)
}

fn step() -> impl Strategy<Value = Step> {
    let at = prop_oneof![
        3 => Just(Endpoint::RecordUsage),
        1 => Just(Endpoint::ListAgreements),
        1 => Just(Endpoint::GetOrganization),
    ];
    let fault = prop_oneof![
        2 => Just(Breaks::LosesReply),
        2 => Just(Breaks::Closes),
        1 => Just(Breaks::Fails),
        1 => Just(Breaks::RejectsToken),
        1 => Just(Breaks::Truncates),
    ];
    let org = 0..3_usize;
    prop_oneof![
        4 => (org.clone(), 1..6_u64, any::<bool>())
            .prop_map(|(org, times, loses)| Step::Serve { org, times, loses }),
        3 => Just(Step::Send),
        3 => (at, fault, 1..4_u64).prop_map(|(at, fault, times)| Step::Faulted { at, fault, times }),
        2 => (org.clone(), 1..6_u64).prop_map(|(org, more)| Step::Late { org, more }),
        2 => (1..15_u64).prop_map(|minutes| Step::Wait { minutes }),
        1 => Just(Step::NearEnd),
        2 => Just(Step::Roll),
        1 => (0..90_u64).prop_map(|minutes| Step::Lag { minutes }),
        1 => org.prop_map(|org| Step::ChangePlan { org }),
        1 => Just(Step::Restart),
    ]
}

/// Carries out the steps, settles what is parked, and asserts that everything that was served is billed.
pub(crate) async fn bills_exactly(world: &World<impl Totals>, steps: &[Step]) {
    let names = ["org_0", "org_1", "org_2"];
    for name in names {
        world.agree(name);
    }
    let mut served: BTreeMap<String, u64> = BTreeMap::new();
    let mut process = world.start().await;
    for step in steps {
        match *step {
            Step::Serve { org, times, loses } => {
                process.loses.store(loses, Ordering::SeqCst);
                process.serve(world, names[org], times).await;
                *served.entry(names[org].to_owned()).or_default() += times;
            }
            Step::Send => {
                process.send().await;
            }
            Step::Faulted { at, fault, times } => {
                world.emulator.inject(at, fault.fault().times(times));
                process.send().await;
            }
            Step::Late { org, more } => {
                world
                    .emulator
                    .inject(Endpoint::RecordUsage, Fault::late().times(1));
                process.send().await;
                process.serve(world, names[org], more).await;
                *served.entry(names[org].to_owned()).or_default() += more;
                process.send().await;
                process.send().await;
                world.advance(2 * MINUTE);
                process.send().await;
                // Within the 5 min that a request may take.
                world.emulator.clear(Endpoint::RecordUsage);
            }
            Step::Wait { minutes } => world.advance(minutes * MINUTE),
            Step::NearEnd => {
                if world.left() > 4 * MINUTE {
                    world.advance(world.left() - 4 * MINUTE);
                }
            }
            Step::Roll => world.advance(world.left() + MINUTE),
            Step::Lag { minutes } => {
                world
                    .emulator
                    .set_period_lag(Duration::from_secs(minutes * MINUTE));
            }
            Step::ChangePlan { org } => {
                world.agree(names[org]);
            }
            Step::Restart => {
                drop(process);
                process = world.start().await;
            }
        }
        world.assert_never_lowered();
        for (name, billed) in world.billed() {
            let served = served.get(&name).copied().unwrap_or_default();
            assert!(
                billed <= served,
                "{name}: {billed} of {served} after {step:?}"
            );
        }
    }
    world.emulator.clear_faults();
    world.emulator.set_period_lag(Duration::ZERO);
    process.settle(world).await;
    assert_eq!(world.billed(), served);
    world.assert_never_lowered();
}
