//! What the layer calls: results of other nodes, and updates for them.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tower_orgkey::fleet::{BoxFuture, Facts, Fetched, FleetLink, FleetMember, Position, Update};
use tower_orgkey::{NotSpread, Reach};

use crate::breaker::Breaker;
use crate::clock::{MAX_CLOCK_SKEW, millis};
use crate::engine::{Fields, MAX_NODES};
use crate::log::Head;
use crate::node::{Counters, Node, hex};
use crate::seal::Kind;
use crate::wire::{Acknowledgement, Id, StoredResult, Wire};

/// The longest time that a lookup waits for the engine, and then for updates that this node has not applied.
pub(crate) const FETCH_DEADLINE: Duration = Duration::from_millis(20);
/// The maximum number of fetches of unknown keys under way.
const MAX_FETCHES: usize = 256;
/// The longest time to wait for the nodes to apply an update.
pub(crate) const SPREAD_DEADLINE: Duration = Duration::from_secs(2);
/// The bounds of the time between two looks for acknowledgements. It is an eighth of the time that has passed, so looking adds about
/// an eighth to the time of an update.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(32));

/// The link of a layer to its fleet.
#[derive(Debug)]
pub(crate) struct Link {
    node: Arc<Node>,
    breaker: Breaker,
    fetches: Semaphore,
    fetch_deadline: Duration,
}

impl Link {
    pub(crate) fn new(node: Arc<Node>, fetch_deadline: Duration) -> Self {
        Self {
            node,
            breaker: Breaker::default(),
            fetches: Semaphore::new(MAX_FETCHES),
            fetch_deadline,
        }
    }

    async fn fetch_result(&self, key: &str, is_known: bool) -> Option<Fetched<Facts>> {
        // A flood of unknown keys must not keep known ones from being fetched.
        let _permit = if is_known {
            None
        } else if self.breaker.has_room() {
            Some(self.fetches.try_acquire().ok()?)
        } else {
            return None;
        };
        let session = self.node.state().session.clone()?;
        let name = self.node.sealer.keys().name(key);
        let began = Instant::now();
        let deadline = began + self.fetch_deadline;
        let fetched = timeout_at(deadline, session.fetch(name.clone())).await;
        let Ok(Ok((sealed, head))) = fetched else {
            self.breaker.failed(began);
            return None;
        };
        let is_miss = sealed.is_none() && !is_known;
        let stored = sealed.and_then(|sealed| self.open(&name, &sealed));
        let found = stored.and_then(|stored| Some((self.age(&stored)?, stored, head?)));
        let Some((age, stored, head)) = found else {
            self.breaker.answered(is_miss);
            return None;
        };
        let version = timeout_at(deadline, self.version_at(stored.began, head)).await;
        let Ok(version) = version else {
            // This node is behind.
            self.breaker.failed(began);
            return None;
        };
        self.breaker.answered(false);
        let version = version?;
        Counters::count(&self.node.counters.fetched);
        Some(Fetched {
            value: stored.result,
            age,
            version,
        })
    }

    fn open(&self, name: &str, sealed: &[u8]) -> Option<StoredResult> {
        let opened = self.node.sealer.open(Kind::Result, name, sealed);
        let stored = opened.and_then(|opened| StoredResult::decode(&opened.plain));
        if stored.is_none() {
            Counters::count(&self.node.counters.rejected);
        }
        stored
    }

    /// Returns the largest age that the result may have. `None` if it is from the future, or too old to be served.
    fn age(&self, stored: &StoredResult) -> Option<Duration> {
        let latest = self.node.wall.now() + millis(MAX_CLOCK_SKEW);
        let age = latest.checked_sub(stored.sent_at)?;
        let age = Duration::from_millis(age);
        (age < self.node.layer.hard_ttl).then_some(age)
    }

    /// Returns the version of the cache that has the updates before this position. Waits for this node to apply all updates
    /// that the engine had when it returned the result, for as long as it takes.
    async fn version_at(&self, began: Position, head: Head) -> Option<u64> {
        loop {
            let applied = self.node.applied.notified();
            tokio::pin!(applied);
            // Before the log is read, so that no update is missed in between.
            applied.as_mut().enable();
            {
                let state = self.node.state();
                let log = state.log.as_ref().filter(|log| log.epoch() == head.epoch)?;
                if log.has_applied(head) {
                    return log.version_at(began, head);
                }
            }
            applied.await;
        }
    }
}

impl FleetLink for Link {
    fn digest_secret(&self) -> [u8; 16] {
        *self.node.sealer.keys().digest
    }

    fn attach(&self, member: Weak<dyn FleetMember>) {
        self.node.attach(member);
    }

    fn position(&self) -> Option<Position> {
        self.node.position().filter(|_| self.breaker.allows())
    }

    fn fetch<'a>(&'a self, key: &'a str, is_known: bool) -> BoxFuture<'a, Option<Fetched<Facts>>> {
        Box::pin(self.fetch_result(key, is_known))
    }

    fn store(
        &self,
        key: &str,
        result: &Facts,
        age: Duration,
        began: Position,
    ) -> BoxFuture<'static, ()> {
        let node = Arc::clone(&self.node);
        let name = node.sealer.keys().name(key);
        let stored = StoredResult {
            began,
            sent_at: node.wall.now().saturating_sub(millis(age)),
            result: result.clone(),
        };
        let plain = stored.encode();
        // What could not be read again is not written.
        let sealed = StoredResult::decode(&plain)
            .and_then(|_| node.sealer.seal(Kind::Result, &name, &plain));
        Box::pin(async move {
            let session = node.state().session.clone();
            let keep = node.layer.hard_ttl.saturating_sub(age);
            if let (Some(session), Some(sealed)) = (session, sealed)
                && !keep.is_zero()
            {
                // Another node verifies the key itself.
                if session.store(name, sealed, keep).await.is_err() {
                    Counters::count(&node.counters.not_stored);
                }
            }
        })
    }

    fn lock_blocks(&self) -> MutexGuard<'_, ()> {
        self.node.blocking()
    }

    fn publish(&self, update: &Update) {
        self.node.enqueue(update, None);
    }

    fn spread(
        &self,
        update: &Update,
        expected_nodes: usize,
    ) -> BoxFuture<'static, Result<Reach, NotSpread>> {
        // Which blocks it ends is not known before.
        if matches!(update, Update::Unblock(_)) && !self.node.has_read_blocks() {
            self.node.enqueue(update, None);
            return Box::pin(async { Err(NotSpread::Unavailable) });
        }
        let (taken, is_taken) = oneshot::channel();
        let id = self.node.enqueue(update, Some(taken));
        let is_block = matches!(update, Update::Block(_));
        let node = Arc::clone(&self.node);
        Box::pin(async move {
            let began = Instant::now();
            let deadline = began + SPREAD_DEADLINE;
            match timeout_at(deadline, is_taken).await {
                Ok(Ok(())) => {
                    Ok(wait_for_nodes(&node, (id, is_block), expected_nodes, began).await)
                }
                _ => Err(NotSpread::Unavailable),
            }
        })
    }
}

/// Waits until all known nodes have confirmed that they have applied an update.
async fn wait_for_nodes(
    node: &Node,
    (update, is_block): (Id, bool),
    expected: usize,
    began: Instant,
) -> Reach {
    let deadline = began + SPREAD_DEADLINE;
    let mut applied: HashSet<Id> = HashSet::new();
    let mut names = vec![node.name.clone()];
    loop {
        let session = node.state().session.clone();
        if let Some(session) = session
            && let Ok(Ok((acks, records))) =
                timeout_at(deadline, session.acknowledgements(hex(update))).await
        {
            // Nodes that have joined since.
            node.see(&records);
            for ack in opened(node, update, &acks) {
                if applied.insert(ack.incarnation) {
                    names.push(ack.name);
                }
            }
        }
        let known = node.known_nodes(is_block);
        let missing: Vec<String> = known
            .iter()
            .filter(|(incarnation, _)| !applied.contains(*incarnation))
            .map(|(_, name)| name.clone())
            .collect();
        // A node that was restarted is not missing a second time.
        let others = missing.iter().filter(|name| !names.contains(name));
        let hidden = expected.saturating_sub(names.len() + others.count());
        if (missing.is_empty() && hidden == 0) || Instant::now() >= deadline {
            let mut reach = Reach::default();
            reach.applied = names;
            reach.missing = missing;
            reach.hidden = hidden;
            reach.took = began.elapsed();
            return reach;
        }
        sleep((began.elapsed() / 8).clamp(LOOK_EVERY.0, LOOK_EVERY.1)).await;
    }
}

/// Returns the acknowledgements of this update that other nodes sealed.
pub(crate) fn opened(node: &Node, update: Id, acks: &Fields) -> Vec<Acknowledgement> {
    let field = hex(update);
    let acks = acks.iter().take(MAX_NODES).filter_map(|(_, sealed)| {
        let opened = node.sealer.open(Kind::Acknowledgement, &field, sealed)?;
        let ack = Acknowledgement::decode(&opened.plain)?;
        (ack.update == update && ack.incarnation != node.incarnation).then_some(ack)
    });
    acks.collect()
}
