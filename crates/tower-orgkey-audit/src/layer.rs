use std::fmt;
use std::sync::Arc;

use http::header::{AUTHORIZATION, COOKIE, HeaderName, PROXY_AUTHORIZATION};
use tower_layer::Layer;
use tower_orgkey::RequestHead;

use crate::peer::AuditPeer;
use crate::pseudonym::PseudonymKey;
use crate::service::AuditService;
use crate::trail::AuditTrail;

/// A layer that records every request that was decided on, or ended during its verification, in an [`AuditTrail`].
///
/// Put it outside [`ApiKeyLayer`](tower_orgkey::ApiKeyLayer); inside, it responds with 500. Several layers can share one
/// trail. See the [crate documentation](crate).
#[derive(Clone)]
#[must_use]
pub struct AuditLayer {
    /// With the trail, so that a clone costs one reference count.
    pub(crate) options: Arc<Options>,
}

type HeadFn<T> = Arc<dyn Fn(RequestHead<'_>) -> Option<T> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) trail: AuditTrail,
    pub(crate) request_id_header: HeaderName,
    pub(crate) record_path: bool,
    pub(crate) record_undecided: bool,
    pub(crate) route: Option<HeadFn<String>>,
    pub(crate) peer: Option<HeadFn<AuditPeer>>,
    pub(crate) privacy: Privacy,
}

/// What identifies people and organizations, and is left out of events.
#[derive(Clone, Default)]
pub(crate) struct Privacy {
    pub(crate) pseudonyms: Option<PseudonymKey>,
    pub(crate) is_minimal_outside_home: bool,
}

impl AuditLayer {
    /// Creates a layer that records in this trail.
    pub fn new(trail: &AuditTrail) -> Self {
        Self {
            options: Arc::new(Options {
                trail: trail.clone(),
                request_id_header: HeaderName::from_static("x-request-id"),
                record_path: false,
                record_undecided: false,
                route: None,
                peer: None,
                privacy: Privacy::default(),
            }),
        }
    }

    /// Sets the header that holds the request's id. Default: `x-request-id`.
    ///
    /// An id of 1 to 128 visible ASCII characters is recorded as it is. If there is none, more than one, or another value, the
    /// event has no request id. tower-http's `SetRequestIdLayer` around this layer generates one if the client sent none, and
    /// the handler sees it too. To have one in every event, remove the client's header before.
    ///
    /// # Panics
    ///
    /// If the header carries credentials: `authorization`, `proxy-authorization` or `cookie`.
    #[track_caller]
    pub fn request_id_header(mut self, name: HeaderName) -> Self {
        assert!(
            ![AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(&name),
            "the header of the request's id carries credentials"
        );
        self.set(|options| options.request_id_header = name);
        self
    }

    /// Sets whether the path is recorded as the client sent it, in addition to the route. Default: no. The query is never
    /// recorded.
    ///
    /// # Warning
    ///
    /// Paths contain identifiers, and whatever a client puts there by mistake, a key for instance.
    pub fn record_path(mut self, record: bool) -> Self {
        self.set(|options| options.record_path = record);
        self
    }

    /// Sets whether requests are recorded that nothing decided on, such as those to a public route without an
    /// [`ApiKeyLayer`](tower_orgkey::ApiKeyLayer). Default: no.
    ///
    /// Their [code](crate::AuditedRequest::code) is `anonymous`.
    ///
    /// ```
    /// # use tower_orgkey_audit::{AuditLayer, AuditTrail, TracingSink};
    /// # let trail = AuditTrail::start(TracingSink)?;
    /// let audit = AuditLayer::new(&trail).record_undecided(true);
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn record_undecided(mut self, record: bool) -> Self {
        self.set(|options| options.record_undecided = record);
        self
    }

    /// Sets a function that names the route of a request. The name is cut to 1,024 bytes.
    ///
    /// By default the route is axum's matched path (feature `axum`). The function must return as many names as there are
    /// routes, not one per path.
    ///
    /// ```
    /// # use tower_orgkey_audit::{AuditLayer, AuditTrail, TracingSink};
    /// # let trail = AuditTrail::start(TracingSink)?;
    /// use tower_orgkey::RequestHead;
    ///
    /// let audit = AuditLayer::new(&trail).route(|head: RequestHead<'_>| {
    ///     let first = head.uri.path().split('/').nth(1)?;
    ///     ["reports", "users"].contains(&first).then(|| format!("/{first}/…"))
    /// });
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn route(
        mut self,
        route: impl Fn(RequestHead<'_>) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.set(|options| options.route = Some(Arc::new(route)));
        self
    }

    /// Sets a function that returns where a request comes from: an [`IpAddr`](std::net::IpAddr) or a
    /// [`SocketAddr`](std::net::SocketAddr).
    ///
    /// Behind a proxy, the address of the connection is the proxy's. Use a forwarded address only from a proxy that you
    /// trust.
    ///
    /// ```
    /// # use tower_orgkey_audit::{AuditLayer, AuditTrail, TracingSink};
    /// # let trail = AuditTrail::start(TracingSink)?;
    /// use std::net::SocketAddr;
    /// use axum::extract::ConnectInfo;
    /// use tower_orgkey::RequestHead;
    ///
    /// let audit = AuditLayer::new(&trail).peer(|head: RequestHead<'_>| {
    ///     head.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0)
    /// });
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn peer<P: Into<AuditPeer>>(
        mut self,
        peer: impl Fn(RequestHead<'_>) -> Option<P> + Send + Sync + 'static,
    ) -> Self {
        self.set(|options| options.peer = Some(Arc::new(move |head| peer(head).map(Into::into))));
        self
    }

    /// Replaces the ids of users and the addresses of peers by keyed pseudonyms. Off unless called.
    ///
    /// Both are personal data. Ports are left out. The codes of organizations and the ids of keys stay as they are, and so do a
    /// [path](Self::record_path) and a client's request id, which may contain anything.
    ///
    /// ```
    /// # use tower_orgkey_audit::{AuditLayer, AuditTrail, PseudonymKey, TracingSink};
    /// # let trail = AuditTrail::start(TracingSink)?;
    /// # let secret = [7; 32];
    /// let audit = AuditLayer::new(&trail).pseudonymize(PseudonymKey::new(&secret)?);
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn pseudonymize(mut self, key: PseudonymKey) -> Self {
        self.set(|options| options.privacy.pseudonyms = Some(key));
        self
    }

    /// Leaves out of the events of requests that are rejected with
    /// [`wrong-region`](tower_orgkey::rejection#wrong-region) or
    /// [`region-unknown`](tower_orgkey::rejection#region-unknown) what identifies the caller: the organization, the key, the user, the
    /// peer, the path, the requirements and the client's request id. Off unless called.
    ///
    /// The event stays in the region that rejected the request. A sampled trail counts such events as those of unknown callers.
    pub fn minimal_outside_home(mut self) -> Self {
        self.set(|options| options.privacy.is_minimal_outside_home = true);
        self
    }

    fn set(&mut self, set: impl FnOnce(&mut Options)) {
        set(Arc::make_mut(&mut self.options));
    }
}

impl<S> Layer<S> for AuditLayer {
    type Service = AuditService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AuditService::new(inner, self.clone())
    }
}

impl fmt::Debug for AuditLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditLayer")
            .field("trail", &self.options.trail)
            .field("request_id_header", &self.options.request_id_header)
            .field("record_path", &self.options.record_path)
            .finish_non_exhaustive()
    }
}
