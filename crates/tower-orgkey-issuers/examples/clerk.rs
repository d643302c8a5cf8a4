//! Clerk as the issuer: a verifier over `Endpoint`.
//!
//! `cargo run -p tower-orgkey-issuers --example clerk` verifies one key: set `CLERK_SECRET_KEY` and `KEY`. Its tests are against the
//! published API description, not against Clerk.
//!
//! Revoke a key rather than delete it: an unknown key is a 404, as a missing route is, so a deleted key is accepted until another
//! key is verified as valid, or up to the hard TTL.
//!
//! Each verification at Clerk is billed, so the cache of the layer saves money.

use serde::{Deserialize, Serialize};
use tower_orgkey::{ApiKey, Verification, Verifier, VerifyError};
use tower_orgkey_issuers::{Endpoint, fields};

const URL: &str = "https://api.clerk.com/v1/api_keys/verify";

struct Clerk(Endpoint);

#[derive(Serialize)]
struct Question<'a> {
    secret: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    id: String,
    /// `org_…`, `user_…` or `mch_…`.
    subject: String,
    scopes: Option<Vec<String>>,
    revoked: bool,
    expired: bool,
    expiration: Option<u64>,
}

impl Verifier for Clerk {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let secret = key.expose_secret();
        let reply = self.0.post(&Question { secret }).await?;
        match reply.status() {
            200 => reply.json::<Answer>()?.verification(),
            // A missing route is a 404 too, and a rejected request a 400.
            400 | 404 => Ok(Verification::invalid_unconfirmed()),
            _ => Err(reply.cannot_tell()),
        }
    }
}

impl Answer {
    fn verification(self) -> Result<Verification, VerifyError> {
        // Clerk answers 200 about such keys.
        if self.revoked || self.expired {
            return Ok(Verification::invalid());
        }
        let is_organization = self.subject.starts_with("org_");
        let mut verification =
            fields::verification(is_organization.then_some(self.subject.as_str()))?;
        if self.subject.starts_with("user_") {
            verification = verification.with_user_id(self.subject);
        }
        if let Some(expiration) = self.expiration {
            // Documented in milliseconds; the documented example is in seconds, which is rejected here.
            verification = verification.with_expires_at(fields::expires_at_millis(expiration)?);
        }
        let scopes = self.scopes.unwrap_or_default();
        Ok(verification
            .with_key_id(fields::key_id(&self.id)?)
            .with_scopes(fields::scopes(scopes.iter().map(String::as_str))?))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let token = std::env::var("CLERK_SECRET_KEY")?;
    let clerk = Clerk(Endpoint::builder(URL).bearer_token(token).build()?);
    let key = ApiKey::parse(&std::env::var("KEY")?)?;
    println!("{:?}", clerk.verify(&key).await?);
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

    const PATH: &str = "/v1/api_keys/verify";

    fn clerk(url: &str) -> Clerk {
        let endpoint = Endpoint::builder(format!("{url}{PATH}")).bearer_token("sk_test");
        Clerk(endpoint.build().unwrap())
    }

    fn valid(subject: &str) -> Value {
        json!({
            "object": "api_key", "id": "ak_1", "type": "api_key", "subject": subject, "name": "CI",
            "scopes": ["read:users"], "claims": null, "revoked": false, "revocation_reason": null,
            "expired": false, "expiration": 4_000_000_000_000_u64, "last_used_at": 1,
        })
    }

    async fn answering(reply: &Value) -> (Stub, Clerk) {
        let stub = Stub::start().await;
        stub.always(At::Elsewhere, Reply::json(200, &reply.to_string()));
        let clerk = clerk(&stub.url());
        (stub, clerk)
    }

    #[tokio::test]
    async fn clerk_passes_the_kit() {
        let about = |_: &str, organization: Option<&str>| {
            let mut reply = valid(organization.unwrap_or("org_1"));
            reply["revoked"] = json!(organization.is_none());
            (200, reply)
        };
        let key_of = |request: &_| member(request, "secret");
        let mut vendor = Vendor::start("ak_", key_of, about, Some((404, "{}"))).await;
        let report = check_verifier(clerk(&vendor.proxy.url()), &mut vendor).await;
        report.assert();
    }

    #[tokio::test]
    async fn revoked_and_expired_keys_are_invalid() {
        for member in ["revoked", "expired"] {
            let mut reply = valid("org_1");
            reply[member] = json!(true);
            let (_stub, clerk) = answering(&reply).await;
            assert_eq!(seen(clerk, "ak_0123456789").await.unwrap_err(), 401);
        }
    }

    #[tokio::test]
    async fn subject_is_organization_user_or_machine() {
        let (_stub, clerk) = answering(&valid("org_1")).await;
        let org = seen(clerk, "ak_0123456789").await.unwrap();
        assert_eq!((org.org_code().as_str(), org.user_id()), ("org_1", None));
        assert!(org.scopes().contains("read:users"));
        for subject in ["user_1", "mch_1"] {
            let (_stub, clerk) = answering(&valid(subject)).await;
            assert_eq!(seen(clerk, "ak_0123456789").await.unwrap_err(), 403);
        }
    }

    #[tokio::test]
    async fn expiration_in_seconds_is_not_believed() {
        let mut reply = valid("org_1");
        reply["expiration"] = json!(1_800_000_000);
        let (_stub, clerk) = answering(&reply).await;
        let key = ApiKey::parse("ak_0123456789").unwrap();
        let error = clerk.verify(&key).await.unwrap_err();
        assert_eq!(error.kind(), VerifyErrorKind::InvalidResponse);
    }
}
