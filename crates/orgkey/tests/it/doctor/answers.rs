//! How verify may answer.

use kinde_emulator::{
    Endpoint, Fault, InvalidKeyReply, KeyRecordReply, KeySpec, ValidKeyReply, VerifyAccess,
};

use super::{Stage, doctor};

#[tokio::test]
async fn each_reply_to_invalid_keys_works() {
    for how in InvalidKeyReply::ALL {
        if how == InvalidKeyReply::RouteNotFound {
            continue;
        }
        let stage = Stage::set().await;
        stage.emulator.set_invalid_key_reply(how);
        let diagnosis = stage.run().await;
        assert_eq!(diagnosis.code, 0, "{how:?} {}", diagnosis.text);
        for check in ["unknown key", "good key", "revoked key", "rehearsal"] {
            assert_eq!(diagnosis.result(check), "ok", "{how:?} {check}");
        }
        assert_eq!(stage.emulator.calls().token.total, 2);
        stage.assert_recommendation_works(&diagnosis).await;
    }
}

#[tokio::test]
async fn unauthorized_is_told_to_be_about_the_key() {
    let stage = Stage::set().await;
    stage
        .emulator
        .set_invalid_key_reply(InvalidKeyReply::Unauthorized);
    let diagnosis = stage.run().await;
    let row = diagnosis.row("unknown key");
    assert!(
        row.contains("401") && row.contains("about the key"),
        "{row}"
    );
    let row = diagnosis.row("401 or 403");
    assert!(row.contains("the key or the token"), "{row}");
    stage
        .emulator
        .set_invalid_key_reply(InvalidKeyReply::BadRequest);
    let row = stage.run().await.row("401 or 403");
    assert!(row.contains("about the token"), "{row}");
}

#[tokio::test]
async fn reply_of_an_unknown_path_fails() {
    let stage = Stage::set().await;
    stage
        .emulator
        .set_invalid_key_reply(InvalidKeyReply::RouteNotFound);
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 1);
    assert_eq!(diagnosis.result("unknown key"), "failure");
    assert_eq!(diagnosis.result("revoked key"), "failure");
    assert_eq!(diagnosis.result("good key"), "ok");
    assert!(diagnosis.report["recommended"].is_null());
}

#[tokio::test]
async fn missing_scope_fails_until_it_is_granted() {
    let stage = Stage::set().await;
    for how in [InvalidKeyReply::IsValidFalse, InvalidKeyReply::Unauthorized] {
        stage.emulator.set_invalid_key_reply(how);
        stage.emulator.set_token_scopes(["create:api_keys"]);
        let diagnosis = stage.run().await;
        assert_eq!(diagnosis.code, 1);
        assert_eq!(diagnosis.result("scopes"), "warning");
        assert!(diagnosis.row("scopes").contains("read:api_keys"));
        assert_eq!(diagnosis.result("good key"), "failure");
        assert!(diagnosis.row("good key").contains("read:api_keys"));
        assert_eq!(diagnosis.result("401 or 403"), "failure");
        assert!(diagnosis.report["recommended"].is_null());

        stage.emulator.set_token_scopes(["read:api_keys"]);
        let diagnosis = stage.run().await;
        assert_eq!(diagnosis.code, 0);
        assert_eq!(diagnosis.result("scopes"), "ok");
        stage.assert_recommendation_works(&diagnosis).await;
    }
}

#[tokio::test]
async fn verify_that_needs_no_scope_is_a_warning() {
    let stage = Stage::set().await;
    stage.emulator.set_verify_access(VerifyAccess::Token);
    stage.emulator.set_token_scopes([""; 0]);
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);
    assert_eq!(diagnosis.result("scopes"), "warning");
    assert_eq!(diagnosis.result("API of the key"), "warning");
    stage.assert_recommendation_works(&diagnosis).await;
    // A 401 may be about the token: the layer tries a new one.
    stage.emulator.reset_calls();
    stage
        .emulator
        .set_invalid_key_reply(InvalidKeyReply::Unauthorized);
    assert_eq!(stage.run().await.code, 1);
    let calls = stage.emulator.calls();
    assert_eq!((calls.token.total, calls.verify.total), (3, 8));
    // Keys of other APIs cannot be told apart.
    let diagnosis = stage.configured("api_id = \"api_1\"").await;
    assert_eq!(diagnosis.code, 1);
    assert_eq!(diagnosis.result("scopes"), "failure");
}

#[tokio::test]
async fn ignored_token_recommends_what_401_means() {
    let stage = Stage::set().await;
    stage.emulator.set_verify_access(VerifyAccess::Public);
    stage.emulator.set_token_scopes([""; 0]);
    stage
        .emulator
        .set_invalid_key_reply(InvalidKeyReply::Unauthorized);
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 1);
    assert_eq!(diagnosis.result("401 or 403"), "change");
    assert!(diagnosis.lines().contains("unauthorized_means = \"key\""));
    stage.assert_recommendation_works(&diagnosis).await;
    let diagnosis = stage.configured("unauthorized_means = \"key\"").await;
    assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);

    // Without a good key the answer to an invalid token may be about the unknown key.
    stage.emulator.set_token_scopes(["read:api_keys"]);
    let file = stage.config_file("unauthorized_means = \"key\"");
    let mut command = doctor();
    command.arg("--json").arg("--config").arg(file.path());
    command.env("TEST_SECRET", stage.emulator.client_secret());
    let diagnosis = stage.diagnose(command).await;
    assert_eq!(diagnosis.result("401 or 403"), "warning");
    assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);
}

#[tokio::test]
async fn unauthorized_means_is_checked() {
    let stage = Stage::set().await;
    stage
        .emulator
        .set_invalid_key_reply(InvalidKeyReply::Unauthorized);
    let wrong = "unauthorized_means = \"access-token\"";
    let diagnosis = stage.configured(wrong).await;
    assert_eq!(diagnosis.code, 1);
    assert_eq!(diagnosis.result("401 or 403"), "change");
    assert!(!diagnosis.lines().contains("unauthorized_means"));
    stage.assert_recommendation_works(&diagnosis).await;

    // Verify has just rejected an invalid token with 401.
    let risky = "unauthorized_means = \"key\"";
    for how in [InvalidKeyReply::Unauthorized, InvalidKeyReply::IsValidFalse] {
        stage.emulator.set_invalid_key_reply(how);
        let diagnosis = stage.configured(risky).await;
        assert_eq!(diagnosis.code, 1, "{how:?}");
        assert_eq!(diagnosis.result("401 or 403"), "change", "{how:?}");
        assert!(!diagnosis.lines().contains("unauthorized_means"));
        stage.assert_recommendation_works(&diagnosis).await;
    }
    // The list of keys cannot tell.
    stage
        .emulator
        .inject(Endpoint::ListKeys, Fault::status(403));
    let diagnosis = stage.configured(risky).await;
    assert_eq!(diagnosis.result("401 or 403"), "warning");
    assert!(diagnosis.lines().contains(risky));
    stage.emulator.clear_faults();

    stage
        .emulator
        .set_invalid_key_reply(InvalidKeyReply::BadRequest);
    let diagnosis = stage.configured(wrong).await;
    assert_eq!(diagnosis.code, 0);
    assert!(diagnosis.lines().contains(wrong));
    stage.assert_recommendation_works(&diagnosis).await;
}

#[tokio::test]
async fn unanswered_invalid_token_is_a_warning() {
    let stage = Stage::set().await;
    // The fourth call has the invalid token.
    for fault in [Fault::status(429), Fault::close()] {
        for configured in ["", "unauthorized_means = \"key\""] {
            stage
                .emulator
                .inject(Endpoint::Verify, fault.clone().every(4));
            let diagnosis = stage.configured(configured).await;
            assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);
            assert_eq!(diagnosis.result("401 or 403"), "warning");
            let row = diagnosis.row("401 or 403");
            assert!(row.contains("Run the doctor again"), "{row}");
        }
    }
}

#[tokio::test]
async fn fields_that_come_are_listed() {
    let stage = Stage::set().await;
    let diagnosis = stage.run().await;
    let row = diagnosis.row("fields");
    assert!(row.contains("key_id: string, status: string, scopes: array, org_code: string"));
    assert!(!row.contains("missing"));
    let extra = Fault::with_member("expires_on", "null");
    stage.emulator.inject(Endpoint::Verify, extra);
    let row = stage.run().await.row("fields");
    assert!(row.contains("not in the contract: expires_on"), "{row}");
    stage.emulator.clear_faults();

    stage
        .emulator
        .set_valid_key_reply(ValidKeyReply::GuideExample);
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);
    assert_eq!(diagnosis.result("fields"), "warning");
    assert!(
        diagnosis
            .row("fields")
            .contains("missing: is_valid, key_id, status")
    );
    stage.assert_recommendation_works(&diagnosis).await;
    let diagnosis = stage.configured("api_id = \"api_1\"").await;
    assert_eq!(diagnosis.result("API of the key"), "failure");
    assert!(diagnosis.report["recommended"].is_null());
}

#[tokio::test]
async fn mistyped_fields_fail() {
    for (name, value, check) in [
        ("is_valid", "1", "good key"),
        ("status", "1", "good key"),
        ("scopes", "\"read:reports\"", "fields"),
        ("org_code", "null", "fields"),
        ("user_id", "\"kp_1\"", "fields"),
    ] {
        let stage = Stage::set().await;
        let fault = Fault::with_member(name, value);
        stage.emulator.inject(Endpoint::Verify, fault);
        let diagnosis = stage.run().await;
        assert_eq!(diagnosis.code, 1, "{name}");
        assert_eq!(diagnosis.result(check), "failure", "{name}");
    }
}

#[tokio::test]
async fn api_of_the_key_is_recommended_and_checked() {
    let mut stage = Stage::set().await;
    let spec = KeySpec::organization("org_1").scopes(["a"]).api_id("api_1");
    stage.good = stage.emulator.issue_key(spec);
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 0);
    assert_eq!(diagnosis.result("API of the key"), "warning");
    assert!(diagnosis.lines().contains("api_id = \"api_1\""));
    stage.assert_recommendation_works(&diagnosis).await;

    let diagnosis = stage.configured("api_id = \"api_1\"").await;
    assert_eq!(diagnosis.result("API of the key"), "ok");

    stage
        .emulator
        .set_key_record_reply(KeyRecordReply::Unwrapped);
    for diagnosis in [
        stage.run().await,
        stage.configured("api_id = \"api_1\"").await,
    ] {
        assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);
        assert!(diagnosis.lines().contains("api_id = \"api_1\""));
        stage.assert_recommendation_works(&diagnosis).await;
    }
}

#[tokio::test]
async fn no_lines_drop_or_change_a_configured_api_id() {
    let mut stage = Stage::set().await;
    let spec = KeySpec::organization("org_1").scopes(["a"]).api_id("api_1");
    stage.good = stage.emulator.issue_key(spec);
    let of = |api_ids: &str| {
        format!(
            r#"{{"id":"{}","organization_id":"org_1"{api_ids}}}"#,
            stage.good.id()
        )
    };
    let json = |body: String| Fault::reply(200, "application/json", body);
    for (fault, observed) in [
        (json(of(r#","api_ids":["api_1"]"#)), "api_1"),
        (json(of(r#","api_ids":[]"#)), "of another API"),
        (Fault::status(503), "503"),
        (json(of("")), "without api_ids"),
        (json(of(r#","api_ids":"api_2""#)), "without api_ids"),
        (json(of(r#","api_ids":["api_2",7]"#)), "without api_ids"),
        (
            json(format!(r#"{{"api_key":{}}}"#, of(""))),
            "without api_ids",
        ),
        (json(r#"{"api_key":null}"#.to_owned()), "no object"),
        (
            json(r#"{"id":"api_key_0","api_ids":["api_2"]}"#.to_owned()),
            "another key",
        ),
        (json("[]".to_owned()), "without a JSON object"),
    ] {
        stage.emulator.inject(Endpoint::GetKey, fault);
        let diagnosis = stage.configured("api_id = \"api_2\"").await;
        assert_eq!(diagnosis.code, 1);
        assert_eq!(diagnosis.result("API of the key"), "failure");
        let row = diagnosis.row("API of the key");
        assert!(row.contains(observed), "{observed}: {row}");
        assert!(diagnosis.report["recommended"].is_null(), "{observed}");
    }
}

#[tokio::test]
async fn accepted_unknown_key_fails() {
    let stage = Stage::set().await;
    let body = r#"{"is_valid":true,"status":"active","key_id":"k","org_code":"org_1"}"#;
    let fault = Fault::reply(200, "application/json", body);
    stage.emulator.inject(Endpoint::Verify, fault);
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 1);
    assert_eq!(diagnosis.result("unknown key"), "failure");
    assert_eq!(diagnosis.result("revoked key"), "failure");
}

#[tokio::test]
async fn rehearsal_shows_what_only_the_layer_sees() {
    let stage = Stage::set().await;
    // Unusable for the verifier.
    let fault = Fault::with_member("user_id", "7");
    stage.emulator.inject(Endpoint::Verify, fault);
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.code, 1);
    assert_eq!(diagnosis.result("good key"), "ok");
    assert_eq!(diagnosis.result("rehearsal"), "failure");
    assert!(diagnosis.row("rehearsal").contains("good key: 503"));
    assert!(diagnosis.report["recommended"].is_null());
}
