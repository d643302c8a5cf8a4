//! Holds the emulator to Kinde's published contract, field by field, and shows that each of its switches does what it says.
//!
//! The client here is a plain HTTP client that knows nothing of this crate.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests that panics is a test that fails"
)]

mod contract;
mod faults;
mod handle;
mod load;
#[cfg(any(feature = "rustls", feature = "native-tls"))]
mod tls;
mod tokens;

use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tower_orgkey::emulator::KindeEmulator;

/// A caller with a token.
pub(crate) struct Caller {
    pub(crate) http: reqwest::Client,
    pub(crate) url: String,
    pub(crate) token: Option<String>,
}

impl Caller {
    /// With a token that may do everything.
    pub(crate) fn new(emulator: &KindeEmulator) -> Self {
        Self::with_scopes(
            emulator,
            [
                "read:api_keys",
                "create:api_keys",
                "update:api_keys",
                "delete:api_keys",
            ],
        )
    }

    pub(crate) fn with_scopes<const N: usize>(emulator: &KindeEmulator, scopes: [&str; N]) -> Self {
        Self {
            token: Some(emulator.issue_token(scopes)),
            ..Self::without_token(emulator)
        }
    }

    pub(crate) fn without_token(emulator: &KindeEmulator) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        Self {
            http,
            url: emulator.issuer_url().to_owned(),
            token: None,
        }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) async fn verify(&self, secret: &str) -> Response {
        self.try_verify(secret).await.unwrap()
    }

    pub(crate) async fn try_verify(&self, secret: &str) -> reqwest::Result<Response> {
        self.request(Method::POST, "/api/v1/api_keys/verify")
            .json(&json!({ "api_key": secret }))
            .send()
            .await
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub(crate) async fn send(&self, method: Method, path: &str) -> Response {
        self.request(method, path).send().await.unwrap()
    }

    pub(crate) async fn create(&self, body: &Value) -> Response {
        self.request(Method::POST, "/api/v1/api_keys")
            .json(body)
            .send()
            .await
            .unwrap()
    }

    /// Posts a form to the token endpoint.
    pub(crate) async fn form(&self, fields: &[(&str, &str)]) -> Response {
        let body: Vec<String> = fields
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        self.http
            .post(format!("{}/oauth2/token", self.url))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.join("&"))
            .send()
            .await
            .unwrap()
    }

    /// Asks for a token with the right credentials.
    pub(crate) async fn fetch_token(&self, emulator: &KindeEmulator) -> Response {
        self.form(&[
            ("grant_type", "client_credentials"),
            ("client_id", &emulator.client_id()),
            ("client_secret", &emulator.client_secret()),
            ("audience", &emulator.audience()),
        ])
        .await
    }
}

/// The status and the body, which must be JSON of the media type that Kinde sends.
pub(crate) async fn read(response: Response) -> (u16, Value) {
    assert_eq!(
        response.headers()["content-type"],
        "application/json; charset=utf-8"
    );
    let status = response.status().as_u16();
    (status, response.json().await.unwrap())
}

/// The names of an object's members, in order.
pub(crate) fn members(object: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    names
}

/// `errors` as an array of one error with a code and a message.
#[track_caller]
pub(crate) fn assert_errors_array(body: &Value) {
    assert_eq!(members(body), ["errors"]);
    let errors = body["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 1);
    assert_eq!(members(&errors[0]), ["code", "message"]);
    assert!(errors[0]["code"].is_string() && errors[0]["message"].is_string());
}

/// `errors` as an object.
#[track_caller]
pub(crate) fn assert_errors_object(body: &Value, code: &str) {
    assert_eq!(members(body), ["errors"]);
    assert_eq!(members(&body["errors"]), ["code", "message"]);
    assert_eq!(body["errors"]["code"], code);
}

/// `2024-11-18T13:32:03+11`.
#[track_caller]
pub(crate) fn assert_odd_timestamp(value: &Value) {
    let text = value.as_str().unwrap();
    assert_eq!(text.len(), "2024-11-18T13:32:03+11".len(), "{text}");
    assert!(text.ends_with("+11"), "{text}");
    assert_eq!(text.as_bytes()[10], b'T', "{text}");
}
