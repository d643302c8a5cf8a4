//! The state of this node in its fleet, which the layer, the handle and the task share.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tower_orgkey::fleet::{FleetMember, LayerInfo, Position, Subject};

use crate::blocks::HeldBlocks;
use crate::clock::{MAX_CLOCK_SKEW, WallClock, millis};
use crate::engine::{BEGINNING, MAX_NODES, Place, Session};
use crate::log::{Head, Log};
use crate::recent::RecentIds;
use crate::seal::{Kind, Sealer};
use crate::status::{FleetState, FleetStatus};
use crate::telemetry;
use crate::wire::{Id, LogEntry, NodeRecord, Wire};

/// How far the clocks of others may be behind. Their records are written every second.
const MAX_CLOCK_LEAD: Duration = Duration::from_secs(5);
/// How long a node counts as followed after it has written its record.
pub(crate) const FOLLOWED_FOR: Duration = Duration::from_secs(3);
/// A node whose record does not change for this long has no share of the calls to the issuer.
const LIVE_FOR: Duration = Duration::from_secs(10);
/// The maximum number of applied updates whose ids are remembered.
const MAX_APPLIED: usize = 100_000;
/// Records that do not change for this long, and for as long as their nodes may serve old results, are removed.
const RECORDS_KEPT: Duration = Duration::from_secs(600);
/// The smallest share of the calls to the issuer.
const MAX_SHARES: usize = 256;

pub(crate) fn hex(id: Id) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}

/// This node.
pub(crate) struct Node {
    pub(crate) name: String,
    /// Differs each time the node starts.
    pub(crate) incarnation: Id,
    pub(crate) sealer: Sealer,
    pub(crate) layer: LayerInfo,
    pub(crate) wall: WallClock,
    pub(crate) counters: Counters,
    /// Random, and different for each value of `next`.
    ids: u128,
    next: AtomicU64,
    /// How many records were written.
    records: AtomicU64,
    /// Records say that this node leaves.
    pub(crate) is_leaving: AtomicBool,
    member: OnceLock<Weak<dyn FleetMember>>,
    state: Mutex<State>,
    /// Held while the blocks of the state and those of the cache change together. Taken before the state.
    blocking: Mutex<()>,
    /// An update waits to be sent.
    pub(crate) outgoing: Notify,
    /// Updates were applied.
    pub(crate) applied: Notify,
}

/// What went wrong, and how often.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Values that did not open or decode.
    pub(crate) rejected: AtomicU64,
    /// Times that updates may have been missing.
    pub(crate) gaps: AtomicU64,
    /// Results that the engine did not store.
    pub(crate) not_stored: AtomicU64,
    /// Results that were used.
    pub(crate) fetched: AtomicU64,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// An update that the engine has not taken yet.
pub(crate) struct Outgoing {
    pub(crate) entry: LogEntry,
    pub(crate) taken: Option<oneshot::Sender<()>>,
}

pub(crate) struct State {
    pub(crate) log: Option<Log>,
    /// The last entry that was read.
    pub(crate) place: Place,
    pub(crate) blocks: HeldBlocks,
    pub(crate) synced_blocks_at: Option<Instant>,
    /// Updates were missing, blocks perhaps among them.
    pub(crate) may_miss_blocks: bool,
    /// The updates that were applied. One that is repeated under another number is not applied again.
    pub(crate) applied: RecentIds,
    pub(crate) outbox: VecDeque<Outgoing>,
    /// Invalidations of this node that others may lose with the engine's data.
    pub(crate) own: VecDeque<(Instant, LogEntry)>,
    pub(crate) nodes: HashMap<Id, Seen>,
    pub(crate) session: Option<Arc<dyn Session>>,
    /// The head by the last record, and how many more reads show whether entries up to it are missing.
    pub(crate) expected: Option<(Head, u8)>,
    pub(crate) head: u64,
    pub(crate) followed_until: Option<Instant>,
    /// Since when this node follows the log, or does not.
    pub(crate) since: Instant,
    pub(crate) clock_differs: bool,
    refreshed_at: Option<Instant>,
    /// The records of nodes that ended long ago.
    forgotten: Vec<String>,
}

/// Another node.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) name: String,
    count: u64,
    /// Its wall clock, by its last record.
    pub(crate) wall: u64,
    /// When its record was seen to change.
    changed: Instant,
    /// How old the record was then, by the wall clocks. Zero of a node that was seen before.
    age: Duration,
    pub(crate) leaves: bool,
}

impl Node {
    pub(crate) fn new(
        name: String,
        [incarnation, ids]: [Id; 2],
        sealer: Sealer,
        layer: LayerInfo,
        wall: WallClock,
    ) -> Self {
        Self {
            name,
            incarnation,
            sealer,
            layer,
            wall,
            counters: Counters::default(),
            ids: u128::from_le_bytes(ids),
            next: AtomicU64::new(0),
            records: AtomicU64::new(0),
            is_leaving: AtomicBool::new(false),
            member: OnceLock::new(),
            state: Mutex::new(State {
                log: None,
                place: BEGINNING.to_owned(),
                blocks: HeldBlocks::default(),
                synced_blocks_at: None,
                may_miss_blocks: false,
                applied: RecentIds::new(MAX_APPLIED),
                outbox: VecDeque::new(),
                own: VecDeque::new(),
                nodes: HashMap::new(),
                session: None,
                expected: None,
                head: 0,
                followed_until: None,
                since: Instant::now(),
                clock_differs: false,
                refreshed_at: None,
                forgotten: Vec::new(),
            }),
            blocking: Mutex::new(()),
            outgoing: Notify::new(),
            applied: Notify::new(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn blocking(&self) -> MutexGuard<'_, ()> {
        self.blocking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn attach(&self, member: Weak<dyn FleetMember>) {
        // A fleet is joined once.
        let _ = self.member.set(member);
    }

    /// Returns the layer, until it is dropped.
    pub(crate) fn member(&self) -> Option<Arc<dyn FleetMember>> {
        self.member.get()?.upgrade()
    }

    /// Returns an id that no other update, epoch or node has.
    pub(crate) fn new_id(&self) -> Id {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.ids.wrapping_add(u128::from(next)).to_le_bytes()
    }

    /// How long updates matter: no result from before can exist any more.
    pub(crate) fn retention(&self) -> Duration {
        self.layer.hard_ttl + self.layer.lookup_deadline + Duration::from_secs(60)
    }

    /// How long a node that is cut off may serve a result from before: until the hard TTL, if the issuer does not answer it.
    fn serves_old_for(&self) -> Duration {
        let layer = &self.layer;
        (layer.soft_ttl * 2).max(layer.hard_ttl + layer.lookup_deadline)
    }

    /// Returns whether this node knows the blocks of the fleet.
    pub(crate) fn has_read_blocks(&self) -> bool {
        self.state().synced_blocks_at.is_some()
    }

    /// Returns how many updates were applied, if results of others may be fetched.
    pub(crate) fn position(&self) -> Option<Position> {
        let state = self.state();
        // Until the engine has an own update, it may return a result from before.
        let may_fetch = state.is_followed() && !state.clock_differs && state.outbox.is_empty();
        let log = state.log.as_ref().filter(|_| may_fetch)?;
        Some(log.position())
    }

    /// Returns the sealed record of this node.
    pub(crate) fn record(&self) -> Option<Vec<u8>> {
        let applied = self.state().log.as_ref().map(Log::position);
        let record = NodeRecord {
            incarnation: self.incarnation,
            name: self.name.clone(),
            count: self.records.fetch_add(1, Ordering::Relaxed),
            wall: self.wall.now(),
            applied: applied.unwrap_or(Position {
                epoch: [0; 16],
                number: 0,
            }),
            leaves: self.is_leaving.load(Ordering::Relaxed),
        };
        let field = hex(self.incarnation);
        self.sealer.seal(Kind::NodeRecord, &field, &record.encode())
    }

    /// Takes the records of all nodes.
    pub(crate) fn see(&self, records: &[(String, Vec<u8>)]) {
        let (now, wall) = (Instant::now(), self.wall.now());
        let opened = records.iter().take(MAX_NODES).map(|(field, sealed)| {
            let opened = self.sealer.open(Kind::NodeRecord, field, sealed)?;
            let record = NodeRecord::decode(&opened.plain)?;
            (hex(record.incarnation) == *field).then_some(record)
        });
        // Before the lock is taken, which requests need.
        let opened: Vec<Option<NodeRecord>> = opened.collect();
        let kept = self.serves_old_for().max(RECORDS_KEPT);
        let mut state = self.state();
        for record in opened {
            let Some(record) = record else {
                Counters::count(&self.counters.rejected);
                continue;
            };
            if record.incarnation == self.incarnation {
                continue;
            }
            let seen = state.nodes.get(&record.incarnation);
            // An old record that is repeated is no sign of life.
            if seen.is_some_and(|seen| seen.count >= record.count) {
                continue;
            }
            // One that is seen for the first time may be that of a node that ended long ago. It is if it does not change.
            let age = match seen {
                Some(_) => Duration::ZERO,
                None => Duration::from_millis(wall.saturating_sub(record.wall)),
            };
            let known = Seen {
                name: record.name,
                count: record.count,
                wall: record.wall,
                changed: now,
                age,
                leaves: record.leaves,
            };
            state.nodes.insert(record.incarnation, known);
        }
        let ended = state
            .nodes
            .extract_if(|_, seen| now.duration_since(seen.changed) > kept);
        let ended: Vec<String> = ended.map(|(incarnation, _)| hex(incarnation)).collect();
        state.forgotten = ended;
    }

    /// Returns the records of nodes that ended long ago, once.
    pub(crate) fn take_forgotten(&self) -> Vec<String> {
        std::mem::take(&mut self.state().forgotten)
    }

    /// Compares the wall clock with the median of the other nodes, and divides the calls to the issuer.
    pub(crate) fn compare_nodes(&self) {
        let (now, wall) = (Instant::now(), self.wall.now());
        let mut state = self.state();
        let live = state
            .nodes
            .values()
            .filter(|seen| seen.is_known(now, LIVE_FOR));
        let mut walls: Vec<u64> = live.map(|seen| seen.wall).collect();
        let nodes = (walls.len() + 1).min(MAX_SHARES);
        walls.sort_unstable();
        let median = walls.get(walls.len() / 2).copied();
        let differs = median.is_some_and(|median| {
            median > wall + millis(MAX_CLOCK_SKEW)
                || wall > median + millis(MAX_CLOCK_LEAD + LIVE_FOR)
        });
        let changed = differs != state.clock_differs;
        state.clock_differs = differs;
        drop(state);
        if changed {
            telemetry::clock_differs(differs);
        }
        if let Some(member) = self.member() {
            member.share_calls(u32::try_from(nodes).unwrap_or(1));
        }
    }

    /// Updates may be missing: verifies what is cached again. At most once per soft TTL, because what was verified since is not
    /// older than that, so that a faulty engine cannot multiply the calls to the issuer.
    pub(crate) fn refresh_all(&self) {
        Counters::count(&self.counters.gaps);
        let now = Instant::now();
        let mut state = self.state();
        state.may_miss_blocks = true;
        let is_recent = state
            .refreshed_at
            .is_some_and(|at| now.duration_since(at) < self.layer.soft_ttl);
        if is_recent {
            return;
        }
        state.refreshed_at = Some(now);
        drop(state);
        if let Some(member) = self.member() {
            member.refresh_all();
        }
    }

    /// Returns the state for status pages.
    pub(crate) fn status(&self) -> FleetStatus {
        use std::sync::atomic::Ordering::Relaxed;

        let now = Instant::now();
        let state = self.state();
        let is_followed = state.is_followed();
        // It may have ended without a sign.
        let ended = state.followed_until.filter(|_| !is_followed);
        let since = now.saturating_duration_since(ended.unwrap_or(state.since));
        let position = state.log.as_ref().map_or(0, Log::applied);
        let kept = self.layer.soft_ttl * 2;
        let others = state.nodes.values().filter(|seen| seen.is_known(now, kept));
        let mut others: Vec<String> = others.map(|seen| seen.name.clone()).collect();
        others.sort_unstable();
        let mut nodes = vec![self.name.clone()];
        nodes.extend(others);
        FleetStatus {
            state: if is_followed {
                FleetState::Followed
            } else {
                FleetState::NotFollowed
            },
            since,
            has_read_blocks: state.synced_blocks_at.is_some(),
            position,
            lag: state.head.saturating_sub(position),
            nodes,
            unsent: state.outbox.len(),
            clock_differs: state.clock_differs,
            gaps: self.counters.gaps.load(Relaxed),
            rejected: self.counters.rejected.load(Relaxed),
            fetched: self.counters.fetched.load(Relaxed),
            not_stored: self.counters.not_stored.load(Relaxed),
        }
    }

    /// Returns the other nodes that must confirm an update. One that is cut off serves nothing from before after a while, but no
    /// verification tells it of a block.
    pub(crate) fn known_nodes(&self, is_block: bool) -> HashMap<Id, String> {
        let (now, kept) = (Instant::now(), self.serves_old_for());
        let state = self.state();
        let known = state.nodes.iter();
        let known = known.filter(|(_, seen)| {
            if is_block {
                !seen.leaves
            } else {
                seen.is_known(now, kept)
            }
        });
        known.map(|(&id, seen)| (id, seen.name.clone())).collect()
    }
}

impl Seen {
    /// Returns whether the node gave a sign of life in this time, and has not left.
    fn is_known(&self, now: Instant, within: Duration) -> bool {
        !self.leaves && self.age + now.duration_since(self.changed) <= within
    }
}

impl State {
    pub(crate) fn is_followed(&self) -> bool {
        self.followed_until
            .is_some_and(|until| Instant::now() < until)
    }

    /// Returns whether this subject is blocked.
    pub(crate) fn blocks_subject(&self, subject: &Subject) -> bool {
        !self.blocks.of(subject).is_empty()
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
