//! The `ext_authz` of Envoy over HTTP, and other implementations of its protocol.
//!
//! The check request is the original request itself, behind a prefix. An identity header that is not set in the response keeps the
//! value of the client unless the response removes it.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, Uri};

use super::{Incomplete, Original, Outcome, allowed, text};
use crate::gateway::identity::{absent, aliases};

pub(in crate::gateway) const PREFIX: &str = "/v1/envoy";

const REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// Returns the original target, if the check request has the prefix.
pub(in crate::gateway) fn target(uri: &Uri) -> Option<&str> {
    let target = uri.path_and_query()?.as_str().strip_prefix(PREFIX)?;
    target.starts_with('/').then_some(target)
}

pub(in crate::gateway) fn original<'a>(
    parts: &'a Parts,
    target: &'a str,
) -> Result<Original<'a>, Incomplete> {
    let host = if let Some(authority) = parts.uri.authority() {
        Some(Cow::Borrowed(authority.as_str()))
    } else {
        let mut hosts = parts.headers.get_all(HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(Incomplete("host"));
        }
        host.map(text)
    };
    Ok(Original {
        method: parts.method.clone(),
        target: Cow::Borrowed(target),
        host,
    })
}

/// Renders outcomes in the dialect.
#[derive(Debug)]
pub(in crate::gateway) struct Responses {
    /// What is removed on every allow: aliases, and the key.
    removed: String,
}

impl Responses {
    /// `key_header` is the header with the key, if services must not get it.
    pub(in crate::gateway) fn new(key_header: Option<&HeaderName>) -> Self {
        let key = key_header.map(|name| name.as_str().to_owned());
        let names: Vec<_> = aliases().chain(key).collect();
        Self {
            removed: names.join(","),
        }
    }

    pub(in crate::gateway) fn response(&self, outcome: Outcome) -> Response<Bytes> {
        match outcome {
            Outcome::Allowed(headers) => {
                let names = absent(&headers).fold(self.removed.clone(), |names, name| {
                    names + "," + name.as_str()
                });
                let mut response = allowed(headers);
                // Names of headers are visible ASCII.
                if let Ok(names) = HeaderValue::from_maybe_shared(Bytes::from(names)) {
                    response.headers_mut().insert(REMOVE, names);
                }
                response
            }
            Outcome::Rejected(response) => response,
        }
    }
}
