//! The Kinde verifier over real sockets, with a stub server that scripts replies and records requests.

#![cfg(feature = "kinde")]
#![allow(clippy::unwrap_used)] // A test may fail on what it cannot read.

mod config;
mod evidence;
mod isolation;
mod layered;
#[path = "../support/log.rs"]
mod log;
mod logs;
mod own_api;
mod record;
mod renewal;
mod replies;
mod stage;
mod stub;
mod token;
mod transport;
mod unusable;
