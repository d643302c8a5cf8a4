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
            let key = |_| HeaderValue::from_static(rows::BEARER);
            one.push(hammer(router, 1, key));
            all.push(hammer(router, cores, key));
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

/// The whole stack, compared with the layer alone: with one key, and with a key of another organization for each thread.
#[cfg(feature = "whole")]
pub(crate) fn whole_table() {
    use crate::rows::whole;

    let trail = whole::trail_with_room(2 * REQUESTS as usize);
    let layer = || {
        let auth = keys::builder_of(1).build();
        auth.expect("the default configuration")
    };
    let alone = keys::filled(layer(), 2);
    let everything = whole::whole_router_of(layer(), &trail);
    keys::fill(&everything, 2);
    let rows = [
        ("the layer and its guard, one key", &alone, 1),
        ("everything on, one key", &everything, 1),
        ("the layer and its guard, a key for each thread", &alone, 2),
        ("everything on, a key for each thread", &everything, 2),
    ]
    .map(|(says, router, keys)| (says, router.clone().with_state(()), keys));
    let mut took = vec![(Vec::new(), Vec::new()); rows.len()];
    for _ in 0..ROUNDS {
        for ((_, router, keys), (one, two)) in rows.iter().zip(&mut took) {
            let key = |thread: u32| keys::authorization(thread % keys);
            one.push(hammer(router, 1, key));
            whole::flush(&trail);
            two.push(hammer(router, 2, key));
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
        .map(|((says, ..), (one, two))| {
            vec![
                (*says).to_owned(),
                format!("{one:.0} ns"),
                format!("{two:.0} ns"),
                table::ratio(*two, *one),
            ]
        })
        .collect();
    table::print(
        "whole: on 1 thread and on 2 threads",
        &["row", "1 thread", "per thread of 2", "2 / 1"],
        &lines,
    );
}

/// Nanoseconds per request on this number of threads, each with its credential.
fn hammer(router: &Router, threads: usize, authorization: impl Fn(u32) -> HeaderValue) -> f64 {
    let barrier = Barrier::new(threads);
    // Entries that become stale meanwhile are refreshed by tasks.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("a runtime");
    let hammering = |authorization: HeaderValue| {
        let _entered = runtime.enter();
        let mut router = router.clone();
        barrier.wait();
        let begin = Instant::now();
        for _ in 0..REQUESTS {
            keys::call(&mut router, authorization.clone());
        }
        begin.elapsed().as_nanos() as f64 / f64::from(REQUESTS)
    };
    thread::scope(|scope| {
        let hammering = &hammering;
        let handles: Vec<_> = (0..)
            .take(threads)
            .map(|thread| {
                let authorization = authorization(thread);
                scope.spawn(move || hammering(authorization))
            })
            .collect();
        let took: Vec<f64> = handles
            .into_iter()
            .map(|handle| handle.join().expect("a thread that ends"))
            .collect();
        took.iter().sum::<f64>() / took.len() as f64
    })
}
