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
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};

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

/// The names of the headers that hold the original request.
struct Names {
    method: HeaderName,
    target: HeaderName,
    host: HeaderName,
}

impl Names {
    /// Returns the original request. Its host may be missing.
    fn original<'a>(&'static self, headers: &'a HeaderMap) -> Result<Original<'a>, Incomplete> {
        let (mut method, mut target, mut host) = (None, None, None);
        // One pass over all headers costs less than three lookups.
        for (name, value) in headers {
            let (own, found) = match name {
                name if *name == self.method => (&self.method, &mut method),
                name if *name == self.target => (&self.target, &mut target),
                name if *name == self.host => (&self.host, &mut host),
                _ => continue,
            };
            if found.replace(value).is_some() {
                return Err(Incomplete(own.as_str()));
            }
        }
        let method = method.and_then(|method| Method::from_bytes(method.as_bytes()).ok());
        Ok(Original {
            method: method.ok_or(Incomplete(self.method.as_str()))?,
            target: text(target.ok_or(Incomplete(self.target.as_str()))?),
            host: host.map(text),
        })
    }
}

/// Returns the value of a header. Bytes outside UTF-8 are replaced by a character that no path may have.
fn text(value: &HeaderValue) -> Cow<'_, str> {
    match value.to_str() {
        Ok(value) => Cow::Borrowed(value),
        Err(_) => String::from_utf8_lossy(value.as_bytes()),
    }
}

/// Allows a request: 200, and the headers of the identity.
fn allowed(headers: HeaderMap) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.headers_mut() = headers;
    response
}
