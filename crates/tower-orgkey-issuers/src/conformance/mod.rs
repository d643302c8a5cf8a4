//! A conformance kit for verifiers: checks which guarantees of the layer hold with an issuer.
//!
//! [`check_verifier`] puts the verifier behind a real [`ApiKeyLayer`](tower_orgkey::ApiKeyLayer), brings the issuer into each
//! [`Condition`], sends requests, and returns a [`Report`]. Call it from a test of your own:
//!
//! ```
//! use std::collections::HashMap;
//! use std::sync::{Arc, Mutex};
//!
//! use tower_orgkey::{ApiKey, OrgCode, Verification, VerifyError, verifier_fn};
//! use tower_orgkey_issuers::conformance::{Condition, IssuerUnderTest, check_verifier};
//!
//! /// Keys and their organizations, none for a revoked one; and whether the table can be reached.
//! #[derive(Clone, Default)]
//! struct Table(Arc<Mutex<(HashMap<String, Option<String>>, bool)>>);
//!
//! impl IssuerUnderTest for Table {
//!     async fn issue(&mut self, organization: &str) -> ApiKey {
//!         let (keys, _) = &mut *self.0.lock().unwrap();
//!         let key = format!("k_live_{:08}", keys.len());
//!         keys.insert(key.clone(), Some(organization.to_owned()));
//!         ApiKey::parse(&key).unwrap()
//!     }
//!
//!     async fn revoke(&mut self, key: &ApiKey) {
//!         self.0.lock().unwrap().0.insert(key.expose_secret().to_owned(), None);
//!     }
//!
//!     async fn set(&mut self, condition: Condition) -> bool {
//!         self.0.lock().unwrap().1 = condition == Condition::Down;
//!         matches!(condition, Condition::Normal | Condition::Down)
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let mut table = Table::default();
//! let read = table.clone();
//! let verifier = verifier_fn(move |key| {
//!     let (keys, is_down) = &*read.0.lock().unwrap();
//!     let verified = match keys.get(key.expose_secret()) {
//!         _ if *is_down => Err(VerifyError::unavailable("no connection to the table")),
//!         Some(Some(org)) => Ok(Verification::of_organization(OrgCode::new(org.as_str()).unwrap())),
//!         _ => Ok(Verification::invalid()),
//!     };
//!     async { verified }
//! });
//! let report = check_verifier(verifier, &mut table).await;
//! report.assert();
//! # }
//! ```
//!
//! For an issuer that is called over HTTP, a [`FaultProxy`] between the verifier and the issuer brings about most conditions.
//!
//! The kit needs a tokio runtime with its timers running, not paused: it moves the clock of the layer by itself. It takes a few
//! seconds for an issuer with [`Condition::Slow`].

mod check;
mod condition;
mod proxy;
mod report;
mod stage;
mod watched;

pub use self::check::check_verifier;
pub use self::condition::{Condition, IssuerUnderTest};
pub use self::proxy::{FaultProxy, FaultProxyBuilder};
pub use self::report::{Check, CheckResult, Guarantee, Report};
