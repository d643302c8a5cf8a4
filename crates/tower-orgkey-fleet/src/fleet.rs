//! The fleet and its builder.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use tower_orgkey::ConfigError;
use tower_orgkey::fleet::{FleetLink, JoinFleet, LayerInfo};

use crate::clock::WallClock;
use crate::engine::Engine;
#[cfg(any(test, feature = "test-util"))]
use crate::engine::memory::MemoryEngine;
use crate::link::{FETCH_DEADLINE, Link};
use crate::node::Node;
use crate::run;
use crate::seal::Sealer;
use crate::secret::FleetSecret;
use crate::status::{FleetState, FleetStatus};
use crate::wire::{Id, MAX_NODE_NAME_LEN};

/// The longest name of a fleet, in bytes.
const MAX_FLEET_NAME_LEN: usize = 64;

/// A fleet of nodes that share verification results and updates. Clones are the same node.
///
/// One layer joins it, by [`ApiKeyLayerBuilder::fleet`](tower_orgkey::auth::ApiKeyLayerBuilder::fleet). See the
/// [crate documentation](crate).
#[derive(Clone)]
pub struct Fleet(Arc<Inner>);

struct Inner {
    name: String,
    node_name: String,
    secrets: Vec<FleetSecret>,
    ids: [Id; 2],
    wall: WallClock,
    fetch_deadline: Duration,
    source: EngineSource,
    joined: OnceLock<Joined>,
    is_running: AtomicBool,
}

struct Joined {
    node: Arc<Node>,
    engine: Arc<dyn Engine>,
}

#[derive(Clone)]
enum EngineSource {
    /// Without a feature that has an engine, so that the type has a value. The builder never sets it.
    #[cfg(not(any(feature = "redis", test, feature = "test-util")))]
    Missing,
    #[cfg(feature = "redis")]
    Redis(Box<crate::engine::redis::Address>),
    #[cfg(any(test, feature = "test-util"))]
    Memory(MemoryEngine),
}

impl Fleet {
    /// Returns a builder for the fleet with this name: 1 to 64 letters, digits, `-`, `_` and `.`. All nodes have the same.
    pub fn builder(name: impl Into<String>) -> FleetBuilder {
        FleetBuilder {
            name: name.into(),
            node_name: None,
            secrets: Vec::new(),
            source: None,
            wall: WallClock(Arc::new(SystemTime::now)),
            fetch_deadline: FETCH_DEADLINE,
        }
    }

    /// Follows the engine: reads updates of other nodes, and sends those of this node. Spawn the future once.
    ///
    /// It never completes, unless no layer has joined the fleet or it is running already. While it is not running, and from 3 s
    /// after it is dropped, this node keeps the bounds of a single node.
    pub fn run(&self) -> impl Future<Output = ()> + Send + use<> {
        let inner = Arc::clone(&self.0);
        async move {
            let Some(joined) = inner.joined.get() else {
                crate::telemetry::no_layer();
                return;
            };
            if inner.is_running.swap(true, Ordering::AcqRel) {
                crate::telemetry::runs_twice();
                return;
            }
            let _running = Running(&inner);
            run::follow(&joined.node, &*joined.engine).await;
        }
    }

    /// Returns the state of this node.
    pub fn status(&self) -> FleetStatus {
        match self.0.joined.get() {
            Some(joined) => joined.node.status(),
            None => FleetStatus {
                state: FleetState::NotFollowed,
                since: Duration::ZERO,
                has_read_blocks: false,
                position: 0,
                lag: 0,
                nodes: vec![self.0.node_name.clone()],
                unsent: 0,
                clock_differs: false,
                gaps: 0,
                rejected: 0,
                fetched: 0,
                not_stored: 0,
            },
        }
    }

    /// Sends the updates that wait for the engine, and announces to the other nodes that this one ends, so that they do not wait for
    /// it. Call it after the last request and update were served.
    ///
    /// It waits for the engine, so bound it by a timeout. [`FleetStatus::unsent`] is then the number of updates that no other node will
    /// learn from this one: a block among them ends with the process.
    ///
    /// A node that ends without it is in [`Reach::missing`](tower_orgkey::Reach::missing) for the hard TTL and the lookup deadline, and
    /// that of blocks for 10 min at least. Each update takes 2 s meanwhile.
    pub async fn leave(&self) {
        if let Some(joined) = self.0.joined.get()
            && let Err(error) = joined.node.leave(&*joined.engine).await
        {
            crate::telemetry::not_left(&error);
        }
    }
}

/// Ends a run when its future is dropped.
struct Running<'a>(&'a Inner);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(joined) = self.0.joined.get() {
            joined.node.lost(&crate::engine::EngineError::new(
                "the task of the fleet ended",
            ));
        }
        self.0.is_running.store(false, Ordering::Release);
    }
}

impl JoinFleet for Fleet {
    fn join(&self, layer: LayerInfo) -> Result<Arc<dyn FleetLink>, ConfigError> {
        let inner = &self.0;
        let crypto = |_| ConfigError::new("fleet", "the crypto library failed");
        let sealer = Sealer::new(&inner.secrets, &inner.name, &layer.issuer).map_err(crypto)?;
        let engine: Arc<dyn Engine> = match &inner.source {
            #[cfg(not(any(feature = "redis", test, feature = "test-util")))]
            EngineSource::Missing => return Err(ConfigError::new("fleet", "has no engine")),
            #[cfg(feature = "redis")]
            EngineSource::Redis(address) => Arc::new(address.engine(&inner.name, &layer.issuer)?),
            #[cfg(any(test, feature = "test-util"))]
            EngineSource::Memory(engine) => Arc::new(engine.clone()),
        };
        let node = Arc::new(Node::new(
            inner.node_name.clone(),
            inner.ids,
            sealer,
            layer,
            inner.wall.clone(),
        ));
        let joined = Joined {
            node: Arc::clone(&node),
            engine,
        };
        inner
            .joined
            .set(joined)
            .map_err(|_| ConfigError::new("fleet", "another layer has joined this `Fleet`"))?;
        Ok(Arc::new(Link::new(node, inner.fetch_deadline)))
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet")
            .field("name", &self.0.name)
            .field("node", &self.0.node_name)
            .finish_non_exhaustive()
    }
}

/// Configures and builds a [`Fleet`].
///
/// ```
/// use tower_orgkey_fleet::{Fleet, FleetSecret};
///
/// # let text = "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=";
/// let fleet = Fleet::builder("acme-api")
///     .secret(FleetSecret::from_base64(text)?)
///     .redis("redis://orgkey:password@redis.internal:6379")
///     .node_name("api-1")
///     .build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct FleetBuilder {
    name: String,
    node_name: Option<String>,
    secrets: Vec<FleetSecret>,
    source: Option<Result<EngineSource, ConfigError>>,
    wall: WallClock,
    fetch_deadline: Duration,
}

impl FleetBuilder {
    /// Sets the secret that all nodes share. Required. A second call adds a secret that is accepted and not used: see
    /// [rotation](crate#rotation-of-the-secret).
    pub fn secret(mut self, secret: FleetSecret) -> Self {
        self.secrets.push(secret);
        self
    }

    /// Sets the engine: `redis://user:password@host:port`, `rediss://…` for TLS (feature `rustls` or `native-tls`), or
    /// `redis+unix:///path`. Redis 7 or 8, or Valkey; not a cluster.
    #[cfg(feature = "redis")]
    pub fn redis(mut self, url: &str) -> Self {
        self.source = Some(
            crate::engine::redis::Address::parse(url)
                .map(Box::new)
                .map(EngineSource::Redis),
        );
        self
    }

    /// Sets an engine with replicas, whose primary is known to sentinels. The host of `url` is the name that they have for it; its
    /// user, password, database and scheme are those of the servers. A port in it is not used. The sentinels have URLs as well,
    /// `redis://user:password@host:26379`.
    ///
    /// Whenever the node connects, it asks the sentinels for the primary, and sends the user and password to the server that they
    /// name: use `rediss://` for the sentinels too, unless their network is trusted. With `rediss://`, the certificates of the
    /// servers must be for what the sentinels return: addresses, unless `sentinel announce-hostnames yes` is set.
    ///
    /// ```
    /// # use tower_orgkey_fleet::{Fleet, FleetSecret};
    /// # let secret = FleetSecret::from_base64("q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=")?;
    /// let fleet = Fleet::builder("acme-api")
    ///     .secret(secret)
    ///     .redis_with_sentinels(
    ///         "redis://orgkey:password@mymaster",
    ///         ["redis://10.0.0.1:26379", "redis://10.0.0.2:26379", "redis://10.0.0.3:26379"],
    ///     )
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "sentinel")]
    pub fn redis_with_sentinels<'a>(
        mut self,
        url: &str,
        sentinels: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        self.source = Some(
            crate::engine::redis::Address::with_sentinels(url, sentinels)
                .map(Box::new)
                .map(EngineSource::Redis),
        );
        self
    }

    /// Sets an engine in memory, for tests.
    #[cfg(any(test, feature = "test-util"))]
    #[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
    pub fn memory(mut self, engine: &MemoryEngine) -> Self {
        self.source = Some(Ok(EngineSource::Memory(engine.clone())));
        self
    }

    /// Sets the name of this node in [`Reach`](tower_orgkey::Reach) and [`FleetStatus`]: 1 to 64 visible ASCII characters.
    /// Random unless set.
    pub fn node_name(mut self, name: impl Into<String>) -> Self {
        self.node_name = Some(name.into());
        self
    }

    /// Sets a function that returns the wall clock's time, for tests.
    #[cfg(any(test, feature = "test-util"))]
    #[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
    pub fn wall_clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.wall = WallClock(Arc::new(now));
        self
    }

    /// Sets the longest time that a lookup waits for the engine, instead of 20 ms, for tests on a busy machine.
    #[cfg(any(test, feature = "test-util"))]
    #[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
    pub fn fetch_deadline(mut self, deadline: Duration) -> Self {
        self.fetch_deadline = deadline;
        self
    }

    /// Builds the fleet. Connects to nothing, and needs no runtime.
    ///
    /// # Errors
    ///
    /// Names the invalid setting: `name`, `secret` if there is none, `redis` if there is none or it is not a URL of an engine,
    /// `sentinels`, `node_name`.
    pub fn build(self) -> Result<Fleet, ConfigError> {
        let is_name_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if !(1..=MAX_FLEET_NAME_LEN).contains(&self.name.len())
            || !self.name.bytes().all(is_name_byte)
        {
            return Err(ConfigError::new(
                "name",
                "must be 1 to 64 letters, digits, `-`, `_` and `.`",
            ));
        }
        if self.secrets.is_empty() {
            return Err(ConfigError::new("secret", "is required"));
        }
        let Some(source) = self.source else {
            return Err(ConfigError::new("redis", "an engine is required"));
        };
        let mut ids = [[0; 16]; 2];
        for id in &mut ids {
            getrandom::fill(id).map_err(|_| {
                ConfigError::new("build", "the operating system has no random numbers")
            })?;
        }
        let node_name = self
            .node_name
            .unwrap_or_else(|| crate::node::hex(ids[0])[..8].to_owned());
        if !(1..=MAX_NODE_NAME_LEN).contains(&node_name.len())
            || !node_name.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(ConfigError::new(
                "node_name",
                "must be 1 to 64 visible ASCII characters",
            ));
        }
        Ok(Fleet(Arc::new(Inner {
            name: self.name,
            node_name,
            secrets: self.secrets,
            ids,
            wall: self.wall,
            fetch_deadline: self.fetch_deadline,
            source: source?,
            joined: OnceLock::new(),
            is_running: AtomicBool::new(false),
        })))
    }
}

impl fmt::Debug for FleetBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetBuilder")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
