//! Compares the emulator with Kinde's published contract, and tests each of its switches, with a plain HTTP client.

#![allow(clippy::unwrap_used, reason = "a test may fail on a missing value")]

mod billing;
mod control;
mod faults;
mod handle;
mod keys;
mod load;
#[cfg(feature = "tls")]
mod tls;
mod tokens;
mod verify;

use kinde_emulator::KindeEmulator;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

/// A client of the emulator, with a token.
pub(crate) struct Caller {
    pub(crate) http: reqwest::Client,
    pub(crate) url: String,
    pub(crate) token: Option<String>,
}

impl Caller {
    /// A caller with all scopes.
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

    /// Requests a token with the valid credentials.
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

/// Returns the status and the body. The body must be JSON with the media type that Kinde sends.
pub(crate) async fn read(response: Response) -> (u16, Value) {
    assert_eq!(
        response.headers()["content-type"],
        "application/json; charset=utf-8"
    );
    let status = response.status().as_u16();
    (status, response.json().await.unwrap())
}

/// Returns the sorted names of an object's members.
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

/// Asserts that `errors` is an array of one error with a code and a message.
#[track_caller]
pub(crate) fn assert_errors_array(body: &Value) {
    assert_eq!(members(body), ["errors"]);
    let errors = body["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 1);
    assert_eq!(members(&errors[0]), ["code", "message"]);
    assert!(errors[0]["code"].is_string() && errors[0]["message"].is_string());
}

/// Asserts that `errors` is an object with this code.
#[track_caller]
pub(crate) fn assert_errors_object(body: &Value, code: &str) {
    assert_eq!(members(body), ["errors"]);
    assert_eq!(members(&body["errors"]), ["code", "message"]);
    assert_eq!(body["errors"]["code"], code);
}

/// Asserts that a timestamp has the form `2024-11-18T13:32:03+11`.
#[track_caller]
pub(crate) fn assert_timestamp(value: &Value) {
    let text = value.as_str().unwrap();
    assert_eq!(text.len(), "2024-11-18T13:32:03+11".len(), "{text}");
    assert!(text.ends_with("+11"), "{text}");
    assert_eq!(text.as_bytes()[10], b'T', "{text}");
}

/// Asserts that an id has the form `api_key_` and 32 hexadecimal digits.
#[track_caller]
pub(crate) fn assert_key_id(id: &str) {
    let digits = id.strip_prefix("api_key_").unwrap();
    assert_eq!(digits.len(), 32);
    assert!(
        digits
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    );
}
