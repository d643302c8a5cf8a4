//! The lookup cache of [`tower-orgkey`](https://docs.rs/tower-orgkey).
//!
//! This is an internal crate: its interface may change in any release.
//!
//! A [`Cache`] maps keys to results that a [`Source`] looks up. It is used for API keys, which an issuer
//! verifies, and for settings, which a loader returns for an organization. A source defines the types of a use, and makes its
//! calls:
//!
//! | type | API keys | settings |
//! |---|---|---|
//! | [`Source::Key`] | a keyed digest | the organization's code |
//! | [`Source::Query`] | the secret, only in the lookup task | the organization's code |
//! | [`Source::Value`] | organization, scopes, expiry | the settings |
//! | [`Source::Telemetry`] | events about the issuer | events about the loader |
//!
//! # Modules
//!
//! Each module uses only those above it.
//!
//! | module | contents |
//! |---|---|
//! | [`clock`] | a monotonic clock that counts suspended time |
//! | [`config`] | lifetimes, capacity, deadlines and limits |
//! | [`source`] | what a use provides: keys, values, calls, telemetry |
//! | [`upstream`] | limits, retries and isolates calls to an upstream |
//! | [`cache`] | results, in-flight lookups, blocks and invalidations |
//!
//! Only results are cached. What a result permits is decided by the users of this crate, on every request.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod cache;
pub mod clock;
pub mod config;
#[cfg(test)]
mod kit;
pub mod source;
pub mod upstream;

pub use self::cache::{
    BlockListFull, Cache, CacheResult, Entry, LookupRequest, LookupResult, Target,
};
pub use self::config::{Config, Lifetimes};
pub use self::source::{
    Answer, Answered, BreakerState, Circuit, Failure, FailureKind, Fetched, Found, IndexKey,
    Invalid, Label, Position, Source, Telemetry, Value,
};
pub use self::upstream::{CannotTell, UpstreamState};
