//! Instructions and allocations per request, counted by valgrind.
//!
//! A row runs twice in a child process, once for a few requests and once for many. The difference excludes the cost of the
//! start-up.

use std::process::Command;

/// The cost of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) instructions: f64,
    pub(crate) allocations: f64,
}

const FEW: u64 = 500;
const MANY: u64 = 5_500;

pub(crate) fn of(row: &str) -> Counts {
    Counts {
        instructions: instructions(row),
        allocations: per_request(row, allocations_of),
    }
}

pub(crate) fn instructions(row: &str) -> f64 {
    per_request(row, instructions_of)
}

fn per_request(row: &str, count: fn(&str, u64) -> u64) -> f64 {
    (count(row, MANY) - count(row, FEW)) as f64 / (MANY - FEW) as f64
}

fn instructions_of(row: &str, times: u64) -> u64 {
    let said = valgrind(
        &["--tool=callgrind", "--callgrind-out-file=/dev/null"],
        row,
        times,
    );
    number_after(&said, "Collected :")
}

fn allocations_of(row: &str, times: u64) -> u64 {
    let said = valgrind(&["--tool=dhat", "--dhat-out-file=/dev/null"], row, times);
    let (_, total) = said.split_once("Total:").expect("dhat's total");
    number_after(total, "bytes in")
}

fn valgrind(tool: &[&str], row: &str, times: u64) -> String {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new("valgrind")
        .args(tool)
        .arg(program)
        .args(["row", row, &times.to_string()])
        .output()
        .expect("valgrind is installed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "row `{row}`: {said}");
    said
}

fn number_after(text: &str, label: &str) -> u64 {
    let (_, rest) = text.split_once(label).expect("valgrind's figure");
    let digits: String = rest
        .trim_start()
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == ',')
        .filter(char::is_ascii_digit)
        .collect();
    digits.parse().expect("a number")
}
