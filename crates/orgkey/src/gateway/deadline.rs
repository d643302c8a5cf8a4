//! The deadline of a proxy, around the layer and within the audit trail.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either};
use http::{Request, Response};
use http_body_util::Full;
use tower::Service;
use tower_orgkey::Rejection;

use super::rendered::rendered;
use super::terms::Terms;

/// Rejects a request that is not decided at the deadline of its [`Terms`]. The verification goes on, and the next request finds its result.
#[derive(Clone)]
pub(super) struct WithDeadline<S>(pub(super) S);

impl<S> Service<Request<Terms>> for WithDeadline<S>
where
    S: Service<Request<Terms>, Response = Response<Full<Bytes>>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Result<S::Response, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Terms>) -> Self::Future {
        let deadline = request.body_mut().deadline.take();
        let decided = self.0.call(request);
        match deadline {
            None => Either::Left(decided),
            Some(deadline) => {
                let in_time = tokio::time::timeout(deadline, decided)
                    .map(|in_time| in_time.unwrap_or_else(|_| Ok(too_slow())));
                Either::Right(Box::pin(in_time))
            }
        }
    }
}

fn too_slow() -> Response<Full<Bytes>> {
    rendered(Rejection::verifier_unavailable(Duration::from_secs(1))).map(Full::new)
}
