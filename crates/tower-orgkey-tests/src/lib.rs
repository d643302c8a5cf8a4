//! Tests of `tower-orgkey` that need additional dependencies.
//!
//! Cargo builds all dev-dependencies of a package for any of its examples. These tests are in a separate package, so that
//! `cargo run --example quickstart` does not build what only they need.
//!
//! | binary | contents | needs |
//! |---|---|---|
//! | `model` | the public layer against a model, under random steps; grammar, scopes and organizations against simpler implementations | `proptest-state-machine`, `proptest` |
//! | `tls` | TLS to the issuer, with the TLS library that the features select | `rcgen`, the feature `tls` of `kinde-emulator` |
