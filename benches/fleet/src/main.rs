//! A fleet of processes with a real engine: how long a revocation takes, and how often the issuer is called.

mod hits;
mod join;
mod node;
mod nodes;
mod outage;
mod redis;
#[path = "../../src/table.rs"]
#[allow(dead_code)] // The other benches use all of it.
mod table;

use std::time::Duration;

use kinde_emulator::{Endpoint, IssuedKey, KeySpec, KindeEmulator};
use tokio::runtime::Runtime;

use self::nodes::Nodes;
use self::redis::RedisServer;

/// The number of processes of the tables about revocations and starts, and of the one about calls.
const NODES: usize = 8;
const MANY_NODES: usize = 10;
const REVOCATIONS: usize = 1_000;
/// Requests of each revoked key on each node, after the acknowledgement: a million in total.
const REQUESTS: usize = 125;
const KEYS: usize = 500;
/// Requests of these keys in the steady state, each ten times per second and node, for this long.
const STEADY_KEYS: usize = 100;
const STEADY_SOFT_TTL: Duration = Duration::from_secs(30);
const STEADY: Duration = Duration::from_secs(60);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["node", ref settings @ ..] => node::serve(settings),
        ["hits", engine] => hits::count(engine),
        ref names => {
            let is_named = |name: &str| names.is_empty() || names.contains(&name);
            let known = TABLES.map(|(name, _)| name);
            let unknown = names.iter().find(|name| !known.contains(name));
            assert!(unknown.is_none(), "usage: benches/run fleet {known:?}");
            for (_, print) in TABLES.iter().filter(|(name, _)| is_named(name)) {
                print();
            }
        }
    }
}

/// The tables, by name.
const TABLES: [(&str, fn()); 5] = [
    ("revocations", revocations),
    ("calls", calls),
    ("outage", outage::hits),
    ("join", join::starts),
    ("instructions", instructions),
];

/// What all nodes use.
struct World {
    engine: RedisServer,
    issuer: KindeEmulator,
    _runtime: Runtime,
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        Self {
            engine: RedisServer::start(),
            issuer: runtime.block_on(KindeEmulator::start()).expect("an issuer"),
            _runtime: runtime,
        }
    }

    fn keys(&self, count: usize) -> Vec<IssuedKey> {
        let spec = || KeySpec::organization("org_1").scopes(["read:reports"]);
        (0..count).map(|_| self.issuer.issue_key(spec())).collect()
    }

    fn calls(&self) -> u64 {
        self.issuer.calls().of(Endpoint::Verify).total
    }
}

fn revocations() {
    let world = World::new();
    let keys = world.keys(REVOCATIONS + KEYS);
    let (revoked, others) = keys.split_at(REVOCATIONS);
    let mut nodes = Nodes::start(&world, NODES, Duration::from_secs(60));
    for keys in keys.chunks(KEYS) {
        nodes.set_keys(keys);
        nodes.request_all();
    }
    // The last keys, so the load is of keys that stay valid.
    nodes.set_keys(others);
    let mut lines = Vec::new();
    for (row, load) in [("idle", 0), ("10,000 requests per second", 10_000)] {
        nodes.begin_load(load / NODES);
        let half = REVOCATIONS / 2;
        let begin = if load == 0 { 0 } else { half };
        let (mut took, mut incomplete, mut accepted) = (Vec::new(), 0, 0);
        for (n, key) in revoked[begin..begin + half].iter().enumerate() {
            world.issuer.revoke(key.id());
            let reach = nodes.revoke(n % NODES, key.id());
            incomplete += usize::from(reach.applied != NODES);
            took.push(reach.took.as_secs_f64() * 1_000.0);
            accepted += nodes.accepted(key.secret(), REQUESTS);
        }
        let (requests, rejected) = nodes.end_load();
        took.sort_by(f64::total_cmp);
        let at = |part: f64| format!("{:.1} ms", took[((half - 1) as f64 * part) as usize]);
        lines.push(vec![
            row.to_owned(),
            at(0.5),
            at(0.99),
            at(1.0),
            incomplete.to_string(),
            format!("{accepted} of {}", half * NODES * REQUESTS),
            format!("{rejected} of {requests}"),
        ]);
    }
    table::print(
        &format!("revocations, until all of {NODES} processes have acknowledged them"),
        &[
            "load",
            "p50",
            "p99",
            "max",
            "not by all",
            "requests accepted afterwards",
            "other requests rejected",
        ],
        &lines,
    );
}

fn calls() {
    // Both fleets at the same time, so that the load of the machine is the same.
    let mut fleets = [1, MANY_NODES].map(|count| {
        let world = World::new();
        let keys = world.keys(STEADY_KEYS);
        let mut nodes = Nodes::start(&world, count, STEADY_SOFT_TTL);
        nodes.set_keys(&keys);
        nodes.request_all();
        nodes.begin_load(STEADY_KEYS * 10);
        (world, nodes)
    });
    // Until the refreshes of the keys are spread over the time.
    std::thread::sleep(STEADY_SOFT_TTL);
    let before = fleets.each_ref().map(|(world, _)| world.calls());
    std::thread::sleep(STEADY);
    let after = fleets.each_ref().map(|(world, _)| world.calls());
    let of_one = (after[0] - before[0]) as f64;
    let soft_ttls = STEADY.as_secs_f64() / STEADY_SOFT_TTL.as_secs_f64();
    let mut lines = Vec::new();
    for (n, (_, nodes)) in fleets.iter_mut().enumerate() {
        let calls = (after[n] - before[n]) as f64;
        let (requests, rejected) = nodes.end_load();
        lines.push(vec![
            [1, MANY_NODES][n].to_string(),
            format!("{calls:.0}"),
            format!("{:.2}", calls / STEADY_KEYS as f64 / soft_ttls),
            table::ratio(calls, of_one),
            format!("{rejected} of {requests}"),
        ]);
    }
    drop(fleets);
    table::print(
        &format!(
            "steady state: calls to the issuer in {} s, for {STEADY_KEYS} keys that all nodes use, soft TTL {} s",
            STEADY.as_secs(),
            STEADY_SOFT_TTL.as_secs()
        ),
        &[
            "nodes",
            "calls",
            "per key and soft TTL",
            "relative to one node",
            "requests rejected",
        ],
        &lines,
    );

    let world = World::new();
    let keys = world.keys(KEYS);
    let mut nodes = Nodes::start(&world, MANY_NODES, Duration::from_secs(60));
    nodes.set_keys(&keys);
    nodes.request_all();
    let cold = world.calls();
    let mut later = Nodes::start(&world, 1, Duration::from_secs(60));
    later.set_keys(&keys);
    let took = later.request_all();
    let line = |row: String, calls: u64, nodes: usize| {
        let per_key = calls as f64 / KEYS as f64;
        let per_node = format!("{:.2}", per_key / nodes as f64);
        vec![row, calls.to_string(), format!("{per_key:.2}"), per_node]
    };
    table::print(
        &format!("cold start: calls to the issuer for {KEYS} keys"),
        &["start", "calls", "per key", "per key and node"],
        &[
            line(
                format!("{MANY_NODES} nodes, which request all keys at once"),
                cold,
                MANY_NODES,
            ),
            line(
                format!(
                    "one more node ({:.0} ms for all keys)",
                    took.as_secs_f64() * 1e3
                ),
                world.calls() - cold,
                1,
            ),
        ],
    );
}

fn instructions() {
    let world = World::new();
    let (alone, fleet) = (
        hits::instructions(hits::NO_ENGINE),
        hits::instructions(&world.engine.url()),
    );
    let line = |row: &str, count: f64| {
        vec![
            row.to_owned(),
            format!("{count:.1}"),
            format!("{:+.1}", count - alone),
        ]
    };
    table::print(
        "hit: instructions of a request",
        &["layer", "instructions", "over the first"],
        &[line("without a fleet", alone), line("in a fleet", fleet)],
    );
}
