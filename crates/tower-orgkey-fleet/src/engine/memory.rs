//! An engine in memory, for tests: several nodes in one process, on one clock that may be paused, and faults.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tower_orgkey::fleet::BoxFuture;

use super::{
    Append, Engine, EngineError, EngineResult, Fetched, Fields, Place, READ_COUNT, Read, Session,
};
use crate::log::Head;
use crate::wire::Id;

/// An engine in memory, for tests: see [`FleetBuilder::memory`](crate::FleetBuilder::memory). Clones are the same engine.
///
/// ```
/// use tower_orgkey_fleet::MemoryEngine;
///
/// let engine = MemoryEngine::new();
/// engine.set_available(false);
/// engine.wipe();
/// ```
#[derive(Clone, Default)]
pub struct MemoryEngine(Arc<Shared>);

#[derive(Default)]
struct Shared {
    server: Mutex<Server>,
    appended: Notify,
}

/// A server and its replica.
#[expect(clippy::struct_excessive_bools, reason = "independent faults")]
struct Server {
    /// Changes with each server process.
    run: u64,
    /// Sessions with an older number are closed.
    connections: u64,
    is_available: bool,
    withholds_log: bool,
    hides_failover: bool,
    founds_by_run: bool,
    founds: bool,
    rejects_appends: bool,
    /// What is returned in place of the blocks.
    repeated_blocks: Fields,
    data: Data,
    replica: Data,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            run: 1,
            connections: 0,
            is_available: true,
            withholds_log: false,
            hides_failover: false,
            founds_by_run: true,
            founds: true,
            rejects_appends: false,
            repeated_blocks: Fields::new(),
            data: Data::default(),
            replica: Data::default(),
        }
    }
}

#[derive(Clone, Default)]
struct Data {
    epoch: Option<Id>,
    founded_by: u64,
    number: u64,
    last_id: u64,
    log: Vec<(u64, Id, u64, Vec<u8>)>,
    values: HashMap<String, Vec<u8>>,
    nodes: BTreeMap<String, Vec<u8>>,
    blocks: BTreeMap<String, Vec<u8>>,
    acks: HashMap<String, BTreeMap<String, Vec<u8>>>,
}

impl Server {
    fn found(&mut self, new_epoch: Id) {
        let is_other_server = self.founds_by_run && self.data.founded_by != self.run;
        if self.data.epoch.is_none() || is_other_server {
            self.data.epoch = Some(if self.founds { new_epoch } else { [0; 16] });
            self.data.founded_by = self.run;
            self.data.number = 0;
            self.data.log.clear();
        }
    }

    fn head(&self) -> Option<Head> {
        self.data.epoch.map(|epoch| Head {
            epoch,
            number: self.data.number,
        })
    }

    fn append(&mut self, sealed: Vec<u8>) -> EngineResult<Head> {
        let head = self.head().ok_or_else(|| EngineError::new("no epoch"))?;
        let head = Head {
            number: head.number + 1,
            ..head
        };
        self.data.number = head.number;
        self.data.last_id += 1;
        let entry = (self.data.last_id, head.epoch, head.number, sealed);
        self.data.log.push(entry);
        Ok(head)
    }
}

impl MemoryEngine {
    /// Creates an engine without data.
    pub fn new() -> Self {
        Self::default()
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.0.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets whether the engine answers. If it does not, all operations fail at once.
    pub fn set_available(&self, is_available: bool) {
        let mut server = self.server();
        server.is_available = is_available;
        server.connections += 1;
        drop(server);
        self.0.appended.notify_waiters();
    }

    /// Closes all connections.
    pub fn disconnect(&self) {
        self.server().connections += 1;
        self.0.appended.notify_waiters();
    }

    /// Removes all data, as `FLUSHALL` does. Connections stay open.
    pub fn wipe(&self) {
        let mut server = self.server();
        server.data = Data {
            // As in Redis, entries get higher ids.
            last_id: server.data.last_id,
            ..Data::default()
        };
    }

    /// Copies all data to the replica.
    pub fn replicate(&self) {
        let mut server = self.server();
        server.replica = server.data.clone();
    }

    /// Replaces the server by its replica, which lacks what was written since the last [`replicate`](Self::replicate).
    pub fn fail_over(&self) {
        let mut server = self.server();
        server.data = server.replica.clone();
        server.run += 1;
        if !server.hides_failover {
            server.connections += 1;
        }
        drop(server);
        self.0.appended.notify_waiters();
    }

    /// Sets whether connections stay open in a failover, as they do behind a proxy.
    pub fn hide_failovers(&self, hides: bool) {
        self.server().hides_failover = hides;
    }

    /// Removes the oldest entries of the log, as trimming does.
    pub fn trim_log(&self, entries: usize) {
        let log = &mut self.server().data.log;
        log.drain(..entries.min(log.len()));
    }

    /// Removes the newest entries of the log after their numbers were returned.
    pub fn drop_newest(&self, entries: usize) {
        let log = &mut self.server().data.log;
        log.truncate(log.len().saturating_sub(entries));
    }

    /// Removes all blocks, as eviction does.
    pub fn evict_blocks(&self) {
        self.server().data.blocks.clear();
    }

    /// Sets whether the engine hides new log entries from all nodes, as a hostile one may.
    pub fn withhold_log(&self, withholds: bool) {
        self.server().withholds_log = withholds;
        self.0.appended.notify_waiters();
    }

    /// Passes each stored result to a function that may change it, as a hostile engine may. Returns their number.
    pub fn tamper(&self, mut change: impl FnMut(&mut Vec<u8>)) -> usize {
        let mut server = self.server();
        let values = server.data.values.values_mut();
        values.map(&mut change).count()
    }

    /// Puts each stored result into the place of another one. Returns their number.
    pub fn swap_results(&self) -> usize {
        let mut server = self.server();
        let values: Vec<_> = server.data.values.values().cloned().collect();
        let places = server.data.values.values_mut();
        let others = values.iter().cycle().skip(1);
        places
            .zip(others)
            .map(|(place, other)| place.clone_from(other))
            .count()
    }

    /// Returns the number of stored results.
    pub fn results(&self) -> usize {
        self.server().data.values.len()
    }

    /// Appends the oldest entries of the log again, as a hostile engine may. Returns their number.
    pub fn replay_log(&self, entries: usize) -> usize {
        let mut server = self.server();
        let log: Vec<_> = server.data.log.iter().take(entries).cloned().collect();
        for (_, _, _, sealed) in &log {
            // The log is not empty, so there is an epoch.
            let _ = server.append(sealed.clone());
        }
        drop(server);
        self.0.appended.notify_waiters();
        log.len()
    }

    /// Sets the number of the head. Returns the one before.
    #[cfg(test)]
    pub(crate) fn set_head(&self, number: u64) -> u64 {
        std::mem::replace(&mut self.server().data.number, number)
    }

    #[cfg(test)]
    pub(crate) fn forget_acknowledgements(&self) {
        self.server().data.acks.clear();
    }

    /// Returns each block that there is now so many times, whatever is written later, and takes no update any more, as a hostile
    /// engine may.
    #[cfg(test)]
    pub(crate) fn repeat_blocks(&self, times: usize) {
        let mut server = self.server();
        let blocks = fields(&server.data.blocks);
        server.repeated_blocks = vec![blocks; times].concat();
        server.rejects_appends = true;
    }

    /// Takes the rule out that another server process founds another epoch, or that a loss of all data does.
    #[cfg(test)]
    pub(crate) fn break_rules(&self, founds_by_run: bool, founds: bool) {
        let mut server = self.server();
        server.founds_by_run = founds_by_run;
        server.founds = founds;
    }
}

impl fmt::Debug for MemoryEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryEngine").finish_non_exhaustive()
    }
}

impl Engine for MemoryEngine {
    fn connect(&self) -> BoxFuture<'_, EngineResult<Arc<dyn Session>>> {
        Box::pin(async {
            let server = self.server();
            if !server.is_available {
                return Err(EngineError::new("unavailable"));
            }
            let session: Arc<dyn Session> = Arc::new(MemorySession {
                engine: self.clone(),
                connection: server.connections,
            });
            Ok(session)
        })
    }
}

struct MemorySession {
    engine: MemoryEngine,
    connection: u64,
}

impl MemorySession {
    fn server(&self) -> EngineResult<MutexGuard<'_, Server>> {
        let server = self.engine.server();
        if server.is_available && server.connections == self.connection {
            Ok(server)
        } else {
            Err(EngineError::new("the connection is closed"))
        }
    }

    fn now<T: Send + 'static>(
        &self,
        operate: impl FnOnce(&mut Server) -> EngineResult<T>,
    ) -> BoxFuture<'_, EngineResult<T>> {
        let result = self.server().and_then(|mut server| operate(&mut server));
        Box::pin(async { result })
    }

    fn entries(&self, after: u64) -> EngineResult<Vec<Read>> {
        let server = self.server()?;
        if server.withholds_log {
            return Ok(Vec::new());
        }
        let entries = server.data.log.iter().filter(|(id, ..)| *id > after);
        let read = entries.map(|(id, epoch, number, sealed)| Read {
            place: id.to_string(),
            epoch: *epoch,
            number: *number,
            sealed: sealed.clone(),
        });
        Ok(read.take(READ_COUNT).collect())
    }
}

fn fields(map: &BTreeMap<String, Vec<u8>>) -> Fields {
    map.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

impl Session for MemorySession {
    fn join(&self, new_epoch: Id) -> BoxFuture<'_, EngineResult<Head>> {
        self.now(|server| {
            server.found(new_epoch);
            server.head().ok_or_else(|| EngineError::new("no epoch"))
        })
    }

    fn read(&self, after: Place, wait: Duration) -> BoxFuture<'_, EngineResult<Vec<Read>>> {
        Box::pin(async move {
            let after = after.parse().unwrap_or(0);
            let deadline = tokio::time::Instant::now() + wait;
            loop {
                let appended = self.engine.0.appended.notified();
                let entries = self.entries(after)?;
                if !entries.is_empty() || wait.is_zero() {
                    return Ok(entries);
                }
                if tokio::time::timeout_at(deadline, appended).await.is_err() {
                    return self.entries(after);
                }
            }
        })
    }

    fn append(
        &self,
        new_epoch: Id,
        entries: Vec<Append>,
    ) -> BoxFuture<'_, EngineResult<Vec<Head>>> {
        let heads = self.now(|server| {
            server.found(new_epoch);
            if server.rejects_appends {
                return Err(EngineError::new("no update is taken"));
            }
            let append = |append: Append| {
                if let Some((field, sealed)) = append.block {
                    server.data.blocks.insert(field, sealed);
                }
                for field in append.unblock {
                    server.data.blocks.remove(&field);
                }
                server.append(append.sealed)
            };
            entries.into_iter().map(append).collect()
        });
        self.engine.0.appended.notify_waiters();
        heads
    }

    fn fetch(&self, name: String) -> BoxFuture<'_, EngineResult<Fetched>> {
        self.now(|server| {
            // As by the other scripts, so that a failover that a proxy hides is noticed.
            let is_other_server = server.founds_by_run && server.data.founded_by != server.run;
            let head = server.head().filter(|_| !is_other_server);
            Ok((server.data.values.get(&name).cloned(), head))
        })
    }

    fn store(&self, name: String, sealed: Vec<u8>, _: Duration) -> BoxFuture<'_, EngineResult<()>> {
        self.now(|server| {
            server.data.values.insert(name, sealed);
            Ok(())
        })
    }

    fn record(
        &self,
        new_epoch: Id,
        node: String,
        sealed: Vec<u8>,
        forget: Vec<String>,
    ) -> BoxFuture<'_, EngineResult<(Head, Fields, usize)>> {
        self.now(|server| {
            server.found(new_epoch);
            server.data.nodes.retain(|node, _| !forget.contains(node));
            server.data.nodes.insert(node, sealed);
            let head = server.head().ok_or_else(|| EngineError::new("no epoch"))?;
            Ok((head, fields(&server.data.nodes), server.data.blocks.len()))
        })
    }

    fn blocks(&self) -> BoxFuture<'_, EngineResult<Fields>> {
        self.now(|server| {
            if server.repeated_blocks.is_empty() {
                Ok(fields(&server.data.blocks))
            } else {
                Ok(server.repeated_blocks.clone())
            }
        })
    }

    fn restore(&self, new_epoch: Id, blocks: Vec<Append>) -> BoxFuture<'_, EngineResult<()>> {
        let restored = self.now(|server| {
            server.found(new_epoch);
            for append in blocks {
                if let Some((field, sealed)) = append.block
                    && server.data.blocks.insert(field, sealed).is_none()
                {
                    server.append(append.sealed)?;
                }
            }
            Ok(())
        });
        self.engine.0.appended.notify_waiters();
        restored
    }

    fn acknowledge(&self, node: String, acks: Fields) -> BoxFuture<'_, EngineResult<()>> {
        self.now(|server| {
            for (update, sealed) in acks {
                let acks = server.data.acks.entry(update).or_default();
                acks.insert(node.clone(), sealed);
            }
            Ok(())
        })
    }

    fn acknowledgements(&self, update: String) -> BoxFuture<'_, EngineResult<(Fields, Fields)>> {
        self.now(|server| {
            let acks = server.data.acks.get(&update).map(fields);
            Ok((acks.unwrap_or_default(), fields(&server.data.nodes)))
        })
    }
}
