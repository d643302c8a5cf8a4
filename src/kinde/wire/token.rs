//! The reply to `POST /oauth2/token`.

use std::time::Duration;

use http::header::HeaderValue;
use http::status::StatusCode;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::fields::{Content, Field};
use super::{InvalidBody, Reply, cannot_tell, read_json};
use crate::verify::VerifyError;

/// What the token endpoint says.
#[derive(Debug)]
pub(crate) enum TokenReading {
    Token {
        /// `Bearer …`, marked sensitive.
        header: HeaderValue,
        lifetime: Duration,
    },
    /// The endpoint refuses our credentials; somebody has to mend them. The code is one that RFC 6749 §5.2 lists.
    Refused(&'static str),
    CannotTell(VerifyError),
}

/// The lifetime of a token whose reply does not say: short, for a token used too long fails, and one renewed too
/// early costs one more call.
pub(crate) const UNSAID_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// No token is used for longer, whatever its reply says. Kinde's longest default is a day.
pub(crate) const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest token that is sent. Servers refuse longer headers.
const MAX_TOKEN_LEN: usize = 16 * 1024;

/// RFC 6749 §5.2: what may be logged of a refusal. Anything else the endpoint says stays unsaid.
const CODES: [&str; 6] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
];
const OTHER_CODE: &str = "other";

/// A text that is a secret.
struct Secret(Zeroizing<String>);

impl Content for Secret {
    fn text(text: &str) -> Field<Self> {
        Field::Is(Self(Zeroizing::new(text.to_owned())))
    }
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    access_token: Field<Secret>,
    #[serde(default)]
    token_type: Field<String>,
    #[serde(default)]
    expires_in: Field<f64>,
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    error: Field<String>,
}

pub(crate) fn read_token(reply: &Reply) -> TokenReading {
    match reply.status {
        StatusCode::OK => read_body(reply)
            .unwrap_or_else(|invalid| TokenReading::CannotTell(invalid.about_issuer())),
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED => match read_json(reply) {
            Ok(ErrorBody {
                error: Field::Is(error),
            }) => TokenReading::Refused(known_code(&error)),
            _ if reply.status == StatusCode::UNAUTHORIZED => TokenReading::Refused(OTHER_CODE),
            _ => TokenReading::CannotTell(cannot_tell(reply)),
        },
        _ => TokenReading::CannotTell(cannot_tell(reply)),
    }
}

fn known_code(error: &str) -> &'static str {
    CODES
        .into_iter()
        .find(|&code| code == error)
        .unwrap_or(OTHER_CODE)
}

fn read_body(reply: &Reply) -> Result<TokenReading, InvalidBody> {
    let body: Body = read_json(reply)?;
    let Field::Is(Secret(token)) = body.access_token else {
        return Err(InvalidBody("the token's reply holds no token"));
    };
    match body.token_type {
        Field::Absent | Field::Null => {}
        Field::Is(kind) if kind.eq_ignore_ascii_case("bearer") => {}
        _ => return Err(InvalidBody("the token is not a bearer token")),
    }
    let lifetime = match body.expires_in {
        Field::Absent | Field::Null => UNSAID_LIFETIME,
        Field::Is(seconds) if seconds >= 1.0 => {
            Duration::from_secs_f64(seconds.min(LONGEST_LIFETIME.as_secs_f64()))
        }
        _ => return Err(InvalidBody("the token's lifetime is not a positive number")),
    };
    let header = bearer(&token).ok_or(InvalidBody("the token is not a valid header value"))?;
    Ok(TokenReading::Token { header, lifetime })
}

/// `Bearer <token>` as a header value whose memory is overwritten when the last clone is dropped, or `None` when the
/// token is empty, too long, or not visible ASCII throughout.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    const SCHEME: &str = "Bearer ";

    let is_sane =
        (1..=MAX_TOKEN_LEN).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic());
    if !is_sane {
        return None;
    }
    // Of the right size from the start: a vector that grows leaves copies behind.
    let mut value = Zeroizing::new(Vec::with_capacity(SCHEME.len() + token.len()));
    value.extend_from_slice(SCHEME.as_bytes());
    value.extend_from_slice(token.as_bytes());
    let mut value = HeaderValue::from_maybe_shared(bytes::Bytes::from_owner(value)).ok()?;
    value.set_sensitive(true);
    Some(value)
}
