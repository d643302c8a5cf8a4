//! The `ForwardAuth` of Traefik and the `forward_auth` of Caddy.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response};

use super::{Incomplete, Original, Outcome, allowed, at_most_once, method, once};

static METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
static URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
static HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

pub(in crate::gateway) fn original(headers: &HeaderMap) -> Result<Original<'_>, Incomplete> {
    Ok(Original {
        method: method(headers, &METHOD)?,
        target: once(headers, &URI)?,
        host: at_most_once(headers, &HOST)?,
    })
}

pub(in crate::gateway) fn response(outcome: Outcome) -> Response<Bytes> {
    match outcome {
        Outcome::Allowed(headers) => allowed(headers),
        Outcome::Rejected(response) => response,
    }
}
