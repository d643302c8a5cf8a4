//! The program, as a shell starts it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use kinde_emulator::KindeEmulator;

use crate::checks::{HOST_ROUTE, ROUTES};
use crate::support::{Files, request, send, until};

fn orgkey(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orgkey"));
    command
        .arg("gateway")
        .args(arguments)
        .arg("--config")
        .arg(config)
        .env("RUST_LOG", "info");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn files(tables: &str) -> (KindeEmulator, Files) {
    let emulator = KindeEmulator::start().await.unwrap();
    let files = Files::new(&emulator);
    std::fs::write(files.path("gateway.toml"), files.config(&emulator, tables)).unwrap();
    (emulator, files)
}

fn explain(files: &Files, arguments: &[&str]) -> Output {
    let arguments = [&["explain"], arguments].concat();
    orgkey(&files.path("gateway.toml"), &arguments)
        .output()
        .unwrap()
}

#[tokio::test]
async fn check_reports_every_error_by_line() {
    let (_emulator, files) = files(ROUTES).await;
    let config = files.path("gateway.toml");
    let good = orgkey(&config, &["check"]).output().unwrap();
    assert!(good.status.success(), "{}", text(&good.stderr));
    assert!(text(&good.stderr).contains("api_id"));

    std::fs::write(&config, "[listen]\nchecks = 'here'\nport = 1\n").unwrap();
    let bad = orgkey(&config, &["check"]).output().unwrap();
    assert!(!bad.status.success());
    let errors = text(&bad.stderr);
    let lines: Vec<_> = errors
        .lines()
        .map(|line| {
            line.rsplit("gateway.toml:")
                .next()
                .unwrap()
                .split(':')
                .next()
                .unwrap()
        })
        .collect();
    assert_eq!(lines, ["1", "2", "3"], "{errors}");
}

#[tokio::test]
async fn check_reads_secrets() {
    let (emulator, files) = files(ROUTES).await;
    std::fs::write(files.path("token"), "short").unwrap();
    std::fs::remove_file(files.path("secret")).unwrap();
    let checked = orgkey(&files.path("gateway.toml"), &["check"])
        .output()
        .unwrap();
    assert!(!checked.status.success());
    let errors = text(&checked.stderr);
    assert!(
        errors.contains("at least 16 bytes") && errors.contains("secret"),
        "{errors}"
    );
    assert!(!errors.contains(&emulator.client_secret()));
}

#[tokio::test]
async fn explain_names_the_route_and_its_demands() {
    let (_emulator, files) = files(ROUTES).await;
    let output = explain(&files, &["GET", "/reports/7?x=1"]);
    assert!(output.status.success());
    let said = text(&output.stdout);
    assert!(
        said.contains("GET,POST /reports/{id}") && said.contains("read:reports"),
        "{said}"
    );
    let output = explain(&files, &["DELETE", "/orgs/a/b"]);
    assert!(text(&output.stdout).contains("`{org_code}` is the organization"));
    let output = explain(&files, &["GET", "/health"]);
    assert!(text(&output.stdout).contains("public"));
    for (path, said) in [
        ("/only-here", "403"),
        ("/reports/../x", "400"),
        ("/Health", "400"),
        ("/reports/a<b", "400"),
    ] {
        let output = explain(&files, &["GET", path]);
        assert!(!output.status.success(), "{path}");
        assert!(text(&output.stdout).starts_with(said), "{path}");
    }
}

#[tokio::test]
async fn explain_asks_for_the_host_if_a_route_has_one() {
    let (_emulator, files) = files(&format!("{ROUTES}{HOST_ROUTE}")).await;
    let output = explain(&files, &["GET", "/only-here", "--host", "api.example.com"]);
    assert!(output.status.success());
    let output = explain(&files, &["GET", "/only-here"]);
    assert!(!output.status.success());
    assert!(text(&output.stdout).contains("--host"));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn limit_of_open_files_is_raised() {
    let (_emulator, files) = files(ROUTES).await;
    let started = orgkey(&files.path("gateway.toml"), &[]);
    let mut process = Command::new("sh")
        .args(["-c", "ulimit -Sn 256; exec \"$@\"", "sh"])
        .arg(started.get_program())
        .args(started.get_args())
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("gateway is listening")));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let numbers: Vec<u64> = files
        .unwrap()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    assert_eq!(numbers[0], numbers[1].min(16_384), "{limits}");
}

#[tokio::test]
async fn signals_reload_and_stop() {
    let (_emulator, files) = files(ROUTES).await;
    let config = files.path("gateway.toml");
    let mut process = orgkey(&config, &[]).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
    let mut logged = |part: &str| {
        log.find_map(|line| line.ok().filter(|line| line.contains(part)))
            .unwrap()
    };
    let line = strip(&logged("gateway is listening"));
    let address = line
        .rsplit("checks=")
        .next()
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let status_of = async |target: &str| {
        let headers = [("x-original-method", "GET"), ("x-original-uri", target)];
        send(address, request("GET", "/v1/nginx", &headers))
            .await
            .status
            .as_u16()
    };
    assert_eq!(
        (status_of("/health").await, status_of("/moved").await),
        (200, 403)
    );
    let signal = |name: &str| {
        let sent = Command::new("kill")
            .args([name, &process.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    };

    let good = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, good.replace("/health", "/moved")).unwrap();
    signal("-HUP");
    logged("configuration is reloaded");
    assert_eq!(
        (status_of("/health").await, status_of("/moved").await),
        (403, 200)
    );

    for bad in [
        "[[route]",
        &good.replace("kind = 'kinde'", "kind = 'kinde'\napi_id = 'other'"),
    ] {
        std::fs::write(&config, bad).unwrap();
        signal("-HUP");
        logged("configuration is not reloaded");
        assert_eq!(
            (status_of("/health").await, status_of("/moved").await),
            (403, 200)
        );
    }

    signal("-TERM");
    let status = until(|| process.try_wait().unwrap()).await;
    assert!(status.success());
}

#[tokio::test]
async fn systemd_unit_is_valid() {
    let dir = tempfile::TempDir::new().unwrap();
    let unit = dir.path().join("orgkey-gateway.service");
    let text = include_str!("../../systemd/orgkey-gateway.service");
    let text = text.replace("/usr/local/bin/orgkey", env!("CARGO_BIN_EXE_orgkey"));
    std::fs::write(&unit, text).unwrap();
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&unit)
        .output();
    let verified = verified.expect("install systemd, which has systemd-analyze");
    let said = text_of(&verified);
    assert!(
        verified.status.success() && !said.contains("orgkey-gateway.service:"),
        "{said}"
    );
}

fn text_of(output: &Output) -> String {
    text(&[&output.stdout[..], &output.stderr].concat())
}

/// Removes the colors of a log line.
fn strip(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + part.split_once('m').map_or("", |(_, rest)| rest)
    })
}
