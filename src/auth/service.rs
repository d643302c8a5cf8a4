use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Extensions, HeaderMap, Request, Response};
use orgkey_lookup::{CacheResult, LookupRequest};
use tower_service::Service;

use super::future::{Passed, ResponseFuture, State};
use super::layer::{ApiKeyLayer, Core};
use super::per_layer::PerLayer;
use super::telemetry;
use crate::api_keys::{ApiKeys, Entry};
use crate::clock::Tick;
use crate::context::observer::RequestObservation;
use crate::context::{Anonymous, OrgContext, OtherCredential};
use crate::credential::Credential;
use crate::key::{ApiKey, KeyDigest, is_key};
use crate::pending::Pending;
use crate::rejection::{DefaultRejectionResponse, Rejection, RejectionResponse};
use crate::request_head::RequestHead;

/// The service of [`ApiKeyLayer`].
///
/// See the [module documentation](crate::auth).
#[derive(Clone)]
#[must_use]
pub struct ApiKeyService<S, F = DefaultRejectionResponse> {
    inner: S,
    layer: ApiKeyLayer<F>,
}

impl<S, F> ApiKeyService<S, F> {
    pub(super) fn new(inner: S, layer: ApiKeyLayer<F>) -> Self {
        Self { inner, layer }
    }
}

/// The decision about a request.
enum Decision {
    Pass(Passed),
    Reject(Rejection),
    /// Boxed, because the decision of a hit is copied.
    Wait(Box<LookupRequest<ApiKeys>>),
}

impl<S, F, ReqBody, ResBody> Service<Request<ReqBody>> for ApiKeyService<S, F>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    F: RejectionResponse<ResBody> + Clone,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = ResponseFuture<S, F, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let mut respond = self.layer.format.respond.clone();
        respond.prepare(RequestHead::of(&request));
        if let Some(max_age) = self.layer.max_age {
            // By value, and forgotten: see `authenticate`.
            let extensions = mem::take(request.extensions_mut());
            let extensions = self.layer.core.with_max_age(extensions, max_age);
            mem::forget(mem::replace(request.extensions_mut(), extensions));
        }
        // Two arms call functions that return the whole state: otherwise, the compiler copies the inner future.
        let (passed, state) = match self.layer.core.decide(&mut request, self.layer.max_age) {
            Decision::Pass(passed) => {
                let future = self.inner.call(request);
                (passed, State::Called { future })
            }
            Decision::Reject(rejection) => (Passed::Key, rejected(request.extensions(), rejection)),
            Decision::Wait(lookup) => {
                let passed = Passed::with(request.extensions().get::<OrgContext>());
                (passed, self.wait(request, *lookup))
            }
        };
        ResponseFuture {
            state,
            // Cloned after the call: if a panic in it had to drop this, the compiler would copy the inner future.
            format: self.layer.format.with(respond),
            passed,
        }
    }
}

#[cold]
#[inline(never)]
fn rejected<S, ReqBody>(extensions: &Extensions, rejection: Rejection) -> State<S, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    State::Rejected {
        rejection: Some(RequestObservation::rejected(extensions, rejection)),
    }
}

impl<S: Clone, F> ApiKeyService<S, F> {
    /// Calls the user's functions here instead of in [`Core::decide`]: an opaque function that gets a reference to
    /// the request would make the compiler copy the request of every hit.
    #[cold]
    #[inline(never)]
    fn wait<ReqBody>(
        &mut self,
        request: Request<ReqBody>,
        mut lookup: LookupRequest<ApiKeys>,
    ) -> State<S, ReqBody>
    where
        S: Service<Request<ReqBody>>,
    {
        let core = Arc::clone(&self.layer.core);
        if let Some(before_lookup) = &core.before_lookup
            && let Some(rejection) = before_lookup(RequestHead::of(&request), &lookup.query)
        {
            return rejected(request.extensions(), rejection);
        }
        if let Some(peer) = &core.peer {
            lookup.peer = peer(RequestHead::of(&request));
        }
        RequestObservation::waits(request.extensions());
        let cache = Arc::clone(&core.cache);
        let inner = &mut self.inner;
        State::Waiting {
            pending: Box::new(Pending::new(inner, request, &cache, lookup, core)),
        }
    }
}

impl Core {
    /// Decides about a request, and inserts the context if it passes.
    #[inline]
    fn decide<B>(
        self: &Arc<Self>,
        request: &mut Request<B>,
        max_age: Option<std::time::Duration>,
    ) -> Decision {
        let key = match self.credential.read(request.headers_mut()) {
            Credential::Presented(key) => key,
            absent @ (Credential::Absent | Credential::OtherScheme) => {
                let is_other = absent == Credential::OtherScheme && self.credential.passes_others();
                match self.stripped(request.extensions()) {
                    Some(key) => key,
                    None if is_other => return other_credential(request),
                    None => return self.decide_without_key(request, max_age),
                }
            }
            Credential::Other if self.credential.passes_others() => {
                return other_credential(request);
            }
            Credential::Other => return Decision::Reject(Rejection::invalid_token()),
            Credential::Malformed => return Decision::Reject(Rejection::malformed_credential()),
        };
        let digest = self.cache.source().digest(key);
        let now = self.cache.clock().now();
        // An age that reaches back before the origin of the clock excludes nothing.
        let oldest = match max_age {
            Some(max_age) => before(now, max_age),
            None => None,
        };
        let entry = match self.cache.get_fresh(&digest, oldest, now) {
            Ok(entry) => entry,
            Err(cached) => match self.classify(cached, key, digest, oldest, now) {
                Some(CacheResult::Serve(entry)) => entry,
                Some(CacheResult::ServeAndRefresh(entry)) => {
                    if let Ok(key) = ApiKey::from_bytes(key) {
                        self.cache.refresh(key, &entry);
                    }
                    entry
                }
                Some(CacheResult::Invalid) => return Decision::Reject(Rejection::invalid_token()),
                None => return Decision::Reject(Rejection::malformed_credential()),
                Some(CacheResult::LookUp) => {
                    return match ApiKey::from_bytes(key) {
                        Ok(key) => Decision::Wait(Box::new(LookupRequest {
                            query: key,
                            key: digest,
                            oldest,
                            peer: None,
                        })),
                        Err(_) => Decision::Reject(Rejection::malformed_credential()),
                    };
                }
            },
        };
        match self.authenticate(request, entry, now, true) {
            Ok(passed) => Decision::Pass(passed),
            Err(rejection) => Decision::Reject(rejection),
        }
    }

    #[cold]
    fn decide_without_key<B>(
        &self,
        request: &mut Request<B>,
        max_age: Option<std::time::Duration>,
    ) -> Decision {
        match self.accept(request.extensions(), max_age) {
            Some(Ok(())) => Decision::Pass(Passed::Nested),
            Some(Err(rejection)) => Decision::Reject(rejection),
            None if self.allow_anonymous => anonymous(request),
            None => Decision::Reject(Rejection::missing_credential()),
        }
    }

    /// Returns what is cached for a key that is not a fresh hit, or `None` if the key is malformed: nothing is cached for it,
    /// and it is not in the grammar of keys. A malformed key is not counted.
    #[inline(never)]
    fn classify(
        &self,
        cached: Option<Arc<Entry>>,
        key: &[u8],
        digest: KeyDigest,
        oldest: Option<Tick>,
        now: Tick,
    ) -> Option<CacheResult<ApiKeys>> {
        let is_malformed = cached.is_none() && !is_key(key);
        (!is_malformed).then(|| self.cache.classify(cached, &digest, oldest, now))
    }

    /// Decides about a verification result for this request, and inserts the context. `is_cached` if the request did not wait.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "the compiler does not inline it, because misses call it too, and a call is a sixth of its cost"
    )]
    pub(super) fn authenticate<B>(
        self: &Arc<Self>,
        request: &mut Request<B>,
        entry: Arc<Entry>,
        now: Tick,
        is_cached: bool,
    ) -> Result<Passed, Rejection> {
        if entry.value.user().is_some() && !self.allow_user_keys {
            return Err(Rejection::organization_required());
        }
        let context = OrgContext::new(entry, now).ok_or_else(Rejection::organization_required)?;
        let context = if self.has_extras {
            // By value: a function that received the request's address would make the compiler copy every request.
            let headers = mem::take(request.headers_mut());
            let extensions = mem::take(request.extensions_mut());
            let (headers, extensions, context) = self.apply_extras(headers, extensions, context);
            // What is replaced is empty. Without `forget`, every request would pay for the code that drops it.
            mem::forget(mem::replace(request.headers_mut(), headers));
            mem::forget(mem::replace(request.extensions_mut(), extensions));
            context?
        } else {
            context
        };
        telemetry::allowed(&context);
        // The only lookup of the request's observation: guards find it in the context.
        let context = match RequestObservation::of(request.extensions()) {
            None => context,
            Some(observation) => observation.observe(context, is_cached),
        };
        // Replaces the context of an outer layer.
        let outer = request.extensions_mut().insert(context);
        Ok(Passed::with(outer.as_ref()))
    }

    /// Applies the settings that few layers have: rejects a request that an accepted layer has authenticated too, lets the
    /// context keep the key, and removes the credential.
    #[cold]
    fn apply_extras(
        self: &Arc<Self>,
        mut headers: HeaderMap,
        mut extensions: Extensions,
        context: OrgContext,
    ) -> (HeaderMap, Extensions, Result<OrgContext, Rejection>) {
        if self.accepted_context(&extensions).is_some() {
            let ambiguous = Err(Rejection::malformed_credential());
            return (headers, extensions, ambiguous);
        }
        let key = if self.keeps_key {
            let stripped = || ApiKey::from_bytes(self.stripped(&extensions)?).ok();
            self.credential.key(&headers).or_else(stripped)
        } else {
            None
        };
        let context = match key {
            Some(key) => context.with_key(key),
            None => context,
        };
        // Without a credential, a clone of this layer around it has already removed it.
        if self.strip_credential
            && let Some(key) = self.credential.remove(&mut headers)
        {
            PerLayer::put(&mut extensions, self, key);
        }
        (headers, extensions, Ok(context))
    }

    /// Returns the key of a request if a clone of this layer has removed the credential.
    #[cold]
    fn stripped<'a>(self: &Arc<Self>, extensions: &'a Extensions) -> Option<&'a [u8]> {
        if self.strip_credential {
            let key: &ApiKey = PerLayer::of(extensions, self)?;
            Some(key.expose_secret().as_bytes())
        } else {
            None
        }
    }
}

/// Kept out of line: most layers have no maximum age.
#[inline(never)]
fn before(now: Tick, age: std::time::Duration) -> Option<Tick> {
    now.0.checked_sub(crate::clock::nanos(age)).map(Tick)
}

#[cold]
fn anonymous<B>(request: &mut Request<B>) -> Decision {
    let extensions = request.extensions_mut();
    if let Some(observation) = RequestObservation::of(extensions) {
        observation.record_anonymous();
    }
    extensions.remove::<OrgContext>();
    extensions.insert(Anonymous);
    Decision::Pass(Passed::Anonymous)
}

#[cold]
fn other_credential<B>(request: &mut Request<B>) -> Decision {
    let extensions = request.extensions_mut();
    if let Some(observation) = RequestObservation::of(extensions) {
        observation.record_other_credential();
    }
    extensions.remove::<OrgContext>();
    extensions.insert(OtherCredential);
    Decision::Pass(Passed::OtherCredential)
}

impl_debug!([S: std::fmt::Debug, F] ApiKeyService<S, F>, |service| {
    inner: service.inner,
    layer: service.layer
});

#[cfg(test)]
mod tests {
    use crate::auth::ApiKeyLayer;
    use crate::verify::{Verification, verifier_fn};

    #[test]
    fn malformed_credentials_are_not_counted() {
        let layer = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
        let (core, handle) = (&layer.core, layer.handle());
        let before = handle.stats();
        for malformed in [
            &b"12345678,"[..],
            b"1234 5678",
            b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8",
            b"========",
        ] {
            let digest = core.cache.source().digest(malformed);
            let now = core.cache.clock().now();
            let result = core.classify(None, malformed, digest, None, now);
            assert!(result.is_none(), "{result:?}");
        }
        assert_eq!(handle.stats(), before);
    }
}
