//! Where the doctor takes its settings and keys from.

use std::process::Stdio;

use kinde_emulator::KeySpec;
use tokio::io::AsyncWriteExt as _;

use super::{Diagnosis, Stage, doctor};

#[tokio::test]
async fn configuration_file_is_read() {
    let stage = Stage::set().await;
    // Tables of the gateway are not read, so errors in them do not matter.
    let gateway = "[listen]\nchecks = 7\n[[route]]\nunknown = true\n";
    let diagnosis = stage.configured(gateway).await;
    assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);
    stage.assert_recommendation_works(&diagnosis).await;
    let diagnosis = stage.configured("apiid = \"api_1\"").await;
    assert_eq!(diagnosis.code, 2);
    assert!(diagnosis.text.contains("apiid"));
}

#[tokio::test]
async fn secret_is_read_from_a_file() {
    let stage = Stage::set().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), stage.emulator.client_secret() + "\n").unwrap();
    let mut command = doctor();
    command
        .args(["--json", "--issuer", stage.emulator.issuer_url()])
        .args(["--client-id", &stage.emulator.client_id()])
        .arg("--client-secret-file")
        .arg(file.path());
    stage.environment(&mut command);
    let diagnosis = stage.diagnose(command).await;
    assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);
    assert!(diagnosis.lines().contains("client_secret_file"));
}

#[tokio::test]
async fn keys_are_read_from_standard_input() {
    let stage = Stage::set().await;
    let mut command = stage.command();
    command
        .arg("--keys-from-stdin")
        .env_remove("ORGKEY_GOOD_KEY")
        .env_remove("ORGKEY_REVOKED_KEY")
        .stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let keys = format!("{}\r\n{}\n", stage.good.secret(), stage.revoked.secret());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(keys.as_bytes()).await.unwrap();
    drop(stdin);
    let diagnosis = Diagnosis::of(&child.wait_with_output().await.unwrap());
    stage.assert_secret(&diagnosis.text);
    assert_eq!(diagnosis.code, 0);
    assert_eq!(diagnosis.result("good key"), "ok");
    assert_eq!(diagnosis.result("revoked key"), "ok");
}

#[tokio::test]
async fn keys_are_read_from_other_variables() {
    let stage = Stage::set().await;
    let mut command = stage.command();
    command
        .args(["--good-key-env", "A_KEY", "--revoked-key-env", "B_KEY"])
        .env_remove("ORGKEY_GOOD_KEY")
        .env("A_KEY", stage.good.secret())
        .env("B_KEY", stage.revoked.secret());
    assert_eq!(stage.diagnose(command).await.result("good key"), "ok");
    let mut command = stage.command();
    command.args(["--good-key-env", "A_KEY"]);
    assert_eq!(stage.diagnose(command).await.code, 2);
}

#[tokio::test]
async fn checks_without_keys_are_warnings() {
    let stage = Stage::set().await;
    let mut command = stage.command();
    command
        .env_remove("ORGKEY_GOOD_KEY")
        .env_remove("ORGKEY_REVOKED_KEY");
    let diagnosis = stage.diagnose(command).await;
    assert_eq!(diagnosis.code, 0);
    assert_eq!(diagnosis.result("good key"), "warning");
    assert_eq!(diagnosis.result("revoked key"), "warning");
    assert_eq!(diagnosis.result("rehearsal"), "ok");
    assert!(!diagnosis.lines().contains("api_id"));
}

#[tokio::test]
async fn keys_are_no_arguments() {
    let stage = Stage::set().await;
    for flag in ["--good-key", "--revoked-key", "--client-secret", "--key"] {
        let mut command = stage.command();
        command.args([flag, "k_live_example"]);
        assert_eq!(stage.diagnose(command).await.code, 2, "{flag}");
    }
    assert_eq!(doctor().output().await.unwrap().status.code(), Some(2));
}

#[tokio::test]
async fn key_of_another_issuer_is_not_sent() {
    let [one, other] = [Stage::set().await, Stage::set().await];
    let key = |secret: &str| {
        other
            .emulator
            .issue_key(KeySpec::organization("org_1").secret(secret))
    };
    let (good, revoked) = (key("b_live_good_0001"), key("b_live_revoked_0001"));
    other.emulator.revoke(revoked.id());
    let tables = [("a", &one), ("b", &other)].map(|(name, stage)| {
        let table = std::fs::read_to_string(stage.config_file("").path()).unwrap();
        let table = table.replacen("[issuer]", "[[issuer]]", 1);
        format!("{table}\nname = \"{name}\"\nprefixes = [\"{name}_\"]\n")
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tables.concat()).unwrap();
    for (good, revoked, code) in [
        ("a_live_good_0001", revoked.secret(), 2),
        (good.secret(), "a_live_revoked_0001", 2),
        ("k_live_good_0001", revoked.secret(), 2),
        (good.secret(), revoked.secret(), 0),
    ] {
        let mut command = doctor();
        command
            .args(["--json", "--issuer", other.emulator.issuer_url()])
            .arg("--config")
            .arg(file.path())
            .env("TEST_SECRET", other.emulator.client_secret())
            .env("ORGKEY_GOOD_KEY", good)
            .env("ORGKEY_REVOKED_KEY", revoked);
        let diagnosis = other.diagnose(command).await;
        assert_eq!(diagnosis.code, code, "{}", diagnosis.text);
        if code == 2 {
            assert!(diagnosis.text.contains("by its prefix"));
            assert!(!diagnosis.text.contains(good) && !diagnosis.text.contains(revoked));
            assert_eq!(other.emulator.calls().token.total, 0);
            assert_eq!(other.emulator.calls().verify.total, 0);
        }
    }
}
