//! The cost of a hit and the memory per key, from one key to a million.

use std::process::Command;
use std::time::{Duration, Instant};

use axum::Router;
use http::HeaderValue;

use crate::keys;
use crate::rows::{floor, hand_made};
use crate::table;

const ROUNDS: usize = 11;
const REQUESTS: u32 = 20_000;
const SIZES: [u32; 5] = [1, 1_000, 10_000, 100_000, 1_000_000];

/// Long enough to verify a million keys before the first one is stale.
const SOFT_TTL: Duration = Duration::from_secs(3_600);

type Draw = fn(u32, &mut u64) -> u32;

pub(crate) fn table() {
    let mut lines = Vec::new();
    for size in SIZES {
        let layer = keys::builder()
            .soft_ttl(SOFT_TTL)
            .hard_ttl(SOFT_TTL * 2)
            .capacity(u64::from(size.max(10)))
            .build()
            .expect("settings");
        let mut rows = [
            ("no-op", floor::bare()),
            ("papaya", hand_made::over_papaya((0..size).map(keys::key))),
            ("moka", hand_made::over_moka((0..size).map(keys::key))),
            ("ours", keys::filled(layer, size)),
        ]
        .map(|(name, router)| (name, router.with_state(())));
        let draws: [(&str, Draw); 2] = [("uniform", keys::uniform), ("Zipf", keys::zipf)];
        for (law, draw) in draws {
            let [no_op, papaya, moka, ours] = times(&mut rows, size, draw);
            lines.push(vec![
                format!("{size} keys, {law}"),
                format!("{:+.0} ns", papaya - no_op),
                format!("{:+.0} ns", moka - no_op),
                format!("{:+.0} ns", ours - no_op),
                table::ratio(ours - no_op, papaya - no_op),
                table::ratio(ours - no_op, moka - no_op),
            ]);
        }
    }
    table::print(
        "scale: instructions of a hit above a layer that does nothing",
        &[
            "keys",
            "floor over papaya",
            "floor over moka",
            "ours",
            "ours / papaya",
            "ours / moka",
        ],
        &lines,
    );

    let lines: Vec<_> = SIZES[2..]
        .iter()
        .map(|size| {
            let bytes = in_a_child(&["memory", &size.to_string()]);
            vec![format!("{size} keys"), format!("{bytes:.0}")]
        })
        .collect();
    table::print(
        "scale: resident bytes per cached key",
        &["keys", "bytes per key"],
        &lines,
    );

    let lines = [20_000, 200_000, 1_000_000].map(|keys: u32| {
        let bytes = in_a_child(&["invalid", &keys.to_string()]);
        vec![
            format!("{keys} invalid keys"),
            format!("{:.1} MB", bytes / 1e6),
        ]
    });
    table::print(
        "scale: resident bytes of invalid keys, capacity 100,000",
        &["invalid keys", "resident bytes"],
        &lines,
    );
}

fn times(rows: &mut [(&str, Router); 4], size: u32, draw: Draw) -> [f64; 4] {
    let mut took: [Vec<f64>; 4] = Default::default();
    let mut random = 1;
    for _ in 0..ROUNDS {
        let requests: Vec<HeaderValue> = (0..REQUESTS)
            .map(|_| keys::authorization(draw(size, &mut random)))
            .collect();
        for (at, (_, router)) in rows.iter_mut().enumerate() {
            let begin = Instant::now();
            for authorization in &requests {
                keys::call(router, authorization.clone());
            }
            took[at].push(begin.elapsed().as_nanos() as f64 / f64::from(REQUESTS));
        }
    }
    took.map(table::median)
}

/// Runs this program again for a figure that needs a fresh heap.
fn in_a_child(arguments: &[&str]) -> f64 {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("a child");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.trim().parse().expect("a figure")
}

/// Prints the memory per cached key, in bytes.
pub(crate) fn memory(size: u32) {
    // Excludes the runtime, the code and one-time allocations.
    let layer = |capacity: u32| {
        keys::builder()
            .soft_ttl(SOFT_TTL)
            .hard_ttl(SOFT_TTL * 2)
            .capacity(u64::from(capacity))
            .build()
            .expect("settings")
    };
    let warm = keys::filled(layer(1_000), 1_000);
    let before = keys::resident();
    let auth = layer(size);
    let handle = auth.handle();
    let full = keys::filled(auth, size);
    let after = keys::resident();
    let entries = handle.stats().entries;
    assert!(
        entries * 100 >= size as usize * 99,
        "{entries} of {size} are cached"
    );
    println!("{}", (after - before) as f64 / entries as f64);
    drop((warm, full));
}

/// Resident bytes per key with everything on.
#[cfg(feature = "whole")]
pub(crate) fn whole_table() {
    let bytes = in_a_child(&["memory-whole", "100000"]);
    table::print(
        "whole: resident bytes per active key, one route a key, 10 keys an organization",
        &["keys", "bytes per key"],
        &[vec!["100000 keys".into(), format!("{bytes:.0}")]],
    );
}

/// Prints the memory per key with everything on, in bytes. All keys are active in two minutes, so usage has a row of the minute
/// and a row of the totals for each.
#[cfg(feature = "whole")]
pub(crate) fn memory_whole(size: u32) {
    use crate::rows::whole;

    let router = |keys: u32| {
        let auth = keys::builder_of(10)
            .soft_ttl(SOFT_TTL)
            .hard_ttl(SOFT_TTL * 2);
        let auth = auth.capacity(u64::from(keys)).build().expect("settings");
        let trail = whole::trail();
        (whole::whole_router_of(auth, &trail), trail)
    };
    let to_next_minute = || {
        let now = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .expect("a clock");
        std::thread::sleep(Duration::from_secs(61 - now.as_secs() % 60));
    };
    let warm = router(1_000);
    keys::fill(&warm.0, 1_000);
    let before = keys::resident();
    let full = router(size);
    keys::fill(&full.0, size);
    to_next_minute();
    keys::fill(&full.0, size);
    println!("{}", (keys::resident() - before) as f64 / f64::from(size));
    drop((warm, full));
}

/// Prints the memory of invalid keys, in bytes.
pub(crate) fn invalid(of: u32) {
    use tower::ServiceExt;
    use tower_orgkey::{ApiKeyLayer, Verification, test_util::TestClock, verifier_fn};

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        // On a paused clock, because invalid keys have a budget: a million of them take hours.
        let auth = ApiKeyLayer::builder(verifier_fn(|_| async { Ok(Verification::invalid()) }))
            .test_clock(TestClock::new())
            .build()
            .expect("settings");
        let handle = auth.handle();
        let router = crate::rows::api().layer(auth);
        let before = keys::resident();
        for n in 0..of {
            let request = crate::rows::request_with(crate::rows::REPORTS, keys::authorization(n));
            drop(router.clone().oneshot(request).await);
            tokio::time::advance(Duration::from_millis(20)).await;
        }
        let stats = handle.stats();
        assert!(stats.invalid_entries > 9_000, "{stats:?}");
        println!("{}", keys::resident() - before);
    });
}
