//! The task of a node: reads the log, applies it, sends updates, and writes the node's record.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::engine::{BEGINNING, Engine, EngineError, EngineResult, READ_COUNT, Session};
use crate::log::{Head, Log};
use crate::node::{FOLLOWED_FOR, Node, hex};
use crate::stop::Stop;
use crate::telemetry;

/// Records are written this often.
const RECORD_EVERY: Duration = Duration::from_secs(1);
/// How long a read waits for an entry.
const READ_WAIT: Duration = Duration::from_millis(500);
/// Waits between attempts to connect double from the first to the second one.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// After an epoch was followed for less than this, the node waits before it joins again.
const STABLE: Duration = Duration::from_secs(3);

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
    pub(crate) fn cache_version(&self) -> u64 {
        self.member().map_or(0, |member| member.version())
    }

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

    /// Writes the record of this node, and takes those of the others. `is_reading`: a read is under way.
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

    /// Sends the updates that wait, and removes this node from those that others wait for. Connects to the engine if the task has
    /// ended.
    pub(crate) async fn leave(&self, engine: &dyn Engine) -> EngineResult<()> {
        // Whatever record the task writes later says so, too.
        self.is_leaving.store(true, Ordering::Relaxed);
        let session = self.state().session.clone();
        if let Some(session) = session
            && self.end(&*session).await.is_ok()
        {
            return Ok(());
        }
        self.end(&*engine.connect().await?).await
    }

    /// Writes the last of this node.
    async fn end(&self, session: &dyn Session) -> EngineResult<()> {
        // In a new epoch, each call sends some of those that wait.
        while let Err(stop) = self.flush(session).await {
            if let Stop::Failed(error) = stop {
                return Err(error);
            }
        }
        self.write_last_record(session).await
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
