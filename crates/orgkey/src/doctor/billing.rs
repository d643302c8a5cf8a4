//! What Kinde's management API says about billing an organization for a metered feature, as `KindeBillingSink` of
//! `tower-orgkey-usage` reads it.
//!
//! Usage cannot be read at Kinde, and a total that is too low would lower the bill. So nothing is written unless the arguments
//! name the agreement and the total.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::client::{Issuer, Reply};
use super::report::{Level, Report};
use super::token::Token;

const SCOPES: [&str; 3] = [
    "read:organizations",
    "read:billing_agreements",
    "create:meter_usage",
];
/// Seconds at the end of a billing period in which the sink sends nothing.
const MARGIN: i64 = 5 * 60;
const HELD: &str = "its usage is held and not billed";

/// What is examined.
#[derive(Clone, Debug)]
pub(super) struct Billing {
    pub(super) organization: String,
    pub(super) feature: String,
    pub(super) write: Option<Write>,
}

/// The total to send.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) agreement: String,
    pub(super) total: u64,
}

/// An agreement that the feature can be billed to now.
struct Agreement {
    id: String,
}

impl Billing {
    /// Makes all checks, up to the first that the others need and that fails.
    pub(super) async fn examine(
        &self,
        issuer: &Issuer,
        token: &Token,
        replies: &mut Vec<Reply>,
        report: &mut Report,
    ) {
        scopes(token, report);
        let agreement = self.agreement(issuer, token, replies, report).await;
        self.write(agreement, issuer, token, replies, report).await;
    }

    async fn agreement(
        &self,
        issuer: &Issuer,
        token: &Token,
        replies: &mut Vec<Reply>,
        report: &mut Report,
    ) -> Option<Agreement> {
        const CHECK: &str = "billing customer";
        const AGREEMENT: &str = "billing agreement";
        let query = [("code", &*self.organization), ("expand", "billing")];
        let reply = issuer.get("/api/v1/organization", &query, &token.secret);
        let means = "the organization does not exist in this environment";
        let body = read(
            CHECK,
            reply.await,
            "read:organizations",
            means,
            replies,
            report,
        )?;
        let billing = body.get("billing").and_then(Value::as_object);
        let Some(customer) = billing.and_then(|billing| text(billing, "billing_customer_id"))
        else {
            let means = format!("the organization has no plan yet: {HELD}");
            report.add(CHECK, Level::Failure, "none", means);
            return None;
        };
        report.add(CHECK, Level::Ok, &customer, "");

        let scope = "read:billing_agreements";
        let query = [
            ("customer_id", &*customer),
            ("feature_code", &*self.feature),
        ];
        let reply = issuer.get("/api/v1/billing/agreements", &query, &token.secret);
        let means = "the customer does not exist";
        let body = read(AGREEMENT, reply.await, scope, means, replies, report)?;
        let current = current(&body);
        let [agreement] = &*current else {
            let (observed, means) = if current.is_empty() {
                let reply = issuer.get("/api/v1/billing/agreements", &query[..1], &token.secret);
                let body = read(AGREEMENT, reply.await, scope, means, replies, report)?;
                self.without_feature(&body)
            } else {
                let means = format!("it is not clear which one to bill: {HELD}");
                (format!("{} with this feature", current.len()), means)
            };
            report.add(AGREEMENT, Level::Failure, observed, means);
            return None;
        };
        let Some(id) = text(agreement, "id") else {
            report.add(AGREEMENT, Level::Failure, "no id", HELD);
            return None;
        };
        let plan = text(agreement, "plan_code").unwrap_or_default();
        let observed = format!(
            "{id}, plan {plan}, features {}",
            features(agreement).join(" ")
        );
        report.add(
            AGREEMENT,
            Level::Ok,
            observed,
            "totals are sent for this agreement",
        );
        period(agreement, report).then_some(Agreement { id })
    }

    /// Says what the agreements are that do not have the feature.
    fn without_feature(&self, body: &Map<String, Value>) -> (String, String) {
        let all = current(body);
        if all.is_empty() {
            let means = format!("the organization has not agreed to a plan: {HELD}");
            return ("none".to_owned(), means);
        }
        let features: Vec<String> = all
            .iter()
            .flat_map(|agreement| features(agreement))
            .collect();
        let observed = format!("none with this feature; others have {}", features.join(" "));
        let means = format!(
            "the plan has no feature with the key {}: {HELD}",
            self.feature
        );
        (observed, means)
    }

    async fn write(
        &self,
        agreement: Option<Agreement>,
        issuer: &Issuer,
        token: &Token,
        replies: &mut Vec<Reply>,
        report: &mut Report,
    ) {
        const CHECK: &str = "meter usage";
        let Some(write) = &self.write else {
            let means = "not tested: --write-test-agreement sends a total, which Kinde bills";
            report.add(CHECK, Level::Warning, "nothing written", means);
            return;
        };
        if agreement.is_none_or(|agreement| agreement.id != write.agreement) {
            let means = "nothing written: it is not the agreement of this organization and feature, or its period is not known";
            report.add(CHECK, Level::Failure, &write.agreement, means);
            return;
        }
        let total = write.total.to_string();
        let sent = issuer.record_usage(&write.agreement, &self.feature, &total, &token.secret);
        let (level, observed, means) = match sent.await {
            Ok(reply) => {
                let (level, means) = match reply.status {
                    200..300 => (
                        Level::Ok,
                        "Kinde accepts totals (absolute) of this agreement; see there that it shows this one",
                    ),
                    401 | 403 => (
                        Level::Failure,
                        "grant the scope create:meter_usage to the application",
                    ),
                    400 | 404 | 405 | 422 => (
                        Level::Failure,
                        "Kinde rejects a total of this agreement and feature: is the feature metered?",
                    ),
                    _ => (
                        Level::Failure,
                        "it may be recorded, so the sink would repeat it; try again later",
                    ),
                };
                let observed = format!("{total} sent: {} {}", reply.status, problem(&reply));
                replies.push(reply);
                (level, observed, means)
            }
            Err(error) => {
                let means = "it may be recorded, so the sink would repeat it; try again later";
                (Level::Failure, error, means)
            }
        };
        report.add(CHECK, level, observed, means);
    }
}

fn scopes(token: &Token, report: &mut Report) {
    const CHECK: &str = "billing scopes";
    if token.scopes.is_empty() {
        let means = "the token names none; the checks below show which it has";
        report.add(CHECK, Level::Warning, "none named", means);
        return;
    }
    let is_missing = |scope: &&str| !token.scopes.iter().any(|of| of == scope);
    let missing: Vec<&str> = SCOPES.into_iter().filter(is_missing).collect();
    if missing.is_empty() {
        report.add(CHECK, Level::Ok, SCOPES.join(" "), "");
    } else {
        let observed = format!("missing: {}", missing.join(" "));
        let means = "grant them to the application, or nothing is billed";
        report.add(CHECK, Level::Failure, observed, means);
    }
}

/// Reads a reply with the status 200. Everything else ends the checks.
fn read(
    check: &'static str,
    reply: Result<Reply, String>,
    scope: &str,
    not_found: &str,
    replies: &mut Vec<Reply>,
    report: &mut Report,
) -> Option<Map<String, Value>> {
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => {
            report.add(
                check,
                Level::Failure,
                error,
                "usage waits until Kinde answers",
            );
            return None;
        }
    };
    let body = reply.json().filter(|_| reply.status == 200);
    if body.is_none() {
        let means = match reply.status {
            200 => "the reply is no JSON object: usage waits".to_owned(),
            401 | 403 => format!("grant the scope {scope} to the application"),
            400 | 404 => format!("{not_found}: {HELD}"),
            429 => "too many calls; try again later".to_owned(),
            _ => "usage waits until Kinde answers".to_owned(),
        };
        let observed = format!("{} {}", reply.status, problem(&reply));
        report.add(check, Level::Failure, observed, means);
    }
    replies.push(reply);
    body
}

/// Returns whether totals can be sent in the present billing period.
fn period(agreement: &Map<String, Value>, report: &mut Report) -> bool {
    const CHECK: &str = "billing period";
    let time = |name: &str| -> Option<Timestamp> { text(agreement, name)?.parse().ok() };
    let shown = |name: &str| text(agreement, name).unwrap_or_else(|| "none".to_owned());
    let observed = format!(
        "{} to {}",
        shown("current_period_start"),
        shown("current_period_end")
    );
    let now = Timestamp::now();
    let (level, means) = match (time("current_period_start"), time("current_period_end")) {
        (Some(start), Some(_)) if start > now => (
            Level::Failure,
            format!("it has not begun: {HELD}; is this machine's clock right?"),
        ),
        (Some(_), Some(end)) if end <= now => (
            Level::Warning,
            "it is over: usage is held until Kinde shows the next one, and billed there".to_owned(),
        ),
        (Some(_), Some(end)) if end.as_second() - now.as_second() <= MARGIN => (
            Level::Warning,
            "it ends within 5 min: usage is billed in the next one".to_owned(),
        ),
        (Some(_), Some(_)) => (Level::Ok, "no total is sent in its last 5 min".to_owned()),
        _ => (Level::Failure, format!("it is not known: {HELD}")),
    };
    report.add(CHECK, level, observed, means);
    level == Level::Ok
}

/// The agreements that have not expired.
fn current(body: &Map<String, Value>) -> Vec<&Map<String, Value>> {
    let all = body.get("agreements").and_then(Value::as_array);
    let all = all.into_iter().flatten().filter_map(Value::as_object);
    let now = Timestamp::now();
    let is_current = |agreement: &&Map<String, Value>| {
        let expires = text(agreement, "expires_on").and_then(|at| at.parse::<Timestamp>().ok());
        expires.is_none_or(|at| at > now)
    };
    all.filter(is_current).collect()
}

fn features(agreement: &Map<String, Value>) -> Vec<String> {
    let entitlements = agreement.get("entitlements").and_then(Value::as_array);
    let entitlements = entitlements.into_iter().flatten();
    let features = entitlements.filter_map(|of| text(of.as_object()?, "feature_code"));
    features.collect()
}

fn text(of: &Map<String, Value>, name: &str) -> Option<String> {
    let text = of.get(name)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// The code and message of an error.
fn problem(reply: &Reply) -> String {
    let errors = reply.json().and_then(|mut body| body.remove("errors"));
    let error = match &errors {
        Some(Value::Array(errors)) => errors.first(),
        error => error.as_ref(),
    };
    let Some(error) = error.and_then(Value::as_object) else {
        return String::new();
    };
    let part = |name: &str| text(error, name).unwrap_or_default();
    format!("{} {}", part("code"), part("message"))
}
