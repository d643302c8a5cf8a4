//! Issuers of API keys for [`tower-orgkey`](https://docs.rs/tower-orgkey), beside Kinde, and a conformance kit for your own.
//!
//! Each issuer is a feature. All keep the guarantees of the layer: known keys are accepted during an outage, a revoked key is
//! rejected within a published bound, and "invalid" is not confused with "cannot tell". There is one exception. Where the answer
//! "invalid" can also be an outage (`active: false` without a [canary](introspection::IntrospectionVerifierBuilder::canary), 422
//! of WorkOS, `NOT_FOUND` of Unkey), a valid key that the layer does not know gets 401 instead of 503 during such an outage, and a
//! known key can be rejected for some seconds afterwards, once another key is valid again.
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `introspection` | | [OAuth 2.0 token introspection](introspection) (RFC 7662): Zitadel, Ory Hydra, Keycloak and others |
//! | `workos` | | [WorkOS](workos) |
//! | `unkey` | | [Unkey](unkey) |
//! | `http` | | [`Endpoint`], the HTTP client for a verifier of your own, and [`fields`] |
//! | `test-util` | | the [conformance kit](conformance) |
//! | `rustls` | yes | TLS to the issuer by rustls |
//! | `native-tls` | | TLS to the issuer by the platform's library |
//!
//! Clerk, PropelAuth and better-auth are examples of this crate, some 60 lines each over [`Endpoint`]. The guide
//! [an issuer of your own](own_issuer) shows a table of keys.
#![cfg_attr(docsrs, feature(doc_cfg))]
// Without some features, links to their items are broken.
#![cfg_attr(
    not(all(
        feature = "introspection",
        feature = "test-util",
        feature = "unkey",
        feature = "workos"
    )),
    allow(rustdoc::broken_intra_doc_links)
)]

#[cfg(feature = "test-util")]
pub mod conformance;
#[cfg(feature = "http")]
mod endpoint;
#[cfg(feature = "http")]
pub mod fields;
#[cfg(feature = "introspection")]
pub mod introspection;
// An empty module: the page is part of the documentation.
#[cfg(doc)]
#[doc = include_str!("own_issuer.md")]
pub mod own_issuer {}
#[cfg(any(feature = "introspection", feature = "unkey"))]
mod members;
#[cfg(feature = "unkey")]
pub mod unkey;
#[cfg(feature = "workos")]
pub mod workos;

#[cfg(feature = "http")]
pub use self::endpoint::{Endpoint, EndpointBuilder, Reply};

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
