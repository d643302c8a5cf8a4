//! Reports against their published schema.

use serde_json::Value;
use tower_orgkey_review::{FindingKind, ReviewReport};

use crate::hostile;

#[test]
fn reports_are_of_the_schema() {
    let schema: Value = serde_json::from_str(ReviewReport::JSON_SCHEMA).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let report = serde_json::to_value(hostile::report()).unwrap();
    let one = hostile::report().for_organization("org_<b>1");
    let empty = ReviewReport::default();
    for report in [&report, &serde_json::to_value(one).unwrap()] {
        let errors = validator.iter_errors(report);
        let errors: Vec<_> = errors.map(|error| error.to_string()).collect();
        assert_eq!(errors, [""; 0]);
    }
    // Each part of the report was there, and each is required or known.
    for part in [
        "changes",
        "findings",
        "keys",
        "requests",
        "decisions",
        "revoked",
    ] {
        let is_there = match &report[part] {
            Value::Array(items) => !items.is_empty(),
            Value::Object(object) => !object.is_empty(),
            _ => false,
        };
        assert!(is_there, "{part}");
    }
    assert!(!report["findings"][0].is_null() && report.pointer("/changes/added/0").is_some());
    assert!(!validator.is_valid(&serde_json::to_value(empty).unwrap()));
    for (part, change) in [
        ("/keys/0", "scopes"),
        ("/findings/0", "kind"),
        ("/coverage", "days"),
    ] {
        let mut broken = report.clone();
        broken.pointer_mut(part).unwrap()[change] = Value::from("other");
        assert!(!validator.is_valid(&broken), "{part}/{change}");
    }
}

#[test]
fn schema_has_all_kinds_of_findings() {
    let schema: Value = serde_json::from_str(ReviewReport::JSON_SCHEMA).unwrap();
    let kinds = FindingKind::ALL.map(|kind| Value::from(kind.as_str()));
    assert_eq!(
        schema["$defs"]["finding"]["properties"]["kind"]["enum"],
        Value::from(kinds.to_vec())
    );
}
