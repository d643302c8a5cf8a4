//! One request through every row: instructions and allocations by valgrind, and time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use criterion::Criterion;

use crate::counts::{self, Counts};
use crate::rows::{ALL, FLOOR, NO_OP, Row};
use crate::table;

/// The number of rounds, and of requests per row and round.
const ROUNDS: usize = 61;
const REQUESTS: u32 = 2_000;

pub(crate) fn of_all() {
    table(
        "hit: cost of one request, total and above a layer that does nothing",
        ALL,
    );
}

/// Prints the costs of these rows. They must include the floor and the rows they are compared with.
pub fn table(title: &str, rows: &[Row]) {
    let counts: BTreeMap<&str, Counts> = rows
        .iter()
        .map(|row| (row.name, counts::of(row.name)))
        .collect();
    let times = times(rows);
    let floor = counts[FLOOR].instructions - counts[NO_OP].instructions;
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let base = row.under.base();
            let gained = counts[row.name].instructions - counts[base].instructions;
            vec![
                row.says.to_owned(),
                format!("{:.0}", counts[row.name].instructions),
                format!("{gained:+.0}"),
                table::ratio(gained, floor),
                format!(
                    "{:+.2}",
                    counts[row.name].allocations - counts[base].allocations
                ),
                format!("{:.0} ns", times[row.name]),
                format!("{:+.0} ns", times[row.name] - times[base]),
            ]
        })
        .collect();
    table::print(
        title,
        &[
            "row",
            "instructions",
            "over (0)",
            "relative to the floor",
            "allocations",
            "time",
            "over (0)",
        ],
        &lines,
    );
}

/// Nanoseconds per request: the median of rounds in which the rows alternate.
fn times(rows: &[Row]) -> BTreeMap<&'static str, f64> {
    let mut rows: Vec<_> = rows
        .iter()
        .map(|row| (row.name, (row.build)(), Vec::new()))
        .collect();
    for _ in 0..ROUNDS {
        for (_, call, took) in &mut rows {
            let begin = Instant::now();
            for _ in 0..REQUESTS {
                call();
            }
            took.push(begin.elapsed().as_nanos() as f64 / f64::from(REQUESTS));
        }
    }
    rows.into_iter()
        .map(|(name, _, took)| (name, table::median(took)))
        .collect()
}

pub(crate) fn criterion(filter: Option<&str>) {
    let mut criterion = Criterion::default()
        .sample_size(50)
        .measurement_time(std::time::Duration::from_secs(2))
        .warm_up_time(std::time::Duration::from_millis(500));
    for row in ALL
        .iter()
        .filter(|row| filter.is_none_or(|filter| row.name.contains(filter)))
    {
        let mut call = (row.build)();
        criterion.bench_function(row.name, |bencher| bencher.iter(|| black_box(&mut call)()));
    }
    criterion.final_summary();
}

type Ratios = BTreeMap<&'static str, f64>;

/// The ratios of the whole stack and its parts that are compared with recorded values.
#[cfg(feature = "whole")]
fn ratios() -> Ratios {
    let of = counts::instructions;
    let (no_op, floor, off) = (of(NO_OP), of(FLOOR), of("whole-off"));
    let part = |row| (of(row) - off) / (floor - no_op);
    BTreeMap::from([
        ("audit", part("whole-audit")),
        ("concurrency", part("whole-concurrency")),
        ("guarded", (of("whole-guarded") - no_op) / (floor - no_op)),
        ("off", (off - no_op) / (floor - no_op)),
        ("rate", part("whole-rate")),
        ("settings", part("whole-settings")),
        ("usage", part("whole-usage")),
        ("whole", (of("whole") - no_op) / (floor - no_op)),
    ])
}

/// The ratios that are compared with recorded values.
#[cfg(not(feature = "whole"))]
fn ratios() -> Ratios {
    let of = counts::instructions;
    let (no_op, floor, ours) = (of(NO_OP), of(FLOOR), of(crate::rows::OURS));
    let gain = |of: f64| of / (floor - no_op);
    BTreeMap::from([
        ("hit", gain(ours - no_op)),
        ("scope-guard", gain(ours - of("ours-auth"))),
        (
            "organization-guard",
            gain(of("parameter-org") - of("parameter-auth")),
        ),
        // These requests do not reach the handler, which the row of a layer that does nothing includes.
        ("rejection", gain(of("ours-invalid") - no_op)),
        ("malformed", gain(of("ours-malformed") - no_op)),
    ])
}

/// The permitted growth of a ratio over its recorded value: this part of it, or two copies of a request, in parts of the
/// floor. Whether a request is copied once more differs between builds of the same source in different directories.
const MAY_GROW: f64 = 0.03;
const COPIES: f64 = 0.06;

pub(crate) fn guard() -> ExitCode {
    let recorded = std::fs::read_to_string(recorded_path()).expect("the recorded ratios");
    let recorded: BTreeMap<&str, f64> = recorded
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, ratio)| (name, ratio.parse().expect("a ratio")))
        .collect();
    let mut grown = false;
    for (name, ratio) in ratios() {
        let before = *recorded.get(name).expect("every ratio is recorded");
        let has_grown = ratio > before + COPIES.max(before * MAY_GROW);
        grown |= has_grown;
        println!(
            "{name}: {ratio:.3} of the floor, recorded {before:.3}{}",
            if has_grown { ": GROWN" } else { "" }
        );
    }
    if grown {
        eprintln!(
            "instructions have grown: spare them, or record the new ratios in the same commit with \
             `benches/run guard --record` or `benches/run whole --guard --record`, and the reason"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

pub(crate) fn record() {
    let mut text = String::from(
        "# Instructions as ratios to the floor of the same run: `benches/run guard` and `benches/run whole --guard` compare them.\n",
    );
    for (name, ratio) in ratios() {
        let _ = writeln!(text, "{name} {ratio:.3}");
    }
    std::fs::write(recorded_path(), text).expect("the recorded ratios");
}

fn recorded_path() -> PathBuf {
    let file = if cfg!(feature = "whole") {
        "whole.ratios"
    } else {
        "hit.ratios"
    };
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file)
}
