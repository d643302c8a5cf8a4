//! Reviews through public items: of generated lines, and of a quarter that the emulated issuer and the real layers lived through.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

mod evidence;
mod findings;
mod hostile;
mod lines;
mod list;
#[path = "../../../../tests/support/nested.rs"]
mod nested;
mod ocsf;
#[path = "../../../../tests/support/python.rs"]
mod python;
mod quarter;
mod report;
mod streamed;

use tower_orgkey_review::{Evidence, EvidenceBuilder, KeyFacts, KeyList, ReviewReport, UnixMillis};

/// The milliseconds of a day.
const DAY: u64 = 86_400_000;

/// The time of all lists.
fn now() -> UnixMillis {
    "2026-07-01T12:00:00Z".parse().unwrap()
}

fn days_ago(days: u64) -> UnixMillis {
    UnixMillis(now().0 - days * DAY)
}

/// An active key of an organization, created a year ago.
fn key(id: &str, org: &str, scopes: &[&str]) -> KeyFacts {
    KeyFacts {
        id: id.to_owned(),
        name: format!("{org}-prod-{id}"),
        kind: "organization".to_owned(),
        status: "active".to_owned(),
        suffix: Some("abcd".to_owned()),
        created_at: Some(days_ago(365)),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        org: Some(org.to_owned()),
        ..KeyFacts::default()
    }
}

fn list(keys: impl IntoIterator<Item = KeyFacts>) -> KeyList {
    let mut list = KeyList::new(now());
    list.extend(keys);
    list
}

/// The ids of the findings.
fn ids(report: &ReviewReport) -> Vec<&str> {
    report
        .findings
        .iter()
        .map(|finding| finding.id.as_str())
        .collect()
}

/// Folds a text.
fn fold(text: &str) -> Evidence {
    let mut builder = EvidenceBuilder::new();
    builder
        .read("audit.jsonl", text.as_bytes(), |_| {})
        .unwrap();
    assert_eq!(builder.problems(), []);
    builder.finish()
}
