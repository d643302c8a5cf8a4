//! What the pages say is what the code does, where a page could fall behind unseen.

#[test]
fn the_front_page_explains_every_warning_and_error_and_no_other() {
    let explained = log_lines_of_the_readme(include_str!("../README.md"));
    let written = [
        warnings_and_errors(include_str!("../src/telemetry/kinde.rs")),
        warnings_and_errors(include_str!("../src/telemetry/limit.rs")),
        warnings_and_errors(include_str!("../src/telemetry/poller.rs")),
        warnings_and_errors(include_str!("../src/telemetry/requests.rs")),
        warnings_and_errors(include_str!("../src/telemetry/settings.rs")),
        warnings_and_errors(include_str!("../src/telemetry/upstream.rs")),
    ]
    .concat();
    assert!(explained.len() > 2 && written.len() > 2);
    for line in &explained {
        assert!(
            written.iter().any(|message| message.starts_with(line)),
            "no event begins like this: {line}"
        );
    }
    for message in &written {
        assert!(
            explained.iter().any(|line| message.starts_with(line)),
            "the troubleshooting of the README does not have: {message}"
        );
    }
}

/// The first column of the table of log lines, without the marks of code.
fn log_lines_of_the_readme(readme: &str) -> Vec<&str> {
    readme
        .lines()
        .skip_while(|line| !line.starts_with("| the log says |"))
        .skip(2)
        .map_while(|line| line.strip_prefix("| "))
        .filter_map(|row| row.split(" | ").next())
        .map(|cell| match cell.strip_prefix("``") {
            Some(cell) => cell.trim_end_matches("``"),
            None => cell.trim_matches('`'),
        })
        .collect()
}

/// The messages of the events of these levels: the one string in the macro, with its continued lines joined.
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
