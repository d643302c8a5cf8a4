//! Evidence as a set of segments, and as a file.

use proptest::prelude::*;
use tower_orgkey_review::{Evidence, EvidenceBuilder};

use crate::lines::{allowed, numbered};
use crate::{fold, now};

/// Segments of two trails, of which none has an event of another one.
fn pool() -> Vec<Evidence> {
    (0..6_u64)
        .map(|n| {
            let lines = (0..3).map(|at| {
                let key = format!("key_{}", (n + at) % 4);
                allowed(
                    "org_1",
                    &key,
                    now().0 + n * 1_000 + at,
                    &[&["read"], &["write"]],
                )
            });
            fold(&numbered(n % 2, n * 10, lines))
        })
        .collect()
}

/// Any set of segments of the pool, and now and then one that overlaps with one of them.
fn evidence() -> impl Strategy<Value = Evidence> {
    let overlapping = fold(&numbered(0, 1, [allowed("org_1", "key_0", now().0, &[])]));
    let chosen = proptest::sample::subsequence(pool(), 0..=6);
    (chosen, proptest::bool::weighted(0.1)).prop_map(move |(segments, overlaps)| {
        let merged = segments
            .into_iter()
            .try_fold(Evidence::default(), Evidence::merge);
        let merged = merged.unwrap();
        match merged.clone().merge(overlapping.clone()) {
            Ok(both) if overlaps => both,
            _ => merged,
        }
    })
}

fn merge(a: &Evidence, b: &Evidence) -> Option<Evidence> {
    a.clone().merge(b.clone()).ok()
}

proptest! {
    #[test]
    fn merge_is_commutative(a in evidence(), b in evidence()) {
        prop_assert_eq!(merge(&a, &b), merge(&b, &a));
    }

    #[test]
    fn merge_is_associative(a in evidence(), b in evidence(), c in evidence()) {
        let left = merge(&a, &b).and_then(|ab| merge(&ab, &c));
        let right = merge(&b, &c).and_then(|bc| merge(&a, &bc));
        prop_assert_eq!(left, right);
    }

    #[test]
    fn merge_is_idempotent(a in evidence()) {
        prop_assert_eq!(merge(&a, &a), Some(a));
    }

    #[test]
    fn stored_evidence_is_read_again(a in evidence()) {
        let mut stored = Vec::new();
        a.write(&mut stored).unwrap();
        prop_assert_eq!(Evidence::read(&*stored).unwrap(), a);
    }

    #[test]
    fn order_of_lines_makes_no_difference(
        order in Just((0..12_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let policies: [&[&[&str]]; 3] = [&[&["a"]], &[&["b"], &["c"]], &[]];
        let lines = (0..12_u64).map(|n| {
            let key = format!("key_{}", n % 3);
            let at = usize::try_from(n % 3).unwrap();
            allowed("org_1", &key, now().0 + n, policies[at])
        });
        let text = numbered(7, 0, lines);
        let lines: Vec<_> = text.lines().collect();
        let shuffled: Vec<_> = order.iter().map(|at| lines[*at]).collect();
        let shuffled = shuffled.join("\n");
        let (one, other) = (fold(&text), fold(&shuffled));
        let stored = |evidence: &Evidence| {
            let mut stored = Vec::new();
            evidence.write(&mut stored).unwrap();
            let text = String::from_utf8(stored).unwrap();
            // When the first and the last event were complete depends on the ranges that grew together.
            text.lines().filter(|line| !line.contains("trails")).map(str::to_owned).collect::<Vec<_>>()
        };
        prop_assert_eq!(stored(&one), stored(&other));
    }
}

#[test]
fn merged_ranges_of_a_trail_touch() {
    let lines = |first: u64| numbered(1, first, [allowed("org_1", "key_1", now().0, &[])]);
    let (a, b) = (fold(&lines(0)), fold(&lines(1)));
    assert_ne!(a, b);
    assert_eq!(merge(&a, &b).unwrap().lines().events, 2);
}

#[test]
fn fault_192_overlapping_segments_are_not_merged() {
    let lines = |first: u64| numbered(1, first, [allowed("org_1", "key_1", now().0, &[])]);
    let one = fold(&lines(0));
    let both = fold(&(lines(0) + &lines(1)));
    assert_eq!(both.lines().events, 2);
    for (a, b) in [(&one, &both), (&both, &one)] {
        let error = a.clone().merge(b.clone()).unwrap_err();
        assert!(error.to_string().contains("0000000000000001"), "{error}");
    }
}

#[test]
fn fault_191_files_that_were_cut_off_are_not_read() {
    let mut stored = Vec::new();
    pool().remove(0).write(&mut stored).unwrap();
    let text = String::from_utf8(stored).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.len() > 4);
    for kept in 0..lines.len() {
        let cut = lines[..kept].join("\n");
        Evidence::read(cut.as_bytes()).unwrap_err();
    }
    for left_out in 0..lines.len() {
        let mut lines = lines.clone();
        lines.remove(left_out);
        Evidence::read(lines.join("\n").as_bytes()).unwrap_err();
    }
    let other = text.replacen("\"version\":1", "\"version\":2", 1);
    Evidence::read(other.as_bytes()).unwrap_err();
    let org = text.replace("\"org\":\"org_1\",\"key\"", "\"org\":\"org 1\",\"key\"");
    assert_ne!(org, text);
    Evidence::read(org.as_bytes()).unwrap_err();
    let key = text.replace("\"key\":\"key_", "\"key\":\"key\\n");
    assert_ne!(key, text);
    Evidence::read(key.as_bytes()).unwrap_err();
    let index = text.replace("\"asked\":[[0,", "\"asked\":[[9,");
    assert_ne!(index, text);
    Evidence::read(index.as_bytes()).unwrap_err();
}

#[test]
fn malformed_lines_are_told_and_not_fatal() {
    let good = numbered(1, 0, [allowed("org_1", "key_1", now().0, &[&["read"]])]);
    let mistyped = good.replace("\"class_uid\":6003", "\"class_uid\":\"6003\"");
    let bad_org = good.replace("org_1", "org 1");
    let bad_uid = good.replace("0000000000000001-0", "1-0");
    let foreign = "{\"class_uid\":6003,\"metadata\":{\"product\":{\"name\":\"other\"}}}\n[]\n7\n";
    let long = format!("{}\n", " ".repeat(2 << 20));
    let cut = &good[..good.len() / 2];
    let text = format!("{foreign}{mistyped}{bad_org}{bad_uid}{long}\n{good}{good}{cut}");
    let mut builder = EvidenceBuilder::new();
    let mut read = 0;
    builder
        .read("a.jsonl", text.as_bytes(), |progress| read = progress.bytes)
        .unwrap();
    assert_eq!(read, text.len() as u64);
    let problems: Vec<_> = builder.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "a.jsonl:4: a field is missing or has another type",
            "a.jsonl:5: an identifier is outside its grammar",
            "a.jsonl:6: metadata.uid names no trail",
            "a.jsonl:7: longer than 1 MiB",
            "a.jsonl:11: not JSON, or cut off",
        ]
    );
    let lines = builder.finish().lines();
    assert_eq!((lines.events, lines.duplicates), (1, 1));
    assert_eq!((lines.malformed, lines.foreign), (5, 3));
}

#[test]
fn unknown_fields_and_escapes_are_read() {
    let line = allowed("org_1", "key_1", now().0, &[&["read"]]);
    let mut value = line.json();
    value["more"] = serde_json::json!({ "a": [1, { "b": "\"" }] });
    let text = value
        .to_string()
        .replace("org_1", "or\\u0067_1")
        .replace("read", "r\\u0065ad");
    let plain = fold(&(line.json().to_string() + "\n"));
    assert_eq!(fold(&text), plain);
}

#[test]
fn many_uncounted_requests_are_read() {
    let evidence = fold(&numbered(
        1,
        0,
        [allowed("org_1", "key_1", now().0, &[&["read"]])],
    ));
    let text = |evidence: &Evidence| {
        let mut bytes = Vec::new();
        evidence.write(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    let stored = text(&evidence);
    let with = |count: u64| stored.replace("\"uncounted\":0", &format!("\"uncounted\":{count}"));
    let most = Evidence::read(with(u32::MAX.into()).as_bytes()).unwrap();
    assert_ne!(most, evidence);
    for count in [u64::from(u32::MAX) + 1, u64::MAX] {
        assert_eq!(Evidence::read(with(count).as_bytes()).unwrap(), most);
    }
    assert_eq!(text(&most), with(u32::MAX.into()));
}
