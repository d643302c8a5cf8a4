//! How each proxy sends a check request, and the response that it understands.
//!
//! A dialect reads its own headers only. What a client sends under the names of another dialect means nothing.

pub(super) mod envoy_grpc;
pub(super) mod envoy_http;
pub(super) mod forward_auth;
pub(super) mod nginx;
mod proto;

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Response};

/// The outcome of a check, before it is rendered in a dialect.
pub(super) enum Outcome {
    /// With the headers of the response.
    Allowed(HeaderMap),
    Rejected(Response<Bytes>),
}

/// A check request without what its dialect requires. Says which header, or part, is missing or repeated.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Incomplete(pub(super) &'static str);

/// The original request, from headers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Original<'a> {
    pub(super) method: Method,
    pub(super) target: Cow<'a, str>,
    pub(super) host: Option<Cow<'a, str>>,
}

/// Returns the value of a header that may be there once. Bytes outside UTF-8 are replaced by a character that no path may have.
fn at_most_once<'a>(
    headers: &'a HeaderMap,
    name: &'static HeaderName,
) -> Result<Option<Cow<'a, str>>, Incomplete> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Incomplete(name.as_str())),
        (None, None) => Ok(None),
        (Some(value), None) => Ok(Some(match value.to_str() {
            Ok(value) => Cow::Borrowed(value),
            Err(_) => String::from_utf8_lossy(value.as_bytes()),
        })),
    }
}

/// Returns the value of a header that must be there once.
fn once<'a>(headers: &'a HeaderMap, name: &'static HeaderName) -> Result<Cow<'a, str>, Incomplete> {
    at_most_once(headers, name)?.ok_or(Incomplete(name.as_str()))
}

fn method(headers: &HeaderMap, name: &'static HeaderName) -> Result<Method, Incomplete> {
    let method = once(headers, name)?;
    method.parse().map_err(|_| Incomplete(name.as_str()))
}

/// Allows a request: 200, and the headers of the identity.
fn allowed(headers: HeaderMap) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.headers_mut() = headers;
    response
}
