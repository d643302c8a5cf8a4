//! Two nodes whose caches only note what was applied, step by step.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tower_orgkey::OrgCode;
use tower_orgkey::fleet::{FleetMember, LayerInfo, Subject, Update};

use crate::clock::WallClock;
use crate::engine::memory::MemoryEngine;
use crate::engine::{Engine, Session};
use crate::link::opened;
use crate::node::{Node, hex};
use crate::seal::Sealer;
use crate::secret::FleetSecret;
use crate::wire::Id;

#[derive(Default)]
struct Member {
    version: AtomicU64,
    invalidations: AtomicU64,
    blocked: Mutex<HashSet<Subject>>,
    is_full: AtomicBool,
}

impl FleetMember for Member {
    fn apply(&self, update: &Update, _: bool) -> Option<u64> {
        let mut blocked = self.blocked.lock().unwrap();
        match update {
            Update::Block(_) if self.is_full.load(Ordering::Relaxed) => return None,
            Update::Block(subject) => {
                blocked.insert(subject.clone());
            }
            Update::Unblock(subject) => {
                blocked.remove(subject);
            }
            Update::Invalidate(_) | Update::InvalidateAll => {
                self.invalidations.fetch_add(1, Ordering::Relaxed);
            }
        }
        Some(self.version.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    fn refresh_all(&self) {
        self.version.fetch_add(1, Ordering::Relaxed);
    }

    fn share_calls(&self, _: u32) {}
}

struct Peer {
    node: Node,
    member: Arc<Member>,
    session: Arc<dyn Session>,
}

impl Peer {
    async fn join(engine: &MemoryEngine, byte: u8, secrets: &[u8]) -> Self {
        let secrets: Vec<_> = secrets
            .iter()
            .map(|byte| FleetSecret::new(&[*byte; 32]).unwrap())
            .collect();
        let layer = LayerInfo {
            issuer: String::new(),
            soft_ttl: Duration::from_secs(60),
            hard_ttl: Duration::from_secs(900),
            lookup_deadline: Duration::from_secs(10),
        };
        let origin = SystemTime::now();
        let node = Node::new(
            format!("node-{byte}"),
            [[byte; 16], [byte + 100; 16]],
            Sealer::new(&secrets, "fleet", "").unwrap(),
            layer,
            WallClock(Arc::new(move || origin)),
        );
        let member = Arc::new(Member::default());
        let attached: Arc<dyn FleetMember> = Arc::<Member>::clone(&member);
        node.attach(Arc::downgrade(&attached) as Weak<dyn FleetMember>);
        let session = engine.connect().await.unwrap();
        node.join(&session).await.unwrap();
        Self {
            node,
            member,
            session,
        }
    }

    /// Applies an update here and sends it, as the layer does.
    async fn send(&self, update: &Update) -> Id {
        self.member.apply(update, false);
        let id = self.node.enqueue(update, Some(oneshot::channel().0));
        self.node.flush(&*self.session).await.unwrap();
        id
    }

    async fn read(&self) {
        let place = self.node.state().place.clone();
        let entries = self.session.read(place, Duration::ZERO).await.unwrap();
        self.node
            .take_entries(&*self.session, entries)
            .await
            .unwrap();
    }

    async fn record(&self) {
        let record = self.node.write_record(&*self.session, false);
        record.await.unwrap();
    }

    async fn acknowledgements(&self, update: Id) -> usize {
        let (acks, _) = self.session.acknowledgements(hex(update)).await.unwrap();
        opened(&self.node, update, &acks).len()
    }

    fn blocks(&self, subject: &Subject) -> bool {
        self.member.blocked.lock().unwrap().contains(subject)
    }
}

fn org() -> Subject {
    Subject::Org(OrgCode::from_static("org_1"))
}

#[tokio::test(start_paused = true)]
async fn a_block_without_room_is_not_acknowledged() {
    let engine = MemoryEngine::new();
    let first = Peer::join(&engine, 1, &[1]).await;
    let second = Peer::join(&engine, 2, &[1]).await;
    second.member.is_full.store(true, Ordering::Relaxed);
    let id = first.send(&Update::Block(org())).await;
    second.read().await;
    assert_eq!(first.acknowledgements(id).await, 0);
    assert!(second.node.state().blocks.of(&org()).is_empty());
    second.member.is_full.store(false, Ordering::Relaxed);
    let id = first.send(&Update::Block(org())).await;
    second.read().await;
    assert_eq!(first.acknowledgements(id).await, 1);
    assert!(second.blocks(&org()));
}

#[tokio::test(start_paused = true)]
async fn a_repeated_update_is_acknowledged_again() {
    let engine = MemoryEngine::new();
    let first = Peer::join(&engine, 1, &[1]).await;
    let second = Peer::join(&engine, 2, &[1]).await;
    let id = first.send(&Update::InvalidateAll).await;
    second.read().await;
    engine.forget_acknowledgements();
    engine.replay_log(1);
    second.read().await;
    assert_eq!(first.acknowledgements(id).await, 1);
    assert_eq!(second.member.invalidations.load(Ordering::Relaxed), 1);
    let log_began_at = second.node.state().log.as_ref().unwrap().first();
    assert_eq!(log_began_at, 2, "results from before it are not used");
}

/// A result from before the block must not get a version that has it.
#[tokio::test(start_paused = true)]
async fn an_own_block_has_a_later_version() {
    let engine = MemoryEngine::new();
    let peer = Peer::join(&engine, 1, &[1]).await;
    peer.send(&Update::Block(org())).await;
    let before = peer.member.version();
    peer.read().await;
    assert!(peer.member.version() > before);
}

/// A node that is cut off while a block is written, and the log trimmed, has the block when it is back.
#[tokio::test(start_paused = true)]
async fn a_gap_hides_no_block() {
    let engine = MemoryEngine::new();
    let first = Peer::join(&engine, 1, &[1]).await;
    let mut second = Peer::join(&engine, 2, &[1]).await;
    first.send(&Update::Block(org())).await;
    engine.trim_log(1);
    second.session = engine.connect().await.unwrap();
    second.node.join(&second.session).await.unwrap();
    assert!(second.blocks(&org()), "after a new connection");

    let other = Subject::Org(OrgCode::from_static("org_2"));
    first.send(&Update::Block(other.clone())).await;
    engine.trim_log(1);
    for _ in 0..2 {
        second.record().await;
        second.read().await;
    }
    second.record().await;
    assert!(second.blocks(&other), "on the same connection");
}

#[tokio::test(start_paused = true)]
async fn evicted_blocks_are_written_again() {
    let engine = MemoryEngine::new();
    let first = Peer::join(&engine, 1, &[1]).await;
    first.send(&Update::Block(org())).await;
    engine.evict_blocks();
    engine.trim_log(1);
    tokio::time::advance(Duration::from_secs(10)).await;
    first.record().await;
    let later = Peer::join(&engine, 2, &[1]).await;
    assert!(later.blocks(&org()));
}

#[tokio::test(start_paused = true)]
async fn blocks_survive_a_rotation() {
    let engine = MemoryEngine::new();
    let first = Peer::join(&engine, 1, &[1, 2]).await;
    first.send(&Update::Block(org())).await;
    let second = Peer::join(&engine, 2, &[2, 1]).await;
    assert!(second.blocks(&org()));
    let third = Peer::join(&engine, 3, &[2]).await;
    assert!(third.blocks(&org()));
}

/// A node that was cut off restores a block that has ended since.
#[tokio::test(start_paused = true)]
async fn a_restored_block_is_ended_again() {
    let engine = MemoryEngine::new();
    let first = Peer::join(&engine, 1, &[1]).await;
    first.send(&Update::Block(org())).await;
    let late = Peer::join(&engine, 2, &[1]).await;
    first.send(&Update::Unblock(org())).await;
    engine.trim_log(2);
    late.node.join(&late.session).await.unwrap();
    first.node.join(&first.session).await.unwrap();
    first.node.flush(&*first.session).await.unwrap();
    assert!(!first.blocks(&org()));
    late.read().await;
    assert!(!late.blocks(&org()));
    let later = Peer::join(&engine, 3, &[1]).await;
    assert!(!later.blocks(&org()));
}

#[tokio::test(start_paused = true)]
async fn a_repeated_block_is_ended_once() {
    let engine = MemoryEngine::new();
    let first = Peer::join(&engine, 1, &[1]).await;
    first.send(&Update::Block(org())).await;
    let second = Peer::join(&engine, 2, &[1]).await;
    let blocks = second.node.state().blocks.of(&org());
    engine.repeat_blocks(100);
    first.node.enqueue(&Update::Unblock(org()), None);
    // This one has sent the end before.
    second.node.state().blocks.end(&org(), &blocks);
    for peer in [&first, &second] {
        for _ in 0..10 {
            let session = engine.connect().await.unwrap();
            peer.node.join(&session).await.unwrap();
            assert!(peer.node.flush(&*session).await.is_err());
        }
        assert_eq!(peer.node.status().unsent, 1);
    }
}

/// The engine says once that it took more updates than it did.
#[tokio::test(start_paused = true)]
async fn a_wrong_head_makes_no_node_deaf() {
    let engine = MemoryEngine::new();
    let first = Peer::join(&engine, 1, &[1]).await;
    let second = Peer::join(&engine, 2, &[1]).await;
    let head = engine.set_head(u64::MAX);
    for _ in 0..2 {
        second.record().await;
        second.read().await;
    }
    engine.set_head(head);
    second.record().await;
    let id = first.send(&Update::InvalidateAll).await;
    second.read().await;
    assert_eq!(first.acknowledgements(id).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_with_a_changing_clock_is_known() {
    let engine = MemoryEngine::new();
    let first = Peer::join(&engine, 1, &[1]).await;
    let second = Peer::join(&engine, 2, &[1]).await;
    for _ in 0..200 {
        // The wall clock of this node stands still.
        tokio::time::advance(Duration::from_secs(1)).await;
        second.record().await;
        first.record().await;
    }
    assert_eq!(first.node.known_nodes(false).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_later_record_does_not_undo_leaving() {
    let engine = MemoryEngine::new();
    let first = Peer::join(&engine, 1, &[1]).await;
    let second = Peer::join(&engine, 2, &[1]).await;
    second.record().await;
    first.record().await;
    assert_eq!(first.node.known_nodes(false).len(), 1);
    // The task has ended, and with it the session.
    second.node.state().session = None;
    second.node.leave(&engine).await.unwrap();
    second.record().await;
    first.record().await;
    assert!(first.node.known_nodes(false).is_empty());
}
