//! PropelAuth as the issuer: a verifier over `Endpoint`.
//!
//! `cargo run -p tower-orgkey-issuers --example propelauth` verifies one key: set `PROPELAUTH_URL`, `PROPELAUTH_API_KEY` and `KEY`.
//! Its tests are against the published API description, not against PropelAuth.
//!
//! The reply has no scopes and no key id. Scopes come from the metadata of the key, which only your backend sets. Without a key id,
//! audit events and blocks know the organization only.

use serde::{Deserialize, Serialize};
use tower_orgkey::{ApiKey, Verification, Verifier, VerifyError};
use tower_orgkey_issuers::{Endpoint, fields};

const PATH: &str = "/api/backend/v1/end_user_api_keys/validate";

struct PropelAuth(Endpoint);

#[derive(Serialize)]
struct Question<'a> {
    api_key_token: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    // Null without an organization; absent is not an answer.
    #[serde(deserialize_with = "Option::deserialize")]
    org_id: Option<String>,
    user_id: Option<String>,
    metadata: Option<Metadata>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    scopes: Vec<String>,
}

/// The reply about an invalid key, or about one over its own limit.
#[derive(Deserialize)]
struct Rejection {
    api_key_token: Option<Vec<String>>,
    wait_seconds: Option<f64>,
}

impl Verifier for PropelAuth {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let api_key_token = key.expose_secret();
        let reply = self.0.post(&Question { api_key_token }).await?;
        match reply.status() {
            200 => reply.json::<Answer>()?.verification(),
            400 | 404 => match reply.json::<Rejection>() {
                Ok(rejection) if rejection.api_key_token.is_some() => Ok(Verification::invalid()),
                _ => Ok(Verification::invalid_unconfirmed()),
            },
            // The key's own limit has a body; PropelAuth's limit for this service has none, and pauses all calls.
            429 => match reply.json::<Rejection>() {
                Ok(rejection) if rejection.wait_seconds.is_some() => Err(
                    VerifyError::inconclusive("the key is over its own limit at PropelAuth"),
                ),
                _ => Err(reply.cannot_tell()),
            },
            _ => Err(reply.cannot_tell()),
        }
    }
}

impl Answer {
    fn verification(self) -> Result<Verification, VerifyError> {
        let scopes = self.metadata.unwrap_or_default().scopes;
        let verification = fields::verification(self.org_id.as_deref())?
            .with_scopes(fields::scopes(scopes.iter().map(String::as_str))?);
        Ok(match self.user_id {
            Some(user) => verification.with_user_id(user),
            None => verification,
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = format!("{}{PATH}", std::env::var("PROPELAUTH_URL")?);
    let token = std::env::var("PROPELAUTH_API_KEY")?;
    let propelauth = PropelAuth(Endpoint::builder(url).bearer_token(token).build()?);
    let key = ApiKey::parse(&std::env::var("KEY")?)?;
    println!("{:?}", propelauth.verify(&key).await?);
    Ok(())
}

#[cfg(test)]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "only a part is used, in tests"
)]
#[path = "../../../tests/support/stub.rs"]
mod stub;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "only in tests")]
#[path = "../tests/it/vendor.rs"]
mod vendor;

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may fail on what it did not expect.
mod tests {
    use serde_json::{Value, json};
    use tower_orgkey::verify::VerifyErrorKind;
    use tower_orgkey_issuers::conformance::check_verifier;

    use super::*;
    use crate::stub::{Answer as Reply, Endpoint as At, Stub};
    use crate::vendor::{Vendor, member, seen};

    fn propelauth(url: &str) -> PropelAuth {
        let endpoint = Endpoint::builder(format!("{url}{PATH}")).bearer_token("integration-key");
        PropelAuth(endpoint.build().unwrap())
    }

    fn valid(organization: &str) -> Value {
        json!({
            "metadata": { "scopes": ["read:reports"] }, "user": null, "user_id": null,
            "org": { "org_id": organization, "org_name": "Acme" }, "user_in_org": null,
            "org_id": organization,
        })
    }

    fn invalid() -> Value {
        json!({ "api_key_token": ["Invalid or expired API key"] })
    }

    async fn answering(status: u16, reply: &str) -> (Stub, PropelAuth) {
        let stub = Stub::start().await;
        stub.always(At::Elsewhere, Reply::json(status, reply));
        let propelauth = propelauth(&stub.url());
        (stub, propelauth)
    }

    #[tokio::test]
    async fn propelauth_passes_the_kit() {
        let about = |_: &str, organization: Option<&str>| match organization {
            Some(organization) => (200, valid(organization)),
            None => (400, invalid()),
        };
        let key_of = |request: &_| member(request, "api_key_token");
        let mut vendor = Vendor::start("pa-", key_of, about, Some((404, "{}"))).await;
        let report = check_verifier(propelauth(&vendor.proxy.url()), &mut vendor).await;
        report.assert();
    }

    #[tokio::test]
    async fn reply_has_no_key_id() {
        let (_stub, propelauth) = answering(200, &valid("org_1").to_string()).await;
        let org = seen(propelauth, "pa-0123456789").await.unwrap();
        assert_eq!((org.org_code().as_str(), org.key_id()), ("org_1", None));
        assert!(org.scopes().contains("read:reports"));
    }

    #[tokio::test]
    async fn limit_of_a_key_is_not_that_of_the_service() {
        let own = r#"{"wait_seconds":5,"error_code":"x","user_facing_error":"y"}"#;
        for (body, kind) in [
            (own, VerifyErrorKind::Inconclusive),
            ("", VerifyErrorKind::Throttled { retry_after: None }),
        ] {
            let (_stub, propelauth) = answering(429, body).await;
            let key = ApiKey::parse("pa-0123456789").unwrap();
            let error = propelauth.verify(&key).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{body}");
        }
    }
}
