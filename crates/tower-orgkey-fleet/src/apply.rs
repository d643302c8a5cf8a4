//! Applies the updates that were read from the log.

use tower_orgkey::fleet::{FleetMember, Subject, Update};

use crate::engine::{Fields, READ_COUNT, Read, Session};
use crate::log::Order;
use crate::node::{Counters, Node, hex};
use crate::seal::{Kind, LOG, Opened};
use crate::stop::Stop;
use crate::telemetry;
use crate::wire::{Acknowledgement, Change, Id, LogEntry, Wire};

impl Node {
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
    pub(crate) fn updates_missing(&self, number: u64) {
        telemetry::updates_missing();
        // Before the version is read, so that what is fetched from now on is not due for a refresh.
        self.refresh_all();
        self.restart_log(number);
    }

    pub(crate) fn restart_log(&self, number: u64) {
        let version = self.cache_version();
        if let Some(log) = &mut self.state().log {
            log.restart(number, version);
        }
    }

    /// Applies an update. Returns the version of the cache that has it; `None` if it is not applicable here.
    pub(crate) fn apply_change(&self, entry: &LogEntry, is_first: bool) -> Option<u64> {
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
}

/// Decodes an update. Also returns whether it was sealed under the first secret of this node.
pub(crate) fn decode(opened: &Opened) -> Option<(LogEntry, bool)> {
    LogEntry::decode(&opened.plain).map(|entry| (entry, opened.is_first))
}
