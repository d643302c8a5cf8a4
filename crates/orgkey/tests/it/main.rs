//! The gateway as proxies, operators and the shell see it, and the other commands of the program.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

mod admin;
mod assertion;
mod checks;
mod command;
mod crowd;
mod doctor;
mod emulator;
mod fleet;
mod grpc;
mod issuers;
#[allow(dead_code, reason = "only a part is used")]
#[path = "../../../../tests/support/log.rs"]
mod log;
#[path = "../../../../tests/support/nested.rs"]
mod nested;
#[path = "../../../../tests/support/python.rs"]
mod python;
#[allow(dead_code, reason = "only a part is used")]
#[path = "../../../tower-orgkey-fleet/tests/it/redis_server.rs"]
mod redis_server;
mod region;
mod review;
mod running;
mod sentinels;
mod status;
#[allow(dead_code, reason = "only a part is used")]
#[path = "../../../../tests/support/stub.rs"]
mod stub;
mod support;
