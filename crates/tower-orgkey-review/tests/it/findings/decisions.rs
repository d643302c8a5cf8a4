//! What changed since the previous review, and what was decided.

use tower_orgkey_review::{Decision, KeyFacts, PreviousReview, Review, ReviewReport, UnixMillis};

use super::{policy, unused, whole};
use crate::lines::allowed;
use crate::{DAY, ids, key, list, now};

#[test]
fn decisions_are_carried_and_expire() {
    let evidence = whole([]);
    let policy = policy();
    let keys = list([unused()]);
    let decision = Decision {
        finding: "unused org_1 key_1".to_owned(),
        decision: "keep".to_owned(),
        reviewer: "security".to_owned(),
        reason: "once a year".to_owned(),
        until: Some(UnixMillis(now().0 + DAY)),
    };
    let first = Review::of(&keys, &evidence, &policy).report();
    assert!(first.findings[0].is_open());
    let decisions = [decision.clone()];
    let second = Review::of(&keys, &evidence, &policy)
        .previous(&PreviousReview::of(&first))
        .decisions(&decisions)
        .report();
    assert!(!second.findings[0].is_open());
    assert_eq!(
        second.changes.as_ref().unwrap().decided,
        ["unused org_1 key_1"]
    );
    let json = serde_json::to_string(&second).unwrap();
    let second: ReviewReport = serde_json::from_str(&json).unwrap();
    let third = Review::of(&keys, &evidence, &policy)
        .previous(&PreviousReview::of(&second))
        .report();
    assert_eq!(third.findings[0].decision, Some(decision));
    assert_eq!(third.changes.as_ref().unwrap().decided, [""; 0]);
    let mut late = keys.clone();
    late.listed_at = UnixMillis(now().0 + DAY + 1);
    let fourth = Review::of(&late, &evidence, &policy)
        .previous(&PreviousReview::of(&third))
        .report();
    assert!(fourth.findings[0].is_open() && fourth.findings[0].is_decision_expired);
}

#[test]
fn changes_name_keys_that_came_and_went() {
    let evidence = whole([]);
    let policy = policy();
    let before = list([unused(), key("key_2", "org_1", &["beat"])]);
    let mut renamed = key("key_2", "org_1", &["beat", "read"]);
    renamed.name = "other".to_owned();
    let after = list([renamed, key("key_3", "org_1", &["beat"])]);
    let first = Review::of(&before, &evidence, &policy).report();
    assert_eq!(first.changes, None);
    let changes = Review::of(&after, &evidence, &policy)
        .previous(&PreviousReview::of(&first))
        .report()
        .changes
        .unwrap();
    let ids = |keys: &[tower_orgkey_review::ChangedKey]| -> Vec<String> {
        keys.iter().map(|key| key.id.clone()).collect()
    };
    assert_eq!(ids(&changes.added), ["key_3"]);
    assert_eq!(ids(&changes.removed), ["key_1"]);
    assert_eq!(ids(&changes.changed), ["key_2"]);
    assert_eq!(
        changes.changed[0].what,
        [
            "name: org_1-prod-key_2 to other",
            "scopes: beat to beat read"
        ]
    );
    assert_eq!(changes.settled[0].id, "unused org_1 key_1");
}

#[test]
fn a_finding_that_comes_back_is_open() {
    let policy = policy();
    let keys = list([unused()]);
    let (idle, busy) = (
        whole([]),
        whole([allowed("org_1", "key_1", now().0, &[&["beat"]])]),
    );
    let decisions = [Decision {
        finding: "unused org_1 key_1".to_owned(),
        decision: "keep".to_owned(),
        reviewer: "security".to_owned(),
        reason: String::new(),
        until: None,
    }];
    let after = |evidence, previous: &ReviewReport| {
        let previous = PreviousReview::of(previous);
        let review = Review::of(&keys, evidence, &policy).previous(&previous);
        // The file of decisions is given to each review.
        review.decisions(&decisions).report()
    };
    let first = after(&idle, &ReviewReport::default());
    assert!(!first.findings[0].is_open());
    assert!(!after(&idle, &first).findings[0].is_open());
    let gone = after(&busy, &first);
    assert_eq!(gone.findings, []);
    let back = after(&idle, &gone);
    assert!(back.findings[0].is_open());
    assert_eq!(back.decisions, decisions);
    assert!(after(&idle, &back).findings[0].is_open());
}

#[test]
fn a_decision_about_a_use_is_not_about_later_ones() {
    let policy = policy();
    let decisions = [Decision {
        finding: "used-after-revocation org_1 key_1".to_owned(),
        decision: "accept".to_owned(),
        reviewer: "security".to_owned(),
        reason: "a test".to_owned(),
        until: None,
    }];
    let keys = list([KeyFacts {
        status: "revoked".to_owned(),
        ..unused()
    }]);
    let used = |days| {
        whole([allowed(
            "org_1",
            "key_1",
            now().0 + days * DAY,
            &[&["beat"]],
        )])
    };
    let review = |days, previous: &ReviewReport| {
        let (used, previous) = (used(days), PreviousReview::of(previous));
        let review = Review::of(&keys, &used, &policy).previous(&previous);
        // The file of decisions is given to each review.
        review.decisions(&decisions).report()
    };
    let first = review(1, &ReviewReport::default());
    assert_eq!(ids(&first), ["used-after-revocation org_1 key_1"]);
    assert!(!first.findings[0].is_open());
    assert!(!review(1, &first).findings[0].is_open());
    let later = review(2, &first);
    assert!(later.findings[0].is_open());
    assert!(review(2, &later).findings[0].is_open());
}

#[test]
fn a_decision_about_scopes_is_not_about_more() {
    let evidence = whole([allowed("org_1", "key_1", now().0, &[&["read"]])]);
    let policy = policy();
    let with = |scopes: &[&str]| list([key("key_1", "org_1", scopes)]);
    let decisions = [Decision {
        finding: "never-asked org_1 key_1".to_owned(),
        decision: "keep".to_owned(),
        reviewer: "security".to_owned(),
        reason: String::new(),
        until: None,
    }];
    let keys = with(&["read", "x", "y"]);
    let first = Review::of(&keys, &evidence, &policy).decisions(&decisions);
    let first = first.report();
    let is_open = |scopes: &[&str]| {
        let keys = with(scopes);
        let previous = PreviousReview::of(&first);
        let second = Review::of(&keys, &evidence, &policy).previous(&previous);
        second.report().findings[0].is_open()
    };
    assert!(!is_open(&["read", "x"]));
    assert!(is_open(&["read", "x", "y", "z"]));
}
