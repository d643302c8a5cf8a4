//! A gateway that runs.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tower_orgkey::ApiKeyHandle;
use tower_orgkey_audit::{AuditLayer, AuditTrail, JsonLines};
use tower_orgkey_fleet::Fleet;

use super::admin::Admin;
use super::checks::Checks;
use super::config::{Address, Config};
use super::decision::Decisions;
use super::identity::Identities;
use super::readiness::{Readiness, become_ready};
use super::recorder;
use super::serve::{Bounds, Listener, serve};
use super::setup::Setup;
use super::waiting::Waiting;

/// How long a shutdown may take in all, less what the process needs to end.
const SHUTDOWN: Duration = Duration::from_millis(9_500);

/// The part of it that is kept for the audit trail.
const FLUSH: Duration = Duration::from_secs(2);

/// How often histograms take in their samples at least, and how late a minute of the status page may begin.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long a revocation may take to reach the other nodes of a fleet.
const REVOCATION: Duration = Duration::from_secs(2);
/// How long the engine of a fleet may take to accept the updates that wait, and that this node ends.
const LEAVE: Duration = Duration::from_millis(500);

/// Why a gateway does not start, or not reload. Holds no secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration has errors that show when its parts are built.
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    /// An address cannot be listened at.
    #[error("cannot listen at {0}: {1}")]
    Listen(Address, #[source] io::Error),
    /// The audit file cannot be opened.
    #[error("cannot open the audit file: {0}")]
    Audit(#[source] io::Error),
    /// These tables differ from those of the running gateway, and only a restart changes them.
    #[error("{} changed: restart the gateway to apply it", .0.join(", "))]
    NeedsRestart(Vec<&'static str>),
}

/// A gateway that listens, and serves when it [runs](Self::run).
///
/// ```no_run
/// use orgkey::gateway::{Config, Gateway};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let config = Config::parse(&std::fs::read_to_string("gateway.toml")?).map_err(|problems| problems[0].to_string())?;
/// let gateway = Gateway::start(config).await?;
/// println!("proxies send their check requests to {}", gateway.checks_address());
/// gateway.run(std::future::pending()).await;
/// # Ok(()) }
/// ```
pub struct Gateway {
    handle: GatewayHandle,
    checks: Listener,
    checks_address: Address,
    admin: Option<(Listener, Admin)>,
    admin_address: Option<Address>,
    trail: Option<AuditTrail>,
    fleet: Option<Fleet>,
    revocations: TaskTracker,
    readiness: watch::Sender<Readiness>,
    metrics: PrometheusHandle,
    bounds: Bounds,
}

/// Changes a running gateway.
#[derive(Clone)]
pub struct GatewayHandle {
    checks: Arc<Checks>,
    config: Arc<Config>,
    readiness: watch::Receiver<Readiness>,
}

impl GatewayHandle {
    /// Waits until `/readyz` is 200: with a fleet, until its blocks were read, or 10 s after [`Gateway::run`] began.
    ///
    /// ```no_run
    /// # async fn announce(handle: orgkey::gateway::GatewayHandle) {
    /// handle.until_ready().await;
    /// println!("ready");
    /// # }
    /// ```
    pub async fn until_ready(&self) {
        let mut readiness = self.readiness.clone();
        let became_ready = readiness.wait_for(|readiness| *readiness == Readiness::Ready);
        if became_ready.await.is_err() {
            // The gateway has ended.
            std::future::pending::<()>().await;
        }
    }

    /// Applies the routes, limits and homes of a configuration. Entries, blocks and what limits have counted stay.
    ///
    /// # Errors
    ///
    /// [`Error::NeedsRestart`] if another table differs from that at the start, and [`Error::Config`] if the file of homes has
    /// an error. Nothing is applied then.
    pub fn reload(&self, config: &Config) -> Result<(), Error> {
        let differences = self.config.fixed_differences(config);
        if !differences.is_empty() {
            return Err(Error::NeedsRestart(differences));
        }
        let reloaded = self.checks.decisions().reload(config);
        reloaded.map_err(|error| Error::Config(vec![error]))
    }

    /// Returns the handle of the layer.
    pub fn keys(&self) -> ApiKeyHandle {
        self.checks.decisions().keys()
    }
}

impl Gateway {
    /// Reads the secrets of a configuration, and listens. Does not call the issuer.
    ///
    /// Installs the recorder of metrics of this process, unless another one is installed.
    pub async fn start(config: Config) -> Result<Self, Error> {
        Self::start_with(config, Bounds::default()).await
    }

    /// Like [`start`](Self::start), with other bounds for both listeners.
    pub async fn start_with(config: Config, bounds: Bounds) -> Result<Self, Error> {
        let setup = Setup::new(&config).map_err(Error::Config)?;
        let trail = match config.audit.as_ref().and_then(|audit| audit.file.as_ref()) {
            None => None,
            Some(path) => {
                let sink = JsonLines::append(path).map_err(Error::Audit)?;
                let trail = AuditTrail::builder()
                    .sink(sink)
                    .service("orgkey gateway")
                    .start();
                Some(trail.map_err(|error| Error::Config(vec![error.to_string()]))?)
            }
        };
        let audit = trail.as_ref().map(AuditLayer::new);
        let audit = match (audit, setup.pseudonyms) {
            (Some(audit), Some(key)) => Some(audit.pseudonymize(key)),
            (audit, _) => audit,
        };
        let identities = Identities::new(setup.signer);
        let waiting = Waiting::at_most(bounds.connections.div_ceil(2));
        let decisions = Decisions::new(
            &config,
            setup.layer,
            setup.regions,
            identities,
            audit,
            waiting,
        );
        let checks = Arc::new(Checks::new(&config, decisions));
        let (listener, checks_address) = bind(&config.listen.checks).await?;
        let (readiness, is_ready) = watch::channel(match &setup.fleet {
            Some(_) => Readiness::Starting,
            None => Readiness::Ready,
        });
        let metrics = recorder::installed();
        let revocations = TaskTracker::new();
        let (admin, admin_address) = match &config.listen.admin {
            None => (None, None),
            Some(address) => {
                let (listener, address) = bind(address).await?;
                let expected = config.fleet.as_ref().and_then(|fleet| fleet.expected_nodes);
                let admin = Admin {
                    token: setup.admin_token,
                    checks: Arc::clone(&checks),
                    trail: trail.clone(),
                    fleet: setup.fleet.clone(),
                    expected_nodes: expected.map_or(0, NonZeroUsize::get),
                    revocations: revocations.clone(),
                    readiness: is_ready.clone(),
                    metrics: metrics.clone(),
                    timeout: bounds.body,
                };
                (Some((listener, admin)), Some(address))
            }
        };
        Ok(Self {
            handle: GatewayHandle {
                checks,
                config: Arc::new(config),
                readiness: is_ready,
            },
            checks: listener,
            checks_address,
            admin,
            admin_address,
            trail,
            fleet: setup.fleet,
            revocations,
            readiness,
            metrics,
            bounds,
        })
    }

    /// Returns where proxies send their check requests, with the port that the operating system chose.
    pub fn checks_address(&self) -> &Address {
        &self.checks_address
    }

    /// Returns where operators send their requests.
    pub fn admin_address(&self) -> Option<&Address> {
        self.admin_address.as_ref()
    }

    /// Returns a handle that changes the gateway while it runs.
    pub fn handle(&self) -> GatewayHandle {
        self.handle.clone()
    }

    /// Serves until `shutdown` is ready. Then the gateway stops to be ready, waits for `shutdown_wait`, closes its connections, ends
    /// the revocations that are under way, and writes its audit events, within 10 s.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stop_checks, stopped_checks) = watch::channel(None);
        let (stop_admin, stopped_admin) = watch::channel(None);
        let checks = Arc::clone(&self.handle.checks);
        let body_timeout = self.bounds.body;
        let respond = move |request| checks.respond(request, body_timeout);
        let checks = tokio::spawn(serve(self.checks, respond, self.bounds, stopped_checks));
        let admin = self.admin.map(|(listener, admin)| {
            let router = admin.router();
            let respond = move |request| {
                let response = router.clone().oneshot(request);
                async { response.await.unwrap_or_else(|never| match never {}) }
            };
            tokio::spawn(serve(listener, respond, self.bounds, stopped_admin))
        });
        let follower = self.fleet.as_ref().map(|fleet| tokio::spawn(fleet.run()));
        let (metrics, of_checks) = (self.metrics, Arc::clone(&self.handle.checks));
        // Ends with this future, because it holds the state of the checks.
        let mut upkeep = JoinSet::new();
        upkeep.spawn(async move {
            loop {
                sleep(UPKEEP).await;
                metrics.run_upkeep();
                of_checks.recent().advance();
            }
        });
        if let Some(fleet) = &self.fleet {
            upkeep.spawn(become_ready(fleet.clone(), self.readiness.clone()));
        }
        shutdown.await;

        let end = Instant::now() + SHUTDOWN;
        self.readiness.send_replace(Readiness::Stopping);
        tracing::info!("gateway is stopping");
        sleep(self.handle.config.listen.shutdown_wait).await;
        let closed = end - FLUSH;
        let _ = stop_checks.send(Some(closed));
        // A revocation that begins at the last moment still has its time.
        let _ = stop_admin.send(Some(closed - REVOCATION));
        if let Err(error) = checks.await {
            tracing::error!(%error, "listener failed");
        }
        if let Some(admin) = admin {
            let _ = admin.await;
        }
        // Of clients that have hung up.
        self.revocations.close();
        if timeout_at(closed, self.revocations.wait()).await.is_err() {
            tracing::error!("revocations are not recorded");
        }
        if let (Some(fleet), Some(follower)) = (self.fleet, follower) {
            // Nothing is decided any more, so no node has to wait for this one.
            let _ = timeout(LEAVE, fleet.leave()).await;
            follower.abort();
            let unsent = fleet.status().unsent;
            if unsent > 0 {
                tracing::error!(unsent, "updates are not sent to the fleet");
            }
        }
        if let Some(trail) = self.trail
            && let Err(error) = trail
                .shutdown(end.saturating_duration_since(Instant::now()))
                .await
        {
            tracing::error!(%error, "audit events are lost");
        }
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("checks_address", &self.checks_address)
            .field("admin_address", &self.admin_address)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for GatewayHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayHandle").finish_non_exhaustive()
    }
}

async fn bind(address: &Address) -> Result<(Listener, Address), Error> {
    let failed = |error| Error::Listen(address.clone(), error);
    let listener = Listener::bind(address).await.map_err(failed)?;
    let bound = listener.address().map_err(failed)?;
    Ok((listener, bound))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    /// Starts a gateway with these tables.
    async fn start(tables: &str) -> Gateway {
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), format!("{}=", "A".repeat(43))).unwrap();
        let secret = secret.path().display();
        let config = format!(
            "[listen]\nchecks = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n[issuer]\nkind = 'kinde'\nurl = 'http://127.0.0.1:9'\n\
             client_id = 'id'\nclient_secret_file = '{secret}'\n{}",
            tables.replace("SECRET", &secret.to_string())
        );
        let gateway = Gateway::start(Config::parse(&config).unwrap()).await;
        gateway.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn fault_223_a_gateway_waits_for_blocks() {
        // Nothing listens at the port of the engine.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = closed.local_addr().unwrap().port();
        drop(closed);
        let fleet = format!(
            "[fleet]\nname = 'f'\nredis = 'redis://127.0.0.1:{port}'\nsecret_file = 'SECRET'\n"
        );
        for (tables, waits) in [("", false), (fleet.as_str(), true)] {
            let mut gateway = start(tables).await;
            let (handle, (_, admin)) = (gateway.handle(), gateway.admin.take().unwrap());
            // Not over a socket, which the paused clock does not wait for.
            let router = admin.router();
            let readyz = async || {
                let request = http::Request::get("/readyz");
                let request = request.body(axum::body::Body::empty()).unwrap();
                router.clone().oneshot(request).await.unwrap().status()
            };
            assert_eq!(readyz().await, if waits { 503 } else { 200 });
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let running = tokio::spawn(gateway.run(async {
                let _ = stopped.await;
            }));
            let is_ready = timeout(Duration::from_secs(9), handle.until_ready()).await;
            assert_eq!(is_ready.is_err(), waits);
            assert_eq!(readyz().await, if waits { 503 } else { 200 });
            let is_ready = timeout(Duration::from_secs(2), handle.until_ready()).await;
            assert!(is_ready.is_ok());
            assert_eq!(readyz().await, 200);
            drop(stop);
            running.await.unwrap();
            assert_eq!(readyz().await, 503);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn state_ends_with_the_gateway() {
        let gateway = start("").await;
        let checks = Arc::downgrade(&gateway.handle.checks);
        let running = tokio::spawn(gateway.run(pending()));
        // The metrics are kept at least once.
        sleep(2 * UPKEEP).await;
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        sleep(2 * UPKEEP).await;
        assert!(checks.upgrade().is_none());
    }
}
