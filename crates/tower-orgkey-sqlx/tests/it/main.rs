//! Tests with a real PostgreSQL and a real PgBouncer, which `./test` installs and these tests start.

#![allow(clippy::unwrap_used)]

mod bouncer;
mod check;
mod cluster;
mod extractor;
mod guide;
mod holes;
mod kit;
#[allow(dead_code, reason = "only a part is used")]
#[path = "../../../../tests/support/log.rs"]
mod log;
mod proxy;
#[path = "../../../../tests/support/python.rs"]
mod python;
mod storm;
mod transaction;
