//! The kit finds verifiers that break a guarantee.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde::Deserialize;
use serde_json::{Value, json};
use tower_orgkey::{ApiKey, OrgCode, Verification, Verifier, VerifyError, verifier_fn};
use tower_orgkey_issuers::conformance::{
    Condition, Guarantee, IssuerUnderTest, Report, check_verifier,
};
use tower_orgkey_issuers::{Endpoint, Reply, fields};

use crate::stub::Request;
use crate::vendor::{Vendor, member};

/// Keys in memory.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    keys: HashMap<String, String>,
    issued: usize,
    condition: Option<Condition>,
}

impl IssuerUnderTest for Table {
    async fn issue(&mut self, organization: &str) -> ApiKey {
        let mut state = self.0.lock().unwrap();
        state.issued += 1;
        let key = format!("k_test_{:08}", state.issued);
        state.keys.insert(key.clone(), organization.to_owned());
        ApiKey::parse(&key).unwrap()
    }

    async fn revoke(&mut self, key: &ApiKey) {
        self.0.lock().unwrap().keys.remove(key.expose_secret());
    }

    async fn set(&mut self, condition: Condition) -> bool {
        self.0.lock().unwrap().condition = Some(condition);
        matches!(
            condition,
            Condition::Normal | Condition::Down | Condition::Throttled
        )
    }
}

impl Table {
    /// A verifier that is right in normal times, and returns this in a fault.
    fn verifier(
        &self,
        in_fault: fn(&ApiKey) -> Result<Verification, VerifyError>,
        organization: fn(&str) -> &str,
    ) -> impl Verifier + use<> {
        let table = self.clone();
        verifier_fn(move |key| {
            let state = table.0.lock().unwrap();
            let result = match state.keys.get(key.expose_secret()) {
                _ if state.condition != Some(Condition::Normal) => in_fault(&key),
                Some(org) => Ok(Verification::of_organization(
                    OrgCode::new(organization(org)).unwrap(),
                )),
                None => Ok(Verification::invalid()),
            };
            async { result }
        })
    }
}

async fn check(
    in_fault: fn(&ApiKey) -> Result<Verification, VerifyError>,
    organization: fn(&str) -> &str,
) -> Report {
    let mut table = Table::default();
    let verifier = table.verifier(in_fault, organization);
    check_verifier(verifier, &mut table).await
}

#[tokio::test]
async fn outage_as_invalid_is_found() {
    let report = check(|_| Ok(Verification::invalid()), |org| org).await;
    report.assert_except(&[
        Guarantee::KnownKeysKept,
        Guarantee::NewKeysUnavailable,
        Guarantee::FailuresClassified,
    ]);
    assert!(!report.holds(Guarantee::KnownKeysKept, Condition::Down));
    assert!(
        !report.holds(Guarantee::KnownKeysKept, Condition::Slow),
        "not checked"
    );
}

#[tokio::test]
async fn wrong_kind_of_failure_is_found() {
    let report = check(|_| Err(VerifyError::unavailable("down")), |org| org).await;
    report.assert_except(&[Guarantee::FailuresClassified]);
    assert!(report.holds(Guarantee::FailuresClassified, Condition::Down));
    assert!(!report.holds(Guarantee::FailuresClassified, Condition::Throttled));
}

#[tokio::test]
async fn key_in_an_error_is_found() {
    let leaking = |key: &ApiKey| Err(VerifyError::unavailable(key.expose_secret().to_owned()));
    let report = check(leaking, |org| org).await;
    report.assert_except(&[Guarantee::KeysSecret, Guarantee::FailuresClassified]);
}

#[tokio::test]
async fn one_organization_for_two_is_found() {
    let report = check(
        |_| Err(VerifyError::unavailable("down")),
        |_| "org_conformance",
    )
    .await;
    assert!(
        !report.holds(Guarantee::ValidKeysAccepted, Condition::Normal),
        "{report}"
    );
}

#[tokio::test]
async fn answer_of_a_cache_is_found() {
    let remembered: Arc<Mutex<HashMap<String, Verification>>> = Arc::default();
    let mut table = Table::default();
    let verifier = Arc::new(table.verifier(|_| Err(VerifyError::unavailable("down")), |org| org));
    let caching = verifier_fn(move |key| {
        let (remembered, verifier) = (Arc::clone(&remembered), Arc::clone(&verifier));
        async move {
            let hit = remembered.lock().unwrap().get(key.expose_secret()).cloned();
            if let Some(hit) = hit {
                return Ok(hit);
            }
            let result = verifier.verify(&key).await?;
            let secret = key.expose_secret().to_owned();
            remembered.lock().unwrap().insert(secret, result.clone());
            Ok(result)
        }
    });
    let report = check_verifier(caching, &mut table).await;
    assert!(
        !report.holds(Guarantee::RevokedKeysRejected, Condition::Normal),
        "{report}"
    );
    assert!(!report.holds(Guarantee::LoneRevokedKeysRejected, Condition::Normal));
    assert!(
        !report.holds(Guarantee::FailuresClassified, Condition::Down),
        "{report}"
    );
}

/// A verifier over the client of this crate, and how it reads replies.
struct Over {
    endpoint: Endpoint,
    read: fn(&Reply) -> Result<Verification, VerifyError>,
}

#[derive(Deserialize)]
struct Lenient {
    #[serde(default)]
    org: Option<String>,
}

impl Lenient {
    fn verification(self) -> Result<Verification, VerifyError> {
        self.org.map_or(Ok(Verification::invalid()), |org| {
            fields::verification(Some(&org))
        })
    }
}

#[derive(Deserialize)]
struct Strict {
    #[serde(deserialize_with = "Option::deserialize")]
    org: Option<String>,
}

impl Verifier for Over {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let value = key.expose_secret();
        (self.read)(&self.endpoint.post(&json!({ "value": value })).await?)
    }
}

async fn check_over(read: fn(&Reply) -> Result<Verification, VerifyError>) -> Report {
    let about = |_: &str, organization: Option<&str>| (200, json!({ "org": organization }));
    let mut vendor = Vendor::start("k_", |request| member(request, "value"), about, None).await;
    let endpoint = Endpoint::builder(vendor.url("/verify")).build().unwrap();
    check_verifier(Over { endpoint, read }, &mut vendor).await
}

#[tokio::test]
async fn error_of_the_issuer_as_invalid_is_found() {
    let report = check_over(|reply| match reply.status() {
        200 => {
            let Strict { org } = reply.json()?;
            Lenient { org }.verification()
        }
        500 | 503 => Ok(Verification::invalid()),
        _ => Err(reply.cannot_tell()),
    });
    let report = report.await;
    assert!(!report.holds(Guarantee::KnownKeysKept, Condition::ServerError));
    let mut broken = report.broken();
    assert!(
        broken.all(|check| check.condition == Condition::ServerError),
        "{report}"
    );
}

/// Takes these statuses for the answer "invalid".
async fn check_invalid_at<const ONE: u16, const OTHER: u16>() -> Report {
    let read = |reply: &Reply| match reply.status() {
        200 => {
            let Strict { org } = reply.json()?;
            Lenient { org }.verification()
        }
        status if status == ONE || status == OTHER => Ok(Verification::invalid()),
        _ => Err(reply.cannot_tell()),
    };
    check_over(read).await
}

#[tokio::test]
async fn page_of_a_proxy_as_invalid_is_found() {
    let (one, two, three, none) = tokio::join!(
        check_invalid_at::<403, 404>(),
        check_invalid_at::<400, 400>(),
        check_invalid_at::<502, 504>(),
        check_invalid_at::<0, 0>(),
    );
    for report in [one, two, three] {
        let is_kept = report.holds(Guarantee::KnownKeysKept, Condition::GatewayError);
        assert!(!is_kept, "{report}");
        let mut broken = report.broken();
        assert!(
            broken.all(|check| check.condition == Condition::GatewayError),
            "{report}"
        );
    }
    none.assert();
    assert!(none.holds(Guarantee::NewKeysUnavailable, Condition::GatewayError));
}

#[tokio::test]
async fn missing_member_as_invalid_is_found() {
    let report = check_over(|reply| match reply.status() {
        200 => reply.json::<Lenient>()?.verification(),
        _ => Err(reply.cannot_tell()),
    });
    let report = report.await;
    assert!(!report.holds(Guarantee::KnownKeysKept, Condition::Garbage));
    let mut broken = report.broken();
    assert!(
        broken.all(|check| check.condition == Condition::Garbage),
        "{report}"
    );
}

/// Quotes replies in its errors.
struct Quoting {
    client: reqwest::Client,
    url: String,
    body: fn(&ApiKey) -> String,
}

impl Verifier for Quoting {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let sent = self.client.post(&self.url).body((self.body)(key));
        let reply = sent.send().await.map_err(VerifyError::unavailable)?;
        let text = reply.text().await.map_err(VerifyError::unavailable)?;
        match serde_json::from_str::<Strict>(&text) {
            Ok(Strict { org }) => Lenient { org }.verification(),
            Err(_) => Err(VerifyError::unavailable(text)),
        }
    }
}

#[tokio::test]
async fn quoted_reply_with_the_key_is_found() {
    let form: fn(&ApiKey) -> String = |key| {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("value", key.expose_secret()).finish()
    };
    let json: fn(&ApiKey) -> String = |key| json!({ "value": key.expose_secret() }).to_string();
    let of_form: fn(&Request) -> String = |request| {
        let mut pairs = form_urlencoded::parse(request.body.as_bytes());
        pairs.next().unwrap().1.into_owned()
    };
    let of_json: fn(&Request) -> String = |request| member(request, "value");
    for (body, key_of) in [(form, of_form), (json, of_json)] {
        let about = |_: &str, organization: Option<&str>| (200, json!({ "org": organization }));
        // The form has a slash encoded.
        let mut vendor = Vendor::start("k/", key_of, about, None).await;
        let quoting = Quoting {
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            url: vendor.url("/verify"),
            body,
        };
        let report = check_verifier(quoting, &mut vendor).await;
        for condition in [
            Condition::Garbage,
            Condition::ServerError,
            Condition::GatewayError,
        ] {
            assert!(!report.holds(Guarantee::KeysSecret, condition), "{report}");
        }
        assert!(report.holds(Guarantee::KeysSecret, Condition::Down));
    }
}

/// Follows redirects, and reads whatever it gets.
struct Careless {
    client: reqwest::Client,
    url: String,
}

impl Verifier for Careless {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let body = json!({ "value": key.expose_secret() }).to_string();
        let sent = self.client.post(&self.url).body(body).send().await;
        let reply = sent.map_err(VerifyError::unavailable)?;
        let is_ok = reply.status().is_success();
        let body = reply.bytes().await.map_err(VerifyError::unavailable)?;
        match serde_json::from_slice::<Value>(&body) {
            Ok(json) if is_ok => match json["org"].as_str() {
                Some(org) => Ok(Verification::of_organization(OrgCode::new(org).unwrap())),
                None => Ok(Verification::invalid()),
            },
            _ => Err(VerifyError::unavailable("no answer")),
        }
    }
}

#[tokio::test]
async fn careless_client_is_found() {
    let about = |_: &str, organization: Option<&str>| (200, json!({ "org": organization }));
    let inactive = Some((200, r#"{"org":null}"#));
    let key_of = |request: &_| member(request, "value");
    let mut vendor = Vendor::start("k_", key_of, about, inactive).await;
    let careless = Careless {
        client: reqwest::Client::builder().no_proxy().build().unwrap(),
        url: vendor.url("/verify"),
    };
    let report = check_verifier(careless, &mut vendor).await;
    for (guarantee, condition) in [
        (Guarantee::RepliesBounded, Condition::HugeReply),
        (Guarantee::RedirectsIgnored, Condition::Redirect),
        (Guarantee::KnownKeysKept, Condition::Inactive),
        (Guarantee::FailuresClassified, Condition::Throttled),
        (Guarantee::FailuresClassified, Condition::Garbage),
    ] {
        assert!(
            !report.holds(guarantee, condition),
            "{guarantee:?}\n{report}"
        );
    }
    for condition in [Condition::Down, Condition::Slow] {
        assert!(
            report.holds(Guarantee::KnownKeysKept, condition),
            "{report}"
        );
    }
}
