//! Keys that a gateway has verified: the signed identity that `orgkey gateway` gives to the services behind it.
//!
//! With [`AssertionVerifier`], a service behind the gateway has the same layer, guards, limits and settings as one that accepts keys
//! itself. No call is made: a signature is checked.
//!
//! A stream ends with the assertion of its request, after 65 s at most: the service cannot learn more about the key. The key set is
//! read once, so restart the service after the gateway's key was replaced, or keep both keys in the set. `jsonwebtoken` is used
//! with `aws_lc_rs`; if another dependency enables its `rust_crypto` too, install one of them as its `CryptoProvider` at start.
//!
//! ```no_run
//! use http::HeaderName;
//! use tower_orgkey::ApiKeyLayer;
//! use tower_orgkey::assertion::AssertionVerifier;
//!
//! // The output of `orgkey gateway jwks`, and `[identity]` of its configuration.
//! let key_set = std::fs::read_to_string("/etc/orgkey/jwks.json")?;
//! let verifier = AssertionVerifier::new(&key_set, "orgkey", "reports-api")?;
//! let auth = ApiKeyLayer::builder(verifier)
//!     .credential_header(HeaderName::from_static("x-org-assertion"), "Assertion")
//!     // An assertion is longer than a key.
//!     .max_key_len(8_192)
//!     .build()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;

use crate::config::ConfigError;
use crate::identifier::{KeyId, OrgCode};
use crate::key::ApiKey;
use crate::scope::Scopes;
use crate::verify::{Verification, Verifier, VerifyError};

/// How far the clocks of the gateway and this service may differ, in seconds.
const LEEWAY: u64 = 5;

/// The longest lifetime of an assertion, in seconds.
const MAX_LIFETIME: u64 = 60;

/// Verifies the assertions of `orgkey gateway`: JWTs with `EdDSA` over Ed25519, of one issuer and for one audience.
///
/// An assertion is accepted until it expires, at most 60 s after it was signed, plus 5 s for a difference of the clocks. A revoked
/// key is accepted for as long here after the gateway has learned of it. An assertion is not bound to a request, so services
/// must not be reached around the gateway. See the [module documentation](crate::assertion) for an example.
pub struct AssertionVerifier {
    /// By the id of the key.
    keys: HashMap<String, DecodingKey>,
    validation: Validation,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    org_code: String,
    key_id: Option<String>,
    scope: String,
    iat: u64,
    exp: u64,
}

impl AssertionVerifier {
    /// Creates a verifier with the key set that `orgkey gateway jwks` prints, and the issuer and the audience of the gateway's
    /// configuration.
    ///
    /// # Errors
    ///
    /// If the key set is not JSON, has no key, two with one id, or one that is not an Ed25519 key with an id; and if the issuer or the
    /// audience is empty.
    pub fn new(
        key_set: &str,
        issuer: impl Into<String>,
        audience: impl Into<String>,
    ) -> Result<Self, ConfigError> {
        let wrong = |problem| ConfigError::new("key_set", problem);
        let set: JwkSet =
            serde_json::from_str(key_set).map_err(|_| wrong("is not a JSON Web Key Set"))?;
        let mut keys = HashMap::new();
        for key in &set.keys {
            let is_ed25519 = matches!(
                &key.algorithm,
                AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519
            );
            let id = key.common.key_id.clone().filter(|_| is_ed25519);
            let id = id.ok_or_else(|| wrong("has a key that is not an Ed25519 key with an id"))?;
            let decoding =
                DecodingKey::from_jwk(key).map_err(|_| wrong("has a key that cannot be read"))?;
            if keys.insert(id, decoding).is_some() {
                return Err(wrong("has two keys with one id"));
            }
        }
        let (issuer, audience) = (issuer.into(), audience.into());
        if issuer.is_empty() || audience.is_empty() {
            return Err(ConfigError::new(
                "issuer",
                "neither it nor the audience may be empty",
            ));
        }
        if keys.is_empty() {
            return Err(wrong("has no key"));
        }
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY;
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        Ok(Self { keys, validation })
    }

    fn read(&self, token: &str) -> Option<Verification> {
        let id = decode_header(token).ok()?.kid?;
        let claims: Claims = decode(token, self.keys.get(&id)?, &self.validation)
            .ok()?
            .claims;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        let lifetime = claims.exp.checked_sub(claims.iat)?;
        let is_from_the_future = claims.iat > now.saturating_add(LEEWAY);
        if claims.sub != claims.org_code || lifetime > MAX_LIFETIME || is_from_the_future {
            return None;
        }
        let expiry =
            UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp.checked_add(LEEWAY)?))?;
        let org = OrgCode::new(claims.org_code).ok()?;
        let scopes = claims.scope.split(' ').filter(|name| !name.is_empty());
        let mut verification = Verification::of_organization(org)
            .with_scopes(Scopes::from_names(scopes))
            .with_expires_at(expiry);
        if let Some(id) = claims.key_id {
            verification = verification.with_key_id(KeyId::new(id).ok()?);
        }
        Some(verification)
    }
}

impl Verifier for AssertionVerifier {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let read = self.read(key.expose_secret());
        Ok(read.unwrap_or_else(Verification::invalid))
    }
}

impl_debug!(AssertionVerifier, |verifier| { keys: verifier.keys.keys() });
