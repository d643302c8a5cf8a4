//! Every row of `tests/FAULTS.md` has a test that carries its number: `fault_<row>_…`.

#![allow(clippy::unwrap_used)] // A test may fail on what it cannot read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_row_has_a_test_that_carries_its_number() {
    let table = fs::read_to_string(root().join("tests/FAULTS.md")).unwrap();
    let rows = rows(&table);
    assert!(rows.len() > 50, "the table was not read: {rows:?}");
    let mut shown = BTreeMap::new();
    for file in sources() {
        for name in fault_tests(&fs::read_to_string(&file).unwrap()) {
            shown.entry(row_of(&name).to_owned()).or_insert(format!(
                "{} ({})",
                name,
                file.display()
            ));
        }
    }

    let mut wrong = Vec::new();
    for row in &rows {
        if !shown.contains_key(row) {
            wrong.push(format!("row {row} has no test fault_{row}_…"));
        }
    }
    for (row, test) in &shown {
        if !rows.contains(row) {
            wrong.push(format!(
                "{test} names a row {row:?} that the table does not have"
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn rows_and_tests_are_read_as_they_are_written() {
    let table = "| # | Fault | T |\n|---|---|---|\n| P | the paused clock |\n\
                 | 1 | a | P,X |\n| 17b | b | S |\n| 2 | it waits a while | P |\n";
    let expected = ["1", "17b", "2"].map(str::to_owned);
    assert_eq!(rows(table), BTreeSet::from(expected));

    // In pieces, so that this file has no such test itself.
    let named = |name: &str| format!("fn {}{name}() {{}}", "fault_");
    let source = [
        "#[test]".to_owned(),
        named("01_plain"),
        "#[tokio::test(".to_owned(),
        "    start_paused = true".to_owned(),
        ")]".to_owned(),
        "/// Says why.".to_owned(),
        format!("async {}", named("17b_spread_over_lines")),
        named("3_is_no_test"),
        format!("// #[test] {}", named("4_in_a_comment")),
        "#[test]".to_owned(),
        "fn other() {}".to_owned(),
        named("5_after_another_test"),
        "#[test]".to_owned(),
        "#[ignore]".to_owned(),
        named("6_never_run"),
    ]
    .join("\n");
    let found = fault_tests(&source);
    assert_eq!(found, ["fault_01_plain", "fault_17b_spread_over_lines"]);
    assert_eq!(
        found.iter().map(|name| row_of(name)).collect::<Vec<_>>(),
        ["1", "17b"]
    );
}

/// The rows of the table.
fn rows(table: &str) -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    for line in table.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, row, .., _] = cells.as_slice() else {
            continue;
        };
        if row.starts_with(|c: char| c.is_ascii_digit()) {
            let is_new = rows.insert((*row).to_owned());
            assert!(is_new, "row {row} stands twice in the table");
        }
    }
    rows
}

/// The names of the tests in a source file that name a row, without those that are ignored.
fn fault_tests(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_test = false;
    let mut is_ignored = false;
    let mut in_attribute = false;
    for line in source.lines().map(str::trim) {
        if in_attribute || line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            is_ignored |= line.contains("ignore");
            in_attribute = !line.ends_with(']');
        } else if !line.starts_with("//") {
            let name = line
                .trim_start_matches("async ")
                .strip_prefix("fn ")
                .and_then(|rest| rest.split('(').next());
            if let Some(name) = name
                && is_test
                && !is_ignored
                && name.starts_with("fault_")
            {
                found.push(name.to_owned());
            }
            (is_test, is_ignored) = (false, false);
        }
    }
    found
}

/// `17b` of `fault_17b_a_bad_key_is_the_keys_fault`, and `9` of `fault_09_…`.
fn row_of(test: &str) -> &str {
    let row = test.split('_').nth(1).unwrap_or_default();
    row.trim_start_matches('0')
}

/// All Rust files of the workspace's packages and their tests.
fn sources() -> Vec<PathBuf> {
    let mut folders = ["tests", "src", "crates", "examples"]
        .map(|folder| root().join(folder))
        .to_vec();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}
