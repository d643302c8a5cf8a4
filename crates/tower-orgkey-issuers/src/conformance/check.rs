//! The course of the kit.

use std::sync::Arc;

use tower_orgkey::verify::VerifyErrorKind;
use tower_orgkey::{ApiKey, Verifier};

use super::condition::{Condition, IssuerUnderTest};
use super::proxy::{GARBAGE, GATEWAY_ERRORS};
use super::report::{CheckResult, Guarantee, Report};
use super::stage::{SOFT_TTL, Seen, Stage};
use super::watched::Outcome;

/// A valid key, and its organization.
struct Issued {
    key: ApiKey,
    organization: String,
}

impl Issued {
    /// Returns two keys, of different organizations.
    async fn two(issuer: &mut impl IssuerUnderTest) -> [Self; 2] {
        [
            Self::of(issuer, "org_conformance").await,
            Self::of(issuer, "org_conformance_2").await,
        ]
    }

    async fn of(issuer: &mut impl IssuerUnderTest, organization: &str) -> Self {
        let key = issuer.issue(organization).await;
        Self {
            key,
            organization: issuer.organization_code(organization),
        }
    }

    /// Checks that a request with the key is accepted.
    async fn is_accepted(&self, stage: &Stage) -> Result<(), String> {
        self.is(&stage.request(&self.key).await)
    }

    fn is(&self, seen: &Seen) -> Result<(), String> {
        seen.is_organization(&self.organization)
    }
}

/// How many soft TTLs an issuer has to recover: with the longest fault, less than the hard TTL.
const RECOVERY: usize = 9;

/// Checks a verifier with its issuer. See the [module documentation](super).
///
/// # Panics
///
/// If the layer cannot be built, or if the issuer cannot be brought into [`Condition::Normal`].
pub async fn check_verifier<V: Verifier>(verifier: V, issuer: &mut impl IssuerUnderTest) -> Report {
    let verifier = Arc::new(verifier);
    let mut report = Report::default();
    normal(issuer).await;
    answers(&verifier, issuer, &mut report).await;
    revocation(&verifier, issuer, &mut report).await;
    lone_revocation(&verifier, issuer, &mut report).await;
    for condition in Condition::FAULTS {
        fault(&verifier, issuer, condition, &mut report).await;
    }
    report
}

async fn normal(issuer: &mut impl IssuerUnderTest) {
    let is_normal = issuer.set(Condition::Normal).await;
    assert!(is_normal, "the issuer cannot be in `Condition::Normal`");
}

fn stage<V: Verifier>(verifier: &Arc<V>) -> Stage {
    match Stage::new(Arc::clone(verifier)) {
        Ok(stage) => stage,
        Err(error) => panic!("the layer cannot be built: {error}"),
    }
}

/// Joins the results of several steps: the first problem.
fn first(steps: impl IntoIterator<Item = Result<(), String>>) -> Result<(), String> {
    steps.into_iter().collect()
}

async fn answers<V: Verifier>(
    verifier: &Arc<V>,
    issuer: &mut impl IssuerUnderTest,
    report: &mut Report,
) {
    let stage = stage(verifier);
    let [one, other] = Issued::two(issuer).await;
    let accepted = first([
        one.is_accepted(&stage).await,
        other.is_accepted(&stage).await,
        one.is_accepted(&stage).await,
    ]);
    report.record(Guarantee::ValidKeysAccepted, Condition::Normal, accepted);

    let [revoked, _] = Issued::two(issuer).await;
    issuer.revoke(&revoked.key).await;
    let mut rejected = stage.request(&revoked.key).await.is_unauthorized();
    if let Some(unknown) = altered(&one.key) {
        let unknown = stage.request(&unknown).await;
        rejected = rejected.and(unknown.is_unauthorized());
    }
    report.record(Guarantee::InvalidKeysRejected, Condition::Normal, rejected);
    let secret = stage.record.leak();
    report.record(Guarantee::KeysSecret, Condition::Normal, secret);
}

/// A key that was not issued, of the same form.
fn altered(key: &ApiKey) -> Option<ApiKey> {
    let secret = key.expose_secret();
    let at = secret.rfind(|c: char| c.is_ascii_alphanumeric())?;
    let (before, rest) = secret.split_at(at);
    let other = if rest.starts_with('x') { 'y' } else { 'x' };
    ApiKey::parse(&format!("{before}{other}{}", &rest[1..])).ok()
}

async fn revocation<V: Verifier>(
    verifier: &Arc<V>,
    issuer: &mut impl IssuerUnderTest,
    report: &mut Report,
) {
    let stage = stage(verifier);
    let [revoked, other] = Issued::two(issuer).await;
    let course = async {
        revoked.is_accepted(&stage).await?;
        other.is_accepted(&stage).await?;
        issuer.revoke(&revoked.key).await;
        for _ in 0..2 {
            stage.clock.jump(SOFT_TTL);
            stage.verify_stale(&revoked.key).await?;
            other.is(&stage.verify_stale(&other.key).await?)?;
        }
        stage.request(&revoked.key).await.is_unauthorized()
    };
    let result = course.await;
    report.record(Guarantee::RevokedKeysRejected, Condition::Normal, result);
}

async fn lone_revocation<V: Verifier>(
    verifier: &Arc<V>,
    issuer: &mut impl IssuerUnderTest,
    report: &mut Report,
) {
    let stage = stage(verifier);
    let [revoked, _] = Issued::two(issuer).await;
    let course = async {
        revoked.is_accepted(&stage).await?;
        issuer.revoke(&revoked.key).await;
        for _ in 0..2 {
            stage.verify_again(&revoked.key).await?;
        }
        stage.request(&revoked.key).await.is_unauthorized()
    };
    let result = course.await;
    report.record(
        Guarantee::LoneRevokedKeysRejected,
        Condition::Normal,
        result,
    );
}

async fn fault<V: Verifier>(
    verifier: &Arc<V>,
    issuer: &mut impl IssuerUnderTest,
    condition: Condition,
    report: &mut Report,
) {
    const CHECKED: [Guarantee; 4] = [
        Guarantee::KnownKeysKept,
        Guarantee::NewKeysUnavailable,
        Guarantee::FailuresClassified,
        Guarantee::Recovery,
    ];

    let stage = stage(verifier);
    let [known, new] = Issued::two(issuer).await;
    let other = Issued::of(issuer, "org_conformance").await;
    let mut kept = known.is_accepted(&stage).await;
    kept = kept.and(other.is_accepted(&stage).await);
    if !issuer.set(condition).await {
        normal(issuer).await;
        for guarantee in CHECKED {
            report.skip(guarantee, condition);
        }
        return;
    }
    let finished = stage.record.finished();
    let mut unavailable = Ok(());
    let mut is_limited = false;
    // A key is verified at least once a round, so it sees each kind of reply.
    let rounds = match condition {
        Condition::Garbage => GARBAGE,
        Condition::GatewayError => GATEWAY_ERRORS.len(),
        _ => 2,
    };
    for round in 0..rounds {
        if let Some(proxy) = issuer.proxy() {
            proxy.begin_round(round);
        }
        let seen = stage.verify_again(&known.key).await;
        kept = kept.and_then(|()| known.is(&seen?));
        kept = kept.and(other.is_accepted(&stage).await);
        stage.settle().await;
        let seen = stage.request(&new.key).await;
        // An answer that looks like "invalid" rejects a key that the layer does not know.
        if may_look_invalid(condition) && seen == Seen::Status(401, false) {
            is_limited = true;
        } else {
            unavailable = unavailable.and(seen.is_unavailable());
        }
        kept = kept.and(known.is_accepted(&stage).await);
    }
    let classified = classified(condition, &stage.record.outcomes_since(finished));
    report.record(Guarantee::KnownKeysKept, condition, kept);
    if is_limited && unavailable.is_ok() {
        let limit = CheckResult::Limited("a new valid key got 401".to_owned());
        report.push(Guarantee::NewKeysUnavailable, condition, limit);
    } else {
        report.record(Guarantee::NewKeysUnavailable, condition, unavailable);
    }
    report.record(Guarantee::FailuresClassified, condition, classified);
    match (condition, issuer.proxy()) {
        (Condition::HugeReply, Some(proxy)) => {
            report.record(Guarantee::RepliesBounded, condition, proxy.is_bounded());
        }
        (Condition::Redirect, Some(proxy)) => {
            let ignored = proxy.is_redirect_ignored();
            report.record(Guarantee::RedirectsIgnored, condition, ignored);
        }
        _ => {}
    }
    normal(issuer).await;
    match recovery(&stage, condition, [&known, &other], &new).await {
        Ok(true) => {
            let limit = "a known key got 401 when another one was valid again".to_owned();
            report.push(Guarantee::Recovery, condition, CheckResult::Limited(limit));
        }
        recovery => report.record(Guarantee::Recovery, condition, recovery.map(|_| ())),
    }
    report.record(Guarantee::KeysSecret, condition, stage.record.leak());
}

/// Returns whether a verifier may take the replies in this condition for unconfirmed answers "invalid".
fn may_look_invalid(condition: Condition) -> bool {
    matches!(condition, Condition::Inactive | Condition::GatewayError)
}

/// Checks that the verifier says what the failures were about.
fn classified(condition: Condition, outcomes: &[Outcome]) -> Result<(), String> {
    use VerifyErrorKind::{InvalidResponse, Throttled, Unavailable};

    if outcomes.is_empty() {
        return Err("nothing was verified".to_owned());
    }
    let is_expected = |outcome: &Outcome| match (condition, outcome) {
        (_, Outcome::Valid) => false,
        // Unconfirmed, or an error.
        (Condition::Inactive, _)
        | (Condition::CredentialsRejected | Condition::GatewayError, Outcome::Invalid) => true,
        (_, Outcome::Invalid) => false,
        (condition, Outcome::Failed(kind)) => match condition {
            Condition::CredentialsRejected => !matches!(kind, InvalidResponse | Throttled { .. }),
            // Of some issuers, 400 is about one key.
            Condition::GatewayError => !matches!(kind, Throttled { .. }),
            Condition::Throttled => matches!(kind, Throttled { .. }),
            Condition::Garbage | Condition::HugeReply => *kind == InvalidResponse,
            _ => *kind == Unavailable,
        },
    };
    match outcomes.iter().find(|outcome| !is_expected(outcome)) {
        None => Ok(()),
        Some(outcome) => Err(format!("the verifier returned {outcome:?}")),
    }
}

/// Returns whether the second known key was rejected before it was accepted, which is permitted after a fault whose replies a
/// verifier may take for unconfirmed answers "invalid".
async fn recovery(
    stage: &Stage,
    condition: Condition,
    [known, other]: [&Issued; 2],
    new: &Issued,
) -> Result<bool, String> {
    let may_be_rejected =
        may_look_invalid(condition) || condition == Condition::CredentialsRejected;
    let mut is_limited = false;
    let mut accepted = Ok(());
    for _ in 0..RECOVERY {
        stage.clock.jump(SOFT_TTL);
        known.is_accepted(stage).await?;
        // The answer about one key confirms those about others.
        stage.settle().await;
        let seen = stage.request(&other.key).await;
        let is_rejected = may_be_rejected && seen == Seen::Status(401, false);
        is_limited |= is_rejected;
        if !is_rejected {
            other.is(&seen)?;
        }
        accepted = new.is_accepted(stage).await;
        if accepted.is_ok() && !is_rejected {
            break;
        }
    }
    accepted?;
    known.is(&stage.verify_again(&known.key).await?)?;
    other.is_accepted(stage).await?;
    Ok(is_limited)
}
