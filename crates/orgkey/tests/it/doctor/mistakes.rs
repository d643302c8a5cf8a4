//! Mistakes in the configuration, and an issuer in trouble.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kinde_emulator::{Endpoint, Fault, KeySpec, KindeEmulator};
use serde_json::json;

use super::Stage;

#[tokio::test]
async fn wrong_audience_is_replaced() {
    let stage = Stage::set().await;
    let diagnosis = stage
        .configured("audience = \"https://other.example/api\"")
        .await;
    assert_eq!(diagnosis.code, 1);
    assert_eq!(diagnosis.result("audience"), "change");
    assert!(!diagnosis.lines().contains("audience"));
    stage.assert_recommendation_works(&diagnosis).await;
}

#[tokio::test]
async fn other_audience_is_found_or_asked_for() {
    let emulator = KindeEmulator::start().await.unwrap();
    let addr = emulator.addr();
    emulator.shutdown().await;
    drop(emulator);
    // The audience has the address of the emulator, which must be known before it starts.
    let audience = format!("http://{addr}/api/v1");
    let stage = Stage::with(KindeEmulator::builder().addr(addr).audience(audience)).await;
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 1);
    assert_eq!(diagnosis.result("audience"), "change");
    assert!(diagnosis.lines().contains("/api/v1\""));
    stage.assert_recommendation_works(&diagnosis).await;

    let audience = "https://elsewhere.example/api";
    let stage = Stage::with(KindeEmulator::builder().audience(audience)).await;
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 1);
    assert_eq!(diagnosis.result("token"), "failure");
    assert!(diagnosis.row("token").contains("set audience"));
    assert_eq!(stage.emulator.calls().verify.total, 0);
    let diagnosis = stage
        .configured(&format!("audience = \"{audience}\""))
        .await;
    assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);
    assert!(diagnosis.lines().contains(audience));
    stage.assert_recommendation_works(&diagnosis).await;
}

#[tokio::test]
async fn key_of_another_environment_fails() {
    let other = Stage::set().await;
    let mut stage = Stage::set().await;
    let own = std::mem::replace(&mut stage.good, other.good.clone());
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 1);
    assert_eq!(diagnosis.result("good key"), "failure");
    assert!(diagnosis.row("good key").contains("another environment"));
    stage.good = own;
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 0);
    stage.assert_recommendation_works(&diagnosis).await;
}

#[tokio::test]
async fn credentials_of_another_environment_fail() {
    let other = KindeEmulator::start().await.unwrap();
    let stage = Stage::set().await;
    let mut command = stage.command();
    command.env("TEST_SECRET", other.client_secret());
    let diagnosis = stage.diagnose(command).await;
    assert_eq!(diagnosis.code, 1);
    assert_eq!(diagnosis.result("token"), "failure");
    assert!(diagnosis.row("token").contains("another environment"));
    // A wrong secret is not tried with other audiences.
    assert_eq!(stage.emulator.calls().token.total, 1);
    assert_eq!(stage.emulator.calls().verify.total, 0);
}

#[tokio::test]
async fn clock_off_by_an_hour_is_reported() {
    for offset in [3_600, -3_600] {
        let stage = Stage::set().await;
        stage.emulator.set_clock_offset(offset);
        let diagnosis = stage.run().await;
        assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);
        assert_eq!(diagnosis.result("clock"), "warning");
        stage.assert_recommendation_works(&diagnosis).await;
        let row = diagnosis.row("clock");
        let skew = row.split(' ').find_map(|word| word.parse::<i32>().ok());
        assert!((skew.unwrap() - offset).abs() < 60, "{row}");

        // Assertions are valid for less.
        let identity = "[identity]\nassertion_audience = \"reports\"";
        let diagnosis = stage.configured(identity).await;
        assert_eq!(diagnosis.code, 1);
        assert_eq!(diagnosis.result("clock"), "failure");
        stage.emulator.set_clock_offset(0);
        let diagnosis = stage.configured(identity).await;
        assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);
    }
}

#[tokio::test]
async fn claims_of_the_token_are_checked() {
    let stage = Stage::set().await;
    let url = stage.emulator.issuer_url();
    let audience = stage.emulator.audience();
    for (claims, check, means) in [
        (
            json!({ "aud": ["other"], "iss": url }),
            "audience",
            "was asked for",
        ),
        (
            json!({ "aud": audience, "iss": "https://custom.example" }),
            "audience",
            "another issuer than url",
        ),
        (
            json!({ "aud": audience, "iss": url, "org_code": "org_1" }),
            "token",
            "belongs to one organization",
        ),
    ] {
        let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
        let token = json!(format!("e30.{claims}.c2ln")).to_string();
        let fault = Fault::with_member("access_token", &token);
        stage.emulator.inject(Endpoint::Token, fault);
        let diagnosis = stage.run().await;
        assert_eq!(diagnosis.result(check), "warning", "{means}");
        assert!(diagnosis.row(check).contains(means), "{means}");
    }
    stage.emulator.clear_faults();
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.result("audience"), "ok");
    assert_eq!(diagnosis.result("token"), "ok");
}

#[tokio::test]
async fn short_and_unknown_lifetimes_are_warnings() {
    let stage = Stage::set().await;
    stage.emulator.set_token_lifetime(Duration::from_secs(120));
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.result("token"), "warning");
    assert!(diagnosis.row("token").contains("120 s"));
    for fault in [
        Fault::without_member("expires_in"),
        Fault::with_member("expires_in", "null"),
    ] {
        stage.emulator.inject(Endpoint::Token, fault);
        let diagnosis = stage.run().await;
        assert_eq!(diagnosis.code, 0);
        assert_eq!(diagnosis.result("token"), "warning");
        assert!(diagnosis.row("token").contains("5 min"));
    }
    let fault = Fault::with_member("expires_in", "-1");
    stage.emulator.inject(Endpoint::Token, fault);
    assert_eq!(stage.run().await.result("token"), "failure");
}

#[tokio::test]
async fn keys_without_a_use_are_reported() {
    let mut stage = Stage::set().await;
    stage.good = stage.emulator.issue_key(KeySpec::user("kp_1"));
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 1);
    assert!(diagnosis.row("fields").contains("403"));
    stage.good = stage.emulator.issue_key(KeySpec::organization("org_1"));
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 0);
    assert_eq!(diagnosis.result("fields"), "warning");
    assert!(diagnosis.row("fields").contains("no scopes"));
    // A key that was given as revoked, but is not.
    stage.emulator.activate(stage.revoked.id());
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 1);
    assert_eq!(diagnosis.result("revoked key"), "failure");
}

#[tokio::test]
async fn throttling_is_reported_with_its_headers() {
    let stage = Stage::set().await;
    let fault = Fault::status(429).with_header("ratelimit-reset", "30");
    stage.emulator.inject(Endpoint::Verify, fault);
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 1);
    assert_eq!(diagnosis.result("good key"), "failure");
    assert_eq!(diagnosis.result("rate limits"), "warning");
    assert!(diagnosis.row("rate limits").contains("ratelimit-reset: 30"));
    stage.emulator.clear_faults();
    let diagnosis = stage.run().await;
    assert!(diagnosis.row("rate limits").contains("no header"));
}

#[tokio::test]
async fn unusable_replies_fail() {
    for (at, fault, check) in [
        (Endpoint::Token, Fault::status(503), "token"),
        (Endpoint::Token, Fault::close(), "token"),
        (
            Endpoint::Token,
            Fault::reply(200, "text/html", "<p>"),
            "token",
        ),
        (
            Endpoint::Token,
            Fault::with_member("token_type", "\"mac\""),
            "token",
        ),
        (
            Endpoint::Token,
            Fault::with_member("access_token", "1"),
            "token",
        ),
        (
            Endpoint::Token,
            Fault::redirect("https://example.com/"),
            "token",
        ),
        (Endpoint::Verify, Fault::status(500), "good key"),
        (Endpoint::Verify, Fault::truncate(), "good key"),
        (
            Endpoint::Verify,
            Fault::reply(200, "text/html", "{}"),
            "good key",
        ),
        (
            Endpoint::Verify,
            Fault::reply(200, "application/json", "x".repeat(70_000)),
            "good key",
        ),
        (
            Endpoint::Verify,
            Fault::redirect("https://example.com/"),
            "good key",
        ),
    ] {
        let stage = Stage::set().await;
        stage.emulator.inject(at, fault.clone());
        let diagnosis = stage.run().await;
        assert_eq!(diagnosis.code, 1, "{fault:?}");
        assert_eq!(diagnosis.result(check), "failure", "{fault:?}");
        assert!(diagnosis.report["recommended"].is_null());
    }
}
