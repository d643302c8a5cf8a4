//! What the doctor says about billing, and that it writes only what it is told to.

use std::time::{Duration, SystemTime};

use kinde_emulator::{AgreementSpec, Endpoint, Fault, KindeEmulator};
use tokio::process::Command;

use super::{Diagnosis, Stage};

const DAY: Duration = Duration::from_secs(86_400);
const READS: [&str; 3] = [
    "read:api_keys",
    "read:organizations",
    "read:billing_agreements",
];

fn spec(org: &str) -> AgreementSpec {
    let begin = SystemTime::now() - 10 * DAY;
    AgreementSpec::new(org)
        .plan("pro")
        .feature("api_calls")
        .periods(begin, 30 * DAY)
}

fn command(stage: &Stage, org: &str, feature: &str) -> Command {
    let mut command = stage.command();
    command.args(["--billing-org", org, "--billing-feature", feature]);
    command
}

async fn read(stage: &Stage, org: &str, feature: &str) -> Diagnosis {
    let diagnosis = stage.diagnose(command(stage, org, feature)).await;
    assert_nothing_written(&stage.emulator);
    diagnosis
}

/// No request reached an endpoint that changes something.
fn assert_nothing_written(emulator: &KindeEmulator) {
    let calls = emulator.calls();
    assert_eq!(calls.record_usage.total, 0);
    assert_eq!(
        calls.create_key.total + calls.rotate_key.total + calls.delete_key.total,
        0
    );
}

#[tokio::test]
async fn billing_that_works_is_described() {
    let stage = Stage::set().await;
    let agreement = stage.emulator.start_agreement(spec("org_1"));
    let diagnosis = read(&stage, "org_1", "api_calls").await;
    assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);
    for check in [
        "billing scopes",
        "billing customer",
        "billing agreement",
        "billing period",
    ] {
        assert_eq!(diagnosis.result(check), "ok", "{}", diagnosis.text);
    }
    let row = diagnosis.row("billing agreement");
    assert!(
        row.contains(&agreement) && row.contains("plan pro"),
        "{row}"
    );
    assert_eq!(diagnosis.result("meter usage"), "warning");
    assert!(diagnosis.row("meter usage").contains("nothing written"));
    // Without the flags nothing is asked about billing.
    let calls = stage.emulator.calls().get_organization.total;
    let diagnosis = stage.run().await;
    assert_eq!(diagnosis.result("billing scopes"), "absent");
    assert_eq!(stage.emulator.calls().get_organization.total, calls);
}

#[tokio::test]
async fn what_is_not_billed_is_a_failure() {
    let stage = Stage::set().await;
    stage.emulator.add_organization("org_free");
    stage.emulator.start_agreement(spec("org_1"));
    let gone = stage.emulator.start_agreement(spec("org_gone"));
    stage.emulator.cancel_agreement(&gone);
    for (org, feature, check, means) in [
        (
            "org_none",
            "api_calls",
            "billing customer",
            "does not exist",
        ),
        (
            "org_free",
            "api_calls",
            "billing customer",
            "has no plan yet",
        ),
        (
            "org_gone",
            "api_calls",
            "billing agreement",
            "not agreed to a plan",
        ),
        (
            "org_1",
            "tokens",
            "billing agreement",
            "no feature with the key tokens",
        ),
    ] {
        let diagnosis = read(&stage, org, feature).await;
        assert_eq!(diagnosis.code, 1);
        assert_eq!(diagnosis.result(check), "failure", "{}", diagnosis.text);
        let row = diagnosis.row(check);
        assert!(
            row.contains(means) && row.contains("held and not billed"),
            "{row}"
        );
        // The keys are not affected, so the gateway's lines are printed.
        assert_eq!(diagnosis.result("rehearsal"), "ok");
        stage.assert_recommendation_works(&diagnosis).await;
    }
    let row = read(&stage, "org_1", "tokens")
        .await
        .row("billing agreement");
    assert!(row.contains("others have api_calls"), "{row}");
}

#[tokio::test]
async fn missing_billing_scopes_are_named() {
    let stage = Stage::set().await;
    stage.emulator.start_agreement(spec("org_1"));
    for (scopes, missing, check) in [
        (&READS[..1], "read:organizations", "billing customer"),
        (&READS[..2], "read:billing_agreements", "billing agreement"),
        (&READS, "create:meter_usage", "billing scopes"),
    ] {
        stage.emulator.set_token_scopes(scopes.iter().copied());
        let diagnosis = read(&stage, "org_1", "api_calls").await;
        assert_eq!(diagnosis.code, 1);
        assert_eq!(diagnosis.result("billing scopes"), "failure");
        let row = diagnosis.row(check);
        assert_eq!(diagnosis.result(check), "failure", "{row}");
        assert!(row.contains(missing), "{row}");
    }
}

#[tokio::test]
async fn billing_periods_are_judged() {
    let now = SystemTime::now();
    for (begin, length, lag, result, means) in [
        (
            now - 2 * DAY,
            2 * DAY + Duration::from_secs(200),
            0,
            "warning",
            "ends within 5 min",
        ),
        (
            now - 2 * DAY,
            DAY * 3 / 2,
            1,
            "warning",
            "until Kinde shows the next one",
        ),
        (now + DAY, 30 * DAY, 0, "failure", "has not begun"),
    ] {
        let stage = Stage::set().await;
        stage.emulator.set_period_lag(lag * DAY);
        let spec = spec("org_1").periods(begin, length);
        let agreement = stage.emulator.start_agreement(spec);
        let mut command = command(&stage, "org_1", "api_calls");
        command.args([
            "--write-test-agreement",
            &agreement,
            "--write-test-total",
            "0",
        ]);
        let diagnosis = stage.diagnose(command).await;
        let row = diagnosis.row("billing period");
        assert_eq!(diagnosis.result("billing period"), result, "{row}");
        assert!(row.contains(means), "{row}");
        assert_eq!(diagnosis.result("meter usage"), "failure");
        assert_nothing_written(&stage.emulator);
    }
}

#[tokio::test]
async fn unusable_replies_about_billing_are_failures() {
    let stage = Stage::set().await;
    stage.emulator.start_agreement(spec("org_1"));
    let twice = |body: &str| {
        let mut body: serde_json::Value = serde_json::from_str(body).unwrap();
        let first = body["agreements"][0].clone();
        body["agreements"].as_array_mut().unwrap().push(first);
        body.to_string()
    };
    let null = |body: &str| {
        let end = "\"current_period_end\":";
        body.replace(end, "\"current_period_end\":null,\"x\":")
    };
    for (fault, check, means) in [
        (
            Fault::rewrite(twice),
            "billing agreement",
            "which one to bill",
        ),
        (Fault::rewrite(null), "billing period", "not known"),
        (Fault::status(429), "billing agreement", "too many calls"),
        (
            Fault::status(503),
            "billing agreement",
            "until Kinde answers",
        ),
        (Fault::close(), "billing agreement", "until Kinde answers"),
        (
            Fault::truncate(),
            "billing agreement",
            "until Kinde answers",
        ),
    ] {
        stage.emulator.inject(Endpoint::ListAgreements, fault);
        let diagnosis = read(&stage, "org_1", "api_calls").await;
        stage.emulator.clear_faults();
        assert_eq!(diagnosis.result(check), "failure", "{}", diagnosis.text);
        assert!(
            diagnosis.row(check).contains(means),
            "{}",
            diagnosis.row(check)
        );
    }
}

#[tokio::test]
async fn total_is_written_only_when_told_to() {
    let stage = Stage::set().await;
    let agreement = stage.emulator.start_agreement(spec("org_1"));
    let other = stage.emulator.start_agreement(spec("org_2"));
    // Half of the flags do nothing.
    for flags in [
        &["--write-test-agreement", &*agreement][..],
        &["--write-test-total", "0"],
        &[
            "--write-test-agreement",
            &agreement,
            "--write-test-total",
            "-1",
        ],
    ] {
        let mut command = command(&stage, "org_1", "api_calls");
        command.args(flags);
        assert_eq!(stage.diagnose(command).await.code, 2, "{flags:?}");
    }
    for flags in [
        &["--billing-org", "org_1"][..],
        &["--billing-feature", "api_calls"],
        &[
            "--write-test-agreement",
            &agreement,
            "--write-test-total",
            "0",
        ],
    ] {
        let mut command = stage.command();
        command.args(flags);
        assert_eq!(stage.diagnose(command).await.code, 2, "{flags:?}");
    }
    assert_nothing_written(&stage.emulator);
    let write = async |agreement: &str, total: &str| {
        let mut command = command(&stage, "org_1", "api_calls");
        command.args([
            "--write-test-agreement",
            agreement,
            "--write-test-total",
            total,
        ]);
        stage.diagnose(command).await
    };
    // The agreement of another organization.
    let diagnosis = write(&other, "7").await;
    assert_eq!(diagnosis.result("meter usage"), "failure");
    assert_nothing_written(&stage.emulator);

    let diagnosis = write(&agreement, "7").await;
    assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);
    assert_eq!(diagnosis.result("meter usage"), "ok");
    assert_eq!(stage.emulator.calls().record_usage.total, 1);
    let usage = stage.emulator.usage();
    assert_eq!((&*usage[0].agreement_id, usage[0].total), (&*agreement, 7));

    // What is learnt from a rejection.
    stage.emulator.set_token_scopes(READS);
    let row = write(&agreement, "7").await.row("meter usage");
    assert!(row.contains("create:meter_usage"), "{row}");
    assert_eq!(stage.emulator.usage()[0].calls, 1);
    for (fault, means) in [
        (Fault::status(400), "is the feature metered"),
        (Fault::status(503), "may be recorded"),
        (Fault::lose_reply(), "may be recorded"),
    ] {
        stage.emulator.inject(Endpoint::RecordUsage, fault.times(1));
        let diagnosis = write(&agreement, "7").await;
        assert_eq!(diagnosis.result("meter usage"), "failure");
        assert!(diagnosis.row("meter usage").contains(means));
    }
}
