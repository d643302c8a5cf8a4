//! An engine that speaks the Redis protocol: two connections, one for commands and one for reads that wait.
//!
//! Neither is a `ConnectionManager`: it keeps a socket on which a server has gone silent, or has become a replica. Here an error
//! ends the session, and the node connects again.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::streams::{StreamId, StreamReadOptions, StreamReadReply};
use redis::{
    AsyncCommands, AsyncConnectionConfig, Client, ConnectionInfo, FromRedisValue,
    IntoConnectionInfo, RedisError, Script, SetExpiry, SetOptions,
};
use tower_orgkey::ConfigError;
use tower_orgkey::fleet::BoxFuture;

#[cfg(feature = "sentinel")]
use super::sentinel::Sentinels;
use super::{
    ACKS_KEPT, Append, Engine, EngineError, EngineResult, Fetched, Fields, Place, READ_COUNT, Read,
    Session,
};
use crate::clock::millis;
use crate::log::Head;
use crate::wire::Id;

const CONNECT_DEADLINE: Duration = Duration::from_millis(500);
/// A server that is silent for this long is dialed again.
const RESPONSE_DEADLINE: Duration = Duration::from_secs(1);
/// The records of all nodes are kept this long after the last one was written. Nodes remove single ones earlier.
const NODES_KEPT: Duration = Duration::from_secs(86_400);

/// Founds an epoch, unless the server that runs the script founded the present one. `#!lua` declares that the script writes, so
/// that a replica rejects it.
const FOUND: &str = r"#!lua
local r = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local h = redis.call('HMGET', KEYS[1], 'e', 'r')
if not h[1] or h[2] ~= r then
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'e', ARGV[1], 'r', r, 's', 0)
end
";

const JOIN: &str = "return redis.call('HMGET', KEYS[1], 'e', 's')";

/// `KEYS` head log nodes blocks; `ARGV` epoch node record keep, and the nodes to forget.
const RECORD: &str = r"
for i = 5, #ARGV do redis.call('HDEL', KEYS[3], ARGV[i]) end
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
redis.call('PEXPIRE', KEYS[3], ARGV[4])
local h = redis.call('HMGET', KEYS[1], 'e', 's')
return {h[1], h[2], redis.call('HGETALL', KEYS[3]), redis.call('HLEN', KEYS[4])}
";

/// `KEYS` head log blocks; `ARGV` epoch keep entries only-new-blocks, and for each entry: payload, field of the block, block,
/// number of blocks to remove, and their fields.
const APPEND: &str = r"
local e = redis.call('HGET', KEYS[1], 'e')
local t = redis.call('TIME')
local min = string.format('%.0f-0', t[1] * 1000 + math.floor(t[2] / 1000) - tonumber(ARGV[2]))
local out = {}
local i = 5
for n = 1, tonumber(ARGV[3]) do
  local payload, field, block, ends = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
  i = i + 4
  local is_new = true
  if field ~= '' then
    local added = redis.call('HSET', KEYS[3], field, block) == 1
    is_new = added or ARGV[4] == '0'
  end
  for k = 1, ends do
    redis.call('HDEL', KEYS[3], ARGV[i])
    i = i + 1
  end
  if is_new then
    local s = redis.call('HINCRBY', KEYS[1], 's', 1)
    redis.call('XADD', KEYS[2], 'MINID', '~', min, '*', 'e', e, 's', s, 'p', payload)
    if s % 1000 == 0 then redis.call('XTRIM', KEYS[2], 'MAXLEN', '~', 100000) end
    out[#out + 1] = s
  end
end
return {e, out}
";

/// `KEYS` head value. The head is that of the server that runs the script, or none.
const FETCH: &str = r"#!lua
local r = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local v = redis.call('GET', KEYS[2])
local h = redis.call('HMGET', KEYS[1], 'e', 's', 'r')
if h[3] ~= r then return {v, false, false} end
return {v, h[1], h[2]}
";

/// A reply of `HGETALL`.
type Hash = Vec<(Vec<u8>, Vec<u8>)>;

struct Scripts {
    join: Script,
    record: Script,
    append: Script,
    fetch: Script,
}

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| {
    let founding = |then: &str| Script::new(&format!("{FOUND}{then}"));
    Scripts {
        join: founding(JOIN),
        record: founding(RECORD),
        append: founding(APPEND),
        fetch: Script::new(FETCH),
    }
});

/// The address of an engine, with its user and password.
#[derive(Clone)]
pub(crate) struct Address {
    server: ConnectionInfo,
    /// Whoever knows the host of the server, unless its URL does.
    #[cfg(feature = "sentinel")]
    sentinels: Option<Sentinels>,
}

fn parse(url: &str, field: &'static str) -> Result<ConnectionInfo, ConfigError> {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(1));
    let settings = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(keepalive);
    // The error may contain the password.
    let info = url
        .into_connection_info()
        .map_err(|_| ConfigError::new(field, "is not a URL of an engine"))?;
    Ok(info.set_tcp_settings(settings))
}

impl Address {
    pub(crate) fn parse(url: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            server: parse(url, "redis")?,
            #[cfg(feature = "sentinel")]
            sentinels: None,
        })
    }

    /// The host of the URL is the name of the primary.
    #[cfg(feature = "sentinel")]
    pub(crate) fn with_sentinels<'a>(
        url: &str,
        sentinels: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, ConfigError> {
        let server = parse(url, "redis")?;
        let sentinels = sentinels.into_iter().map(|url| parse(url, "sentinels"));
        let sentinels = Sentinels::new(sentinels.collect::<Result<_, _>>()?, &server)?;
        Ok(Self {
            server,
            sentinels: Some(sentinels),
        })
    }

    pub(crate) fn engine(&self, fleet: &str, issuer: &str) -> Result<RedisEngine, ConfigError> {
        // The client panics if two providers are built in and none is the default.
        #[cfg(feature = "rustls")]
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Another thread may have set one meanwhile.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let client = Client::open(self.server.clone())
            .map_err(|_| ConfigError::new("redis", "needs the feature `rustls` or `native-tls`"))?;
        // Nodes with another issuer have another log.
        let issuer = URL_SAFE_NO_PAD.encode(&digest(&SHA256, issuer.as_bytes()).as_ref()[..9]);
        Ok(RedisEngine {
            client,
            #[cfg(feature = "sentinel")]
            sentinels: self.sentinels.clone(),
            prefix: format!("orgkey:{{{fleet}}}:{issuer}:"),
        })
    }
}

pub(crate) struct RedisEngine {
    /// Of the server, unless sentinels know where it is.
    client: Client,
    #[cfg(feature = "sentinel")]
    sentinels: Option<Sentinels>,
    /// Of all keys. The braces put them into one slot.
    prefix: String,
}

impl fmt::Debug for RedisEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisEngine")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl From<RedisError> for EngineError {
    fn from(error: RedisError) -> Self {
        Self::new(error.to_string())
    }
}

impl RedisEngine {
    #[cfg(feature = "sentinel")]
    async fn client(&self) -> EngineResult<Client> {
        match &self.sentinels {
            Some(sentinels) => sentinels.primary().await,
            None => Ok(self.client.clone()),
        }
    }

    #[cfg(not(feature = "sentinel"))]
    #[allow(clippy::unused_async, reason = "as with sentinels")]
    async fn client(&self) -> EngineResult<Client> {
        Ok(self.client.clone())
    }
}

async fn dial(
    client: &Client,
    response: Duration,
) -> EngineResult<(MultiplexedConnection, String)> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_DEADLINE))
        .set_response_timeout(Some(response));
    let mut connection = client
        .get_multiplexed_async_connection_with_config(&config)
        .await?;
    let info: String = redis::cmd("INFO")
        .arg("server")
        .query_async(&mut connection)
        .await?;
    let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    let run_id = run_id.ok_or_else(|| EngineError::new("not a Redis server"))?;
    Ok((connection, run_id.to_owned()))
}

impl Engine for RedisEngine {
    fn connect(&self) -> BoxFuture<'_, EngineResult<Arc<dyn Session>>> {
        Box::pin(async {
            let client = self.client().await?;
            let (commands, server) = dial(&client, RESPONSE_DEADLINE).await?;
            let response = RESPONSE_DEADLINE + Duration::from_millis(500);
            let (reads, other) = dial(&client, response).await?;
            if server != other {
                return Err(EngineError::new("two connections reached two servers"));
            }
            let session: Arc<dyn Session> = Arc::new(RedisSession {
                commands,
                reads,
                prefix: self.prefix.clone(),
            });
            Ok(session)
        })
    }
}

struct RedisSession {
    commands: MultiplexedConnection,
    /// Only for reads of the log: one that waits holds up the connection.
    reads: MultiplexedConnection,
    prefix: String,
}

impl RedisSession {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn result(&self, name: &str) -> String {
        self.key(&format!("k:{name}"))
    }

    fn acks(&self, update: &str) -> String {
        self.key(&format!("ack:{update}"))
    }

    async fn append_with(
        &self,
        new_epoch: Id,
        entries: Vec<Append>,
        only_new_blocks: bool,
    ) -> EngineResult<Vec<Head>> {
        let Some(first) = entries.first() else {
            return Ok(Vec::new());
        };
        let mut script = SCRIPTS.append.prepare_invoke();
        script
            .key(self.key("head"))
            .key(self.key("log"))
            .key(self.key("blocks"))
            .arg(&new_epoch[..])
            .arg(millis(first.keep))
            .arg(entries.len())
            .arg(u8::from(only_new_blocks));
        for entry in entries {
            let (field, block) = entry.block.unwrap_or_default();
            script.arg(entry.sealed).arg(field).arg(block);
            script.arg(entry.unblock.len());
            for field in entry.unblock {
                script.arg(field);
            }
        }
        let (epoch, numbers): (Vec<u8>, Vec<u64>) =
            script.invoke_async(&mut self.commands.clone()).await?;
        let epoch = as_epoch(&epoch)?;
        Ok(numbers
            .into_iter()
            .map(|number| Head { epoch, number })
            .collect())
    }
}

fn keep_for(time: Duration) -> SetOptions {
    SetOptions::default().with_expiration(SetExpiry::PX(millis(time).max(1)))
}

fn as_epoch(bytes: &[u8]) -> EngineResult<Id> {
    let id = Id::try_from(bytes);
    id.map_err(|_| EngineError::new("the head is not readable"))
}

/// Returns the pairs of a hash. Fields that are not text are not ours.
fn pairs(flat: Vec<Vec<u8>>) -> Fields {
    let mut flat = flat.into_iter();
    let mut fields = Fields::new();
    while let (Some(field), Some(value)) = (flat.next(), flat.next()) {
        if let Ok(field) = String::from_utf8(field) {
            fields.push((field, value));
        }
    }
    fields
}

/// Returns an entry of the log. One that is not readable has the number 0, which never follows another.
fn as_read(entry: &StreamId) -> Read {
    let get = |field: &str| {
        let value = entry.map.get(field)?;
        Vec::<u8>::from_redis_value_ref(value).ok()
    };
    let number = get("s").and_then(|text| String::from_utf8(text).ok()?.parse().ok());
    Read {
        place: entry.id.clone(),
        epoch: get("e")
            .and_then(|epoch| Id::try_from(&epoch[..]).ok())
            .unwrap_or_default(),
        number: number.unwrap_or(0),
        sealed: get("p").unwrap_or_default(),
    }
}

impl Session for RedisSession {
    fn join(&self, new_epoch: Id) -> BoxFuture<'_, EngineResult<Head>> {
        Box::pin(async move {
            let mut script = SCRIPTS.join.key(self.key("head"));
            script.key(self.key("log")).arg(&new_epoch[..]);
            let (epoch, number): (Vec<u8>, u64) =
                script.invoke_async(&mut self.commands.clone()).await?;
            Ok(Head {
                epoch: as_epoch(&epoch)?,
                number,
            })
        })
    }

    fn read(&self, after: Place, wait: Duration) -> BoxFuture<'_, EngineResult<Vec<Read>>> {
        Box::pin(async move {
            let mut options = StreamReadOptions::default().count(READ_COUNT);
            if !wait.is_zero() {
                options = options.block(usize::try_from(wait.as_millis()).unwrap_or(usize::MAX));
            }
            let mut connection = self.reads.clone();
            let reply: Option<StreamReadReply> = connection
                .xread_options(&[self.key("log")], &[after], &options)
                .await?;
            let streams = reply.into_iter().flat_map(|reply| reply.keys);
            Ok(streams
                .flat_map(|stream| stream.ids)
                .map(|entry| as_read(&entry))
                .collect())
        })
    }

    fn append(
        &self,
        new_epoch: Id,
        entries: Vec<Append>,
    ) -> BoxFuture<'_, EngineResult<Vec<Head>>> {
        Box::pin(self.append_with(new_epoch, entries, false))
    }

    fn fetch(&self, name: String) -> BoxFuture<'_, EngineResult<Fetched>> {
        Box::pin(async move {
            let mut script = SCRIPTS.fetch.key(self.key("head"));
            script.key(self.result(&name));
            let (value, epoch, number): (Option<Vec<u8>>, Option<Vec<u8>>, Option<u64>) =
                script.invoke_async(&mut self.commands.clone()).await?;
            let head = match (epoch, number) {
                (Some(epoch), Some(number)) => Some(Head {
                    epoch: as_epoch(&epoch)?,
                    number,
                }),
                _ => None,
            };
            Ok((value, head))
        })
    }

    fn store(
        &self,
        name: String,
        sealed: Vec<u8>,
        keep: Duration,
    ) -> BoxFuture<'_, EngineResult<()>> {
        Box::pin(async move {
            let mut connection = self.commands.clone();
            let stored: () = connection
                .set_options(self.result(&name), sealed, keep_for(keep))
                .await?;
            Ok(stored)
        })
    }

    fn record(
        &self,
        new_epoch: Id,
        node: String,
        sealed: Vec<u8>,
        forget: Vec<String>,
    ) -> BoxFuture<'_, EngineResult<(Head, Fields, usize)>> {
        Box::pin(async move {
            let mut script = SCRIPTS.record.key(self.key("head"));
            script
                .key(self.key("log"))
                .key(self.key("nodes"))
                .key(self.key("blocks"))
                .arg(&new_epoch[..])
                .arg(node)
                .arg(sealed)
                .arg(millis(NODES_KEPT));
            for node in forget {
                script.arg(node);
            }
            let (epoch, number, nodes, blocks): (Vec<u8>, u64, Vec<Vec<u8>>, usize) =
                script.invoke_async(&mut self.commands.clone()).await?;
            let head = Head {
                epoch: as_epoch(&epoch)?,
                number,
            };
            Ok((head, pairs(nodes), blocks))
        })
    }

    fn blocks(&self) -> BoxFuture<'_, EngineResult<Fields>> {
        Box::pin(async move {
            let mut command = redis::cmd("HGETALL");
            command.arg(self.key("blocks"));
            let blocks: Hash = command.query_async(&mut self.commands.clone()).await?;
            Ok(pairs(blocks.into_iter().flat_map(<[_; 2]>::from).collect()))
        })
    }

    fn restore(&self, new_epoch: Id, blocks: Vec<Append>) -> BoxFuture<'_, EngineResult<()>> {
        Box::pin(async move {
            self.append_with(new_epoch, blocks, true).await?;
            Ok(())
        })
    }

    fn acknowledge(&self, node: String, acks: Fields) -> BoxFuture<'_, EngineResult<()>> {
        Box::pin(async move {
            let mut pipe = redis::pipe();
            for (update, sealed) in acks {
                let key = self.acks(&update);
                pipe.hset(&key, &node, sealed).ignore();
                let kept = i64::try_from(ACKS_KEPT.as_millis()).unwrap_or(i64::MAX);
                pipe.pexpire(&key, kept).ignore();
            }
            let written: () = pipe.query_async(&mut self.commands.clone()).await?;
            Ok(written)
        })
    }

    fn acknowledgements(&self, update: String) -> BoxFuture<'_, EngineResult<(Fields, Fields)>> {
        Box::pin(async move {
            let mut pipe = redis::pipe();
            pipe.cmd("HGETALL").arg(self.acks(&update));
            pipe.cmd("HGETALL").arg(self.key("nodes"));
            let (acks, nodes): (Hash, Hash) = pipe.query_async(&mut self.commands.clone()).await?;
            let fields = |hash: Hash| pairs(hash.into_iter().flat_map(<[_; 2]>::from).collect());
            Ok((fields(acks), fields(nodes)))
        })
    }
}
