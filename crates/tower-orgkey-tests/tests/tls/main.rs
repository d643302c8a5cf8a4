//! TLS to the issuer, by the library that the features select.

#![cfg(any(feature = "rustls", feature = "native-tls"))]
#![allow(clippy::unwrap_used, reason = "a test may fail on a missing value")]

mod impostor;
mod kinde;
mod stub_tls;
#[path = "../../../../tests/support/mod.rs"]
mod support;
