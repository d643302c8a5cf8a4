//! Engines for scenarios that run in memory, on the paused clock, and with a real server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower_orgkey_fleet::{FleetBuilder, MemoryEngine};

use crate::redis_server::RedisServer;
use crate::support::until;

/// An engine that nodes follow.
pub(crate) trait Engine {
    /// Sets it as the engine of a fleet.
    fn set(&self, fleet: FleetBuilder) -> FleetBuilder;
}

/// Sets the server at this URL. A fetch may take longer than by default, because a busy machine may take longer to run a task.
pub(crate) fn at(url: String) -> impl FnOnce(FleetBuilder) -> FleetBuilder {
    move |fleet| fleet.redis(&url).fetch_deadline(Duration::from_secs(1))
}

impl Engine for RedisServer {
    fn set(&self, fleet: FleetBuilder) -> FleetBuilder {
        at(self.url())(fleet)
    }
}

/// What a hostile engine may do.
pub(crate) trait Hostile: Engine {
    /// Returns the number of stored results.
    fn results(&self) -> usize;

    /// Exchanges the two results that are stored.
    fn swap_results(&self);

    /// Changes a byte of each result.
    fn change_results(&self);

    /// Appends the oldest updates of the log again.
    fn repeat_updates(&self, updates: usize);

    /// Hides the log from all nodes, or ends that. No read that began before is under way afterwards.
    async fn withhold_log(&self, withholds: bool);
}

impl Engine for MemoryEngine {
    fn set(&self, fleet: FleetBuilder) -> FleetBuilder {
        fleet.memory(self)
    }
}

impl Hostile for MemoryEngine {
    fn results(&self) -> usize {
        self.results()
    }

    fn swap_results(&self) {
        assert_eq!(self.swap_results(), 2);
    }

    fn change_results(&self) {
        let change = |sealed: &mut Vec<u8>| *sealed.last_mut().unwrap() ^= 1;
        assert_ne!(self.tamper(change), 0);
    }

    fn repeat_updates(&self, updates: usize) {
        assert_eq!(self.replay_log(updates), updates);
    }

    async fn withhold_log(&self, withholds: bool) {
        self.withhold_log(withholds);
    }
}

/// Returns the name of a key of the fleet.
pub(crate) fn key_of(server: &RedisServer, name: &str) -> String {
    let keys = server.keys(&format!("*:{name}"));
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys[0].clone()
}

/// A server, and a proxy before it that is able to hide the log.
pub(crate) struct HostileServer {
    server: RedisServer,
    address: SocketAddr,
    line: Arc<Line>,
}

#[derive(Default)]
struct Line {
    hides_log: AtomicBool,
    /// For each connection that reads the log, whether its last read was of the log.
    readers: Mutex<Vec<Arc<AtomicBool>>>,
}

impl HostileServer {
    pub(crate) async fn start() -> Self {
        let server = RedisServer::start();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to, line) = (server.port, Arc::<Line>::default());
        let carried = Arc::clone(&line);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(carry(client, to, Arc::clone(&carried)));
            }
        });
        Self {
            server,
            address,
            line,
        }
    }
}

/// Carries a connection. While the log is hidden, reads of it become reads of a stream that does not exist.
async fn carry(mut client: TcpStream, server: u16, line: Arc<Line>) {
    let mut server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let replies = tokio::io::copy(&mut from_server, &mut to_client);
    let commands = async {
        let mut reader = None;
        let mut buffer = [0; 4_096];
        while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
            // Nothing else is sent on a connection that reads the log, so a command is one piece.
            let command = &mut buffer[..read];
            if command.windows(5).any(|word| word == b"XREAD") {
                let hides = line.hides_log.load(Ordering::SeqCst);
                let at = command.windows(6).position(|end| end == b":log\r\n");
                if let (true, Some(at)) = (hides, at) {
                    command[at..at + 4].copy_from_slice(b":nil");
                }
                let reads_log = reader.get_or_insert_with(|| {
                    let reads_log = Arc::<AtomicBool>::default();
                    line.readers.lock().unwrap().push(Arc::clone(&reads_log));
                    reads_log
                });
                reads_log.store(!hides, Ordering::SeqCst);
            }
            if to_server.write_all(command).await.is_err() {
                return;
            }
        }
    };
    // The end of either ends both.
    tokio::select! {
        _ = replies => {}
        () = commands => {}
    }
}

impl Engine for HostileServer {
    fn set(&self, fleet: FleetBuilder) -> FleetBuilder {
        at(format!("redis://{}", self.address))(fleet)
    }
}

impl Hostile for HostileServer {
    fn results(&self) -> usize {
        self.server.keys("*:k:*").len()
    }

    fn swap_results(&self) {
        let keys = self.server.keys("*:k:*");
        let [a, b] = &keys[..] else {
            panic!("{keys:?}");
        };
        for (from, to) in [(a.as_str(), "swapped"), (b, a), ("swapped", b)] {
            assert_eq!(self.server.command(&["COPY", from, to, "REPLACE"]), "1");
        }
    }

    fn change_results(&self) {
        let keys = self.server.keys("*:k:*");
        assert!(!keys.is_empty());
        for key in keys {
            self.server.command(&["SETRANGE", &key, "40", "changed"]);
        }
    }

    fn repeat_updates(&self, updates: usize) {
        let repeat = "local all = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', ARGV[1]) \
            for _, entry in ipairs(all) do \
                local s = redis.call('HINCRBY', KEYS[1], 's', 1) \
                redis.call('XADD', KEYS[2], '*', 'e', entry[2][2], 's', s, 'p', entry[2][6]) \
            end \
            return #all";
        let [head, log] = ["head", "log"].map(|name| key_of(&self.server, name));
        let updates = updates.to_string();
        let command = ["EVAL", repeat, "2", &head, &log, &updates];
        assert_eq!(self.server.command(&command), updates);
    }

    async fn withhold_log(&self, withholds: bool) {
        self.line.hides_log.store(withholds, Ordering::SeqCst);
        until("all nodes read again", || {
            let readers = self.line.readers.lock().unwrap();
            !readers.is_empty()
                && readers
                    .iter()
                    .all(|reads_log| reads_log.load(Ordering::SeqCst) != withholds)
        })
        .await;
    }
}
