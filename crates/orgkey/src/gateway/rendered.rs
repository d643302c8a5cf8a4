//! Rejections as complete responses.

use axum::response::IntoResponse;
use bytes::Bytes;
use futures_util::FutureExt;
use http::Response;
use http_body::Body;
use http_body_util::{BodyExt, Collected};
use tower_orgkey::Rejection;

/// Renders a rejection as the layer does.
pub(super) fn rendered(rejection: Rejection) -> Response<Bytes> {
    whole(rejection.into_response())
}

/// Reads a body that is complete, as all bodies of rejections are.
pub(super) fn whole<B: Body<Data = Bytes>>(response: Response<B>) -> Response<Bytes> {
    let (parts, body) = response.into_parts();
    if body.is_end_stream() {
        return Response::from_parts(parts, Bytes::new());
    }
    let collected = body.collect().now_or_never();
    let bytes = collected.and_then(Result::ok).map(Collected::to_bytes);
    Response::from_parts(parts, bytes.unwrap_or_default())
}
