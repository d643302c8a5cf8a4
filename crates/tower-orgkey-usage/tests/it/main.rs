//! Counts, merged rows, and what is pushed to a meter, through the layer and over sockets.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

mod billing;
mod collector;
mod contracts;
mod counted;
mod delayed;
mod drains;
mod exact;
mod file;
mod http_meter;
mod kit;
mod lago;
#[path = "../../examples/lago.rs"]
mod lago_example;
#[path = "../../../../tests/support/log.rs"]
mod log;
mod meters;
mod parked;
mod pushed;
mod stripe;
mod sums;
mod wire;
