//! The cost of the layer, relative to a floor that is measured in the same run.
//!
//! Times are not reproducible on a shared machine. Instruction counts are, and so are ratios between alternating rows.

mod counts;
mod end_to_end;
mod herd;
pub mod hit;
mod keys;
mod miss;
pub mod rows;
mod scale;
mod table;
mod threads;
mod wrk;

use std::process::ExitCode;

const USAGE: &str = "\
usage: benches/run [bench] [options]

Without a bench, all of them, one after another.

  hit          one request, row by row: instructions, allocations, time
  hit --criterion [filter]   the same by criterion, to compare with its last run
  scale        one key to a million: the cost of a hit, the bytes of a key
  threads      one key, from every core
  herd         ten thousand requests at once with one cold key
  miss         a cold key, compared with a plain call to the issuer
  end_to_end   requests per second over loopback, under wrk
  gateway      `orgkey gateway` under wrk, and behind nginx; built separately
  fleet        a fleet of processes over Redis; built separately
  whole        audit, usage, limits and settings, each and together; built separately
  guard        instructions as ratios to the floor, against `benches/hit.ratios`
  guard --record             writes that file
  whole --guard [--record]   the same for the whole stack, against `benches/whole.ratios`";

/// Runs the bench named on the command line, or all benches.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => {
            hit::of_all();
            scale::table();
            threads::table();
            herd::table();
            miss::table();
            end_to_end::table();
        }
        ["hit"] => hit::of_all(),
        ["scale"] => scale::table(),
        ["threads"] => threads::table(),
        ["herd"] => herd::table(),
        ["miss"] => miss::table(),
        ["end_to_end"] => end_to_end::table(),
        ["hit", "--criterion", ref filter @ ..] => hit::criterion(filter.first().copied()),
        #[cfg(feature = "whole")]
        ["whole"] => {
            hit::table(
                "whole: what each part adds to a hit, and all together",
                &[rows::NO_OP, rows::FLOOR]
                    .map(rows::find)
                    .into_iter()
                    .chain(rows::whole::ALL.iter().copied())
                    .collect::<Vec<_>>(),
            );
            threads::whole_table();
            scale::whole_table();
            end_to_end::table();
        }
        ["guard"] | ["whole", "--guard"] => return hit::guard(),
        ["guard", "--record"] | ["whole", "--guard", "--record"] => hit::record(),
        // The child processes of the benches.
        ["row", name, times] => rows::repeat(
            rows::find(name),
            times.parse().expect("a number of requests"),
        ),
        ["memory", keys] => scale::memory(keys.parse().expect("a number of keys")),
        ["invalid", keys] => scale::invalid(keys.parse().expect("a number of keys")),
        #[cfg(feature = "whole")]
        ["memory-whole", keys] => scale::memory_whole(keys.parse().expect("a number of keys")),
        ["serve", row] => end_to_end::serve(row),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
