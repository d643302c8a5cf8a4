//! Services for requests that are decided without a key: those of public routes, and those that are rejected before the layer. If
//! there is an audit trail, it records them.

use std::convert::Infallible;

use axum::response::IntoResponse;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_orgkey::Rejection;
use tower_orgkey_audit::AuditLayer;

use super::rendered::whole;

/// Responds to a request of a public route, with nothing.
pub(super) type Pass = BoxCloneSyncService<Request<()>, Response<Bytes>, Infallible>;

/// Responds with the rejection that is the body of the request.
pub(super) type Reject = BoxCloneSyncService<Request<Rejection>, Response<Bytes>, Infallible>;

/// Returns the service of public routes.
pub(super) fn pass(audit: &AuditLayer) -> Pass {
    let pass = service_fn(async |_| Ok(Response::new(Full::default())));
    recorded(Some(audit), pass)
}

/// Returns the service that rejects requests.
pub(super) fn reject(audit: Option<&AuditLayer>) -> Reject {
    let reject = async |request: Request<Rejection>| Ok(request.into_body().into_response());
    recorded(audit, service_fn(reject))
}

/// Puts the audit trail around a service, if there is one, and reads the bodies of its responses.
fn recorded<R, S, B>(
    audit: Option<&AuditLayer>,
    service: S,
) -> BoxCloneSyncService<Request<R>, Response<Bytes>, Infallible>
where
    S: Service<Request<R>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + 'static,
{
    match audit {
        Some(audit) => BoxCloneSyncService::new(audit.layer(service).map_response(whole)),
        None => BoxCloneSyncService::new(service.map_response(whole)),
    }
}

/// Returns the rejection of a request that no route matches.
pub(super) fn no_route() -> Rejection {
    let detail = "The gateway has no route for this method and path.";
    Rejection::custom(StatusCode::FORBIDDEN, "no-route", detail)
}

/// Returns the rejection of a path that a service may read differently.
pub(super) fn ambiguous(reason: &'static str) -> Rejection {
    let detail = format!("The path {reason}.");
    Rejection::custom(StatusCode::BAD_REQUEST, "ambiguous-path", detail)
}
