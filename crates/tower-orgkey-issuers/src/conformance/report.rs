use std::fmt;

use super::condition::Condition;

/// What a layer guarantees, as far as its verifier keeps it. See the [module documentation](super).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Guarantee {
    /// A valid key is accepted, for its own organization.
    ValidKeysAccepted,
    /// A key that was not issued, and one that was revoked before its first use, are rejected with 401.
    InvalidKeysRejected,
    /// A revoked key is rejected after two soft TTLs and one verification, while other keys are verified.
    RevokedKeysRejected,
    /// The same while no other key is verified. An issuer whose answer "invalid" needs confirmation keeps this with other
    /// evidence only, such as a canary.
    LoneRevokedKeysRejected,
    /// Known keys are accepted during a fault, up to the hard TTL.
    KnownKeysKept,
    /// A valid key that the layer does not know gets 503 with `Retry-After` during a fault, and not 401.
    ///
    /// In [`Condition::Inactive`] and [`Condition::GatewayError`], 401 is [`CheckResult::Limited`]: for a key that the layer has
    /// never seen, the outage and the answer are the same. The key is verified again after 5 s, and after repeated answers after
    /// at most 60 s.
    NewKeysUnavailable,
    /// After a fault, known and new keys are accepted.
    ///
    /// Two known keys are checked, one after the other. If an issuer's "invalid" is unconfirmed and there is no canary, the second
    /// can be rejected for some seconds, once the first is valid again. After [`Condition::Inactive`],
    /// [`Condition::GatewayError`] and [`Condition::CredentialsRejected`], that is [`CheckResult::Limited`].
    Recovery,
    /// The verifier says what a failure is about, so that the layer isolates it: the issuer, the rate of calls, or one key.
    FailuresClassified,
    /// The verifier does not read a body of many megabytes.
    RepliesBounded,
    /// The verifier follows no redirect, which would send keys to another host.
    RedirectsIgnored,
    /// No error and no `Debug` output of a result holds a key, as it is or percent-encoded.
    KeysSecret,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// The guarantee holds.
    Holds,
    /// It does not hold, because no layer can keep it in this condition, and this happened. [`Report::assert`] permits it.
    Limited(String),
    /// It does not, and this happened.
    Broken(String),
    /// The issuer cannot be in this condition.
    NotChecked,
}

/// A guarantee that was checked, of [`Report::checks`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// The guarantee.
    pub guarantee: Guarantee,
    /// The condition of the issuer.
    pub condition: Condition,
    /// Whether it holds.
    pub result: CheckResult,
}

/// What [`check_verifier`](super::check_verifier) found. `Display` is a table. See the [module documentation](super).
#[derive(Clone, Debug, Default)]
pub struct Report {
    checks: Vec<Check>,
}

impl Report {
    pub(super) fn record(
        &mut self,
        guarantee: Guarantee,
        condition: Condition,
        result: Result<(), String>,
    ) {
        let result = match result {
            Ok(()) => CheckResult::Holds,
            Err(problem) => CheckResult::Broken(problem),
        };
        self.push(guarantee, condition, result);
    }

    pub(super) fn push(&mut self, guarantee: Guarantee, condition: Condition, result: CheckResult) {
        self.checks.push(Check {
            guarantee,
            condition,
            result,
        });
    }

    pub(super) fn skip(&mut self, guarantee: Guarantee, condition: Condition) {
        self.push(guarantee, condition, CheckResult::NotChecked);
    }

    /// Returns all checks, in the order in which they were made.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// Returns the checks of guarantees that do not hold.
    pub fn broken(&self) -> impl Iterator<Item = &Check> {
        self.checks
            .iter()
            .filter(|check| matches!(check.result, CheckResult::Broken(_)))
    }

    /// Returns whether a guarantee was checked in a condition, and held.
    pub fn holds(&self, guarantee: Guarantee, condition: Condition) -> bool {
        let mut checks = self
            .checks
            .iter()
            .filter(|check| check.guarantee == guarantee && check.condition == condition)
            .peekable();
        checks.peek().is_some() && checks.all(|check| check.result == CheckResult::Holds)
    }

    /// Checks that no guarantee is broken.
    ///
    /// # Panics
    ///
    /// If one is, with the table.
    #[track_caller]
    pub fn assert(&self) {
        self.assert_except(&[]);
    }

    /// Checks that no guarantee but these is broken, and that each of these is.
    ///
    /// # Panics
    ///
    /// If another one is broken or one of these holds, with the table.
    #[track_caller]
    pub fn assert_except(&self, broken: &[Guarantee]) {
        let others = self
            .broken()
            .filter(|check| !broken.contains(&check.guarantee));
        assert_eq!(others.count(), 0, "guarantees are broken:\n{self}");
        for guarantee in broken {
            let is_broken = self.broken().any(|check| check.guarantee == *guarantee);
            assert!(is_broken, "{guarantee:?} is not broken:\n{self}");
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let (guarantee, condition) = (
                format!("{:?}", check.guarantee),
                format!("{:?}", check.condition),
            );
            write!(f, "{guarantee:<24} {condition:<20} ")?;
            match &check.result {
                CheckResult::Holds => writeln!(f, "holds")?,
                CheckResult::Limited(limit) => writeln!(f, "limited: {limit}")?,
                CheckResult::Broken(problem) => writeln!(f, "BROKEN: {problem}")?,
                CheckResult::NotChecked => writeln!(f, "not checked")?,
            }
        }
        Ok(())
    }
}
