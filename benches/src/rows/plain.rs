//! Layers around a plain Tower service, where requests have no extensions yet.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use http::{Request, Response, StatusCode};
use tower_layer::Layer;
use tower_orgkey::require_scope;

use super::floor::{Facts, NoOpLayer};
use super::ours::warm_layer;
use super::{BEARER, Call, REPORTS, SCOPE, through_service};

async fn inner(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    Ok(Response::new(Body::empty()))
}

pub(super) fn no_op() -> Call {
    let service = NoOpLayer.layer(tower::service_fn(inner));
    through_service(REPORTS, BEARER, StatusCode::OK, service)
}

pub(super) fn extension() -> Call {
    let facts = Arc::new(Facts::of_the_key());
    let service = Extension(facts).layer(tower::service_fn(inner));
    through_service(REPORTS, BEARER, StatusCode::OK, service)
}

pub(super) fn ours() -> Call {
    let service = (warm_layer(), require_scope(SCOPE)).layer(tower::service_fn(inner));
    through_service(REPORTS, BEARER, StatusCode::OK, service)
}
