//! Which total of an organization is sent, and which units are in it. No I/O and no clock.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// No total is sent so long before the end of its period. A request is assumed to arrive within this time, clocks differ by
/// less, and one call takes much less.
pub(super) const MARGIN: Duration = Duration::from_secs(5 * 60);
/// A total is sent at most so long after its decision, else not at all.
const SEND_WITHIN: Duration = Duration::from_secs(60);

/// What was sent for an organization.
///
/// A value to store: it serializes, and its contents are not public.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Units that are in closed totals or in `unsettled`.
    settled: u64,
    open: Option<Total>,
    /// Totals that are no longer sent, while their period lasts.
    closed: Vec<Closed>,
    /// Units that may or may not have been billed.
    unsettled: Vec<Parked>,
}

/// The total of the present period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Total {
    agreement: String,
    starts_at: u64,
    ends_at: u64,
    /// Units that were in the total before this ledger began it.
    base: u64,
    /// The last total that Kinde accepted.
    confirmed: Option<u64>,
    /// A total that was sent and may have been accepted. No other is sent before it is confirmed.
    sending: Option<u64>,
    /// Requests that were not answered may arrive until then. No greater total is sent before.
    quiet_until: u64,
    /// The period is over, all units are confirmed, and the agreement has ended: due again with the next unit.
    ended: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Closed {
    agreement: String,
    starts_at: u64,
    ends_at: u64,
    quiet_until: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parked {
    pub(super) agreement: String,
    pub(super) starts_at: u64,
    /// The total that was sent. Without these units Kinde shows as many fewer.
    pub(super) total: u64,
    pub(super) units: u64,
}

/// The agreement and the billing period of an organization, as Kinde shows them. In seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) agreement: String,
    pub(super) starts_at: u64,
    pub(super) ends_at: u64,
}

/// The total to send next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Send {
    pub(super) agreement: String,
    pub(super) total: u64,
    ends_at: u64,
    /// The request may have been sent before.
    was_sent: bool,
    quiet_until: u64,
    decided_at: u64,
}

/// How a send ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Accepted,
    /// Not carried out.
    Rejected,
    Unanswered,
}

/// Why nothing is sent for an organization that has units to bill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum HoldReason {
    /// Kinde has no such organization, or it has no agreement with the feature.
    #[error("the organization has no agreement with the feature")]
    NoAgreement,
    /// Several agreements of the organization have the feature.
    #[error("several agreements of the organization have the feature")]
    SeveralAgreements,
    /// Another organization is billed by this agreement. The totals of both would replace each other, so this one is billed when
    /// the other one has another agreement, or none.
    #[error("another organization is billed by the same agreement")]
    SharedAgreement,
    /// Kinde shows no billing period, or one that has not begun, is over, or overlaps the last one.
    #[error("the billing period is not known")]
    UnknownPeriod,
    /// The billing period ends within 5 min. The units are billed in the next one.
    #[error("the billing period ends soon")]
    PeriodEnds,
    /// The totals were lost or are older than the last send, so a total could lower the bill. Waits for the next billing
    /// period, or for [`resume`](crate::KindeBillingSender::resume).
    #[error("totals of this billing period were lost")]
    UnknownTotal,
    /// An earlier total was not answered and may still arrive. Waits up to 6 min.
    #[error("an earlier total may still arrive")]
    Unanswered,
    /// The total would be lower than the last one.
    #[error("the total is lower than the last one")]
    LowerTotal,
    /// Kinde could not be asked, or did not answer.
    #[error("Kinde does not answer")]
    Unavailable,
    /// Kinde rejected the call: the access token lacks a scope, or the agreement or the feature is unknown.
    #[error("Kinde rejects the call")]
    Rejected,
}

/// The total of an agreement in a billing period, as it was sent last.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeriodTotal {
    /// The agreement.
    pub agreement_id: String,
    /// When the billing period began.
    pub period_starts_at: SystemTime,
    /// The units.
    pub sent: u64,
    /// Whether Kinde accepted it. Otherwise it is sent again.
    pub is_confirmed: bool,
}

impl Ledger {
    /// Returns the agreements that this organization is billed by: that of the last total, also when its billing period is over,
    /// because the next one begins or the period was extended; and earlier ones until theirs is over.
    pub(super) fn agreements(&self, now: u64) -> impl Iterator<Item = &str> {
        let open = self.open.iter().map(|total| &total.agreement);
        let closed = self.closed.iter().filter(move |total| total.ends_at > now);
        let all = open.chain(closed.map(|total| &total.agreement));
        all.map(String::as_str)
    }

    /// Returns the last total of the present billing period, or of the one that ended last. `None` if there is none yet.
    ///
    /// A store can keep it in a row of its own, to compare it with invoices. It is in the ledger before it is sent.
    ///
    /// ```
    /// assert_eq!(tower_orgkey_usage::Ledger::default().total(), None);
    /// ```
    pub fn total(&self) -> Option<PeriodTotal> {
        let open = self.open.as_ref()?;
        Some(PeriodTotal {
            agreement_id: open.agreement.clone(),
            period_starts_at: SystemTime::UNIX_EPOCH
                .checked_add(Duration::from_secs(open.starts_at))?,
            sent: open.sending.or(open.confirmed)?,
            is_confirmed: open.sending.is_none(),
        })
    }

    pub(super) fn unsettled(&self) -> &[Parked] {
        &self.unsettled
    }

    /// Returns whether Kinde has to be asked: there are units to send, or the period is over.
    pub(super) fn is_due(&self, counted: u64, now: u64) -> bool {
        match &self.open {
            Some(open) => {
                let may_end = open.confirmed.is_none() || now >= open.ends_at;
                !self.is_confirmed(open, counted) || may_end && !open.ended
            }
            None => counted > self.settled,
        }
    }

    /// Takes note that the agreement has ended. Returns whether nothing is left to bill.
    pub(super) fn end(&mut self, counted: u64, now: u64) -> bool {
        let ended = self
            .open
            .as_ref()
            .is_some_and(|open| now >= open.ends_at && self.is_confirmed(open, counted));
        if let Some(open) = &mut self.open {
            open.ended |= ended;
        }
        ended
    }

    fn is_confirmed(&self, open: &Total, counted: u64) -> bool {
        let confirmed = open.confirmed.unwrap_or_default();
        open.sending.is_none() && confirmed == self.total_of(open, counted)
    }

    fn total_of(&self, open: &Total, counted: u64) -> u64 {
        // What is settled was counted.
        open.base
            .saturating_add(counted)
            .saturating_sub(self.settled)
    }

    /// Decides what to send: `None` if the total is confirmed. The caller stores the ledger, and sends if it is
    /// [in time](Send::is_in_time).
    ///
    /// The totals of periods that began before `unknown_before` are unknown, except that of an open one.
    pub(super) fn next(
        &mut self,
        counted: u64,
        view: &View,
        now: u64,
        unknown_before: Option<u64>,
    ) -> Result<Option<Send>, HoldReason> {
        // Usage counts in the period of its arrival, so a period that has not begun is not the one to send for.
        if !(view.starts_at..view.ends_at).contains(&now) {
            return Err(HoldReason::UnknownPeriod);
        }
        self.turn_to(view, now, unknown_before)?;
        // If this process ends before the answer, nothing else is sent until the request has arrived or is lost.
        let quiet_until = now + (SEND_WITHIN + MARGIN).as_secs();
        if let Some(open) = &mut self.open {
            // A clock that was ahead is no reason to wait for longer.
            open.quiet_until = open.quiet_until.min(quiet_until);
        }
        let Some(open) = &self.open else {
            return Err(HoldReason::UnknownPeriod);
        };
        let total = self.total_of(open, counted);
        let send = Send {
            agreement: open.agreement.clone(),
            total: open.sending.unwrap_or(total),
            ends_at: open.ends_at,
            was_sent: open.sending.is_some(),
            quiet_until: open.quiet_until,
            decided_at: now,
        };
        if open.sending.is_none() {
            if open.confirmed == Some(total) {
                return Ok(None);
            }
            if open.confirmed.is_some_and(|confirmed| total < confirmed) {
                return Err(HoldReason::LowerTotal);
            }
            if now < open.quiet_until {
                return Err(HoldReason::Unanswered);
            }
        }
        if let Some(open) = &mut self.open {
            open.sending = Some(send.total);
            open.quiet_until = quiet_until;
        }
        Ok(Some(send))
    }

    /// Makes the total of the shown agreement and period the open one.
    fn turn_to(
        &mut self,
        view: &View,
        now: u64,
        unknown_before: Option<u64>,
    ) -> Result<(), HoldReason> {
        self.closed.retain(|closed| closed.ends_at > now);
        if let Some(open) = &mut self.open {
            if open.agreement == view.agreement {
                if open.starts_at == view.starts_at {
                    open.ends_at = view.ends_at;
                    open.ended = false;
                    return Ok(());
                }
                // A period that begins within the last one could be the same one, with the units that it has.
                if view.starts_at < open.ends_at {
                    return Err(HoldReason::UnknownPeriod);
                }
            }
        } else if unknown_before.is_some_and(|before| view.starts_at < before + MARGIN.as_secs()) {
            return Err(HoldReason::UnknownTotal);
        }
        let is_shown = |closed: &Closed| {
            closed.agreement == view.agreement && closed.starts_at == view.starts_at
        };
        if self.closed.iter().any(is_shown) {
            // An old reply, or a return to a total whose remainder is in another one.
            return Err(HoldReason::UnknownPeriod);
        }
        self.close();
        self.open = Some(Total::new(view, None, 0));
        Ok(())
    }

    /// Closes the open total: what is not confirmed goes to the next one, or is parked if it may have been accepted.
    fn close(&mut self) {
        let Some(open) = self.open.take() else {
            return;
        };
        let confirmed = open.confirmed.unwrap_or_default();
        self.settled += confirmed.saturating_sub(open.base);
        if let Some(sent) = open.sending {
            self.park(Some(&open), sent.saturating_sub(confirmed), sent);
        }
        self.closed.push(Closed {
            agreement: open.agreement,
            starts_at: open.starts_at,
            ends_at: open.ends_at,
            quiet_until: open.quiet_until,
        });
    }

    fn park(&mut self, of: Option<&Total>, units: u64, total: u64) {
        if units == 0 {
            return;
        }
        self.settled += units;
        self.unsettled.push(Parked {
            agreement: of.map_or_else(String::new, |of| of.agreement.clone()),
            starts_at: of.map_or(0, |of| of.starts_at),
            total,
            units,
        });
    }

    /// Takes the result of a send that ended now.
    pub(super) fn sent(&mut self, send: &Send, outcome: Outcome, now: u64) {
        let Some(open) = &mut self.open else {
            return;
        };
        match outcome {
            Outcome::Accepted => {
                open.confirmed = Some(send.total);
                open.sending = None;
                open.quiet_until = send.quiet_until;
            }
            Outcome::Rejected => {
                if !send.was_sent {
                    open.sending = None;
                }
                open.quiet_until = send.quiet_until;
            }
            Outcome::Unanswered => {
                open.quiet_until = send.quiet_until.max(now + MARGIN.as_secs());
            }
        }
    }

    /// The ledger is older than the last send: which of its units were sent since is unknown.
    pub(super) fn forget(&mut self, counted: u64) {
        let open = self.open.clone();
        self.close();
        let units = counted.saturating_sub(self.settled);
        let last = open.as_ref().map_or(0, |open| {
            let sent = open.sending.or(open.confirmed);
            sent.unwrap_or_default()
        });
        self.park(open.as_ref(), units, last.saturating_add(units));
    }

    /// Continues a total of which Kinde shows this much, with the units that are in no total yet.
    pub(super) fn resume(&mut self, view: &View, shown: u64) {
        self.close();
        let same = self.closed.iter().filter(|closed| {
            closed.agreement == view.agreement && closed.starts_at == view.starts_at
        });
        let quiet_until = same.map(|closed| closed.quiet_until).max();
        self.open = Some(Total {
            quiet_until: quiet_until.unwrap_or_default(),
            ..Total::new(view, Some(shown), shown)
        });
    }

    /// Settles parked units. Returns whether they were parked.
    pub(super) fn settle(&mut self, parked: &Parked, was_billed: bool) -> bool {
        let Some(at) = self.unsettled.iter().position(|held| held == parked) else {
            return false;
        };
        self.unsettled.remove(at);
        if !was_billed {
            self.settled = self.settled.saturating_sub(parked.units);
        }
        true
    }
}

impl Total {
    fn new(view: &View, confirmed: Option<u64>, base: u64) -> Self {
        Self {
            agreement: view.agreement.clone(),
            starts_at: view.starts_at,
            ends_at: view.ends_at,
            base,
            confirmed,
            sending: None,
            quiet_until: 0,
            ended: false,
        }
    }
}

impl Send {
    /// Returns whether the decision is not too old to send.
    pub(super) fn is_recent(&self, now: u64) -> bool {
        now.abs_diff(self.decided_at) <= SEND_WITHIN.as_secs()
    }

    /// Returns whether there is still time to send.
    pub(super) fn is_in_time(&self, now: u64) -> bool {
        now + MARGIN.as_secs() < self.ends_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn view(starts_at: u64) -> View {
        View {
            agreement: "a".to_owned(),
            starts_at,
            ends_at: starts_at + DAY,
        }
    }

    /// A ledger that has sent this total in the first period.
    fn after(total: u64, outcome: Outcome) -> Ledger {
        let mut ledger = Ledger::default();
        let send = ledger.next(total, &view(0), 0, None).unwrap().unwrap();
        ledger.sent(&send, outcome, 0);
        ledger
    }

    #[test]
    fn lower_total_is_held() {
        let mut ledger = after(10, Outcome::Accepted);
        let next = ledger.next(9, &view(0), DAY / 2, None);
        assert_eq!(next, Err(HoldReason::LowerTotal));
        assert_eq!(ledger.next(10, &view(0), DAY / 2, None), Ok(None));
    }

    #[test]
    fn current_and_unexpired_agreements_are_kept() {
        let agreements = |ledger: &Ledger, now| {
            let all = ledger.agreements(now).map(str::to_owned);
            all.collect::<Vec<_>>()
        };
        let mut ledger = after(10, Outcome::Accepted);
        // Also when the period is over: the next one of the same agreement begins.
        for now in [DAY - 1, DAY] {
            assert_eq!(agreements(&ledger, now), ["a"]);
        }
        // After a change of plan, nobody else may send to the old agreement in its period either.
        let other = View {
            agreement: "b".to_owned(),
            ..view(DAY / 2)
        };
        ledger.next(11, &other, DAY / 2, None).unwrap();
        assert_eq!(agreements(&ledger, DAY / 2), ["b", "a"]);
        assert_eq!(agreements(&ledger, DAY), ["b"]);
    }

    #[test]
    fn late_send_delays_a_greater_total() {
        let mut ledger = Ledger::default();
        let send = ledger.next(5, &view(0), 0, None).unwrap().unwrap();
        assert!(send.is_recent(60) && !send.is_recent(61));
        ledger.sent(&send, Outcome::Unanswered, 310);
        let again = ledger.next(7, &view(0), 620, None).unwrap().unwrap();
        assert_eq!(again.total, 5);
        let mut late = ledger.clone();
        ledger.sent(&again, Outcome::Accepted, 620);
        assert!(matches!(ledger.next(7, &view(0), 620, None), Ok(Some(_))));
        late.sent(&again, Outcome::Unanswered, 930);
        let again = late.next(7, &view(0), 1_000, None).unwrap().unwrap();
        late.sent(&again, Outcome::Accepted, 1_000);
        let greater = |ledger: &mut Ledger, now| ledger.next(7, &view(0), now, None);
        assert_eq!(
            greater(&mut late.clone(), 1_229),
            Err(HoldReason::Unanswered)
        );
        assert!(greater(&mut late.clone(), 1_230).is_ok());
        // The total is continued by hand.
        late.resume(&view(0), 5);
        assert_eq!(
            late.next(9, &view(0), 1_229, None),
            Err(HoldReason::Unanswered)
        );
    }

    #[test]
    fn clock_that_was_ahead_holds_for_minutes() {
        let mut ledger = Ledger::default();
        let send = ledger.next(5, &view(0), DAY / 2, None).unwrap().unwrap();
        ledger.sent(&send, Outcome::Unanswered, DAY / 2);
        let again = ledger.next(5, &view(0), DAY / 2, None).unwrap().unwrap();
        ledger.sent(&again, Outcome::Accepted, DAY / 2);
        let next = ledger.next(7, &view(0), 100, None);
        assert_eq!(next, Err(HoldReason::Unanswered));
        assert!(matches!(ledger.next(7, &view(0), 460, None), Ok(Some(_))));
    }

    #[test]
    fn ended_agreement_is_due_with_new_units() {
        let mut ledger = after(10, Outcome::Accepted);
        assert!(!ledger.end(10, DAY - 1), "the period is not over");
        assert!(ledger.is_due(10, DAY));
        assert!(!ledger.end(11, DAY), "a unit is not billed");
        assert!(ledger.end(10, DAY));
        assert!(!ledger.is_due(10, DAY));
        assert!(ledger.is_due(11, DAY));
        // The agreement goes on after all.
        let same = View {
            ends_at: 2 * DAY,
            ..view(0)
        };
        assert_eq!(
            ledger.next(11, &same, DAY, None).unwrap().unwrap().total,
            11
        );
    }

    #[test]
    fn overlapping_period_is_held() {
        let mut ledger = after(10, Outcome::Accepted);
        let next = ledger.next(11, &view(DAY - 1), DAY, None);
        assert_eq!(next, Err(HoldReason::UnknownPeriod));
        let next = ledger.next(11, &view(DAY), DAY, None).unwrap();
        assert_eq!(next.unwrap().total, 1);
    }

    #[test]
    fn period_of_another_time_is_held() {
        let mut ledger = after(10, Outcome::Accepted);
        for now in [DAY - 1, 2 * DAY] {
            let next = ledger.next(11, &view(DAY), now, None);
            assert_eq!(next, Err(HoldReason::UnknownPeriod), "{now}");
        }
        assert!(ledger.next(11, &view(DAY), 2 * DAY - 1, None).is_ok());
    }

    #[test]
    fn rejection_settles_no_earlier_send() {
        for (first, parked) in [(Outcome::Unanswered, 1), (Outcome::Rejected, 0)] {
            let mut ledger = after(10, first);
            let send = ledger.next(10, &view(0), 60, None).unwrap().unwrap();
            ledger.sent(&send, Outcome::Rejected, 60);
            let next = ledger.next(10, &view(DAY), DAY, None).unwrap().unwrap();
            assert_eq!(ledger.unsettled().len(), parked);
            assert_eq!(next.total, if parked == 0 { 10 } else { 0 });
        }
    }
}
