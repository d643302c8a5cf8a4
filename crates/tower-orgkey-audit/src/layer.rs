use std::fmt;
use std::sync::Arc;

use http::header::{AUTHORIZATION, COOKIE, HeaderName, PROXY_AUTHORIZATION};
use tower_layer::Layer;

use super::peer::AuditPeer;
use super::service::AuditService;
use super::trail::AuditTrail;
use tower_orgkey::RequestHead;

/// The layer that writes every request that was decided on into an [`AuditTrail`].
///
/// Stands outside of [`ApiKeyLayer`](tower_orgkey::ApiKeyLayer). See the [crate's guide](crate). Several layers may share
/// one trail. Needs no runtime, and starts nothing.
#[derive(Clone)]
#[must_use]
pub struct AuditLayer {
    pub(super) trail: AuditTrail,
    pub(super) options: Arc<Options>,
}

type OfHead<T> = Arc<dyn Fn(RequestHead<'_>) -> Option<T> + Send + Sync>;

#[derive(Clone)]
pub(super) struct Options {
    pub(super) request_id_header: HeaderName,
    pub(super) record_path: bool,
    pub(super) route: Option<OfHead<String>>,
    pub(super) peer: Option<OfHead<AuditPeer>>,
}

impl AuditLayer {
    /// The layer that writes into this trail.
    pub fn new(trail: &AuditTrail) -> Self {
        Self {
            trail: trail.clone(),
            options: Arc::new(Options {
                request_id_header: HeaderName::from_static("x-request-id"),
                record_path: false,
                route: None,
                peer: None,
            }),
        }
    }

    /// Where a request's id stands; `x-request-id` unless set.
    ///
    /// An id of 1 to 128 visible ASCII characters is taken over. Where there is none, or several, or one of another shape,
    /// the request gets one of 32 random hexadecimal digits, in this header, so that the handler and its log see the same.
    ///
    /// # Panics
    ///
    /// When it is a header that carries credentials: `authorization`, `proxy-authorization` or `cookie`.
    #[track_caller]
    pub fn request_id_header(mut self, name: HeaderName) -> Self {
        assert!(
            ![AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(&name),
            "the header of the request's id carries credentials"
        );
        self.set(|options| options.request_id_header = name);
        self
    }

    /// Whether the path is recorded as the client sent it, beside the route. Off unless set; the query never is.
    ///
    /// # Warning
    ///
    /// Paths hold identifiers, and whatever else a client puts there by mistake: a key too.
    pub fn record_path(mut self, record: bool) -> Self {
        self.set(|options| options.record_path = record);
        self
    }

    /// Names the route of a request. At most 1,024 bytes of it are kept.
    ///
    /// For plain Tower services. With the feature `axum` it is the matched path unless this function says otherwise.
    /// It should name as many routes as there are, not one for every address.
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

    /// Says from where a request comes: an [`IpAddr`](std::net::IpAddr) or a [`SocketAddr`](std::net::SocketAddr).
    ///
    /// Behind a proxy the address of the connection is the proxy's; take the forwarded one only from a proxy that you trust.
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
            .field("trail", &self.trail)
            .field("request_id_header", &self.options.request_id_header)
            .field("record_path", &self.options.record_path)
            .finish_non_exhaustive()
    }
}
