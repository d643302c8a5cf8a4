//! The calls to Kinde, over a client that does nothing on its own.
//!
//! It follows no redirect (the key or our token would go to another host), reads no proxy from the environment (both
//! would pass through it), retries nothing (the layer has a budget for that), decodes no encoding (64 KiB could unfold
//! into gigabytes), keeps no cookie and sends no referrer. What the user's other crates switch on in the shared HTTP
//! library is switched off here by name.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::status::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, RequestBuilder, Response};
use serde::Serialize;
use url::Url;
use zeroize::Zeroizing;

use super::management::ManagementError;
use super::wire::{MAX_BODY, MAX_PAGE, Reply};
use crate::identifier::KeyId;
use crate::key::ApiKey;
use crate::telemetry::{self, causes};
use crate::verify::VerifyError;

/// The deadlines of calls without the shorter ones of a layer.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(5);
const TOKEN_TIMEOUT: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
const KEY_TIMEOUT: Duration = Duration::from_secs(2);
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
const MANAGE_TIMEOUT: Duration = Duration::from_secs(10);

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");

/// RFC 3986 §2.3: all but the unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Kinde's endpoints.
pub(super) struct Http {
    client: Client,
    verify: Url,
    probe: Url,
    keys: Url,
    token: Url,
    /// Whether the last connection failed for its certificate, so that it is logged once.
    is_distrusted: AtomicBool,
}

impl Http {
    /// `issuer` has no path of its own.
    pub(super) fn new(client: Client, issuer: &Url) -> Self {
        let endpoint = |path: &str| {
            let mut url = issuer.clone();
            url.set_path(path);
            url
        };
        let keys = endpoint("/api/v1/api_keys");
        let mut probe = keys.clone();
        probe.set_query(Some("page_size=1"));
        Self {
            client,
            verify: endpoint("/api/v1/api_keys/verify"),
            probe,
            keys,
            token: endpoint("/oauth2/token"),
            is_distrusted: AtomicBool::new(false),
        }
    }

    pub(super) async fn verify(
        &self,
        key: &ApiKey,
        token: Option<&HeaderValue>,
    ) -> Result<Reply, VerifyError> {
        #[derive(Serialize)]
        struct Body<'a> {
            api_key: &'a str,
        }

        let body = Body {
            api_key: key.expose_secret(),
        };
        // Twice the key and the rest of the body: the vector never grows, so it leaves no copy behind.
        let mut json = Zeroizing::new(Vec::with_capacity(64 + 2 * body.api_key.len()));
        serde_json::to_writer(&mut *json, &body).map_err(VerifyError::unavailable)?;
        let mut request = self
            .client
            .post(self.verify.clone())
            .header(CONTENT_TYPE, JSON)
            .timeout(VERIFY_TIMEOUT)
            .body(Bytes::from_owner(json));
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let response = self.send(request).await?;
        // Only this reply is about one key.
        let too_long: TooLong = match response.status() {
            StatusCode::OK => VerifyError::invalid_response,
            _ => VerifyError::unavailable,
        };
        read_body(response, MAX_BODY, too_long).await
    }

    /// Sends a request that needs only the access token to be accepted. Only the status is read.
    pub(super) async fn probe(&self, token: &HeaderValue) -> Result<Reply, VerifyError> {
        let request = self
            .client
            .get(self.probe.clone())
            .header(AUTHORIZATION, token)
            .timeout(PROBE_TIMEOUT);
        let response = self.send(request).await?;
        Ok(head(&response))
    }

    /// The key's own record.
    pub(super) async fn key(
        &self,
        key_id: &KeyId,
        token: Option<&HeaderValue>,
    ) -> Result<Reply, VerifyError> {
        let mut request = self.client.get(self.key_url(key_id)?).timeout(KEY_TIMEOUT);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        self.read(request).await
    }

    /// A page of the active keys of organizations, after this one or from the beginning.
    pub(super) async fn list(
        &self,
        page_size: u32,
        after: Option<&KeyId>,
        token: &HeaderValue,
    ) -> Result<Reply, VerifyError> {
        let mut url = self.keys.clone();
        url.query_pairs_mut()
            .append_pair("key_type", "organization")
            .append_pair("status", "active")
            .append_pair("page_size", &page_size.to_string())
            .extend_pairs(after.map(|id| ("starting_after", id.as_str())));
        let request = self
            .client
            .get(url)
            .header(AUTHORIZATION, token)
            .timeout(LIST_TIMEOUT);
        let response = self.send(request).await?;
        read_body(response, MAX_PAGE, VerifyError::unavailable).await
    }

    fn key_url(&self, key_id: &KeyId) -> Result<Url, VerifyError> {
        // In any spelling, these two are steps in a path and not names (WHATWG URL, "double-dot path segment").
        if matches!(key_id.as_str(), "." | "..") {
            return Err(VerifyError::invalid_response(
                "the key's id cannot be used in a path",
            ));
        }
        let mut path = format!("{}/", self.keys.path());
        path.extend(utf8_percent_encode(key_id.as_str(), SEGMENT));
        let mut url = self.keys.clone();
        url.set_path(&path);
        Ok(url)
    }

    pub(super) async fn token(&self, form: Bytes) -> Result<Reply, VerifyError> {
        let request = self
            .client
            .post(self.token.clone())
            .header(CONTENT_TYPE, FORM)
            .timeout(TOKEN_TIMEOUT)
            .body(form);
        self.read(request).await
    }

    /// Any other call of the management API. The path begins with a slash and is not encoded.
    pub(super) async fn manage(
        &self,
        path: &str,
        query: &[(&str, &str)],
        json: Option<&[u8]>,
        token: &HeaderValue,
    ) -> Result<Reply, ManagementError> {
        let mut url = self.keys.clone();
        url.set_path(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = match json {
            None => self.client.get(url),
            Some(json) => {
                let request = self.client.post(url).header(CONTENT_TYPE, JSON);
                request.body(json.to_vec())
            }
        };
        let request = request.header(AUTHORIZATION, token).timeout(MANAGE_TIMEOUT);
        let response = self.try_send(request).await;
        let response = response.map_err(|error| ManagementError {
            may_have_arrived: !error.is_connect(),
            source: transport(error),
        })?;
        read_body(response, MAX_BODY, VerifyError::unavailable)
            .await
            .map_err(|source| ManagementError {
                may_have_arrived: true,
                source,
            })
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, VerifyError> {
        self.try_send(request).await.map_err(transport)
    }

    async fn try_send(&self, request: RequestBuilder) -> reqwest::Result<Response> {
        let sent = request.header(ACCEPT, JSON).send().await;
        match sent {
            Ok(response) => {
                self.is_distrusted.store(false, Ordering::Relaxed);
                Ok(response)
            }
            Err(error) => {
                let is_certificate = error.is_connect() && is_about_certificates(&error);
                if is_certificate && !self.is_distrusted.swap(true, Ordering::Relaxed) {
                    // The sources name hosts and certificates, never what was sent.
                    telemetry::kinde::certificate_not_trusted(causes(&error).as_deref());
                }
                Err(error)
            }
        }
    }

    /// Sends, and reads the body of a reply whose body counts.
    async fn read(&self, request: RequestBuilder) -> Result<Reply, VerifyError> {
        let response = self.send(request).await?;
        read_body(response, MAX_BODY, VerifyError::unavailable).await
    }
}

/// Makes the error for a body that is too long.
type TooLong = fn(String) -> VerifyError;

/// Reads the body, where it counts, up to `limit` bytes.
async fn read_body(
    response: Response,
    limit: usize,
    too_long: TooLong,
) -> Result<Reply, VerifyError> {
    let mut reply = head(&response);
    if !has_body_to_read(reply.status) {
        return Ok(reply);
    }
    let body = orgkey_http::read_body(response, limit).await;
    reply.body = body
        .map_err(transport)?
        .ok_or_else(|| too_long(format!("the reply is longer than {} KiB", limit / 1024)))?;
    Ok(reply)
}

/// Returns whether the body is needed, or has to be read so that the connection is reused after a reply to an invalid key.
fn has_body_to_read(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::OK
            | StatusCode::BAD_REQUEST
            | StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
    )
}

fn head(response: &Response) -> Reply {
    Reply {
        status: response.status(),
        headers: response.headers().clone(),
        body: Zeroizing::default(),
    }
}

fn transport(error: reqwest::Error) -> VerifyError {
    VerifyError::unavailable(error.without_url())
}

/// Searches the text of the error, because this crate does not name the types of the TLS libraries. Decides only on an event.
fn is_about_certificates(error: &reqwest::Error) -> bool {
    let causes = causes(error).unwrap_or_default().to_ascii_lowercase();
    causes.contains("certificate") || causes.contains("not trusted")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(key_id: &str) -> Option<String> {
        let issuer = Url::parse("https://acme.kinde.com").unwrap();
        let http = Http::new(Client::new(), &issuer);
        let url = http.key_url(&KeyId::new(key_id).unwrap()).ok()?;
        assert_eq!(url.host_str(), Some("acme.kinde.com"));
        assert_eq!((url.query(), url.fragment()), (None, None));
        Some(url.path().to_owned())
    }

    #[test]
    fn a_key_id_is_one_segment_of_a_path_whatever_it_holds() {
        let path = |id| path_of(id).unwrap();
        assert_eq!(path("api_key_01"), "/api/v1/api_keys/api_key_01");
        assert_eq!(path("../verify"), "/api/v1/api_keys/..%2Fverify");
        assert_eq!(path("a/b?c#d%2e"), "/api/v1/api_keys/a%2Fb%3Fc%23d%252e");
        assert_eq!(path("%2e%2e"), "/api/v1/api_keys/%252e%252e");
        assert_eq!(path("\\\\host\\x"), "/api/v1/api_keys/%5C%5Chost%5Cx");
        assert_eq!(path("..."), "/api/v1/api_keys/...");
        assert_eq!(path_of("."), None);
        assert_eq!(path_of(".."), None);
    }
}
