//! Compares tables in the documentation with the code.

#![allow(clippy::unwrap_used)] // A test may fail on what it cannot read.

use std::fs;
use std::path::Path;

#[test]
fn troubleshooting_lists_warnings_and_errors() {
    let explained = messages_in_table(include_str!("../../src/troubleshooting.md"));
    let written = [
        warnings_and_errors(include_str!("../../src/telemetry/kinde.rs")),
        warnings_and_errors(include_str!("../../src/telemetry/limit.rs")),
        warnings_and_errors(include_str!("../../src/telemetry/placement.rs")),
        warnings_and_errors(include_str!("../../src/telemetry/reconciler.rs")),
        warnings_and_errors(include_str!("../../src/telemetry/region.rs")),
        warnings_and_errors(include_str!("../../src/telemetry/requests.rs")),
        warnings_and_errors(include_str!("../../src/settings/telemetry.rs")),
        warnings_and_errors(include_str!("../../src/api_keys/telemetry.rs")),
    ]
    .concat();
    assert!(explained.len() > 2 && written.len() > 2);
    for line in &explained {
        assert!(
            written.iter().any(|message| message.starts_with(line)),
            "no message begins with: {line}"
        );
    }
    for message in &written {
        assert!(
            explained.iter().any(|line| message.starts_with(line)),
            "src/troubleshooting.md does not have: {message}"
        );
    }
}

#[test]
fn log_messages_of_satellites_are_documented() {
    for (readme, telemetry) in [
        (
            include_str!("../../crates/tower-orgkey-audit/README.md"),
            include_str!("../../crates/tower-orgkey-audit/src/telemetry.rs"),
        ),
        (
            include_str!("../../crates/tower-orgkey-usage/README.md"),
            concat!(
                include_str!("../../crates/tower-orgkey-usage/src/telemetry.rs"),
                include_str!("../../crates/tower-orgkey-usage/src/kinde_billing/telemetry.rs"),
            ),
        ),
    ] {
        let documented: Vec<&str> = readme
            .lines()
            .filter(|line| line.starts_with("| error |") || line.starts_with("| warn |"))
            .filter_map(|line| line.split('`').nth(1))
            .collect();
        let emitted = warnings_and_errors(telemetry);
        assert!(documented.len() > 2, "{documented:?}");
        assert_eq!(documented.len(), emitted.len(), "{emitted:?}");
        for message in &emitted {
            let is_documented = documented.iter().any(|begin| message.starts_with(begin));
            assert!(is_documented, "not in the README: {message}");
        }
    }
}

#[test]
fn rows_of_the_compliance_page_name_tests() {
    let page = include_str!("../../docs/compliance.md");
    let mut sources = String::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["tests", "crates"] {
        read_rust(&root.join(folder), &mut sources);
    }
    let assert_test = |name: &str| {
        let (before, _) = sources
            .split_once(&format!("fn {name}("))
            .unwrap_or_else(|| panic!("no such test: {name}"));
        let attribute = before.trim_end_matches("async ").trim_end().lines().last();
        let is_test = attribute.is_some_and(|line| {
            let line = line.trim_start();
            line.starts_with("#[test") || line.starts_with("#[tokio::test")
        });
        assert!(is_test, "not a test: {name}, after {attribute:?}");
    };
    for name in in_backticks(page).filter(|code| code.contains('_') && !code.contains(' ')) {
        assert_test(name);
    }

    let mut shown_by = None;
    let mut rows = 0;
    for line in page.lines() {
        let cells: Vec<&str> = line.split(" | ").collect();
        if !line.starts_with('|') {
            shown_by = None;
        } else if let Some(column) = shown_by {
            let is_test = |code: &str| code.contains('_') && !code.contains(' ');
            let named = line.starts_with("|---") || in_backticks(cells[column]).any(is_test);
            assert!(named, "nothing shows: {line}");
            rows += 1;
        } else {
            let header = |cell: &&str| cell.trim_end_matches(" |") == "shown by";
            shown_by = cells.iter().position(header);
            assert!(shown_by.is_some(), "a table without \"shown by\": {line}");
        }
    }
    assert!(rows > 25, "{rows}");
}

fn in_backticks(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn read_rust(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_rust(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// Returns the first column of the table of messages, without the backticks.
fn messages_in_table(page: &str) -> Vec<&str> {
    page.lines()
        .skip_while(|line| !line.starts_with("| message begins |"))
        .skip(2)
        .map_while(|line| line.strip_prefix("| "))
        .filter_map(|row| row.split(" | ").next())
        .map(|cell| match cell.strip_prefix("``") {
            Some(cell) => cell.trim_end_matches("``"),
            None => cell.trim_matches('`'),
        })
        .collect()
}

/// Returns the messages of these levels: the first string of each macro call, with continued lines joined.
fn warnings_and_errors(source: &str) -> Vec<String> {
    source
        .split("tracing::error!(")
        .skip(1)
        .flat_map(|rest| rest.split("tracing::warn!(").take(1))
        .chain(source.split("tracing::warn!(").skip(1))
        .filter_map(|event| event.split_once('"')?.1.split_once('"'))
        .map(|(message, _)| {
            let lines: Vec<&str> = message.split("\\\n").map(str::trim_start).collect();
            lines.concat()
        })
        .collect()
}
