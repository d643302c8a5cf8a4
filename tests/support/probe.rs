//! A service that records how it is called.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use tower::Service;

#[derive(Debug, Default)]
pub(crate) struct Seen {
    instances: AtomicUsize,
    clones: AtomicUsize,
    polls: AtomicUsize,
    ready: AtomicUsize,
    violations: AtomicUsize,
    cancelled: AtomicUsize,
    is_held: std::sync::atomic::AtomicBool,
    waker: Mutex<Option<Waker>>,
    called: Mutex<Vec<usize>>,
}

/// A clone is another instance, which is not ready.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) id: usize,
    is_ready: bool,
    seen: Arc<Seen>,
}

impl Probe {
    pub(crate) fn new() -> Self {
        let seen = Arc::<Seen>::default();
        seen.instances.fetch_add(1, Ordering::SeqCst);
        Self {
            id: 0,
            is_ready: false,
            seen,
        }
    }

    pub(crate) fn seen(&self) -> Arc<Seen> {
        Arc::clone(&self.seen)
    }
}

impl Seen {
    pub(crate) fn clones(&self) -> usize {
        self.clones.load(Ordering::SeqCst)
    }

    pub(crate) fn polls(&self) -> usize {
        self.polls.load(Ordering::SeqCst)
    }

    /// The number of instances that are ready and were not called.
    pub(crate) fn ready(&self) -> usize {
        self.ready.load(Ordering::SeqCst)
    }

    /// Calls of an instance that was not ready.
    pub(crate) fn violations(&self) -> usize {
        self.violations.load(Ordering::SeqCst)
    }

    /// Response futures that were dropped before completion.
    pub(crate) fn cancelled(&self) -> usize {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// The instances that were called.
    pub(crate) fn called(&self) -> Vec<usize> {
        self.called.lock().unwrap().clone()
    }

    /// Makes all instances pending until `release`.
    pub(crate) fn hold(&self) {
        self.is_held.store(true, Ordering::SeqCst);
    }

    pub(crate) fn release(&self) {
        self.is_held.store(false, Ordering::SeqCst);
        if let Some(waker) = self.waker.lock().unwrap().take() {
            waker.wake();
        }
    }
}

impl Clone for Probe {
    fn clone(&self) -> Self {
        self.seen.clones.fetch_add(1, Ordering::SeqCst);
        Self {
            id: self.seen.instances.fetch_add(1, Ordering::SeqCst),
            is_ready: false,
            seen: Arc::clone(&self.seen),
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if self.is_ready {
            self.seen.ready.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl<B> Service<Request<B>> for Probe {
    type Response = Response<Bytes>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.seen.polls.fetch_add(1, Ordering::SeqCst);
        if self.seen.is_held.load(Ordering::SeqCst) {
            *self.seen.waker.lock().unwrap() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if !self.is_ready {
            self.is_ready = true;
            self.seen.ready.fetch_add(1, Ordering::SeqCst);
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Answering {
        if self.is_ready {
            self.is_ready = false;
            self.seen.ready.fetch_sub(1, Ordering::SeqCst);
        } else {
            self.seen.violations.fetch_add(1, Ordering::SeqCst);
        }
        self.seen.called.lock().unwrap().push(self.id);
        Answering {
            polled: false,
            done: false,
            seen: Arc::clone(&self.seen),
        }
    }
}

/// Ready at the second poll.
#[derive(Debug)]
pub(crate) struct Answering {
    polled: bool,
    done: bool,
    seen: Arc<Seen>,
}

impl Future for Answering {
    type Output = Result<Response<Bytes>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if !self.polled {
            self.polled = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        assert!(!self.done, "polled after completion");
        self.done = true;
        Poll::Ready(Ok(Response::new(Bytes::new())))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if !self.done {
            self.seen.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}
