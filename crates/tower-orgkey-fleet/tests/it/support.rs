//! Nodes for tests, and an issuer that counts its calls.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use http::{Request, Response, StatusCode};
use tokio::task::JoinHandle;
use tower::ServiceExt;
use tower_orgkey::auth::ApiKeyLayerBuilder;
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{
    ApiKey, ApiKeyLayer, KeyId, OrgCode, OrgContext, Verification, Verifier, VerifyError,
};
use tower_orgkey_fleet::{Fleet, FleetBuilder, FleetSecret};

use crate::engines::Engine;

pub(crate) const KEY: &str = "k_live_0000000001";
pub(crate) const OTHER: &str = "k_live_0000000002";

/// An issuer in memory. All keys are valid until they are revoked: the key id is `id_` and the key, the organization `org_1`.
#[derive(Clone, Default)]
pub(crate) struct Issuer(Arc<State>);

#[derive(Default)]
struct State {
    calls: AtomicUsize,
    revoked: Mutex<HashSet<String>>,
    failure: Mutex<Option<VerifyError>>,
    gate: Mutex<Option<tokio::sync::watch::Receiver<bool>>>,
}

impl Issuer {
    pub(crate) fn calls(&self) -> usize {
        self.0.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn revoke(&self, key: &str) {
        self.0.revoked.lock().unwrap().insert(key.to_owned());
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        self.fail_with(is_down.then(|| VerifyError::unavailable("down")));
    }

    /// Fails all calls with this error, or none.
    pub(crate) fn fail_with(&self, error: Option<VerifyError>) {
        *self.0.failure.lock().unwrap() = error;
    }

    /// Answers that are decided from now on are held back until the sender says `true`.
    pub(crate) fn hold(&self) -> tokio::sync::watch::Sender<bool> {
        let (sender, receiver) = tokio::sync::watch::channel(false);
        *self.0.gate.lock().unwrap() = Some(receiver);
        sender
    }
}

impl Verifier for Issuer {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        if let Some(error) = &*self.0.failure.lock().unwrap() {
            return Err(error.clone());
        }
        let key = key.expose_secret();
        let is_revoked = self.0.revoked.lock().unwrap().contains(key);
        let gate = self.0.gate.lock().unwrap().clone();
        if let Some(mut gate) = gate {
            let _ = gate.wait_for(|open| *open).await;
        }
        if is_revoked {
            return Ok(Verification::invalid());
        }
        Ok(Verification::of_organization(OrgCode::from_static("org_1")).with_key_id(key_id(key)))
    }

    fn identity(&self) -> String {
        "issuer".to_owned()
    }
}

pub(crate) fn key_id(key: &str) -> KeyId {
    KeyId::new(format!("id_{key}")).unwrap()
}

pub(crate) fn secret(byte: u8) -> FleetSecret {
    FleetSecret::new(&[byte; 32]).unwrap()
}

/// A wall clock that follows tokio's.
pub(crate) fn wall_clock() -> impl Fn() -> SystemTime + Clone + Send + Sync + 'static {
    thread_local! {
        static ORIGIN: OnceLock<(SystemTime, tokio::time::Instant)> = const { OnceLock::new() };
    }
    let (wall, origin) = ORIGIN
        .with(|origin| *origin.get_or_init(|| (SystemTime::now(), tokio::time::Instant::now())));
    move || wall + origin.elapsed()
}

/// Starts nodes that follow one engine and have seen each other.
pub(crate) async fn nodes<const N: usize>(engine: &impl Engine, issuer: &Issuer) -> [Node; N] {
    configured_nodes(engine, issuer, |layer| layer).await
}

/// The same, with settings of the layer.
pub(crate) async fn configured_nodes<const N: usize>(
    engine: &impl Engine,
    issuer: &Issuer,
    configure: fn(ApiKeyLayerBuilder) -> ApiKeyLayerBuilder,
) -> [Node; N] {
    let mut nodes = Vec::new();
    for n in 0..N {
        let name = format!("node-{n}");
        let engine = |fleet| engine.set(fleet);
        let node = Node::start_with(&name, issuer.clone(), engine, configure);
        nodes.push(node.followed().await);
    }
    for node in &nodes {
        node.until_seen(N).await;
    }
    let Ok(nodes) = nodes.try_into() else {
        unreachable!()
    };
    nodes
}

pub(crate) async fn node(name: &str, engine: &impl Engine, issuer: &Issuer) -> Node {
    let node = Node::start(name, issuer.clone(), |fleet| engine.set(fleet));
    node.followed().await
}

/// A node: a layer in a fleet, and the task that follows the engine.
pub(crate) struct Node {
    pub(crate) fleet: Fleet,
    /// The clock of a machine that runs for a day, unless the layer has another one.
    pub(crate) clock: TestClock,
    pub(crate) auth: ApiKeyLayer,
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    pub(crate) fn start(
        name: &str,
        verifier: impl Verifier,
        engine: impl FnOnce(FleetBuilder) -> FleetBuilder,
    ) -> Self {
        Self::start_with(name, verifier, engine, |builder| builder)
    }

    pub(crate) fn start_with(
        name: &str,
        verifier: impl Verifier,
        engine: impl FnOnce(FleetBuilder) -> FleetBuilder,
        configure: impl FnOnce(ApiKeyLayerBuilder) -> ApiKeyLayerBuilder,
    ) -> Self {
        let fleet = Fleet::builder("test").secret(secret(1)).node_name(name);
        let fleet = engine(fleet.wall_clock(wall_clock())).build().unwrap();
        let clock = TestClock::new();
        clock.jump(Duration::from_secs(86_400));
        let layer = ApiKeyLayer::builder(verifier).test_clock(clock.clone());
        let auth = configure(layer.fleet(&fleet)).build().unwrap();
        let task = tokio::spawn(fleet.run());
        Self {
            fleet,
            clock,
            auth,
            task,
        }
    }

    /// Waits until the node follows the engine.
    pub(crate) async fn followed(self) -> Self {
        until("the engine is followed", || {
            self.fleet.status().is_followed()
        })
        .await;
        self
    }

    /// Waits until the node sees this many nodes.
    pub(crate) async fn until_seen(&self, nodes: usize) {
        until("the nodes see each other", || {
            self.fleet.status().nodes.len() == nodes
        })
        .await;
    }

    /// Follows the engine again, after [`stop`](Self::stop).
    pub(crate) fn restarted(mut self) -> Self {
        self.task = tokio::spawn(self.fleet.run());
        self
    }

    /// Stops the task that follows the engine.
    pub(crate) fn stop(&self) {
        self.task.abort();
    }

    /// Returns the status of a request with this key.
    pub(crate) async fn get(&self, key: &str) -> StatusCode {
        get(&self.auth, key).await
    }

    /// Sends requests with this key until one has this status.
    pub(crate) async fn until_status(&self, key: &str, status: StatusCode) {
        let mut last = self.get(key).await;
        for _ in 0..200 {
            if last == status {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            last = self.get(key).await;
        }
        assert_eq!(last, status, "{key}");
    }
}

/// Returns the status of a request with this key to a service behind this layer.
pub(crate) async fn get(auth: &ApiKeyLayer, key: &str) -> StatusCode {
    let handler = tower::service_fn(|request: Request<()>| async move {
        assert!(request.extensions().get::<OrgContext>().is_some());
        Ok::<_, Infallible>(Response::new(
            http_body_util::Full::<bytes::Bytes>::default(),
        ))
    });
    let service = tower::Layer::layer(auth, handler);
    let request = Request::get("/")
        .header("authorization", format!("Bearer {key}"))
        .body(())
        .unwrap();
    service.oneshot(request).await.unwrap().status()
}

/// Waits until something holds, for at most ten seconds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in time: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
