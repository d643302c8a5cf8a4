//! What several test binaries share: an issuer whose answers and moods a test sets, services to stand behind the layer,
//! a client that shows the bytes of an answer, a proxy that spoils them, and a log that can be read.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub(crate) mod issuer;
pub(crate) mod log;
pub(crate) mod proxy;
pub(crate) mod service;
pub(crate) mod wire;

#[allow(unused_imports, reason = "each test binary uses its own part of this")]
pub(crate) use self::issuer::{Issuer, Say, org};
