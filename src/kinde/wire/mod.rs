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

use http::header::{CONTENT_ENCODING, HeaderMap};
use http::status::StatusCode;
use orgkey_http::is_json;
pub(crate) use orgkey_http::{bearer, retry_after};
use serde::Deserialize;
use zeroize::Zeroizing;

pub(crate) use self::key::{KeyReading, read_key, shows_no_active_key};
pub(crate) use self::list::{ListReading, ListedKey, Page, read_list};
pub(crate) use self::token::{TokenReading, read_token};
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
        http::header::CONTENT_TYPE,
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
