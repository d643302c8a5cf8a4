//! Shared by several test binaries: an issuer in memory, inner services, an HTTP client that shows the bytes of a response, a
//! proxy that injects faults, and a captured log.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub(crate) mod issuer;
pub(crate) mod log;
pub(crate) mod proxy;
pub(crate) mod service;
pub(crate) mod wire;

#[allow(unused_imports, reason = "each test binary uses its own part of this")]
pub(crate) use self::issuer::{Issuer, Say, org};
