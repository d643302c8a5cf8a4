use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};

use super::{GRPC, is_grpc, status};
use crate::rejection::{EmptyRejectionResponse, Rejection, RejectionResponse};
use crate::request_head::RequestHead;

/// Responds to gRPC calls with a status, and to all other requests in another format.
///
/// The response to a gRPC call has no body: HTTP status 200, and the gRPC status in the headers ("trailers-only"). See the
/// [module documentation](crate::grpc#rejections).
///
/// ```
/// use tower_orgkey::grpc::GrpcRejectionResponse;
/// use tower_orgkey::{ApiKeyLayer, Verification, verifier_fn};
///
/// let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
/// // A server with HTTP and gRPC on one port.
/// let auth: ApiKeyLayer<GrpcRejectionResponse<_>> = auth.with_rejection_response(GrpcRejectionResponse::or(
///     tower_orgkey::rejection::DefaultRejectionResponse::default(),
/// ));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct GrpcRejectionResponse<F = EmptyRejectionResponse> {
    other: F,
    is_grpc: bool,
}

impl GrpcRejectionResponse {
    /// For a server of gRPC alone. Requests that are no gRPC calls get a status and an empty body.
    pub fn new() -> Self {
        Self::or(EmptyRejectionResponse)
    }
}

impl<F> GrpcRejectionResponse<F> {
    /// For a server of gRPC and HTTP: `other` responds to requests that are no gRPC calls.
    pub fn or(other: F) -> Self {
        Self {
            other,
            is_grpc: false,
        }
    }
}

impl<B, F> RejectionResponse<B> for GrpcRejectionResponse<F>
where
    B: Default,
    F: RejectionResponse<B>,
{
    fn prepare(&mut self, request: RequestHead<'_>) {
        self.is_grpc = is_grpc(request.headers);
        self.other.prepare(request);
    }

    fn rejection_response(&mut self, rejection: &Rejection) -> Response<B> {
        if !self.is_grpc {
            return self.other.rejection_response(rejection);
        }
        let mut response = Response::new(B::default());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
        status::insert(headers, rejection);
        response
    }
}
