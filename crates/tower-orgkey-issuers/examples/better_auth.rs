//! better-auth as the issuer: a verifier over `Endpoint`.
//!
//! `cargo run -p tower-orgkey-issuers --example better_auth` verifies one key: set `BETTER_AUTH_URL`, `BETTER_AUTH_TOKEN` and `KEY`.
//! Its tests run a real better-auth.
//!
//! better-auth verifies keys on its own server only (`auth.api.verifyApiKey`), so your server needs an endpoint for this service, such
//! as `/verify` in `tests/node/better_auth.js`. It verifies keys of the configuration with `references: "organization"` only, by
//! `configId`, because the `referenceId` of another one is a user; and it sends `expiresAt` in milliseconds. Disable the rate limit of its plugin for these keys: every verification counts.
//!
//! Disable a key rather than delete it: better-auth says of a deleted key what it says when its database is lost, so such a key is
//! accepted until another key is verified as valid, or up to the hard TTL.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tower_orgkey::{ApiKey, Verification, Verifier, VerifyError};
use tower_orgkey_issuers::{Endpoint, fields};

struct BetterAuth(Endpoint);

#[derive(Serialize)]
struct Question<'a> {
    key: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    valid: bool,
    code: Option<String>,
    key: Option<Key>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    id: String,
    /// The organization, with `references: "organization"`.
    reference_id: String,
    /// In milliseconds.
    expires_at: Option<u64>,
    /// Actions by resource.
    permissions: Option<BTreeMap<String, Vec<String>>>,
}

impl Verifier for BetterAuth {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let key = key.expose_secret();
        let reply = self.0.post(&Question { key }).await?;
        if reply.status() != 200 {
            return Err(reply.cannot_tell());
        }
        match reply.json::<Answer>()? {
            Answer {
                valid: true,
                key: Some(key),
                ..
            } => key.verification(),
            Answer {
                valid: false,
                code: Some(code),
                ..
            } => rejected(&code),
            _ => Err(VerifyError::invalid_response("neither valid nor a code")),
        }
    }
}

fn rejected(code: &str) -> Result<Verification, VerifyError> {
    match code {
        // better-auth has read the key.
        "KEY_DISABLED" | "KEY_EXPIRED" => Ok(Verification::invalid()),
        // Also its answer when the database cannot be reached.
        "INVALID_API_KEY" | "KEY_NOT_FOUND" => Ok(Verification::invalid_unconfirmed()),
        "RATE_LIMITED" | "USAGE_EXCEEDED" => Err(VerifyError::inconclusive(
            "the key is over its own limit at better-auth",
        )),
        _ => Err(VerifyError::invalid_response("an unknown code")),
    }
}

impl Key {
    fn verification(self) -> Result<Verification, VerifyError> {
        let scopes: Vec<_> = self
            .permissions
            .iter()
            .flatten()
            .flat_map(|(resource, actions)| {
                actions
                    .iter()
                    .map(move |action| format!("{resource}:{action}"))
            })
            .collect();
        let verification = fields::verification(Some(&self.reference_id))?
            .with_key_id(fields::key_id(&self.id)?)
            .with_scopes(fields::scopes(scopes.iter().map(String::as_str))?);
        Ok(match self.expires_at {
            Some(millis) => verification.with_expires_at(fields::expires_at_millis(millis)?),
            None => verification,
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let token = std::env::var("BETTER_AUTH_TOKEN")?;
    let endpoint = Endpoint::builder(std::env::var("BETTER_AUTH_URL")?).bearer_token(token);
    let better_auth = BetterAuth(endpoint.build()?);
    let key = ApiKey::parse(&std::env::var("KEY")?)?;
    println!("{:?}", better_auth.verify(&key).await?);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "only in tests")]
#[path = "../../../tests/support/python.rs"]
mod python;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "only in tests")]
#[path = "../../../tests/support/server.rs"]
mod server;

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may fail on what it did not expect.
mod tests {
    use std::collections::HashMap;

    use serde_json::{Value, json};
    use tower_orgkey::verify::VerifyErrorKind;
    use tower_orgkey_issuers::conformance::{FaultProxy, IssuerUnderTest, check_verifier};

    use super::*;
    use crate::server::{self, Server};

    const TOKEN: &str = "token-of-the-service";

    struct Running {
        server: Server,
        proxy: FaultProxy,
        client: reqwest::Client,
        organizations: HashMap<String, String>,
        ids: HashMap<String, String>,
    }

    impl Running {
        async fn start() -> Self {
            let server = Server::start(server::node("better_auth.js")).await;
            let inactive = r#"{"valid":false,"code":"INVALID_API_KEY","key":null}"#;
            let proxy = FaultProxy::builder(server.addr()).inactive(200, inactive);
            Self {
                proxy: proxy.start().await.unwrap(),
                server,
                client: reqwest::Client::builder().no_proxy().build().unwrap(),
                organizations: HashMap::new(),
                ids: HashMap::new(),
            }
        }

        fn verifier(&self) -> BetterAuth {
            let endpoint = Endpoint::builder(format!("{}/verify", self.proxy.url()));
            BetterAuth(endpoint.bearer_token(TOKEN).build().unwrap())
        }

        async fn call(&self, path: &str, body: Value) -> Value {
            let url = format!("http://{}{path}", self.server.addr());
            let request = self.client.post(url).bearer_auth(TOKEN);
            let response = request.body(body.to_string()).send().await.unwrap();
            assert!(response.status().is_success(), "{response:?}");
            serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
        }

        async fn issue_with(&mut self, body: Value, organization: &str) -> ApiKey {
            self.issue_until(body, organization).await.0
        }

        /// Issues a key, and returns when it expires, in milliseconds.
        async fn issue_until(&mut self, mut body: Value, organization: &str) -> (ApiKey, Value) {
            body["organization"] = json!(organization);
            let issued = self.call("/issue", body).await;
            let text = |name: &str| issued[name].as_str().unwrap().to_owned();
            self.ids.insert(text("key"), text("id"));
            let named = text("organizationId");
            self.organizations.insert(organization.to_owned(), named);
            let key = ApiKey::parse(&text("key")).unwrap();
            (key, issued["expiresAt"].clone())
        }
    }

    impl IssuerUnderTest for Running {
        async fn issue(&mut self, organization: &str) -> ApiKey {
            self.issue_with(json!({}), organization).await
        }

        fn organization_code(&self, organization: &str) -> String {
            self.organizations[organization].clone()
        }

        async fn revoke(&mut self, key: &ApiKey) {
            let id = &self.ids[key.expose_secret()];
            self.call("/disable", json!({ "id": id })).await;
        }

        fn proxy(&self) -> Option<&FaultProxy> {
            Some(&self.proxy)
        }
    }

    #[tokio::test]
    async fn better_auth_passes_the_kit() {
        let mut running = Running::start().await;
        let report = check_verifier(running.verifier(), &mut running).await;
        report.assert();
    }

    #[tokio::test]
    async fn fault_139_lost_database_is_no_revocation() {
        let mut running = Running::start().await;
        let verifier = running.verifier();
        let key = running.issue("org-acme").await;
        assert!(verifier.verify(&key).await.unwrap().is_valid());
        running.call("/outage", json!({})).await;
        let result = format!("{:?}", verifier.reverify(&key).await.unwrap());
        assert!(result.contains("Unconfirmed"), "{result}");
    }

    #[tokio::test]
    async fn key_of_a_user_is_invalid() {
        let mut running = Running::start().await;
        let body = json!({ "configId": "users" });
        let key = running.issue_with(body, "org-acme").await;
        let result = running.verifier().verify(&key).await.unwrap();
        assert!(!result.is_valid(), "{result:?}");
    }

    #[tokio::test]
    async fn expiry_is_read() {
        let mut running = Running::start().await;
        let week = json!({ "expiresIn": 7 * 24 * 3600 });
        let (key, expires_at) = running.issue_until(week, "org-acme").await;
        let result = running.verifier().verify(&key).await.unwrap();
        let expected = fields::expires_at_millis(expires_at.as_u64().unwrap()).unwrap();
        assert_eq!(result.expires_at(), Some(expected));
    }

    #[tokio::test]
    async fn limit_of_a_key_is_no_rejection() {
        let mut running = Running::start().await;
        let verifier = running.verifier();
        let key = running
            .issue_with(json!({ "remaining": 1 }), "org-acme")
            .await;
        assert!(verifier.verify(&key).await.unwrap().is_valid());
        let error = verifier.verify(&key).await.unwrap_err();
        assert_eq!(error.kind(), VerifyErrorKind::Inconclusive);
    }
}
