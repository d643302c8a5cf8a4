//! An issuer in memory, and an application behind the layer, both on the paused clock.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Request, Response};
use tokio::task::JoinHandle;
use tower::{Layer, Service, ServiceExt};
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{
    ApiKey, ApiKeyHandle, ApiKeyLayer, ApiKeyLayerBuilder, ApiKeyService, KeyId, OrgCode,
    OrgContext, Rejection, Verification, Verifier, VerifyError,
};

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

/// The behavior of the issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behavior {
    Answers,
    /// Fails at once: a refused connection or a 5xx.
    Fails,
    /// Accepts calls and never answers.
    Silent,
    /// One of this many calls fails.
    Flaps(usize),
    TooMany(Option<Duration>),
    /// The same, after the first duration.
    TooManyAfter(Duration, Duration),
    /// Answers 400 to all calls.
    BadRequest,
    /// Rejects the credentials of the verifier.
    Misconfigured,
    /// Fails for unknown keys only.
    FailsForUnknown,
    /// Answers 429 to calls above this number per second.
    Bears(usize),
}

/// The issuer's reply about one key, whatever its behavior.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyReply {
    /// An invalid response.
    InvalidResponse,
    /// An unconfirmed invalid answer.
    Unconfirmed,
}

impl Behavior {
    /// All kinds of outages.
    pub(crate) const OUTAGES: [Self; 5] = [
        Self::Fails,
        Self::Silent,
        Self::TooMany(Some(secs(30))),
        Self::TooMany(None),
        Self::Misconfigured,
    ];
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) key: String,
    /// The time when it was sent.
    pub(crate) at: Duration,
    /// Whether the layer called it a known key.
    pub(crate) known: bool,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    InFlight,
    Valid,
    Invalid,
    Fault,
}

#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) org: String,
    pub(crate) id: String,
    pub(crate) expires_at: Option<SystemTime>,
    pub(crate) user: Option<String>,
}

#[derive(Debug)]
struct State {
    behavior: Behavior,
    latency: Duration,
    keys: HashMap<String, Key>,
    replies: HashMap<String, KeyReply>,
    calls: Vec<Call>,
    in_flight: usize,
    max_in_flight: usize,
}

/// An issuer in memory. Keys that it issued are valid and all others are invalid, unless its behavior is another.
#[derive(Clone, Debug)]
pub(crate) struct Issuer {
    clock: TestClock,
    state: Arc<Mutex<State>>,
}

impl Issuer {
    pub(crate) fn new(clock: TestClock) -> Self {
        let state = State {
            behavior: Behavior::Answers,
            latency: millis(20),
            keys: HashMap::new(),
            replies: HashMap::new(),
            calls: Vec::new(),
            in_flight: 0,
            max_in_flight: 0,
        };
        Self {
            clock,
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn is(&self, behavior: Behavior) {
        self.state().behavior = behavior;
    }

    pub(crate) fn takes(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// Issues a key of the organization `org_1`. Its id is `id_` and the secret.
    pub(crate) fn issue(&self, secret: &str) {
        self.issue_as(secret, "org_1", &format!("id_{secret}"));
    }

    pub(crate) fn issue_as(&self, secret: &str, org: &str, id: &str) {
        let key = Key {
            org: org.to_owned(),
            id: id.to_owned(),
            expires_at: None,
            user: None,
        };
        self.state().keys.insert(secret.to_owned(), key);
    }

    pub(crate) fn change(&self, secret: &str, change: impl FnOnce(&mut Key)) {
        change(self.state().keys.get_mut(secret).unwrap());
    }

    pub(crate) fn revoke(&self, secret: &str) {
        assert!(
            self.state().keys.remove(secret).is_some(),
            "nothing to revoke"
        );
    }

    /// Sets the reply about this key.
    pub(crate) fn set_reply(&self, secret: &str, reply: KeyReply) {
        self.state().replies.insert(secret.to_owned(), reply);
    }

    pub(crate) fn calls(&self) -> usize {
        self.state().calls.len()
    }

    pub(crate) fn calls_for(&self, secret: &str) -> usize {
        self.logged(|call| call.key == secret).len()
    }

    pub(crate) fn faults(&self) -> usize {
        self.logged(|call| call.outcome == Outcome::Fault).len()
    }

    pub(crate) fn logged(&self, filter: impl Fn(&Call) -> bool) -> Vec<Call> {
        self.state()
            .calls
            .iter()
            .filter(|call| filter(call))
            .cloned()
            .collect()
    }

    /// The number of references: a layer's cache, calls in flight, and the test.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.state)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.state().in_flight
    }

    pub(crate) fn max_in_flight(&self) -> usize {
        self.state().max_in_flight
    }

    /// The maximum number of calls in any second.
    pub(crate) fn most_in_a_second(&self, from: Duration) -> usize {
        let times: Vec<_> = self
            .logged(|call| call.at >= from)
            .iter()
            .map(|call| call.at)
            .collect();
        (0..times.len())
            .map(|first| {
                times[first..]
                    .iter()
                    .take_while(|&&at| at < times[first] + secs(1))
                    .count()
            })
            .max()
            .unwrap_or(0)
    }

    async fn called(&self, key: &ApiKey, known: bool) -> Result<Verification, VerifyError> {
        struct InFlight<'a>(&'a Issuer);
        impl Drop for InFlight<'_> {
            fn drop(&mut self) {
                self.0.state().in_flight -= 1;
            }
        }

        let (call, behavior, latency, answer, reply) = {
            let mut state = self.state();
            let call = state.calls.len();
            let now = self.clock.elapsed();
            let recent = state.calls.iter().rev();
            let in_this_second = recent
                .take_while(|call| call.at.as_secs() == now.as_secs())
                .count();
            let is_issued = state.keys.contains_key(key.expose_secret());
            let behavior = match state.behavior {
                Behavior::Bears(most) if in_this_second >= most => Behavior::TooMany(None),
                Behavior::FailsForUnknown if !is_issued => Behavior::Fails,
                Behavior::Bears(_) | Behavior::FailsForUnknown => Behavior::Answers,
                behavior => behavior,
            };
            state.calls.push(Call {
                key: key.expose_secret().to_owned(),
                at: self.clock.elapsed(),
                known,
                outcome: Outcome::InFlight,
            });
            state.in_flight += 1;
            state.max_in_flight = state.max_in_flight.max(state.in_flight);
            // The answer is decided when the call arrives, as in a database.
            let answer = state.keys.get(key.expose_secret()).cloned();
            let reply = state.replies.get(key.expose_secret()).copied();
            (call, behavior, state.latency, answer, reply)
        };
        let _under_way = InFlight(self);
        let ended = |outcome| self.state().calls[call].outcome = outcome;
        let behavior = match behavior {
            Behavior::Flaps(n) if call.is_multiple_of(n) => Behavior::Fails,
            Behavior::Flaps(_) => Behavior::Answers,
            behavior => behavior,
        };
        match behavior {
            Behavior::Answers | Behavior::Flaps(_) => {
                if !latency.is_zero() {
                    tokio::time::sleep(latency).await;
                }
                match reply {
                    Some(KeyReply::InvalidResponse) => {
                        ended(Outcome::Fault);
                        return Err(VerifyError::invalid_response("2,000 scopes"));
                    }
                    Some(KeyReply::Unconfirmed) => {
                        ended(Outcome::Invalid);
                        return Ok(Verification::invalid_unconfirmed());
                    }
                    None => {}
                }
                let Some(key) = answer else {
                    ended(Outcome::Invalid);
                    return Ok(Verification::invalid());
                };
                ended(Outcome::Valid);
                let mut yes = Verification::of_organization(OrgCode::new(key.org).unwrap())
                    .with_key_id(KeyId::new(key.id).unwrap());
                if let Some(at) = key.expires_at {
                    yes = yes.with_expires_at(at);
                }
                if let Some(user) = key.user {
                    yes = yes.with_user_id(user);
                }
                Ok(yes)
            }
            Behavior::Fails => {
                ended(Outcome::Fault);
                Err(VerifyError::unavailable("connection refused"))
            }
            Behavior::Silent => {
                ended(Outcome::Fault);
                std::future::pending().await
            }
            Behavior::TooMany(retry_after) => {
                ended(Outcome::Fault);
                Err(VerifyError::throttled(retry_after))
            }
            Behavior::TooManyAfter(latency, retry_after) => {
                tokio::time::sleep(latency).await;
                ended(Outcome::Fault);
                Err(VerifyError::throttled(Some(retry_after)))
            }
            Behavior::BadRequest => {
                ended(Outcome::Invalid);
                Ok(Verification::invalid_unconfirmed())
            }
            Behavior::FailsForUnknown | Behavior::Bears(_) => {
                unreachable!("decided when the call came")
            }
            Behavior::Misconfigured => {
                ended(Outcome::Fault);
                Err(VerifyError::misconfigured("the token is rejected"))
            }
        }
    }
}

impl Verifier for Issuer {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.called(key, false).await
    }

    async fn reverify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.called(key, true).await
    }
}

/// The peer of a request.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Peer(pub(crate) u64);

/// A request as the handler saw it.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) org: OrgContext,
}

/// The application behind the layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Handler {
    reached: Arc<AtomicUsize>,
}

impl Service<Request<()>> for Handler {
    type Response = Response<Bytes>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Bytes>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        self.reached.fetch_add(1, Ordering::Relaxed);
        let org = request.extensions().get::<OrgContext>().unwrap().clone();
        let mut response = Response::new(Bytes::new());
        response.extensions_mut().insert(Served { org });
        ready(Ok(response))
    }
}

/// The response to a caller.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<u64>,
    pub(crate) code: Option<&'static str>,
    pub(crate) org: Option<OrgContext>,
    /// The time the caller waited.
    pub(crate) took: Duration,
}

impl Answer {
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
        let issuer = Issuer::new(clock.clone());
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
        Self::over(layer, Issuer::new(clock.clone()), clock)
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

    pub(crate) async fn get(&self, secret: &str) -> Answer {
        self.get_from(secret, None).await
    }

    pub(crate) async fn get_from(&self, secret: &str, peer: Option<Peer>) -> Answer {
        let began = self.clock.elapsed();
        let response = self.service.clone().oneshot(request(secret, peer)).await;
        read(secret, &response.unwrap(), self.clock.elapsed() - began)
    }

    /// Sends a request on another task.
    pub(crate) fn begin(&self, secret: &str) -> JoinHandle<Answer> {
        self.begin_from(secret, None)
    }

    pub(crate) fn begin_from(&self, secret: &str, peer: Option<Peer>) -> JoinHandle<Answer> {
        let (app, secret) = (self.clone(), secret.to_owned());
        tokio::spawn(async move { app.get_from(&secret, peer).await })
    }

    /// The response to a request that must not wait.
    #[track_caller]
    pub(crate) fn get_now(&self, secret: &str) -> Answer {
        match self.try_now(secret) {
            Some(answer) => answer,
            None => panic!("the request had to wait"),
        }
    }

    /// The response to a request if it does not wait; otherwise the request is dropped.
    pub(crate) fn try_now(&self, secret: &str) -> Option<Answer> {
        let response = pin!(self.service.clone().call(request(secret, None)));
        match response.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(response) => Some(read(secret, &response.unwrap(), Duration::ZERO)),
            Poll::Pending => None,
        }
    }

    /// The number of requests that reached the handler.
    pub(crate) fn reached(&self) -> usize {
        self.handler.reached.load(Ordering::Relaxed)
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

fn request(secret: &str, peer: Option<Peer>) -> Request<()> {
    let mut request = Request::builder()
        .header(AUTHORIZATION, format!("Bearer {secret}"))
        .body(())
        .unwrap();
    if let Some(peer) = peer {
        request.extensions_mut().insert(peer);
    }
    request
}

/// Reads a response and checks the properties of all responses.
#[track_caller]
fn read(secret: &str, response: &Response<Bytes>, took: Duration) -> Answer {
    let status = response.status().as_u16();
    let rejection = response.extensions().get::<Rejection>();
    let served = response.extensions().get::<Served>();
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
    assert!(
        !format!("{response:?}").contains(secret),
        "a response repeats the key"
    );
    Answer {
        status,
        retry_after: retry_after.map(|value| value.to_str().unwrap().parse().unwrap()),
        code: rejection.map(Rejection::code),
        org: served.map(|served| served.org.clone()),
        took,
    }
}

pub(crate) fn key(secret: &str) -> ApiKey {
    ApiKey::parse(secret).unwrap()
}
