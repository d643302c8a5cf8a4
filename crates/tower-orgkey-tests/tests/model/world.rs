//! The keys at the issuer, how the issuer responds, and the steps that change both.

use std::time::Duration;

use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

/// The soft TTL of the layer under test.
pub(crate) const SOFT: Duration = Duration::from_secs(20);
/// Its hard TTL.
pub(crate) const HARD: Duration = Duration::from_secs(300);

pub(crate) const KEYS: u8 = 8;
pub(crate) const ORGS: u8 = 3;
/// A key of no organization.
pub(crate) const ENVIRONMENT_KEY: u8 = KEYS - 2;
/// A key whose replies never make sense.
pub(crate) const SENSELESS_KEY: u8 = KEYS - 1;
/// Stands for keys that were never issued. Their generations distinguish them.
pub(crate) const NEVER_ISSUED: u8 = KEYS;
/// The most keys that were never issued in one step: enough to open a circuit, and too few to fill the slots of calls.
const MAX_NEVER_ISSUED: u8 = 10;

/// A key as the issuer knows it now.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// Counts rotations: which secret is the present one.
    pub(crate) generation: u16,
    pub(crate) org: Option<u8>,
    /// Counts changes of scopes.
    pub(crate) scopes: u16,
    pub(crate) is_valid: bool,
    /// Whether the issuer's replies about the key make sense.
    pub(crate) makes_sense: bool,
}

/// The secret of a key after so many rotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Secret {
    pub(crate) key: u8,
    pub(crate) generation: u16,
}

/// How the issuer responds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Correctly, after this many milliseconds.
    Answers(u64),
    /// With an error for unknown keys, and correctly for keys that it accepted before.
    FailsForUnknown,
    Errors,
    Hangs,
    /// With 429 and this many seconds to wait.
    Throttles(Option<u64>),
    /// With "invalid" for every key, in a way that may be about something else.
    Unconfirmed,
    /// By rejecting the verifier's own credential.
    Misconfigured,
}

/// What a block or an invalidation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Secret(Secret),
    Id(u8),
    Org(u8),
    All,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) secret: Secret,
    /// Which of the routes with a `max_age`, if one of them.
    pub(crate) strict: Option<usize>,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A request and its response.
    Request(Ask),
    /// A request that is in progress during the next steps.
    Begin(Ask),
    /// Requests with this many keys that were never issued.
    BeginNeverIssued(u8),
    /// The responses of all requests in progress.
    Collect,
    Advance(Duration),
    /// The machine sleeps: the layer's clock goes on, timers do not.
    Sleep(Duration),
    Issuer(Mode),
    Rotate(u8),
    Revoke(u8),
    Restore(u8),
    ChangeScopes(u8),
    MoveTo(u8, u8),
    /// The issuer's replies about the key make no sense from now on, or make sense again.
    MakeSense(u8, bool),
    Block(Target),
    Unblock(Target),
    Invalidate(Target),
    /// The key is revoked while a slow valid answer is in flight, and a second call returns an invalid one before it.
    Overtake(u8),
    /// Many unknown keys at once, then a recently valid key and a known one.
    Crowd,
}

/// The plain model of the issuer. What the layer may do with it is the subject of [`Oracle`](crate::oracle::Oracle).
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) keys: Vec<Key>,
    pub(crate) mode: Mode,
    blocked: Vec<Target>,
}

impl ReferenceStateMachine for World {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        let key = |n: u8| Key {
            generation: 0,
            org: (n != ENVIRONMENT_KEY).then_some(n % ORGS),
            scopes: 0,
            is_valid: true,
            makes_sense: n != SENSELESS_KEY,
        };
        Just(Self {
            keys: (0..KEYS).map(key).collect(),
            mode: Mode::Answers(0),
            blocked: Vec::new(),
        })
        .boxed()
    }

    fn transitions(world: &Self) -> BoxedStrategy<Step> {
        let key = key();
        let ask = ask(world);
        let blocked = world.blocked.clone();
        let unblock = if blocked.is_empty() {
            target(world).prop_map(Step::Unblock).boxed()
        } else {
            prop::sample::select(blocked)
                .prop_map(Step::Unblock)
                .boxed()
        };
        let mode = match world.mode {
            Mode::Answers(_) => mode().boxed(),
            // Failures end after a while.
            _ => prop_oneof![1 => mode(), 3 => Just(Mode::Answers(0))].boxed(),
        };
        prop_oneof![
            400 => ask.clone().prop_map(Step::Request),
            60 => ask.prop_map(Step::Begin),
            20 => (1..=MAX_NEVER_ISSUED).prop_map(Step::BeginNeverIssued),
            30 => Just(Step::Collect),
            160 => pause().prop_map(Step::Advance),
            6 => pause().prop_map(Step::Sleep),
            60 => mode.prop_map(Step::Issuer),
            15 => key.clone().prop_map(Step::Rotate),
            20 => key.clone().prop_map(Step::Revoke),
            20 => key.clone().prop_map(Step::Restore),
            15 => key.clone().prop_map(Step::ChangeScopes),
            3 => key.clone().prop_map(Step::Overtake),
            5 => (key.clone(), 0..ORGS).prop_map(|(key, org)| Step::MoveTo(key, org)),
            5 => (key, any::<bool>()).prop_map(|(key, makes)| Step::MakeSense(key, makes)),
            15 => target(world).prop_filter("no block of everything", |t| *t != Target::All).prop_map(Step::Block),
            25 => unblock,
            30 => target(world).prop_map(Step::Invalidate),
            1 => Just(Step::Crowd),
        ]
        .boxed()
    }

    fn apply(mut world: Self, step: &Step) -> Self {
        match *step {
            Step::Issuer(mode) => world.mode = mode,
            Step::Rotate(key) => world.keys[usize::from(key)].generation += 1,
            Step::Revoke(key) => world.keys[usize::from(key)].is_valid = false,
            Step::Overtake(key) => {
                world.keys[usize::from(key)].is_valid = false;
                world.mode = Mode::Answers(0);
            }
            Step::Restore(key) => world.keys[usize::from(key)].is_valid = true,
            Step::ChangeScopes(key) => world.keys[usize::from(key)].scopes += 1,
            Step::MoveTo(key, org) if key != ENVIRONMENT_KEY => {
                world.keys[usize::from(key)].org = Some(org);
            }
            Step::MakeSense(key, makes_sense) if key != SENSELESS_KEY => {
                world.keys[usize::from(key)].makes_sense = makes_sense;
            }
            Step::Block(target) if !world.blocked.contains(&target) => world.blocked.push(target),
            Step::Unblock(target) => world.blocked.retain(|blocked| *blocked != target),
            _ => {}
        }
        world
    }
}

/// Half of the steps are about one key, so that related steps meet.
fn key() -> impl Strategy<Value = u8> + Clone {
    prop_oneof![Just(0), 0..KEYS]
}

/// Mostly the present secrets, and those of one rotation ago.
fn secret(world: &World) -> impl Strategy<Value = Secret> + Clone + use<> {
    let generations: Vec<u16> = world.keys.iter().map(|key| key.generation).collect();
    (key(), prop::bool::weighted(0.85)).prop_map(move |(key, is_present)| Secret {
        key,
        generation: generations[usize::from(key)].saturating_sub(u16::from(!is_present)),
    })
}

fn ask(world: &World) -> impl Strategy<Value = Ask> + Clone + use<> {
    let strict = prop_oneof![4 => Just(None), 1 => (0..STRICT.len()).prop_map(Some)];
    (secret(world), strict).prop_map(|(secret, strict)| Ask { secret, strict })
}

/// The `max_age` of the routes that have one.
pub(crate) const STRICT: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_secs(2),
    Duration::from_secs(15),
];

fn target(world: &World) -> impl Strategy<Value = Target> + use<> {
    prop_oneof![
        4 => secret(world).prop_map(Target::Secret),
        3 => key().prop_map(Target::Id),
        2 => (0..ORGS).prop_map(Target::Org),
        1 => Just(Target::All),
    ]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        3 => Just(Mode::Answers(0)),
        4 => prop::sample::select(vec![1, 400, 900]).prop_map(Mode::Answers),
        3 => Just(Mode::FailsForUnknown),
        2 => Just(Mode::Errors),
        2 => Just(Mode::Hangs),
        1 => prop::sample::select(vec![None, Some(0), Some(5), Some(30), Some(600)]).prop_map(Mode::Throttles),
        1 => Just(Mode::Unconfirmed),
        1 => Just(Mode::Misconfigured),
    ]
}

/// Short ones, and those that end near a bound.
fn pause() -> impl Strategy<Value = Duration> {
    let near = |bound: Duration| {
        (0..=1_200u64)
            .prop_map(move |early| bound + Duration::from_millis(10) - Duration::from_millis(early))
    };
    prop_oneof![
        4 => (1..500u64).prop_map(Duration::from_millis),
        4 => (1..10u64).prop_map(Duration::from_secs),
        2 => near(Duration::from_secs(5)),
        4 => near(SOFT),
        4 => near(SOFT * 2),
        1 => near(Duration::from_secs(60)),
        2 => near(Duration::from_secs(90)),
        2 => near(HARD),
    ]
}
