//! What the layer costs, beside a floor that is measured in the same run.
//!
//! Seconds do not repeat on a shared machine. Instruction counts do, and so do ratios between rows that take turns.

mod counts;
mod hit;
mod rows;
mod table;

use std::process::ExitCode;

const USAGE: &str = "\
usage: tower-orgkey-benches <bench> [options]

  hit          one request, row by row: instructions, allocations, time
  hit --criterion [filter]   the same by criterion, to compare with its last run
  guard        instructions as ratios to the floor, against `benches/hit.ratios`
  guard --record             writes that file";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["hit"] => hit::table(),
        ["hit", "--criterion", ref filter @ ..] => hit::criterion(filter.first().copied()),
        ["guard"] => return hit::guard(),
        ["guard", "--record"] => hit::record(),
        // What the benches start under valgrind.
        ["row", name, times] => rows::repeat(name, times.parse().expect("a number of requests")),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
