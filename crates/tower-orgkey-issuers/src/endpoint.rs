//! One endpoint of an issuer, called by the pinned client.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use orgkey_http::Pinned;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue,
};
use reqwest::{Client, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower_orgkey::{ConfigError, MAX_KEY_LEN, VerifyError};
use url::Url;
use zeroize::Zeroizing;

/// The deadline of a call without the shorter one of a layer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// The longest body of a reply, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// An endpoint of an issuer, and the credentials for it.
///
/// The client is the one of the other verifiers: it follows no redirect, reads no proxy from the environment, retries nothing,
/// decodes no content encoding, keeps no cookies, and uses TLS 1.2 or later. A body is read up to 64 KiB. A call takes at most
/// 5 s; the layer sets a shorter deadline.
///
/// Cheap to clone; clones share the connections.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tower_orgkey::{ApiKey, Verification, Verifier, VerifyError};
/// use tower_orgkey_issuers::{Endpoint, fields};
///
/// #[derive(Serialize)]
/// struct Question<'a> {
///     key: &'a str,
/// }
///
/// #[derive(Deserialize)]
/// struct Answer {
///     is_valid: bool,
///     organization: Option<String>,
/// }
///
/// struct Acme(Endpoint);
///
/// impl Verifier for Acme {
///     async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
///         let reply = self.0.post(&Question { key: key.expose_secret() }).await?;
///         if reply.status() != 200 {
///             return Err(reply.cannot_tell());
///         }
///         let answer: Answer = reply.json()?;
///         if !answer.is_valid {
///             return Ok(Verification::invalid());
///         }
///         fields::verification(answer.organization.as_deref())
///     }
/// }
///
/// let endpoint = Endpoint::builder("http://127.0.0.1:4000/verify").bearer_token("s3cret").build()?;
/// let verifier = Acme(endpoint);
/// # Ok::<(), tower_orgkey::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    client: Client,
    url: Url,
    authorization: Option<HeaderValue>,
    environment: Option<String>,
}

impl Endpoint {
    /// Returns a builder for the endpoint at this URL, without credentials.
    pub fn builder(url: impl Into<String>) -> EndpointBuilder {
        EndpointBuilder {
            url: url.into(),
            authorization: Ok(None),
            environment: None,
            certificates: Vec::new(),
            allow_http: false,
            connect_timeout: Duration::from_millis(500),
        }
    }

    /// Posts JSON.
    ///
    /// # Errors
    ///
    /// [`unavailable`](VerifyError::unavailable) if there is no reply, and [`invalid_response`](VerifyError::invalid_response) for a
    /// 200 with a body of more than 64 KiB. With another status, such a body is empty.
    pub async fn post(&self, body: &impl Serialize) -> Result<Reply, VerifyError> {
        // Twice the longest key and the rest of the body: the vector does not grow, so it leaves no copy behind.
        let mut json = Zeroizing::new(Vec::with_capacity(2 * MAX_KEY_LEN + 1024));
        serde_json::to_writer(&mut *json, body).map_err(VerifyError::unavailable)?;
        self.send("application/json", Bytes::from_owner(json)).await
    }

    #[cfg(feature = "introspection")]
    pub(crate) async fn post_form(
        &self,
        name: &str,
        secret: &str,
        rest: &[(&str, &str)],
    ) -> Result<Reply, VerifyError> {
        let body = form(name, secret, rest);
        self.send("application/x-www-form-urlencoded", body).await
    }

    /// Returns an [identity](tower_orgkey::Verifier::identity) for a verifier over this endpoint with these settings: all that
    /// decide which keys are valid and to which organization they belong. Empty without an
    /// [environment](EndpointBuilder::environment).
    ///
    /// ```
    /// use tower_orgkey_issuers::Endpoint;
    ///
    /// let endpoint = Endpoint::builder("https://issuer.example/verify").environment("production").build()?;
    /// assert!(endpoint.identity(&["reports-api"]).contains("production"));
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn identity(&self, settings: &[&str]) -> String {
        let Some(environment) = self
            .0
            .environment
            .as_deref()
            .filter(|name| !name.is_empty())
        else {
            return String::new();
        };
        let mut identity = String::new();
        for part in [self.0.url.as_str(), environment].iter().chain(settings) {
            // The length stands before each text, so that two lists differ.
            let _ = writeln!(identity, "{}:{part}", part.len());
        }
        identity
    }

    async fn send(&self, media_type: &'static str, body: Bytes) -> Result<Reply, VerifyError> {
        let Inner {
            client,
            url,
            authorization,
            ..
        } = &*self.0;
        let mut request = client
            .post(url.clone())
            .header(ACCEPT, HeaderValue::from_static("application/json"))
            .header(CONTENT_TYPE, HeaderValue::from_static(media_type))
            .timeout(DEADLINE)
            .body(body);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = request.send().await.map_err(transport)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = orgkey_http::read_body(response, MAX_BODY).await;
        let body = match (body, status) {
            (Ok(Some(body)), _) => body,
            (Ok(None), StatusCode::OK) => {
                return Err(VerifyError::invalid_response(
                    "the reply is longer than 64 KiB",
                ));
            }
            (Err(error), StatusCode::OK) => return Err(transport(error)),
            // The status says enough, such as a 429 with the page of a proxy.
            _ => Zeroizing::default(),
        };
        Ok(Reply {
            status,
            headers,
            body,
        })
    }
}

/// Returns a form whose memory is zeroized.
#[cfg(feature = "introspection")]
fn form(name: &str, secret: &str, rest: &[(&str, &str)]) -> Bytes {
    // Encoding takes at most three bytes per byte, so the buffer does not grow.
    let buffer = String::with_capacity(3 * secret.len() + 256);
    let mut form = form_urlencoded::Serializer::new(buffer);
    form.append_pair(name, secret).extend_pairs(rest);
    Bytes::from_owner(Zeroizing::new(form.finish().into_bytes()))
}

fn transport(error: reqwest::Error) -> VerifyError {
    VerifyError::unavailable(error.without_url())
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("url", &self.0.url.as_str())
            .finish_non_exhaustive()
    }
}

/// A reply of an [`Endpoint`]. `Debug` shows its status only.
pub struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Zeroizing<Vec<u8>>,
}

impl Reply {
    /// Returns the status.
    pub fn status(&self) -> u16 {
        self.status.as_u16()
    }

    /// Deserializes the body, which must be a JSON object of the media type `application/json`.
    ///
    /// # Errors
    ///
    /// [`invalid_response`](VerifyError::invalid_response), which quotes nothing of the body.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, VerifyError> {
        // serde also deserializes a struct from an array.
        let is_object = self.body.trim_ascii_start().starts_with(b"{");
        if !orgkey_http::is_json(&self.headers)
            || self.headers.contains_key(CONTENT_ENCODING)
            || !is_object
        {
            return Err(VerifyError::invalid_response(
                "the reply is not a JSON object of the media type `application/json`",
            ));
        }
        serde_json::from_slice(&self.body).map_err(|_| {
            VerifyError::invalid_response("the reply is not JSON of the expected form")
        })
    }

    /// Returns the error for a status to which the issuer gives no other meaning.
    ///
    /// 401 and 403 are [`misconfigured`](VerifyError::misconfigured), 429 is [`throttled`](VerifyError::throttled) with
    /// `RateLimit-Reset` or `Retry-After` in whole seconds, and all others are [`unavailable`](VerifyError::unavailable).
    pub fn cannot_tell(&self) -> VerifyError {
        let text = format!("the issuer answers with status {}", self.status.as_u16());
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => {
                VerifyError::throttled(orgkey_http::retry_after(&self.headers))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => VerifyError::misconfigured(text),
            _ => VerifyError::unavailable(text),
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("status", &self.status.as_u16())
            .finish_non_exhaustive()
    }
}

/// Configures and builds an [`Endpoint`].
#[must_use]
pub struct EndpointBuilder {
    url: String,
    authorization: Result<Option<HeaderValue>, ConfigError>,
    environment: Option<String>,
    certificates: Vec<Vec<u8>>,
    allow_http: bool,
    connect_timeout: Duration,
}

impl EndpointBuilder {
    /// Presents a bearer token.
    pub fn bearer_token(mut self, token: impl AsRef<str>) -> Self {
        self.authorization = orgkey_http::bearer(token.as_ref())
            .map(Some)
            .ok_or_else(|| {
                ConfigError::new("bearer_token", "must be visible ASCII, and not empty")
            });
        self
    }

    /// Presents a client's id and secret by HTTP Basic authentication, both form-urlencoded first (RFC 6749 §2.3.1).
    #[cfg(feature = "introspection")]
    pub fn client_credentials(
        mut self,
        client_id: impl AsRef<str>,
        client_secret: impl AsRef<str>,
    ) -> Self {
        self.authorization = basic(client_id.as_ref(), client_secret.as_ref())
            .map(Some)
            .ok_or_else(|| ConfigError::new("client_credentials", "must not be empty"));
        self
    }

    /// Names the environment of the issuer that the credentials are for, such as `production`. Needed only in a fleet: nodes
    /// share results if their [verifiers](tower_orgkey::Verifier::identity) have the same URL, settings and environment. The
    /// credentials do not count, so those of two environments need two names.
    pub fn environment(mut self, name: impl Into<String>) -> Self {
        self.environment = Some(name.into());
        self
    }

    /// Adds trusted root certificates for TLS, one or more in PEM. May be called more than once.
    pub fn add_root_certificate_pem(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.certificates.push(pem.as_ref().to_vec());
        self
    }

    /// Permits `http://` on any host. By default, only on loopback.
    ///
    /// # Warning
    ///
    /// All keys and the credentials of this service are then sent unencrypted.
    pub fn dangerously_allow_http(mut self) -> Self {
        self.allow_http = true;
        self
    }

    /// Sets the timeout for connecting, including the TLS handshake. Not zero; 0.5 s unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Builds the endpoint. Needs no runtime.
    ///
    /// # Errors
    ///
    /// Names the invalid setting, never its value:
    ///
    /// * `url`: not an absolute `http` or `https` URL, or one with a query, fragment or user; `http` on a host other than
    ///   loopback; `https` without a TLS feature,
    /// * `bearer_token`, `client_credentials`, `add_root_certificate_pem`, `connect_timeout`: empty, zero or invalid.
    pub fn build(self) -> Result<Endpoint, ConfigError> {
        let url = orgkey_http::endpoint(&self.url, self.allow_http)
            .map_err(|problem| ConfigError::new("url", problem))?;
        let authorization = self.authorization?;
        if self.connect_timeout.is_zero() {
            return Err(ConfigError::new("connect_timeout", "must not be zero"));
        }
        let pinned = Pinned {
            origin: &url,
            connect_timeout: self.connect_timeout,
            certificates: &self.certificates,
            proxy: None,
        };
        let client = pinned
            .build()
            .map_err(|error| ConfigError::new(error.field, error.problem))?;
        Ok(Endpoint(Arc::new(Inner {
            client,
            url,
            authorization,
            environment: self.environment,
        })))
    }
}

/// Returns `Basic …`, or `None` if one of the two is empty.
#[cfg(feature = "introspection")]
fn basic(id: &str, secret: &str) -> Option<HeaderValue> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    if id.is_empty() || secret.is_empty() {
        return None;
    }
    let mut pair = Zeroizing::new(String::with_capacity(3 * (id.len() + secret.len()) + 1));
    pair.extend(form_urlencoded::byte_serialize(id.as_bytes()));
    pair.push(':');
    pair.extend(form_urlencoded::byte_serialize(secret.as_bytes()));
    let mut value = Zeroizing::new(String::with_capacity(6 + pair.len().div_ceil(3) * 4));
    value.push_str("Basic ");
    STANDARD.encode_string(pair.as_bytes(), &mut value);
    let owned = Zeroizing::new(value.as_bytes().to_vec());
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(owned)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl fmt::Debug for EndpointBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointBuilder").finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "introspection"))]
mod tests {
    use super::*;

    #[test]
    fn basic_credentials_are_form_urlencoded() {
        let header = basic("a:b c", "p%+é").unwrap();
        assert!(header.is_sensitive());
        // The base64 of `a%3Ab+c:p%25%2B%C3%A9`.
        let expected = "Basic YSUzQWIrYzpwJTI1JTJCJUMzJUE5";
        assert_eq!(header.to_str().unwrap(), expected);
        assert!(basic("", "secret").is_none() && basic("id", "").is_none());
    }
}
