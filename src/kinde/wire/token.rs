//! The reply to `POST /oauth2/token`.

use std::time::Duration;

use http::header::HeaderValue;
use http::status::StatusCode;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::fields::{Content, Field};
use super::{InvalidBody, Reply, bearer, cannot_tell, read_json};
use crate::verify::VerifyError;

/// The meaning of a token reply.
#[derive(Debug)]
pub(crate) enum TokenReading {
    Token {
        /// `Bearer …`, marked sensitive.
        header: HeaderValue,
        lifetime: Duration,
    },
    /// The endpoint rejects the client credentials. The code is one of RFC 6749 §5.2, or `other`.
    Rejected(&'static str),
    CannotTell(VerifyError),
}

/// The lifetime of a token without `expires_in`. Short, because an early renewal only costs a call.
pub(crate) const DEFAULT_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// The longest time for which a token is used. Kinde's default is a day.
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The error codes of RFC 6749 §5.2. Any other text of the endpoint is not logged.
const CODES: [&str; 6] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
];
const OTHER_CODE: &str = "other";

/// A string that is zeroized on drop.
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
            }) => TokenReading::Rejected(known_code(&error)),
            _ if reply.status == StatusCode::UNAUTHORIZED => TokenReading::Rejected(OTHER_CODE),
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
        return Err(InvalidBody("the reply has no `access_token`"));
    };
    match body.token_type {
        Field::Absent | Field::Null => {}
        Field::Is(kind) if kind.eq_ignore_ascii_case("bearer") => {}
        _ => return Err(InvalidBody("the token is not a bearer token")),
    }
    let lifetime = match body.expires_in {
        Field::Absent | Field::Null => DEFAULT_LIFETIME,
        Field::Is(seconds) if seconds >= 1.0 => {
            Duration::from_secs_f64(seconds.min(MAX_LIFETIME.as_secs_f64()))
        }
        _ => return Err(InvalidBody("the token's lifetime is not a positive number")),
    };
    let header = bearer(&token).ok_or(InvalidBody("the token is not a valid header value"))?;
    Ok(TokenReading::Token { header, lifetime })
}
