//! The layer under test, driven step by step and held to the model after each.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt};
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKey, ApiKeyHandle, ApiKeyLayer, BreakerState, OrgContext, Scope};

use crate::history::{Decree, Facts, Issuer, Kind, key_id, org_code, text_of};
use crate::oracle::{Bounds, Oracle, Seen, Served};
use crate::world::{Ask, HARD, Mode, SOFT, STRICT, Secret, Step, Target, World};

/// What a run must have seen, or it has shown nothing.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) steps: AtomicU64,
    pub(crate) served: AtomicU64,
    pub(crate) served_past_soft: AtomicU64,
    pub(crate) served_past_twice_soft: AtomicU64,
    pub(crate) served_in_the_last_second: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) could_not_tell: AtomicU64,
    pub(crate) without_organization: AtomicU64,
    pub(crate) decreed_in_flight: AtomicU64,
    pub(crate) overtaken: AtomicU64,
    pub(crate) crowds: AtomicU64,
}

impl Tally {
    pub(crate) fn each(&self) -> [(&'static str, u64); 11] {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("steps", read(&self.steps)),
            ("served", read(&self.served)),
            ("served past the soft TTL", read(&self.served_past_soft)),
            (
                "served past twice the soft TTL",
                read(&self.served_past_twice_soft),
            ),
            (
                "served in the last second of the hard TTL",
                read(&self.served_in_the_last_second),
            ),
            ("refused", read(&self.refused)),
            ("could not tell", read(&self.could_not_tell)),
            ("without an organization", read(&self.without_organization)),
            (
                "decreed while requests waited",
                read(&self.decreed_in_flight),
            ),
            ("slow answers overtaken", read(&self.overtaken)),
            ("crowds", read(&self.crowds)),
        ]
    }
}

/// What the model of a run believes, and where it counts.
pub(crate) trait Belief: 'static {
    const BOUNDS: Bounds;
    fn tally() -> &'static Tally;
}

/// The published bounds.
pub(crate) const PUBLISHED: Bounds = Bounds {
    stale: Duration::from_secs(2 * SOFT.as_secs()),
    hard: HARD,
};

type Door = BoxCloneSyncService<Request<()>, Response<Bytes>, Infallible>;

pub(crate) struct Machine<B> {
    runtime: Runtime,
    clock: TestClock,
    issuer: Issuer,
    handle: ApiKeyHandle,
    door: Door,
    strict: Vec<Door>,
    pending: Vec<JoinHandle<Seen>>,
    crowds: u32,
    belief: PhantomData<B>,
}

/// The handler writes down what it was given.
fn door(auth: &ApiKeyLayer, issuer: &Issuer, clock: &TestClock) -> Door {
    let issuer = issuer.clone();
    let clock = clock.clone();
    let handler = tower::service_fn(move |request: Request<()>| {
        let when = issuer.history().now();
        let mut response = Response::new(Bytes::new());
        if let Some(context) = request.extensions().get::<OrgContext>() {
            response.extensions_mut().insert(Served {
                when,
                facts: facts_of(context),
                sent_at: clock.elapsed() - context.age(),
                is_stale: context.is_stale(),
            });
        }
        std::future::ready(Ok(response))
    });
    BoxCloneSyncService::new(auth.layer(handler))
}

fn facts_of(context: &OrgContext) -> Facts {
    let number = |text: &str, prefix| text.strip_prefix(prefix).and_then(|n| n.parse().ok());
    let scope = context.scopes().iter().next().map(Scope::as_str);
    let key = context.key_id().and_then(|id| number(id.as_str(), "id_"));
    let org = number(context.org_code().as_str(), "org_");
    let scopes = scope.and_then(|scope| number(scope, "version:"));
    Facts {
        org: org.and_then(|org: u64| u8::try_from(org).ok()),
        key: key
            .and_then(|key: u64| u8::try_from(key).ok())
            .unwrap_or(u8::MAX),
        scopes: scopes
            .and_then(|scopes: u64| u16::try_from(scopes).ok())
            .unwrap_or(u16::MAX),
    }
}

fn request(key: &str) -> Request<()> {
    Request::get("/")
        .header("authorization", format!("Bearer {key}"))
        .body(())
        .unwrap()
}

fn api_key(secret: Secret) -> ApiKey {
    ApiKey::parse(&text_of(secret)).unwrap()
}

/// Lets every task run that can.
async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

/// One request through the public layer.
async fn ask(mut door: Door, issuer: Issuer, ask: Ask, way_was_open: bool) -> Seen {
    let begun = {
        let mut history = issuer.history();
        let begun = history.now();
        if ask.strict.is_some() {
            history.strict.push((ask.secret, begun));
        }
        begun
    };
    let Ok(door) = door.ready().await;
    let Ok(response) = door.call(request(&text_of(ask.secret))).await;
    let ended = issuer.history().now();
    Seen {
        secret: ask.secret,
        strict: ask.strict,
        begun,
        ended,
        status: response.status().as_u16(),
        served: response.extensions().get::<Served>().copied(),
        way_was_open,
    }
}

impl<B: Belief> Machine<B> {
    fn new(world: &World) -> Self {
        // What the layer draws at random is drawn alike in every run of a case.
        fastrand::seed(7);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let clock = {
            let _inside = runtime.enter();
            TestClock::new()
        };
        let issuer = Issuer::new(clock.clone(), world.keys.clone(), world.mode);
        let auth = ApiKeyLayer::builder(issuer.clone())
            .soft_ttl(SOFT)
            .hard_ttl(HARD)
            .test_clock(clock.clone())
            .build()
            .unwrap();
        let strict = STRICT.map(|max_age| door(&auth.clone().max_age(max_age), &issuer, &clock));
        Self {
            handle: auth.handle(),
            door: door(&auth, &issuer, &clock),
            strict: strict.into(),
            runtime,
            clock,
            issuer,
            pending: Vec::new(),
            crowds: 0,
            belief: PhantomData,
        }
    }

    fn begin(&self, asked: Ask) -> impl Future<Output = Seen> + Send + use<B> {
        let state = self.handle.upstream();
        let way_is_open = self.pending.is_empty()
            && state.breaker == BreakerState::Closed
            && state.paused_for.is_none()
            && state.calls_per_second.is_none()
            && state.waiting == 0
            && state.in_flight == 0;
        self.through(asked, way_is_open)
    }

    fn begin_beside_others(&self, asked: Ask) -> impl Future<Output = Seen> + Send + use<B> {
        self.through(asked, false)
    }

    fn through(&self, asked: Ask, way_is_open: bool) -> impl Future<Output = Seen> + Send + use<B> {
        let door = asked
            .strict
            .map_or(&self.door, |strict| &self.strict[strict]);
        ask(door.clone(), self.issuer.clone(), asked, way_is_open)
    }

    fn check(&self, seen: &Seen) {
        let tally = B::tally();
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match seen.status {
            401 => count(&tally.refused),
            403 => count(&tally.without_organization),
            503 => count(&tally.could_not_tell),
            _ => count(&tally.served),
        };
        if let Some(served) = &seen.served {
            let age = served.when.at - served.sent_at;
            if age >= SOFT {
                count(&tally.served_past_soft);
            }
            if age >= SOFT * 2 {
                count(&tally.served_past_twice_soft);
            }
            if age + Duration::from_secs(1) >= HARD {
                count(&tally.served_in_the_last_second);
            }
        }
        let history = self.issuer.history();
        let oracle = Oracle {
            history: &history,
            bounds: B::BOUNDS,
            soft: SOFT,
        };
        if let Err(complaint) = oracle.judge(seen) {
            let calls = history.calls_of(seen.secret).to_vec();
            let decrees = history.decrees.clone();
            drop(history);
            panic!("{complaint}\n{seen:#?}\ncalls: {calls:#?}\ndecrees: {decrees:#?}");
        }
    }

    fn collect(&mut self, only_what_is_over: bool) {
        let (waited_for, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| !only_what_is_over || pending.is_finished());
        self.pending = rest;
        for pending in waited_for {
            let seen = self.runtime.block_on(pending).unwrap();
            self.check(&seen);
        }
    }

    fn decree(&mut self, kind: Kind, target: Target) {
        let waiting = self.pending.iter().filter(|pending| !pending.is_finished());
        if waiting.count() > 0 {
            B::tally().decreed_in_flight.fetch_add(1, Ordering::Relaxed);
        }
        let handle = &self.handle;
        match (kind, target) {
            (Kind::Block, Target::Secret(secret)) => handle.block_key(&api_key(secret)).unwrap(),
            (Kind::Block, Target::Id(key)) => handle.block_key_id(&key_id(key)).unwrap(),
            (Kind::Block, Target::Org(org)) => handle.block_org(&org_code(org)).unwrap(),
            (Kind::Unblock, Target::Secret(secret)) => {
                handle.unblock_key(&api_key(secret));
            }
            (Kind::Unblock, Target::Id(key)) => {
                handle.unblock_key_id(&key_id(key));
            }
            (Kind::Unblock, Target::Org(org)) => {
                handle.unblock_org(&org_code(org));
            }
            (Kind::Invalidate, Target::Secret(secret)) => handle.invalidate_key(&api_key(secret)),
            (Kind::Invalidate, Target::Id(key)) => handle.invalidate_key_id(&key_id(key)),
            (Kind::Invalidate, Target::Org(org)) => handle.invalidate_org(&org_code(org)),
            (Kind::Invalidate, Target::All) => handle.invalidate_all(),
            (Kind::Block | Kind::Unblock, Target::All) => return,
        }
        let mut history = self.issuer.history();
        let when = history.now();
        history.decrees.push(Decree { when, kind, target });
    }

    /// A question whose answer is decided now and comes later.
    fn begin_slowly(&mut self, key: u8) {
        let secret = self.present_secret(key);
        self.decree(Kind::Invalidate, Target::Secret(secret));
        self.issuer.history().mode = Mode::Answers(900);
        let asked = Ask {
            secret,
            strict: None,
        };
        self.pending
            .push(self.runtime.spawn(self.begin_beside_others(asked)));
        self.runtime
            .block_on(async { tokio::time::sleep(Duration::from_millis(10)).await });
    }

    /// Another question about the key, that would not wait for the first; then one more, when the first is answered.
    fn overtake(&mut self, key: u8) {
        let secret = self.present_secret(key);
        for strict in [Some(0), None] {
            let asking = self.begin_beside_others(Ask { secret, strict });
            let seen = self.runtime.block_on(asking);
            self.check(&seen);
            self.runtime
                .block_on(async { tokio::time::sleep(Duration::from_secs(1)).await });
        }
        B::tally().overtaken.fetch_add(1, Ordering::Relaxed);
    }

    fn present_secret(&self, key: u8) -> Secret {
        let generation = self.issuer.history().keys[usize::from(key)].generation;
        Secret { key, generation }
    }

    /// The order of admission. Strangers fill their share of the calls and a row behind it; then a former key goes before
    /// those who wait, and a known one at once.
    fn crowd(&mut self) {
        const STRANGERS: usize = 80;
        /// Of 64 calls at once a quarter is kept for known keys.
        const SHARE: usize = 48;

        self.collect(false);
        // Flights of the steps before are to be over.
        self.runtime
            .block_on(async { tokio::time::sleep(Duration::from_secs(10)).await });
        let state = self.handle.upstream();
        if state.breaker != BreakerState::Closed
            || state.paused_for.is_some()
            || state.calls_per_second.is_some()
        {
            return;
        }
        self.crowds += 1;
        let (known, former) = ("known_by_the_crowd", "former_of_the_crowd");
        let spawn = |name: &str| {
            let door = self.door.clone();
            let request = request(name);
            self.runtime.spawn(async move {
                let Ok(response) = door.oneshot(request).await;
                response.status().as_u16()
            })
        };
        let sent = || self.issuer.history().crowd.clone();
        self.runtime.block_on(async {
            for name in [known, former] {
                assert_eq!(spawn(name).await.unwrap(), 200);
            }
            // The first is to be overdue, the second no longer known.
            tokio::time::sleep(SOFT * 2).await;
            self.handle.invalidate_key(&ApiKey::parse(former).unwrap());
            self.issuer.history().crowd.clear();
            let strangers: Vec<_> = (0..STRANGERS)
                .map(|n| spawn(&format!("stranger_{}_{n}", self.crowds)))
                .collect();
            settle().await;
            assert_eq!(
                sent().len(),
                SHARE,
                "strangers take their share of the calls"
            );
            let former_asks = spawn(former);
            settle().await;
            assert_eq!(
                sent().len(),
                SHARE,
                "a former key takes no slot of the reserve"
            );
            let known_asks = spawn(known);
            settle().await;
            assert_eq!(sent().len(), SHARE + 1);
            assert_eq!(sent()[SHARE], known, "a known key goes at once");
            assert_eq!(known_asks.await.unwrap(), 200);
            assert_eq!(former_asks.await.unwrap(), 200);
            assert_eq!(
                sent()[SHARE + 1],
                former,
                "a former key goes before strangers"
            );
            for stranger in strangers {
                assert_eq!(stranger.await.unwrap(), 401);
            }
        });
        B::tally().crowds.fetch_add(1, Ordering::Relaxed);
    }
}

impl<B: Belief> StateMachineTest for Machine<B> {
    type SystemUnderTest = Self;
    type Reference = World;

    fn init_test(world: &World) -> Self {
        Self::new(world)
    }

    fn apply(
        mut machine: Self,
        world: &<World as ReferenceStateMachine>::State,
        step: Step,
    ) -> Self {
        B::tally().steps.fetch_add(1, Ordering::Relaxed);
        // Outside of its runtime the clock would not be the paused one.
        let runtime = machine.runtime.handle().clone();
        let _inside = runtime.enter();
        if let Step::Overtake(key) = step {
            machine.begin_slowly(key);
        }
        {
            let mut history = machine.issuer.history();
            history.keys.clone_from(&world.keys);
            history.mode = world.mode;
        }
        match step {
            Step::Request(asked) => {
                let asking = machine.begin(asked);
                let seen = machine.runtime.block_on(asking);
                machine.check(&seen);
            }
            Step::Begin(asked) => {
                let asking = machine.begin_beside_others(asked);
                machine.pending.push(machine.runtime.spawn(asking));
            }
            Step::Collect => machine.collect(false),
            Step::Advance(pause) => {
                machine
                    .runtime
                    .block_on(async { tokio::time::sleep(pause).await });
                machine.collect(true);
            }
            Step::Sleep(nap) => {
                // Flights begun are to have sent their calls, or the history would not tell when they began.
                machine.runtime.block_on(settle());
                let now = machine.issuer.history().now();
                machine.issuer.history().jumps.push((now, nap));
                machine.clock.jump(nap);
            }
            Step::Block(target) => machine.decree(Kind::Block, target),
            Step::Unblock(target) => machine.decree(Kind::Unblock, target),
            Step::Invalidate(target) => machine.decree(Kind::Invalidate, target),
            Step::Overtake(key) => machine.overtake(key),
            Step::Crowd => machine.crowd(),
            Step::Issuer(_)
            | Step::Rotate(_)
            | Step::Revoke(_)
            | Step::Restore(_)
            | Step::ChangeScopes(_)
            | Step::MoveTo(..) => {}
        }
        let violations = machine.issuer.history().violations.clone();
        assert!(violations.is_empty(), "{violations:?}");
        machine
    }

    fn teardown(mut machine: Self, _: World) {
        machine.collect(false);
    }
}
