//! Runs every `curl` line that the quickstart prints, and compares the response with the line above it.

#![cfg(all(unix, feature = "axum", feature = "kinde"))]
#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests that panics is a test that fails"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use kinde_emulator::{KeySpec, KindeEmulator};
use serde_json::{Value, json};

/// Cargo builds the examples along with the tests, unless it was told to build this one test alone.
fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    let binary = profile.join("examples").join("quickstart");
    if !binary.exists() {
        let built = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--profile",
                "test",
                "--example",
                "quickstart",
            ])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success());
    }
    binary
}

/// The example, running.
struct Quickstart {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: Option<JoinHandle<String>>,
    /// What it printed until it was ready.
    printed: Vec<String>,
}

impl Quickstart {
    fn start(env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(binary());
        for name in [
            "KINDE_ISSUER_URL",
            "KINDE_CLIENT_ID",
            "KINDE_CLIENT_SECRET",
            "RUST_LOG",
        ] {
            command.env_remove(name);
        }
        let mut child = command
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        // Read all along, so that the example never waits for somebody to read its log.
        let stderr = std::thread::spawn(move || {
            let mut log = Vec::new();
            stderr.read_to_end(&mut log).unwrap();
            String::from_utf8_lossy(&log).into_owned()
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut printed = Vec::new();
        loop {
            let mut line = String::new();
            let read = stdout.read_line(&mut line).unwrap();
            assert!(read > 0, "the example ended: {}", stderr.join().unwrap());
            let line = line.trim_end().to_owned();
            if line == "Ctrl-C stops it." {
                break;
            }
            printed.push(line);
        }
        Self {
            child,
            stdout,
            stderr: Some(stderr),
            printed,
        }
    }

    /// The `curl` lines, each with the title and the printed above it.
    fn examples(&self) -> Vec<Printed> {
        let pairs = self.printed.windows(2);
        pairs
            .filter(|pair| pair[1].starts_with("curl "))
            .filter_map(|pair| {
                let (title, printed) = pair[0].strip_prefix("# ")?.split_once(" → ")?;
                let (status, body) = printed.split_once(' ').unwrap_or((printed, ""));
                Some(Printed {
                    title: title.to_owned(),
                    status: status.parse().unwrap(),
                    body: body.to_owned(),
                    line: pair[1].clone(),
                })
            })
            .collect()
    }

    /// The address in `The API listens on …`.
    fn url(&self) -> &str {
        let line = self.printed[0].strip_prefix("The API listens on ");
        line.unwrap().trim_end_matches('.')
    }

    /// Sends a signal, and waits for the end: the status, the rest of the output, and the log.
    fn stop(mut self, signal: &str) -> (ExitStatus, String, String) {
        let sent = Command::new("kill")
            .args([format!("-{signal}"), self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        let log = self.stderr.take().unwrap().join().unwrap();
        (status, rest, log)
    }
}

impl Drop for Quickstart {
    fn drop(&mut self) {
        // A test that failed half-way leaves nothing running; one that did not has waited for the end already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Printed {
    title: String,
    status: u16,
    body: String,
    line: String,
}

struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Runs a line as a newcomer would.
fn run(line: &str, env: &[(&str, &str)]) -> Reply {
    let output = Command::new("sh")
        .args(["-c", line])
        .env("NO_PROXY", "*")
        .envs(env.iter().copied())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{line}: {} (is curl installed?)",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut head = head.split("\r\n");
    let status = head.next().unwrap().split(' ').nth(1).unwrap();
    Reply {
        status: status.parse().unwrap(),
        headers: head
            .map(|line| line.split_once(": ").unwrap_or((line, "")))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect(),
        body: body.to_owned(),
    }
}

fn assert_response(printed: &Printed) {
    let Printed {
        title,
        status,
        body,
        line,
    } = printed;
    let reply = run(line, &[]);
    assert_eq!(reply.status, *status, "{title}: {}", reply.body);
    if body.is_empty() {
        assert_eq!(reply.body, "", "{title}");
    } else if body.starts_with('{') {
        assert_eq!(
            reply.json(),
            serde_json::from_str::<Value>(body).unwrap(),
            "{title}"
        );
    } else {
        let problem = reply.json();
        assert_eq!(
            (&problem["code"], &problem["status"]),
            (&json!(body), &json!(status)),
            "{title}"
        );
        assert_eq!(reply.headers["content-type"], "application/problem+json");
        assert_eq!(reply.headers["cache-control"], "no-store");
    }
}

#[test]
fn printed_lines_respond_as_described() {
    let quickstart = Quickstart::start(&[("RUST_LOG", "trace")]);
    let examples = quickstart.examples();
    let lines = quickstart.printed.iter();
    assert_eq!(
        lines.filter(|line| line.starts_with("curl ")).count(),
        examples.len(),
        "a line without a printed"
    );
    let url = quickstart.url().to_owned();
    assert!(!url.ends_with(":0"), "{url}");

    for printed in &examples {
        assert!(printed.line.contains(&url), "{}", printed.line);
        assert_response(printed);
    }

    // Every answer that a client can bring about is among them.
    let count = |status: u16, code: &str| {
        examples
            .iter()
            .filter(|printed| printed.status == status && printed.body == code)
            .count()
    };
    for (status, code, least) in [
        (401, "credential-missing", 2),
        (400, "credential-malformed", 2),
        (401, "invalid-token", 2),
        (403, "organization-required", 1),
        (403, "insufficient-scope", 1),
        (403, "organization-mismatch", 2),
        (503, "verifier-unavailable", 1),
        (404, "", 1),
    ] {
        assert!(count(status, code) >= least, "{status} {code}");
    }
    assert_eq!(
        examples
            .iter()
            .filter(|printed| printed.status < 300)
            .count(),
        9
    );

    let secrets: Vec<String> = examples
        .iter()
        .filter_map(|printed| printed.line.split_once("Bearer ")?.1.split('\'').next())
        .filter(|secret| secret.starts_with("k_live_"))
        .map(str::to_owned)
        .collect();
    assert!(secrets.len() > 5);
    let (status, rest, log) = quickstart.stop("INT");
    assert!(status.success(), "{status}");
    assert_eq!(rest, "Stopped.\n");
    assert!(log.contains("TRACE"), "the log says everything");
    for secret in secrets {
        assert!(!log.contains(&secret), "a key is in the log");
    }
}

#[test]
fn a_termination_is_a_clean_end_too() {
    let quickstart = Quickstart::start(&[]);
    let health = run(&format!("curl -si {}/health", quickstart.url()), &[]);
    assert_eq!(health.status, 200);
    let (status, rest, _) = quickstart.stop("TERM");
    assert!(status.success(), "{status}");
    assert_eq!(rest, "Stopped.\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_issuer_is_asked_and_no_key_is_printed() {
    let issuer = KindeEmulator::start().await.unwrap();
    let key =
        issuer.issue_key(KeySpec::organization("org_real").scopes(["read:users", "read:reports"]));
    let (url, id, secret) = (
        issuer.issuer_url().to_owned(),
        issuer.client_id(),
        issuer.client_secret(),
    );
    let quickstart = Quickstart::start(&[
        ("KINDE_ISSUER_URL", &url),
        ("KINDE_CLIENT_ID", &id),
        ("KINDE_CLIENT_SECRET", &secret),
    ]);
    let printed = quickstart.printed.join("\n");
    assert!(printed.contains(&url));
    assert!(!printed.contains("k_live_") && !printed.contains(&secret));

    for printed in quickstart.examples() {
        assert_response(&printed);
    }
    let mut lines = quickstart
        .printed
        .iter()
        .filter(|line| line.contains("$KEY"));
    let key_in_env = [("KEY", key.secret())];
    let whoami = run(lines.next().unwrap(), &key_in_env);
    assert_eq!(whoami.status, 200, "{}", whoami.body);
    assert_eq!(
        whoami.json(),
        json!({
            "org_code": "org_real",
            "key_id": key.id(),
            "scopes": ["read:reports", "read:users"],
        })
    );
    let users = run(lines.next().unwrap(), &key_in_env);
    assert_eq!(users.status, 200);
    let reports = lines.next().unwrap().replace("<its org_code>", "org_real");
    assert_eq!(run(&reports, &key_in_env).status, 200);
    assert_eq!(lines.next(), None);

    let outage = format!("curl -si -X POST {}/emulator/outage", quickstart.url());
    assert_eq!(run(&outage, &[]).status, 404);
    assert_eq!(issuer.calls().verify.ok, 1);
    assert_eq!(issuer.calls().token.ok, 1);
    let (status, _, log) = quickstart.stop("TERM");
    assert!(status.success());
    assert!(!log.contains(key.secret()) && !log.contains(&secret));
}

#[test]
fn incomplete_issuer_settings_are_an_error() {
    let output = Command::new(binary())
        .env_remove("KINDE_CLIENT_ID")
        .env_remove("KINDE_CLIENT_SECRET")
        .env("KINDE_ISSUER_URL", "https://acme.kinde.com")
        .env("LISTEN_ADDR", "127.0.0.1:0")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("KINDE_CLIENT_ID and KINDE_CLIENT_SECRET"),
        "{error}"
    );
}
