//! Many threads at once.
//!
//! Outside of its runtime a paused clock goes on, so the quotas here give back one request in minutes or more.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

use tower_orgkey::Quota;

use crate::*;

const THREADS: usize = 8;
const DAY: Duration = secs(24 * 3_600);

#[tokio::test(start_paused = true)]
async fn exactly_the_burst_passes_however_many_try_at_once() {
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

/// Taking idle accounts from the shelf races with requests that find them there and spend: nothing may be spent on an account
/// that nobody finds any more.
#[tokio::test(start_paused = true)]
async fn an_account_that_is_tidied_away_while_it_is_used_gives_no_second_burst() {
    const ROUNDS: usize = 2_000;
    const BURST: usize = 20;
    let clock = TestClock::new();
    let limit = build(quota(Quota::per(20, DAY)), &clock);
    let names: Vec<&'static str> = (0..ROUNDS * 40)
        .map(|n| &*String::leak(format!("org_{n}")))
        .collect();
    let (begin, end) = (Barrier::new(THREADS), Barrier::new(THREADS));
    // Nothing is asserted before all are through: a thread that panicked would keep the others waiting.
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
                        // Everybody has everything back.
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
    // The first was counted before anybody began.
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
