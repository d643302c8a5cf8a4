use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tower_layer::Layer;

use super::builder::ApiKeyLayerBuilder;
use super::service::ApiKeyService;
use crate::cache::{ApiKeyHandle, Cache};
use crate::credential::CredentialSource;
use crate::rejection::{DefaultRejectionResponse, Face};
use crate::request_head::RequestHead;
use crate::verify::Verifier;

/// The layer that lets a request pass only with an organization's key.
///
/// See the [module's guide](crate::auth) for where it stands. Clones share one cache; two layers share nothing.
#[derive(Clone)]
#[must_use]
pub struct ApiKeyLayer<F = DefaultRejectionResponse> {
    pub(super) core: Arc<Core>,
    pub(super) face: Face<F>,
    pub(super) max_age: Option<Duration>,
}

/// What a layer and its clones share.
pub(crate) struct Core {
    pub(super) credential: CredentialSource,
    pub(super) cache: Arc<Cache>,
    pub(super) allow_anonymous: bool,
    pub(super) allow_user_keys: bool,
    pub(super) strip_credential: bool,
    pub(super) peer: Option<PeerFn>,
}

/// Tells callers apart, by a hash of what the user's function makes of the request.
pub(super) type PeerFn = Box<dyn Fn(RequestHead<'_>) -> Option<u64> + Send + Sync>;

/// Folds a peer of any type into 64 bits.
pub(super) fn peer_fn<P: Hash>(
    peer: impl Fn(RequestHead<'_>) -> Option<P> + Send + Sync + 'static,
) -> PeerFn {
    use std::hash::{BuildHasher, RandomState};

    let state = RandomState::new();
    Box::new(move |head| peer(head).map(|peer| state.hash_one(peer)))
}

impl ApiKeyLayer {
    /// The layer over this verifier, with the defaults of [`ApiKeyLayerBuilder`].
    ///
    /// Needs no runtime, and starts nothing.
    ///
    /// # Panics
    ///
    /// When the operating system has no random numbers, from which the cache draws its secret;
    /// [`ApiKeyLayerBuilder::build`] returns the error instead.
    #[track_caller]
    pub fn new(verifier: impl Verifier) -> Self {
        match Self::builder(verifier).build() {
            Ok(layer) => layer,
            // The defaults do not contradict each other.
            Err(error) => panic!("{error}"),
        }
    }

    /// A builder for settings of your own.
    pub fn builder(verifier: impl Verifier) -> ApiKeyLayerBuilder {
        ApiKeyLayerBuilder::new(Arc::new(verifier))
    }
}

impl<F> ApiKeyLayer<F> {
    /// The same layer over the same cache, answering refusals in your own way.
    ///
    /// Applies to every refusal, those of guards and extractors beneath the layer included. See
    /// [`RejectionResponse`](crate::RejectionResponse) for an example.
    pub fn with_rejection_response<G>(self, respond: G) -> ApiKeyLayer<G> {
        ApiKeyLayer {
            core: self.core,
            face: Face {
                respond,
                style: self.face.style,
            },
            max_age: self.max_age,
        }
    }

    /// Blocks and invalidates keys while the layer runs, and tells how things stand.
    pub fn handle(&self) -> ApiKeyHandle {
        ApiKeyHandle::new(Arc::clone(&self.core.cache))
    }

    /// Returns a layer over the same cache, for routes that need a recent result.
    ///
    /// A request is accepted on a verification that began less than `max_age` before the request arrived, or after it did.
    /// With [`Duration::ZERO`] every request waits for a verification. If the issuer does not answer, the layer responds
    /// with 503.
    ///
    /// Verifications that only such a route asks for are limited to 25 per second for each organization, after 25 at once,
    /// so that one organization does not use up what the issuer grants to all. Requests with the same key share a
    /// verification that has not been sent yet. A request whose turn is further away than the
    /// [caller deadline](ApiKeyLayerBuilder::caller_deadline) gets 503 with `Retry-After`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use axum::{Router, routing::{get, delete}};
    /// # use tower_orgkey::{ApiKeyLayer, Verification, verifier_fn};
    /// # async fn handler() {}
    /// # let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
    /// let app: Router = Router::new()
    ///     .route("/everything", delete(handler).route_layer(auth.clone().max_age(Duration::ZERO)))
    ///     .route("/reports", get(handler).route_layer(auth));
    /// ```
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }
}

impl<S, F: Clone> Layer<S> for ApiKeyLayer<F> {
    type Service = ApiKeyService<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        ApiKeyService::new(inner, self.clone())
    }
}

impl<F> fmt::Debug for ApiKeyLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeyLayer")
            .field("cache", &self.core.cache)
            .field("max_age", &self.max_age)
            .finish_non_exhaustive()
    }
}
