//! Rows of one organization: transactions of `sqlx` under the row-level security of PostgreSQL.
//!
//! [`OrgPool::checked`] checks the database when the service starts. [`OrgPool::begin`] begins a transaction for the
//! [`OrgContext`](tower_orgkey::OrgContext) of a verified key, in which PostgreSQL shows the rows of that organization and no
//! others. No organization can be named by a text: background jobs use [`OrgPool::begin_for_job`], which is reported.
//!
//! ```no_run
//! use axum::extract::State;
//! use axum::{Json, Router, routing::get};
//! use sqlx::PgPool;
//! use tower_orgkey::{ApiKeyLayer, OrgContext, Rejection};
//! use tower_orgkey_sqlx::OrgPool;
//! use tower_orgkey_sqlx::isolation::{Exceptions, FindingKind};
//!
//! async fn app(auth: ApiKeyLayer) -> Result<Router, Box<dyn std::error::Error>> {
//!     let pool = PgPool::connect("postgres://app@127.0.0.1/app").await?;
//!     let shared = Exceptions::none().except(FindingKind::RowSecurityOff, "public.plans");
//!     let pool = OrgPool::checked(pool, &shared).await?;
//!     Ok(Router::new()
//!         .route("/notes", get(notes))
//!         .route_layer(auth)
//!         .with_state(pool))
//! }
//!
//! async fn notes(org: OrgContext, State(pool): State<OrgPool>) -> Result<Json<Vec<String>>, Rejection> {
//!     let mut tx = pool.begin(&org).await?;
//!     let titles = sqlx::query_scalar("select title from notes order by id").fetch_all(&mut *tx).await;
//!     titles.map(Json).map_err(|_| Rejection::internal())
//! }
//! ```
//!
//! The [`guide`] has the SQL of the tables, its costs, the settings of PgBouncer, and what row security does not stop.
//!
//! # When a caller gives up
//!
//! The future of each method may be dropped at any time. A transaction that is not committed is rolled back. A connection
//! returns to the pool only if its state is known, and is closed otherwise; sqlx 0.9.0 alone returns a connection in an open
//! transaction if its `begin` is dropped. A connection on which other code left a transaction is closed by `begin` with
//! an error.
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `sqlx` | yes | [`OrgPool`], [`OrgTx`] |
//! | `axum` | yes | [`OrgTx`] as an extractor |
//!
//! Without features only [`isolation`] is left, for other drivers, and the crate has no dependencies.
//!
//! # Log messages
//!
//! Under the target `tower_orgkey`:
//!
//! | level | message | fields |
//! |---|---|---|
//! | `INFO` | organization transaction of a job | `org_code`, `reason` |
//! | `ERROR` | organization transaction failed to begin; at most once per second | `error`, `source`, `suppressed`: how many were not logged before this one |
//!
//! # Rust and sqlx
//!
//! Rust 1.94, as sqlx 0.9 needs it. A new version of sqlx that is not compatible is a new major version of this crate.
#![cfg_attr(docsrs, feature(doc_cfg))]
// Without some features, links to their items are broken.
#![cfg_attr(
    not(all(feature = "axum", feature = "sqlx")),
    allow(rustdoc::broken_intra_doc_links)
)]

pub mod isolation;

#[cfg(feature = "sqlx")]
mod check;
#[cfg(feature = "sqlx")]
mod error;
#[cfg(feature = "axum")]
mod extract;
// An empty module: the page is part of the documentation.
#[cfg(all(doc, feature = "sqlx"))]
#[doc = include_str!("guide.md")]
pub mod guide {}
#[cfg(feature = "sqlx")]
mod held;
#[cfg(feature = "sqlx")]
mod pool;
#[cfg(feature = "sqlx")]
mod telemetry;
#[cfg(feature = "sqlx")]
mod transaction;

#[cfg(feature = "sqlx")]
pub use self::{check::IsolationError, error::OrgTxError, pool::OrgPool, transaction::OrgTx};

/// Compiles the examples of the README.
#[cfg(all(doctest, feature = "sqlx"))]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
