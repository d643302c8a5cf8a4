//! Nothing secret is printed, whatever the issuer says.

use kinde_emulator::{Endpoint, Fault, KeySpec};
use serde_json::json;

use super::{Diagnosis, Stage};

/// Runs the doctor both ways.
async fn both(stage: &Stage) -> Diagnosis {
    let diagnosis = stage.run().await;
    let mut command = super::doctor();
    let file = stage.config_file("");
    command.arg("--config").arg(file.path());
    stage.environment(&mut command);
    let table = stage.diagnose(command).await;
    assert_eq!(table.code, diagnosis.code);
    assert!(table.text.contains("what it means"));
    diagnosis
}

/// What a hostile or careless issuer may say.
fn indiscretion(stage: &Stage) -> String {
    format!(
        "\u{1b}]0;\u{202e}{0} {1}\r\n{2}\u{7f} {3} {4}",
        stage.good.secret(),
        stage.revoked.secret(),
        stage.emulator.client_secret(),
        stage.good.secret().to_uppercase(),
        stage.good.secret().replace('_', "%5F"),
    )
}

#[tokio::test]
async fn usual_output_has_no_secret() {
    let stage = Stage::set().await;
    assert_eq!(both(&stage).await.code, 0);
}

#[tokio::test]
async fn token_errors_are_scrubbed() {
    let stage = Stage::set().await;
    let said = indiscretion(&stage);
    for status in [400, 401, 500] {
        let body = json!({ "error": said, "error_description": said }).to_string();
        let fault = Fault::reply(status, "application/json", body);
        stage.emulator.inject(Endpoint::Token, fault);
        let diagnosis = both(&stage).await;
        assert_eq!(diagnosis.result("token"), "failure");
        let row = diagnosis.row("token");
        assert!(
            row.contains("[redacted]") && row.contains("u{202e}"),
            "{row}"
        );
    }
}

#[tokio::test]
async fn members_and_headers_are_scrubbed() {
    let stage = Stage::set().await;
    let fault = Fault::with_member(indiscretion(&stage), "null")
        .with_header("ratelimit-policy", stage.good.secret())
        .with_header("retry-after", b"\xFF\x80");
    stage.emulator.inject(Endpoint::Verify, fault);
    let diagnosis = both(&stage).await;
    assert!(diagnosis.row("fields").contains("[redacted]"));
    assert!(
        diagnosis
            .row("rate limits")
            .contains("ratelimit-policy: [redacted]")
    );
}

#[tokio::test]
async fn claims_and_scopes_are_scrubbed() {
    let stage = Stage::set().await;
    let said = json!(indiscretion(&stage)).to_string();
    stage
        .emulator
        .inject(Endpoint::Token, Fault::with_member("scope", &said));
    let diagnosis = both(&stage).await;
    assert!(diagnosis.row("scopes").contains("[redacted]"));
}

#[tokio::test]
async fn api_id_that_is_a_secret_is_not_recommended() {
    let stage = Stage::set().await;
    for id in [stage.good.secret(), "a\u{202e}b", ""] {
        let record = json!({ "api_key": { "api_ids": [id] } }).to_string();
        let fault = Fault::reply(200, "application/json", record);
        stage.emulator.inject(Endpoint::GetKey, fault);
        let diagnosis = both(&stage).await;
        assert!(!diagnosis.lines().contains("api_id"));
        assert_eq!(diagnosis.code, 0);
    }
}

#[tokio::test]
async fn recommended_values_are_quoted() {
    let mut stage = Stage::set().await;
    let id = "a\" # '\\";
    let spec = KeySpec::organization("org_1").api_id(id);
    stage.good = stage.emulator.issue_key(spec);
    let diagnosis = stage.run().await;
    let lines: toml::Table = diagnosis.lines().parse().unwrap();
    assert_eq!(lines["issuer"]["api_id"].as_str(), Some(id));
}

#[tokio::test]
async fn access_token_is_scrubbed() {
    let stage = Stage::set().await;
    let token = "an-opaque-access-token-of-this-issuer";
    let fault = Fault::with_member("access_token", &format!("{token:?}"));
    stage.emulator.inject(Endpoint::Token, fault);
    let body = json!({ "errors": [], token: token }).to_string();
    let fault = Fault::reply(200, "application/json", body).with_header("ratelimit", token);
    stage.emulator.inject(Endpoint::Verify, fault);
    let diagnosis = both(&stage).await;
    assert!(diagnosis.row("rate limits").contains("[redacted]"));
    assert!(!diagnosis.text.contains("opaque-access"));
}

#[tokio::test]
async fn misplaced_secrets_are_not_repeated() {
    let stage = Stage::set().await;
    let secret = stage.emulator.client_secret();
    for flag in ["--client-secret-env", "--client-secret-file"] {
        let mut command = super::doctor();
        command
            .args(["--issuer", stage.emulator.issuer_url(), "--client-id", "id"])
            .args([flag, &secret]);
        assert_eq!(stage.diagnose(command).await.code, 2);
    }
    let file = stage.config_file(&format!("client_secret = \"{secret}\""));
    let mut command = super::doctor();
    command.arg("--config").arg(file.path());
    stage.environment(&mut command);
    let diagnosis = stage.diagnose(command).await;
    assert_eq!(diagnosis.code, 2);
    assert!(diagnosis.text.contains("client_secret"));

    let mut command = super::doctor();
    command
        .args([
            "--json",
            "--client-id",
            "id",
            "--client-secret-env",
            "TEST_SECRET",
        ])
        .args(["--issuer", &format!("https://user:{secret}@acme.kinde.com")]);
    stage.environment(&mut command);
    let diagnosis = stage.diagnose(command).await;
    assert_eq!(diagnosis.result("URL"), "failure");
}
