//! Rows of one organization: transactions of `sqlx` under the row-level security of PostgreSQL.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod isolation;

#[cfg(feature = "sqlx")]
mod error;
#[cfg(feature = "axum")]
mod extract;
#[cfg(feature = "sqlx")]
mod held;
#[cfg(feature = "sqlx")]
mod pool;
#[cfg(feature = "sqlx")]
mod transaction;

#[cfg(feature = "sqlx")]
pub use self::{error::OrgTxError, pool::OrgPool, transaction::OrgTx};

/// Compiles the examples of the README.
#[cfg(all(doctest, feature = "sqlx"))]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
