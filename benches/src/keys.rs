//! Many keys, distributed as in an API with many customers.

use std::fmt::Write as _;

use axum::Router;
use futures_util::FutureExt;
use http::{HeaderValue, StatusCode};
use tower::ServiceExt;
use tower_orgkey::{
    ApiKey, ApiKeyLayer, ApiKeyLayerBuilder, KeyId, OrgCode, Scopes, Verification, VerifyError,
    require_scope, verifier_fn,
};
use tower_service::Service;

use crate::rows::{self, REPORTS, SCOPE};

/// The number of keys per organization.
const PER_ORG: u32 = 5;

/// Scope sets repeat, because an API has few kinds of keys.
const KINDS: [&[&str]; 4] = [
    &["read:reports"],
    &["read:reports", "read:users"],
    &["read:reports", "read:users", "write:users", "write:reports"],
    &[
        "read:reports",
        "read:billing",
        "write:billing",
        "read:users",
        "write:users",
        "read:audit",
    ],
];

/// The nth key: a prefix and 32 hexadecimal digits.
pub(crate) fn key(n: u32) -> String {
    let mut key = String::from("k_live_");
    // Plain numbers would differ in their last digits only.
    let mixed = u128::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    let _ = write!(key, "{mixed:032x}");
    key
}

pub(crate) fn authorization(n: u32) -> HeaderValue {
    HeaderValue::try_from(format!("Bearer {}", key(n))).expect("a header's value")
}

/// A verifier in memory for which every key is valid. It allocates new strings each time, like a parser of replies.
pub(crate) fn builder() -> ApiKeyLayerBuilder {
    builder_of(PER_ORG)
}

/// The same, with this number of keys per organization.
pub(crate) fn builder_of(per_org: u32) -> ApiKeyLayerBuilder {
    let verifier = verifier_fn(move |key| yes(key, per_org));
    ApiKeyLayer::builder(verifier).fixed_digest_secret(rows::SECRET)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "what `verifier_fn` hands over"
)]
fn yes(
    key: ApiKey,
    per_org: u32,
) -> impl Future<Output = Result<Verification, VerifyError>> + Send {
    let digits = &key.expose_secret()["k_live_".len()..];
    let mixed = u128::from_str_radix(digits, 16).expect("a key of ours");
    // The inverse of the multiplier modulo 2^128 yields the index of the key.
    let n = mixed.wrapping_mul(inverse(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835));
    let org = format!("org_{:010x}", n / u128::from(per_org) * 0x5_1ED2);
    let kind = KINDS[(n % KINDS.len() as u128) as usize];
    let verification = Verification::of_organization(OrgCode::new(org).expect("an identifier"))
        .with_key_id(KeyId::new(format!("api_key_{n:032x}")).expect("an identifier"))
        .with_scopes(Scopes::from_names(kind.iter().copied()));
    std::future::ready(Ok(verification))
}

/// Newton's iteration for an odd number.
fn inverse(of: u128) -> u128 {
    let mut inverse = of;
    for _ in 0..7 {
        inverse = inverse.wrapping_mul(2u128.wrapping_sub(of.wrapping_mul(inverse)));
    }
    inverse
}

/// An API with this layer, which has verified this many keys.
pub(crate) fn filled(auth: ApiKeyLayer, keys: u32) -> Router {
    let router = rows::api().layer((auth, require_scope(SCOPE)));
    fill(&router, keys);
    router
}

/// Sends a request with each of this many keys.
pub(crate) fn fill(router: &Router, keys: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        // Several at a time, as in production; one at a time, each would leave the same gaps in the heap.
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                tokio::spawn(ask(
                    router.clone(),
                    (caller..keys).step_by(CALLERS as usize),
                ))
            })
            .collect();
        for caller in callers {
            caller.await.expect("a task that ends");
        }
    });
}

const CALLERS: u32 = 32;

async fn ask(router: Router, keys: impl Iterator<Item = u32>) {
    for n in keys {
        let request = rows::request_with(REPORTS, authorization(n));
        let response = router.clone().oneshot(request).await.expect("a response");
        assert_eq!(response.status(), StatusCode::OK);
    }
}

/// One request with this credential, through a resolved router.
pub(crate) fn call(router: &mut Router, authorization: HeaderValue) {
    let response = router
        .call(rows::request_with(REPORTS, authorization))
        .now_or_never()
        .expect("a request that waits for nothing")
        .expect("a response");
    assert_eq!(response.status(), StatusCode::OK);
}

/// Uniform indexes of keys.
#[expect(clippy::cast_possible_truncation, reason = "below the number of keys")]
pub(crate) fn uniform(keys: u32, random: &mut u64) -> u32 {
    ((u128::from(next(random)) * u128::from(keys)) >> 64) as u32
}

/// Indexes by Zipf's law: the logarithm of the rank is uniform.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "from one to the number of keys"
)]
pub(crate) fn zipf(keys: u32, random: &mut u64) -> u32 {
    let unit = next(random) as f64 / u64::MAX as f64;
    (f64::from(keys).powf(unit) as u32).min(keys) - 1
}

/// `splitmix64`: the same sequence in every run.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The resident memory of this process, in bytes.
pub(crate) fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("the second figure");
    pages * 4096
}
