//! Several nodes in one process, with an engine in memory and with real servers.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot start.

mod corpus;
mod engines;
#[path = "../../../../tests/support/log.rs"]
#[allow(dead_code)] // This kit uses a part of it.
mod log;
mod memory;
mod outages;
#[path = "../../../../tests/support/proxy.rs"]
#[allow(dead_code)] // This kit uses a part of it.
mod proxy;
mod redis;
#[allow(dead_code)] // The tests of `orgkey gateway` use the rest.
mod redis_server;
mod scenarios;
mod sentinel;
mod settings;
mod support;
