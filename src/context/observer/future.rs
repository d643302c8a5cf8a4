use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use pin_project_lite::pin_project;

/// Learns that a request ended without a response. See [`ObservedFuture`].
pub trait Observer {
    /// Called at most once, and not after [`ResponseObserver::responded`].
    fn ended_early(self, end: EarlyEnd);
}

/// Learns how a request ended, and may wrap the body of the response. See [`ObservedFuture`].
pub trait ResponseObserver<B>: Observer {
    /// The body of the response that the outer service returns.
    type Body;

    /// Called at most once, with the response of the inner service.
    fn responded(self, response: Response<B>) -> Response<Self::Body>;
}

/// How a request ended without a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EarlyEnd {
    /// The inner service returned an error.
    Failed,
    /// The future was dropped: the client disconnected, or a timeout outside this future expired.
    Dropped,
    /// The inner service panicked.
    Panicked,
}

impl EarlyEnd {
    /// Returns a stable name: `failed`, `dropped` or `panicked`.
    pub fn code(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Dropped => "dropped",
            Self::Panicked => "panicked",
        }
    }
}

pin_project! {
    /// The future of an inner service that reports how its request ended, exactly once.
    ///
    /// ```
    /// use http::Response;
    /// use tower_orgkey::observer::{EarlyEnd, ObservedFuture, Observer, ResponseObserver};
    ///
    /// struct Log;
    ///
    /// impl Observer for Log {
    ///     fn ended_early(self, end: EarlyEnd) {
    ///         println!("{}", end.code());
    ///     }
    /// }
    ///
    /// impl<B> ResponseObserver<B> for Log {
    ///     type Body = B;
    ///
    ///     fn responded(self, response: Response<B>) -> Response<B> {
    ///         println!("{}", response.status());
    ///         response
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), std::convert::Infallible> {
    /// # let mut inner = tower::service_fn(|_: http::Request<()>| async { Ok::<_, std::convert::Infallible>(Response::new("ok")) });
    /// # let request = http::Request::new(());
    /// // In the `call` of a service:
    /// # use tower::Service;
    /// let future = ObservedFuture::call(Log, || inner.call(request));
    /// # future.await?;
    /// # Ok(()) }
    /// ```
    pub struct ObservedFuture<F, O: Observer> {
        #[pin]
        future: F,
        observer: Option<O>,
    }

    impl<F, O: Observer> PinnedDrop for ObservedFuture<F, O> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(observer) = this.project().observer.take() {
                observer.ended_early(if std::thread::panicking() {
                    EarlyEnd::Panicked
                } else {
                    EarlyEnd::Dropped
                });
            }
        }
    }
}

impl<F, O: Observer> ObservedFuture<F, O> {
    /// Calls the inner service. A panic in the call itself is reported too.
    pub fn call(observer: O, call: impl FnOnce() -> F) -> Self {
        let mut observer = Some(observer);
        let mut guard = PanicGuard(Some(&mut observer));
        let future = call();
        guard.0 = None;
        drop(guard);
        Self { future, observer }
    }
}

/// Reports a panic if it is dropped before the reference is taken out.
struct PanicGuard<'a, O: Observer>(Option<&'a mut Option<O>>);

impl<O: Observer> Drop for PanicGuard<'_, O> {
    fn drop(&mut self) {
        // Reported while the panic unwinds: whoever catches it may drop the future much later.
        if let Some(observer) = self.0.take().and_then(Option::take) {
            observer.ended_early(EarlyEnd::Panicked);
        }
    }
}

impl<F, O, B, E> Future for ObservedFuture<F, O>
where
    F: Future<Output = Result<Response<B>, E>>,
    O: ResponseObserver<B>,
{
    type Output = Result<Response<O::Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut guard = PanicGuard(Some(this.observer));
        let result = this.future.poll(cx);
        let observer = guard.0.take();
        let result = ready!(result);
        let observer = observer
            .and_then(Option::take)
            .unwrap_or_else(|| unreachable!("polled after completion"));
        Poll::Ready(match result {
            Ok(response) => Ok(observer.responded(response)),
            Err(error) => {
                observer.ended_early(EarlyEnd::Failed);
                Err(error)
            }
        })
    }
}

impl_debug!([F, O: Observer] ObservedFuture<F, O>);
