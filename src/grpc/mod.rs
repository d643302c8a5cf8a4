//! gRPC: rejections as statuses, scopes by method, and streams that end with their key. Needs no gRPC library; examples use
//! [tonic](https://docs.rs/tonic).
//!
//! ```
//! use tower::ServiceBuilder;
//! use tower_orgkey::grpc::{EndStreamsLayer, GrpcMethods, GrpcRejectionResponse};
//! use tower_orgkey::scope::ScopePolicy;
//! # use tower_orgkey::{ApiKeyLayer, Verification, verifier_fn};
//! # let kinde = verifier_fn(|_| async { Ok(Verification::invalid()) });
//!
//! let auth = ApiKeyLayer::builder(kinde)
//!     // Methods that are open need no key; `methods` requires one of all others.
//!     .allow_anonymous()
//!     .build()?
//!     .with_rejection_response(GrpcRejectionResponse::new());
//! let methods = GrpcMethods::builder()
//!     .method("/reports.v1.Reports/List", ScopePolicy::new([["read:reports"]]))
//!     .open_health()
//!     .build()?;
//!
//! // For `tonic::transport::Server::builder().layer(..)`, or around the gRPC routes of an axum router.
//! let layers = ServiceBuilder::new()
//!     .layer(auth)
//!     .layer(methods)
//!     .layer(EndStreamsLayer::new())
//!     .into_inner();
//! # Ok::<(), tower_orgkey::ConfigError>(())
//! ```
//!
//! # Rejections
//!
//! A gRPC client expects status 200 and a `grpc-status`. [`GrpcRejectionResponse`] responds so to requests with the content type
//! `application/grpc`, and to all others in another format, so that HTTP and gRPC can share a port:
//!
//! | rejection | code |
//! |---|---|
//! | `credential-missing`, `credential-malformed`, `invalid-token` | 16 `UNAUTHENTICATED` |
//! | `organization-required`, `insufficient-scope`, `organization-mismatch` | 7 `PERMISSION_DENIED` |
//! | `not-found` | 5 `NOT_FOUND` |
//! | `rate-limited`, `concurrency-limited` | 8 `RESOURCE_EXHAUSTED` |
//! | `verifier-unavailable`, `verifier-misconfigured`, `settings-unavailable` | 14 `UNAVAILABLE` |
//! | `internal` | 13 `INTERNAL` |
//! | `custom` | by its HTTP status: 400 is 3, 401 is 16, 403 is 7, 404 is 5, 409 is 10, 412 is 9, 429 is 8, 501 is 12, 503 is 14, 504 is 4, other 5xx are 13, and the rest is 2 |
//!
//! `grpc-message` is the detail of the problem document. `grpc-status-details-bin` has an `ErrorInfo` with the code of the
//! rejection as its reason (`INSUFFICIENT_SCOPE`), the domain `tower-orgkey`, and the required scopes as its metadata `scope`; a
//! `RetryInfo` if the request can be repeated; and a `QuotaFailure` for limits. The challenge and `Retry-After` arrive as
//! metadata.
//!
//! gRPC-Web works with `tonic_web::GrpcWebLayer` outside of the layer. A browser reads the status only if CORS exposes
//! `grpc-status`, `grpc-message` and `grpc-status-details-bin`.
//!
//! # Methods
//!
//! [`GrpcMethods`] maps the exact path of a method to the scopes that it requires. What it does not list is rejected.
//!
//! # Streams
//!
//! A stream outlives the verification of its key. [`EndStreamsLayer`] ends it with status 16 when the key becomes invalid. It does
//! not end when the key loses a scope.

mod methods;
mod response;
mod status;
mod streams;

pub use self::methods::{GrpcMethods, GrpcMethodsBuilder, GrpcMethodsService};
pub use self::response::GrpcRejectionResponse;
pub use self::streams::{
    EndStreams, EndStreamsFuture, EndStreamsLayer, RequestStream, ResponseStream,
};

use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// The content type of gRPC, in requests and responses.
const GRPC: &str = "application/grpc";

/// Returns whether a request is a gRPC call. gRPC-Web is another protocol: its content type begins with the same letters.
fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    match value.as_bytes().split_at_checked(GRPC.len()) {
        Some((kind, rest)) => {
            kind.eq_ignore_ascii_case(GRPC.as_bytes())
                && matches!(rest.trim_ascii_start().first(), None | Some(b'+' | b';'))
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn content_types_of_grpc_are_recognized() {
        let is = |value| {
            is_grpc(&HeaderMap::from_iter([(
                CONTENT_TYPE,
                HeaderValue::from_static(value),
            )]))
        };
        assert!(
            [
                "application/grpc",
                "application/grpc+proto",
                "Application/gRPC ;x=y"
            ]
            .map(is)
                == [true; 3]
        );
        assert!(
            [
                "application/grpc-web",
                "application/grpc-web+proto",
                "application/json",
                ""
            ]
            .map(is)
                == [false; 4]
        );
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
