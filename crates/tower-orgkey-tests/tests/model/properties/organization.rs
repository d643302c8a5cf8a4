//! No path that names another organization reaches a handler.

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use proptest::prelude::*;
use tower::ServiceExt;
use tower_orgkey::{
    ApiKeyLayer, OrgCode, OrgContext, Rejection, RejectionKind, Verification, require_org,
    verifier_fn,
};

const KEY: &str = "k_test_one_0123456789";

/// Percent-decoding of one path segment, once, as RFC 3986 §2.1 has it; what is no triplet stands for itself.
fn decode(segment: &str) -> Vec<u8> {
    fn digit(byte: u8) -> Option<u8> {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    }

    let mut rest = segment.as_bytes();
    let mut decoded = Vec::new();
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'%', [high, low, after @ ..]) if digit(*high).is_some() && digit(*low).is_some() => {
                decoded.push(digit(*high).unwrap() * 16 + digit(*low).unwrap());
                after
            }
            _ => {
                decoded.push(*first);
                tail
            }
        };
    }
    decoded
}

/// A segment that may stand in a path, near to the organization's code.
fn segment(code: String) -> impl Strategy<Value = String> {
    let near = code.clone();
    prop_oneof![
        3 => Just(encode(&code, &[])),
        3 => prop::collection::vec(any::<bool>(), 0..12).prop_map(move |which| encode(&near, &which)),
        2 => (Just(code.clone()), any::<prop::sample::Index>(), "[A-Za-z0-9_%.-]").prop_map(
            |(code, at, with)| {
                let mut chars: Vec<String> = code.chars().map(|c| encode(&c.to_string(), &[])).collect();
                let at = at.index(chars.len());
                chars[at] = with;
                chars.concat()
            }
        ),
        1 => Just(encode(&encode(&code, &[true; 12]), &[])),
        1 => Just(encode(&code.to_uppercase(), &[])),
        1 => "[A-Za-z0-9_.~!$&'()*+,;=:@-]{0,3}".prop_map(move |tail| encode(&code, &[]) + &tail),
        1 => "(%[0-9A-Fa-f]{2}){1,4}",
        1 => "[A-Za-z0-9_.~%-]{1,8}",
    ]
}

/// Percent-encodes what may not stand in a path, and what `also` says.
fn encode(text: &str, also: &[bool]) -> String {
    use std::fmt::Write as _;

    let mut encoded = String::new();
    for (n, byte) in text.bytes().enumerate() {
        let is_plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if is_plain && !also.get(n).copied().unwrap_or(false) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").unwrap();
        }
    }
    encoded
}

fn case() -> impl Strategy<Value = (String, Vec<String>)> {
    let code = prop_oneof!["org_[a-z0-9]{1,6}", "[!-~]{1,6}"];
    code.prop_flat_map(|code| {
        let segments = prop::collection::vec(segment(code.clone()), 2);
        (Just(code), segments)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fault_49_no_path_of_another_organization_reaches_the_handler((code, segments) in case()) {
        let (outer, inner) = (&segments[0], &segments[1]);
        // A slash in a segment would make another path of it.
        prop_assume!(!outer.is_empty() && !inner.is_empty());
        let org = OrgCode::new(code.as_str()).unwrap();
        let verifier = verifier_fn(move |_| std::future::ready(Ok(Verification::of_organization(org.clone()))));
        let guarded = get(async |org: OrgContext| org.org_code().to_string())
            .route_layer(require_org("org"));
        let app = Router::new()
            .route("/one/{org}", guarded.clone())
            .nest_service("/two/{org}", Router::new().route("/deep/{org}", guarded))
            .layer(ApiKeyLayer::new(verifier));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let paths = [
            (format!("/one/{outer}"), vec![outer]),
            (format!("/two/{outer}/deep/{inner}"), vec![outer, inner]),
        ];
        for (path, named) in paths {
            let is_own = named.iter().all(|segment| decode(segment) == code.as_bytes());
            let Ok(request) = http::Request::builder()
                .uri(&path)
                .header("authorization", format!("Bearer {KEY}"))
                .body(Body::empty())
            else {
                continue;
            };
            let response = runtime.block_on(app.clone().oneshot(request)).unwrap();
            if is_own {
                prop_assert_eq!(response.status(), 200, "{}", path);
            } else {
                let rejection = response.extensions().get::<Rejection>();
                prop_assert_eq!(
                    rejection.map(Rejection::kind),
                    Some(RejectionKind::OrganizationMismatch),
                    "{} {}", path, response.status()
                );
            }
        }
    }
}
