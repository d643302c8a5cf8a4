//! Findings against the published schema of OCSF 1.8.0, in `schema/`.

use serde_json::Value;
use tower_orgkey_review::{Decision, PreviousReview, Review, ReviewPolicy, ReviewReport};

use crate::lines::{allowed, heartbeat, numbered};
use crate::{fold, key, list, now};

fn events(report: &ReviewReport) -> Vec<Value> {
    let schema: Value = serde_json::from_str(include_str!("schema/2003.json")).unwrap();
    let schema = jsonschema::draft202012::new(&schema).unwrap();
    let text = report.to_ocsf();
    let events: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for event in &events {
        let errors: Vec<_> = schema
            .iter_errors(event)
            .map(|error| error.to_string())
            .collect();
        assert_eq!(errors, [""; 0], "{event:#}");
        let activity = event["activity_id"].as_u64().unwrap();
        assert_eq!(event["type_uid"], 200_300 + activity);
    }
    let mut broken = events[0].clone();
    broken["finding_info"]
        .as_object_mut()
        .unwrap()
        .remove("uid");
    assert!(!schema.is_valid(&broken));
    broken = events[0].clone();
    broken["key"] = 1.into();
    assert!(!schema.is_valid(&broken));
    events
}

#[test]
fn findings_are_events_of_the_schema() {
    let evidence = fold(&numbered(1, 0, heartbeat(100, 0)));
    let policy = ReviewPolicy::new();
    let first = Review::of(
        &list([key("key_1", "org_1", &["beat", "x"])]),
        &evidence,
        &policy,
    )
    .report();
    let created = events(&first);
    assert_eq!(created.len(), 3);
    assert!(created.iter().all(|event| event["activity_id"] == 1));

    let decisions = [Decision {
        finding: "never-asked org_1 key_1".to_owned(),
        decision: "keep".to_owned(),
        reviewer: "security".to_owned(),
        reason: "for the other API".to_owned(),
        until: None,
    }];
    let used = allowed("org_1", "key_1", now().0, &[&["beat"]]);
    let evidence = fold(&numbered(1, 0, heartbeat(100, 0).into_iter().chain([used])));
    let keys = list([key("key_1", "org_1", &["beat", "x"])]);
    let second = Review::of(&keys, &evidence, &policy)
        .previous(&PreviousReview::of(&first))
        .decisions(&decisions)
        .report();
    let later = events(&second);
    let of = |kind: &str| {
        let id = format!("{kind} org_1 key_1");
        later
            .iter()
            .find(|event| event["finding_info"]["uid"] == id.as_str())
            .unwrap()
    };
    assert_eq!(
        (&of("unused")["activity_id"], &of("unused")["status_id"]),
        (&3.into(), &4.into())
    );
    assert_eq!(
        (
            &of("rotation-due")["activity_id"],
            &of("rotation-due")["status_id"]
        ),
        (&2.into(), &1.into())
    );
    assert_eq!(of("never-asked")["status_id"], 3);
    assert_eq!(
        of("never-asked")["comment"],
        "keep by security: for the other API"
    );
}
