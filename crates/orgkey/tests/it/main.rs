//! The gateway as proxies, operators and the shell see it, and the other commands of the program.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

mod admin;
mod assertion;
mod checks;
mod command;
mod doctor;
mod emulator;
mod grpc;
mod issuers;
#[path = "../../../../tests/support/python.rs"]
mod python;
mod region;
mod running;
mod status;
#[allow(dead_code, reason = "only a part is used")]
#[path = "../../../../tests/support/stub.rs"]
mod stub;
mod support;
