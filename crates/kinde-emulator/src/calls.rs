//! What an emulator remembers of the calls it got.

use std::collections::BTreeMap;

use http::header::{AUTHORIZATION, COOKIE, HeaderValue, PROXY_AUTHORIZATION};
use http::request::Parts;
use http::{HeaderMap, Method, Uri};

use super::endpoint::Endpoint;
use super::tokens::essence;

/// How often each endpoint was called, and how it answered, since the start or the last
/// [`reset_calls`](super::KindeEmulator::reset_calls).
///
/// ```
/// # use tower_orgkey::emulator::{Endpoint, KindeEmulator};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let emulator = KindeEmulator::start().await?;
/// // … let your application do something …
/// assert_eq!(emulator.calls().verify.total, 0);
/// assert_eq!(emulator.calls().of(Endpoint::Token).ok, 0);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Calls {
    /// `POST /oauth2/token`.
    pub token: EndpointCalls,
    /// `POST /api/v1/api_keys/verify`.
    pub verify: EndpointCalls,
    /// `GET /api/v1/api_keys`.
    pub list_keys: EndpointCalls,
    /// `GET /api/v1/api_keys/{key_id}`.
    pub get_key: EndpointCalls,
    /// `POST /api/v1/api_keys`.
    pub create_key: EndpointCalls,
    /// `PUT /api/v1/api_keys/{key_id}`.
    pub rotate_key: EndpointCalls,
    /// `DELETE /api/v1/api_keys/{key_id}`.
    pub delete_key: EndpointCalls,
    /// Calls of anything else.
    pub unrouted: u64,
    /// Connections that were accepted, whatever became of them.
    pub connections: u64,
    /// Connections on which no TLS session came about: the client did not trust the certificate, say.
    pub failed_handshakes: u64,
    /// Connections that an outage refused or cut.
    pub cut_connections: u64,
}

/// How often one endpoint was called, and how it answered.
///
/// `total` and `faulted` count a call when it arrives; the others when it is answered by the emulator's own lights. A call
/// that a fault merely delays or spoils counts both as `faulted` and as what the answer would have been.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointCalls {
    /// All calls.
    pub total: u64,
    /// Answered with what was asked for. Of verify: the key is good.
    pub ok: u64,
    /// Verify alone: the key is not good, in whatever shape that was said.
    pub key_rejected: u64,
    /// The bearer token, or at the token endpoint the client's credentials, were refused.
    pub token_refused: u64,
    /// The request made no sense.
    pub bad_request: u64,
    /// No such key id.
    pub not_found: u64,
    /// An injected [`Fault`](super::Fault) fired.
    pub faulted: u64,
    /// Calls that have arrived and are not answered yet.
    pub in_flight: u64,
    /// The most of them at any one time.
    pub most_in_flight: u64,
}

/// How a call was answered by the emulator's own lights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Ok,
    KeyRejected,
    TokenRefused,
    BadRequest,
    NotFound,
}

impl Calls {
    /// The counts of this endpoint.
    pub fn of(&self, endpoint: Endpoint) -> &EndpointCalls {
        match endpoint {
            Endpoint::Token => &self.token,
            Endpoint::Verify => &self.verify,
            Endpoint::ListKeys => &self.list_keys,
            Endpoint::GetKey => &self.get_key,
            Endpoint::CreateKey => &self.create_key,
            Endpoint::RotateKey => &self.rotate_key,
            Endpoint::DeleteKey => &self.delete_key,
        }
    }

    /// The calls of all endpoints together.
    pub fn total(&self) -> u64 {
        let routed: u64 = Endpoint::ALL.iter().map(|at| self.of(*at).total).sum();
        routed + self.unrouted
    }

    pub(super) fn of_mut(&mut self, endpoint: Endpoint) -> &mut EndpointCalls {
        match endpoint {
            Endpoint::Token => &mut self.token,
            Endpoint::Verify => &mut self.verify,
            Endpoint::ListKeys => &mut self.list_keys,
            Endpoint::GetKey => &mut self.get_key,
            Endpoint::CreateKey => &mut self.create_key,
            Endpoint::RotateKey => &mut self.rotate_key,
            Endpoint::DeleteKey => &mut self.delete_key,
        }
    }

    /// Begins anew. What is in flight still is.
    pub(super) fn reset(&mut self) {
        let mut fresh = Self::default();
        for endpoint in Endpoint::ALL {
            let in_flight = self.of(endpoint).in_flight;
            let counts = fresh.of_mut(endpoint);
            counts.in_flight = in_flight;
            counts.most_in_flight = in_flight;
        }
        *self = fresh;
    }
}

impl EndpointCalls {
    pub(super) fn arrived(&mut self) {
        self.total += 1;
        self.in_flight += 1;
        self.most_in_flight = self.most_in_flight.max(self.in_flight);
    }

    pub(super) fn answered(&mut self, outcome: Outcome) {
        let count = match outcome {
            Outcome::Ok => &mut self.ok,
            Outcome::KeyRejected => &mut self.key_rejected,
            Outcome::TokenRefused => &mut self.token_refused,
            Outcome::BadRequest => &mut self.bad_request,
            Outcome::NotFound => &mut self.not_found,
        };
        *count += 1;
    }
}

/// A request that an emulator got, without the secrets in it.
///
/// ```
/// # use tower_orgkey::emulator::{Endpoint, KindeEmulator};
/// # async fn assert_what_was_sent(emulator: &KindeEmulator) {
/// let seen = emulator.last_request(Endpoint::Token).expect("a token was fetched");
/// assert_eq!(seen.field("grant_type"), Some("client_credentials"));
/// assert_eq!(seen.field("client_secret"), Some("[redacted]"));
/// assert_eq!(seen.header("referer"), None);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SeenRequest {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    fields: BTreeMap<String, String>,
}

/// What stands where a secret stood.
const REDACTED: &str = "[redacted]";

impl SeenRequest {
    pub(super) fn new(parts: &Parts, body: &[u8]) -> Self {
        let mut headers = parts.headers.clone();
        for name in [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE] {
            if let http::header::Entry::Occupied(mut values) = headers.entry(name) {
                for value in values.iter_mut() {
                    *value = redacted(value);
                }
            }
        }
        let content_type = headers
            .get(http::header::CONTENT_TYPE)
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

    /// The method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The target as it came: path and query.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// All headers; of `Authorization` and `Cookie` nothing but the scheme.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The first header of this name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A field of the form, or of the JSON object, in the body; `[redacted]` for the secrets among them.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }
}

/// The scheme of a credential, if it has one.
fn redacted(value: &HeaderValue) -> HeaderValue {
    value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .and_then(|(scheme, _)| HeaderValue::try_from(format!("{scheme} {REDACTED}")).ok())
        .unwrap_or(HeaderValue::from_static(REDACTED))
}
