//! Keys of several organizations, and what one of them is shown.

use tower_orgkey_review::{FindingKind, PreviousReview, Review};

use super::{policy, report, whole};
use crate::lines::allowed;
use crate::{days_ago, ids, key, list, now};

#[test]
fn a_shared_key_is_judged_by_all_its_organizations() {
    let mut key = key("key_1", "org_1", &["beat", "read"]);
    key.kind = "user".to_owned();
    let evidence = whole([
        allowed("org_1", "key_1", days_ago(95).0, &[&["beat"]]),
        allowed("org_2", "key_1", now().0, &[&["read"]]),
    ]);
    let report = report([key], &evidence);
    let kinds: Vec<_> = report.findings.iter().map(|it| it.kind).collect();
    assert_eq!(kinds, [FindingKind::NotOfOrganization; 2]);
    let shared: Vec<_> = report.keys.iter().filter(|key| key.id == "key_1").collect();
    assert_eq!(shared.len(), 2);
    for key in shared {
        assert_eq!(key.needed.as_deref().unwrap(), ["beat", "read"]);
        assert_eq!(key.replayed, 2);
    }
    let one = report.for_organization("org_1");
    assert_eq!(
        (one.keys[0].replayed, one.keys[0].needed.as_ref()),
        (0, None)
    );
}

#[test]
fn scopes_of_a_shared_key_are_withheld_from_one() {
    let shared = key("key_1", "org_1", &["beat", "read", "never"]);
    let evidence = whole([
        allowed("org_1", "key_1", now().0, &[&["read"]]),
        allowed("org_2", "key_1", now().0, &[&["read"]]),
    ]);
    let report = report([shared], &evidence);
    assert!(ids(&report).contains(&"over-scoped org_1 key_1"));
    let one = report.for_organization("org_1");
    assert_eq!(ids(&one), ["never-asked org_1 key_1"]);
    assert_eq!(
        one.findings[0].checklist,
        ["Ask which service these scopes are for."]
    );
}

/// Settled findings are those of the review before, when another organization may have had the key.
#[test]
fn settled_findings_tell_nothing_of_others() {
    let shared = key("key_1", "org_1", &["beat", "read", "never"]);
    let evidence = whole([
        allowed("org_1", "key_1", now().0, &[&["read"]]),
        allowed("org_2", "key_1", now().0, &[&["read"]]),
    ]);
    let first = report([shared], &evidence);
    assert!(ids(&first).contains(&"over-scoped org_1 key_1"));
    assert!(ids(&first).contains(&"over-scoped org_2 key_1"));

    let (none, policy) = (whole([]), policy());
    let mut count = 0;
    for keys in [
        list([]),
        list([key("key_1", "org_1", &["read"])]),
        list([key("key_1", "org_1", &["beat"])]),
    ] {
        let previous = PreviousReview::of(&first);
        let review = Review::of(&keys, &none, &policy).previous(&previous);
        for org in ["org_1", "org_2"] {
            let (one, streamed) = (
                review.report().for_organization(org),
                review.stream().for_organization(org),
            );
            assert_eq!(one, streamed);
            let settled = one.changes.as_ref().unwrap().settled.iter();
            let advised: Vec<_> = settled
                .clone()
                .filter(|it| it.kind == FindingKind::OverScoped)
                .filter(|it| {
                    !(it.scopes.is_empty() && it.proof.is_empty() && it.checklist.is_empty())
                })
                .collect();
            assert!(advised.is_empty(), "{advised:?}");
            let never = settled.filter(|it| it.kind == FindingKind::NeverAsked);
            for finding in never {
                let advice = ["Ask which service these scopes are for."];
                assert_eq!(finding.checklist, advice);
                count += 1;
            }
        }
    }
    assert!(count > 0);
}

#[test]
fn a_move_names_no_other_organization() {
    let evidence = whole([]);
    let policy = policy();
    let before = list([key("key_1", "org_a", &["beat"])]);
    let after = list([key("key_1", "org_b", &["beat"])]);
    let first = Review::of(&before, &evidence, &policy).report();
    let report = Review::of(&after, &evidence, &policy)
        .previous(&PreviousReview::of(&first))
        .report();
    let changes = report.changes.as_ref().unwrap();
    let what = &changes.changed[0].what;
    assert!(what.contains(&"organizations: org_a to org_b".to_owned()));
    let one = report.for_organization("org_b");
    assert_eq!(one.changes.as_ref().unwrap().changed, []);
    assert!(!one.to_html().contains("org_a"));
}
