//! A Kinde-compatible issuer of API keys, for development and tests.
//!
//! [`KindeEmulator`] is an HTTP server on loopback. It implements the part of Kinde's API that concerns API keys as it is
//! published: the token endpoint, and the endpoints that verify, create, get, list, rotate and delete keys. It also implements
//! the endpoints by which usage is billed: an organization with its agreements, and metered usage. Where Kinde
//! publishes nothing (how an invalid key is answered, whether verify needs a token, how a record of a key is wrapped), a switch
//! selects one of the possible behaviors. Faults can be injected at each endpoint. No account and no network are needed.
//!
//! # Example
//!
//! Start one emulator per test. It listens on a free port, and stops when its last handle is dropped.
//!
//! ```
//! use kinde_emulator::{Endpoint, Fault, KeySpec, KindeEmulator};
//! use serde_json::{Value, json};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let emulator = KindeEmulator::start().await?;
//! let key = emulator.issue_key(KeySpec::organization("org_1").scopes(["read:reports"]));
//!
//! // An application under test is configured with `emulator.issuer_url()`, `client_id()` and `client_secret()`. Here a
//! // plain HTTP client takes its place.
//! let http = reqwest::Client::new();
//! let token = emulator.issue_token(["read:api_keys"]);
//! let verify = || {
//!     http.post(format!("{}/api/v1/api_keys/verify", emulator.issuer_url()))
//!         .bearer_auth(&token)
//!         .json(&json!({ "api_key": key.secret() }))
//!         .send()
//! };
//! let reply: Value = verify().await?.json().await?;
//! assert_eq!(reply["org_code"], "org_1");
//!
//! emulator.inject(Endpoint::Verify, Fault::status(503));
//! assert_eq!(verify().await?.status(), 503);
//!
//! // A test that injects a fault should check that the fault was used.
//! assert_eq!(emulator.calls().verify.faulted, 1);
//! # Ok(()) }
//! ```
//!
//! # What can be configured
//!
//! | purpose | method |
//! |---|---|
//! | issue a key of any kind; revoke, deactivate, rotate or delete it | [`issue_key`](KindeEmulator::issue_key), [`revoke`](KindeEmulator::revoke), [`deactivate`](KindeEmulator::deactivate), [`rotate`](KindeEmulator::rotate), [`delete`](KindeEmulator::delete) |
//! | select the reply to verify for a valid key, such as the one in Kinde's guide | [`set_valid_key_reply`](KindeEmulator::set_valid_key_reply) |
//! | select the reply to verify for an invalid key | [`set_invalid_key_reply`](KindeEmulator::set_invalid_key_reply) |
//! | select whether the record of a key is wrapped into a member | [`set_key_record_reply`](KindeEmulator::set_key_record_reply) |
//! | select whether verify needs a token | [`set_verify_access`](KindeEmulator::set_verify_access) |
//! | revoke tokens, or issue them with a short lifetime or fewer scopes | [`revoke_tokens`](KindeEmulator::revoke_tokens), [`set_token_lifetime`](KindeEmulator::set_token_lifetime), [`set_token_scopes`](KindeEmulator::set_token_scopes) |
//! | inject latency, any status or body, a redirect, a rejected token, truncated or slow bodies, timeouts, connection resets | [`inject`](KindeEmulator::inject) with a [`Fault`] |
//! | add organizations, start and cancel billing agreements; read the recorded usage | [`add_organization`](KindeEmulator::add_organization), [`start_agreement`](KindeEmulator::start_agreement), [`cancel_agreement`](KindeEmulator::cancel_agreement), [`usage`](KindeEmulator::usage) |
//! | move the clock | [`set_clock_offset`](KindeEmulator::set_clock_offset) |
//! | do all of this over HTTP, from another language | [`control_endpoints`](KindeEmulatorBuilder::control_endpoints) |
//! | reset all connections | [`set_outage`](KindeEmulator::set_outage) |
//! | inspect the calls that were made | [`calls`](KindeEmulator::calls), [`last_request`](KindeEmulator::last_request), [`wait_for_calls`](KindeEmulator::wait_for_calls) |
#![cfg_attr(
    feature = "tls",
    doc = "| serve HTTPS, with a trusted, unknown, misnamed or expired certificate | [`KindeEmulatorBuilder::tls`], [`tls_for_names`](KindeEmulatorBuilder::tls_for_names), [`tls_expired`](KindeEmulatorBuilder::tls_expired) |"
)]
//!
//! # Differences from Kinde
//!
//! * Access tokens have the shape of Kinde's JWTs, but a random signature. The emulator serves no JWKS and recognizes only the
//!   tokens that it issued.
//! * An organization has at most one agreement that is not cancelled. `meter_value` must be a whole number, `meter_type_code` is
//!   required, and `meter_usage_timestamp` is ignored: usage counts in the period in which it arrives.
//! * Error codes and messages are invented, because Kinde publishes none.
//! * The id of a scope is its name.
//! * Keys and tokens are kept in memory and are lost when the process ends.
//!
//! # Features
//!
//! | feature | default | enables |
//! |---|---|---|
//! | `tls` | no | HTTPS with certificates that are generated at start |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod billing;
mod body;
mod builder;
mod calls;
mod clock;
mod connection;
mod control;
mod encoding;
mod endpoint;
mod fault;
mod handle;
mod injected;
mod issuer;
mod keys;
mod late;
mod recorded;
mod replies;
mod reply;
mod server;
mod service;
mod shared;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
mod tls;
mod tokens;

pub use self::billing::{AgreementSpec, PeriodUsage};
pub use self::builder::KindeEmulatorBuilder;
pub use self::calls::{Calls, EndpointCalls};
pub use self::endpoint::{Endpoint, Endpoints};
pub use self::fault::Fault;
pub use self::handle::KindeEmulator;
pub use self::issuer::VerifyAccess;
pub use self::keys::{DEFAULT_API_ID, IssuedKey, KeySpec};
pub use self::recorded::RecordedRequest;
pub use self::replies::{InvalidKeyReply, KeyRecordReply, ValidKeyReply};

/// The target of the events that the emulator emits through `tracing`.
const TARGET: &str = "kinde_emulator";

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
