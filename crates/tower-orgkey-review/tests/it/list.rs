//! Lists of keys.

use proptest::prelude::*;
use tower_orgkey_review::{Evidence, KeyFacts, KeyList, Review, ReviewPolicy, UnixMillis};

use crate::now;

fn key() -> impl Strategy<Value = KeyFacts> {
    let text = || "[a-cä\\n\"]{0,4}";
    let time = || proptest::option::of((0..3_u64).prop_map(UnixMillis));
    let texts = (text(), text(), text(), text());
    let scopes = proptest::collection::vec(text(), 0..3);
    let options = (proptest::option::of(text()), proptest::option::of(text()));
    (texts, scopes, options, time(), time()).prop_map(
        |((id, name, kind, status), scopes, (suffix, org), created_at, last_verified_at)| {
            KeyFacts {
                id,
                name,
                kind,
                status,
                suffix,
                created_at,
                last_verified_at,
                scopes,
                org,
            }
        },
    )
}

proptest! {
    #[test]
    fn lists_return_their_keys(
        mut keys in proptest::collection::vec(key(), 0..8),
        moved in proptest::option::of(0..8_usize),
    ) {
        let mut list = KeyList::new(now());
        list.extend(keys.iter().cloned());
        if let Some(at) = moved && at < keys.len() {
            list.set_org(at, "org_moved");
            keys[at].org = Some("org_moved".to_owned());
        }
        prop_assert_eq!(list.len(), keys.len());
        prop_assert_eq!(list.iter().collect::<Vec<_>>(), keys);
    }
}

#[test]
fn the_last_of_equal_keys_counts() {
    let json = r#"{ "api_keys": [{ "id": "key_1", "name": "a" }, { "id": "key_2", "name": "b" }, { "id": "key_1", "name": "c" }],
                    "listed_at": "2026-04-01T00:00:00Z", "more": [{}] }"#;
    let list = KeyList::from_json(json, now()).unwrap();
    assert_eq!(list.listed_at, "2026-04-01T00:00:00Z".parse().unwrap());
    let report = Review::of(&list, &Evidence::default(), &ReviewPolicy::new()).report();
    let names: Vec<_> = report.keys.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(names, ["c", "b"]);
}

#[test]
fn mistakes_in_a_list_are_named() {
    for (json, problem) in [
        ("7", "neither an object nor an array"),
        ("{}", "api_keys is missing or no array"),
        (r#"{"api_keys":{}}"#, "api_keys is missing or no array"),
        (
            r#"{"api_keys":[],"listed_at":"soon"}"#,
            "listed_at is no timestamp",
        ),
        (
            r#"{"api_keys":[],"listed_at":7}"#,
            "listed_at is no timestamp",
        ),
        (
            r#"[{"id":"a"},{"id":""}]"#,
            "key 2 of the list has no id, or a mistyped member",
        ),
        (
            r#"[{"id":"a"},{"name":"b"}]"#,
            "key 2 of the list has no id, or a mistyped member",
        ),
        (
            r#"[{"id":"a","scopes":["b",1]}]"#,
            "key 1 of the list has no id, or a mistyped member",
        ),
        ("[1]", "key 1 of the list has no id, or a mistyped member"),
        ("[\n{\"id\":\"a\"}", "line 2: not JSON"),
        ("[] []", "line 1: not JSON"),
    ] {
        let error = KeyList::from_json(json, now()).unwrap_err();
        assert_eq!(error.to_string(), problem, "{json}");
    }
}
