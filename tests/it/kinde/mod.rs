//! The Kinde verifier over real sockets, with a stub server that scripts replies and records requests.

#![allow(clippy::unwrap_used)] // A test may fail on what it cannot read.

mod config;
mod evidence;
mod isolation;
mod layered;
mod logs;
mod management;
mod own_api;
mod record;
mod renewal;
mod replies;
mod token;
mod transport;
mod unusable;
