//! Properties of arbitrary sequences of requests.

use proptest::prelude::*;
use tokio::runtime::Runtime;
use tower_orgkey::Quota;

use super::*;

const ORGS: [&str; 3] = ["org_1", "org_2", "org_3"];

#[derive(Clone, Copy, Debug)]
struct Plan {
    requests: u32,
    window: Duration,
    burst: u32,
}

impl Plan {
    fn quota(self) -> Quota {
        Quota::per(self.requests, self.window).burst(self.burst)
    }

    /// The maximum number of requests in this duration.
    fn max(self, duration: Duration) -> u128 {
        let refilled = duration.as_nanos() * u128::from(self.requests) / self.window.as_nanos();
        u128::from(self.burst) + refilled
    }
}

fn plan() -> impl Strategy<Value = Plan> {
    (1..50_u32, 1..10_000_u64, 1..30_u32).prop_map(|(requests, window, burst)| Plan {
        requests,
        window: Duration::from_millis(window),
        burst,
    })
}

/// A pause in microseconds, and the index of the request that follows.
fn steps(indexes: usize) -> impl Strategy<Value = Vec<(u64, usize)>> {
    let pause = prop_oneof![5 => Just(0), 3 => 0..200_000_u64, 1 => 0..5_000_000_u64];
    prop::collection::vec((pause, 0..indexes), 1..200)
}

/// Checks the maximum for the interval between any two requests that passed.
fn is_within(plan: Plan, passed: &[Duration]) -> Result<(), TestCaseError> {
    for (first, from) in passed.iter().enumerate() {
        for (last, to) in passed.iter().enumerate().skip(first) {
            let number = (last - first + 1) as u128;
            let max = plan.max(to.saturating_sub(*from));
            prop_assert!(number <= max, "{number} of {max} from {from:?} to {to:?}");
        }
    }
    Ok(())
}

/// A runtime with a paused clock.
fn paused() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rate_is_bounded_and_organizations_independent(
        plans in [plan(), plan(), plan()],
        steps in steps(3),
    ) {
        let layer = |clock: &TestClock| {
            let quota = move |org: &OrgContext| {
                let at = ORGS.iter().position(|code| org.org_code() == code)?;
                Some(plans[at].quota())
            };
            build(OrgRateLimitLayer::builder(quota).ratelimit_fields("p"), clock)
        };
        let runtime = paused();
        let _entered = runtime.enter();
        let clock = TestClock::new();
        let mut together = limited(&layer(&clock));
        // Three more, each for one organization only.
        let mut alone: Vec<Limited> = ORGS.iter().map(|_| limited(&layer(&clock))).collect();
        let mut passed: [Vec<Duration>; 3] = Default::default();
        let mut earliest: [Option<Duration>; 3] = [None; 3];
        for (pause, at) in steps {
            clock.jump(Duration::from_micros(pause));
            let context = org(ORGS[at]);
            let (answer, as_alone) = (together(&context), alone[at](&context));
            prop_assert_eq!(answer.status(), as_alone.status());
            prop_assert_eq!(&answer.headers()["ratelimit"], &as_alone.headers()["ratelimit"]);
            prop_assert_eq!(wait(&answer), wait(&as_alone));
            let now = clock.elapsed();
            if let Some(earliest) = earliest[at] {
                prop_assert_eq!(wait(&answer).is_none(), now >= earliest, "not at the promised time");
            }
            earliest[at] = wait(&answer).map(|wait| now + wait);
            if wait(&answer).is_none() {
                passed[at].push(now);
            }
        }
        for (plan, passed) in plans.into_iter().zip(&passed) {
            is_within(plan, passed)?;
        }
    }

    /// However the quota changes, none is exceeded by the requests that passed under it. There are more quotas than are tracked
    /// at a time.
    #[test]
    fn changing_quotas_are_never_exceeded(
        plans in prop::collection::vec(plan(), 7),
        steps in steps(7),
    ) {
        let runtime = paused();
        let _entered = runtime.enter();
        let clock = TestClock::new();
        let chosen = std::sync::Arc::new(std::sync::Mutex::new(plans[0]));
        let quota = {
            let chosen = std::sync::Arc::clone(&chosen);
            move |_: &OrgContext| Some(chosen.lock().unwrap().quota())
        };
        let mut limited = limited(&build(OrgRateLimitLayer::builder(quota), &clock));
        let mut passed: Vec<Vec<Duration>> = vec![Vec::new(); plans.len()];
        for (pause, at) in steps {
            clock.jump(Duration::from_micros(pause));
            *chosen.lock().unwrap() = plans[at];
            if passes(&mut limited, &org("org_1")) {
                passed[at].push(clock.elapsed());
            }
        }
        for (plan, passed) in plans.into_iter().zip(&passed) {
            is_within(plan, passed)?;
        }
    }

    #[test]
    fn ratelimit_field_is_exact(plan in plan(), before in 0..40_usize, pause in 0..3_000_u64) {
        let runtime = paused();
        let _entered = runtime.enter();
        let clock = TestClock::new();
        let mut limited = limited(&build(quota(plan.quota()).ratelimit_fields("p"), &clock));
        let org = org("org_1");
        for _ in 0..before {
            limited(&org);
        }
        clock.jump(Duration::from_millis(pause));
        let answer = limited(&org);
        let field = answer.headers()["ratelimit"].to_str().unwrap();
        let remaining: usize = field
            .strip_prefix("\"p\";r=")
            .and_then(|rest| rest.split(';').next())
            .unwrap()
            .parse()
            .unwrap();
        prop_assert_eq!(passed(&mut limited, &org), remaining);
    }
}
