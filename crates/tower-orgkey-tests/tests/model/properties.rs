//! Grammar, scopes and organizations against models that are written another way.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

mod credential;
mod organization;
mod scope;
