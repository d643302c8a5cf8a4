use std::collections::BTreeMap;

use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, Entry, HeaderValue, PROXY_AUTHORIZATION};
use http::request::Parts;
use http::{HeaderMap, Method, Uri};

use crate::tokens::essence;

/// A request that an emulator received, with its secrets redacted.
///
/// Returned by [`KindeEmulator::last_request`](crate::KindeEmulator::last_request).
///
/// ```
/// # use kinde_emulator::{Endpoint, KindeEmulator};
/// # async fn check(emulator: &KindeEmulator) {
/// let request = emulator.last_request(Endpoint::Token).expect("a token was fetched");
/// assert_eq!(request.field("grant_type"), Some("client_credentials"));
/// assert_eq!(request.field("client_secret"), Some("[redacted]"));
/// assert_eq!(request.header("referer"), None);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    fields: BTreeMap<String, String>,
}

const REDACTED: &str = "[redacted]";

impl RecordedRequest {
    pub(crate) fn new(parts: &Parts, body: &[u8]) -> Self {
        let mut headers = parts.headers.clone();
        for name in [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE] {
            if let Entry::Occupied(mut values) = headers.entry(name) {
                for value in values.iter_mut() {
                    *value = redacted(value);
                }
            }
        }
        let content_type = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .map(essence);
        let mut fields: BTreeMap<String, String> = match content_type.as_deref() {
            Some("application/x-www-form-urlencoded") => form_urlencoded::parse(body)
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect(),
            Some("application/json") => {
                serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(body)
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(name, value)| match value {
                        serde_json::Value::String(text) => (name, text),
                        other => (name, other.to_string()),
                    })
                    .collect()
            }
            _ => BTreeMap::new(),
        };
        for name in ["api_key", "client_secret"] {
            if let Some(value) = fields.get_mut(name) {
                REDACTED.clone_into(value);
            }
        }
        Self {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            headers,
            fields,
        }
    }

    /// Returns the method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Returns the request target: path and query.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Returns all headers. In `Authorization`, `Proxy-Authorization` and `Cookie` everything but the scheme is redacted.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Returns the first header with this name, or `None` if it is absent or not visible ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns a field of the form or JSON object in the body. `api_key` and `client_secret` are `[redacted]`.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }
}

/// Keeps the scheme of a credential, if it has one.
fn redacted(value: &HeaderValue) -> HeaderValue {
    value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .and_then(|(scheme, _)| HeaderValue::try_from(format!("{scheme} {REDACTED}")).ok())
        .unwrap_or(HeaderValue::from_static(REDACTED))
}
