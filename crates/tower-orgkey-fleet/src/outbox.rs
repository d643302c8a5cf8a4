//! The updates of this node, until the engine has taken them and others cannot lose them any more.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tower_orgkey::fleet::{Subject, Update};

use crate::engine::{Append, Session};
use crate::log::Log;
use crate::node::{Node, Outgoing, State, hex};
use crate::seal::{Kind, LOG};
use crate::stop::Stop;
use crate::wire::{Change, Id, LogEntry, MAX_UNBLOCKED, Wire};

/// The maximum number of updates that wait for the engine, or that are sent again in a new epoch. More are replaced by one that
/// invalidates everything.
const MAX_OWN: usize = 10_000;
/// The maximum number of updates that are sent at once.
pub(crate) const SENT_AT_ONCE: usize = 100;

impl Node {
    /// Takes an update of this node, to be sent. Returns its id.
    pub(crate) fn enqueue(&self, update: &Update, taken: Option<oneshot::Sender<()>>) -> Id {
        let id = self.new_id();
        let mut state = self.state();
        let change = match update {
            Update::Invalidate(subject) => Change::Invalidate(subject.clone()),
            Update::InvalidateAll => Change::InvalidateAll,
            Update::Block(subject) => {
                state.blocks.insert(id, subject);
                Change::Block(subject.clone())
            }
            Update::Unblock(subject) => {
                let mut ids = state.blocks.of(subject);
                ids.truncate(MAX_UNBLOCKED);
                state.blocks.end(subject, &ids);
                Change::Unblock(subject.clone(), ids)
            }
        };
        let entry = LogEntry {
            id,
            origin: self.incarnation,
            wants_acks: taken.is_some(),
            change,
        };
        state.remember(&entry, self.retention(), || self.invalidate_all());
        state.outbox.push_back(Outgoing { entry, taken });
        state.bound_outbox(|| self.invalidate_all());
        drop(state);
        self.outgoing.notify_one();
        id
    }

    /// Ends blocks again that were written after their end, unless that waits already: an engine may repeat them for ever.
    pub(crate) fn end_again(&self, mut blocks: HashMap<Id, Subject>) {
        let mut state = self.state();
        for sent in &state.outbox {
            if let Change::Unblock(_, ids) = &sent.entry.change {
                for block in ids {
                    blocks.remove(block);
                }
            }
        }
        for (block, subject) in blocks {
            let entry = LogEntry {
                id: self.new_id(),
                origin: self.incarnation,
                wants_acks: false,
                change: Change::Unblock(subject, vec![block]),
            };
            state.outbox.push_back(Outgoing { entry, taken: None });
        }
        drop(state);
        self.outgoing.notify_one();
    }

    fn invalidate_all(&self) -> LogEntry {
        LogEntry {
            id: self.new_id(),
            origin: self.incarnation,
            wants_acks: false,
            change: Change::InvalidateAll,
        }
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

    pub(crate) fn append(&self, entry: &LogEntry) -> Option<Append> {
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
}

impl State {
    /// Keeps an invalidation, to send it again in a new epoch.
    fn remember(
        &mut self,
        entry: &LogEntry,
        retention: Duration,
        invalidate_all: impl FnOnce() -> LogEntry,
    ) {
        let now = Instant::now();
        while let Some((at, _)) = self.own.front()
            && now.duration_since(*at) > retention
        {
            self.own.pop_front();
        }
        if matches!(entry.change, Change::Invalidate(_) | Change::InvalidateAll) {
            self.own.push_back((now, entry.clone()));
        }
        if self.own.len() > MAX_OWN {
            self.own.clear();
            self.own.push_back((now, invalidate_all()));
        }
    }

    /// Replaces invalidations that wait by one of everything, if there are too many.
    fn bound_outbox(&mut self, invalidate_all: impl FnOnce() -> LogEntry) {
        if self.outbox.len() <= MAX_OWN {
            return;
        }
        // Their waiters get an error: the update was not sent.
        self.outbox
            .retain(|sent| matches!(sent.entry.change, Change::Block(_) | Change::Unblock(..)));
        self.outbox.push_back(Outgoing {
            entry: invalidate_all(),
            taken: None,
        });
    }

    /// Sends all invalidations again that others may have lost.
    pub(crate) fn send_again(&mut self, retention: Duration) {
        let now = Instant::now();
        let waiting: std::collections::HashSet<Id> =
            self.outbox.iter().map(|sent| sent.entry.id).collect();
        let own = self.own.iter().filter(|(at, entry)| {
            now.duration_since(*at) <= retention && !waiting.contains(&entry.id)
        });
        let again: Vec<_> = own
            .map(|(_, entry)| Outgoing {
                entry: entry.clone(),
                taken: None,
            })
            .collect();
        for sent in again.into_iter().rev() {
            self.outbox.push_front(sent);
        }
    }
}
