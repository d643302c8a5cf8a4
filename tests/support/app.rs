//! An application behind the layer, with an issuer in memory, on the paused clock.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Request, Response};
use tokio::task::JoinHandle;
use tower::{Layer, Service, ServiceExt};
use tower_orgkey::test_util::TestClock;
use tower_orgkey::verify::Organizations;
use tower_orgkey::{
    ApiKey, ApiKeyHandle, ApiKeyLayer, ApiKeyLayerBuilder, ApiKeyService, OrgContext,
    PrefixVerifier, Rejection, Verifier,
};

use super::issuer::{Behavior, Issuer};
use super::service::{Handler, request as request_with};

pub(crate) const SOFT: Duration = secs(60);
pub(crate) const HARD: Duration = secs(900);

pub(crate) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(crate) const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Advances the paused clock, timer by timer.
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// The peer of a request.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Peer(pub(crate) u64);

/// The response to a caller.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<u64>,
    pub(crate) code: Option<&'static str>,
    pub(crate) org: Option<OrgContext>,
    /// The time the caller waited.
    pub(crate) took: Duration,
}

impl Reply {
    pub(crate) fn is_stale(&self) -> bool {
        self.org.as_ref().unwrap().is_stale()
    }

    pub(crate) fn age(&self) -> Duration {
        self.org.as_ref().unwrap().age()
    }

    #[track_caller]
    pub(crate) fn is_unavailable(&self) -> u64 {
        assert_eq!(
            (self.status, self.code),
            (503, Some("verifier-unavailable")),
            "{self:?}"
        );
        self.retry_after.unwrap()
    }
}

/// A layer with an issuer in memory and an inner service.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) clock: TestClock,
    pub(crate) issuer: Issuer,
    pub(crate) layer: ApiKeyLayer,
    pub(crate) handle: ApiKeyHandle,
    service: ApiKeyService<Handler>,
    handler: Handler,
}

impl App {
    pub(crate) fn new() -> Self {
        Self::with(|builder| builder)
    }

    pub(crate) fn with(settings: impl FnOnce(ApiKeyLayerBuilder) -> ApiKeyLayerBuilder) -> Self {
        let clock = TestClock::new();
        // The machine has been running for a while.
        clock.jump(secs(1_000));
        let issuer = issuer(&clock);
        let builder = ApiKeyLayer::builder(issuer.clone())
            .test_clock(clock.clone())
            .peer(|head| head.extensions.get::<Peer>().copied());
        let layer = settings(builder).build().unwrap();
        Self::over(layer, issuer, clock)
    }

    /// An application with another verifier. Its issuer is not called.
    pub(crate) fn over_verifier(verifier: impl Verifier) -> Self {
        let clock = TestClock::new();
        clock.jump(secs(1_000));
        let layer = ApiKeyLayer::builder(verifier)
            .test_clock(clock.clone())
            .build()
            .unwrap();
        Self::over(layer, issuer(&clock), clock)
    }

    /// An application with two issuers, `a` and `b`; the keys of `a` begin with `a-` and those of `b` with `b-`. Returns the second issuer too.
    pub(crate) fn of_two(organizations: Organizations) -> (Self, Issuer) {
        let clock = TestClock::new();
        clock.jump(secs(1_000));
        let (a, b) = (issuer(&clock), issuer(&clock));
        let verifier = PrefixVerifier::builder()
            .issuer("a", ["a-"], a.clone())
            .issuer("b", ["b-"], b.clone())
            .organizations(organizations)
            .build()
            .unwrap();
        let layer = ApiKeyLayer::builder(verifier)
            .test_clock(clock.clone())
            .peer(|head| head.extensions.get::<Peer>().copied())
            .build()
            .unwrap();
        (Self::over(layer, a, clock), b)
    }

    fn over(layer: ApiKeyLayer, issuer: Issuer, clock: TestClock) -> Self {
        let handler = Handler::default();
        Self {
            handle: layer.handle(),
            service: layer.layer(handler.clone()),
            handler,
            layer,
            issuer,
            clock,
        }
    }

    /// Routes of the same layer with this `max_age`.
    pub(crate) fn max_age(&self, max_age: Duration) -> Self {
        let layer = self.layer.clone().max_age(max_age);
        Self::over(layer, self.issuer.clone(), self.clock.clone())
    }

    /// An application with these keys, each just verified.
    pub(crate) async fn knowing(self, secrets: &[&str]) -> Self {
        for secret in secrets {
            self.issuer.issue(secret);
            assert_eq!(self.get(secret).await.status, 200);
        }
        self
    }

    pub(crate) async fn get(&self, secret: &str) -> Reply {
        self.get_from(secret, None).await
    }

    pub(crate) async fn get_from(&self, secret: &str, peer: Option<Peer>) -> Reply {
        let began = self.clock.elapsed();
        let response = self.service.clone().oneshot(request(secret, peer)).await;
        read(
            secret,
            &response.unwrap(),
            self.clock.elapsed().saturating_sub(began),
        )
    }

    /// Sends a request on another task.
    pub(crate) fn begin(&self, secret: &str) -> JoinHandle<Reply> {
        self.begin_from(secret, None)
    }

    pub(crate) fn begin_from(&self, secret: &str, peer: Option<Peer>) -> JoinHandle<Reply> {
        let (app, secret) = (self.clone(), secret.to_owned());
        tokio::spawn(async move { app.get_from(&secret, peer).await })
    }

    /// The response to a request that must not wait.
    #[track_caller]
    pub(crate) fn get_now(&self, secret: &str) -> Reply {
        match self.try_now(secret) {
            Some(answer) => answer,
            None => panic!("the request had to wait"),
        }
    }

    /// The response to a request if it does not wait; otherwise the request is dropped.
    pub(crate) fn try_now(&self, secret: &str) -> Option<Reply> {
        let response = pin!(self.service.clone().call(request(secret, None)));
        match response.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(response) => Some(read(secret, &response.unwrap(), Duration::ZERO)),
            Poll::Pending => None,
        }
    }

    /// The number of requests that reached the handler.
    pub(crate) fn reached(&self) -> usize {
        self.handler.reached()
    }

    pub(crate) fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Jumps so that the clock shows this time exactly.
    pub(crate) fn jump_to(&self, time: Duration) {
        self.clock.jump(time.checked_sub(self.now()).unwrap());
    }

    /// Makes known keys fail until the breaker is open for all keys. Their results must not be fresh.
    pub(crate) async fn open_breaker_by(&self, known: &[String]) {
        self.issuer.is(Behavior::Fails);
        for key in known {
            assert_eq!(self.get(key).await.status, 200);
        }
        let breaker = self.handle.upstream().breaker;
        assert!(
            matches!(breaker, tower_orgkey::BreakerState::Open { .. }),
            "{breaker:?}"
        );
    }

    /// Makes unknown keys fail until the breaker is open for unknown keys.
    pub(crate) async fn open_breaker(&self) {
        self.issuer.is(Behavior::Fails);
        let before = self.issuer.faults();
        for n in 0..10 {
            self.get(&format!("unknown_key-{n}")).await;
        }
        assert!(self.issuer.faults() > before, "nothing failed");
        let breaker = self.handle.upstream().unknown_breaker;
        assert!(
            matches!(breaker, tower_orgkey::BreakerState::Open { .. }),
            "{breaker:?}"
        );
    }
}

/// An issuer that takes 20 ms to answer.
fn issuer(clock: &TestClock) -> Issuer {
    let issuer = Issuer::on(clock.clone());
    issuer.latency(millis(20));
    issuer
}

fn request(secret: &str, peer: Option<Peer>) -> Request<()> {
    let mut request = request_with(secret);
    if let Some(peer) = peer {
        request.extensions_mut().insert(peer);
    }
    request
}

/// Reads a response and checks the properties of all responses.
#[track_caller]
fn read(secret: &str, response: &Response<Bytes>, took: Duration) -> Reply {
    let status = response.status().as_u16();
    let rejection = response.extensions().get::<Rejection>();
    let served = response.extensions().get::<OrgContext>();
    let retry_after = response.headers().get(RETRY_AFTER);
    assert_eq!(
        served.is_some(),
        status == 200,
        "only a request that passes has a context"
    );
    assert_eq!(retry_after.is_some(), status == 503);
    assert_eq!(
        response.headers().contains_key(WWW_AUTHENTICATE),
        matches!(status, 400 | 401)
    );
    // The handler responds with the organization, which may be part of the key's name.
    let shown = match served {
        Some(_) => format!("{:?}", response.headers()),
        None => format!("{response:?}"),
    };
    assert!(!shown.contains(secret), "a response repeats the key");
    Reply {
        status,
        retry_after: retry_after.map(|value| value.to_str().unwrap().parse().unwrap()),
        code: rejection.map(Rejection::code),
        org: served.cloned(),
        took,
    }
}

pub(crate) fn key(secret: &str) -> ApiKey {
    ApiKey::parse(secret).unwrap()
}
