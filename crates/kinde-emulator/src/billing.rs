//! Organizations, their billing agreements, and the usage that was recorded for them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use crate::encoding::{HEX, random, timestamp};

/// Describes an agreement to be started by [`KindeEmulator::start_agreement`](crate::KindeEmulator::start_agreement).
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use kinde_emulator::AgreementSpec;
///
/// let spec = AgreementSpec::new("org_1")
///     .plan("pro")
///     .feature("api_calls")
///     .periods(SystemTime::now(), Duration::from_secs(30 * 86_400));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct AgreementSpec {
    org_code: String,
    plan_code: String,
    features: BTreeSet<String>,
    starts_at: SystemTime,
    period: Duration,
}

impl AgreementSpec {
    /// Describes an agreement of this organization, on the plan `standard`, without metered features, and with billing periods
    /// of 30 days that begin now.
    pub fn new(org_code: impl Into<String>) -> Self {
        Self {
            org_code: org_code.into(),
            plan_code: "standard".to_owned(),
            features: BTreeSet::new(),
            starts_at: SystemTime::now(),
            period: Duration::from_secs(30 * 86_400),
        }
    }

    /// Sets the code of the plan.
    pub fn plan(mut self, plan_code: impl Into<String>) -> Self {
        self.plan_code = plan_code.into();
        self
    }

    /// Adds a metered feature.
    pub fn feature(mut self, feature_code: impl Into<String>) -> Self {
        self.features.insert(feature_code.into());
        self
    }

    /// Sets when the first billing period begins and how long each is. A time before the first period counts as in it.
    ///
    /// # Panics
    ///
    /// Panics if the length is less than a second: timestamps have whole seconds.
    #[track_caller]
    pub fn periods(mut self, starts_at: SystemTime, length: Duration) -> Self {
        assert!(
            length >= Duration::from_secs(1),
            "a period has at least 1 s"
        );
        self.starts_at = starts_at;
        self.period = length;
        self
    }

    /// Returns the number of the period that contains this time.
    fn number(&self, at: SystemTime) -> u32 {
        let since = at.duration_since(self.starts_at).unwrap_or_default();
        u32::try_from(since.as_secs() / self.period.as_secs()).unwrap_or(u32::MAX)
    }

    fn begin(&self, number: u32) -> SystemTime {
        let since = self.period.as_secs().saturating_mul(number.into());
        let begin = self.starts_at.checked_add(Duration::from_secs(since));
        begin.unwrap_or(self.starts_at)
    }
}

/// The usage of one feature in one billing period of an agreement, from
/// [`KindeEmulator::usage`](crate::KindeEmulator::usage).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeriodUsage {
    /// The agreement.
    pub agreement_id: String,
    /// The organization.
    pub org_code: String,
    /// The metered feature.
    pub feature_code: String,
    /// When the period begins.
    pub starts_at: SystemTime,
    /// What Kinde would bill for the period.
    pub total: u64,
    /// How many calls were recorded.
    pub calls: u64,
    /// How many calls lowered the total.
    pub lowered: u64,
}

#[derive(Debug)]
struct Agreement {
    spec: AgreementSpec,
    is_cancelled: bool,
}

/// What was recorded for a feature in a period.
#[derive(Debug, Default)]
struct Recorded {
    total: u64,
    calls: u64,
    lowered: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Billing {
    /// By organization: the id of its customer, if it has one.
    organizations: BTreeMap<String, Option<String>>,
    agreements: BTreeMap<String, Agreement>,
    /// By agreement, feature and number of the period.
    recorded: BTreeMap<(String, String, u32), Recorded>,
    /// How long the periods in replies lag behind.
    pub(crate) lag: Duration,
}

/// Why a request is answered with 400.
type BadRequest = &'static str;

impl Billing {
    pub(crate) fn add_organization(&mut self, org_code: String) {
        self.organizations.entry(org_code).or_default();
    }

    /// Starts an agreement and cancels the organization's other one, as a change of plan does.
    pub(crate) fn start(&mut self, spec: AgreementSpec) -> String {
        let customer = self.organizations.entry(spec.org_code.clone()).or_default();
        customer.get_or_insert_with(|| format!("customer_{}", random(HEX, 32)));
        for other in self.agreements.values_mut() {
            other.is_cancelled |= other.spec.org_code == spec.org_code;
        }
        let id = format!("agreement_{}", random(HEX, 32));
        let agreement = Agreement {
            spec,
            is_cancelled: false,
        };
        self.agreements.insert(id.clone(), agreement);
        id
    }

    pub(crate) fn cancel(&mut self, agreement_id: &str) -> bool {
        let agreement = self.agreements.get_mut(agreement_id);
        agreement
            .map(|agreement| agreement.is_cancelled = true)
            .is_some()
    }

    pub(crate) fn usage(&self) -> Vec<PeriodUsage> {
        let usage = self.recorded.iter();
        usage
            .filter_map(|((agreement_id, feature_code, number), recorded)| {
                let spec = &self.agreements.get(agreement_id)?.spec;
                Some(PeriodUsage {
                    agreement_id: agreement_id.clone(),
                    org_code: spec.org_code.clone(),
                    feature_code: feature_code.clone(),
                    starts_at: spec.begin(*number),
                    total: recorded.total,
                    calls: recorded.calls,
                    lowered: recorded.lowered,
                })
            })
            .collect()
    }

    /// The reply to `GET /api/v1/organization`. `None` for an unknown organization.
    pub(crate) fn organization(&self, query: &str) -> Result<Option<Value>, BadRequest> {
        let (mut code, mut is_expanded) = (None, false);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "code" => code = Some(value.into_owned()),
                "expand" => is_expanded = value.split(',').any(|part| part == "billing"),
                _ => {}
            }
        }
        let code = code.ok_or("code is required")?;
        let Some(customer) = self.organizations.get(&code) else {
            return Ok(None);
        };
        let mut reply = json!({ "code": code, "name": code, "is_default": false });
        if is_expanded {
            let agreements: Vec<Value> = self
                .active(&code)
                .map(|(id, spec)| json!({ "plan_code": spec.plan_code, "agreement_id": id }))
                .collect();
            reply["billing"] = match customer {
                Some(id) => json!({ "billing_customer_id": id, "agreements": agreements }),
                None => Value::Null,
            };
        }
        Ok(Some(reply))
    }

    fn active<'a>(
        &'a self,
        org_code: &str,
    ) -> impl Iterator<Item = (&'a String, &'a AgreementSpec)> {
        self.agreements
            .iter()
            .filter(move |(_, agreement)| {
                !agreement.is_cancelled && agreement.spec.org_code == org_code
            })
            .map(|(id, agreement)| (id, &agreement.spec))
    }

    /// The reply to `GET /api/v1/billing/agreements`: the agreements that are not cancelled.
    pub(crate) fn agreements(&self, query: &str, now: SystemTime) -> Result<Value, BadRequest> {
        let (mut customer, mut feature) = (None, None);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "customer_id" => customer = Some(value.into_owned()),
                "feature_code" => feature = Some(value.into_owned()),
                _ => {}
            }
        }
        let customer = customer.ok_or("customer_id is required")?;
        let org_code = self
            .organizations
            .iter()
            .find(|(_, id)| id.as_deref() == Some(&*customer));
        let (org_code, _) = org_code.ok_or("customer_id is not the id of a customer")?;
        // An earlier time is never before the epoch here.
        let shown = now.checked_sub(self.lag).unwrap_or(now);
        let agreements: Vec<Value> = self
            .active(org_code)
            .filter(|(_, spec)| {
                let feature = feature.as_ref();
                feature.is_none_or(|feature| spec.features.contains(feature))
            })
            .map(|(id, spec)| {
                let number = spec.number(shown);
                let entitlements: Vec<Value> = spec
                    .features
                    .iter()
                    .map(|code| json!({ "feature_code": code, "entitlement_id": format!("entitlement_{code}") }))
                    .collect();
                json!({
                    "id": id,
                    "plan_code": spec.plan_code,
                    "expires_on": null,
                    "billing_group_id": null,
                    "current_period_start": timestamp(spec.begin(number)),
                    "current_period_end": timestamp(spec.begin(number.saturating_add(1))),
                    "entitlements": entitlements,
                })
            })
            .collect();
        Ok(
            json!({ "code": "OK", "message": "Success", "has_more": false, "agreements": agreements }),
        )
    }

    /// Carries out `POST /api/v1/billing/meter_usage`. Usage is recorded in the period that contains the present time, whatever
    /// the request's timestamp.
    pub(crate) fn record(
        &mut self,
        body: &Map<String, Value>,
        now: SystemTime,
    ) -> Result<(), BadRequest> {
        let text = |name: &str| body.get(name).and_then(Value::as_str);
        let id = text("customer_agreement_id").ok_or("customer_agreement_id is required")?;
        let feature = text("billing_feature_code").ok_or("billing_feature_code is required")?;
        let value = text("meter_value").ok_or("meter_value is required, and a string")?;
        let value: u64 = value
            .parse()
            .map_err(|_| "meter_value must be a whole number")?;
        let is_absolute = match text("meter_type_code") {
            Some("absolute") => true,
            Some("delta") => false,
            _ => return Err("meter_type_code must be absolute or delta"),
        };
        let agreement = self
            .agreements
            .get(id)
            .filter(|agreement| !agreement.is_cancelled);
        let spec = &agreement
            .ok_or("the agreement does not exist or was cancelled")?
            .spec;
        if !spec.features.contains(feature) {
            return Err("the agreement does not have this feature");
        }
        let key = (id.to_owned(), feature.to_owned(), spec.number(now));
        let recorded = self.recorded.entry(key).or_default();
        let total = if is_absolute {
            value
        } else {
            recorded.total.saturating_add(value)
        };
        recorded.lowered += u64::from(total < recorded.total);
        recorded.total = total;
        recorded.calls += 1;
        Ok(())
    }
}
