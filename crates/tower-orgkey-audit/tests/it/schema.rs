//! Checks events against the published schema of OCSF 1.8.0, in `schema/`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::*;

static SCHEMA: LazyLock<BTreeMap<u64, Validator>> = LazyLock::new(|| {
    [
        (6003, include_str!("schema/6003.json")),
        (3002, include_str!("schema/3002.json")),
        (1008, include_str!("schema/1008.json")),
    ]
    .into_iter()
    .map(|(class, schema)| {
        let schema: Value = serde_json::from_str(schema).unwrap();
        (class, jsonschema::draft202012::new(&schema).unwrap())
    })
    .collect()
});

/// Returns what is wrong with an event.
pub(crate) fn faults(event: &Value) -> Vec<String> {
    let class = event["class_uid"].as_u64().unwrap();
    let mut faults: Vec<String> = SCHEMA[&class]
        .iter_errors(event)
        .map(|error| error.to_string())
        .collect();
    // Rules that the schema has only as text.
    if event["type_uid"].as_u64() != Some(class * 100 + event["activity_id"].as_u64().unwrap()) {
        faults.push("type_uid is not made of class and activity".into());
    }
    if event["metadata"]["version"] != "1.8.0" {
        faults.push("another version".into());
    }
    faults
}

#[tokio::test]
async fn the_schema_check_finds_faults() {
    let stage = Stage::new();
    let app = stage.app();
    send(&app, request("GET", "/read", ONE)).await;
    send(&app, request("GET", "/read", BAD)).await;
    for event in stage.events().await {
        let broken = |pointer: &str, value: Value| {
            let mut event = event.clone();
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            event.pointer_mut(parent).unwrap()[name] = value;
            faults(&event).len()
        };
        assert!(broken("/organization", json!("org_one")) > 0);
        assert!(broken("/metadata/request_id", json!("7")) > 0);
        assert!(broken("/http_request/method", json!("GET")) > 0);
        assert!(broken("/http_response/code", json!("200")) > 0);
        assert!(broken("/time", json!("2026-01-01")) > 0);
        assert!(broken("/status_id", json!(17)) > 0);
        assert!(broken("/activity_id", json!(8)) > 0);
        assert!(broken("/activity_id", json!(99)) > 0);
        assert!(broken("/metadata/version", json!("1.7.0")) > 0);
        assert_eq!(broken("/unmapped/anything", json!([1])), 0);
        for required in ["metadata", "severity_id", "time", "type_uid"] {
            let mut event = event.clone();
            event.as_object_mut().unwrap().remove(required);
            assert!(!faults(&event).is_empty(), "{required}");
        }
    }
}
