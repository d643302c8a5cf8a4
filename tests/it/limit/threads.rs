//! Rate limits on many threads.
//!
//! On threads outside the runtime the clock is not paused, so these quotas refill one request in minutes or more.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

use tower_orgkey::Quota;

use super::*;

const THREADS: usize = 8;
const DAY: Duration = secs(24 * 3_600);

#[tokio::test(start_paused = true)]
async fn concurrent_requests_pass_exactly_the_burst() {
    let clock = TestClock::new();
    let limit = build(quota(Quota::per(500, DAY)), &clock);
    let (begin, total) = (Barrier::new(THREADS), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut limited = limited(&limit);
                begin.wait();
                let passed = (0..1_000).filter(|_| passes(&mut limited, &org("org_1")));
                total.fetch_add(passed.count(), Ordering::SeqCst);
            });
        }
    });
    assert_eq!(total.into_inner(), 500);
    assert_eq!(limit.accounts(), 1);
}

/// The removal of accounts without usage races with requests that have found them: no request may be counted on an account that
/// was removed.
#[tokio::test(start_paused = true)]
async fn removal_during_use_yields_no_second_burst() {
    const ROUNDS: usize = 2_000;
    const BURST: usize = 20;
    let clock = TestClock::new();
    let limit = build(quota(Quota::per(20, DAY)), &clock);
    let names: Vec<&'static str> = (0..ROUNDS * 40)
        .map(|n| &*String::leak(format!("org_{n}")))
        .collect();
    let (begin, end) = (Barrier::new(THREADS), Barrier::new(THREADS));
    // Asserts only at the end, because a thread that panics would block the others.
    let (passed, rounds) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let newcomers = AtomicUsize::new(0);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (limit, clock, names, passed) = (&limit, &clock, &names, &passed);
            let (rounds, newcomers) = (&rounds, &newcomers);
            let (begin, end) = (&begin, &end);
            scope.spawn(move || {
                let mut limited = limited(limit);
                let busy = org("org_busy");
                for round in 0..ROUNDS {
                    if begin.wait().is_leader() {
                        let passed = passed.swap(0, Ordering::SeqCst);
                        rounds.lock().unwrap().push(passed);
                        // All quotas are full again.
                        clock.jump(DAY);
                    }
                    end.wait();
                    if thread < THREADS / 2 {
                        for _ in 0..BURST {
                            let one = usize::from(passes(&mut limited, &busy));
                            passed.fetch_add(one, Ordering::SeqCst);
                        }
                    } else {
                        for n in 0..10 {
                            let name = names[(round * 4 + thread - THREADS / 2) * 10 + n];
                            let one = usize::from(passes(&mut limited, &org(name)));
                            newcomers.fetch_add(one, Ordering::SeqCst);
                        }
                    }
                }
            });
        }
    });
    let mut rounds = rounds.into_inner().unwrap();
    rounds.push(passed.into_inner());
    // The first count is from before the first round.
    assert_eq!(rounds.remove(0), 0);
    assert_eq!(rounds.len(), ROUNDS);
    rounds.retain(|passed| *passed != BURST);
    assert_eq!(rounds, [0; 0], "other than {BURST} passed");
    assert_eq!(newcomers.into_inner(), ROUNDS * 40);
    assert!(
        limit.accounts() < 1_000,
        "{} of 80,000 are left",
        limit.accounts()
    );
}
