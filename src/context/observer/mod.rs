//! Lets a layer outside [`ApiKeyLayer`](crate::ApiKeyLayer) see what is decided about a request: who called, what was
//! required, and why the request was rejected.
//!
//! A layer outside `ApiKeyLayer` sees every request and every response, but not the [`OrgContext`]: that is added further
//! in. An outer layer that needs it (logs, traces, audit, metering) attaches a [`RequestObservation`] to the request
//! before it calls its inner service. `ApiKeyLayer` and the layers inside it record into the observation, and the outer
//! layer reads it when the request ends. All outer layers of a request share one observation. Without one, nothing is
//! recorded.
//!
//! # Fields on a span
//!
//! [`ObserverLayer`] calls a function as soon as a key is authenticated, inside the span that is current then. Two lines
//! add the organization and the key to the span of tower-http's `TraceLayer`, and so to every event below it:
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower::ServiceBuilder;
//! use tower_http::trace::TraceLayer;
//! use tower_orgkey::observer::ObserverLayer;
//! use tower_orgkey::{ApiKeyLayer, KeyId, OrgContext};
//! use tracing::{Span, field::Empty, info_span};
//! # use tower_orgkey::{Verification, verifier_fn};
//! # let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
//!
//! let app: Router = Router::new()
//!     .route("/reports", get(|org: OrgContext| async move { org.org_code().to_string() }))
//!     .route_layer(auth)
//!     .layer(
//!         ServiceBuilder::new()
//!             .layer(TraceLayer::new_for_http().make_span_with(|request: &http::Request<_>| {
//!                 info_span!("request", path = request.uri().path(), org_code = Empty, key_id = Empty)
//!             }))
//!             .layer(ObserverLayer::on_authenticated(|org: &OrgContext| {
//!                 Span::current().record("org_code", org.org_code().as_str());
//!                 Span::current().record("key_id", org.key_id().map(KeyId::as_str));
//!             })),
//!     );
//! ```
//!
//! # A layer that reads the observation
//!
//! ```
//! use http::{Request, Response};
//! use tower_orgkey::observer::RequestObservation;
//! # use tower::{Service, ServiceExt};
//!
//! async fn logged<S, B, C>(service: S, mut request: Request<B>) -> Result<Response<C>, S::Error>
//! where
//!     S: Service<Request<B>, Response = Response<C>>,
//! {
//!     let observation = RequestObservation::attach(request.extensions_mut());
//!     let response = service.oneshot(request).await?;
//!     let org = observation.org_context();
//!     let code = observation.rejection_of(&response).map(|rejection| rejection.code());
//!     println!("{:?} {code:?}", org.as_ref().map(|org| org.org_code()));
//!     Ok(response)
//! }
//! ```
//!
//! The example does not see requests that end without a response. [`ObservedFuture`] does: it reports how a request ended,
//! whether with a response, an error, a panic, or because its future was dropped.
//!
//! A layer that must be outside `ApiKeyLayer` uses [`OuterObservation`]: its `check` turns the response into 500 if the layer is
//! inside one.
//!
//! Clients cannot replace an observation: it is found by its type, and never read from headers.

mod future;
mod layer;
mod outer;
mod requirement;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{Extensions, Response};

pub use self::future::{EarlyEnd, ObservedFuture, Observer, ResponseObserver};
pub use self::layer::{ObserverLayer, ObserverService};
pub use self::outer::OuterObservation;
pub use self::requirement::{Requirement, Requirements};
use crate::context::{OrgContext, has_decision};
use crate::rejection::{Rejection, RejectionKind};

/// Whether any observation was ever attached. While none was, requests are not searched for one.
static IS_USED: AtomicBool = AtomicBool::new(false);

/// What [`ApiKeyLayer`](crate::ApiKeyLayer) and the guards record about one request.
///
/// Clones share the same record. See the [module documentation](crate::observer).
#[derive(Clone, Debug, Default)]
pub struct RequestObservation(Arc<Observed>);

#[derive(Debug, Default)]
struct Observed {
    record: Mutex<Record>,
    /// How many times an `ApiKeyLayer` let the request through, or a layer rejected it for what it is.
    decisions: AtomicU32,
}

#[derive(Default)]
struct Record {
    caller: Option<Caller>,
    requirements: Requirements,
    operation: Option<Arc<str>>,
    rejection: Option<Rejection>,
    /// The request waits for the verification of its key.
    is_waiting: bool,
    /// Calls all that were added, in order.
    callback: Option<Callback>,
}

impl Record {
    fn decide(&mut self, caller: Caller) {
        self.caller = Some(caller);
        self.is_waiting = false;
    }
}

type Callback = Arc<dyn Fn(&OrgContext) + Send + Sync>;

/// What is recorded about a request so far. See [`RequestObservation::read`].
#[derive(Clone, Copy, Debug)]
pub struct Recorded<'a>(&'a Record);

impl<'a> Recorded<'a> {
    /// Returns what [`RequestObservation::caller`] returns.
    #[inline]
    pub fn caller(&self) -> Option<&'a Caller> {
        self.0.caller.as_ref()
    }

    /// Returns what [`RequestObservation::requirements`] returns.
    #[inline]
    pub fn requirements(&self) -> &'a Requirements {
        &self.0.requirements
    }

    /// Returns what [`RequestObservation::operation`] returns.
    #[inline]
    pub fn operation(&self) -> Option<&'a str> {
        self.0.operation.as_deref()
    }

    /// Returns whether the request waits for the verification of its key, or ended while it did.
    pub fn is_being_verified(&self) -> bool {
        self.0.is_waiting
    }
}

impl_debug!(Record, |record| {
    caller: record.caller,
    requirements: record.requirements,
    operation: record.operation,
    rejection: record.rejection,
    is_waiting: record.is_waiting
});

/// Who made a request that [`ApiKeyLayer`](crate::ApiKeyLayer) let through.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Caller {
    /// An organization, with one of its keys.
    Organization {
        /// What the handler sees.
        context: OrgContext,
        /// Whether the verification result was cached, so that the request did not wait for the issuer.
        is_cached: bool,
    },
    /// A request without a key, let through by
    /// [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous).
    Anonymous,
    /// A request with a credential that is not a key, let through by
    /// [`pass_other_credentials_to_inner_auth`](crate::ApiKeyLayerBuilder::pass_other_credentials_to_inner_auth).
    OtherCredential,
}

impl RequestObservation {
    /// The maximum number of requirements that are recorded per request. A retry beneath the layer passes the guards again.
    const MAX_REQUIREMENTS: usize = 8;

    /// Returns the observation in a request's extensions, and inserts a new one if there is none.
    #[inline]
    pub fn attach(extensions: &mut Extensions) -> Self {
        // Relaxed: whatever hands the request to another thread also publishes this store.
        if !IS_USED.load(Ordering::Relaxed) {
            IS_USED.store(true, Ordering::Relaxed);
        }
        if let Some(attached) = extensions.get::<Self>() {
            return attached.clone();
        }
        let observation = Self::default();
        // Earlier decisions count too, so that `OuterObservation` need not search for them if there was none.
        if has_decision(extensions) {
            observation.decided();
        }
        extensions.insert(observation.clone());
        observation
    }

    /// Returns the observation in a request's extensions, if an outer layer attached one.
    ///
    /// Beneath `ApiKeyLayer`, [`OrgContext::observation`] returns the same without searching.
    #[inline]
    pub fn of(extensions: &Extensions) -> Option<&Self> {
        if IS_USED.load(Ordering::Relaxed) {
            extensions.get()
        } else {
            None
        }
    }

    /// Returns who made the request. `None` before an `ApiKeyLayer` has let the request through.
    ///
    /// With two `ApiKeyLayer`s in a row, it is the decision of the inner one. If the inner one rejects the request, it stays
    /// that of the outer one.
    #[inline]
    pub fn caller(&self) -> Option<Caller> {
        self.record().caller.clone()
    }

    /// Returns what a function returns for the record, which is not copied.
    ///
    /// The record is locked meanwhile: the function must not use the observation, and should be short.
    ///
    /// ```
    /// use tower_orgkey::RequestObservation;
    ///
    /// fn was_restricted(observation: &RequestObservation) -> bool {
    ///     observation.read(|recorded| !recorded.requirements().is_empty())
    /// }
    /// ```
    #[inline]
    pub fn read<T>(&self, read: impl FnOnce(Recorded<'_>) -> T) -> T {
        read(Recorded(&self.record()))
    }

    /// Returns the context of the organization that made the request, if it was authenticated.
    pub fn org_context(&self) -> Option<OrgContext> {
        match self.caller()? {
            Caller::Organization { context, .. } => Some(context),
            Caller::Anonymous | Caller::OtherCredential => None,
        }
    }

    /// Returns what guards and extractors required of the request, in order: the first eight.
    pub fn requirements(&self) -> Requirements {
        self.record().requirements.clone()
    }

    /// Names the operation of the request. For a layer that knows more than the router, such as which tool a message calls that
    /// arrives at one path. The audit and usage crates record it instead of the route.
    ///
    /// There must be as many names as operations, not one per request, because each is counted.
    ///
    /// ```
    /// use tower_orgkey::RequestObservation;
    ///
    /// let mut extensions = http::Extensions::new();
    /// let observation = RequestObservation::attach(&mut extensions);
    /// observation.record_operation("rpc:list_reports");
    /// assert_eq!(observation.operation().as_deref(), Some("rpc:list_reports"));
    /// ```
    pub fn record_operation(&self, name: impl Into<Arc<str>>) {
        self.record().operation = Some(name.into());
    }

    /// Returns the name that [`record_operation`](Self::record_operation) gave the operation.
    pub fn operation(&self) -> Option<Arc<str>> {
        self.record().operation.clone()
    }

    /// Returns the last rejection that a layer of this crate responded with.
    ///
    /// [`rejection_of`](Self::rejection_of) also finds those of extractors and handlers.
    pub fn rejection(&self) -> Option<Rejection> {
        self.record().rejection.clone()
    }

    /// Returns the rejection that led to a response.
    ///
    /// That is the [`Rejection`] in the response's extensions. If a layer in between replaced the response by another one
    /// with the status of an error, it is the one that was [recorded](Self::rejection).
    #[inline]
    pub fn rejection_of<B>(&self, response: &Response<B>) -> Option<Rejection> {
        match response.extensions().get::<Rejection>() {
            Some(rejection) => Some(rejection.clone()),
            None if response.status().is_client_error() || response.status().is_server_error() => {
                self.rejection()
            }
            None => None,
        }
    }

    /// Records a requirement. For guards outside this crate.
    pub fn record_requirement(&self, requirement: Requirement) {
        let mut record = self.record();
        if record.requirements.len() < Self::MAX_REQUIREMENTS {
            record.requirements.push(requirement);
        }
    }

    /// Records a rejection that a layer responds with, and returns it.
    #[cold]
    #[inline(never)]
    pub(crate) fn rejected(extensions: &Extensions, rejection: Rejection) -> Rejection {
        if let Some(observation) = Self::of(extensions) {
            let mut record = observation.record();
            record.rejection = Some(rejection.clone());
            record.is_waiting = false;
            drop(record);
            // A layer that finds no decision rejects with `Internal`.
            if rejection.kind() != RejectionKind::Internal {
                observation.decided();
            }
        }
        rejection
    }

    /// Records that the request waits for the verification of its key.
    pub(crate) fn waits(extensions: &Extensions) {
        if let Some(observation) = Self::of(extensions) {
            observation.record().is_waiting = true;
        }
    }

    /// Records an organization, and lets its context carry the observation. Kept out of line, so that the path of a request
    /// without an observer stays small.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe(&self, context: OrgContext, is_cached: bool) -> OrgContext {
        self.record_organization(context.without_extras(), is_cached);
        context.with_observation(self.clone())
    }

    pub(crate) fn record_anonymous(&self) {
        self.record_caller(Caller::Anonymous);
    }

    pub(crate) fn record_other_credential(&self) {
        self.record_caller(Caller::OtherCredential);
    }

    fn record_caller(&self, caller: Caller) {
        self.record().decide(caller);
        self.decided();
    }

    /// The context must carry neither an observation, because the two would keep each other alive, nor a key.
    fn record_organization(&self, context: OrgContext, is_cached: bool) {
        self.decided();
        let mut record = self.record();
        let called = record.callback.clone().map(|it| (it, context.clone()));
        record.decide(Caller::Organization { context, is_cached });
        drop(record);
        // After the lock is released: a callback may read the observation.
        if let Some((callback, context)) = called {
            callback(&context);
        }
    }

    fn add_callback(&self, callback: Callback) {
        let mut record = self.record();
        record.callback = Some(match record.callback.take() {
            None => callback,
            Some(earlier) => Arc::new(move |context| {
                earlier(context);
                callback(context);
            }),
        });
    }

    #[inline]
    fn record(&self) -> MutexGuard<'_, Record> {
        // Every change is one assignment or one push, so the record is consistent after a panic.
        let record = self.0.record.lock();
        record.unwrap_or_else(PoisonError::into_inner)
    }

    /// Relaxed: whatever passes the response on also publishes this.
    fn decided(&self) {
        self.0.decisions.fetch_add(1, Ordering::Relaxed);
    }

    fn decisions(&self) -> u32 {
        self.0.decisions.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::OrgContextBuilder;

    #[test]
    fn context_and_observation_are_freed() {
        let mut extensions = Extensions::new();
        let observation = RequestObservation::attach(&mut extensions);
        let context = OrgContextBuilder::new("org_1").build();
        let context = observation.observe(context, true);
        extensions.insert(context);
        let shared = Arc::downgrade(&observation.0);
        drop((extensions, observation));
        assert!(shared.upgrade().is_none());
    }

    #[test]
    fn requirements_are_bounded() {
        let observation = RequestObservation::default();
        for _ in 0..100 {
            observation.record_requirement(Requirement::organization(None, true));
        }
        assert_eq!(observation.requirements().len(), 8);
    }
}
