//! Scopes that a key needs, and that it does not.

use tower_orgkey_review::Evidence;

use super::{report, whole};
use crate::lines::{Line, allowed};
use crate::{ids, key, now};

#[test]
fn scopes_are_split_into_needed_and_not() {
    let requests = (0..30).map(|n| {
        allowed(
            "org_1",
            "key_1",
            now().0 - n,
            &[&["read", "list"], &["admin"]],
        )
    });
    let truncated = Line {
        policies: vec![(vec![vec!["read"]], true); 8],
        ..allowed("org_1", "key_1", now().0, &[])
    };
    let unguarded = Line {
        policies: Vec::new(),
        ..allowed("org_1", "key_1", now().0, &[])
    };
    let key = key(
        "key_1",
        "org_1",
        &["admin", "beat", "list", "never", "read"],
    );
    let report = report([key], &whole(requests.chain([truncated, unguarded])));
    let reviewed = report.keys.iter().find(|key| key.id == "key_1").unwrap();
    // `admin` would satisfy the first policy alone, but `read` is asked for without an alternative.
    let needed = reviewed.needed.as_deref().unwrap();
    assert!(
        needed == ["admin", "read"] || needed == ["list", "read"],
        "{needed:?}"
    );
    assert_eq!(
        (reviewed.replayed, reviewed.truncated, reviewed.unguarded),
        (31, 1, 1)
    );
    assert_eq!(
        ids(&report),
        ["over-scoped org_1 key_1", "never-asked org_1 key_1"]
    );
    let [over, never] = &report.findings[..] else {
        unreachable!()
    };
    assert_eq!(never.scopes, ["never"]);
    assert_eq!(over.scopes.len(), 2);
    assert!(
        over.proof.contains("all 31 recorded requests"),
        "{}",
        over.proof
    );
    assert!(
        over.proof.contains("1 requests may have met more"),
        "{}",
        over.proof
    );
    assert!(
        over.proof.contains("1 requests have no recorded"),
        "{}",
        over.proof
    );
    assert!(over.checklist[0].contains(&needed.join(", ")));
}

#[test]
fn requests_beyond_the_granted_scopes_are_no_proof() {
    let evidence = whole([allowed("org_1", "key_1", now().0, &[&["other"]])]);
    let report = report([key("key_1", "org_1", &["beat"])], &evidence);
    assert_eq!(
        report
            .keys
            .iter()
            .find(|key| key.id == "key_1")
            .unwrap()
            .needed,
        None
    );
    assert_eq!(ids(&report), [""; 0]);
}

#[test]
fn denied_requests_need_no_scope() {
    let denied = Line {
        code: "insufficient-scope",
        policies: vec![(vec![vec!["beat"]], true), (vec![vec!["write"]], false)],
        ..allowed("org_1", "key_1", now().0, &[])
    };
    let read = allowed("org_1", "key_1", now().0, &[&["read"]]);
    let denied = std::iter::repeat_n(denied, 20);
    let key = key("key_1", "org_1", &["beat", "read"]);
    let report = report([key], &whole(denied.chain([read])));
    assert_eq!(
        ids(&report),
        ["over-scoped org_1 key_1", "often-rejected org_1 key_1"]
    );
    assert_eq!(report.findings[0].scopes, ["beat"]);
    assert_eq!(report.findings[1].scopes, ["write"]);
    assert!(
        report.findings[1]
            .proof
            .contains("20 of 21 recorded requests")
    );
}

#[test]
fn served_requests_need_scopes_in_spite_of_an_unmet_policy() {
    let served = Line {
        policies: vec![(vec![vec!["read"]], true), (vec![vec!["admin"]], false)],
        ..allowed("org_1", "key_1", now().0, &[])
    };
    let rejected = Line {
        code: "insufficient-scope",
        policies: vec![(vec![vec!["beat"]], true), (vec![vec!["admin"]], false)],
        ..served.clone()
    };
    let plain = allowed("org_1", "key_1", now().0, &[&["list"]]);
    let key = key("key_1", "org_1", &["beat", "list", "read"]);
    let evidence = whole([served, rejected, plain]);
    let mut stored = Vec::new();
    evidence.write(&mut stored).unwrap();
    let report = report([key], &Evidence::read(&*stored).unwrap());
    let key = report.keys.iter().find(|key| key.id == "key_1").unwrap();
    assert_eq!(key.needed.as_deref().unwrap(), ["list", "read"]);
}
