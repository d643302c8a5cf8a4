//! The effect of each reply of verify, for an unknown and for a known key.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_orgkey::{OrgContext, Scope, VerifyErrorKind};

use crate::support::kinde::{GOOD, Stage, YES, yes};
use crate::support::stub::{Answer, Endpoint};

const UNKNOWN_KEY: &str = "k_live_unknown_1";

/// The effect of a reply.
#[derive(Clone, Copy)]
enum Seen {
    /// Valid, for both.
    Valid,
    /// Invalid, for both: the known key is removed at once.
    Invalid,
    /// Valid without an organization, for both.
    NoOrganization,
    /// The unknown key is rejected; the known key is kept.
    Unconfirmed,
    /// The unknown key gets 503, the known key is served. The error is about this key.
    InvalidResponse,
    /// The same, but the error is about the issuer.
    CannotTell,
}

/// The only verification reply that Kinde's guide prints, byte for byte.
const GUIDE: &str = r#"{ "code": "API_KEY_VERIFIED", "message": "API key verified", "scopes": ["read:users", "write:users"],
  "org_code": "org_abc123", "last_verified_on": "2024-11-18T13:32:03+11" }"#;

/// The valid reply with some fields replaced. A field without a value is omitted.
fn yes_with(changes: &[(&str, &str)]) -> String {
    let mut fields: Vec<(String, String)> = [
        ("code", r#""API_KEY_VERIFIED""#),
        ("message", r#""API key verified""#),
        ("is_valid", "true"),
        ("key_id", r#""api_key_0001""#),
        ("status", r#""active""#),
        ("scopes", r#"["read:reports"]"#),
        ("org_code", r#""org_1""#),
        ("user_id", "null"),
        ("last_verified_on", r#""2026-01-02T03:04:05+11""#),
        ("verification_count", "7"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    for (name, value) in changes {
        fields.retain(|(held, _)| held != name);
        if !value.is_empty() {
            fields.push(((*name).into(), (*value).into()));
        }
    }
    let members: Vec<_> = fields
        .iter()
        .map(|(name, value)| format!("{name:?}:{value}"))
        .collect();
    format!("{{{}}}", members.join(","))
}

async fn check(what: &str, answer: Answer, seen: Seen) {
    let stage = Stage::new().await;
    assert_eq!(stage.get(GOOD).await, (200, "org_1".into()), "{what}");
    stage.stub.always(Endpoint::Verify, answer);
    let calls = stage.count(Endpoint::Verify);
    let unknown_key = stage.get(UNKNOWN_KEY).await;
    assert!(
        stage.count(Endpoint::Verify) > calls,
        "{what}: no call was made"
    );
    // After twice the soft TTL, a request with a known key waits for its verification too.
    stage.jump(130);
    let calls = stage.count(Endpoint::Verify);
    let known = stage.get(GOOD).await;
    assert!(
        stage.count(Endpoint::Verify) > calls,
        "{what}: no call was made"
    );
    let served = (200, "org_1");
    let rejected = (401, "invalid-token");
    let expected = match seen {
        Seen::Valid => (served, served),
        Seen::Invalid => (rejected, rejected),
        Seen::NoOrganization => (
            (403, "organization-required"),
            (403, "organization-required"),
        ),
        Seen::Unconfirmed => (rejected, served),
        Seen::InvalidResponse | Seen::CannotTell => ((503, "verifier-unavailable"), served),
    };
    let got = ((unknown_key.0, &*unknown_key.1), (known.0, &*known.1));
    assert_eq!(got, expected, "{what}");
    let error = stage.verify(UNKNOWN_KEY).await.err();
    let is_about_key = error.is_some_and(|error| error.kind() == VerifyErrorKind::InvalidResponse);
    let should_be = matches!(seen, Seen::InvalidResponse);
    assert_eq!(is_about_key, should_be, "{what}");
}

async fn check_200(what: &str, body: &str, seen: Seen) {
    let name = format!("{what}: {body:.200}");
    check(&name, Answer::json(200, body), seen).await;
}

/// Returns the organization and the scopes that the handler sees.
async fn context(stage: &Stage, key: &str) -> String {
    let handler = service_fn(|request: Request<()>| async move {
        let org = request.extensions().get::<OrgContext>().unwrap();
        let scopes: Vec<_> = org.scopes().iter().map(Scope::as_str).collect();
        let body = format!("{} {}", org.org_code(), scopes.join(" "));
        Ok::<_, Infallible>(Response::new(Bytes::from(body)))
    });
    let request = Request::get("/").header("authorization", format!("Bearer {key}"));
    let response = stage.layer.layer(handler);
    let response = response.oneshot(request.body(()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    String::from_utf8(response.into_body().to_vec()).unwrap()
}

#[tokio::test]
async fn fault_23_reply_of_kindes_guide_is_valid() {
    let with_is_valid = GUIDE.replacen('{', r#"{ "is_valid": true,"#, 1);
    for body in [GUIDE, &with_is_valid] {
        let stage = Stage::new().await;
        stage.stub.always(Endpoint::Verify, Answer::json(200, body));
        let expected = "org_abc123 read:users write:users";
        assert_eq!(context(&stage, UNKNOWN_KEY).await, expected, "{body}");
        // Past twice the soft TTL, the request waits for a second verification.
        stage.jump(130);
        assert_eq!(context(&stage, UNKNOWN_KEY).await, expected, "{body}");
        assert_eq!(stage.count(Endpoint::Verify), 2, "{body}");
    }
}

#[tokio::test]
async fn fault_22_guides_reply_can_be_invalid() {
    for no in [r#""is_valid": false"#, r#""status": "revoked""#] {
        let body = GUIDE.replacen('{', &format!("{{ {no},"), 1);
        check_200("no", &body, Seen::Invalid).await;
    }
}

#[tokio::test]
async fn valid_reply_may_have_other_fields() {
    check("the whole reply", yes(), Seen::Valid).await;
    assert_eq!(yes_with(&[]), YES);
    let deep = "[".repeat(5_000) + &"]".repeat(5_000);
    for changes in [
        &[("last_verified_on", "null")][..],
        &[("last_verified_on", r#""\ud800""#)],
        &[("last_verified_on", "")],
        &[("last_verified_on", r#""no date at all""#)],
        &[("last_verified_on", &deep)],
        &[("verification_count", "null")],
        &[("verification_count", "1e999")],
        &[("verification_count", r#""many""#)],
        &[("verification_count", "")],
        &[("code", "5"), ("message", "null")],
        &[("code", ""), ("message", "[]")],
        &[("code", r#""API_KEY_SOMETHING_ELSE""#)],
        &[("status", "")],
        &[("status", "null")],
        &[("is_valid", "")],
        &[("is_valid", "null")],
        &[("is_valid", ""), ("status", "")],
        &[("is_valid", "null"), ("status", "null"), ("key_id", "null")],
        &[("code", ""), ("status", "")],
        &[("scopes", "")],
        &[("scopes", "null")],
        &[("scopes", "[]")],
        &[("key_id", "")],
        &[("key_id", "null")],
        &[("key_id", r#""  ""#)],
        &[("user_id", "")],
        &[("user_id", r#"" ""#)],
        &[("something_new", r#"{"is_valid":false}"#)],
    ] {
        check_200("yes", &yes_with(changes), Seen::Valid).await;
    }
}

#[tokio::test]
async fn fault_22_invalid_whatever_the_other_fields() {
    for body in [
        r#"{"is_valid":false}"#.to_owned(),
        r#"{"is_valid":false,"status":"active","org_code":"org_1"}"#.to_owned(),
        r#"{"is_valid":false,"code":null,"status":null,"scopes":5,"org_code":{"a":[1]},"user_id":[]}"#
            .to_owned(),
        r#"{"status":"revoked"}"#.to_owned(),
        yes_with(&[("status", r#""revoked""#)]),
        yes_with(&[("status", r#""inactive""#)]),
        yes_with(&[("status", r#""Active""#)]),
        yes_with(&[("status", r#""active ""#)]),
        yes_with(&[("status", r#""""#)]),
        yes_with(&[("is_valid", r#""true""#), ("status", r#""revoked""#)]),
    ] {
        check_200("no", &body, Seen::Invalid).await;
    }
}

#[tokio::test]
async fn fault_21_invalid_known_key_is_401_at_once() {
    check_200("no", r#"{"is_valid":false}"#, Seen::Invalid).await;
}

#[tokio::test]
async fn fault_24_key_without_organization_is_403() {
    for changes in [
        &[("org_code", "null")][..],
        &[("org_code", "")],
        &[("org_code", r#""""#)],
        &[("org_code", r#"" \t""#)],
        &[("org_code", "null"), ("user_id", r#""kp_1""#)],
        &[("user_id", r#""kp_1""#)],
    ] {
        check_200("no organization", &yes_with(changes), Seen::NoOrganization).await;
    }
}

#[tokio::test]
async fn fault_23_invalid_fields_decide_nothing() {
    let long = format!("{:?}", "o".repeat(256));
    for changes in [
        &[("is_valid", ""), ("code", "")][..],
        &[("is_valid", ""), ("code", "null")],
        &[("is_valid", ""), ("code", "1")],
        &[("is_valid", ""), ("code", r#"["API_KEY_VERIFIED"]"#)],
        &[("is_valid", ""), ("code", r#""api_key_verified""#)],
        &[("is_valid", "null"), ("code", r#""API_KEY_VERIFIED ""#)],
        &[("is_valid", "null"), ("code", r#""API_KEY_CREATED""#)],
        &[("is_valid", ""), ("status", "1")],
        &[("is_valid", ""), ("org_code", "1")],
        &[("is_valid", r#""true""#)],
        &[("is_valid", r#""true""#), ("status", "")],
        &[("is_valid", r#""false""#)],
        &[("is_valid", "1")],
        &[("is_valid", "0")],
        &[("is_valid", "[true]")],
        &[("is_valid", "[]")],
        &[("status", "1")],
        &[("status", r#"["active"]"#)],
        &[("status", "[]")],
        &[("org_code", "1")],
        &[("org_code", r#"["org_1"]"#)],
        &[("org_code", "[]")],
        &[("org_code", r#"" org_1""#)],
        &[("org_code", r#""org\n1""#)],
        &[("org_code", r#""örg""#)],
        &[("org_code", &long)],
        &[("user_id", "5")],
        &[("user_id", "{}")],
        &[("user_id", "[]")],
        &[("key_id", "5")],
        &[("key_id", "[]")],
        &[("key_id", r#""api key""#)],
        &[("key_id", &long)],
    ] {
        check_200("nonsense", &yes_with(changes), Seen::InvalidResponse).await;
    }
}

#[tokio::test]
async fn fault_23_duplicate_member_decides_nothing() {
    for twice in [
        r#""is_valid":true"#,
        r#""is_valid":false"#,
        r#""status":"active""#,
        r#""status":"revoked""#,
        r#""org_code":"org_2""#,
        r#""user_id":null"#,
        r#""scopes":["write:reports"]"#,
        r#""key_id":"api_key_0002""#,
    ] {
        let body = yes_with(&[]).replacen('{', &format!("{{{twice},"), 1);
        check_200("twice", &body, Seen::InvalidResponse).await;
    }
}

#[tokio::test]
async fn fault_25_scopes_out_of_bounds_decide_nothing() {
    let many = format!("[{}]", vec![r#""s""#; 1_001].join(","));
    let most = format!("[{}]", vec![r#""s""#; 1_000].join(","));
    let long = format!("[{:?}]", "s".repeat(257));
    let longest = format!("[{:?}]", "s".repeat(256));
    for scopes in [
        many.as_str(),
        &long,
        r#""read:reports""#,
        "{}",
        "7",
        "[1]",
        "[null]",
        r#"["read:reports",["x"]]"#,
    ] {
        check_200(
            "scopes",
            &yes_with(&[("scopes", scopes)]),
            Seen::InvalidResponse,
        )
        .await;
    }
    for scopes in [
        most.as_str(),
        &longest,
        r#"["a\"b\\c","d\r\nSet-Cookie: e","two words",""]"#,
    ] {
        check_200("scopes", &yes_with(&[("scopes", scopes)]), Seen::Valid).await;
    }
}

#[tokio::test]
async fn fault_23_invalid_json_decides_nothing() {
    for body in [
        "",
        "null",
        "true",
        "[]",
        // Not even an array with the fields in their order.
        r#"[true,"active","api_key_0001","org_1",null,[]]"#,
        "{",
        r#"{"is_valid":false"#,
        r#"{"is_valid":false}{"#,
        "{is_valid:false}",
        "\u{feff}{\"is_valid\":false}",
        "<html>is_valid: false</html>",
    ] {
        check_200("not JSON", body, Seen::InvalidResponse).await;
    }
    let is_valid_false = || Answer::json(200, r#"{"is_valid":false}"#);
    for media_type in ["", "text/html", "text/plain", "application/problem+json"] {
        let answer = is_valid_false().with("Content-Type", media_type);
        check(media_type, answer, Seen::InvalidResponse).await;
    }
    let answer = is_valid_false().with("Content-Type", "APPLICATION/JSON;charset=utf-8");
    check("JSON by its essence", answer, Seen::Invalid).await;
}

#[tokio::test]
async fn body_over_64_kib_decides_nothing() {
    let padded = |len: usize| {
        let body = r#"{"is_valid":false,"padding":""}"#;
        body.replace("\"\"", &format!("\"{}\"", "x".repeat(len - body.len())))
    };
    let most = padded(64 * 1024);
    assert_eq!(most.len(), 64 * 1024);
    check("64 KiB", Answer::json(200, &most), Seen::Invalid).await;
    let more = padded(64 * 1024 + 1);
    check(
        "a byte more",
        Answer::json(200, &more),
        Seen::InvalidResponse,
    )
    .await;
    let encoded = |body: &str| Answer::json(200, body).with("Content-Encoding", "gzip");
    check("encoded", encoded(&more), Seen::InvalidResponse).await;
    check(
        "no encoding was requested",
        encoded(&most),
        Seen::InvalidResponse,
    )
    .await;
    check("an endless body", Answer::Endless, Seen::InvalidResponse).await;
    // A long error page decides nothing about a key.
    check("a long 400", Answer::json(400, &more), Seen::CannotTell).await;
}

#[tokio::test]
async fn endless_body_is_read_up_to_64_kib() {
    let stage = Stage::new().await;
    stage.stub.always(Endpoint::Verify, Answer::Endless);
    assert!(stage.verify(GOOD).await.is_err());
    let poured = stage.stub.poured();
    // The sockets' buffers add to what was read.
    assert!((64 * 1024..16 * 1024 * 1024).contains(&poured), "{poured}");
}

#[tokio::test]
async fn a_400_rejects_unknown_keys_only() {
    check("400", Answer::status(400), Seen::Unconfirmed).await;
    let empty = Answer::json(400, "").with("Content-Type", "");
    check("400 without a body", empty, Seen::Unconfirmed).await;
}

#[tokio::test]
async fn a_404_needs_a_code_other_than_the_route() {
    let object = |code| format!(r#"{{"errors":{{"code":"{code}","message":"m"}}}}"#);
    let list = |code| format!(r#"{{"errors":[{{"code":"{code}","message":"m"}}]}}"#);
    for (body, seen) in [
        (object("API_KEY_NOT_FOUND"), Seen::Unconfirmed),
        (list("API_KEY_NOT_FOUND"), Seen::Unconfirmed),
        (object("ROUTE_NOT_FOUND"), Seen::CannotTell),
        (list("ROUTE_NOT_FOUND"), Seen::CannotTell),
        (r#"{"errors":[]}"#.to_owned(), Seen::CannotTell),
        (r#"{"errors":{"code":null}}"#.to_owned(), Seen::CannotTell),
        (r#"{"errors":["NOT_FOUND"]}"#.to_owned(), Seen::CannotTell),
        ("<html>404</html>".to_owned(), Seen::CannotTell),
    ] {
        check(&format!("404 {body}"), Answer::json(404, &body), seen).await;
    }
}

#[tokio::test]
async fn fault_05_issuer_errors_decide_nothing() {
    for status in [
        201, 202, 204, 206, 300, 303, 304, 402, 405, 408, 410, 418, 422, 429, 500, 502, 503, 504,
    ] {
        let negative = Answer::json(status, r#"{"is_valid":false}"#);
        check(&status.to_string(), negative, Seen::CannotTell).await;
    }
}

#[tokio::test]
async fn accepted_probe_rejects_unknown_keys_only() {
    check("401", Answer::status(401), Seen::Unconfirmed).await;
    check("403", Answer::status(403), Seen::Unconfirmed).await;
}
