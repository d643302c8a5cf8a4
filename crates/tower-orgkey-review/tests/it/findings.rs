//! Each finding, and what it takes not to be one.

use std::time::Duration;

use tower_orgkey_review::{
    Decision, Evidence, EvidenceBuilder, FindingKind, KeyFacts, Review, ReviewPolicy, ReviewReport,
    UnixMillis,
};

use crate::lines::{Line, allowed, heartbeat, numbered};
use crate::{DAY, days_ago, fold, key, list, now};

/// A trail without gaps over 100 days, with these lines at its end.
fn whole(more: impl IntoIterator<Item = Line>) -> Evidence {
    fold(&numbered(1, 0, heartbeat(100, 0).into_iter().chain(more)))
}

fn policy() -> ReviewPolicy {
    ReviewPolicy::new().rotation_days(10_000)
}

fn report(keys: impl IntoIterator<Item = KeyFacts>, evidence: &Evidence) -> ReviewReport {
    Review::of(&list(keys), evidence, &policy()).report()
}

fn ids(report: &ReviewReport) -> Vec<&str> {
    report
        .findings
        .iter()
        .map(|finding| finding.id.as_str())
        .collect()
}

fn unused() -> KeyFacts {
    key("key_1", "org_1", &["beat"])
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
    let lost = |class| {
        let line = Line {
            sequence: 101,
            ..allowed("org_1", "key_1", days_ago(40).0, &[])
        };
        numbered(1, 0, lines.clone()) + &line.count("x", class).to_string() + "\n"
    };
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

#[test]
fn lost_and_missing_events_are_counted() {
    let lines = heartbeat(100, 0);
    let lost = Line {
        sequence: 105,
        ..allowed("org_1", "key_1", days_ago(0).0, &[])
    };
    let text = numbered(1, 0, lines) + &lost.count("Lost", 1008).to_string();
    let coverage = report([], &fold(&text)).coverage;
    assert_eq!(
        (coverage.missing, coverage.lost, coverage.suppressed),
        (4, 1, 0)
    );
    assert_eq!((coverage.trails, coverage.events), (1, 102));
}

#[test]
fn a_second_node_covers_a_silence_but_no_gap() {
    let lines = heartbeat(100, 0);
    let silence = numbered(1, 0, lines[..50].to_vec()) + &numbered(2, 0, lines[55..].to_vec());
    let node = numbered(3, 0, heartbeat(100, 0));
    assert!(report([], &fold(&(silence + &node))).coverage.is_whole());
    let gap = numbered(1, 0, lines[..50].to_vec()) + &numbered(1, 51, lines[51..].to_vec());
    assert!(!report([], &fold(&(gap + &node))).coverage.is_whole());
}

/// The trails of nodes, each with an event a day from one number of days before now until another.
fn nodes(trails: &[(u64, u64)]) -> String {
    let trails = (1..).zip(trails);
    let texts = trails.map(|(n, (since, until))| numbered(n, 0, heartbeat(*since, *until)));
    texts.collect()
}

#[test]
fn fault_195_a_day_needs_all_nodes() {
    const HOUR: u64 = DAY / 24;
    let of = |text: &str, nodes| {
        let policy = policy().nodes(nodes);
        Review::of(&list([unused()]), &fold(text), &policy).report()
    };
    let two = nodes(&[(100, 0), (100, 0)]);
    let both = of(&two, 2);
    assert_eq!(ids(&both), ["unused org_1 key_1"]);
    assert!(both.findings[0].proof.contains("Nodes are counted"));
    // The newest files of the second node are missing, and it was restarted 40 days ago.
    let newest = nodes(&[(100, 0), (100, 40), (40, 30)]);
    for (nodes, whole_days, id) in [
        (1, 90, "unused org_1 key_1"),
        // From 90 to 30 days ago: for 24 h after its last event, it may still run.
        (2, 61, "not-seen org_1 key_1"),
        (3, 0, "not-seen org_1 key_1"),
    ] {
        let report = of(&newest, nodes);
        assert_eq!(report.coverage.whole_days, whole_days, "{nodes}");
        assert_eq!(ids(&report), [id], "{nodes}");
    }
    // A node that is restarted twice a day is no second one, also if the next one starts before it ends.
    for ends_after in [0, 13 * HOUR] {
        let starts = (0..200).map(|n| now().0 - n * 12 * HOUR);
        let texts = (1..).zip(starts).map(|(trail, start)| {
            let times = [start, start + ends_after];
            let events = times.map(|time| allowed("org_beat", "key_beat", time, &[&["beat"]]));
            numbered(trail, 0, events)
        });
        let restarts: String = texts.collect();
        let whole_days = |nodes| of(&restarts, nodes).coverage.whole_days;
        assert_eq!([1, 2].map(whole_days), [90, 0], "{ends_after}");
    }
    // Without a number of nodes, the report says what it does not notice.
    let report = report([unused()], &fold(&newest));
    assert!(report.findings[0].proof.contains("would not be noticed"));
    assert_eq!(both.for_organization("org_1").coverage.nodes, Some(1));
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
fn requests_before_the_fold_are_not_whole() {
    let text = numbered(1, 0, heartbeat(100, 0));
    let mut builder = EvidenceBuilder::new().since(days_ago(30));
    builder.read("a", text.as_bytes(), |_| {}).unwrap();
    let evidence = builder.finish();
    let coverage = report([], &evidence).coverage;
    assert!(
        coverage.whole_days < 31 && coverage.whole_days > 25,
        "{coverage:?}"
    );
}

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

#[test]
fn rotations_are_seen_between_reviews() {
    let used = whole([allowed("org_1", "key_1", now().0, &[&["beat"]])]);
    let policy = ReviewPolicy::new().rotation_days(90);
    let mut keys = list([unused()]);
    let first = Review::of(&keys, &used, &policy).report();
    assert_eq!(ids(&first), ["rotation-due org_1 key_1"]);
    assert!(!first.findings[0].is_conclusive);

    keys.keys[0].suffix = Some("wxyz".to_owned());
    keys.listed_at = UnixMillis(now().0 + 30 * DAY);
    let later = whole([allowed("org_1", "key_1", keys.listed_at.0, &[&["beat"]])]);
    let second = Review::of(&keys, &later, &policy).previous(&first).report();
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
        let third = Review::of(&keys, &used, &policy).previous(&second).report();
        assert_eq!(
            ids(&third).contains(&"rotation-due org_1 key_1"),
            due,
            "{days}"
        );
    }
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
    let second = Review::of(&gone, &evidence, &policy).previous(&first);
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
        .previous(&remembered)
        .report();
    assert_eq!(ids(&third), expected);
}

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
        .previous(&first)
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
        .previous(&second)
        .report();
    assert_eq!(third.findings[0].decision, Some(decision));
    assert_eq!(third.changes.as_ref().unwrap().decided, [""; 0]);
    let mut late = keys.clone();
    late.listed_at = UnixMillis(now().0 + DAY + 1);
    let fourth = Review::of(&late, &evidence, &policy)
        .previous(&third)
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
        .previous(&first)
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
fn every_kind_has_its_name() {
    for kind in FindingKind::ALL {
        let json = serde_json::to_value(kind).unwrap();
        assert_eq!(json, kind.as_str());
    }
}

#[test]
fn a_day_is_whole_if_all_of_it_is_covered() {
    let midnight = days_ago(50).0 / DAY * DAY;
    let at = |time: u64| allowed("org_beat", "key_beat", time, &[&["beat"]]);
    let mut first = heartbeat(100, 51);
    first.push(at(midnight + 1_000));
    let mut second = vec![at(midnight + 3 * DAY - 60_000)];
    second.extend(heartbeat(47, 0));
    let text = numbered(1, 0, first) + &numbered(2, 0, second);
    let coverage = report([], &fold(&text)).coverage;
    // The first of the three days is covered by the silence after it, the others have hours without a trail.
    assert_eq!((coverage.missing, coverage.whole_days), (0, 88));
}

#[test]
fn a_trail_older_than_the_window_is_whole() {
    let text = numbered(1, 1_000, heartbeat(100, 0));
    let whole = report([unused()], &fold(&text));
    assert_eq!(ids(&whole), ["unused org_1 key_1"]);
    assert_eq!(whole.coverage.missing, 0);
    let lines = heartbeat(100, 0);
    let old = numbered(1, 0, lines[..2].to_vec()) + &numbered(1, 4, lines[4..].to_vec());
    assert!(report([], &fold(&old)).coverage.is_whole());
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
        let line = Line {
            org: None,
            key: None,
            code,
            ..allowed("", "", now().0, &[])
        };
        let report = report([unused()], &whole([line]));
        let kind = match code {
            "invalid-key" => FindingKind::Unused,
            _ => FindingKind::NotSeen,
        };
        assert_eq!(report.findings[0].kind, kind, "{code}");
    }
}

#[test]
fn a_revocation_is_known_in_all_later_reviews() {
    let policy = policy();
    let mut keys = list([unused()]);
    keys.keys[0].status = "revoked".to_owned();
    let first = Review::of(&keys, &whole([]), &policy).report();
    keys.listed_at = UnixMillis(now().0 + 91 * DAY);
    let evidence = whole([allowed("org_1", "key_1", now().0 + 90 * DAY, &[&["beat"]])]);
    let second = Review::of(&keys, &evidence, &policy).previous(&first);
    assert_eq!(ids(&second.report()), ["used-after-revocation org_1 key_1"]);
}

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

#[test]
fn a_move_names_no_other_organization() {
    let evidence = whole([]);
    let policy = policy();
    let before = list([key("key_1", "org_a", &["beat"])]);
    let after = list([key("key_1", "org_b", &["beat"])]);
    let first = Review::of(&before, &evidence, &policy).report();
    let report = Review::of(&after, &evidence, &policy)
        .previous(&first)
        .report();
    let changes = report.changes.as_ref().unwrap();
    let what = &changes.changed[0].what;
    assert!(what.contains(&"organizations: org_a to org_b".to_owned()));
    let one = report.for_organization("org_b");
    assert_eq!(one.changes.as_ref().unwrap().changed, []);
    assert!(!one.to_html().contains("org_a"));
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
        let review = Review::of(&keys, evidence, &policy).previous(previous);
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
        let second = Review::of(&keys, &evidence, &policy).previous(&first);
        second.report().findings[0].is_open()
    };
    assert!(!is_open(&["read", "x"]));
    assert!(is_open(&["read", "x", "y", "z"]));
}
