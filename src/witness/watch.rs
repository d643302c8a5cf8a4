//! A future that tells how a request ended, however it ends.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use pin_project_lite::pin_project;

/// What watches one request, from its arrival to the head of its response.
pub(crate) trait Visit {
    /// The request ended without a response. Called at most once, and not after [`Answer::answered`].
    fn left(self, how: Left);
}

/// A [`Visit`] to a service whose responses have this body.
pub(crate) trait Answer<B>: Visit {
    /// The body that goes on: the same, or one that watches it in turn.
    type Body;

    /// The request was answered.
    fn answered(self, response: Response<B>) -> Response<Self::Body>;
}

/// How a request ended that got no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The inner service failed with an error.
    Failed,
    /// The future was dropped: the client went away, or somebody's timeout ended it.
    Dropped,
    /// The inner service panicked.
    Panicked,
}

pin_project! {
    /// The future of an inner service, watched.
    pub(crate) struct Watched<F, V: Visit> {
        #[pin]
        future: F,
        visit: Option<V>,
    }

    impl<F, V: Visit> PinnedDrop for Watched<F, V> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(visit) = this.project().visit.take() {
                visit.left(if std::thread::panicking() { Left::Panicked } else { Left::Dropped });
            }
        }
    }
}

impl<F, V: Visit> Watched<F, V> {
    fn new(future: F, visit: V) -> Self {
        Self {
            future,
            visit: Some(visit),
        }
    }

    /// Calls the inner service under watch: a panic that comes before there is a future is told as well.
    pub(crate) fn call(visit: V, call: impl FnOnce() -> F) -> Self {
        struct Calling<V: Visit>(Option<V>);

        impl<V: Visit> Drop for Calling<V> {
            fn drop(&mut self) {
                if let Some(visit) = self.0.take() {
                    visit.left(Left::Panicked);
                }
            }
        }

        let mut calling = Calling(Some(visit));
        let future = call();
        match calling.0.take() {
            Some(visit) => Self::new(future, visit),
            None => unreachable!("nothing else takes it"),
        }
    }
}

/// Stands by while the inner future is polled, and sees it panic.
struct Passing<'a, V: Visit>(Option<&'a mut Option<V>>);

impl<V: Visit> Drop for Passing<'_, V> {
    fn drop(&mut self) {
        // Empty unless the poll did not return.
        if let Some(visit) = self.0.take().and_then(Option::take) {
            visit.left(Left::Panicked);
        }
    }
}

impl<F, V, B, E> Future for Watched<F, V>
where
    F: Future<Output = Result<Response<B>, E>>,
    V: Answer<B>,
{
    type Output = Result<Response<V::Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // A panic is told of as it passes by: whoever catches it may drop the future long after.
        let mut passing = Passing(Some(this.visit));
        let result = this.future.poll(cx);
        let visit = passing.0.take();
        let result = ready!(result);
        let visit = visit
            .and_then(Option::take)
            .unwrap_or_else(|| unreachable!("polled after completion"));
        Poll::Ready(match result {
            Ok(response) => Ok(visit.answered(response)),
            Err(error) => {
                visit.left(Left::Failed);
                Err(error)
            }
        })
    }
}
