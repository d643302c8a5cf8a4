//! TLS to the issuer, by the library that the features select.

#![cfg(any(feature = "rustls", feature = "native-tls"))]
#![allow(clippy::unwrap_used, reason = "a test may fail on a missing value")]

mod impostor;
mod kinde;
#[path = "../../../../tests/emulated_outage/stage.rs"]
#[allow(dead_code, reason = "shared with the root package's tests")]
mod outage_stage;
#[path = "../../../../tests/kinde/stage.rs"]
#[allow(dead_code, reason = "shared with the root package's tests")]
mod stage;
#[path = "../../../../tests/kinde/stub.rs"]
#[allow(dead_code, reason = "shared with the root package's tests")]
mod stub;
mod stub_tls;
#[path = "../../../../tests/support/mod.rs"]
mod support;
