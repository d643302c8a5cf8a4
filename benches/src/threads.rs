//! Hits on one key from every core: the contention between readers.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use axum::Router;
use http::HeaderValue;

use crate::keys;
use crate::rows::{self, floor, hand_made, ours};
use crate::table;

const ROUNDS: usize = 21;
const REQUESTS: u32 = 50_000;

pub(crate) fn table() {
    let cores = thread::available_parallelism()
        .map_or(2, usize::from)
        .max(2);
    let auth = ours::warm_layer();
    let rows = [
        ("(0) a layer that does nothing", floor::bare()),
        (
            "the floor over papaya",
            hand_made::over_papaya([rows::KEY.to_owned()]),
        ),
        (
            "the floor over moka",
            hand_made::over_moka([rows::KEY.to_owned()]),
        ),
        (
            "ours",
            rows::api().layer((auth, tower_orgkey::require_scope(rows::SCOPE))),
        ),
    ]
    .map(|(says, router)| (says, router.with_state(())));
    let mut took = vec![(Vec::new(), Vec::new()); rows.len()];
    for _ in 0..ROUNDS {
        for ((_, router), (one, all)) in rows.iter().zip(&mut took) {
            one.push(hammer(router, 1));
            all.push(hammer(router, cores));
        }
    }
    let figures: Vec<(f64, f64)> = took
        .into_iter()
        .map(|(one, all)| (table::median(one), table::median(all)))
        .collect();
    let papaya = figures[1].1 / figures[1].0;
    let lines: Vec<_> = rows
        .iter()
        .zip(&figures)
        .map(|((says, _), (one, all))| {
            vec![
                (*says).to_owned(),
                format!("{one:.0} ns"),
                format!("{all:.0} ns"),
                table::ratio(*all, *one),
                table::ratio(all / one, papaya),
                table::ratio(*all, figures[1].1),
            ]
        })
        .collect();
    table::print(
        &format!("threads: one key, on 1 thread and on {cores} threads"),
        &[
            "row",
            "1 thread",
            "per thread",
            "all / 1",
            "relative to papaya",
            "time / papaya's",
        ],
        &lines,
    );
}

/// The whole stack, compared with the layer alone.
#[cfg(feature = "whole")]
pub(crate) fn whole_table() {
    use crate::rows::whole;

    let (whole, trail) = whole::whole_with_room(2 * REQUESTS as usize);
    let ours = rows::api().layer((ours::warm_layer(), tower_orgkey::require_scope(rows::SCOPE)));
    let rows = [("the layer and its guard", ours), ("everything on", whole)]
        .map(|(says, router)| (says, router.with_state(())));
    let mut took = vec![(Vec::new(), Vec::new()); rows.len()];
    for _ in 0..ROUNDS {
        for ((_, router), (one, two)) in rows.iter().zip(&mut took) {
            one.push(hammer(router, 1));
            whole::flush(&trail);
            two.push(hammer(router, 2));
            whole::flush(&trail);
        }
    }
    let figures: Vec<(f64, f64)> = took
        .into_iter()
        .map(|(one, two)| (table::median(one), table::median(two)))
        .collect();
    let lines: Vec<_> = rows
        .iter()
        .zip(&figures)
        .map(|((says, _), (one, two))| {
            vec![
                (*says).to_owned(),
                format!("{one:.0} ns"),
                format!("{two:.0} ns"),
                table::ratio(*two, *one),
            ]
        })
        .collect();
    table::print(
        "whole: one key, on 1 thread and on 2 threads",
        &["row", "1 thread", "per thread of 2", "2 / 1"],
        &lines,
    );
}

/// Nanoseconds per request on this number of threads.
fn hammer(router: &Router, threads: usize) -> f64 {
    let barrier = Barrier::new(threads);
    // Entries that become stale meanwhile are refreshed by tasks.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("a runtime");
    let hammering = || {
        let _entered = runtime.enter();
        let mut router = router.clone();
        let authorization = HeaderValue::from_static(rows::BEARER);
        barrier.wait();
        let begin = Instant::now();
        for _ in 0..REQUESTS {
            keys::call(&mut router, authorization.clone());
        }
        begin.elapsed().as_nanos() as f64 / f64::from(REQUESTS)
    };
    thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(hammering)).collect();
        let took: Vec<f64> = handles
            .into_iter()
            .map(|handle| handle.join().expect("a thread that ends"))
            .collect();
        took.iter().sum::<f64>() / took.len() as f64
    })
}
