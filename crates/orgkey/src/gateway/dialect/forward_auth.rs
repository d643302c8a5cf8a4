//! The `ForwardAuth` of Traefik and the `forward_auth` of Caddy.

use bytes::Bytes;
use http::{HeaderMap, Response};

use super::{Incomplete, Original, Outcome, allowed, at_most_once, method, once};

pub(in crate::gateway) fn original(headers: &HeaderMap) -> Result<Original<'_>, Incomplete> {
    Ok(Original {
        method: method(headers, "x-forwarded-method")?,
        target: once(headers, "x-forwarded-uri")?,
        host: at_most_once(headers, "x-forwarded-host")?,
    })
}

pub(in crate::gateway) fn response(outcome: Outcome) -> Response<Bytes> {
    match outcome {
        Outcome::Allowed(identity) => allowed(&identity),
        Outcome::Rejected(response) => response,
    }
}
