//! Hits while the engine answers, hangs and is dead.

use std::time::Duration;

use crate::nodes::Nodes;
use crate::{KEYS, World, table};

/// Hits of each of these rounds. The engines take turns, so that the load of the machine is the same for all.
const HITS: usize = 20_000;
const ROUNDS: usize = 51;
/// Until the nodes know that the engine does not answer.
const KNOWN_AFTER: Duration = Duration::from_secs(5);

pub(crate) fn hits() {
    let mut fleets = ["answers", "hangs", "is dead"].map(|engine| {
        let world = World::new();
        let mut nodes = Nodes::start(&world, 1, Duration::from_secs(400));
        nodes.set_keys(&world.keys(KEYS));
        nodes.request_all();
        (engine, world, nodes, Vec::new())
    });
    fleets[1].1.engine.hang();
    fleets[2].1.engine.kill();
    std::thread::sleep(KNOWN_AFTER);
    for _ in 0..ROUNDS {
        for (_, _, nodes, rounds) in &mut fleets {
            rounds.push(nodes.hits(HITS));
        }
    }
    let at_99 = |rounds: &[[u64; 3]]| {
        let nanoseconds = rounds.iter().map(|round| round[1] as f64);
        table::median(nanoseconds.collect())
    };
    let answering = at_99(&fleets[0].3);
    let mut lines = Vec::new();
    for (engine, _, _, rounds) in &fleets {
        let p50 = table::median(rounds.iter().map(|round| round[0] as f64).collect());
        let p99 = at_99(rounds);
        let rejected: u64 = rounds.iter().map(|round| round[2]).sum();
        lines.push(vec![
            format!("the engine {engine}"),
            format!("{p50:.0} ns"),
            format!("{p99:.0} ns"),
            table::ratio(p99, answering),
            format!("{rejected} of {}", HITS * ROUNDS),
        ]);
    }
    table::print(
        &format!("hits, medians of {ROUNDS} rounds in turns"),
        &["state", "p50", "p99", "p99, relative", "rejected"],
        &lines,
    );
}
