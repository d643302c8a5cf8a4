//! Organizations with agreements, and metered usage.

use std::time::{Duration, SystemTime};

use kinde_emulator::{AgreementSpec, Endpoint, Fault, KindeEmulator};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::{Caller, assert_errors_array, assert_errors_object, assert_timestamp, members, read};

const DAY: Duration = Duration::from_secs(86_400);

fn caller(emulator: &KindeEmulator) -> Caller {
    Caller::with_scopes(
        emulator,
        [
            "read:organizations",
            "read:billing_agreements",
            "create:meter_usage",
        ],
    )
}

/// Periods of 30 days, the first of which began 10 days ago.
fn spec(org: &str) -> AgreementSpec {
    AgreementSpec::new(org)
        .plan("pro")
        .feature("api_calls")
        .periods(SystemTime::now() - 10 * DAY, 30 * DAY)
}

impl Caller {
    async fn try_report(
        &self,
        agreement: &str,
        value: &str,
        kind: &str,
    ) -> reqwest::Result<Response> {
        self.request(Method::POST, "/api/v1/billing/meter_usage")
            .json(&json!({
                "customer_agreement_id": agreement,
                "billing_feature_code": "api_calls",
                "meter_value": value,
                "meter_type_code": kind,
            }))
            .send()
            .await
    }

    async fn report(&self, agreement: &str, value: &str, kind: &str) -> (u16, Value) {
        read(self.try_report(agreement, value, kind).await.unwrap()).await
    }

    /// The agreements of an organization's customer, as two calls find them.
    async fn agreements(&self, org: &str) -> Vec<Value> {
        let path = format!("/api/v1/organization?code={org}&expand=billing");
        let (_, body) = read(self.get(&path).await).await;
        let customer = body["billing"]["billing_customer_id"].as_str().unwrap();
        let path =
            format!("/api/v1/billing/agreements?customer_id={customer}&feature_code=api_calls");
        let (status, body) = read(self.get(&path).await).await;
        assert_eq!(status, 200);
        assert_eq!(
            members(&body),
            ["agreements", "code", "has_more", "message"]
        );
        body["agreements"].as_array().unwrap().clone()
    }
}

fn totals(emulator: &KindeEmulator) -> Vec<u64> {
    emulator.usage().iter().map(|period| period.total).collect()
}

#[tokio::test]
async fn organization_shows_its_agreement() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = caller(&emulator);
    emulator.add_organization("org_free");
    let agreement = emulator.start_agreement(spec("org_1"));
    let path = "/api/v1/organization?expand=billing&code=";
    let (_, body) = read(caller.get(&format!("{path}org_1")).await).await;
    assert_eq!(
        body["billing"]["agreements"],
        json!([{ "plan_code": "pro", "agreement_id": agreement }])
    );
    let (_, body) = read(caller.get(&format!("{path}org_free")).await).await;
    assert_eq!(
        (&body["code"], &body["billing"]),
        (&json!("org_free"), &Value::Null)
    );
    let (_, body) = read(caller.get("/api/v1/organization?code=org_1").await).await;
    assert_eq!(body.get("billing"), None, "it was not asked for");
    let (status, body) = read(caller.get(&format!("{path}org_none")).await).await;
    assert_eq!(status, 404);
    assert_errors_object(&body, "ORGANIZATION_NOT_FOUND");
    let (status, body) = read(caller.get("/api/v1/organization").await).await;
    assert_eq!(status, 400);
    assert_errors_array(&body);

    let agreements = caller.agreements("org_1").await;
    assert_eq!(agreements.len(), 1);
    assert_eq!(agreements[0]["id"], agreement);
    assert_timestamp(&agreements[0]["current_period_start"]);
    assert_timestamp(&agreements[0]["current_period_end"]);
    emulator.start_agreement(AgreementSpec::new("org_2").feature("other"));
    assert_eq!(caller.agreements("org_2").await, [] as [Value; 0]);
}

#[tokio::test]
async fn absolute_replaces_and_delta_adds() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = caller(&emulator);
    let agreement = emulator.start_agreement(spec("org_1"));
    for (value, kind, total) in [
        ("3", "delta", 3),
        ("4", "delta", 7),
        ("20", "absolute", 20),
        ("20", "absolute", 20),
        ("5", "absolute", 5),
    ] {
        assert_eq!(caller.report(&agreement, value, kind).await.0, 200);
        assert_eq!(totals(&emulator), [total]);
    }
    let usage = &emulator.usage()[0];
    assert_eq!((usage.calls, usage.lowered), (5, 1));
    assert_eq!(
        (&*usage.org_code, &*usage.agreement_id),
        ("org_1", &*agreement)
    );
    for (value, kind) in [
        ("1.5", "delta"),
        ("-1", "delta"),
        ("pro_gym", "delta"),
        ("1", "sum"),
    ] {
        let (status, body) = caller.report(&agreement, value, kind).await;
        assert_eq!(status, 400);
        assert_errors_array(&body);
    }
    assert_eq!(caller.report("agreement_0", "1", "delta").await.0, 400);
    assert_eq!(totals(&emulator), [5]);
}

#[tokio::test]
async fn usage_counts_in_the_period_of_its_arrival() {
    let emulator = KindeEmulator::builder()
        .token_lifetime(365 * DAY)
        .start()
        .await
        .unwrap();
    let caller = caller(&emulator);
    let agreement = emulator.start_agreement(spec("org_1"));
    caller.report(&agreement, "7", "delta").await;
    let before = caller.agreements("org_1").await;
    emulator.set_clock_offset(25 * 86_400);
    emulator.set_period_lag(10 * DAY);
    assert_eq!(caller.agreements("org_1").await, before, "the reply lags");
    emulator.set_period_lag(Duration::ZERO);
    let after = caller.agreements("org_1").await;
    assert_eq!(
        after[0]["current_period_start"],
        before[0]["current_period_end"]
    );
    caller.report(&agreement, "2", "delta").await;
    assert_eq!(totals(&emulator), [7, 2]);
}

#[tokio::test]
async fn plan_change_cancels_the_agreement() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = caller(&emulator);
    let old = emulator.start_agreement(spec("org_1"));
    let other = emulator.start_agreement(spec("org_2"));
    caller.report(&old, "7", "absolute").await;
    let new = emulator.start_agreement(spec("org_1"));
    assert_eq!(caller.report(&old, "8", "absolute").await.0, 400);
    assert_eq!(caller.report(&new, "1", "absolute").await.0, 200);
    assert_eq!(caller.agreements("org_1").await[0]["id"], new);
    assert_eq!(caller.agreements("org_2").await[0]["id"], other);
    emulator.cancel_agreement(&new);
    assert_eq!(caller.report(&new, "2", "absolute").await.0, 400);
    assert_eq!(totals(&emulator).iter().sum::<u64>(), 8);
}

#[tokio::test]
async fn lost_and_late_calls_are_carried_out() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = caller(&emulator);
    let agreement = emulator.start_agreement(spec("org_1"));
    emulator.inject(Endpoint::RecordUsage, Fault::lose_reply().times(1));
    assert!(caller.try_report(&agreement, "3", "delta").await.is_err());
    assert_eq!(totals(&emulator), [3]);

    emulator.inject(Endpoint::RecordUsage, Fault::late().times(1));
    assert!(
        caller
            .try_report(&agreement, "4", "absolute")
            .await
            .is_err()
    );
    caller.report(&agreement, "9", "absolute").await;
    assert_eq!(totals(&emulator), [9]);
    emulator.clear_faults();
    assert_eq!(totals(&emulator), [4]);
    assert_eq!(emulator.usage()[0].lowered, 1);
    let calls = emulator.calls().record_usage;
    assert_eq!((calls.total, calls.ok, calls.faulted), (3, 3, 2));
}

#[tokio::test]
async fn each_billing_endpoint_needs_its_scope() {
    let emulator = KindeEmulator::start().await.unwrap();
    let agreement = emulator.start_agreement(spec("org_1"));
    let caller = Caller::new(&emulator);
    for path in [
        "/api/v1/organization?code=org_1",
        "/api/v1/billing/agreements?customer_id=c",
    ] {
        assert_eq!(caller.get(path).await.status(), 403, "{path}");
    }
    assert_eq!(caller.report(&agreement, "1", "delta").await.0, 403);
    assert!(emulator.usage().is_empty());
}

#[tokio::test]
async fn billing_is_controlled_over_http() {
    let emulator = KindeEmulator::builder()
        .control_endpoints()
        .start()
        .await
        .unwrap();
    let caller = caller(&emulator);
    let start = json!({ "org_code": "org_1", "plan_code": "pro", "features": ["api_calls"],
        "starts_at_s": 1_700_000_000, "period_s": 4_000_000_000_u32 });
    let (status, body) = read(
        caller
            .request(Method::POST, "/_emulator/agreements")
            .json(&start)
            .send()
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(status, 201);
    let agreement = body["agreement_id"].as_str().unwrap();
    caller.report(agreement, "12", "absolute").await;
    let (_, body) = read(caller.get("/_emulator/usage").await).await;
    assert_eq!(
        body["usage"],
        json!([{ "agreement_id": agreement, "org_code": "org_1", "feature_code": "api_calls",
            "period_starts_at_s": 1_700_000_000, "total": 12, "calls": 1, "lowered": 0 }])
    );
}
