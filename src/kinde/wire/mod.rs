//! Parses Kinde's replies: pure functions of status, headers and body, without I/O or a clock.
//!
//! Replies are not trusted. A field that decides is parsed strictly, and a reply that contains it twice is invalid, because
//! two parsers could read two values. A field that does not decide (`message`, `last_verified_on`,
//! `verification_count`, `code` beside an `is_valid`, any field added later) is skipped unread, so it never fails a
//! verification.

mod fields;
mod key;
mod list;
mod token;
mod verify;

use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, RETRY_AFTER};
use http::status::StatusCode;
use serde::Deserialize;
use zeroize::Zeroizing;

pub(crate) use self::key::{KeyReading, read_key, shows_no_active_key};
pub(crate) use self::list::{ListReading, ListedKey, Page, read_list};
pub(crate) use self::token::{TokenReading, bearer, read_token};
pub(crate) use self::verify::{VerifyReading, read_verify};
use crate::verify::VerifyError;

/// A complete reply.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// At most [`MAX_BODY`] bytes, or [`MAX_PAGE`] of a list; empty for statuses that need no body.
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// The longest body that is read, in bytes.
pub(crate) const MAX_BODY: usize = 64 * 1024;
/// The longest page of a list that is read, in bytes: 500 keys of 8 KiB each.
pub(crate) const MAX_PAGE: usize = 4 * 1024 * 1024;

/// The longest `Retry-After` that is accepted, in seconds.
const MAX_RETRY_AFTER: u64 = 24 * 60 * 60;

const RATE_LIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Returns how long the issuer asks to wait: `RateLimit-Reset`, which Kinde sends, else `Retry-After`.
///
/// Both have whole seconds, from 1 s to 24 h. A date, a fraction, a sign, zero or a longer wait is ignored.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    [RATE_LIMIT_RESET, RETRY_AFTER]
        .iter()
        .find_map(|name| delta_seconds(headers.get(name)?.as_bytes()))
}

fn delta_seconds(value: &[u8]) -> Option<Duration> {
    let digits = value.trim_ascii();
    // `u64::from_str` accepts a plus sign.
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (1..=MAX_RETRY_AFTER)
        .contains(&seconds)
        .then(|| Duration::from_secs(seconds))
}

/// Parses the body if its media type is `application/json`, with any parameters, and it has no content encoding.
fn read_json<'a, T: Deserialize<'a>>(reply: &'a Reply) -> Result<T, InvalidBody> {
    if !is_json(&reply.headers) {
        return Err(InvalidBody(
            "the reply's media type is not `application/json`",
        ));
    }
    if reply.headers.contains_key(CONTENT_ENCODING) {
        return Err(InvalidBody(
            "the reply has a content encoding, although the request accepts none",
        ));
    }
    // serde also deserializes a struct from an array.
    if !reply.body.trim_ascii_start().starts_with(b"{") {
        return Err(InvalidBody("the reply is not a JSON object"));
    }
    // The parser's message could quote the reply, so it is not passed on.
    serde_json::from_slice(&reply.body)
        .map_err(|_| InvalidBody("the reply is not JSON of the expected form"))
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let essence = value.as_bytes().split(|&b| b == b';').next();
    essence.is_some_and(|essence| {
        essence
            .trim_ascii()
            .eq_ignore_ascii_case(b"application/json")
    })
}

/// The error for a status that no endpoint gives a meaning.
pub(super) fn cannot_tell(reply: &Reply) -> VerifyError {
    match reply.status {
        StatusCode::TOO_MANY_REQUESTS => VerifyError::throttled(retry_after(&reply.headers)),
        status => VerifyError::unavailable(format!("the issuer answers with status {status}")),
    }
}

/// The body of a 200 reply does not have the expected form. The description quotes nothing of the reply.
#[derive(Debug)]
struct InvalidBody(&'static str);

impl InvalidBody {
    /// The error for a reply of verify, which is about one key.
    fn about_key(self) -> VerifyError {
        VerifyError::invalid_response(self.0)
    }

    /// The error for a reply of any other endpoint.
    fn about_issuer(self) -> VerifyError {
        VerifyError::unavailable(self.0)
    }
}

#[cfg(test)]
pub(super) fn reply(status: u16, body: impl AsRef<[u8]>) -> Reply {
    let mut headers = HeaderMap::new();
    headers.insert(
        CONTENT_TYPE,
        http::HeaderValue::from_static("application/json; charset=utf-8"),
    );
    Reply {
        status: StatusCode::from_u16(status).unwrap(),
        headers,
        body: Zeroizing::new(body.as_ref().to_vec()),
    }
}

#[cfg(test)]
mod tests;
