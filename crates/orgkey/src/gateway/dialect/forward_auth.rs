//! The `ForwardAuth` of Traefik and the `forward_auth` of Caddy.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response};

use super::{Incomplete, Names, Original, Outcome, allowed};

static NAMES: Names = Names {
    method: HeaderName::from_static("x-forwarded-method"),
    target: HeaderName::from_static("x-forwarded-uri"),
    host: HeaderName::from_static("x-forwarded-host"),
};

pub(in crate::gateway) fn original(headers: &HeaderMap) -> Result<Original<'_>, Incomplete> {
    NAMES.original(headers)
}

pub(in crate::gateway) fn response(outcome: Outcome) -> Response<Bytes> {
    match outcome {
        Outcome::Allowed(headers) => allowed(headers),
        Outcome::Rejected(response) => response,
    }
}
