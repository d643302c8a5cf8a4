//! The grammar of `Authorization` (RFC 9110 §11.4, RFC 6750 §2.1), against a machine that reads one byte at a time.

use http::header::{AUTHORIZATION, HeaderValue};
use proptest::prelude::*;
use tower::{Layer, ServiceExt};
use tower_orgkey::{
    ApiKey, ApiKeyLayer, DEFAULT_MAX_KEY_LEN, MAX_KEY_LEN, RejectionKind, Verification, verifier_fn,
};

use crate::support::service::{Handler, Outcome};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Absent,
    Malformed,
    Key(String),
}

/// `1#( auth-scheme [ 1*SP token68 ] )`, one of them, read byte by byte.
fn read(values: &[Vec<u8>], max_len: usize) -> Verdict {
    #[derive(Clone, Copy)]
    enum State {
        Scheme,
        Spaces,
        Token,
        Padding,
    }

    let value = match values {
        [] => return Verdict::Absent,
        [value] => value,
        _ => return Verdict::Malformed,
    };
    let mut state = State::Scheme;
    let mut scheme = String::new();
    let mut key = String::new();
    for &byte in value {
        let c = char::from(byte);
        let is_plain = c.is_ascii_digit() || c.is_ascii_lowercase() || c.is_ascii_uppercase();
        state = match (state, c) {
            (State::Scheme, ' ') if scheme.is_empty() => return Verdict::Malformed,
            (State::Scheme, ' ') if scheme.to_lowercase() != "bearer" => return Verdict::Absent,
            (State::Scheme | State::Spaces, ' ') => State::Spaces,
            (State::Scheme, c) if is_plain || "!#$%&'*+-.^_`|~".contains(c) => {
                scheme.push(c);
                State::Scheme
            }
            (State::Spaces | State::Token, c) if is_plain || "-._~+/".contains(c) => {
                key.push(c);
                State::Token
            }
            (State::Token | State::Padding, '=') => {
                key.push(c);
                State::Padding
            }
            _ => return Verdict::Malformed,
        };
    }
    match state {
        State::Scheme if !scheme.is_empty() && scheme.to_lowercase() != "bearer" => Verdict::Absent,
        State::Token | State::Padding if (8..=max_len).contains(&key.len()) => Verdict::Key(key),
        _ => Verdict::Malformed,
    }
}

fn values() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let scheme = prop_oneof![
        4 => "(?i:bearer)".prop_map(String::into_bytes),
        1 => "[A-Za-z0-9!#$%&'*+.^_`|~-]{0,8}".prop_map(String::into_bytes),
        1 => prop::sample::select(vec!["Basic", "DPoP", "Digest", "Bearer,", "Bearer:", "Token", ""])
            .prop_map(|scheme| scheme.as_bytes().to_vec()),
    ];
    let gap = prop_oneof![
        6 => Just(" ".to_owned()),
        2 => "[ ]{0,4}",
        1 => Just("\t".to_owned()),
    ];
    let key = prop_oneof![
        6 => "[A-Za-z0-9._~+/-]{6,20}={0,3}",
        1 => "[A-Za-z0-9._~+/-]{505,514}={0,4}",
        1 => "={6,10}",
        1 => Just(String::new()),
    ];
    let tail = prop_oneof![
        6 => Just(Vec::new()),
        2 => prop::collection::vec(byte(), 1..4),
        1 => Just(b", Bearer 12345678".to_vec()),
    ];
    let made = (scheme, gap, key, tail).prop_map(|(scheme, gap, key, tail)| {
        [scheme.as_slice(), gap.as_bytes(), key.as_bytes(), &tail].concat()
    });
    // One byte of a well-made one replaced.
    let spoilt =
        (made.clone(), any::<prop::sample::Index>(), byte()).prop_map(|(mut value, at, byte)| {
            if !value.is_empty() {
                let at = at.index(value.len());
                value[at] = byte;
            }
            value
        });
    let value = prop_oneof![
        5 => made,
        3 => spoilt,
        1 => prop::collection::vec(byte(), 0..24),
    ];
    prop_oneof![
        12 => value.clone().prop_map(|value| vec![value]),
        1 => prop::collection::vec(value, 0..3),
    ]
}

/// What a server lets through in a value (RFC 9110 §5.5).
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![
        6 => 0x20_u8..=0x7e,
        1 => Just(b'\t'),
        1 => Just(b' '),
        1 => Just(b'='),
        1 => 0x80_u8..=0xff,
    ]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_credential_is_read_as_the_grammar_has_it(values in values()) {
        let verdict = read(&values, DEFAULT_MAX_KEY_LEN);
        let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let heard = std::sync::Arc::clone(&asked);
        let verifier = verifier_fn(move |key: ApiKey| {
            heard.lock().unwrap().push(key.expose_secret().to_owned());
            std::future::ready(Ok(Verification::invalid()))
        });
        let handler = Handler::default();
        let service = ApiKeyLayer::new(verifier).layer(handler.clone());
        let mut request = http::Request::new(());
        for value in &values {
            request.headers_mut().append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        let response = runtime().block_on(service.oneshot(request)).unwrap();
        let (kind, keys) = match verdict {
            Verdict::Absent => (RejectionKind::CredentialMissing, vec![]),
            Verdict::Malformed => (RejectionKind::CredentialMalformed, vec![]),
            Verdict::Key(key) => (RejectionKind::InvalidToken, vec![key]),
        };
        prop_assert_eq!(Outcome::of(&response), Outcome::Rejected(kind));
        prop_assert_eq!(&*asked.lock().unwrap(), &keys);
        prop_assert_eq!(handler.reached(), 0);
    }

    #[test]
    fn a_key_is_parsed_exactly_where_a_header_would_carry_it(text in ".{0,20}|[A-Za-z0-9._~+/-]{500,520}={0,4}|[a-z]{5,9}[= ]{0,3}[a-z]{0,1}") {
        let header = format!("Bearer {text}").into_bytes();
        let parsed = ApiKey::parse(&text).map(|key| key.expose_secret().to_owned());
        let expected = match read(&[header], MAX_KEY_LEN) {
            // The header may hold more spaces than one; a key holds none.
            Verdict::Key(key) if !text.starts_with(' ') => Some(key),
            _ => None,
        };
        prop_assert_eq!(parsed.ok(), expected);
    }
}
