//! The task of a node: reads the log, applies it, sends updates, and writes the node's record.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tower_orgkey::fleet::{FleetMember, Subject, Update};

use crate::engine::{
    Append, BEGINNING, Engine, EngineError, EngineResult, Fields, READ_COUNT, Read, Session,
};
use crate::log::{Head, Log, Order};
use crate::node::{Counters, FOLLOWED_FOR, Node, Outgoing, hex};
use crate::seal::{Kind, Opened};
use crate::telemetry;
use crate::wire::{Acknowledgement, Change, Id, LogEntry, Wire};

/// Records are written this often.
const RECORD_EVERY: Duration = Duration::from_secs(1);
/// How long a read waits for an entry.
const READ_WAIT: Duration = Duration::from_millis(500);
/// The maximum number of updates that are sent at once.
const SENT_AT_ONCE: usize = 100;
/// Waits between attempts to connect double from the first to the second one.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// The blocks of the engine are compared with those of this node this often, and after each gap.
const SYNC_BLOCKS_EVERY: Duration = Duration::from_secs(60);
/// Blocks that the engine lost are written again at most this often.
const RESTORE_BLOCKS_EVERY: Duration = Duration::from_secs(10);
/// After an epoch was followed for less than this, the node waits before it joins again.
const STABLE: Duration = Duration::from_secs(3);
/// The place of sealed log entries.
const LOG: &str = "log";

/// Why a node stops to follow a session.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The engine lost data, or another server answers.
    NewEpoch,
    Failed(EngineError),
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        Self::Failed(error)
    }
}

/// Follows the engine, for ever.
pub(crate) async fn follow(node: &Node, engine: &dyn Engine) {
    node.is_leaving.store(false, Ordering::Relaxed);
    let mut wait = RECONNECT.0;
    loop {
        let connected_at = Instant::now();
        let error = match engine.connect().await {
            Ok(session) => node.serve(&session).await,
            Err(error) => error,
        };
        node.lost(&error);
        if connected_at.elapsed() > RECONNECT.1 {
            wait = RECONNECT.0;
        }
        sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        wait = (wait * 2).min(RECONNECT.1);
    }
}

impl Node {
    async fn serve(&self, session: &Arc<dyn Session>) -> EngineError {
        let mut wait = RECONNECT.0;
        loop {
            let joined_at = Instant::now();
            match self.serve_epoch(session).await {
                Stop::NewEpoch if joined_at.elapsed() >= STABLE => wait = RECONNECT.0,
                Stop::NewEpoch => {
                    sleep(wait).await;
                    wait = (wait * 2).min(RECONNECT.1);
                }
                Stop::Failed(error) => return error,
            }
        }
    }

    async fn serve_epoch(&self, session: &Arc<dyn Session>) -> Stop {
        match self.follow_epoch(session).await {
            Ok(never) => match never {},
            Err(stop) => stop,
        }
    }

    async fn follow_epoch(
        &self,
        session: &Arc<dyn Session>,
    ) -> Result<std::convert::Infallible, Stop> {
        self.join(session).await?;
        self.write_record(&**session, true).await?;
        self.flush(&**session).await?;
        let mut records = interval(RECORD_EVERY);
        records.set_missed_tick_behavior(MissedTickBehavior::Delay);
        records.reset();
        let mut read = session.read(self.place(), READ_WAIT);
        loop {
            tokio::select! {
                entries = &mut read => {
                    self.take_entries(&**session, entries?).await?;
                    read = session.read(self.place(), READ_WAIT);
                }
                () = self.outgoing.notified() => self.flush(&**session).await?,
                _ = records.tick() => self.write_record(&**session, true).await?,
            }
        }
    }

    fn place(&self) -> String {
        self.state().place.clone()
    }

    /// Joins the epoch of the engine: reads what the log has, and the blocks.
    pub(crate) async fn join(&self, session: &Arc<dyn Session>) -> Result<(), Stop> {
        let head = session.join(self.new_id()).await?;
        let is_new_epoch = self.begin_epoch(head);
        self.announce(&**session).await?;
        loop {
            let entries = session.read(self.place(), Duration::ZERO).await?;
            let is_short = entries.len() < READ_COUNT;
            self.apply_entries(&**session, entries, is_new_epoch)
                .await?;
            if is_short {
                break;
            }
        }
        self.end_join(head, is_new_epoch);
        self.sync_blocks(&**session).await?;
        self.state().session = Some(Arc::clone(session));
        Ok(())
    }

    /// Returns whether this is another epoch than that of the last session.
    fn begin_epoch(&self, head: Head) -> bool {
        let before = self.state().log.as_ref().map(Log::epoch);
        if before == Some(head.epoch) {
            self.check_regression(head);
            return false;
        }
        if before.is_some() {
            telemetry::new_epoch();
            self.refresh_all();
        }
        let log = Log::new(head.epoch, 0, self.cache_version());
        let mut state = self.state();
        #[cfg(test)]
        let log = log.with_rules_of(state.log.as_ref());
        state.log = Some(log);
        BEGINNING.clone_into(&mut state.place);
        state.expected = None;
        if before.is_some() {
            state.send_again(self.retention());
        }
        true
    }

    /// An engine whose head is before what was applied has lost updates, or was wrong about the head once.
    fn check_regression(&self, head: Head) {
        let is_before = |log: &Log| head.number < log.applied();
        let regressed = self.state().log.as_ref().is_some_and(is_before);
        if regressed {
            self.updates_missing(head.number);
        }
    }

    /// All entries were read. Those that are missing may have been trimmed.
    fn end_join(&self, head: Head, is_new_epoch: bool) {
        let misses = |log: &Log| log.misses(head);
        if !self.state().log.as_ref().is_some_and(misses) {
            return;
        }
        if is_new_epoch {
            self.restart_log(head.number);
        } else {
            self.updates_missing(head.number);
        }
    }

    /// Returns the version of the cache; 0 after the layer was dropped.
    fn cache_version(&self) -> u64 {
        self.member().map_or(0, |member| member.version())
    }

    /// Applies the blocks that the engine has, and writes those that it lacks.
    async fn sync_blocks(&self, session: &dyn Session) -> Result<(), Stop> {
        let sealed = self.read_blocks(session).await?;
        self.restore_blocks(session, &sealed).await?;
        let mut state = self.state();
        state.synced_blocks_at = Some(Instant::now());
        state.may_miss_blocks = false;
        Ok(())
    }

    /// Returns the blocks that are sealed under the first secret.
    async fn read_blocks(&self, session: &dyn Session) -> Result<HashSet<Id>, Stop> {
        let mut sealed_now = HashSet::new();
        for (field, sealed) in session.blocks().await? {
            let opened = self.sealer.open(Kind::Block, &field, &sealed);
            let block = opened.and_then(|opened| decode(&opened));
            let block = block.filter(|(entry, _)| hex(entry.id) == field);
            let Some((entry, is_first)) = block else {
                Counters::count(&self.counters.rejected);
                continue;
            };
            let Change::Block(subject) = &entry.change else {
                continue;
            };
            if is_first {
                sealed_now.insert(entry.id);
            }
            let (is_held, is_ended) = {
                let state = self.state();
                (
                    state.blocks.holds(subject, entry.id),
                    state.blocks.is_ended(entry.id),
                )
            };
            if is_ended {
                self.end_again(subject, entry.id);
            } else if !is_held {
                self.apply_change(&entry, is_first);
            }
        }
        Ok(sealed_now)
    }

    /// Writes the blocks that this node holds, whoever made them, except those that the engine has.
    async fn restore_blocks(
        &self,
        session: &dyn Session,
        except: &HashSet<Id>,
    ) -> Result<(), Stop> {
        let mut blocks = self.state().blocks.all();
        blocks.retain(|(id, _)| !except.contains(id));
        for blocks in blocks.chunks(SENT_AT_ONCE) {
            let blocks = blocks.iter().filter_map(|(id, subject)| {
                let entry = LogEntry {
                    id: *id,
                    origin: self.incarnation,
                    wants_acks: false,
                    change: Change::Block(subject.clone()),
                };
                self.append(&entry)
            });
            session.restore(self.new_id(), blocks.collect()).await?;
        }
        Ok(())
    }

    /// Returns whether the blocks of the engine are to be compared with those of this node, of which it has so many.
    fn must_sync_blocks(&self, blocks: usize) -> bool {
        let state = self.state();
        let age = state.synced_blocks_at.map(|at| at.elapsed());
        let is_older = |than| age.is_none_or(|age| age >= than);
        state.may_miss_blocks
            || is_older(SYNC_BLOCKS_EVERY)
            || (blocks < state.blocks.len() && is_older(RESTORE_BLOCKS_EVERY))
    }

    /// Takes the reply of a read.
    pub(crate) async fn take_entries(
        &self,
        session: &dyn Session,
        entries: Vec<Read>,
    ) -> Result<(), Stop> {
        let is_short = entries.len() < READ_COUNT;
        self.apply_entries(session, entries, false).await?;
        if is_short {
            self.check_head()?;
        }
        Ok(())
    }

    /// All entries were read. Checks whether those up to the head of the last record are among them.
    fn check_head(&self) -> Result<(), Stop> {
        let mut state = self.state();
        let Some((head, reads)) = state.expected else {
            return Ok(());
        };
        if reads > 1 {
            state.expected = Some((head, reads - 1));
            return Ok(());
        }
        state.expected = None;
        let Some(log) = &state.log else {
            return Ok(());
        };
        if log.epoch() != head.epoch {
            return Err(Stop::NewEpoch);
        }
        let misses = log.misses(head);
        drop(state);
        if misses {
            self.updates_missing(head.number);
        }
        Ok(())
    }

    pub(crate) async fn apply_entries(
        &self,
        session: &dyn Session,
        entries: Vec<Read>,
        is_joining: bool,
    ) -> Result<(), Stop> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut acks = Fields::new();
        for entry in entries {
            if let Some(id) = self.apply_entry(&entry, is_joining)? {
                acks.extend(self.acknowledgement(id));
            }
        }
        self.applied.notify_waiters();
        if !acks.is_empty() {
            session.acknowledge(hex(self.incarnation), acks).await?;
        }
        Ok(())
    }

    /// Applies an entry. Returns the update that is to be acknowledged, which this node has applied.
    fn apply_entry(&self, read: &Read, is_joining: bool) -> Result<Option<Id>, Stop> {
        let order = {
            let mut state = self.state();
            // What is not readable, or of another epoch, is not read again.
            state.place.clone_from(&read.place);
            if read.number == 0 {
                Counters::count(&self.counters.rejected);
                return Ok(None);
            }
            let log = state.log.as_ref();
            let Some(log) = log.filter(|log| log.epoch() == read.epoch) else {
                return Err(Stop::NewEpoch);
            };
            log.order(read.number)
        };
        match order {
            Order::Seen => return Ok(None),
            Order::Gap if is_joining => self.restart_log(read.number - 1),
            Order::Gap => self.updates_missing(read.number - 1),
            Order::Next => {}
        }
        let before = self.cache_version();
        let opened = self.sealer.open(Kind::LogEntry, LOG, &read.sealed);
        let Some((entry, is_first)) = opened.and_then(|opened| decode(&opened)) else {
            self.reject_update(read.number);
            return Ok(None);
        };
        let is_known = self.state().applied.contains(&entry.id);
        if is_known {
            // Its version is older than what may have been read since, so results from before it are not used.
            if let Some(log) = &mut self.state().log {
                log.restart(read.number, before);
            }
        } else {
            let Some(version) = self.apply_change(&entry, is_first) else {
                self.reject_update(read.number);
                return Ok(None);
            };
            let mut state = self.state();
            state.applied.insert(entry.id);
            if let Some(log) = &mut state.log {
                log.push(version);
            }
        }
        let wants_ack = entry.wants_acks && entry.origin != self.incarnation;
        Ok(wants_ack.then_some(entry.id))
    }

    /// An update that this node cannot apply: like one that is missing.
    fn reject_update(&self, number: u64) {
        Counters::count(&self.counters.rejected);
        telemetry::update_rejected();
        self.refresh_all();
        self.restart_log(number);
    }

    /// Updates up to this number may be missing.
    fn updates_missing(&self, number: u64) {
        telemetry::updates_missing();
        // Before the version is read, so that what is fetched from now on is not due for a refresh.
        self.refresh_all();
        self.restart_log(number);
    }

    fn restart_log(&self, number: u64) {
        let version = self.cache_version();
        if let Some(log) = &mut self.state().log {
            log.restart(number, version);
        }
    }

    /// Applies an update. Returns the version of the cache that has it; `None` if it is not applicable here.
    fn apply_change(&self, entry: &LogEntry, is_first: bool) -> Option<u64> {
        let Some(member) = self.member() else {
            return Some(0);
        };
        let is_own = entry.origin == self.incarnation;
        match &entry.change {
            Change::Block(subject) => self.block(&*member, entry, subject, is_first),
            Change::InvalidateAll => member.apply(&Update::InvalidateAll, is_own),
            // The fingerprint is that of another secret, so that of any key.
            Change::Invalidate(Subject::Key(_)) if !is_first => {
                member.apply(&Update::InvalidateAll, false)
            }
            Change::Invalidate(subject) => {
                member.apply(&Update::Invalidate(subject.clone()), is_own)
            }
            Change::Unblock(subject, ids) => Some(self.unblock(&*member, subject, ids)),
        }
    }

    fn block(
        &self,
        member: &dyn FleetMember,
        entry: &LogEntry,
        subject: &Subject,
        is_first: bool,
    ) -> Option<u64> {
        if !is_first && matches!(subject, Subject::Key(_)) {
            return None;
        }
        let _blocking = self.blocking();
        if !self.state().blocks.insert(entry.id, subject) {
            return Some(member.version());
        }
        if entry.origin == self.incarnation {
            // It is in force, and results from before its place in the log are not used.
            return member.apply(&Update::Invalidate(subject.clone()), true);
        }
        let version = member.apply(&Update::Block(subject.clone()), false);
        if version.is_none() {
            self.state().blocks.forget(subject, &[entry.id]);
        }
        version
    }

    fn unblock(&self, member: &dyn FleetMember, subject: &Subject, ids: &[Id]) -> u64 {
        let _blocking = self.blocking();
        let version = member.version();
        let mut state = self.state();
        let was_blocked = state.blocks_subject(subject);
        let is_free = state.blocks.end(subject, ids);
        drop(state);
        if was_blocked && is_free {
            member.apply(&Update::Unblock(subject.clone()), false);
        }
        version
    }

    fn acknowledgement(&self, update: Id) -> Option<(String, Vec<u8>)> {
        let ack = Acknowledgement {
            update,
            incarnation: self.incarnation,
            name: self.name.clone(),
        };
        let field = hex(update);
        let sealed = self
            .sealer
            .seal(Kind::Acknowledgement, &field, &ack.encode())?;
        Some((field, sealed))
    }

    /// Sends what waits.
    pub(crate) async fn flush(&self, session: &dyn Session) -> Result<(), Stop> {
        loop {
            let entries: Vec<LogEntry> = {
                let state = self.state();
                let waiting = state.outbox.iter().take(SENT_AT_ONCE);
                waiting.map(|sent| sent.entry.clone()).collect()
            };
            if entries.is_empty() {
                return Ok(());
            }
            let appends = entries.iter().filter_map(|entry| self.append(entry));
            let heads = session.append(self.new_id(), appends.collect()).await?;
            let mut state = self.state();
            for entry in &entries {
                // The outbox may have been bounded meanwhile.
                let at = state
                    .outbox
                    .iter()
                    .position(|sent| sent.entry.id == entry.id);
                let sent: Option<Outgoing> = at.and_then(|at| state.outbox.remove(at));
                if let Some(taken) = sent.and_then(|sent| sent.taken) {
                    // The waiting caller may be gone.
                    let _ = taken.send(());
                }
            }
            let epoch = state.log.as_ref().map(Log::epoch);
            drop(state);
            if heads.iter().any(|head| Some(head.epoch) != epoch) {
                return Err(Stop::NewEpoch);
            }
        }
    }

    fn append(&self, entry: &LogEntry) -> Option<Append> {
        let (block, unblock) = match &entry.change {
            Change::Block(_) => {
                let field = hex(entry.id);
                let sealed = self.sealer.seal(Kind::Block, &field, &entry.encode())?;
                (Some((field, sealed)), Vec::new())
            }
            Change::Unblock(_, ids) => (None, ids.iter().copied().map(hex).collect()),
            _ => (None, Vec::new()),
        };
        Some(Append {
            sealed: self.sealer.seal(Kind::LogEntry, LOG, &entry.encode())?,
            keep: self.retention(),
            block,
            unblock,
        })
    }

    /// Writes the record of this node, and takes those of the others. `is_reading`: a read is under way.
    /// Writes the record of this node before it reads the log. A publisher then either sees this node, or its update is in the
    /// log that this node reads.
    async fn announce(&self, session: &dyn Session) -> Result<(), Stop> {
        let Some(record) = self.record() else {
            return Ok(());
        };
        let node = hex(self.incarnation);
        let written = session.record(self.new_id(), node, record, Vec::new());
        let (_, records, _) = written.await?;
        self.see(&records);
        Ok(())
    }

    pub(crate) async fn write_record(
        &self,
        session: &dyn Session,
        is_reading: bool,
    ) -> Result<(), Stop> {
        let Some(record) = self.record() else {
            return Ok(());
        };
        let node = hex(self.incarnation);
        let (head, records, blocks) = session
            .record(self.new_id(), node, record, self.take_forgotten())
            .await?;
        self.take_head(head, is_reading)?;
        self.see(&records);
        self.compare_nodes();
        telemetry::report(&self.status());
        if self.must_sync_blocks(blocks) {
            self.sync_blocks(session).await?;
        }
        Ok(())
    }

    fn take_head(&self, head: Head, is_reading: bool) -> Result<(), Stop> {
        let state = self.state();
        if state.log.as_ref().map(Log::epoch) != Some(head.epoch) {
            return Err(Stop::NewEpoch);
        }
        drop(state);
        self.check_regression(head);
        let mut state = self.state();
        state.head = head.number;
        if state.expected.is_none() {
            // A read that is under way may have begun before the head moved.
            state.expected = Some((head, 1 + u8::from(is_reading)));
        }
        let was_followed = state.is_followed();
        let now = Instant::now();
        state.followed_until = Some(now + FOLLOWED_FOR);
        if !was_followed {
            state.since = now;
            drop(state);
            telemetry::followed();
        }
        Ok(())
    }

    /// The session ended.
    pub(crate) fn lost(&self, error: &EngineError) {
        let mut state = self.state();
        state.session = None;
        let was_followed = state.followed_until.take().is_some();
        if was_followed {
            state.since = Instant::now();
        }
        drop(state);
        telemetry::lost(error, was_followed);
        telemetry::report(&self.status());
    }

    /// Removes this node from those that others wait for. Connects to the engine if the task has ended.
    pub(crate) async fn leave(&self, engine: &dyn Engine) -> EngineResult<()> {
        // Whatever record the task writes later says so, too.
        self.is_leaving.store(true, Ordering::Relaxed);
        let session = self.state().session.clone();
        if let Some(session) = session
            && self.write_last_record(&*session).await.is_ok()
        {
            return Ok(());
        }
        self.write_last_record(&*engine.connect().await?).await
    }

    async fn write_last_record(&self, session: &dyn Session) -> EngineResult<()> {
        if let Some(record) = self.record() {
            let node = hex(self.incarnation);
            session
                .record(self.new_id(), node, record, Vec::new())
                .await?;
        }
        Ok(())
    }
}

/// Decodes an update. Also returns whether it was sealed under the first secret of this node.
fn decode(opened: &Opened) -> Option<(LogEntry, bool)> {
    LogEntry::decode(&opened.plain).map(|entry| (entry, opened.is_first))
}
