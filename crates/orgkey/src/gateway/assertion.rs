//! The signed identity: a JWT that a service verifies with the gateway's key set.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;
use tower_orgkey::{KeyId, OrgContext};

/// How long an assertion is valid, in seconds.
const LIFETIME: u64 = 60;

/// How long an assertion is given out, in seconds. A service has at least the rest of its lifetime to read it.
pub(super) const REUSE: u64 = 30;

const UNUSABLE: &str = "expected an Ed25519 private key of 32 bytes in PKCS #8 and PEM, as `openssl genpkey` writes it";

/// Signs assertions.
pub(super) struct Signer {
    key: EncodingKey,
    header: Header,
    /// This key, and those that services accept beside it.
    key_set: JwkSet,
    issuer: String,
    audience: Arc<str>,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    org_code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<&'a str>,
    scope: String,
    iat: u64,
    exp: u64,
}

impl Signer {
    /// Creates a signer with an Ed25519 key in PEM (PKCS #8).
    pub(super) fn new(pem: &str, issuer: String, audience: &str) -> Result<Self, &'static str> {
        let (key, public) = read(pem)?;
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid.clone_from(&public.common.key_id);
        Ok(Self {
            key,
            header,
            key_set: JwkSet { keys: vec![public] },
            issuer,
            audience: audience.into(),
        })
    }

    /// Adds a key to the key set that does not sign.
    pub(super) fn add_to_key_set(&mut self, pem: &str) -> Result<(), &'static str> {
        let (_, public) = read(pem)?;
        let known = &mut self.key_set.keys;
        if known
            .iter()
            .any(|key| key.common.key_id == public.common.key_id)
        {
            return Err("this key is in the key set already");
        }
        known.push(public);
        Ok(())
    }

    /// Returns the key set that services verify assertions with.
    pub(super) fn key_set(&self) -> &JwkSet {
        &self.key_set
    }

    /// Signs an assertion about a caller at a time in seconds, for an audience if the route has its own. `None` if it cannot be signed.
    pub(super) fn sign(
        &self,
        caller: &OrgContext,
        audience: Option<&Arc<str>>,
        now: u64,
    ) -> Option<HeaderValue> {
        let scopes: Vec<_> = caller.scopes().iter().map(AsRef::as_ref).collect();
        let org_code = caller.org_code().as_str();
        let claims = Claims {
            iss: &self.issuer,
            sub: org_code,
            aud: audience.unwrap_or(&self.audience),
            org_code,
            key_id: caller.key_id().map(KeyId::as_str),
            scope: scopes.join(" "),
            iat: now,
            exp: now + LIFETIME,
        };
        let token = encode(&self.header, &claims, &self.key).ok()?;
        let mut token = HeaderValue::from_maybe_shared(Bytes::from(token)).ok()?;
        // A bearer token.
        token.set_sensitive(true);
        Some(token)
    }
}

/// Reads a private key, and returns the public one with its id.
fn read(pem: &str) -> Result<(EncodingKey, Jwk), &'static str> {
    let key = EncodingKey::from_ed_pem(pem.as_bytes()).map_err(|_| UNUSABLE)?;
    let mut public = Jwk::from_encoding_key(&key, Algorithm::EdDSA).map_err(|_| UNUSABLE)?;
    let id = public.thumbprint(ThumbprintHash::SHA256);
    public.common.key_id = Some(id.map_err(|_| UNUSABLE)?);
    public.common.public_key_use = Some(PublicKeyUse::Signature);
    Ok((key, public))
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}
