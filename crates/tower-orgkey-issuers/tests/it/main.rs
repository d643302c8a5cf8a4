//! Each issuer over a socket, and the conformance kit.

#![allow(clippy::unwrap_used)] // A test may fail on what it did not expect.

mod introspection;
mod kinde;
mod kit;
#[allow(dead_code, reason = "only a part is used")]
#[path = "../../../../tests/support/stub.rs"]
mod stub;
mod unkey;
mod vendor;
mod workos;
