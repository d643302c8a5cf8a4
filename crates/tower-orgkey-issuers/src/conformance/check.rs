//! The course of the kit.

use std::sync::Arc;

use tower_orgkey::verify::VerifyErrorKind;
use tower_orgkey::{ApiKey, Verifier};

use super::condition::{Condition, IssuerUnderTest};
use super::report::{Guarantee, Report};
use super::stage::{SOFT_TTL, Seen, Stage};
use super::watched::Outcome;

const ORG: &str = "org_conformance";
const OTHER_ORG: &str = "org_conformance_2";

/// How many soft TTLs an issuer has to recover: less than the hard TTL.
const RECOVERY: usize = 10;

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
    let (key, other) = (issuer.issue(ORG).await, issuer.issue(OTHER_ORG).await);
    let accepted = first([
        stage.request(&key).await.is_organization(ORG),
        stage.request(&other).await.is_organization(OTHER_ORG),
        stage.request(&key).await.is_organization(ORG),
    ]);
    report.record(Guarantee::ValidKeysAccepted, Condition::Normal, accepted);

    let revoked = issuer.issue(ORG).await;
    issuer.revoke(&revoked).await;
    let mut rejected = stage.request(&revoked).await.is_unauthorized();
    if let Some(unknown) = altered(&key) {
        let unknown = stage.request(&unknown).await;
        rejected = rejected.and(unknown.is_unauthorized());
    }
    report.record(Guarantee::InvalidKeysRejected, Condition::Normal, rejected);
    report.record(
        Guarantee::KeysSecret,
        Condition::Normal,
        stage.record.leak(),
    );
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
    let (key, other) = (issuer.issue(ORG).await, issuer.issue(OTHER_ORG).await);
    let course = async {
        stage.request(&key).await.is_organization(ORG)?;
        stage.request(&other).await.is_organization(OTHER_ORG)?;
        issuer.revoke(&key).await;
        for _ in 0..2 {
            stage.clock.jump(SOFT_TTL);
            stage.verify_stale(&key).await?;
            let seen = stage.verify_stale(&other).await?;
            seen.is_organization(OTHER_ORG)?;
        }
        stage.request(&key).await.is_unauthorized()
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
    let key = issuer.issue(ORG).await;
    let course = async {
        stage.request(&key).await.is_organization(ORG)?;
        issuer.revoke(&key).await;
        for _ in 0..2 {
            stage.verify_again(&key).await?;
        }
        stage.request(&key).await.is_unauthorized()
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
    let (known, new) = (issuer.issue(ORG).await, issuer.issue(OTHER_ORG).await);
    let accepted = stage.request(&known).await.is_organization(ORG);
    if !issuer.set(condition).await {
        normal(issuer).await;
        for guarantee in CHECKED {
            report.skip(guarantee, condition);
        }
        return;
    }
    let finished = stage.record.finished();
    let mut kept = accepted;
    let mut unavailable = Ok(());
    for _ in 0..2 {
        kept = kept.and(is_kept(&stage, &known).await);
        let seen = stage.request(&new).await;
        // An answer that looks like "invalid" rejects a key that the layer does not know.
        if condition != Condition::Inactive || seen != Seen::Status(401, false) {
            unavailable = unavailable.and(seen.is_unavailable());
        }
        kept = kept.and(stage.request(&known).await.is_organization(ORG));
    }
    let outcomes = stage.record.outcomes_since(finished);
    report.record(Guarantee::KnownKeysKept, condition, kept);
    report.record(Guarantee::NewKeysUnavailable, condition, unavailable);
    report.record(
        Guarantee::FailuresClassified,
        condition,
        classified(condition, &outcomes),
    );
    if let Some(proxy) = issuer.proxy() {
        match condition {
            Condition::HugeReply => {
                report.record(Guarantee::RepliesBounded, condition, proxy.is_bounded());
            }
            Condition::Redirect => {
                let ignored = proxy.is_redirect_ignored();
                report.record(Guarantee::RedirectsIgnored, condition, ignored);
            }
            _ => {}
        }
    }
    normal(issuer).await;
    let recovery = recovery(&stage, &known, &new).await;
    report.record(Guarantee::Recovery, condition, recovery);
    report.record(Guarantee::KeysSecret, condition, stage.record.leak());
}

async fn is_kept(stage: &Stage, known: &ApiKey) -> Result<(), String> {
    stage.verify_again(known).await?.is_organization(ORG)
}

/// Checks that the verifier says what the failures were about.
fn classified(condition: Condition, outcomes: &[Outcome]) -> Result<(), String> {
    use VerifyErrorKind::{InvalidResponse, Throttled, Unavailable};

    if outcomes.is_empty() {
        return Err("nothing was verified".to_owned());
    }
    let is_expected = |outcome: &Outcome| match (condition, outcome) {
        (_, Outcome::Valid) => false,
        (Condition::Inactive, _) => true,
        (Condition::CredentialsRejected, Outcome::Failed(kind)) => {
            !matches!(kind, InvalidResponse | Throttled { .. })
        }
        (Condition::CredentialsRejected, Outcome::Invalid) => true,
        (Condition::Throttled, Outcome::Failed(kind)) => matches!(kind, Throttled { .. }),
        (Condition::Garbage | Condition::HugeReply, Outcome::Failed(kind)) => {
            *kind == InvalidResponse
        }
        (_, Outcome::Failed(kind)) => *kind == Unavailable,
        (_, Outcome::Invalid) => false,
    };
    match outcomes.iter().find(|outcome| !is_expected(outcome)) {
        None => Ok(()),
        Some(outcome) => Err(format!("the verifier returned {outcome:?}")),
    }
}

async fn recovery(stage: &Stage, known: &ApiKey, new: &ApiKey) -> Result<(), String> {
    let mut seen = Err("unreachable".to_owned());
    for _ in 0..RECOVERY {
        stage.clock.jump(SOFT_TTL);
        stage.request(known).await.is_organization(ORG)?;
        seen = stage.request(new).await.is_organization(OTHER_ORG);
        if seen.is_ok() {
            break;
        }
    }
    seen?;
    stage.verify_again(known).await?.is_organization(ORG)
}
