//! The nodes, the engine and what happens to them, step by step.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tower_orgkey::KeyId;
use tower_orgkey::fleet::{
    Facts, Fetched, FleetLink, FleetMember, LayerInfo, Position, Subject, Update,
};

use super::cache::{Cache, Entry};
use super::{Broken, KEYS, NODES, key_id, name};
use crate::clock::WallClock;
use crate::engine::memory::MemoryEngine;
use crate::engine::{Engine, Session};
use crate::link::{FETCH_DEADLINE, Link, opened};
use crate::node::{Node, hex};
use crate::seal::Sealer;
use crate::secret::FleetSecret;
use crate::stop::Stop;
use crate::wire::Id;

/// A verification whose answer has not arrived.
struct Flight {
    is_valid: bool,
    called: usize,
    position: Option<Position>,
    began: u64,
}

/// A result of the engine that has not arrived.
struct Fetching {
    fetched: Fetched<Facts>,
    /// The version when it was called for.
    began: u64,
    /// Whether the engine had acknowledged the invalidation then, or it was this node's own.
    was_invalidated: bool,
}

pub(super) struct Member {
    pub(super) node: Arc<Node>,
    link: Link,
    cache: Arc<Cache>,
    session: Option<Arc<dyn Session>>,
    flights: [Option<Flight>; KEYS],
    fetching: [Option<Fetching>; KEYS],
}

pub(super) struct World {
    pub(super) engine: MemoryEngine,
    pub(super) members: Vec<Member>,
    broken: Broken,
    random: fastrand::Rng,
    pub(super) now: usize,
    /// When each key was revoked at the issuer, and the id of its invalidation.
    revoked: [Option<(usize, Id, usize)>; KEYS],
    /// Whether the engine has acknowledged it.
    acknowledged: [bool; KEYS],
    /// Whether all nodes have.
    reached: [bool; KEYS],
}

pub(super) type Violation = (&'static str, usize, usize);

impl World {
    pub(super) fn new(seed: u64, broken: Broken) -> Self {
        let engine = MemoryEngine::new();
        engine.break_rules(!broken.epoch_by_run, !broken.epoch_of_nothing);
        let members = (0..NODES).map(|n| {
            let secret = FleetSecret::new(&[1; 32]).unwrap();
            let layer = LayerInfo {
                issuer: String::new(),
                // Each gap counts.
                soft_ttl: Duration::ZERO,
                hard_ttl: Duration::from_secs(900),
                lookup_deadline: Duration::from_secs(10),
            };
            let origin = SystemTime::now();
            let byte = u8::try_from(n).unwrap() + 1;
            let node = Arc::new(Node::new(
                format!("node-{n}"),
                [[byte; 16], [byte + 100; 16]],
                Sealer::new(&[secret], "fleet", "").unwrap(),
                layer,
                WallClock(Arc::new(move || origin)),
            ));
            let cache = Arc::new(Cache::default());
            let member: Arc<dyn FleetMember> = Arc::<Cache>::clone(&cache);
            node.attach(Arc::downgrade(&member) as Weak<dyn FleetMember>);
            Member {
                link: Link::new(Arc::clone(&node), FETCH_DEADLINE),
                node,
                cache,
                session: None,
                flights: [const { None }; KEYS],
                fetching: [const { None }; KEYS],
            }
        });
        Self {
            engine,
            members: members.collect(),
            broken,
            random: fastrand::Rng::with_seed(seed),
            now: 0,
            revoked: [None; KEYS],
            acknowledged: [false; KEYS],
            reached: [false; KEYS],
        }
    }

    /// Connects a node that is not connected, and joins the epoch.
    pub(super) async fn connect(&mut self, n: usize) -> Option<Arc<dyn Session>> {
        let member = &mut self.members[n];
        if member.session.is_none() {
            let session = self.engine.connect().await.ok()?;
            if !join(&member.node, &session).await {
                return None;
            }
            member.session = Some(session);
        }
        let rules = self.broken.log;
        if let (Some(rules), Some(log)) = (rules, &mut member.node.state().log) {
            rules(&mut log.rules);
        }
        member.session.clone()
    }

    /// Applies what a step returned.
    async fn after(&mut self, n: usize, result: Result<(), Stop>) {
        let member = &mut self.members[n];
        match (result, member.session.clone()) {
            (Err(Stop::NewEpoch), Some(session)) if join(&member.node, &session).await => {}
            (Ok(()), _) => {}
            _ => {
                member.session = None;
                member.node.state().session = None;
            }
        }
    }

    pub(super) async fn flush(&mut self, n: usize) {
        if let Some(session) = self.connect(n).await {
            let result = self.members[n].node.flush(&*session).await;
            self.after(n, result).await;
        }
        for key in 0..KEYS {
            if let Some((_, id, by)) = self.revoked[key] {
                let state = self.members[by].node.state();
                let waits = state.outbox.iter().any(|sent| sent.entry.id == id);
                self.acknowledged[key] |= !waits;
            }
        }
    }

    async fn read(&mut self, n: usize, most: usize) {
        let Some(session) = self.connect(n).await else {
            return;
        };
        let node = Arc::clone(&self.members[n].node);
        let place = node.state().place.clone();
        let Ok(mut entries) = session.read(place, Duration::ZERO).await else {
            return self.after(n, Err(Stop::NewEpoch)).await;
        };
        let result = if entries.len() > most {
            entries.truncate(most);
            node.apply_entries(&*session, entries, false).await
        } else {
            node.take_entries(&*session, entries).await
        };
        self.after(n, result).await;
    }

    pub(super) async fn record(&mut self, n: usize) {
        if let Some(session) = self.connect(n).await {
            let result = self.members[n].node.write_record(&*session, false).await;
            self.after(n, result).await;
        }
    }

    pub(super) fn revoke(&mut self, n: usize, key: usize) {
        if self.revoked[key].is_none() {
            let member = &self.members[n];
            let update = Update::Invalidate(Subject::KeyId(key_id(key)));
            let id = member.node.enqueue(&update, Some(oneshot::channel().0));
            member.cache.apply(&update, true);
            self.revoked[key] = Some((self.now, id, n));
        }
    }

    pub(super) async fn fetch(&mut self, n: usize, key: usize) {
        let is_held = self.members[n].cache.tables().get(key).is_some();
        if is_held || self.connect(n).await.is_none() {
            return;
        }
        let member = &mut self.members[n];
        let position = if self.broken.outbox {
            member
                .node
                .state()
                .log
                .as_ref()
                .map(crate::log::Log::position)
        } else {
            member.link.position()
        };
        if position.is_none() || member.fetching[key].is_some() {
            return;
        }
        let began = member.cache.version();
        let is_own = self.revoked[key].is_some_and(|(.., by)| by == n);
        let was_invalidated = self.acknowledged[key] || is_own;
        if let Some(fetched) = member.link.fetch(&name(key), false).await {
            member.fetching[key] = Some(Fetching {
                fetched,
                began,
                was_invalidated,
            });
        }
    }

    /// A fetched result arrives.
    pub(super) fn take_fetched(&mut self, n: usize, key: usize) -> Result<(), Violation> {
        let member = &mut self.members[n];
        let Some(fetching) = member.fetching[key].take() else {
            return Ok(());
        };
        let version = if self.broken.version_before_fetch {
            u64::MAX
        } else {
            fetching.fetched.version.min(fetching.began)
        };
        let mut tables = member.cache.tables();
        let called = fetching.fetched.value.user().unwrap().parse().unwrap();
        let entry = Entry {
            called,
            began: version.min(tables.version),
        };
        let is_revoked = self.revoked[key].is_some_and(|(at, ..)| called <= at);
        if tables.insert(key, entry) && is_revoked && fetching.was_invalidated {
            return Err(("fetched", n, key));
        }
        Ok(())
    }

    pub(super) async fn land(&mut self, n: usize, key: usize) {
        let member = &mut self.members[n];
        let Some(flight) = member.flights[key].take() else {
            return;
        };
        let entry = Entry {
            called: flight.called,
            began: flight.began,
        };
        let is_cached = flight.is_valid && member.cache.tables().insert(key, entry);
        if let (true, Some(began)) = (is_cached, flight.position) {
            let result = Facts {
                user: Some(Box::new(flight.called.to_string().into())),
                ..Facts::default()
            };
            let stored = member
                .link
                .store(&name(key), &result, Duration::ZERO, began);
            stored.await;
        }
    }

    pub(super) fn look_up(&mut self, n: usize, key: usize) {
        let (is_valid, called) = (self.revoked[key].is_none(), self.now);
        let member = &mut self.members[n];
        if member.flights[key].is_none() && member.cache.tables().get(key).is_none() {
            let position = member.link.position();
            member.flights[key] = Some(Flight {
                is_valid,
                called,
                position,
                began: member.cache.version(),
            });
        }
    }

    pub(super) async fn step(&mut self) -> Result<(), Violation> {
        self.now += 1;
        let (n, key) = (self.random.usize(..NODES), self.random.usize(..KEYS));
        match self.random.u32(..1_000) {
            0..110 => self.look_up(n, key),
            110..230 => self.land(n, key).await,
            230..350 => self.fetch(n, key).await,
            350..450 => self.take_fetched(n, key)?,
            450..570 => {
                let most = *[1, 2, 99].get(self.random.usize(..3)).unwrap_or(&99);
                self.read(n, most).await;
            }
            570..650 => self.record(n).await,
            650..690 => self.revoke(n, key),
            690..750 => self.flush(n).await,
            750..830 => self.engine.replicate(),
            830..850 => self.engine.fail_over(),
            850..865 => self.engine.wipe(),
            865..910 => self.engine.trim_log(self.random.usize(1..4)),
            910..925 => self.engine.drop_newest(self.random.usize(1..3)),
            925..950 => {
                self.members[n].session = None;
                self.members[n].node.state().session = None;
            }
            _ => {
                let other = Update::Invalidate(Subject::KeyId(KeyId::from_static("other")));
                self.members[n].node.enqueue(&other, None);
            }
        }
        self.count_acks().await;
        self.check_held()
    }

    /// Notes whether all nodes have acknowledged the invalidations.
    async fn count_acks(&mut self) {
        for key in 0..KEYS {
            let Some((_, id, by)) = self.revoked[key] else {
                continue;
            };
            let member = &self.members[by];
            let Some(session) = member.session.clone() else {
                continue;
            };
            if let Ok((acks, _)) = session.acknowledgements(hex(id)).await {
                let acks = opened(&member.node, id, &acks);
                self.reached[key] |= acks.len() == NODES - 1;
            }
        }
    }

    fn check_held(&self) -> Result<(), Violation> {
        for (n, member) in self.members.iter().enumerate() {
            let tables = member.cache.tables();
            for key in (0..KEYS).filter(|&key| self.reached[key]) {
                let revoked_at = self.revoked[key].map(|(at, ..)| at);
                let held = tables.get(key).map(|entry| entry.called);
                if held.is_some() && held <= revoked_at {
                    return Err(("held", n, key));
                }
            }
        }
        Ok(())
    }

    /// Everybody sends and reads everything.
    pub(super) async fn catch_up(&mut self) {
        for _ in 0..4 {
            for n in 0..NODES {
                self.flush(n).await;
                self.record(n).await;
                self.read(n, 99).await;
            }
        }
    }

    /// The faults end.
    pub(super) async fn heal(&mut self) -> Result<(), Violation> {
        self.catch_up().await;
        for (n, member) in self.members.iter().enumerate() {
            let tables = member.cache.tables();
            for key in (0..KEYS).filter(|&key| self.acknowledged[key]) {
                let revoked_at = self.revoked[key].map(|(at, ..)| at);
                let held = tables.get(key).filter(|entry| entry.began >= tables.due);
                let called = held.map(|entry| entry.called);
                if called.is_some() && called <= revoked_at {
                    return Err(("healed", n, key));
                }
            }
        }
        Ok(())
    }
}

/// Joins the epoch of a session, and follows it.
async fn join(node: &Node, session: &Arc<dyn Session>) -> bool {
    for _ in 0..3 {
        let joined = async {
            node.join(session).await?;
            node.write_record(&**session, false).await
        };
        match joined.await {
            Ok(()) => return true,
            Err(Stop::NewEpoch) => {}
            Err(Stop::Failed(_)) => return false,
        }
    }
    false
}
