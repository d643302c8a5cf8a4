//! What a review says.

use std::collections::{BTreeMap, HashSet};
use std::io;

use serde::{Deserialize, Serialize};

use crate::coverage::Coverage;
use crate::time::UnixMillis;

/// The result of a [`Review`](crate::Review).
///
/// It is read and written as JSON by `serde`, and the next review compares itself with it. [`to_html`](Self::to_html),
/// [`to_csv`](Self::to_csv) and [`to_ocsf`](Self::to_ocsf) write it for people and other programs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReviewReport {
    /// The version of the format, 1.
    pub orgkey_review: u32,
    /// The organization, if the report is about one.
    pub organization: Option<String>,
    /// How much of the window was recorded.
    pub coverage: Coverage,
    /// What changed since the previous review. `None` in the first one.
    pub changes: Option<Changes>,
    /// The findings, the most severe first.
    pub findings: Vec<Finding>,
    /// The keys, by organization and id.
    pub keys: Vec<KeyReview>,
    /// The requests of each organization, by week.
    pub requests: BTreeMap<String, Vec<WeekCount>>,
    /// Decisions about findings, also about those of earlier reviews.
    pub decisions: Vec<Decision>,
    /// Keys that a list has shown to be inactive or gone.
    pub revoked: Vec<RevokedKey>,
}

/// The requests of an organization in a week.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WeekCount {
    /// The Monday of the week, in UTC.
    pub week: UnixMillis,
    /// Requests that were not rejected.
    pub allowed: u64,
    /// Rejected requests.
    pub rejected: u64,
}

/// A key in an organization.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KeyReview {
    /// The organization, if it is known.
    pub org: Option<String>,
    /// The id.
    pub id: String,
    /// The name.
    pub name: String,
    /// `organization`, `user` or `environment`; empty if the key is not on the list.
    pub kind: String,
    /// `active` or another word of the issuer; `not listed` if the key is not on the list.
    pub status: String,
    /// The last characters of the secret, or those of the last review that had some.
    pub suffix: Option<String>,
    /// Whether this list has them.
    #[serde(skip)]
    pub(crate) is_suffix_listed: bool,
    /// When it was created.
    pub created_at: Option<UnixMillis>,
    /// When the issuer last verified it.
    pub last_verified_at: Option<UnixMillis>,
    /// Since when at least the secret is the same: a rotation was seen then, or else the key was created.
    pub secret_since: Option<UnixMillis>,
    /// Since when reviews watch the secret, or, without last characters, have the key.
    pub watched_since: UnixMillis,
    /// The scopes that it has.
    pub granted: Vec<String>,
    /// Whether several organizations have the key. What it needed is that of all of them, with the counts beside it.
    #[serde(default)]
    pub is_shared: bool,
    /// The scopes that its recorded requests needed. `None` if there is no proof.
    pub needed: Option<Vec<String>>,
    /// The requests that the needed scopes were replayed over.
    pub replayed: u64,
    /// Requests that may have met more policies than were recorded.
    pub truncated: u64,
    /// Requests without a recorded scope policy. Handlers may have tested scopes themselves.
    pub unguarded: u64,
    /// Requests that were not rejected.
    pub allowed: u64,
    /// Rejected requests by code.
    pub rejected: BTreeMap<String, u64>,
    /// Scopes that rejected requests asked for and the key does not have.
    pub denied: Vec<String>,
    /// The first request in the evidence.
    pub first_used: Option<UnixMillis>,
    /// The last request.
    pub last_used: Option<UnixMillis>,
    /// The last request that was not rejected.
    pub last_allowed: Option<UnixMillis>,
}

impl KeyReview {
    /// Returns the number of rejected requests.
    pub fn rejections(&self) -> u64 {
        self.rejected.values().sum()
    }

    /// Takes away what other organizations did with the key.
    fn without_others(mut self) -> Self {
        if std::mem::take(&mut self.is_shared) {
            self.needed = None;
            (self.replayed, self.truncated, self.unguarded) = (0, 0, 0);
        }
        self
    }

    /// Returns whether the key is on the issuer's list.
    pub fn is_listed(&self) -> bool {
        self.status != NOT_LISTED
    }
}

/// Returns what is written, which is text.
pub(crate) fn in_memory(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
    let mut bytes = Vec::new();
    // Writing to memory cannot fail.
    let _ = write(&mut bytes);
    String::from_utf8(bytes).unwrap_or_default()
}

/// How a change of the organizations of a key begins.
pub(crate) const ORGANIZATIONS: &str = "organizations: ";
/// A step about scopes, if it is not known which are needed.
pub(crate) const ASK: &str = "Ask which service these scopes are for.";
/// The status of a key that is not on the list.
pub(crate) const NOT_LISTED: &str = "not listed";

/// A key that a list has shown to be inactive or gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RevokedKey {
    /// The organization, if it is known.
    pub org: Option<String>,
    /// The id.
    pub id: String,
    /// When the list was read that showed it first.
    pub seen_at: UnixMillis,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FindingKind {
    /// A key was accepted after a list had shown it as inactive or gone.
    UsedAfterRevocation,
    /// The organization does not exist any more.
    OrganizationGone,
    /// An active key without a request in the whole window.
    Unused,
    /// Scopes that other keys were asked for, and that this key did not need.
    OverScoped,
    /// The secret is older than the rotation age.
    RotationDue,
    /// A key of a user or of the whole environment.
    NotOfOrganization,
    /// Scopes that no request was asked for.
    NeverAsked,
    /// Many requests were rejected.
    OftenRejected,
    /// The name breaks the convention.
    Name,
    /// No request in the part of the window that was recorded.
    NotSeen,
}

impl FindingKind {
    /// All kinds, the most severe first.
    pub const ALL: [Self; 10] = [
        Self::UsedAfterRevocation,
        Self::OrganizationGone,
        Self::Unused,
        Self::OverScoped,
        Self::RotationDue,
        Self::NotOfOrganization,
        Self::NeverAsked,
        Self::OftenRejected,
        Self::Name,
        Self::NotSeen,
    ];

    /// Returns the name, such as `over-scoped`. Findings and reports use it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UsedAfterRevocation => "used-after-revocation",
            Self::OrganizationGone => "organization-gone",
            Self::Unused => "unused",
            Self::OverScoped => "over-scoped",
            Self::RotationDue => "rotation-due",
            Self::NotOfOrganization => "not-of-organization",
            Self::NeverAsked => "never-asked",
            Self::OftenRejected => "often-rejected",
            Self::Name => "name",
            Self::NotSeen => "not-seen",
        }
    }

    /// Returns a title for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::UsedAfterRevocation => "Used after its revocation",
            Self::OrganizationGone => "Organization gone",
            Self::Unused => "Unused",
            Self::OverScoped => "More scopes than needed",
            Self::RotationDue => "Past its rotation age",
            Self::NotOfOrganization => "Not a key of an organization",
            Self::NeverAsked => "Scopes that are never asked for here",
            Self::OftenRejected => "Often rejected",
            Self::Name => "Name against the convention",
            Self::NotSeen => "Not seen in what was recorded",
        }
    }

    /// Returns the number and the name of the severity, as OCSF has them.
    pub fn severity(self) -> (u32, &'static str) {
        match self {
            Self::UsedAfterRevocation | Self::OrganizationGone => (4, "High"),
            Self::Unused | Self::OverScoped | Self::RotationDue => (3, "Medium"),
            Self::NotOfOrganization | Self::NeverAsked | Self::OftenRejected | Self::Name => {
                (2, "Low")
            }
            Self::NotSeen => (1, "Informational"),
        }
    }
}

/// Something that a reviewer has to decide on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Finding {
    /// The identifier, which is the same in each review: the kind, the organization (`-` if unknown) and the key.
    pub id: String,
    /// What it is about.
    pub kind: FindingKind,
    /// The organization, if it is known.
    pub org: Option<String>,
    /// The id of the key.
    pub key: String,
    /// The scopes that it is about.
    pub scopes: Vec<String>,
    /// A sentence with the facts. Contains no name that a tenant chose.
    pub proof: String,
    /// How much of the window the proof covers.
    pub coverage: String,
    /// Whether nothing is missing in the evidence for it.
    pub is_conclusive: bool,
    /// What to do, in this order.
    pub checklist: Vec<String>,
    /// The last request that it is about, of `used-after-revocation`: a decision is not about later ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<UnixMillis>,
    /// What was decided.
    pub decision: Option<Decision>,
    /// Whether the decision was valid until a time that is over.
    pub is_decision_expired: bool,
}

impl Finding {
    /// Returns whether nothing valid was decided about it.
    pub fn is_open(&self) -> bool {
        self.decision.is_none() || self.is_decision_expired
    }
}

/// What a reviewer decided about a finding. It is carried to later reviews until one of them does not have the finding, or has
/// it with more scopes or, of `used-after-revocation`, a later request: then it has to be decided on again, by a decision with
/// another text.
///
/// ```
/// use tower_orgkey_review::Decision;
///
/// let json = r#"{ "finding": "unused org_1 key_1", "decision": "keep", "reviewer": "security", "reason": "runs once a year",
///                 "until": "2027-01-31" }"#;
/// let decision: Decision = serde_json::from_str(json).unwrap();
/// assert_eq!(decision.until.unwrap().to_string(), "2027-01-31T23:59:59.999Z");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// The identifier of the finding.
    pub finding: String,
    /// What was decided, such as `keep`, `replace` or `revoke`.
    pub decision: String,
    /// Who decided.
    pub reviewer: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Until when it is valid: a timestamp, or a date, of which the end in UTC counts. Without it, for ever.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "until"
    )]
    pub until: Option<UnixMillis>,
}

fn until<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<UnixMillis>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let time = text
        .parse()
        .or_else(|_| format!("{text}T23:59:59.999Z").parse());
    time.map(Some).map_err(serde::de::Error::custom)
}

/// What changed since the previous review.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Changes {
    /// When the list of the previous review was read.
    pub since: UnixMillis,
    /// Keys that were not on that list.
    pub added: Vec<ChangedKey>,
    /// Keys that are not on the list any more.
    pub removed: Vec<ChangedKey>,
    /// Keys that changed.
    pub changed: Vec<ChangedKey>,
    /// The identifiers of findings that are new.
    pub found: Vec<String>,
    /// The findings that the previous review had, and that are gone.
    pub settled: Vec<Finding>,
    /// The identifiers of findings that were decided since.
    pub decided: Vec<String>,
}

/// A key that was added, removed or changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ChangedKey {
    /// The organization, if it is known.
    pub org: Option<String>,
    /// The id.
    pub id: String,
    /// The name.
    pub name: String,
    /// What changed, such as `secret rotated` or `status: active to revoked`.
    pub what: Vec<String>,
}

impl ReviewReport {
    /// The JSON Schema (draft 2020-12) of a report as JSON. `orgkey review` writes such reports.
    ///
    /// ```
    /// use tower_orgkey_review::ReviewReport;
    ///
    /// let schema: serde_json::Value = serde_json::from_str(ReviewReport::JSON_SCHEMA).unwrap();
    /// assert_eq!(schema["properties"]["orgkey_review"]["const"], 1);
    /// ```
    pub const JSON_SCHEMA: &str = include_str!("report.schema.json");

    /// Returns the part about one organization. It contains nothing about others, nor how many requests or events they had.
    ///
    /// Keys with an unknown organization are left out. The least scopes of a key that several organizations have are withheld,
    /// and those of settled findings: several may have had the key then.
    ///
    /// ```
    /// use tower_orgkey_review::ReviewReport;
    ///
    /// fn pages(report: &ReviewReport) -> Vec<String> {
    ///     report.requests.keys().map(|org| report.for_organization(org).to_html()).collect()
    /// }
    /// ```
    #[must_use]
    pub fn for_organization(&self, org: &str) -> Self {
        let is_of = |of: &Option<String>| of.as_deref() == Some(org);
        let own = self.keys.iter();
        let own = own.filter(|key| is_of(&key.org) && !key.is_shared);
        let own: HashSet<&str> = own.map(|key| key.id.as_str()).collect();
        // The least scopes of a shared key say what others did.
        let is_of_others = |finding: &Finding| {
            finding.kind == FindingKind::OverScoped && !own.contains(finding.key.as_str())
        };
        let of_findings = |findings: &[Finding]| -> Vec<Finding> {
            findings
                .iter()
                .filter(|finding| is_of(&finding.org) && !is_of_others(finding))
                .cloned()
                .map(|mut finding| {
                    let is_advice = finding.kind == FindingKind::NeverAsked;
                    if is_advice && !own.contains(finding.key.as_str()) {
                        finding.checklist = vec![ASK.to_owned()];
                    }
                    finding
                })
                .collect()
        };
        let findings = of_findings(&self.findings);
        let here: HashSet<&str> = findings.iter().map(|finding| finding.id.as_str()).collect();
        let changes = self.changes.as_ref().map(|changes| {
            let keys = |keys: &[ChangedKey]| -> Vec<ChangedKey> {
                keys.iter().filter(|key| is_of(&key.org)).cloned().collect()
            };
            let mut changed = keys(&changes.changed);
            // The key of before was that of others.
            changed.retain(|key| !key.what.iter().any(|it| it.starts_with(ORGANIZATIONS)));
            let ids = |ids: &[String]| -> Vec<String> {
                let is_here = |id: &&String| here.contains(id.as_str());
                ids.iter().filter(is_here).cloned().collect()
            };
            Changes {
                since: changes.since,
                added: keys(&changes.added),
                removed: keys(&changes.removed),
                changed,
                found: ids(&changes.found),
                settled: without_advice(of_findings(&changes.settled)),
                decided: ids(&changes.decided),
            }
        });
        let is_about = |decision: &&Decision| here.contains(decision.finding.as_str());
        let requests = self
            .requests
            .get(org)
            .map(|weeks| (org.to_owned(), weeks.clone()));
        Self {
            orgkey_review: self.orgkey_review,
            organization: Some(org.to_owned()),
            coverage: Coverage {
                // How busy the service is, and how many of its requests have no organization.
                nodes: self.coverage.nodes.map(|nodes| nodes.min(1)),
                events: 0,
                trails: 0,
                malformed: self.coverage.malformed.min(1),
                foreign: self.coverage.foreign.min(1),
                missing: 0,
                lost: 0,
                suppressed: 0,
                ..self.coverage.clone()
            },
            changes,
            keys: self
                .keys
                .iter()
                .filter(|key| is_of(&key.org))
                .cloned()
                .map(KeyReview::without_others)
                .collect(),
            requests: requests.into_iter().collect(),
            decisions: self.decisions.iter().filter(is_about).cloned().collect(),
            revoked: self
                .revoked
                .iter()
                .filter(|key| is_of(&key.org))
                .cloned()
                .collect(),
            findings,
        }
    }
}

/// Findings of the review before, without what other organizations that had the key then may have caused.
fn without_advice(mut settled: Vec<Finding>) -> Vec<Finding> {
    for finding in &mut settled {
        match finding.kind {
            FindingKind::OverScoped => {
                finding.scopes.clear();
                finding.proof.clear();
                finding.checklist.clear();
            }
            FindingKind::NeverAsked => finding.checklist = vec![ASK.to_owned()],
            _ => {}
        }
    }
    settled
}
