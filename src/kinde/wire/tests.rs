//! No reply makes a parser panic, or has a meaning that its text does not support.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use proptest::prelude::*;

use super::*;
use crate::identifier::{KeyId, OrgCode};
use crate::verify::VerifyErrorKind;

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("true".to_owned()),
        Just("false".to_owned()),
        Just("null".to_owned()),
        Just(r#""active""#.to_owned()),
        Just(r#""API_KEY_VERIFIED""#.to_owned()),
        Just(r#""org_1""#.to_owned()),
        Just(r#"["a","b"]"#.to_owned()),
        Just(r#"{"code":"ROUTE_NOT_FOUND"}"#.to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        Just(format!("{}{}", "[".repeat(300), "]".repeat(300))),
    ]
}

fn members() -> impl Strategy<Value = Vec<(String, String)>> {
    let name = prop::sample::select(vec![
        "is_valid",
        "status",
        "key_id",
        "org_code",
        "user_id",
        "scopes",
        "access_token",
        "expires_in",
        "token_type",
        "error",
        "errors",
        "api_key",
        "api_ids",
        "organization_id",
        "id",
        "code",
    ]);
    prop::collection::vec((name.prop_map(str::to_owned), value()), 0..10)
}

fn body_of(members: &[(String, String)]) -> String {
    let members: Vec<_> = members
        .iter()
        .map(|(name, value)| format!("{name:?}:{value}"))
        .collect();
    format!("{{{}}}", members.join(","))
}

fn read_all(reply: &Reply) -> (VerifyReading, TokenReading, KeyReading) {
    let org = OrgCode::from_static("org_1");
    let key_id = KeyId::from_static("api_key_1");
    (
        read_verify(reply),
        read_token(reply),
        read_key(reply, &key_id, Some(&org), "a"),
    )
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_mean_valid_or_invalid(
        status in 200u16..600,
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (verify, token, key) = read_all(&reply(status, body));
        prop_assert!(!matches!(verify, VerifyReading::Valid(_) | VerifyReading::Invalid));
        if let VerifyReading::CannotTell(error) = verify {
            let is_about_key = error.kind() == VerifyErrorKind::InvalidResponse;
            prop_assert_eq!(is_about_key, status == 200);
        }
        let is_token = matches!(token, TokenReading::Token { .. });
        prop_assert!(!is_token);
        prop_assert!(!matches!(key, KeyReading::ThisApi | KeyReading::OtherApi | KeyReading::Contradicts));
    }

    #[test]
    fn valid_and_invalid_need_explicit_fields(members in members()) {
        let all = |name: &str| -> Vec<&str> {
            let named = members.iter().filter(|(held, _)| held == name);
            named.map(|(_, value)| value.as_str()).collect()
        };
        let (verify, token, key) = read_all(&reply(200, body_of(&members)));
        let is_missing = |name: &str| matches!(all(name)[..], [] | ["null"]);
        let is_active = all("status") == [r#""active""#];
        match verify {
            VerifyReading::Valid(facts) => {
                let is_verified = all("code") == [r#""API_KEY_VERIFIED""#];
                prop_assert!(all("is_valid") == ["true"] || (is_missing("is_valid") && is_verified));
                prop_assert!(is_active || is_missing("status"));
                prop_assert_eq!(
                    facts.org.is_some(),
                    all("org_code").iter().any(|org| org.starts_with('"') && org.trim_matches('"').trim() != "")
                );
            }
            VerifyReading::Invalid => {
                let is_other = matches!(all("status")[..], [status] if status.starts_with('"') && !is_active);
                prop_assert!(all("is_valid") == ["false"] || is_other);
            }
            VerifyReading::CannotTell(error) => {
                prop_assert_eq!(error.kind(), VerifyErrorKind::InvalidResponse);
            }
            other => prop_assert!(false, "{other:?}"),
        }
        if let TokenReading::Token { header, lifetime } = token {
            prop_assert!(header.is_sensitive() && all("access_token").len() == 1);
            prop_assert!(lifetime <= Duration::from_secs(24 * 60 * 60) && lifetime >= Duration::from_secs(1));
        }
        if let KeyReading::ThisApi = key {
            prop_assert_eq!(all("api_ids"), [r#"["a","b"]"#]);
            prop_assert_eq!(all("organization_id"), [r#""org_1""#]);
        }
    }

    #[test]
    fn retry_after_is_bounded(value in prop::collection::vec(0x20u8..0x7f, 0..30)) {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_bytes(&value).unwrap());
        if let Some(wait) = retry_after(&headers) {
            prop_assert!(wait >= Duration::from_secs(1) && wait <= Duration::from_secs(24 * 60 * 60));
        }
    }
}

fn meaning(body: &str) -> &'static str {
    match read_verify(&reply(200, body)) {
        VerifyReading::Valid(_) => "valid",
        VerifyReading::Invalid => "invalid",
        VerifyReading::CannotTell(error) if error.kind() == VerifyErrorKind::InvalidResponse => {
            "cannot tell"
        }
        _ => "another reading",
    }
}

#[test]
fn is_valid_status_and_code_decide() {
    let is_valids = ["", "null", "true", "false", r#""true""#, "1", "[true]"];
    let statuses = [
        "",
        "null",
        r#""active""#,
        r#""revoked""#,
        r#""""#,
        "1",
        r#"["active"]"#,
    ];
    let codes = [
        "",
        "null",
        r#""API_KEY_VERIFIED""#,
        r#""api_key_verified""#,
        r#""API_KEY_VERIFIED ""#,
        r#""OK""#,
        "1",
        r#""\ud800""#,
        r#""OK","code":"OK""#,
    ];
    for is_valid in is_valids {
        for status in statuses {
            for code in codes {
                let fields = [("is_valid", is_valid), ("status", status), ("code", code)];
                let members: Vec<_> = fields
                    .into_iter()
                    .filter(|(_, value)| !value.is_empty())
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect();
                let is_active = matches!(status, "" | "null" | r#""active""#);
                let expected = match (is_valid, status) {
                    ("false", _) | (_, r#""revoked""# | r#""""#) => "invalid",
                    ("true", _) if is_active => "valid",
                    ("" | "null", _) if is_active && code == r#""API_KEY_VERIFIED""# => "valid",
                    _ => "cannot tell",
                };
                let body = body_of(&members);
                assert_eq!(meaning(&body), expected, "{body}");
            }
        }
    }
}

#[test]
fn invalid_needs_a_body_of_valid_json() {
    for user in [r#""\ud800""#, "1e999", "nul"] {
        let body = format!(r#"{{"is_valid":false,"user_id":{user}}}"#);
        assert_eq!(meaning(&body), "cannot tell", "{body}");
    }
}

#[test]
fn arrays_are_not_read_as_objects() {
    let key_id = KeyId::from_static("api_key_1");
    // The fields of a record in their order.
    let record = r#"["api_key_1","active",null,["a"]]"#;
    for body in [record.to_owned(), format!(r#"{{"api_key":{record}}}"#)] {
        let reading = read_key(&reply(200, &body), &key_id, None, "a");
        assert!(matches!(reading, KeyReading::CannotTell(_)), "{body}");
    }
    let list = r#"{"api_keys":[["api_key_1","active","abcd"]],"has_more":false}"#;
    let reading = read_list(&reply(200, list));
    assert!(matches!(reading, ListReading::CannotTell(_)));
}

#[test]
fn errors_are_one_object_or_an_array_of_them() {
    for (errors, is_about_key) in [
        (r#"[{"code":"API_KEY_NOT_FOUND"}]"#, true),
        (r#"{"code":"API_KEY_NOT_FOUND"}"#, true),
        (
            r#"[{"code":"API_KEY_NOT_FOUND"},{"code":"ROUTE_NOT_FOUND"}]"#,
            false,
        ),
        (r#"{"code":"ROUTE_NOT_FOUND"}"#, false),
        (r#"[{"code":5}]"#, false),
        (r#""API_KEY_NOT_FOUND""#, false),
        ("[]", false),
        ("{}", false),
        ("null", false),
    ] {
        let reading = read_verify(&reply(404, format!(r#"{{"errors":{errors}}}"#)));
        let is_unconfirmed = matches!(reading, VerifyReading::Unconfirmed);
        assert_eq!(is_unconfirmed, is_about_key, "{errors}");
    }
}

#[test]
fn only_replies_of_verify_are_about_a_key() {
    for body in ["", "[]", "<html>", "{}", r#"{"is_valid":1}"#] {
        let reply = reply(200, body);
        let (verify, token, key) = read_all(&reply);
        let VerifyReading::CannotTell(verify) = verify else {
            panic!("verify: {body}");
        };
        assert_eq!(verify.kind(), VerifyErrorKind::InvalidResponse, "{body}");
        let (
            TokenReading::CannotTell(token),
            KeyReading::CannotTell(key),
            ListReading::CannotTell(list),
        ) = (token, key, read_list(&reply))
        else {
            panic!("another endpoint: {body}");
        };
        for error in [token, key, list] {
            assert_eq!(error.kind(), VerifyErrorKind::Unavailable, "{body}");
        }
    }
}

#[test]
fn token_is_not_in_debug_output() {
    let body = r#"{"access_token":"s3cret","expires_in":60}"#;
    let reading = read_token(&reply(200, body));
    assert!(matches!(reading, TokenReading::Token { .. }));
    let shown = format!("{reading:?}{:?}", bearer("s3cret"));
    assert!(!shown.contains("s3cret"), "{shown}");
    let rejected = read_token(&reply(400, r#"{"error":"s3cret"}"#));
    assert!(matches!(rejected, TokenReading::Rejected("other")));
}

#[test]
fn rejected_credentials_have_a_known_code() {
    let oauth = r#"{"error":"invalid_client","error_description":"who are you?"}"#;
    let of_kinde = r#"{"errors":[{"code":"BAD_REQUEST","message":"m"}]}"#;
    for (status, body, expected) in [
        (400, oauth, Some("invalid_client")),
        (401, oauth, Some("invalid_client")),
        (400, r#"{"error":"something_new"}"#, Some("other")),
        (401, of_kinde, Some("other")),
        (401, "", Some("other")),
        (400, of_kinde, None),
        (400, r#"{"error":5}"#, None),
        (400, "<html>", None),
        (403, oauth, None),
        (500, oauth, None),
    ] {
        let code = match read_token(&reply(status, body)) {
            TokenReading::Rejected(code) => Some(code),
            _ => None,
        };
        assert_eq!(code, expected, "{status} {body}");
    }
}

#[test]
fn token_has_at_most_16_kib() {
    assert!(bearer(&"t".repeat(16 * 1024)).is_some());
    assert!(bearer(&"t".repeat(16 * 1024 + 1)).is_none());
}

fn wait(pairs: &[(&'static str, &str)]) -> Option<u64> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    retry_after(&headers).map(|wait| wait.as_secs())
}

#[test]
fn fault_09_retry_after_is_whole_seconds() {
    assert_eq!(wait(&[]), None);
    assert_eq!(wait(&[("ratelimit-reset", "30")]), Some(30));
    assert_eq!(wait(&[("retry-after", " 7 ")]), Some(7));
    assert_eq!(
        wait(&[("ratelimit-reset", "30"), ("retry-after", "7")]),
        Some(30)
    );
    assert_eq!(
        wait(&[("ratelimit-reset", "1e99"), ("retry-after", "7")]),
        Some(7)
    );
    assert_eq!(wait(&[("retry-after", "86400")]), Some(86_400));
    let digits = "9".repeat(10_000);
    for absurd in [
        "",
        "0",
        "-1",
        "+5",
        "1.5",
        "1e99",
        "86401",
        "18446744073709551616",
        "Wed, 21 Oct 2026 07:28:00 GMT",
        "30, 30",
        "\u{663}\u{660}",
        &digits,
    ] {
        assert_eq!(wait(&[("ratelimit-reset", absurd)]), None, "{absurd}");
        assert_eq!(wait(&[("retry-after", absurd)]), None, "{absurd}");
    }
}

#[test]
fn only_application_json_is_read() {
    let with = |values: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_TYPE, HeaderValue::from_static(value));
        }
        is_json(&headers)
    };
    assert!(with(&["application/json"]));
    assert!(with(&["Application/JSON ; charset=utf-8"]));
    for values in [
        &[][..],
        &[""],
        &["text/html"],
        &["text/plain; application/json"],
        &["application/jsonp"],
        &["application/problem+json"],
        &["application/json", "application/json"],
        &["application/json, text/html"],
    ] {
        assert!(!with(values), "{values:?}");
    }
}

#[test]
fn encoded_body_is_not_read() {
    let mut encoded = reply(200, "{}");
    assert!(read_json::<serde_json::Value>(&encoded).is_ok());
    encoded
        .headers
        .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    assert!(read_json::<serde_json::Value>(&encoded).is_err());
}
