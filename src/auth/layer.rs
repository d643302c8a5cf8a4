use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tower_layer::Layer;

use super::builder::ApiKeyLayerBuilder;
use super::service::ApiKeyService;
use crate::api_keys::Cache;
use crate::credential::CredentialSource;
use crate::handle::ApiKeyHandle;
use crate::key::ApiKey;
use crate::rejection::{DefaultRejectionResponse, Rejection, ResponseFormat};
use crate::request_head::RequestHead;
use crate::verify::Verifier;

/// A layer that requires an organization's API key and provides the [`OrgContext`](crate::OrgContext) of the request.
///
/// See the [module documentation](crate::auth) for the order of layers. Clones share one cache; separately built layers
/// share nothing.
#[derive(Clone)]
#[must_use]
pub struct ApiKeyLayer<F = DefaultRejectionResponse> {
    pub(super) core: Arc<Core>,
    pub(super) format: ResponseFormat<F>,
    pub(super) max_age: Option<Duration>,
}

/// The state shared by the clones of a layer.
#[expect(clippy::struct_excessive_bools, reason = "independent settings")]
pub(crate) struct Core {
    pub(super) credential: CredentialSource,
    pub(super) cache: Arc<Cache>,
    pub(super) allow_anonymous: bool,
    pub(super) allow_user_keys: bool,
    pub(super) strip_credential: bool,
    /// Whether contexts keep the key, for [`OrgContext::revalidate`](crate::OrgContext::revalidate).
    pub(super) keeps_key: bool,
    /// The outer layers that this one accepts contexts of.
    pub(super) accepted: Vec<Arc<Core>>,
    /// Whether a request that passes needs more than its context.
    pub(super) has_extras: bool,
    pub(super) peer: Option<PeerFn>,
    pub(super) before_lookup: Option<BeforeLookup>,
}

/// May reject a request before its key is looked up.
pub(super) type BeforeLookup =
    Box<dyn Fn(RequestHead<'_>, &ApiKey) -> Option<Rejection> + Send + Sync>;

/// Distinguishes callers by a hash of the value that the user's function returns for a request.
pub(super) type PeerFn = Box<dyn Fn(RequestHead<'_>) -> Option<u64> + Send + Sync>;

/// Hashes the peer, of any type, to 64 bits.
pub(super) fn peer_fn<P: Hash>(
    peer: impl Fn(RequestHead<'_>) -> Option<P> + Send + Sync + 'static,
) -> PeerFn {
    use std::hash::{BuildHasher, RandomState};

    let state = RandomState::new();
    Box::new(move |head| peer(head).map(|peer| state.hash_one(peer)))
}

impl ApiKeyLayer {
    /// Creates a layer that verifies keys with `verifier`, with the defaults of [`ApiKeyLayerBuilder`].
    ///
    /// Needs no runtime and spawns no task.
    ///
    /// # Panics
    ///
    /// If the operating system provides no random numbers for the secret of the cache;
    /// [`ApiKeyLayerBuilder::build`] returns an error instead.
    #[track_caller]
    pub fn new(verifier: impl Verifier) -> Self {
        match Self::builder(verifier).build() {
            Ok(layer) => layer,
            // The defaults do not contradict each other.
            Err(error) => panic!("{error}"),
        }
    }

    /// Returns a builder to configure the layer.
    pub fn builder(verifier: impl Verifier) -> ApiKeyLayerBuilder {
        ApiKeyLayerBuilder::new(Arc::new(verifier))
    }
}

impl<F> ApiKeyLayer<F> {
    /// Returns a layer over the same cache that renders rejections with `respond`.
    ///
    /// Applies to all rejections, including those of guards and extractors inside the layer. See
    /// [`RejectionResponse`](crate::RejectionResponse) for an example.
    pub fn with_rejection_response<G>(self, respond: G) -> ApiKeyLayer<G> {
        ApiKeyLayer {
            core: self.core,
            format: ResponseFormat {
                respond,
                challenge: self.format.challenge,
            },
            max_age: self.max_age,
        }
    }

    /// Returns a handle that blocks and invalidates keys and reads the state of the layer.
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
    /// so that one organization does not use up what the issuer grants to all. While calls are limited, by
    /// [`max_calls_per_second`](ApiKeyLayerBuilder::max_calls_per_second) or after a 429, an organization gets at most a quarter of
    /// the rate, after a second's share at once. Requests with the same key share a verification that has not been sent yet. A
    /// request whose turn is further away than the [caller deadline](ApiKeyLayerBuilder::caller_deadline) gets 503 with
    /// `Retry-After`.
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

impl_debug!([F] ApiKeyLayer<F>, |layer| { cache: layer.core.cache, max_age: layer.max_age });
