//! Compares the blocks of this node with those of the engine.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::apply::decode;
use crate::engine::Session;
use crate::node::{Counters, Node, hex};
use crate::outbox::SENT_AT_ONCE;
use crate::seal::Kind;
use crate::stop::Stop;
use crate::telemetry;
use crate::wire::{Change, Id, LogEntry};

/// The blocks of the engine are compared with those of this node this often, and after each gap.
const SYNC_BLOCKS_EVERY: Duration = Duration::from_secs(60);
/// Blocks that the engine lost are written again at most this often.
const RESTORE_BLOCKS_EVERY: Duration = Duration::from_secs(10);

impl Node {
    /// Applies the blocks that the engine has, and writes those that it lacks.
    pub(crate) async fn sync_blocks(&self, session: &dyn Session) -> Result<(), Stop> {
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
        let mut ended = HashMap::new();
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
                ended.insert(entry.id, subject.clone());
            } else if !is_held {
                self.apply_change(&entry, is_first);
            }
        }
        self.end_again(ended);
        Ok(sealed_now)
    }

    /// Writes the blocks that this node holds, whoever made them, except those that the engine has.
    async fn restore_blocks(
        &self,
        session: &dyn Session,
        except: &HashSet<Id>,
    ) -> Result<(), Stop> {
        let (mut blocks, waiting): (_, HashSet<Id>) = {
            let state = self.state();
            let waiting = state.outbox.iter().map(|sent| sent.entry.id);
            (state.blocks.all(), waiting.collect())
        };
        blocks.retain(|(id, _)| !except.contains(id));
        let lacked = blocks.iter().filter(|(id, _)| !waiting.contains(id));
        telemetry::blocks_restored(lacked.map(|(_, subject)| subject));
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
    pub(crate) fn must_sync_blocks(&self, blocks: usize) -> bool {
        let state = self.state();
        let age = state.synced_blocks_at.map(|at| at.elapsed());
        let is_older = |than| age.is_none_or(|age| age >= than);
        state.may_miss_blocks
            || is_older(SYNC_BLOCKS_EVERY)
            || (blocks < state.blocks.len() && is_older(RESTORE_BLOCKS_EVERY))
    }
}
