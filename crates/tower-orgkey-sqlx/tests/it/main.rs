//! Tests with a real PostgreSQL and a real PgBouncer, which `./test` installs and these tests start.

#![allow(clippy::unwrap_used)]

mod bouncer;
mod cluster;
mod extractor;
mod kit;
mod proxy;
mod storm;
mod transaction;
