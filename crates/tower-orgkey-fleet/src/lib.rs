//! Several nodes of [`tower-orgkey`](tower_orgkey) behind one load balancer.
//!
//! Without a fleet, each node has its own cache: it calls the issuer for each key, and a key that is invalidated on one node is
//! accepted by the others for up to two soft TTLs. In a fleet, nodes share verification results, and an update (a block or an
//! invalidation) on one node is applied by all: [`Spread`](tower_orgkey::Spread) says by which.
//!
//! ```no_run
//! use tower_orgkey::{ApiKeyLayer, KeyId};
//! use tower_orgkey_fleet::{Fleet, FleetSecret};
//! # use tower_orgkey::{Verification, verifier_fn};
//! # async fn start(text: String) -> Result<(), Box<dyn std::error::Error>> {
//! # let kinde = verifier_fn(|_| async { Ok(Verification::invalid()) });
//!
//! let fleet = Fleet::builder("acme-api")
//!     .secret(FleetSecret::from_base64(&text)?)
//!     .redis("redis://orgkey:password@redis.internal:6379")
//!     .build()?;
//! let auth = ApiKeyLayer::builder(kinde).fleet(&fleet).build()?;
//! tokio::spawn(fleet.run());
//!
//! // After the key was deleted at the issuer:
//! let reach = auth.handle().spread().invalidate_key_id(&KeyId::new("api_key_0001")?).await?;
//! assert!(reach.is_complete(), "not yet applied by {:?}", reach.missing);
//! # Ok(()) }
//! ```
//!
//! # The engine is trusted with nothing
//!
//! What the engine stores is sealed with AES-256-GCM-SIV under a key that only the nodes have, and bound to the fleet, the
//! issuer and its place. It carries its own age and the updates that its node had applied. An engine, or whoever controls it,
//! can withhold values, and cannot make any up. No request fails because of the engine, and a hit never uses it.
//!
//! # States and bounds
//!
//! [`Fleet::status`] returns the state.
//!
//! | state | a revoked key is accepted until |
//! |---|---|
//! | followed, and revoked through [`Spread`](tower_orgkey::Spread) | the future completes, on each node that is not in `missing` |
//! | followed, and revoked through another method of [`ApiKeyHandle`](tower_orgkey::ApiKeyHandle) | the log reaches the other nodes: usually some milliseconds later |
//! | followed, and deleted at the issuer only | twice the soft TTL and one verification, on the whole fleet |
//! | not followed: the engine is down, hangs, or is cut off | twice the soft TTL and one verification, as on a single node |
//! | the engine withholds or delays updates | twice the soft TTL, one verification and 2 s (the difference of clocks that is allowed for) |
//! | neither the engine nor the issuer answers | the hard TTL |
//!
//! An update that was acknowledged is not undone by anything that happens to the engine. After a loss of data, a failover or a
//! restart, the engine's log begins again: each node verifies its cached keys again within 10 s and serves them meanwhile,
//! sends its recent invalidations again, and writes all blocks that it holds, whoever made them. Each node also compares its
//! blocks with those of the engine once a minute, and within a second of a gap in the log. If all nodes and the engine lose their
//! memory at once, blocks are lost: delete at the issuer what must stay out.
//!
//! # Known limits
//!
//! * The clock of a node that is alone is not compared with any other. If it is ahead while results are stored and is set right
//!   later, those results look younger than they are by the difference, up to the hard TTL.
//! * A node whose clock is behind by more than the hard TTL is known to the others from its second record on, one second later.
//!   A [`Spread`](tower_orgkey::Spread) before that does not wait for it, unless
//!   [`expected_nodes`](tower_orgkey::Spread::expected_nodes) is set.
//! * A node that starts accepts keys that are blocked until it has read the blocks of the fleet: some milliseconds after
//!   [`Fleet::run`] was spawned, and as long as the engine cannot be reached. Let a readiness probe fail while
//!   [`FleetStatus::has_read_blocks`] is `false`, for a bounded time: a node also works without the engine.
//! * An unblock before the first connection to the engine ends no block of the fleet: it returns
//!   [`NotSpread`](tower_orgkey::NotSpread), and the block is in force again once the node has read the blocks. Unblock again.
//! * A node remembers 100,000 applied updates and 10,000 ended blocks. An engine that repeats an older update makes nodes verify
//!   its keys again, or all keys if it is about all.
//! * A subject has at most 256 blocks at a time.
//! * For 2 s after an invalidation, its keys are verified by each node: results of others may be from before it.
//! * A node that finds a key invalid which it had not cached as valid does not send that to the others, because anybody can
//!   present such keys. They keep the bounds of a single node. This node uses no older result of the key, unless it was presented
//!   with more other invalid keys since than a tenth of its capacity.
//! * Blocks and unblocks that wait for the engine are not limited in number. A node whose `run` is not spawned keeps them all.
//! * Updates carry no time. A node that joins does not use results from before it, if the log of the last minutes has an
//!   invalidation that applies to them.
//! * A clock that is up to 15 s ahead is not noticed, and of three nodes, one with a wrong clock may stop the others from sharing.
//! * After 256 blocks of a subject, an unblock ends those 256 only.
//! * A lookup of an unknown key asks the engine before it is admitted to the issuer, at most 2,000 times a second and node.
//! * An update waits for each node that was seen in the last 15 min (the hard TTL and the lookup deadline), so one that ended without
//!   [`Fleet::leave`] is in [`Reach::missing`](tower_orgkey::Reach::missing) for that long, and each update takes 2 s. A node that
//!   is cut off for longer is noticed only by [`expected_nodes`](tower_orgkey::Spread::expected_nodes), and accepts the blocked
//!   keys meanwhile.
//! * A node that returns writes all blocks that it holds. If a block was lifted meanwhile, no node that knows so is left, and the
//!   log of that time was trimmed, then the block is in force again on the whole fleet. The log of the node that returns says
//!   `fleet blocks restored`, and how many: lift them again.
//! * An engine that hides a node from the start hides it from [`Reach`](tower_orgkey::Reach), too: set
//!   [`expected_nodes`](tower_orgkey::Spread::expected_nodes) where this matters.
//! * An engine that loses its data often makes each node verify its cached keys again, at most once per soft TTL.
//! * A primary that is cut off from its sentinels, and not from its nodes, is followed until the nodes connect again, and
//!   then still if the first sentinel that answers is cut off too. Nodes on both sides are missing for the other: see
//!   [`Reach::missing`](tower_orgkey::Reach::missing).
//! * Nodes that verify one key at the same time all call the issuer: nobody waits for the call of another node.
//!
//! # The engine
//!
//! Redis 7 or 8, or Valkey. `apt-get install redis-server` or `valkey-server`. No data has to survive a restart. Set:
//!
//! * `maxmemory-policy volatile-lru`: results have a time to live and may be evicted, the log and the blocks may not. Other
//!   policies are safe, and cost verifications.
//! * With replicas: `min-replicas-to-write 1` and `min-replicas-max-lag 2`, so that a failover loses few updates. Sentinels
//!   promote a replica when the primary dies: feature `sentinel`, `FleetBuilder::redis_with_sentinels`. A user of the sentinels
//!   needs `-@all +@connection +role +sentinel|masters`.
//! * An ACL: a user with the rules [`ACL_RULES`], for the name of your fleet.
//! * TLS (`rediss://`, feature `rustls` or `native-tls`) or a Unix socket. Contents are sealed in any case; names of fleets,
//!   numbers of keys and times are not. The roots are those of the platform; the variable `SSL_CERT_FILE` names the
//!   certificate of a private authority.
//!
//! After a restore from a backup, the engine has another run id, so its old log is discarded. Results of the old epoch are not
//! used. Blocks of the backup that were lifted since are in force again on nodes that start later: lift them again.
//!
//! # Clocks
//!
//! The age of a result counts by the wall clocks of two nodes, which may differ by 2 s. A node whose clock is further from the
//! median of the others stops sharing results, and says so in [`FleetStatus::clock_differs`] and the log. Updates are not affected.
//!
//! # Rotation of the secret
//!
//! Deploy the secrets `[old, new]` to all nodes, then `[new, old]`, then `[new]`. The first one seals and the others are accepted.
//! Results are shared only between nodes with the same first secret. Meanwhile, an invalidation of one secret key invalidates
//! everything on nodes with another first secret, and a block of one secret key is not applied there: use its key id.
//! Blocks of secret keys end with the rotation. Other blocks are sealed again by the nodes that hold them: wait for a minute after
//! the last node has `[new, old]` before you deploy `[new]`.
//!
//! # The issuer's budget
//!
//! [`max_calls_per_second`](tower_orgkey::auth::ApiKeyLayerBuilder::max_calls_per_second) is the budget of the fleet: each node has
//! an equal share. Without the engine, each keeps its last share.
// Parts that only the engine in Redis uses, and, without any engine, most of the crate.
#![cfg_attr(not(feature = "redis"), allow(dead_code))]
#![cfg_attr(
    not(any(feature = "redis", feature = "test-util", test)),
    allow(unreachable_code, unused_imports, unused_variables)
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod apply;
mod block_sync;
mod blocks;
mod breaker;
mod clock;
mod engine;
mod fleet;
#[cfg(any(test, feature = "__fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod link;
mod log;
#[cfg(test)]
mod model;
mod node;
mod outbox;
#[cfg(test)]
mod peers;
mod recent;
mod run;
mod seal;
mod secret;
mod status;
mod stop;
pub mod telemetry;
mod wire;

#[cfg(any(test, feature = "test-util"))]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
pub use self::engine::memory::MemoryEngine;
pub use self::fleet::{Fleet, FleetBuilder};

/// The ACL rules of the engine's user, for a fleet with the name `acme-api`. Commands of scripts are checked, too.
///
/// ```text
/// ACL SETUSER orgkey on >password …
/// ```
pub const ACL_RULES: &str = "resetchannels ~orgkey:{acme-api}:* -@all +@connection +eval +evalsha \
    +script|load +info +xread +get +set +del +hget +hset +hmget +hincrby +hdel +hgetall +hlen \
    +xadd +xtrim +time +pexpire +role";
pub use self::secret::{FleetSecret, InvalidFleetSecret};
pub use self::status::{FleetState, FleetStatus};
