//! Names, organizations, secrets and revocations.

use std::time::Duration;

use tower_orgkey_review::{
    Evidence, FindingKind, KeyFacts, PreviousReview, Review, ReviewPolicy, ReviewReport, UnixMillis,
};

use super::{policy, unused, whole};
use crate::lines::{allowed, numbered};
use crate::{DAY, fold, ids, key, list, now};

#[test]
fn names_and_organizations_are_checked() {
    let policy = policy()
        .name_template("{org}-{env:prod}-{purpose}".parse().unwrap())
        .organizations(["org_beat", "org_1"]);
    let mut keys = [unused(), key("key_2", "org_2", &["beat"])];
    keys[0].name = "<b>".to_owned();
    keys[0].kind = "user".to_owned();
    let requests = [
        allowed("org_1", "key_1", now().0, &[&["beat"]]),
        allowed("org_2", "key_2", now().0, &[&["beat"]]),
    ];
    let report = Review::of(&list(keys), &whole(requests), &policy).report();
    assert_eq!(
        ids(&report),
        [
            "organization-gone org_2 key_2",
            "not-of-organization org_1 key_1",
            "name org_1 key_1"
        ]
    );
}

/// A key that was created and used after the list was read has its organization from the evidence of that review.
#[test]
fn an_organization_is_known_before_the_list_has_it() {
    let policy = policy().organizations(["org_beat"]);
    let used = whole([allowed("org_1", "key_1", now().0 + 1, &[&["beat"]])]);
    let first = Review::of(&list([]), &used, &policy).report();
    let previous = PreviousReview::of(&first);
    assert!(previous.key_ids().any(|id| id == "key_1"));
    let mut keys = list([KeyFacts {
        org: None,
        ..unused()
    }]);
    keys.listed_at = UnixMillis(now().0 + 100 * DAY);
    let none = Evidence::default();
    let second = Review::of(&keys, &none, &policy).previous(&previous);
    let report = second.report();
    assert_eq!(report.keys[0].org.as_deref(), Some("org_1"));
    assert!(ids(&report).contains(&"organization-gone org_1 key_1"));
    assert_eq!(report.for_organization("org_1").keys.len(), 1);
}

#[test]
fn rotations_are_seen_between_reviews() {
    let used = whole([allowed("org_1", "key_1", now().0, &[&["beat"]])]);
    let policy = ReviewPolicy::new().rotation_days(90);
    let mut keys = list([unused()]);
    let first = Review::of(&keys, &used, &policy).report();
    assert_eq!(ids(&first), ["rotation-due org_1 key_1"]);
    assert!(!first.findings[0].is_conclusive);

    keys.push(KeyFacts {
        suffix: Some("wxyz".to_owned()),
        ..unused()
    });
    keys.listed_at = UnixMillis(now().0 + 30 * DAY);
    let later = whole([allowed("org_1", "key_1", keys.listed_at.0, &[&["beat"]])]);
    let second = Review::of(&keys, &later, &policy)
        .previous(&PreviousReview::of(&first))
        .report();
    assert_eq!(ids(&second), [""; 0]);
    let changes = second.changes.as_ref().unwrap();
    assert_eq!(changes.changed[0].what, ["secret rotated"]);
    assert_eq!(changes.settled[0].id, "rotation-due org_1 key_1");

    // The age is that since the first list with the other secret.
    for (days, due) in [(90, false), (91, true)] {
        let mut keys = keys.clone();
        keys.listed_at = UnixMillis(second.coverage.until.0 + days * DAY);
        let used = fold(&numbered(
            9,
            0,
            [allowed("org_1", "key_1", keys.listed_at.0, &[&["beat"]])],
        ));
        let third = Review::of(&keys, &used, &policy)
            .previous(&PreviousReview::of(&second))
            .report();
        assert_eq!(
            ids(&third).contains(&"rotation-due org_1 key_1"),
            due,
            "{days}"
        );
    }
}

#[test]
fn a_key_of_unknown_age_is_due_for_rotation() {
    let policy = ReviewPolicy::new().rotation_days(90);
    let none = Evidence::default();
    let at = |suffix: Option<&str>, days: u64, before: Option<&ReviewReport>| {
        let mut keys = list([KeyFacts {
            created_at: None,
            suffix: suffix.map(str::to_owned),
            ..unused()
        }]);
        keys.listed_at = UnixMillis(now().0 + days * DAY);
        let previous = before.map(PreviousReview::of);
        let mut review = Review::of(&keys, &none, &policy);
        if let Some(previous) = &previous {
            review = review.previous(previous);
        }
        review.report()
    };
    let due = |report: &ReviewReport| {
        let mut findings = report.findings.iter();
        let finding = findings.find(|it| it.kind == FindingKind::RotationDue)?;
        Some((finding.is_conclusive, finding.proof.clone()))
    };
    let same = "the same last characters";
    let first = at(Some("abcd"), 0, None);
    assert_eq!(due(&first), None);
    let (is_conclusive, proof) = due(&at(Some("abcd"), 200, Some(&first))).unwrap();
    assert!(proof.contains("at least 200 days old") && proof.contains(same));
    assert!(is_conclusive);
    // A list without the suffix hides no rotation, and proves nothing.
    let (is_conclusive, proof) = due(&at(None, 200, Some(&first))).unwrap();
    assert!(!proof.contains(same) && !is_conclusive, "{proof}");
    let second = at(None, 50, Some(&first));
    assert!(due(&at(Some("abcd"), 200, Some(&second))).is_some());
    assert_eq!(due(&at(Some("wxyz"), 200, Some(&second))), None);
    // Without any suffix, none is seen.
    let first = at(None, 0, None);
    let (is_conclusive, proof) = due(&at(None, 200, Some(&first))).unwrap();
    assert!(!proof.contains(same) && !is_conclusive, "{proof}");
    // It may have been rotated until it was shown.
    assert_eq!(due(&at(Some("abcd"), 200, Some(&first))), None);
}

#[test]
fn use_after_revocation_is_found() {
    let policy = policy().revocation_bound(Duration::from_secs(60));
    let at = |after: u64| whole([allowed("org_1", "key_1", now().0 + after, &[&["beat"]])]);
    let mut revoked = unused();
    revoked.status = "revoked".to_owned();
    let of = |keys: &[KeyFacts], evidence: &Evidence| {
        Review::of(&list(keys.to_vec()), evidence, &policy).report()
    };
    let expected = ["used-after-revocation org_1 key_1"];
    assert_eq!(ids(&of(&[revoked.clone()], &at(60_001))), expected);
    assert_eq!(ids(&of(&[revoked.clone()], &at(60_000))), [""; 0]);
    // A key that is gone: it was listed before, or used before the list was read.
    let first = of(&[unused()], &at(0));
    let gone = list([]);
    let evidence = at(60_001);
    let previous = PreviousReview::of(&first);
    let second = Review::of(&gone, &evidence, &policy).previous(&previous);
    assert_eq!(ids(&second.report()), expected);
    // One that was created after the list was read.
    assert_eq!(ids(&of(&[], &evidence)), [""; 0]);
    // A review remembers when a key was seen to be gone.
    let mut later = list([revoked]);
    later.listed_at = UnixMillis(now().0 + 10 * DAY);
    let remembered = of(&[], &at(0));
    let evidence = at(9 * DAY);
    assert_eq!(
        ids(&Review::of(&later, &evidence, &policy).report()),
        [""; 0]
    );
    let third = Review::of(&later, &evidence, &policy)
        .previous(&PreviousReview::of(&remembered))
        .report();
    assert_eq!(ids(&third), expected);
}

#[test]
fn a_revocation_is_known_in_all_later_reviews() {
    let policy = policy();
    let mut keys = list([KeyFacts {
        status: "revoked".to_owned(),
        ..unused()
    }]);
    let first = Review::of(&keys, &whole([]), &policy).report();
    keys.listed_at = UnixMillis(now().0 + 91 * DAY);
    let evidence = whole([allowed("org_1", "key_1", now().0 + 90 * DAY, &[&["beat"]])]);
    let previous = PreviousReview::of(&first);
    let second = Review::of(&keys, &evidence, &policy).previous(&previous);
    assert_eq!(ids(&second.report()), ["used-after-revocation org_1 key_1"]);
}
