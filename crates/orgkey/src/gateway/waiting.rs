//! Bounds how many checks wait for the issuer, so that the checks of known keys find a free connection.
//!
//! A check holds its connection until it is decided; over HTTP/2, one of the requests that the proxy permits at a time. Lookups that
//! wait are bounded by the layer, and requests that join one are not: without this bound, one client could hold all connections with
//! copies of requests with unknown keys.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::Service;
use tower_orgkey::Rejection;

use super::once_per_second::OncePerSecond;
use super::rendered::rendered;
use super::terms::Terms;

/// The places of checks that wait.
#[derive(Clone, Debug)]
pub(super) struct Waiting(Arc<Places>);

#[derive(Debug)]
struct Places {
    all: usize,
    taken: Mutex<Taken>,
    logged: OncePerSecond,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_network: HashMap<IpAddr, usize>,
}

/// A check that needs a place while it waits, with the network of its client if the proxy says it.
pub(super) struct Waiter {
    waiting: Waiting,
    network: Option<IpAddr>,
}

/// The place of a check that waits, free again on drop.
struct Place {
    waiting: Waiting,
    network: Option<IpAddr>,
}

impl Waiting {
    pub(super) fn at_most(places: usize) -> Self {
        Self(Arc::new(Places {
            all: places,
            taken: Mutex::default(),
            logged: OncePerSecond::default(),
        }))
    }

    /// Returns a check that may take a place.
    pub(super) fn waiter(&self, network: Option<IpAddr>) -> Waiter {
        let waiting = self.clone();
        Waiter { waiting, network }
    }

    /// Takes a place. A network has at most a quarter, and the last quarter is for networks that have none.
    fn take(self, network: Option<IpAddr>) -> Option<Place> {
        let mut taken = self.lock();
        let quarter = (self.0.all / 4).max(1);
        let of_network = network.and_then(|network| taken.by_network.get(&network));
        let permitted = match of_network {
            None => self.0.all,
            Some(of_network) if *of_network < quarter => self.0.all - quarter,
            Some(_) => 0,
        };
        if taken.all < permitted {
            taken.all += 1;
            if let Some(network) = network {
                *taken.by_network.entry(network).or_default() += 1;
            }
            drop(taken);
            let waiting = self;
            return Some(Place { waiting, network });
        }
        drop(taken);
        if self.0.logged.first() {
            tracing::warn!("too many checks wait for the issuer, others are rejected");
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // A panic under the lock leaves at most one number changed.
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.waiting.lock();
        taken.all -= 1;
        if let Some(network) = self.network
            && let Entry::Occupied(mut of_network) = taken.by_network.entry(network)
        {
            *of_network.get_mut() -= 1;
            if *of_network.get() == 0 {
                of_network.remove();
            }
        }
    }
}

/// Rejects a request of a [`Waiter`] that would have to wait without a place.
#[derive(Clone)]
pub(super) struct Bounded<S>(pub(super) S);

impl<S> Service<Request<Terms>> for Bounded<S>
where
    S: Service<Request<Terms>, Response = Response<Full<Bytes>>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Decided<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Terms>) -> Self::Future {
        let waiter = request.body_mut().waiter.take();
        Decided {
            future: self.0.call(request),
            waiter,
            place: None,
        }
    }
}

pin_project_lite::pin_project! {
    pub(super) struct Decided<F> {
        #[pin]
        future: F,
        // Taken when the future waits.
        waiter: Option<Waiter>,
        place: Option<Place>,
    }
}

impl<F> Future for Decided<F>
where
    F: Future<Output = Result<Response<Full<Bytes>>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let decided = this.future.poll(context);
        if decided.is_pending()
            && let Some(Waiter { waiting, network }) = this.waiter.take()
        {
            *this.place = waiting.take(network);
            if this.place.is_none() {
                let rejection = Rejection::verifier_unavailable(Duration::from_secs(1));
                return Poll::Ready(Ok(rendered(rejection).map(Full::new)));
            }
        }
        decided
    }
}
