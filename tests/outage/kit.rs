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

/// Lets paused time pass, timer by timer.
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// How the issuer behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Answers,
    /// Refuses the connection, or answers with an error of its own: at once.
    Fails,
    /// Takes the call and says nothing.
    Silent,
    /// One call in so many fails.
    Flaps(usize),
    TooMany(Option<Duration>),
    /// The same, after so long.
    TooManyAfter(Duration, Duration),
    /// 400 to everything.
    BadRequest,
    /// Refuses our own credentials.
    Misconfigured,
    /// Fails for keys that it did not issue, and answers for the others.
    FailsForUnknown,
    /// 429 to all calls in a second beyond this many.
    Bears(usize),
}

/// What the issuer says about one key, whatever its mood is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// A reply that makes no sense.
    Nonsense,
    /// "Invalid", in a way that may mean something else.
    Unconfirmed,
}

impl Mood {
    /// Every way of not answering.
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
    /// When it was sent.
    pub(crate) at: Duration,
    /// Whether the key was said to be known.
    pub(crate) known: bool,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    UnderWay,
    Yes,
    No,
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
    mood: Mood,
    latency: Duration,
    keys: HashMap<String, Key>,
    says: HashMap<String, Says>,
    calls: Vec<Call>,
    under_way: usize,
    most_under_way: usize,
}

/// An issuer in memory: a yes for the keys that it issued, a no for all others, or whatever its mood is.
#[derive(Clone, Debug)]
pub(crate) struct Issuer {
    clock: TestClock,
    state: Arc<Mutex<State>>,
}

impl Issuer {
    pub(crate) fn new(clock: TestClock) -> Self {
        let state = State {
            mood: Mood::Answers,
            latency: millis(20),
            keys: HashMap::new(),
            says: HashMap::new(),
            calls: Vec::new(),
            under_way: 0,
            most_under_way: 0,
        };
        Self {
            clock,
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn is(&self, mood: Mood) {
        self.state().mood = mood;
    }

    pub(crate) fn takes(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// Issues a key of the organization `org_1` whose id is `id_` and the secret.
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

    /// Answers so about this key from now on.
    pub(crate) fn says(&self, secret: &str, says: Says) {
        self.state().says.insert(secret.to_owned(), says);
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

    /// How many hold this issuer: a layer's cache, calls in flight, and the test itself.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.state)
    }

    pub(crate) fn under_way(&self) -> usize {
        self.state().under_way
    }

    pub(crate) fn most_under_way(&self) -> usize {
        self.state().most_under_way
    }

    /// The most calls in any second, wherever it begins.
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
        struct UnderWay<'a>(&'a Issuer);
        impl Drop for UnderWay<'_> {
            fn drop(&mut self) {
                self.0.state().under_way -= 1;
            }
        }

        let (call, mood, latency, answer, says) = {
            let mut state = self.state();
            let call = state.calls.len();
            let now = self.clock.elapsed();
            let recent = state.calls.iter().rev();
            let in_this_second = recent
                .take_while(|call| call.at.as_secs() == now.as_secs())
                .count();
            let is_issued = state.keys.contains_key(key.expose_secret());
            let mood = match state.mood {
                Mood::Bears(most) if in_this_second >= most => Mood::TooMany(None),
                Mood::FailsForUnknown if !is_issued => Mood::Fails,
                Mood::Bears(_) | Mood::FailsForUnknown => Mood::Answers,
                mood => mood,
            };
            state.calls.push(Call {
                key: key.expose_secret().to_owned(),
                at: self.clock.elapsed(),
                known,
                outcome: Outcome::UnderWay,
            });
            state.under_way += 1;
            state.most_under_way = state.most_under_way.max(state.under_way);
            // Whether a key is good is decided when the call arrives, as at a database.
            let answer = state.keys.get(key.expose_secret()).cloned();
            let says = state.says.get(key.expose_secret()).copied();
            (call, mood, state.latency, answer, says)
        };
        let _under_way = UnderWay(self);
        let ended = |outcome| self.state().calls[call].outcome = outcome;
        let mood = match mood {
            Mood::Flaps(n) if call.is_multiple_of(n) => Mood::Fails,
            Mood::Flaps(_) => Mood::Answers,
            mood => mood,
        };
        match mood {
            Mood::Answers | Mood::Flaps(_) => {
                if !latency.is_zero() {
                    tokio::time::sleep(latency).await;
                }
                match says {
                    Some(Says::Nonsense) => {
                        ended(Outcome::Fault);
                        return Err(VerifyError::invalid_response("2,000 scopes"));
                    }
                    Some(Says::Unconfirmed) => {
                        ended(Outcome::No);
                        return Ok(Verification::invalid_unconfirmed());
                    }
                    None => {}
                }
                let Some(key) = answer else {
                    ended(Outcome::No);
                    return Ok(Verification::invalid());
                };
                ended(Outcome::Yes);
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
            Mood::Fails => {
                ended(Outcome::Fault);
                Err(VerifyError::unavailable("connection refused"))
            }
            Mood::Silent => {
                ended(Outcome::Fault);
                std::future::pending().await
            }
            Mood::TooMany(retry_after) => {
                ended(Outcome::Fault);
                Err(VerifyError::throttled(retry_after))
            }
            Mood::TooManyAfter(latency, retry_after) => {
                tokio::time::sleep(latency).await;
                ended(Outcome::Fault);
                Err(VerifyError::throttled(Some(retry_after)))
            }
            Mood::BadRequest => {
                ended(Outcome::No);
                Ok(Verification::invalid_unconfirmed())
            }
            Mood::FailsForUnknown | Mood::Bears(_) => unreachable!("decided when the call came"),
            Mood::Misconfigured => {
                ended(Outcome::Fault);
                Err(VerifyError::misconfigured("our token is refused"))
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

/// Who presents a key.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Peer(pub(crate) u64);

/// The handler's own account of a request that reached it.
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

/// What a caller saw.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<u64>,
    pub(crate) code: Option<&'static str>,
    pub(crate) org: Option<OrgContext>,
    /// How long the caller waited.
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

/// A layer over an issuer in memory, and a service under it.
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
        // A machine that has been up for a while.
        clock.jump(secs(1_000));
        let issuer = Issuer::new(clock.clone());
        let builder = ApiKeyLayer::builder(issuer.clone())
            .test_clock(clock.clone())
            .peer(|head| head.extensions.get::<Peer>().copied());
        let layer = settings(builder).build().unwrap();
        Self::over(layer, issuer, clock)
    }

    /// An application over another verifier. Its issuer is not called.
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

    /// Routes of the same layer that live on facts of at most this age.
    pub(crate) fn max_age(&self, max_age: Duration) -> Self {
        let layer = self.layer.clone().max_age(max_age);
        Self::over(layer, self.issuer.clone(), self.clock.clone())
    }

    /// An application that knows these keys: each was verified just now.
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

    /// A request on a task of its own.
    pub(crate) fn begin(&self, secret: &str) -> JoinHandle<Answer> {
        self.begin_from(secret, None)
    }

    pub(crate) fn begin_from(&self, secret: &str, peer: Option<Peer>) -> JoinHandle<Answer> {
        let (app, secret) = (self.clone(), secret.to_owned());
        tokio::spawn(async move { app.get_from(&secret, peer).await })
    }

    /// The answer of a request that waits for nothing at all.
    #[track_caller]
    pub(crate) fn get_now(&self, secret: &str) -> Answer {
        match self.try_now(secret) {
            Some(answer) => answer,
            None => panic!("the request had to wait"),
        }
    }

    /// The answer of a request, if it waits for nothing at all; otherwise its caller goes away.
    pub(crate) fn try_now(&self, secret: &str) -> Option<Answer> {
        let response = pin!(self.service.clone().call(request(secret, None)));
        match response.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(response) => Some(read(secret, &response.unwrap(), Duration::ZERO)),
            Poll::Pending => None,
        }
    }

    /// How many requests reached the handler.
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

    /// Lets known keys fail until the breaker is open for all keys. Their results must not be fresh.
    pub(crate) async fn open_breaker_by(&self, known: &[String]) {
        self.issuer.is(Mood::Fails);
        for key in known {
            assert_eq!(self.get(key).await.status, 200);
        }
        let breaker = self.handle.upstream().breaker;
        assert!(
            matches!(breaker, tower_orgkey::BreakerState::Open { .. }),
            "{breaker:?}"
        );
    }

    /// Lets unknown keys fail until the breaker is open for unknown keys.
    pub(crate) async fn open_breaker(&self) {
        self.issuer.is(Mood::Fails);
        let before = self.issuer.faults();
        for n in 0..10 {
            self.get(&format!("stranger-{n}")).await;
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

/// Reads a response, and checks what holds for each of them.
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
