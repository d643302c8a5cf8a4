//! The layer under test, driven step by step and checked against the model after each.

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

use crate::circuits::Counting;
use crate::history::{Answer, Details, Issuer, Kind, Update, key_id, org_code, text_of};
use crate::oracle::{Bounds, Oracle, Seen, Served, Side, Way};
use crate::world::{Ask, HARD, Mode, NEVER_ISSUED, SOFT, STRICT, Secret, Step, Target, World};

/// What a run must have covered, or it has shown nothing.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    steps: AtomicU64,
    served: AtomicU64,
    served_past_soft: AtomicU64,
    served_past_twice_soft: AtomicU64,
    served_in_the_last_second: AtomicU64,
    rejected: AtomicU64,
    could_not_tell: AtomicU64,
    without_organization: AtomicU64,
    updated_in_flight: AtomicU64,
    overtaken: AtomicU64,
    crowds: AtomicU64,
    invalid_responses: AtomicU64,
    never_issued: AtomicU64,
    known_circuit_open: AtomicU64,
    unknown_circuit_open: AtomicU64,
    known_beside_open: AtomicU64,
    recently_valid_beside_open: AtomicU64,
}

impl Tally {
    pub(crate) fn each(&self) -> [(&'static str, u64); 17] {
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
            ("rejected", read(&self.rejected)),
            ("could not tell", read(&self.could_not_tell)),
            ("without an organization", read(&self.without_organization)),
            (
                "updated while requests waited",
                read(&self.updated_in_flight),
            ),
            ("slow answers overtaken", read(&self.overtaken)),
            ("crowds", read(&self.crowds)),
            ("replies that make no sense", read(&self.invalid_responses)),
            ("keys that were never issued", read(&self.never_issued)),
            (
                "steps with the known circuit open",
                read(&self.known_circuit_open),
            ),
            (
                "steps with the unknown circuit alone open",
                read(&self.unknown_circuit_open),
            ),
            (
                "known keys verified meanwhile",
                read(&self.known_beside_open),
            ),
            (
                "recently valid keys verified meanwhile",
                read(&self.recently_valid_beside_open),
            ),
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
    counting: Counting {
        unknown_for_known: false,
        repeats: false,
    },
};

type Route = BoxCloneSyncService<Request<()>, Response<Bytes>, Infallible>;

pub(crate) struct Machine<B> {
    runtime: Runtime,
    clock: TestClock,
    issuer: Issuer,
    handle: ApiKeyHandle,
    route: Route,
    strict: Vec<Route>,
    pending: Vec<JoinHandle<Seen>>,
    crowds: u32,
    never_issued: u16,
    belief: PhantomData<B>,
}

/// The handler records what it receives.
fn route(auth: &ApiKeyLayer, issuer: &Issuer, clock: &TestClock) -> Route {
    let issuer = issuer.clone();
    let clock = clock.clone();
    let handler = tower::service_fn(move |request: Request<()>| {
        let when = issuer.history().now();
        let mut response = Response::new(Bytes::new());
        if let Some(context) = request.extensions().get::<OrgContext>() {
            response.extensions_mut().insert(Served {
                when,
                details: details_of(context),
                sent_at: clock.elapsed() - context.age(),
                is_stale: context.is_stale(),
            });
        }
        std::future::ready(Ok(response))
    });
    BoxCloneSyncService::new(auth.layer(handler))
}

fn details_of(context: &OrgContext) -> Details {
    let number = |text: &str, prefix| text.strip_prefix(prefix).and_then(|n| n.parse().ok());
    let scope = context.scopes().iter().next().map(Scope::as_str);
    let key = context.key_id().and_then(|id| number(id.as_str(), "id_"));
    let org = number(context.org_code().as_str(), "org_");
    let scopes = scope.and_then(|scope| number(scope, "version:"));
    Details {
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
async fn ask(mut route: Route, issuer: Issuer, ask: Ask, way: Way) -> Seen {
    let begun = {
        let mut history = issuer.history();
        let begun = history.now();
        if ask.strict.is_some() {
            history.strict.push((ask.secret, begun));
        }
        begun
    };
    let Ok(route) = route.ready().await;
    let Ok(response) = route.call(request(&text_of(ask.secret))).await;
    let ended = issuer.history().now();
    Seen {
        secret: ask.secret,
        strict: ask.strict,
        begun,
        ended,
        status: response.status().as_u16(),
        served: response.extensions().get::<Served>().copied(),
        way,
    }
}

impl<B: Belief> Machine<B> {
    fn new(world: &World) -> Self {
        // The layer draws the same random numbers in every run of a case.
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
        let counting = B::BOUNDS.counting;
        let issuer = Issuer::new(clock.clone(), world.keys.clone(), world.mode, counting);
        let auth = ApiKeyLayer::builder(issuer.clone())
            .soft_ttl(SOFT)
            .hard_ttl(HARD)
            .test_clock(clock.clone())
            .build()
            .unwrap();
        let strict = STRICT.map(|max_age| route(&auth.clone().max_age(max_age), &issuer, &clock));
        Self {
            handle: auth.handle(),
            route: route(&auth, &issuer, &clock),
            strict: strict.into(),
            runtime,
            clock,
            issuer,
            pending: Vec::new(),
            crowds: 0,
            never_issued: 0,
            belief: PhantomData,
        }
    }

    fn begin(&self, asked: Ask) -> impl Future<Output = Seen> + Send + use<B> {
        let state = self.handle.upstream();
        let is_idle = self.pending.is_empty()
            && state.paused_for.is_none()
            && state.calls_per_second.is_none()
            && state.waiting == 0
            && state.in_flight == 0;
        let way = Way {
            is_open_for_known: is_idle && state.breaker == BreakerState::Closed,
            is_open_for_unknown: is_idle && state.unknown_breaker == BreakerState::Closed,
        };
        self.ask(asked, way)
    }

    fn begin_beside_others(&self, asked: Ask) -> impl Future<Output = Seen> + Send + use<B> {
        let way = Way {
            is_open_for_known: false,
            is_open_for_unknown: false,
        };
        self.ask(asked, way)
    }

    fn ask(&self, asked: Ask, way: Way) -> impl Future<Output = Seen> + Send + use<B> {
        let route = asked
            .strict
            .map_or(&self.route, |strict| &self.strict[strict]);
        ask(route.clone(), self.issuer.clone(), asked, way)
    }

    fn check(&self, seen: &Seen) {
        let tally = B::tally();
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match seen.status {
            401 => count(&tally.rejected),
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
        let calls = history.calls_of(seen.secret);
        let last = calls.last().and_then(|call| call.over);
        if matches!(last, Some((over, Answer::InvalidResponse)) if over > seen.begun) {
            count(&tally.invalid_responses);
        }
        let oracle = Oracle {
            history: &history,
            bounds: B::BOUNDS,
            soft: SOFT,
        };
        let is_verified = |served: &Served| served.sent_at >= seen.begun.at;
        if seen.way.is_open_for_known
            && !seen.way.is_open_for_unknown
            && seen.served.as_ref().is_some_and(is_verified)
            && oracle.side(seen) == Side::Known
        {
            match oracle.must_hold(seen.secret, seen.begun) {
                Some(_) => count(&tally.known_beside_open),
                None => count(&tally.recently_valid_beside_open),
            };
        }
        if let Err(complaint) = oracle.check(seen) {
            let calls = calls.to_vec();
            let updates = history.updates.clone();
            drop(history);
            panic!("{complaint}\n{seen:#?}\ncalls: {calls:#?}\nupdates: {updates:#?}");
        }
    }

    /// Checks the circuits of the breaker, and that the issuer received no call that it should not have.
    fn check_upstream(&self) {
        let state = self.handle.upstream();
        let is_closed = |state: BreakerState| state == BreakerState::Closed;
        let (known, unknown) = (is_closed(state.breaker), is_closed(state.unknown_breaker));
        if !known {
            B::tally()
                .known_circuit_open
                .fetch_add(1, Ordering::Relaxed);
        } else if !unknown {
            B::tally()
                .unknown_circuit_open
                .fetch_add(1, Ordering::Relaxed);
        }
        let history = self.issuer.history();
        let oracle = Oracle {
            history: &history,
            bounds: B::BOUNDS,
            soft: SOFT,
        };
        if let Err(complaint) = oracle.check_circuits(known, unknown) {
            let circuits = format!("{:#?}", history.circuits);
            drop(history);
            panic!("{complaint}\n{state:#?}\n{circuits}");
        }
        let violations = history.violations.clone();
        drop(history);
        assert!(violations.is_empty(), "{violations:?}");
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

    fn update(&mut self, kind: Kind, target: Target) {
        let waiting = self.pending.iter().filter(|pending| !pending.is_finished());
        if waiting.count() > 0 {
            B::tally().updated_in_flight.fetch_add(1, Ordering::Relaxed);
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
        history.updates.push(Update { when, kind, target });
    }

    /// Begins requests with keys that were never issued.
    fn begin_never_issued(&mut self, keys: u8) {
        /// More requests in progress could use up the slots of calls, and then requests wait for each other.
        const MAX_PENDING: usize = 20;

        if self.pending.len() > MAX_PENDING {
            self.collect(false);
        }
        for _ in 0..keys {
            let secret = Secret {
                key: NEVER_ISSUED,
                generation: self.never_issued,
            };
            self.never_issued += 1;
            let asked = Ask {
                secret,
                strict: None,
            };
            self.pending
                .push(self.runtime.spawn(self.begin_beside_others(asked)));
        }
        self.runtime.block_on(settle());
        B::tally()
            .never_issued
            .fetch_add(keys.into(), Ordering::Relaxed);
    }

    /// Begins a request whose answer is decided now and arrives later.
    fn begin_slowly(&mut self, key: u8) {
        let secret = self.present_secret(key);
        self.update(Kind::Invalidate, Target::Secret(secret));
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

    /// Sends another request with the key, which does not join the lookup of the first; then one more, when the first is
    /// answered.
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

    /// Checks the order of admission. Unknown keys use all calls but the reserve, and wait in the queue; a recently valid key
    /// goes before those that wait; a known key uses the reserve and goes at once.
    fn crowd(&mut self) {
        const UNKNOWN: usize = 80;
        /// Of 64 calls in flight a quarter is reserved for known keys.
        const SHARE: usize = 48;

        self.collect(false);
        // Lookups of earlier steps end first.
        self.runtime
            .block_on(async { tokio::time::sleep(Duration::from_secs(10)).await });
        let state = self.handle.upstream();
        if state.breaker != BreakerState::Closed
            || state.unknown_breaker != BreakerState::Closed
            || state.paused_for.is_some()
            || state.calls_per_second.is_some()
        {
            return;
        }
        self.crowds += 1;
        let (known, recently_valid) = ("known_in_the_crowd", "recently_valid_in_the_crowd");
        let spawn = |name: &str| {
            let route = self.route.clone();
            let request = request(name);
            self.runtime.spawn(async move {
                let Ok(response) = route.oneshot(request).await;
                response.status().as_u16()
            })
        };
        let sent = || self.issuer.history().crowd.clone();
        self.runtime.block_on(async {
            for name in [known, recently_valid] {
                assert_eq!(spawn(name).await.unwrap(), 200);
            }
            // The first result is overdue then, and the second is invalidated.
            tokio::time::sleep(SOFT * 2).await;
            self.handle
                .invalidate_key(&ApiKey::parse(recently_valid).unwrap());
            self.issuer.history().crowd.clear();
            let unknown: Vec<_> = (0..UNKNOWN)
                .map(|n| spawn(&format!("unknown_{}_{n}", self.crowds)))
                .collect();
            settle().await;
            assert_eq!(
                sent().len(),
                SHARE,
                "unknown keys use all calls but the reserve"
            );
            let second = spawn(recently_valid);
            settle().await;
            assert_eq!(
                sent().len(),
                SHARE,
                "a recently valid key does not use the reserve"
            );
            let first = spawn(known);
            settle().await;
            assert_eq!(sent().len(), SHARE + 1);
            assert_eq!(sent()[SHARE], known, "a known key goes at once");
            assert_eq!(first.await.unwrap(), 200);
            assert_eq!(second.await.unwrap(), 200);
            assert_eq!(
                sent()[SHARE + 1],
                recently_valid,
                "a recently valid key goes before unknown keys"
            );
            for unknown in unknown {
                assert_eq!(unknown.await.unwrap(), 401);
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
            Step::BeginNeverIssued(keys) => machine.begin_never_issued(keys),
            Step::Collect => machine.collect(false),
            Step::Advance(pause) => {
                machine
                    .runtime
                    .block_on(async { tokio::time::sleep(pause).await });
                machine.collect(true);
            }
            Step::Sleep(nap) => {
                // Lookups that began have sent their calls then, so the history shows when they began.
                machine.runtime.block_on(settle());
                let now = machine.issuer.history().now();
                machine.issuer.history().jumps.push((now, nap));
                machine.clock.jump(nap);
            }
            Step::Block(target) => machine.update(Kind::Block, target),
            Step::Unblock(target) => machine.update(Kind::Unblock, target),
            Step::Invalidate(target) => machine.update(Kind::Invalidate, target),
            Step::Overtake(key) => machine.overtake(key),
            Step::Crowd => machine.crowd(),
            Step::Issuer(_)
            | Step::Rotate(_)
            | Step::Revoke(_)
            | Step::Restore(_)
            | Step::ChangeScopes(_)
            | Step::MoveTo(..)
            | Step::MakeSense(..) => {}
        }
        machine.check_upstream();
        machine
    }

    fn teardown(mut machine: Self, _: World) {
        machine.collect(false);
    }
}
