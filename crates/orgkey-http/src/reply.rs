//! What all readers of replies have in common.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use zeroize::Zeroizing;

/// The longest token, in bytes. Servers reject longer headers.
const MAX_TOKEN_LEN: usize = 16 * 1024;

/// The longest `Retry-After` that is accepted, in seconds.
const MAX_RETRY_AFTER: u64 = 24 * 60 * 60;

const RATE_LIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Returns how long the issuer asks to wait: `RateLimit-Reset`, else `Retry-After`.
///
/// Both have whole seconds, from 1 s to 24 h. A date, a fraction, a sign, zero or a longer wait is ignored.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
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

/// Returns whether the media type is `application/json`, with any parameters.
pub fn is_json(headers: &HeaderMap) -> bool {
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

/// Returns `Bearer <token>` as a header value that is zeroized when its last clone is dropped, or `None` if the token is
/// empty, too long or not visible ASCII.
pub fn bearer(token: &str) -> Option<HeaderValue> {
    const SCHEME: &str = "Bearer ";

    let is_valid =
        (1..=MAX_TOKEN_LEN).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic());
    if !is_valid {
        return None;
    }
    // Allocated in full, because a vector that grows leaves copies of the secret in memory.
    let mut value = Zeroizing::new(Vec::with_capacity(SCHEME.len() + token.len()));
    value.extend_from_slice(SCHEME.as_bytes());
    value.extend_from_slice(token.as_bytes());
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(value)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Reads a body of up to `limit` bytes. `None` if it is longer; the rest is not read.
pub async fn read_body(
    mut response: Response,
    limit: usize,
) -> Result<Option<Zeroizing<Vec<u8>>>, reqwest::Error> {
    let mut body = Zeroizing::new(Vec::new());
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}
