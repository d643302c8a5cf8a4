use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use tokio::time::{Instant, sleep};
use tower_orgkey::OrgCode;
use tower_orgkey::kinde::{ManagementApi, ManagementError, ManagementReply};

use super::ledger::{HoldReason, Ledger, Outcome, Parked, Send, View};
use super::store::{OrgTotal, Totals, TotalsError, TotalsStore};
use super::telemetry;
use super::wire::{self, Usage};
use crate::wall_clock::WallClock;

/// Sends the totals of a [`KindeBillingSink`](crate::KindeBillingSink) to Kinde.
///
/// Spawn [`run`](Self::run): nothing is billed without it. It can be dropped at any moment.
#[must_use = "nothing is billed unless it runs"]
pub struct KindeBillingSender<S> {
    pub(super) api: ManagementApi,
    pub(super) feature: String,
    pub(super) interval: Duration,
    pub(super) wall: WallClock,
    pub(super) store: Arc<S>,
    /// The customers of organizations.
    pub(super) customers: HashMap<OrgCode, String>,
    /// The reasons that were logged.
    pub(super) told: HashMap<OrgCode, HoldReason>,
    /// No round begins before.
    pub(super) not_before: Option<Instant>,
    /// Ledgers are stored once for so many organizations.
    pub(super) chunk: usize,
    /// The first organization of the round after one that ended early.
    pub(super) first: Option<OrgCode>,
}

/// The result of [`KindeBillingSender::send_due`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SendReport {
    /// Totals that Kinde accepted.
    pub accepted: u64,
    /// Organizations with units that are not billed yet, and why. They do not hold up others.
    pub held: Vec<(OrgCode, HoldReason)>,
}

/// Units of which nobody knows whether Kinde billed them: they were sent, and the billing period or the agreement ended before
/// Kinde answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unsettled {
    /// The organization.
    pub organization: OrgCode,
    /// The agreement.
    pub agreement_id: String,
    /// When the billing period began.
    pub period_starts_at: SystemTime,
    /// The total that was sent. Kinde shows this for the period, or `units` fewer.
    pub total: u64,
    /// How many units were billed if Kinde shows `total`.
    pub units: u64,
}

/// [`KindeBillingSender::resume`] or [`KindeBillingSender::settle`] had no effect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// The agreement and billing period of the organization are not known.
    #[error("the organization has no billing period to continue")]
    Held(#[source] HoldReason),
    /// The store failed.
    #[error("the totals cannot be stored")]
    Store(#[source] TotalsError),
    /// Another node sends, or there are no such units.
    #[error("this node does not have these units")]
    Unknown,
}

/// The most organizations of a chunk.
pub(super) const CHUNK: usize = 32;
/// Decisions of this much time are sent together, so that none is too old by then.
const CHUNK_TIME: Duration = Duration::from_secs(30);
/// A round ends after so many organizations in a row for which Kinde did not answer.
const MAX_UNAVAILABLE: u32 = 5;

impl<S: TotalsStore> KindeBillingSender<S> {
    /// Sends what is due, once per [`interval`](crate::KindeBillingBuilder::interval), until the future is dropped.
    pub async fn run(mut self) {
        loop {
            self.send_due().await;
            sleep(self.interval.mul_f64(0.9 + 0.1 * fastrand::f64())).await;
        }
    }

    /// Sends what is due, once. For your own schedule.
    ///
    /// Returns an empty report while another node sends, after a 429 until the time it asked for, and if the store failed.
    pub async fn send_due(&mut self) -> SendReport {
        let mut report = SendReport::default();
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return report;
        }
        self.not_before = None;
        match self.store.load().await {
            Ok(Some(totals)) => {
                if let Err(error) = self.round(totals, &mut report).await {
                    telemetry::store_failed(&*error);
                }
                // Decisions cost calls too. If they use up what Kinde permits, nothing is sent.
                self.chunk = match self.not_before {
                    Some(_) if report.accepted == 0 => (self.chunk / 4).max(1),
                    Some(_) => self.chunk,
                    None => (self.chunk * 2).min(CHUNK),
                };
            }
            Ok(None) => {}
            Err(error) => telemetry::store_failed(&*error),
        }
        self.tell(&report);
        report
    }

    /// Returns the units that were parked.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn unsettled(&self) -> Result<Vec<Unsettled>, TotalsError> {
        let totals = self.store.load().await?.unwrap_or_default();
        let parked = totals.organizations.into_iter().flat_map(|org| {
            let parked = org.ledger.unsettled().to_vec();
            parked.into_iter().map(move |parked| Unsettled {
                organization: org.organization.clone(),
                agreement_id: parked.agreement,
                period_starts_at: SystemTime::UNIX_EPOCH + Duration::from_secs(parked.starts_at),
                total: parked.total,
                units: parked.units,
            })
        });
        Ok(parked.collect())
    }

    /// Settles parked units: those that Kinde billed are forgotten, and others are billed in the present period.
    ///
    /// Kinde has no call that shows usage. Look at the invoice or at the customer's page.
    ///
    /// # Errors
    ///
    /// [`ResumeError::Unknown`] if these units are not parked, and [`ResumeError::Store`].
    pub async fn settle(&mut self, units: &Unsettled, was_billed: bool) -> Result<(), ResumeError> {
        let mut org = self.organization(&units.organization).await?;
        let since_epoch = units
            .period_starts_at
            .duration_since(SystemTime::UNIX_EPOCH);
        let parked = Parked {
            agreement: units.agreement_id.clone(),
            starts_at: since_epoch.unwrap_or_default().as_secs(),
            total: units.total,
            units: units.units,
        };
        if !org.ledger.settle(&parked, was_billed) {
            return Err(ResumeError::Unknown);
        }
        self.save_one(org).await
    }

    /// Continues an organization after its total was lost, without waiting for the next billing period.
    ///
    /// `shown` is the usage of the feature that Kinde shows for the present billing period. What was counted since the loss is added
    /// to it.
    ///
    /// # Errors
    ///
    /// [`ResumeError::Held`] if the agreement or its period is not known, and [`ResumeError::Store`].
    pub async fn resume(&mut self, org: &OrgCode, shown: u64) -> Result<(), ResumeError> {
        let mut total = self.organization(org).await?;
        let view = self.view(org).await.map_err(ResumeError::Held)?;
        total.ledger.resume(&view, shown);
        self.save_one(total).await
    }

    async fn organization(&self, org: &OrgCode) -> Result<OrgTotal, ResumeError> {
        let totals = self.store.load().await.map_err(ResumeError::Store)?;
        let totals = totals.ok_or(ResumeError::Unknown)?;
        let mut all = totals.organizations.into_iter();
        let held = all.find(|held| held.organization == *org);
        Ok(held.unwrap_or_else(|| OrgTotal {
            organization: org.clone(),
            counted: 0,
            ledger: Ledger::default(),
        }))
    }

    async fn save_one(&self, org: OrgTotal) -> Result<(), ResumeError> {
        let saved = self.store.save(&[(org.organization, org.ledger)]).await;
        saved.map_err(ResumeError::Store)
    }

    async fn round(&mut self, totals: Totals, report: &mut SendReport) -> Result<(), TotalsError> {
        let unknown_before = totals.unknown_before.map(|at| {
            let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH);
            since_epoch.unwrap_or_default().as_secs()
        });
        let now = self.now();
        let mut billed = billed(&totals.organizations, now);
        let mut due: Vec<OrgTotal> = totals.organizations;
        due.retain(|org| org.ledger.is_due(org.counted, now));
        // After a round that ended early, the other organizations are first.
        if let Some(first) = self.first.take()
            && let Some(at) = due.iter().position(|org| org.organization == first)
        {
            due.rotate_left(at);
        }
        let mut unavailable = 0;
        let mut due = due.into_iter();
        loop {
            let mut sends = Vec::new();
            let mut ledgers = Vec::new();
            let begun = Instant::now();
            let mut ends = false;
            let mut asked = 0;
            while !ends
                && asked < self.chunk
                && begun.elapsed() < CHUNK_TIME
                && let Some(mut org) = due.next()
            {
                asked += 1;
                let name = org.organization;
                match self.view(&name).await {
                    Ok(view) if is_of_another(&mut billed, &view, &name) => {
                        unavailable = 0;
                        report.held.push((name, HoldReason::SharedAgreement));
                    }
                    Ok(view) => {
                        unavailable = 0;
                        let parked = org.ledger.unsettled().len();
                        let next = org
                            .ledger
                            .next(org.counted, &view, self.now(), unknown_before);
                        for new in &org.ledger.unsettled()[parked..] {
                            telemetry::unsettled(&name, &new.agreement, new.units);
                        }
                        match next {
                            Ok(Some(send)) => sends.push((ledgers.len(), send)),
                            Ok(None) => {}
                            Err(reason) => report.held.push((name.clone(), reason)),
                        }
                        ledgers.push((name, org.ledger));
                    }
                    Err(HoldReason::NoAgreement) if org.ledger.end(org.counted, self.now()) => {
                        ledgers.push((name, org.ledger));
                    }
                    Err(reason) => {
                        report.held.push((name, reason));
                        unavailable += u32::from(reason == HoldReason::Unavailable);
                        ends = unavailable >= MAX_UNAVAILABLE || self.not_before.is_some();
                    }
                }
            }
            let first = due.as_slice().first().map(|org| &org.organization);
            let mut unanswered = 0;
            let mut skipped = None;
            let mut stops = self.not_before.is_some();
            // Before the sends: after a crash the same totals are sent again.
            self.store.save(&ledgers).await?;
            for (at, send) in sends {
                let (name, ledger) = &mut ledgers[at];
                stops |= !send.is_recent(self.now());
                let (outcome, reason) = if stops {
                    skipped.get_or_insert_with(|| name.clone());
                    (Outcome::Rejected, Some(HoldReason::Unavailable))
                } else {
                    self.send(&send).await
                };
                ledger.sent(&send, outcome, self.now());
                unanswered = if outcome == Outcome::Unanswered {
                    unanswered + 1
                } else {
                    0
                };
                stops |= unanswered >= MAX_UNAVAILABLE || self.not_before.is_some();
                report.accepted += u64::from(outcome == Outcome::Accepted);
                report
                    .held
                    .extend(reason.map(|reason| (name.clone(), reason)));
                if reason == Some(HoldReason::Rejected) {
                    // The agreement may be another customer's by now.
                    self.customers.remove(name);
                }
            }
            self.store.save(&ledgers).await?;
            if stops || ends || due.len() == 0 {
                self.first = skipped.as_ref().or(first).cloned();
                return Ok(());
            }
        }
    }

    /// Sends a total, unless it is too late by now.
    async fn send(&mut self, send: &Send) -> (Outcome, Option<HoldReason>) {
        if !send.is_in_time(self.now()) {
            return (Outcome::Rejected, Some(HoldReason::PeriodEnds));
        }
        let usage = Usage {
            customer_agreement_id: &send.agreement,
            billing_feature_code: &self.feature,
            meter_value: send.total.to_string(),
            meter_type_code: "absolute",
        };
        let Ok(body) = serde_json::to_vec(&usage) else {
            return (Outcome::Rejected, Some(HoldReason::Rejected));
        };
        let answer = self.api.post("/api/v1/billing/meter_usage", &body).await;
        match answer {
            Ok(reply) if reply.status().is_success() => (Outcome::Accepted, None),
            Ok(reply) if reply.status() == StatusCode::TOO_MANY_REQUESTS => {
                self.throttled(&reply);
                (Outcome::Rejected, Some(HoldReason::Unavailable))
            }
            // Another status may be that of a proxy, after Kinde took the total.
            Ok(reply) if matches!(reply.status().as_u16(), 400 | 401 | 403 | 404 | 405 | 422) => {
                (Outcome::Rejected, Some(HoldReason::Rejected))
            }
            Err(error) if !error.may_have_arrived() => {
                (Outcome::Rejected, Some(HoldReason::Unavailable))
            }
            Ok(_) | Err(_) => (Outcome::Unanswered, Some(HoldReason::Unavailable)),
        }
    }

    /// Asks for the agreement and the billing period, every time: both may have changed.
    async fn view(&mut self, org: &OrgCode) -> Result<View, HoldReason> {
        let customer = if let Some(known) = self.customers.get(org) {
            known.clone()
        } else {
            let query = [("code", org.as_str()), ("expand", "billing")];
            let reply = self.api.get("/api/v1/organization", &query).await;
            let customer = wire::customer(self.read(reply)?.body())?;
            self.customers.insert(org.clone(), customer.clone());
            customer
        };
        let query = [
            ("customer_id", &*customer),
            ("feature_code", &*self.feature),
        ];
        let reply = self.api.get("/api/v1/billing/agreements", &query).await;
        let is_throttled =
            matches!(&reply, Ok(reply) if reply.status() == StatusCode::TOO_MANY_REQUESTS);
        let reply = self.read(reply);
        let view = reply.and_then(|reply| wire::view(reply.body(), self.now()));
        // Any other failure may be about a customer that the organization no longer has.
        if view.is_err() && !is_throttled {
            self.customers.remove(org);
        }
        view
    }

    fn read(
        &mut self,
        reply: Result<ManagementReply, ManagementError>,
    ) -> Result<ManagementReply, HoldReason> {
        let reply = reply.map_err(|_| HoldReason::Unavailable)?;
        match reply.status() {
            StatusCode::OK => Ok(reply),
            StatusCode::NOT_FOUND => Err(HoldReason::NoAgreement),
            StatusCode::TOO_MANY_REQUESTS => {
                self.throttled(&reply);
                Err(HoldReason::Unavailable)
            }
            status if status.is_client_error() => Err(HoldReason::Rejected),
            _ => Err(HoldReason::Unavailable),
        }
    }

    fn throttled(&mut self, reply: &ManagementReply) {
        let wait = reply.retry_after().unwrap_or(self.interval);
        self.not_before = Some(Instant::now() + wait.min(Duration::from_secs(5 * 60)));
    }

    fn now(&self) -> u64 {
        self.wall.since_epoch().as_secs()
    }

    /// Logs each reason once.
    fn tell(&mut self, report: &SendReport) {
        let held: HashMap<OrgCode, HoldReason> = report.held.iter().cloned().collect();
        for (org, reason) in &held {
            let is_usual = matches!(reason, HoldReason::PeriodEnds | HoldReason::Unanswered);
            if !is_usual && self.told.get(org) != Some(reason) {
                telemetry::held(org, *reason);
            }
        }
        self.told = held;
    }
}

/// Returns which organization each agreement is billed to.
fn billed(organizations: &[OrgTotal], now: u64) -> HashMap<String, OrgCode> {
    let mut billed = HashMap::new();
    for org in organizations {
        for agreement in org.ledger.agreements(now) {
            let held = billed.entry(agreement.to_owned());
            let held = held.or_insert_with(|| org.organization.clone());
            // Always the same one of several, in whatever order the store returns them.
            if org.organization.as_str() < held.as_str() {
                held.clone_from(&org.organization);
            }
        }
    }
    billed
}

/// Whether the agreement is billed to another organization. If it is to none, it is to this one from now on.
fn is_of_another(billed: &mut HashMap<String, OrgCode>, view: &View, org: &OrgCode) -> bool {
    let held = billed.entry(view.agreement.clone());
    held.or_insert_with(|| org.clone()) != org
}

impl<S> fmt::Debug for KindeBillingSender<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KindeBillingSender")
            .field("api", &self.api)
            .field("feature", &self.feature)
            .finish_non_exhaustive()
    }
}
