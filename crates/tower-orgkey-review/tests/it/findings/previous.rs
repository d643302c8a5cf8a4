//! The previous review, read from a file.

use std::io::{self, Read};

use serde_json::{Value, json};
use tower_orgkey_review::{Decision, PreviousReview, Review, ReviewReport};

use super::{policy, unused, whole};
use crate::lines::allowed;
use crate::{key, list, now};

/// A report with a decision, a key that nobody uses and one that was used after it was gone.
fn first() -> ReviewReport {
    let used = allowed("org_2", "key_gone", now().0 - 1, &[&["beat"]]);
    let keys = list([unused(), key("key_2", "org_1", &["beat", "read"])]);
    let decisions = [Decision {
        finding: "never-asked org_1 key_2".to_owned(),
        decision: "keep".to_owned(),
        reviewer: "security".to_owned(),
        reason: String::new(),
        until: None,
    }];
    let (evidence, policy) = (whole([used]), policy());
    let review = Review::of(&keys, &evidence, &policy).decisions(&decisions);
    review.report()
}

#[test]
fn a_read_review_is_as_one_in_memory() {
    let first = first();
    assert!(!first.revoked.is_empty() && !first.decisions.is_empty());
    let json = serde_json::to_vec(&first).unwrap();
    let (held, read) = (
        PreviousReview::of(&first),
        PreviousReview::read(json.as_slice()).unwrap(),
    );
    let ids = |of: &PreviousReview| of.key_ids().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(ids(&read), ids(&held));
    assert!(ids(&read).contains(&"key_gone".to_owned()));

    let mut renamed = key("key_2", "org_1", &["beat", "read"]);
    renamed.name = "other".to_owned();
    renamed.suffix = Some("new1".to_owned());
    let policy = policy();
    for keys in [
        list([renamed.clone(), key("key_3", "org_1", &["beat"])]),
        list([unused(), renamed]),
        list([]),
    ] {
        let evidence = whole([allowed("org_2", "key_gone", now().0 - 1, &[&["beat"]])]);
        let of = |previous| Review::of(&keys, &evidence, &policy).previous(previous);
        let expected = of(&held).report();
        let mut streamed = of(&read).stream();
        streamed.read_settled(json.as_slice()).unwrap();
        assert_eq!(streamed.to_report(), expected);
    }
}

#[test]
fn settled_findings_are_read_only_if_there_are_some() {
    let first = first();
    let json = serde_json::to_vec(&first).unwrap();
    let previous = PreviousReview::read(json.as_slice()).unwrap();
    let used = allowed("org_2", "key_gone", now().0 - 1, &[&["beat"]]);
    let same = list([unused(), key("key_2", "org_1", &["beat", "read"])]);
    let (evidence, policy) = (whole([used]), policy());
    let mut report = Review::of(&same, &evidence, &policy)
        .previous(&previous)
        .stream();
    report.read_settled(Unreadable).unwrap();
    let none = list([]);
    let mut report = Review::of(&none, &evidence, &policy)
        .previous(&previous)
        .stream();
    let error = report.read_settled(Unreadable).unwrap_err();
    assert_eq!(error.to_string(), "a torn tape");
    report.read_settled(json.as_slice()).unwrap();
    let settled = report.to_report().changes.unwrap().settled;
    let ids: Vec<_> = settled.iter().map(|finding| finding.id.as_str()).collect();
    assert!(ids.contains(&"unused org_1 key_1"), "{ids:?}");
}

#[test]
fn fault_193b_a_shrunken_previous_report_fails() {
    let first = first();
    let whole_json = serde_json::to_vec(&first).unwrap();
    let previous = PreviousReview::read(whole_json.as_slice()).unwrap();
    let keys = list([]);
    let (evidence, policy) = (whole([]), policy());
    let of = || Review::of(&keys, &evidence, &policy).previous(&previous);
    let mut report = of().stream();
    report.read_settled(whole_json.as_slice()).unwrap();
    let changes = report.to_report().changes.unwrap();
    assert!(changes.settled.len() > 1, "{changes:?}");
    // Another report in its place, and the file cut off.
    for settled in &changes.settled {
        let mut shrunk = first.clone();
        shrunk.findings.retain(|finding| finding.id != settled.id);
        let json = serde_json::to_vec(&shrunk).unwrap();
        let error = of().stream().read_settled(json.as_slice()).unwrap_err();
        let expected = "not the report that was read before: findings are missing";
        assert_eq!(error.to_string(), expected);
    }
    let cut = &whole_json[..whole_json.len() / 2];
    assert!(of().stream().read_settled(cut).is_err());
}

struct Unreadable;

impl Read for Unreadable {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("a torn tape"))
    }
}

#[test]
fn what_is_no_previous_review_is_rejected() {
    let report = serde_json::to_value(first()).unwrap();
    let with = |name: &str, value: Value| {
        let mut report = report.clone();
        report[name] = value;
        report.to_string()
    };
    let without = |name: &str| {
        let mut report = report.clone();
        report.as_object_mut().unwrap().remove(name);
        report.to_string()
    };
    let text = report.to_string();
    let no_report = "not a report: line 1";
    for (text, problem) in [
        (
            with("orgkey_review", json!(2)),
            "a report of another version",
        ),
        (
            with("organization", json!("org_1")),
            "a report of one organization",
        ),
        (with("findings", json!([{ "id": "secret" }])), no_report),
        (with("keys", json!({})), no_report),
        (text[..text.len() / 2].to_owned(), no_report),
        (format!("{text}{{"), no_report),
        ("[]".to_owned(), no_report),
        // A text of a tenant does not choose the message.
        (
            with("keys", json!(["a report of another version"])),
            no_report,
        ),
    ] {
        let error = PreviousReview::read(text.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), problem);
    }
    for name in [
        "orgkey_review",
        "coverage",
        "findings",
        "keys",
        "decisions",
        "revoked",
    ] {
        let error = PreviousReview::read(without(name).as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), no_report, "{name}");
    }
    PreviousReview::read(without("changes").as_bytes()).unwrap();
    let error = PreviousReview::read(Unreadable).unwrap_err();
    assert_eq!(error.to_string(), "a torn tape");
}
