//! Each issuer over a socket, and the conformance kit.

#![allow(clippy::unwrap_used)] // A test may fail on what it did not expect.

mod descriptions;
mod identity;
mod introspection;
mod kinde;
mod kit;
#[path = "../../../../tests/support/nested.rs"]
mod nested;
#[path = "../../../../tests/support/python.rs"]
mod python;
#[path = "../../../../tests/support/server.rs"]
mod server;
mod servers;
#[allow(dead_code, reason = "only a part is used")]
#[path = "../../../../tests/support/stub.rs"]
mod stub;
mod unkey;
mod vendor;
mod workos;
