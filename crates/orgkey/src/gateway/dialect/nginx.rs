//! The `auth_request` of nginx.
//!
//! nginx passes all headers of the client on, so the original request is only in the headers that its configuration overwrites. It
//! replaces the bodies of rejections by its own, so the problem document is also in a header.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use super::{Incomplete, Names, Original, Outcome, allowed};

static NAMES: Names = Names {
    method: HeaderName::from_static("x-original-method"),
    target: HeaderName::from_static("x-original-uri"),
    host: HeaderName::from_static("x-original-host"),
};

const PROBLEM: HeaderName = HeaderName::from_static("x-orgkey-problem");

pub(in crate::gateway) fn original(headers: &HeaderMap) -> Result<Original<'_>, Incomplete> {
    NAMES.original(headers)
}

pub(in crate::gateway) fn response(outcome: Outcome) -> Response<Bytes> {
    match outcome {
        Outcome::Allowed(headers) => allowed(headers),
        Outcome::Rejected(mut response) => {
            // A problem document is one line of ASCII.
            if let Ok(problem) = HeaderValue::from_maybe_shared(response.body().clone()) {
                response.headers_mut().insert(PROBLEM, problem);
            }
            response
        }
    }
}
