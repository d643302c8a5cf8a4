//! The least that usage, a rate limit and settings cost as separate layers around or inside the floor, written by hand.
//!
//! They bound what `UsageLayer`, `OrgRateLimitLayer` and `OrgSettingsLayer` can become, as the floor bounds `ApiKeyLayer`. None
//! of them bounds its memory, rejects a request, or sees requests that end without a response.

use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use axum::extract::MatchedPath;
use foldhash::quality::RandomState;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use hashbrown::{Equivalent, HashMap};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use pin_project_lite::pin_project;
use tower::layer::layer_fn;
use tower_service::Service;

use super::floor::{Answer, Facts, KeyLayer, ScopeLayer};
use super::{Call, KEY, SCOPE, api, passes};

/// What the layer that counts learns from further in.
#[derive(Clone, Default)]
struct Seen(Arc<OnceLock<Arc<Facts>>>);

pub(super) fn counting() -> Call {
    let rows = Arc::new(Rows::default());
    let count = layer_fn(move |inner| CountService {
        inner,
        rows: Arc::clone(&rows),
    });
    let auth = KeyLayer(find).over(only_key());
    let seen = layer_fn(|inner| SeenService { inner });
    passes(api().layer((count, auth, seen, ScopeLayer(SCOPE))))
}

pub(super) fn rate() -> Call {
    let limiter = Arc::new(RateLimiter::direct(Quota::per_second(NonZeroU32::MAX)));
    let limit = layer_fn(move |inner| RateService {
        inner,
        limiters: of_the_organization(&limiter),
    });
    let auth = KeyLayer(find).over(only_key());
    passes(api().layer((auth, limit, ScopeLayer(SCOPE))))
}

pub(super) fn settings() -> Call {
    let settings = layer_fn(|inner| SettingsService {
        inner,
        settings: of_the_organization(&Arc::new(3)),
    });
    let auth = KeyLayer(find).over(only_key());
    passes(api().layer((auth, settings, ScopeLayer(SCOPE))))
}

type ByOrganization<T> = Arc<HashMap<String, Arc<T>, RandomState>>;

fn of_the_organization<T>(value: &Arc<T>) -> ByOrganization<T> {
    let by_organization = [(Facts::of_the_key().org, Arc::clone(value))];
    Arc::new(by_organization.into_iter().collect())
}

type OnlyKey = (String, Arc<Facts>);

fn only_key() -> OnlyKey {
    (KEY.to_owned(), Arc::new(Facts::of_the_key()))
}

fn find(key: &str, only: &OnlyKey) -> Option<Arc<Facts>> {
    (key == only.0).then(|| Arc::clone(&only.1))
}

fn facts(request: &Request<Body>) -> &Arc<Facts> {
    let facts = request.extensions().get();
    facts.expect("the layer of the key is around this one")
}

#[derive(Hash, PartialEq, Eq)]
struct Row {
    org: String,
    key_id: String,
    route: String,
}

#[derive(Hash)]
struct RowRef<'a> {
    org: &'a str,
    key_id: &'a str,
    route: &'a str,
}

impl Equivalent<Row> for RowRef<'_> {
    fn equivalent(&self, row: &Row) -> bool {
        self.org == row.org && self.key_id == row.key_id && self.route == row.route
    }
}

impl From<&RowRef<'_>> for Row {
    fn from(row: &RowRef<'_>) -> Self {
        Self {
            org: row.org.to_owned(),
            key_id: row.key_id.to_owned(),
            route: row.route.to_owned(),
        }
    }
}

#[derive(Default)]
struct Counts {
    minute: u64,
    requests: u64,
    duration: Duration,
    request_bytes: u64,
    response_bytes: u64,
}

type Rows = Mutex<HashMap<Row, Counts, RandomState>>;

/// Counts each response by organization, key and route.
#[derive(Clone)]
struct CountService<S> {
    inner: S,
    rows: Arc<Rows>,
}

impl<S> Service<Request<Body>> for CountService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Counted<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let seen = Seen::default();
        request.extensions_mut().insert(seen.clone());
        Counted {
            rows: Arc::clone(&self.rows),
            seen,
            began: Instant::now(),
            route: request.extensions().get().cloned(),
            request_bytes: request.body().size_hint().exact().unwrap_or(0),
            future: self.inner.call(request),
        }
    }
}

pin_project! {
    struct Counted<F> {
        #[pin]
        future: F,
        rows: Arc<Rows>,
        seen: Seen,
        began: Instant,
        route: Option<MatchedPath>,
        request_bytes: u64,
    }
}

impl<F, E> Future for Counted<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.future.poll(cx))?;
        let facts = this.seen.0.get().expect("the request had the key");
        let row = RowRef {
            org: &facts.org,
            key_id: &facts.key_id,
            route: this.route.as_ref().map_or("", MatchedPath::as_str),
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut rows = this.rows.lock().expect("nothing panics under this lock");
        let Some(counts) = rows.get_mut(&row) else {
            rows.insert(Row::from(&row), Counts::default());
            return Poll::Ready(Ok(response));
        };
        counts.minute = now.expect("a clock after 1970").as_secs() / 60;
        counts.requests += 1;
        counts.duration += this.began.elapsed();
        counts.request_bytes += *this.request_bytes;
        counts.response_bytes += response.body().size_hint().exact().unwrap_or(0);
        drop(rows);
        Poll::Ready(Ok(response))
    }
}

/// Records the organization of a request, for the layer that counts.
#[derive(Clone)]
struct SeenService<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for SeenService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if let Some(seen) = request.extensions().get::<Seen>() {
            let _ = seen.0.set(Arc::clone(facts(&request)));
        }
        self.inner.call(request)
    }
}

/// Takes a permit of the organization.
#[derive(Clone)]
struct RateService<S> {
    inner: S,
    limiters: ByOrganization<DefaultDirectRateLimiter>,
}

impl<S> Service<Request<Body>> for RateService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let limiter = self.limiters.get(&facts(&request).org);
        if limiter.is_some_and(|limiter| limiter.check().is_ok()) {
            Answer::Passed {
                future: self.inner.call(request),
            }
        } else {
            Answer::Refused {
                status: StatusCode::TOO_MANY_REQUESTS,
            }
        }
    }
}

/// Puts the settings of the organization into the extensions.
#[derive(Clone)]
struct SettingsService<S> {
    inner: S,
    settings: ByOrganization<u32>,
}

impl<S> Service<Request<Body>> for SettingsService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Some(settings) = self.settings.get(&facts(&request).org).cloned() else {
            return Answer::Refused {
                status: StatusCode::SERVICE_UNAVAILABLE,
            };
        };
        request.extensions_mut().insert(settings);
        Answer::Passed {
            future: self.inner.call(request),
        }
    }
}
