//! `orgkey emulator`, driven from Python, from TypeScript and from a shell.

use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

const PROGRAM: &str = env!("CARGO_BIN_EXE_orgkey");

fn clients() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients"))
}

fn emulator(args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(["emulator", "--listen", "127.0.0.1:0"])
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Starts the emulator, and returns its first line.
async fn start(args: &[&str]) -> (Child, String) {
    let mut child = emulator(args).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    (child, line)
}

fn printed(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn python_drives_the_emulator() {
    let output = Command::new("python3")
        .args(["-m", "unittest", "test_app"])
        .current_dir(clients())
        .env("ORGKEY", PROGRAM)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .await
        .unwrap_or_else(|error| panic!("python3 cannot be run, install Python 3: {error}"));
    let text = printed(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("Ran 6 tests"), "{text}");
}

#[tokio::test]
async fn typescript_drives_the_emulator() {
    let output = Command::new("node")
        .args(["--test", "--test-reporter=tap", "app.test.ts"])
        .current_dir(clients())
        .env("ORGKEY", PROGRAM)
        .output()
        .await
        .unwrap_or_else(|error| panic!("node cannot be run; ./test installs it: {error}"));
    let text = printed(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("# pass 2"), "{text}");
}

#[tokio::test]
async fn exports_are_read_by_a_shell() {
    // Quotes in what is printed end no string.
    let (_child, line) = start(&["--json", "--audience", "it's $HOME"]).await;
    let settings: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(settings["audience"], "it's $HOME");

    let script = r#"
        "$ORGKEY" emulator --listen 127.0.0.1:0 --audience "it's \$HOME" --key org_1=a,b --key org_2 >"$FILE" 2>/dev/null &
        until grep -q REVOKED "$FILE"; do :; done
        . "$FILE"
        kill $!
        wait $! || exit 9
        echo "$KINDE_AUDIENCE|$KINDE_ISSUER_URL|$ORGKEY_EMULATOR_URL|$ORGKEY_GOOD_KEY|$ORGKEY_GOOD_KEY_2|$ORGKEY_REVOKED_KEY"
    "#;
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new("sh")
        .args(["-c", script])
        .env("ORGKEY", PROGRAM)
        .env("FILE", file.path())
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let values: Vec<&str> = text.trim_end().split('|').collect();
    let [audience, issuer, control, good, second, revoked] = values[..] else {
        panic!("{text}");
    };
    assert_eq!(audience, "it's $HOME");
    assert_eq!(control, format!("{issuer}/_emulator"));
    for key in [good, second, revoked] {
        assert!(key.starts_with("k_live_"), "{text}");
    }
    assert!(output.status.success());
}

#[tokio::test]
async fn fixed_credentials_are_the_same_each_time() {
    let run = async |args: &[&str]| {
        let (_child, line) = start(args).await;
        let mut settings: Value = serde_json::from_str(&line).unwrap();
        let secrets = settings["keys"].as_array_mut().unwrap().iter_mut();
        let secrets: Vec<_> = secrets.map(|key| key["key"].take()).collect();
        (
            settings["client_id"].take(),
            settings["client_secret"].take(),
            secrets,
        )
    };
    let fixed = ["--json", "--fixed-credentials", "--key", "a", "--key", "b"];
    assert_eq!(run(&fixed).await, run(&fixed).await);
    let random = ["--json", "--key", "a", "--key", "b"];
    let (first, second) = (run(&random).await, run(&random).await);
    assert_ne!(first.1, second.1);
    assert_ne!(first.2, second.2);
}

#[tokio::test]
async fn only_loopback_is_served_unless_forced() {
    for addr in ["0.0.0.0:0", "[::]:0", "[::ffff:0.0.0.0]:0", "192.0.2.1:0"] {
        let mut command = Command::new(PROGRAM);
        command.args(["emulator", "--listen", addr]);
        let output = command.output().await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{addr}");
        assert!(output.stdout.is_empty());
        assert!(printed(&output).contains("--allow-non-loopback"));
    }
    // The address is not of this machine: the flag lets the program try.
    let mut command = Command::new(PROGRAM);
    command.args([
        "emulator",
        "--listen",
        "192.0.2.1:0",
        "--allow-non-loopback",
    ]);
    let output = command.output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn examples_in_the_documentation_are_the_files() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("EMULATOR.md");
    let page = std::fs::read_to_string(page).unwrap();
    for (language, file) in [
        ("python", "test_app.py"),
        ("go", "app_test.go"),
        ("typescript", "app.test.ts"),
    ] {
        let text = std::fs::read_to_string(clients().join(file)).unwrap();
        let block = format!("```{language}\n{text}```\n");
        assert!(page.contains(&block), "{file} differs from EMULATOR.md");
    }
}
