//! The functions of the fuzz targets. Each asserts properties of any input. Not a public interface.
//!
//! Results are compared with those of a second, simpler parser.

use std::collections::HashMap;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::status::StatusCode;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::credential::{Credential, CredentialHeader, CredentialSource, KeyRules};
use crate::identifier::MAX_IDENTIFIER_LEN;
use crate::key::{ApiKey, DEFAULT_MAX_KEY_LEN, MIN_KEY_LEN};
use crate::kinde::wire::{
    Reply, TokenReading, VerifyReading, read_token, read_verify, retry_after,
};
use crate::scope::{MAX_SCOPE_LEN, MAX_SCOPES};
use crate::verify::VerifyErrorKind;

const OWN_HEADER: HeaderName = HeaderName::from_static("x-api-key");
const RATE_LIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Reads the credential of a request. Each line of the input is the value of one header field.
pub fn credential(input: &[u8]) {
    let values: Vec<HeaderValue> = lines(input).collect();
    for header in [
        CredentialHeader::AuthorizationBearer,
        CredentialHeader::Custom(OWN_HEADER),
    ] {
        let source = CredentialSource::new(header, KeyRules::default());
        let mut headers = HeaderMap::new();
        for value in &values {
            headers.append(source.header(), value.clone());
        }
        let is_bearer = *source.header() == AUTHORIZATION;
        // As the layer does for keys that are not cached.
        let read = match source.read(&mut headers) {
            Credential::Presented(key) if ApiKey::from_bytes(key).is_err() => Credential::Malformed,
            read => read,
        };
        assert_eq!(read, plain_credential(&values, is_bearer));
        let Credential::Presented(key) = read else {
            continue;
        };
        let key = String::from_utf8_lossy(key).into_owned();
        assert!(ApiKey::parse(&key).is_ok_and(|parsed| parsed.expose_secret() == key));
        // `Debug` output proves nothing: a key can be a part of `Sensitive`, or of the header's name.
        assert!(headers[source.header()].is_sensitive(), "a key is shown");
    }
}

/// A simple parser of RFC 6750 §2.1.
fn plain_credential(values: &[HeaderValue], is_bearer: bool) -> Credential<'_> {
    let value = match values {
        [] => return Credential::Absent,
        [value] => value.as_bytes(),
        _ => return Credential::Malformed,
    };
    let key = if is_bearer {
        let (scheme, key) = match value.split(|&b| b == b' ').next() {
            Some(scheme) => (scheme, &value[scheme.len()..]),
            None => (value, &[][..]),
        };
        if !scheme.eq_ignore_ascii_case(b"bearer") {
            let is_token = !scheme.is_empty()
                && scheme
                    .iter()
                    .all(|b| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(b));
            return if is_token {
                Credential::OtherScheme
            } else {
                Credential::Malformed
            };
        }
        key
    } else {
        value
    };
    let Ok(key) = std::str::from_utf8(key) else {
        return Credential::Malformed;
    };
    let key = if is_bearer {
        key.trim_start_matches(' ')
    } else {
        key
    };
    let body = key.trim_end_matches('=');
    let is_key = (MIN_KEY_LEN..=DEFAULT_MAX_KEY_LEN).contains(&key.len())
        && !body.is_empty()
        && body
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._~+/".contains(c));
    if is_key {
        Credential::Presented(key.as_bytes())
    } else {
        Credential::Malformed
    }
}

/// Parses a reply to verify. The first byte selects the status; the rest is the body.
pub fn verify_reply(input: &[u8]) {
    let Some(reply) = reply(input) else { return };
    let plain: Plain = serde_json::from_slice(&reply.body).unwrap_or_default();
    let field = |name: &str| plain.0.get(name);
    match read_verify(&reply) {
        VerifyReading::Valid(facts) => {
            assert_eq!(reply.status, StatusCode::OK);
            match field("is_valid") {
                Some(is_valid) => assert_eq!(is_valid, &Value::Bool(true)),
                None => assert_eq!(plain_code(&reply).as_deref(), Some("API_KEY_VERIFIED")),
            }
            assert!(field("status").is_none_or(|status| status == "active"));
            let text = |name| {
                let text = field(name).and_then(Value::as_str);
                text.filter(|text| !text.trim().is_empty())
            };
            assert_eq!(facts.org.as_ref().map(AsRef::as_ref), text("org_code"));
            assert_eq!(facts.key_id.as_ref().map(AsRef::as_ref), text("key_id"));
            assert_eq!(facts.user(), text("user_id"));
            for identifier in ["org_code", "key_id"].into_iter().filter_map(text) {
                assert!(identifier.len() <= MAX_IDENTIFIER_LEN);
                assert!(identifier.bytes().all(|b| b.is_ascii_graphic()));
            }
            let listed = field("scopes").and_then(Value::as_array);
            assert!(facts.scopes.len() <= listed.map_or(0, Vec::len).min(MAX_SCOPES));
            for scope in &facts.scopes {
                let name = scope.as_str();
                assert!(listed.is_some_and(|listed| listed.iter().any(|item| item == name)));
                assert!(name.len() <= MAX_SCOPE_LEN);
                assert!(HeaderValue::from_str(name).is_ok());
                assert!(!name.contains(['"', '\\', ' ']), "not valid in a challenge");
            }
        }
        VerifyReading::Invalid => {
            assert_eq!(reply.status, StatusCode::OK);
            let is_invalid = field("is_valid") == Some(&Value::Bool(false));
            let is_inactive = field("status")
                .and_then(Value::as_str)
                .is_some_and(|status| status != "active");
            assert!(is_invalid || is_inactive, "the reply does not say invalid");
        }
        VerifyReading::Unconfirmed => {
            assert!(matches!(
                reply.status,
                StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND
            ));
        }
        VerifyReading::KeyOrToken(status) => {
            assert_eq!(status, reply.status);
            assert!(matches!(
                status,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
            ));
        }
        VerifyReading::CannotTell(error) => {
            let is_about_key = error.kind() == VerifyErrorKind::InvalidResponse;
            assert_eq!(is_about_key, reply.status == StatusCode::OK);
            assert_ne!(error.kind(), VerifyErrorKind::Misconfigured);
            assert_is_not_quoted(&error, &reply);
        }
    }
}

/// Parses the `code` of a reply, which decides only if `is_valid` is missing.
fn plain_code(reply: &Reply) -> Option<String> {
    #[derive(Deserialize)]
    struct Coded {
        code: String,
    }

    let coded: Coded = serde_json::from_slice(&reply.body).ok()?;
    Some(coded.code)
}

/// Parses a reply of the token endpoint. The first byte selects the status; the rest is the body.
pub fn token_reply(input: &[u8]) {
    /// The longest lifetime of a token.
    const DAY: u64 = 24 * 60 * 60;

    let Some(reply) = reply(input) else { return };
    let plain: Plain = serde_json::from_slice(&reply.body).unwrap_or_default();
    let field = |name: &str| plain.0.get(name);
    match read_token(&reply) {
        TokenReading::Token { header, lifetime } => {
            assert_eq!(reply.status, StatusCode::OK);
            assert!((1..=DAY).contains(&lifetime.as_secs()), "{lifetime:?}");
            let token = field("access_token").and_then(Value::as_str);
            assert!(token.is_some_and(|token| {
                !token.is_empty() && header.as_bytes() == format!("Bearer {token}").as_bytes()
            }));
            assert!(header.is_sensitive());
            if let Some(seconds) = field("expires_in").and_then(Value::as_f64) {
                assert!(
                    lifetime.as_secs_f64() <= seconds,
                    "longer than `expires_in`"
                );
            }
        }
        TokenReading::Rejected(code) => {
            assert!(matches!(
                reply.status,
                StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED
            ));
            assert!(code == "other" || field("error").is_some_and(|error| error == code));
        }
        TokenReading::CannotTell(error) => {
            assert_ne!(error.kind(), VerifyErrorKind::Misconfigured);
            assert_ne!(error.kind(), VerifyErrorKind::InvalidResponse);
            assert_is_not_quoted(&error, &reply);
        }
    }
}

/// Parses the wait of a 429. The first line is the value of `RateLimit-Reset`, the second of `Retry-After`.
pub fn wait(input: &[u8]) {
    const DAY: u64 = 24 * 60 * 60;

    let mut headers = HeaderMap::new();
    let names = [RATE_LIMIT_RESET, RETRY_AFTER];
    for (name, value) in names.iter().zip(lines(input)) {
        headers.insert(name, value);
    }
    let plain = |name: &HeaderName| {
        let text = headers.get(name)?.to_str().ok()?.trim_matches([' ', '\t']);
        let is_number = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        let digits = text.trim_start_matches('0');
        if !is_number || digits.len() > 5 {
            return None;
        }
        digits
            .parse()
            .ok()
            .filter(|seconds| (1..=DAY).contains(seconds))
    };
    let expected = names.iter().find_map(plain);
    assert_eq!(retry_after(&headers).map(|wait| wait.as_secs()), expected);
}

/// The fields that decide, unparsed. Others are skipped, because a number in them may be too large for `Value`.
#[derive(Default)]
struct Plain(HashMap<String, Value>);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(body: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Fields {
            is_valid: Option<Value>,
            status: Option<Value>,
            org_code: Option<Value>,
            key_id: Option<Value>,
            user_id: Option<Value>,
            scopes: Option<Value>,
            access_token: Option<Value>,
            expires_in: Option<Value>,
            error: Option<Value>,
        }

        let fields = Fields::deserialize(body)?;
        let fields = [
            ("is_valid", fields.is_valid),
            ("status", fields.status),
            ("org_code", fields.org_code),
            ("key_id", fields.key_id),
            ("user_id", fields.user_id),
            ("scopes", fields.scopes),
            ("access_token", fields.access_token),
            ("expires_in", fields.expires_in),
            ("error", fields.error),
        ];
        let present = |(name, value): (&str, Option<Value>)| Some((name.to_owned(), value?));
        Ok(Self(fields.into_iter().filter_map(present).collect()))
    }
}

fn lines(input: &[u8]) -> impl Iterator<Item = HeaderValue> {
    input
        .split(|&b| b == b'\n')
        .take(4)
        .filter_map(|line| HeaderValue::from_bytes(line).ok())
}

/// Selects the status by the first byte, so that all statuses that decide are frequent.
fn reply(input: &[u8]) -> Option<Reply> {
    const STATUSES: [u16; 10] = [200, 200, 200, 200, 400, 401, 403, 404, 429, 500];

    let (&choice, body) = input.split_first()?;
    let status = STATUSES[usize::from(choice) % STATUSES.len()];
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Some(Reply {
        status: StatusCode::from_u16(status).ok()?,
        headers,
        body: Zeroizing::new(body.to_vec()),
    })
}

/// Errors are logged, so they must not quote the reply.
fn assert_is_not_quoted(error: &crate::verify::VerifyError, reply: &Reply) {
    /// A piece of this length is not in an error message by chance.
    const MIN_QUOTE: usize = 24;

    let mut words = vec![format!("{error:?} {error}")];
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        words.push(format!("{error:?} {error}"));
        source = error.source();
    }
    let words = words.join(" ");
    let body = String::from_utf8_lossy(&reply.body);
    for piece in body.split(['"', '\'', '{', '}']) {
        assert!(piece.len() < MIN_QUOTE || !words.contains(piece), "{words}");
    }
}
