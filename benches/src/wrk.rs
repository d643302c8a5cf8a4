//! The load generator.

use std::process::Command;

/// Returns the requests per second over one second, with 32 connections. All responses must have a status of 2xx.
pub(crate) fn rate<'a>(url: &str, headers: impl IntoIterator<Item = &'a str>) -> f64 {
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c32", "-d1s"]);
    for header in headers {
        command.args(["-H", header]);
    }
    let output = command.arg(url).output().expect("wrk is installed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!said.contains("Non-2xx"), "{said}");
    said.split_once("Requests/sec:")
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
        .expect("wrk's figure")
}
