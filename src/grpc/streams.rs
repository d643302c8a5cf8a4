use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::status;
use crate::context::OrgContext;
use crate::guard::GuardFuture;
use crate::rejection::{Rejection, RejectionBody, RejectionKind, unrendered};

/// Completes when the key of a request is no longer valid.
type Invalid = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A layer that ends gRPC calls when their key becomes invalid.
///
/// Place it inside of [`ApiKeyLayer`](crate::ApiKeyLayer). The client gets status 16: as the response, if there is none yet,
/// or as trailers after the messages that were sent. The inner service's future and its response stream are dropped, and a
/// request stream that it has passed on ends with an error. When that is, says [`OrgContext::until_invalid`], or
/// [`OrgContext::until_invalid_revalidating`] with [`revalidate_every`](Self::revalidate_every).
///
/// It ends every response of a key, whatever its content type, so place it around gRPC services only. Calls without an
/// organization, which an open method has, are passed on unchanged. Outside of `ApiKeyLayer` it responds with an error, and logs
/// why. Needs a tokio runtime.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct EndStreamsLayer {
    period: Option<Duration>,
}

impl EndStreamsLayer {
    /// Ends calls when the layer learns that their key is invalid, and at the hard TTL.
    pub fn new() -> Self {
        Self::default()
    }

    /// Verifies the key of a call again when its result is older than `period`, so that a call with a valid key outlives the
    /// hard TTL. Without [`revalidation`](crate::ApiKeyLayerBuilder::revalidation) every call ends at once, and the log names
    /// the cause.
    pub fn revalidate_every(mut self, period: Duration) -> Self {
        self.period = Some(period);
        self
    }

    fn invalid(self, context: &OrgContext) -> Invalid {
        match self.period {
            Some(period) => Box::pin(context.until_invalid_revalidating(period)),
            None => Box::pin(context.until_invalid()),
        }
    }
}

impl<S> Layer<S> for EndStreamsLayer {
    type Service = EndStreams<S>;

    fn layer(&self, inner: S) -> Self::Service {
        EndStreams {
            inner,
            layer: *self,
        }
    }
}

/// The service of [`EndStreamsLayer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct EndStreams<S> {
    inner: S,
    layer: EndStreamsLayer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for EndStreams<S>
where
    S: Service<Request<RequestStream<ReqBody>>, Response = Response<ResBody>>,
    ResBody: RejectionBody,
{
    type Response = Response<ResponseStream<ResBody>>;
    type Error = S::Error;
    type Future = EndStreamsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        // Whatever the content type: servers serve calls with another one.
        let context = match OrgContext::required_by(request.extensions(), "`EndStreamsLayer`") {
            Ok(context) => Some(context),
            Err(rejection) if rejection.kind() == RejectionKind::Internal => {
                return EndStreamsFuture {
                    guarded: GuardFuture::rejected(request.extensions(), rejection),
                    invalid: None,
                };
            }
            // The layer let the request through without an organization.
            Err(_) => None,
        };
        let for_request = context.map(|context| self.layer.invalid(context));
        let for_response = context.map(|context| self.layer.invalid(context));
        let request = request.map(|body| RequestStream {
            body,
            invalid: for_request,
            has_ended: false,
        });
        EndStreamsFuture {
            guarded: GuardFuture::inner(self.inner.call(request)),
            invalid: for_response,
        }
    }
}

pin_project! {
    /// The response future of [`EndStreams`].
    pub struct EndStreamsFuture<F> {
        #[pin]
        guarded: GuardFuture<F>,
        invalid: Option<Invalid>,
    }
}

impl<F, B, E> Future for EndStreamsFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: RejectionBody,
{
    type Output = Result<Response<ResponseStream<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if is_over(this.invalid, cx) {
            return Poll::Ready(Ok(unrendered(Rejection::invalid_token())));
        }
        this.guarded.poll(cx).map_ok(|response| {
            response.map(|body| ResponseStream {
                body: Some(body),
                invalid: this.invalid.take(),
            })
        })
    }
}

/// Whether the key has become invalid. The future is not polled again after that.
fn is_over(invalid: &mut Option<Invalid>, cx: &mut Context<'_>) -> bool {
    let Some(future) = invalid else {
        return false;
    };
    let is_over = future.as_mut().poll(cx).is_ready();
    if is_over {
        *invalid = None;
    }
    is_over
}

pin_project! {
    /// The body of a response beneath [`EndStreamsLayer`]. When the key becomes invalid, it ends with trailers: status 16.
    pub struct ResponseStream<B> {
        #[pin]
        body: Option<B>,
        invalid: Option<Invalid>,
    }
}

impl<B: Default> Default for ResponseStream<B> {
    /// The body of a rejection.
    fn default() -> Self {
        Self {
            body: Some(B::default()),
            invalid: None,
        }
    }
}

impl<B: From<Bytes>> From<Bytes> for ResponseStream<B> {
    /// The body of a rejection.
    fn from(bytes: Bytes) -> Self {
        Self {
            body: Some(B::from(bytes)),
            invalid: None,
        }
    }
}

impl<B: Body> Body for ResponseStream<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        if is_over(this.invalid, cx) {
            this.body.set(None);
            let mut trailers = HeaderMap::new();
            status::insert(&mut trailers, &Rejection::invalid_token());
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let Some(body) = this.body.as_pin_mut() else {
            return Poll::Ready(None);
        };
        let polled = body.poll_frame(cx);
        // There are no frames after trailers.
        if let Poll::Ready(frame) = &polled
            && frame
                .as_ref()
                .is_none_or(|frame| frame.as_ref().is_ok_and(Frame::is_trailers))
        {
            *this.invalid = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(body) if self.invalid.is_none() => body.size_hint(),
            // It may end early.
            Some(body) => {
                let mut hint = SizeHint::new();
                if let Some(upper) = body.size_hint().upper() {
                    hint.set_upper(upper);
                }
                hint
            }
            None => SizeHint::with_exact(0),
        }
    }
}

impl_debug!([B] ResponseStream<B>);

pin_project! {
    /// The body of a request beneath [`EndStreamsLayer`]. When the key becomes invalid, it ends with an error.
    pub struct RequestStream<B> {
        #[pin]
        body: B,
        invalid: Option<Invalid>,
        has_ended: bool,
    }
}

/// The key of a request became invalid while its body was read.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the API key is no longer valid")]
struct KeyInvalid;

impl<B> Body for RequestStream<B>
where
    B: Body,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = B::Data;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        if *this.has_ended {
            return Poll::Ready(None);
        }
        if is_over(this.invalid, cx) {
            *this.has_ended = true;
            return Poll::Ready(Some(Err(Box::new(KeyInvalid))));
        }
        this.body.poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl_debug!([B] RequestStream<B>);

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::{pending, ready};
    use std::task::Waker;

    use super::*;

    /// A body of these frames.
    struct Frames(VecDeque<Frame<Bytes>>);

    impl Frames {
        fn message_and_trailers() -> Self {
            let message = Frame::data(Bytes::from_static(b"message"));
            Self([message, Frame::trailers(HeaderMap::new())].into())
        }
    }

    impl Body for Frames {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    fn poll<B: Body + Unpin>(body: &mut B) -> Option<Result<Frame<B::Data>, B::Error>> {
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(body).poll_frame(&mut cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => panic!("pending"),
        }
    }

    /// Calls a service beneath the layer, which passes on what it gets.
    fn called(context: Option<OrgContext>) -> Response<ResponseStream<()>> {
        let mut service = EndStreamsLayer::new().layer(tower_layer::layer_fn(|()| Echo).layer(()));
        let mut request = Request::new(());
        if let Some(context) = context {
            request.extensions_mut().insert(context);
        }
        let mut future = std::pin::pin!(service.call(request));
        let mut cx = Context::from_waker(Waker::noop());
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(Ok(response)) => response,
            _ => panic!("no response"),
        }
    }

    #[derive(Clone)]
    struct Echo;

    impl<B> Service<Request<B>> for Echo {
        type Response = Response<()>;
        type Error = std::convert::Infallible;
        type Future = std::future::Ready<Result<Response<()>, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<B>) -> Self::Future {
            ready(Ok(Response::new(())))
        }
    }

    #[test]
    fn responses_of_any_content_type_end() {
        let context = crate::test_util::OrgContextBuilder::new("org_1").build();
        let response = called(Some(context));
        assert_eq!(response.status(), 200);
        assert!(response.body().invalid.is_some());
        // Outside of the layer.
        assert_eq!(called(None).status(), 500);
    }

    #[test]
    fn request_stream_ends_with_an_error() {
        let mut stream = RequestStream {
            body: Frames::message_and_trailers(),
            invalid: Some(Box::pin(pending())),
            has_ended: false,
        };
        assert!(poll(&mut stream).unwrap().unwrap().is_data());
        stream.invalid = Some(Box::pin(ready(())));
        assert!(!stream.is_end_stream());
        let error = poll(&mut stream).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the API key is no longer valid");
        assert!(poll(&mut stream).is_none());
        assert!(stream.is_end_stream());
    }

    #[test]
    fn response_stream_ends_with_trailers() {
        let mut stream = ResponseStream {
            body: Some(Frames::message_and_trailers()),
            invalid: Some(Box::pin(pending())),
        };
        assert!(poll(&mut stream).unwrap().unwrap().is_data());
        stream.invalid = Some(Box::pin(ready(())));
        let trailers = poll(&mut stream)
            .unwrap()
            .unwrap()
            .into_trailers()
            .ok()
            .unwrap();
        assert_eq!(trailers["grpc-status"], "16");
        assert!(poll(&mut stream).is_none());
        assert!(stream.is_end_stream());
    }

    #[test]
    fn finished_response_keeps_its_trailers() {
        let mut stream = ResponseStream {
            body: Some(Frames::message_and_trailers()),
            invalid: Some(Box::pin(pending())),
        };
        assert!(poll(&mut stream).unwrap().unwrap().is_data());
        assert!(poll(&mut stream).unwrap().unwrap().is_trailers());
        assert!(stream.invalid.is_none());
        assert!(poll(&mut stream).is_none());
    }
}
