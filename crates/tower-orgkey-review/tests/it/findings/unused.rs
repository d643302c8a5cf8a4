//! Keys without requests.

use serde_json::{Value, json};
use tower_orgkey_review::{EvidenceBuilder, FindingKind, KeyFacts};

use super::{report, unused, whole};
use crate::lines::{Line, allowed, heartbeat, numbered};
use crate::{days_ago, fold, ids, key, now};

/// A trail of 100 days, with a count of this class 40 days ago.
fn with_count(class: u32, change: impl FnOnce(&mut Value)) -> String {
    let line = Line {
        sequence: 61,
        ..allowed("org_1", "key_1", days_ago(40).0, &[])
    };
    let mut line = line.count("x", class);
    change(&mut line);
    let before = numbered(1, 0, heartbeat(100, 40));
    format!("{before}{line}\n{}", numbered(1, 62, heartbeat(39, 0)))
}

#[test]
fn fault_196_unused_needs_whole_evidence() {
    let whole_report = report([unused()], &whole([]));
    assert!(whole_report.coverage.is_whole());
    assert_eq!(ids(&whole_report), ["unused org_1 key_1"]);
    assert!(whole_report.findings[0].is_conclusive);

    let lines = heartbeat(100, 0);
    let gap = numbered(1, 0, lines[..50].to_vec()) + &numbered(1, 51, lines[51..].to_vec());
    let shifted = numbered(1, 0, lines[..50].to_vec()) + &numbered(1, 51, lines[50..].to_vec());
    let late = numbered(1, 0, heartbeat(60, 0));
    let no_beginning = numbered(1, 1, heartbeat(80, 0));
    let silence = numbered(1, 0, lines[..50].to_vec()) + &numbered(2, 0, lines[55..].to_vec());
    let lost = |class| with_count(class, |_| ());
    for (what, text) in [
        ("a missing event", gap),
        ("a missing number", shifted),
        ("a late start", late),
        ("a missing beginning", no_beginning),
        ("five days without events", silence),
        ("lost events", lost(1008)),
        ("suppressed rejections", lost(3002)),
    ] {
        let report = report([unused()], &fold(&text));
        assert!(!report.coverage.is_whole(), "{what}");
        assert!(report.coverage.whole_days < 90, "{what}");
        assert_eq!(ids(&report), ["not-seen org_1 key_1"], "{what}");
        let days = format!("Not seen in {} of 90 days", report.coverage.whole_days);
        assert!(report.findings[0].proof.starts_with(&days), "{what}");
        assert!(!report.findings[0].is_conclusive, "{what}");
    }
}

/// Anybody can send requests without a key.
#[test]
fn fault_196_counted_rejections_are_of_no_key() {
    let of = |key: KeyFacts, by_code: Value| {
        let text = with_count(3002, |line| {
            line["count"] = 10.into();
            line["unmapped"] = json!({ "by_code": by_code });
        });
        report([key], &fold(&text))
    };
    let mut of_user = unused();
    of_user.kind = "user".to_owned();
    let (is_unused, not_seen) = (FindingKind::Unused, FindingKind::NotSeen);
    for (key, by_code, kind, whole_days) in [
        (unused(), json!({ "credential-missing": 10 }), is_unused, 90),
        (unused(), json!({ "credential-missing": 9 }), not_seen, 89),
        (unused(), json!({}), not_seen, 89),
        (
            unused(),
            json!({ "invalid-token": 9, "wrong-region": 1 }),
            not_seen,
            90,
        ),
        (
            unused(),
            json!({ "organization-required": 10 }),
            is_unused,
            90,
        ),
        (
            of_user,
            json!({ "organization-required": 10 }),
            not_seen,
            90,
        ),
    ] {
        let report = of(key, by_code.clone());
        let kinds = report.findings.iter().map(|it| it.kind);
        let kinds: Vec<_> = kinds
            .filter(|kind| *kind != FindingKind::NotOfOrganization)
            .collect();
        assert_eq!(kinds, [kind], "{by_code}");
        assert_eq!(report.coverage.suppressed, 10, "{by_code}");
        assert_eq!(report.coverage.whole_days, whole_days, "{by_code}");
    }
}

#[test]
fn unused_needs_a_key_that_existed() {
    let evidence = whole([]);
    let with = |change: fn(&mut KeyFacts)| {
        let mut key = unused();
        change(&mut key);
        report([key], &evidence)
    };
    let not_seen = ["not-seen org_1 key_1"];
    assert_eq!(
        ids(&with(|key| key.created_at = Some(days_ago(89)))),
        not_seen
    );
    assert_eq!(ids(&with(|key| key.created_at = None)), not_seen);
    // Another service uses it.
    assert_eq!(
        ids(&with(|key| key.last_verified_at = Some(days_ago(5)))),
        not_seen
    );
    assert_eq!(
        ids(&with(|key| key.last_verified_at = Some(days_ago(95)))),
        ["unused org_1 key_1"]
    );
    assert_eq!(ids(&with(|key| key.status = "revoked".to_owned())), [""; 0]);
}

#[test]
fn requests_without_key_ids_may_be_of_any_key() {
    let anonymous = Line {
        key: None,
        ..allowed("org_1", "", now().0, &[&["beat"]])
    };
    let evidence = whole([anonymous]);
    assert_eq!(
        ids(&report([unused()], &evidence)),
        ["not-seen org_1 key_1"]
    );
    let other = key("key_1", "org_2", &["beat"]);
    assert_eq!(ids(&report([other], &evidence)), ["unused org_2 key_1"]);
}

#[test]
fn used_keys_are_not_unused() {
    let used = |days| whole([allowed("org_1", "key_1", days_ago(days).0, &[&["beat"]])]);
    assert_eq!(ids(&report([unused()], &used(89))), [""; 0]);
    assert_eq!(ids(&report([unused()], &used(92))), ["unused org_1 key_1"]);
    let rejected = Line {
        code: "insufficient-scope",
        ..allowed("org_1", "key_1", days_ago(3).0, &[])
    };
    assert_eq!(ids(&report([unused()], &whole([rejected]))), [""; 0]);
}

#[test]
fn fault_190_unread_lines_may_be_of_any_key() {
    let text = numbered(1, 0, heartbeat(100, 0));
    let mut builder = EvidenceBuilder::new();
    builder.read("a", text.as_bytes(), |_| {}).unwrap();
    let broken = |text: &str| {
        let mut builder = EvidenceBuilder::new();
        builder.read("b", text.as_bytes(), |_| {}).unwrap();
        builder.finish()
    };
    let evidence = builder.finish();
    let with = |text| report([unused()], &evidence.clone().merge(broken(text)).unwrap());
    let malformed = with("broken\n");
    assert_eq!(malformed.coverage.malformed, 1);
    assert_eq!(ids(&malformed), ["not-seen org_1 key_1"]);
    assert!(!malformed.findings[0].is_conclusive);
    let statement = malformed.coverage.statement();
    assert!(statement.ends_with("; some lines could not be read"));
    let page = malformed.for_organization("org_1");
    assert_eq!(page.coverage.statement(), statement);
    let foreign = with("{}\n");
    assert_eq!(ids(&foreign), ["unused org_1 key_1"]);
    assert!(foreign.findings[0].coverage.ends_with("were ignored"));
}

#[test]
fn requests_of_another_region_may_be_of_any_key() {
    for code in ["wrong-region", "region-unknown", "invalid-key"] {
        let kind = match code {
            "invalid-key" => FindingKind::Unused,
            _ => FindingKind::NotSeen,
        };
        assert_eq!(with_a_rejection(unused(), code), kind, "{code}");
    }
}

#[test]
fn requests_of_users_may_be_of_any_key_of_a_user() {
    let code = "organization-required";
    let mut of_user = unused();
    of_user.kind = "user".to_owned();
    assert_eq!(with_a_rejection(of_user, code), FindingKind::NotSeen);
    assert_eq!(with_a_rejection(unused(), code), FindingKind::Unused);
}

/// Returns whether a key is unused or was not seen, if a request without an organization was rejected.
fn with_a_rejection(key: KeyFacts, code: &'static str) -> FindingKind {
    let line = Line {
        org: None,
        key: None,
        code,
        ..allowed("", "", now().0, &[])
    };
    let kinds = [FindingKind::Unused, FindingKind::NotSeen];
    let report = report([key], &whole([line]));
    let mut found = report.findings.iter().map(|finding| finding.kind);
    found.find(|kind| kinds.contains(kind)).unwrap()
}
