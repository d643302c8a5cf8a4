//! How long a start takes, and what a new node costs in a fleet with much state.

use std::time::{Duration, Instant};

use crate::nodes::Nodes;
use crate::{NODES, World, table};

/// The updates of the log, and the results that are stored.
const UPDATES: usize = 100_000;
const RESULTS: usize = 100_000;
const SOFT_TTL: Duration = Duration::from_secs(400);

pub(crate) fn starts() {
    let world = World::new();
    let begin = Instant::now();
    let mut nodes = Nodes::start(&world, NODES, SOFT_TTL);
    let all = begin.elapsed();
    nodes.invalidate(0, UPDATES);
    let keys = world.keys(RESULTS);
    nodes.request_parts(&keys);
    let engine = world.engine.megabytes();
    let calls = world.calls();

    let unused = World::new();
    let begin = Instant::now();
    let mut empty = Nodes::start(&unused, 1, SOFT_TTL);
    let empty_took = begin.elapsed();
    let begin = Instant::now();
    let mut later = Nodes::start(&world, 1, SOFT_TTL);
    let later_took = begin.elapsed();
    let processor = later.processor_time();
    assert!(later.position() >= UPDATES as u64);
    let (before, joined) = (empty.megabytes(), later.megabytes());
    later.set_keys(&keys);
    let with_keys = later.megabytes();
    let requested = later.request_all();
    let calls = world.calls() - calls;
    let line = |row: String, took: Duration, calls: u64, memory: f64| {
        let took = format!("{:.0} ms", took.as_secs_f64() * 1_000.0);
        vec![row, took, calls.to_string(), format!("{memory:.1} MB")]
    };
    table::print(
        &format!(
            "starts, until nodes follow the engine; with {UPDATES} updates and {RESULTS} results it uses {engine:.0} MB"
        ),
        &["start", "time", "calls to the issuer", "more memory"],
        &[
            vec![
                format!("{NODES} processes, an empty engine, until they see each other"),
                format!("{:.0} ms", all.as_secs_f64() * 1_000.0),
                "0".to_owned(),
                String::new(),
            ],
            line(
                "one process, an empty engine".to_owned(),
                empty_took,
                0,
                0.0,
            ),
            line(
                format!(
                    "one process, an engine with {UPDATES} updates and {RESULTS} results ({:.0} ms of a processor)",
                    processor.as_secs_f64() * 1_000.0
                ),
                later_took,
                0,
                joined - before,
            ),
            line(
                format!("the same process requests the {RESULTS} keys"),
                requested,
                calls,
                later.megabytes() - with_keys,
            ),
        ],
    );
}
