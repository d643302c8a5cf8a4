//! Services for requests whose key is not read: of public routes, and of no route. The audit trail is around them.

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

/// Records a request of a public route.
pub(super) type Pass = BoxCloneSyncService<Request<()>, Response<Bytes>, Infallible>;

/// Responds with the rejection that is the body of the request, and records it if there is an audit trail.
pub(super) type Reject = BoxCloneSyncService<Request<Rejection>, Response<Bytes>, Infallible>;

pub(super) fn pass(audit: &AuditLayer) -> Pass {
    let pass = service_fn(async |_| Ok(Response::new(Full::default())));
    recorded(Some(audit), pass)
}

pub(super) fn reject(audit: Option<&AuditLayer>) -> Reject {
    let reject = async |request: Request<Rejection>| Ok(request.into_body().into_response());
    recorded(audit, service_fn(reject))
}

/// Puts the audit trail around a service, and reads its bodies.
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

/// The rejection of a request that no route matches.
pub(super) fn no_route() -> Rejection {
    let detail = "The gateway has no route for this method and path.";
    Rejection::custom(StatusCode::FORBIDDEN, "no-route", detail)
}

/// The rejection of a request whose path a service may read in another way.
pub(super) fn ambiguous(reason: &'static str) -> Rejection {
    let detail = format!("The path {reason}.");
    Rejection::custom(StatusCode::BAD_REQUEST, "ambiguous-path", detail)
}
