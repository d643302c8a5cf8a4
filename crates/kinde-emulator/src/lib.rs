//! A Kinde-compatible issuer to develop and test against: a real server on loopback, and everything that can go wrong.
//!
//! It speaks the part of Kinde's API that concerns API keys, over HTTP or TLS, as published: the token endpoint, verify, and
//! create, get, list, rotate and delete of keys. What Kinde does not publish (how a key that is not good is answered, whether
//! verify wants a token) is a switch with every shape it could have. Nobody needs an account or a network for it.
//!
//! # Testing your own application
//!
//! Start one in each test; it takes a free port, and stops when it is dropped.
//!
//! ```
//! use axum::{Router, body::Body, routing::get};
//! use http::{Request, StatusCode};
//! use tower::ServiceExt;
//! use tower_orgkey::emulator::{Endpoint, Fault, KeySpec, KindeEmulator};
//! use tower_orgkey::{ApiKeyLayer, OrgContext, kinde::KindeVerifier};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let emulator = KindeEmulator::start().await?;
//! let key = emulator.issue_key(KeySpec::organization("org_1").scopes(["read:reports"]));
//!
//! // Your application, told of the emulator where in production it is told of Kinde. Over TLS it is also told of the root:
//! // `.add_root_certificate_pem(emulator.root_certificate_pem()…)`.
//! let verifier = KindeVerifier::builder(emulator.issuer_url())
//!     .client_credentials(emulator.client_id(), emulator.client_secret())
//!     .build()?;
//! let app: Router = Router::new()
//!     .route("/", get(|org: OrgContext| async move { org.org_code().to_string() }))
//!     .route_layer(ApiKeyLayer::new(verifier));
//! let call = |secret: &str| {
//!     let request = Request::get("/").header("authorization", format!("Bearer {secret}"));
//!     app.clone().oneshot(request.body(Body::empty()).unwrap())
//! };
//!
//! assert_eq!(call(key.secret()).await?.status(), StatusCode::OK);
//! assert_eq!(call("k_live_nobody_has_it").await?.status(), StatusCode::UNAUTHORIZED);
//!
//! // The issuer fails. A key that was verified goes on; of another nothing can be said.
//! emulator.inject(Endpoint::Verify, Fault::status(503));
//! let stranger = emulator.issue_key(KeySpec::organization("org_2"));
//! assert_eq!(call(key.secret()).await?.status(), StatusCode::OK);
//! assert_eq!(call(stranger.secret()).await?.status(), StatusCode::SERVICE_UNAVAILABLE);
//!
//! // A fault that never fires keeps a test green for nothing, so ask.
//! assert!(emulator.calls().verify.faulted > 0);
//! # Ok(()) }
//! ```
//!
//! The example `testing_your_app` has the same as a set of tests, with a clock that they move.
//!
//! # What can be switched
//!
//! | to have | call |
//! |---|---|
//! | a key of any kind, revoked, inactive, rotated, deleted | [`issue_key`](KindeEmulator::issue_key), [`revoke`](KindeEmulator::revoke), [`deactivate`](KindeEmulator::deactivate), [`rotate`](KindeEmulator::rotate), [`delete`](KindeEmulator::delete) |
//! | a bad key answered in another shape | [`set_rejected_as`](KindeEmulator::set_rejected_as) |
//! | verify with or without a token | [`set_verify_access`](KindeEmulator::set_verify_access) |
//! | tokens revoked, short-lived, or without scopes | [`revoke_tokens`](KindeEmulator::revoke_tokens), [`set_token_lifetime`](KindeEmulator::set_token_lifetime), [`set_token_scopes`](KindeEmulator::set_token_scopes) |
//! | latency, any status, any body, a redirect, a refused token, cut and trickling bodies, silence, resets, calls held back | [`inject`](KindeEmulator::inject) a [`Fault`] |
//! | nothing at all | [`set_outage`](KindeEmulator::set_outage) |
//! | to know what was asked | [`calls`](KindeEmulator::calls), [`last_request`](KindeEmulator::last_request), [`reached`](KindeEmulator::reached) |
//! | a certificate that is unknown, for another name, or expired | [`KindeEmulatorBuilder::tls`] and its neighbours |
//!
//! # Where it is not Kinde
//!
//! The tokens look like Kinde's JWTs, but their signature is noise: no JWKS is served, and nothing but the emulator can tell
//! a good one. The codes and messages of errors are made up, since none are published. A scope's id is its name. Nothing is
//! stored: keys and tokens live as long as the process.

mod builder;
mod calls;
mod endpoint;
mod fault;
mod handle;
mod issuer;
mod keys;
mod line;
mod replies;
mod server;
mod service;
mod shared;
mod tls;
mod tokens;
mod wire;

pub use self::builder::KindeEmulatorBuilder;
pub use self::calls::{Calls, EndpointCalls, SeenRequest};
pub use self::endpoint::{Endpoint, Endpoints};
pub use self::fault::Fault;
pub use self::handle::KindeEmulator;
pub use self::issuer::VerifyAccess;
pub use self::keys::{DEFAULT_API_ID, IssuedKey, KeySpec};
pub use self::replies::RejectedAs;
