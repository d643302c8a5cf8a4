//! How much of the window was recorded.

use tower_orgkey_review::{Evidence, EvidenceBuilder, KeyFacts, Review, UnixMillis};

use super::{policy, report, unused};
use crate::lines::{Line, allowed, heartbeat, numbered};
use crate::{DAY, days_ago, fold, ids, list, now};

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
fn fault_213_a_clock_ahead_hides_no_missing_files() {
    let at = |time: u64| allowed("org_1", "key_1", time, &[&["beat"]]);
    let future: UnixMillis = "2099-01-01T00:00:00Z".parse().unwrap();
    let first = days_ago(89).0;
    let fold = |times: &[u64]| {
        let text = numbered(1, 0, times.iter().map(|time| at(*time)));
        let mut builder = EvidenceBuilder::new();
        builder.read("a", text.as_bytes(), |_| {}).unwrap();
        builder.finish()
    };
    let times = [first, future.0, days_ago(50).0];
    for (times, whole_days) in [
        (&times[..], 1),
        (&times[..2], 1),
        // Ahead, but not of today: the end is that of the last number.
        (&[first, days_ago(1).0, first + DAY / 2], 1),
        (&[days_ago(1).0, first], 1),
    ] {
        let coverage = report([unused()], &fold(times)).coverage;
        assert!(coverage.whole_days <= whole_days, "{times:?} {coverage:?}");
        assert!(!coverage.is_whole());
    }
    // In two segments.
    let ahead = fold(&[first, days_ago(1).0]);
    let last = crate::fold(&numbered(1, 2, [at(first + DAY / 2)]));
    let merged = ahead.merge(last).unwrap();
    assert_eq!(report([unused()], &merged).coverage.whole_days, 1);
    // It is of an unknown time, so it is no request after a revocation.
    let revoked = KeyFacts {
        status: "revoked".to_owned(),
        ..unused()
    };
    let used = |evidence: &Evidence| {
        let report = report([revoked.clone()], evidence);
        ids(&report).contains(&"used-after-revocation org_1 key_1")
    };
    assert!(used(&fold(&[first, now().0 + DAY])));
    assert!(!used(&fold(&times)));
}

#[test]
fn clocks_differ_by_some_minutes() {
    let read = |ahead: u64| {
        let time = UnixMillis::now().0 + ahead;
        let text = numbered(1, 0, [allowed("org_1", "key_1", time, &[])]);
        let mut builder = EvidenceBuilder::new();
        builder.read("a", text.as_bytes(), |_| {}).unwrap();
        builder.problems().first().map(ToString::to_string)
    };
    assert_eq!(read(60_000), None);
    let expected = Some("a:1: its time is in the future".to_owned());
    assert_eq!(read(60 * 60_000), expected);
}
