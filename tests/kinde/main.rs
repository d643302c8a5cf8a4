//! The Kinde verifier over real sockets, against a server whose every reply is scripted and every request recorded.

#![cfg(feature = "kinde")]
#![allow(clippy::unwrap_used)] // A test may fail on what it cannot read.

mod config;
mod evidence;
mod isolation;
mod layered;
#[path = "../support/log.rs"]
mod log;
mod own_api;
mod record;
mod renewal;
mod replies;
mod stage;
mod stub;
mod token;
mod told;
mod transport;
mod unusable;
