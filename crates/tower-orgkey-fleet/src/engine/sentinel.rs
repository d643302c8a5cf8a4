//! Sentinels, which know the primary of an engine with replicas.

use std::time::Duration;

use redis::sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType};
use redis::{Client, ConnectionAddr, ConnectionInfo, TlsMode};
use tokio::time::timeout;
use tower_orgkey::ConfigError;

use super::{EngineError, EngineResult};

/// Longer than the client waits for the first sentinels if they are silent, at whichever step.
const DEADLINE: Duration = Duration::from_secs(5);

/// The sentinels of a primary.
#[derive(Clone)]
pub(crate) struct Sentinels {
    addresses: Vec<ConnectionInfo>,
    primary: String,
    server: SentinelNodeConnectionInfo,
}

impl Sentinels {
    /// `server` is how to connect to the primary; its host is the name that the sentinels have for it.
    pub(crate) fn new(
        addresses: Vec<ConnectionInfo>,
        server: &ConnectionInfo,
    ) -> Result<Self, ConfigError> {
        let (primary, tls) = match server.addr() {
            ConnectionAddr::Tcp(host, _) => (host, None),
            ConnectionAddr::TcpTls { host, insecure, .. } if *insecure => {
                (host, Some(TlsMode::Insecure))
            }
            ConnectionAddr::TcpTls { host, .. } => (host, Some(TlsMode::Secure)),
            _ => {
                return Err(ConfigError::new(
                    "redis",
                    "must have the name of the primary as its host",
                ));
            }
        };
        let settings = SentinelNodeConnectionInfo::default()
            .set_redis_connection_info(server.redis_settings().clone())
            .set_tcp_settings(server.tcp_settings().clone());
        let sentinels = Self {
            addresses,
            primary: primary.clone(),
            server: match tls {
                Some(mode) => settings.set_tls_mode(mode),
                None => settings,
            },
        };
        sentinels
            .client()
            .map_err(|_| ConfigError::new("sentinels", "must be at least one URL of a sentinel"))?;
        Ok(sentinels)
    }

    fn client(&self) -> redis::RedisResult<SentinelClient> {
        SentinelClient::build(
            self.addresses.clone(),
            self.primary.clone(),
            Some(self.server.clone()),
            SentinelServerType::Master,
        )
    }

    /// Asks the sentinels for the primary. The answer is not kept, because it is needed after an error only.
    pub(crate) async fn primary(&self) -> EngineResult<Client> {
        let mut client = self.client()?;
        let primary = timeout(DEADLINE, client.async_get_client()).await;
        Ok(primary.map_err(|_| EngineError::new("no sentinel answered in time"))??)
    }
}
