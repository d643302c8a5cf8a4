//! The auto traits of the public types.

use bytes::Bytes;
use http::{Request, Response};
use static_assertions::{assert_impl_all, assert_not_impl_any};
use tower_orgkey::auth::ResponseFuture;
use tower_orgkey::context::OrgContext;
use tower_orgkey::guard::{FromHead, GuardFuture, PathParameter, RequireOrg, RequireScope};
use tower_orgkey::limit::{
    OrgConcurrencyLimit, OrgConcurrencyLimitFuture, OrgRateLimit, OrgRateLimitFuture, PermitBody,
};
use tower_orgkey::observer::{Caller, EarlyEnd, ObserverService, Requirement};
use tower_orgkey::test_util::{OrgContextBuilder, TestClock};
use tower_orgkey::*;

use crate::support::Issuer;
use crate::support::probe::Probe;

type Claim = FromHead<fn(RequestHead<'_>) -> Option<String>>;
type Face = fn(&Rejection) -> Response<Bytes>;
type Ready = std::future::Ready<Result<Response<Bytes>, std::convert::Infallible>>;

macro_rules! all {
    ($($type:ty: $($trait:path),+;)*) => {
        $(assert_impl_all!($type: Send, Sync, Unpin, std::fmt::Debug, $($trait),+);)*
    };
}

/// A type that is `'static`.
trait Static: 'static {}
impl<T: 'static> Static for T {}

all! {
    ApiKeyLayer: Clone, Static;
    ApiKeyLayer<Face>: Clone, Static;
    ApiKeyLayerBuilder: Static;
    ApiKeyService<Probe>: Clone, Static;
    ApiKeyService<Probe, Face>: Clone, Static;
    RequireScopeLayer: Clone, Static;
    RequireScope<Probe>: Clone, Static;
    RequireOrgLayer<PathParameter>: Clone, Static;
    RequireOrgLayer<Claim>: Clone, Static;
    RequireOrg<Probe, PathParameter>: Clone, Static;
    RequireOrg<Probe, Claim>: Clone, Static;
    OrgContext: Clone, Static;
    Scoped<std::rc::Rc<()>>: Clone, Static;
    OrgCode: Clone, Eq, Ord, std::hash::Hash, std::fmt::Display, Static;
    KeyId: Clone, Eq, Ord, std::hash::Hash, std::fmt::Display, Static;
    Scope: Clone, Eq, Ord, std::hash::Hash, std::fmt::Display, Static;
    Scopes: Clone, Eq, Default, std::hash::Hash, Static;
    ScopePolicy: Clone, Eq, Static;
    ApiKey: Clone, Static;
    Rejection: Clone, std::error::Error, axum::response::IntoResponse, Static;
    RejectionKind: Copy, Eq, std::hash::Hash, Static;
    DefaultRejectionResponse: Copy, Default, Static;
    Verification: Clone, Static;
    VerifyError: Clone, std::error::Error, Static;
    VerifyErrorKind: Copy, Eq, std::error::Error, Static;
    VerifierFn<fn()>: Clone, Static;
    ConfigError: Clone, Eq, std::error::Error, Static;
    InvalidApiKey: Clone, Eq, std::error::Error, Static;
    InvalidIdentifier: Clone, Eq, std::error::Error, Static;
    InvalidScope: Clone, Eq, std::error::Error, Static;
    InvalidScopePolicy: Clone, Eq, std::error::Error, Static;
    OrgRateLimitLayer: Clone, Static;
    OrgRateLimitLayerBuilder: Static;
    OrgRateLimit<Probe>: Clone, Static;
    OrgConcurrencyLimitLayer: Clone, Static;
    OrgConcurrencyLimit<Probe>: Clone, Static;
    ObserverLayer: Clone, Static;
    ObserverService<Probe>: Clone, Static;
    RequestObservation: Clone, Static;
    Caller: Clone, Static;
    EarlyEnd: Copy, Eq, std::hash::Hash, Static;
    Requirement: Clone, Static;
    Quota: Copy, Eq, std::hash::Hash, Static;
    TestClock: Clone, Default, Static;
    OrgContextBuilder: Clone, Static;
}

// The auto traits of a future depend only on the body and the inner service.
assert_impl_all!(ResponseFuture<Probe, DefaultRejectionResponse, ()>: Send, Unpin, std::fmt::Debug);
assert_impl_all!(ResponseFuture<Probe, Face, axum::body::Body>: Send, Unpin);
assert_impl_all!(OrgRateLimitFuture<Ready>: Send, Sync, Unpin, std::fmt::Debug);
assert_impl_all!(OrgConcurrencyLimitFuture<Ready>: Send, Sync, Unpin, std::fmt::Debug);
assert_impl_all!(PermitBody<axum::body::Body>: Send, Unpin, std::fmt::Debug, http_body::Body, From<Bytes>);
assert_impl_all!(GuardFuture<Ready>: Send, Sync, Unpin, std::fmt::Debug);

// A key can be neither printed nor compared, except by its digest.
assert_not_impl_any!(ApiKey: std::fmt::Display, PartialEq, AsRef<str>);

/// The layer works over services and bodies that are not `Sync`.
#[test]
fn layer_needs_few_bounds_on_bodies() {
    struct Body(std::cell::Cell<u8>);

    fn is_service<S: tower::Service<Request<Body>>>(_: &S) -> bool
    where
        S::Future: Send,
    {
        true
    }
    let layer = ApiKeyLayer::new(Issuer::new());
    let service = tower::Layer::layer(&layer, Probe::new());
    assert!(is_service(&service));
    assert_eq!(Body(7.into()).0.get(), 7);
}

#[test]
fn extractor_futures_are_send() {
    fn is_send<F: Send>(_: &F) -> bool {
        true
    }
    let (mut parts, ()) = Request::new(()).into_parts();
    assert!(is_send(&<OrgContext as axum::extract::FromRequestParts<
        (),
    >>::from_request_parts(&mut parts, &())));
    assert!(is_send(
        &<OrgContext as axum::extract::OptionalFromRequestParts<()>>::from_request_parts(
            &mut parts,
            &()
        )
    ));
}
