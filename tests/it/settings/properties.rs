//! Random steps: a request gets the settings of its organization, and none that were invalidated before it began.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::store::Fault;
use super::{App, Outcome, code, settle};

const ORGS: [&str; 4] = ["a", "b", "ab", "aab"];

#[derive(Clone, Debug)]
enum Step {
    Ask(usize),
    Change(usize),
    /// Changes the settings and invalidates them, by the handle of the keys or of the settings.
    Invalidate(usize, bool),
    InvalidateAll(bool),
    Fail(usize, Fault),
    Recover,
    /// Holds loads back.
    Hold,
    Release(usize),
    Pass(u64),
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let org = 0..ORGS.len();
    let fault = prop_oneof![
        Just(Fault::Unavailable),
        Just(Fault::Broken),
        Just(Fault::Silent),
        Just(Fault::Panics)
    ];
    prop_oneof![
        10 => org.clone().prop_map(Step::Ask),
        3 => org.clone().prop_map(Step::Change),
        3 => (org.clone(), any::<bool>()).prop_map(|(org, by)| Step::Invalidate(org, by)),
        1 => any::<bool>().prop_map(Step::InvalidateAll),
        1 => (org, fault).prop_map(|(org, fault)| Step::Fail(org, fault)),
        2 => Just(Step::Recover),
        1 => Just(Step::Hold),
        3 => (0..6_usize).prop_map(Step::Release),
        3 => (0..130_u64).prop_map(Step::Pass),
        3 => Just(Step::Settle),
    ]
}

#[derive(Default)]
struct Tally {
    plans: usize,
    defaults: usize,
    rejections: usize,
}

async fn run(steps: &[Step], has_default: bool) -> Tally {
    let app = App::with(|builder| {
        if has_default {
            builder.default_on_error(super::store::Plan::of("default", 0))
        } else {
            builder
        }
    });
    let mut gate: Option<std::sync::Arc<tokio::sync::Semaphore>> = None;
    // The present revision of each organization, and the oldest one that a request may get that begins now.
    let mut present: HashMap<&str, u64> = HashMap::new();
    let mut oldest: HashMap<&str, u64> = HashMap::new();
    let mut asked = Vec::new();
    for step in steps {
        match *step {
            Step::Ask(org) => {
                let org = ORGS[org];
                let oldest = oldest.get(org).copied().unwrap_or_default();
                asked.push((oldest, org, app.begin(org)));
                // The request reads the cache before the next step.
                tokio::task::yield_now().await;
            }
            Step::Change(org) => {
                app.store.change(ORGS[org]);
                *present.entry(ORGS[org]).or_default() += 1;
            }
            Step::Invalidate(org, by_keys) => {
                let org = ORGS[org];
                app.store.change(org);
                let now = present.entry(org).or_default();
                *now += 1;
                oldest.insert(org, *now);
                if by_keys {
                    app.keys.invalidate_org(&code(org));
                } else {
                    app.layer.handle().invalidate_org(&code(org));
                }
            }
            Step::InvalidateAll(by_keys) => {
                oldest.clone_from(&present);
                if by_keys {
                    app.keys.invalidate_all();
                } else {
                    app.layer.handle().invalidate_all();
                }
            }
            Step::Fail(org, fault) => app.store.fails_for(ORGS[org], fault),
            Step::Recover => app.store.recovers(),
            Step::Hold => {
                gate.get_or_insert_with(|| app.store.hold());
            }
            Step::Release(permits) => {
                if let Some(gate) = &gate {
                    gate.add_permits(permits);
                }
            }
            Step::Pass(seconds) => tokio::time::advance(Duration::from_secs(seconds)).await,
            Step::Settle => settle().await,
        }
    }
    let mut tally = Tally::default();
    for (oldest, org, asked) in asked {
        match asked.await.unwrap() {
            Outcome::Plan(plan) => {
                assert_eq!(plan.org, org);
                assert!(plan.revision >= oldest, "{plan:?} is older than {oldest}");
                tally.plans += 1;
            }
            Outcome::Default(plan) => {
                assert!(has_default && plan.org == "default");
                tally.defaults += 1;
            }
            outcome @ Outcome::Unavailable(_) => {
                assert!(!has_default && outcome.is_unavailable());
                tally.rejections += 1;
            }
        }
    }
    tally
}

#[test]
fn random_steps_never_mix_or_revive_settings() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 400,
        ..ProptestConfig::default()
    });
    let total = std::cell::RefCell::new(Tally::default());
    let cases = (prop::collection::vec(step(), 1..80), any::<bool>());
    runner
        .run(&cases, |(steps, has_default)| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            let tally = runtime.block_on(run(&steps, has_default));
            let mut total = total.borrow_mut();
            total.plans += tally.plans;
            total.defaults += tally.defaults;
            total.rejections += tally.rejections;
            Ok(())
        })
        .unwrap();
    let total = total.into_inner();
    assert!(
        total.plans > 1_000 && total.defaults > 10 && total.rejections > 10,
        "too little happened: {} {} {}",
        total.plans,
        total.defaults,
        total.rejections
    );
}
