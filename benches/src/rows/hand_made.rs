//! The floor with a cache, and a straightforward hand-written layer.

use std::fmt::Write as _;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use siphasher::sip128::{Hasher128, SipHasher13};

use super::floor::{Facts, KeyLayer, ScopeLayer};
use super::{Call, KEY, SCOPE, SECRET, api, passes};

pub(super) fn papaya() -> Call {
    passes(over_papaya([KEY.to_owned()]))
}

/// The floor with a papaya map of these keys.
pub(crate) fn over_papaya(of: impl IntoIterator<Item = String>) -> Router {
    let facts = Arc::new(Facts::of_the_key());
    let keys = papaya::HashMap::with_hasher(DigestBuildHasher::default());
    for key in of {
        keys.pin()
            .insert(digest(&key), Arc::new(facts.as_ref().clone()));
    }
    let auth = KeyLayer(
        |key: &str, keys: &papaya::HashMap<u128, Arc<Facts>, DigestBuildHasher>| {
            keys.pin().get(&digest(key)).cloned()
        },
    )
    .over(keys);
    api().layer((auth, ScopeLayer(SCOPE)))
}

pub(super) fn moka() -> Call {
    passes(over_moka([KEY.to_owned()]))
}

/// The floor with a moka cache of these keys.
pub(crate) fn over_moka(of: impl IntoIterator<Item = String>) -> Router {
    let facts = Arc::new(Facts::of_the_key());
    let keys = moka::sync::Cache::builder()
        .max_capacity(2_000_000)
        .time_to_live(Duration::from_secs(3_600))
        .build_with_hasher(DigestBuildHasher::default());
    for key in of {
        keys.insert(digest(&key), Arc::new(facts.as_ref().clone()));
    }
    let auth = KeyLayer(
        |key: &str, keys: &moka::sync::Cache<u128, Arc<Facts>, DigestBuildHasher>| {
            keys.get(&digest(key))
        },
    )
    .over(keys);
    api().layer((auth, ScopeLayer(SCOPE)))
}

pub(crate) fn digest(key: &str) -> u128 {
    let mut hasher = SipHasher13::new_with_key(&SECRET);
    hasher.write(key.as_bytes());
    hasher.finish128().as_u128()
}

pub(crate) type DigestBuildHasher = BuildHasherDefault<DigestHasher>;

/// A digest is its own hash.
#[derive(Clone, Copy, Default)]
pub(crate) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only digests are hashed")
    }

    #[allow(clippy::cast_possible_truncation)] // Truncated on purpose.
    fn write_u128(&mut self, digest: u128) {
        self.0 = digest as u64;
    }
}

type Known = moka::future::Cache<String, Facts>;

pub(super) fn from_fn() -> Call {
    passes(typical_router())
}

/// An API with a straightforward hand-written layer.
pub(crate) fn typical_router() -> Router {
    let known = Known::builder()
        .max_capacity(100_000)
        .time_to_live(Duration::from_secs(60))
        .build();
    let filled = known.insert(hex_digest(KEY), Facts::of_the_key());
    futures_util::FutureExt::now_or_never(filled).expect("an insert that waits for nothing");
    api().layer(axum::middleware::from_fn_with_state(known, typical))
}

async fn typical(State(known): State<Known>, mut request: Request, next: Next) -> Response {
    let key = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let Some(key) = key else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let Ok(facts) = known.try_get_with(hex_digest(key), ask_the_issuer()).await else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    if !facts.scopes.iter().any(|scope| scope == SCOPE) {
        return StatusCode::FORBIDDEN.into_response();
    }
    request.extensions_mut().insert(facts);
    next.run(request).await
}

/// In place of a network call. Made when the key was cached for a minute, which end-to-end rounds exceed.
async fn ask_the_issuer() -> Result<Facts, Arc<str>> {
    Ok(Facts::of_the_key())
}

fn hex_digest(key: &str) -> String {
    // Byte by byte, like many published examples.
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(key) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}
