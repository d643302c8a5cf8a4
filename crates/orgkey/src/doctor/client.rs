//! The calls of the doctor. Each has a deadline, and a reply is read up to a limit.

use std::error::Error as _;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use orgkey_http::{Pinned, Unique};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use url::Url;

use super::secret::Secret;

/// For a call, and for the connection it may need. Longer than the layer waits, to see slow replies too.
const DEADLINE: Duration = Duration::from_secs(10);
/// As the verifier reads at most.
const MAX_BODY: usize = 64 * 1024;
/// As the reconciler reads at most.
const MAX_PAGE: usize = 4 * 1024 * 1024;

/// A client of one issuer.
pub(crate) struct Issuer {
    client: Client,
    origin: Url,
}

/// A complete reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) peer: Option<SocketAddr>,
    /// Before the request and after the headers of the reply.
    pub(crate) between: (SystemTime, SystemTime),
}

impl Reply {
    /// Returns the body, if it is a JSON object.
    pub(crate) fn json(&self) -> Option<serde_json::Map<String, Value>> {
        match serde_json::from_slice(&self.body) {
            Ok(Unique(Value::Object(members))) => Some(members),
            _ => None,
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let value = self.headers.get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    }
}

impl Issuer {
    /// Makes the client. It is the one that the verifier uses.
    pub(crate) fn new(origin: Url) -> Result<Self, String> {
        let pinned = Pinned {
            origin: &origin,
            connect_timeout: DEADLINE,
            certificates: &[],
            proxy: None,
        };
        let client = pinned.build().map_err(|error| error.problem.to_owned())?;
        Ok(Self { client, origin })
    }

    /// Sends a request without a credential.
    pub(crate) async fn hello(&self) -> Result<Reply, String> {
        let url = self.url("/.well-known/openid-configuration");
        send(self.client.get(url)).await
    }

    pub(crate) async fn token(
        &self,
        client_id: &str,
        secret: &Secret,
        audience: &str,
    ) -> Result<Reply, String> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair("client_id", client_id)
            .append_pair("client_secret", secret.expose())
            .append_pair("audience", audience)
            .finish();
        let request = self
            .client
            .post(self.url("/oauth2/token"))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form);
        send(request).await
    }

    pub(crate) async fn verify(&self, key: &Secret, token: &Secret) -> Result<Reply, String> {
        let body = json!({ "api_key": key.expose() }).to_string();
        let request = self
            .client
            .post(self.url("/api/v1/api_keys/verify"))
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        send(authorized(request, token)?).await
    }

    /// Sends a request for which only the token counts: the verifier's probe.
    pub(crate) async fn probe(&self, token: &Secret) -> Result<Reply, String> {
        let mut url = self.url("/api/v1/api_keys");
        url.set_query(Some("page_size=1"));
        send(authorized(self.client.get(url), token)?).await
    }

    /// Reads the record of a key.
    pub(crate) async fn record(&self, key_id: &str, token: &Secret) -> Result<Reply, String> {
        let mut url = self.url("/api/v1/api_keys");
        match url.path_segments_mut() {
            Ok(mut segments) => segments.push(key_id),
            Err(()) => return Err("the URL has no path".to_owned()),
        };
        send(authorized(self.client.get(url), token)?).await
    }

    /// Reads a page of the list of keys: those after this one.
    pub(crate) async fn list(&self, after: Option<&str>, token: &Secret) -> Result<Reply, String> {
        let mut url = self.url("/api/v1/api_keys");
        url.query_pairs_mut().append_pair("page_size", "500");
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("starting_after", after);
        }
        send_up_to(MAX_PAGE, authorized(self.client.get(url), token)?).await
    }

    /// Reads from the management API.
    pub(crate) async fn get(
        &self,
        path: &str,
        query: &[(&str, &str)],
        token: &Secret,
    ) -> Result<Reply, String> {
        let mut url = self.url(path);
        url.query_pairs_mut().extend_pairs(query);
        send(authorized(self.client.get(url), token)?).await
    }

    /// Records usage: the only call that changes something at the issuer.
    pub(crate) async fn record_usage(
        &self,
        agreement: &str,
        feature: &str,
        total: &str,
        token: &Secret,
    ) -> Result<Reply, String> {
        let body = json!({
            "customer_agreement_id": agreement,
            "billing_feature_code": feature,
            "meter_value": total,
            "meter_type_code": "absolute",
        });
        let request = self
            .client
            .post(self.url("/api/v1/billing/meter_usage"))
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string());
        send(authorized(request, token)?).await
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.origin.clone();
        url.set_path(path);
        url
    }
}

fn authorized(request: RequestBuilder, token: &Secret) -> Result<RequestBuilder, String> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))
        .map_err(|_| "the access token is no valid header value".to_owned())?;
    value.set_sensitive(true);
    Ok(request.header(AUTHORIZATION, value))
}

async fn send(request: RequestBuilder) -> Result<Reply, String> {
    send_up_to(MAX_BODY, request).await
}

async fn send_up_to(limit: usize, request: RequestBuilder) -> Result<Reply, String> {
    let before = SystemTime::now();
    let request = request.header(ACCEPT, "application/json").timeout(DEADLINE);
    let mut response = request.send().await.map_err(causes)?;
    let between = (before, SystemTime::now());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(causes)? {
        if body.len() + chunk.len() > limit {
            return Err(format!("the reply is longer than {} KiB", limit / 1024));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Reply {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        peer: response.remote_addr(),
        body,
        between,
    })
}

/// Returns the error with its causes, of which the innermost says most.
fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string does not fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
