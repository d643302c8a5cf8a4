//! Nodes for tests, and an issuer that counts its calls.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::{Request, Response, StatusCode};
use tokio::task::JoinHandle;
use tower::ServiceExt;
use tower_orgkey::{
    ApiKey, ApiKeyLayer, KeyId, OrgCode, OrgContext, Verification, Verifier, VerifyError,
};
use tower_orgkey_fleet::{Fleet, FleetBuilder, FleetSecret};

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

/// A node: a layer in a fleet, and the task that follows the engine.
pub(crate) struct Node {
    pub(crate) fleet: Fleet,
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
        configure: impl FnOnce(
            tower_orgkey::auth::ApiKeyLayerBuilder,
        ) -> tower_orgkey::auth::ApiKeyLayerBuilder,
    ) -> Self {
        let fleet = Fleet::builder("test").secret(secret(1)).node_name(name);
        let fleet = engine(fleet).build().unwrap();
        let auth = configure(ApiKeyLayer::builder(verifier).fleet(&fleet))
            .build()
            .unwrap();
        let task = tokio::spawn(fleet.run());
        Self { fleet, auth, task }
    }

    /// Waits until the node follows the engine.
    pub(crate) async fn followed(self) -> Self {
        until("the engine is followed", || {
            self.fleet.status().is_followed()
        })
        .await;
        self
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
        let handler = tower::service_fn(|request: Request<()>| async move {
            assert!(request.extensions().get::<OrgContext>().is_some());
            Ok::<_, Infallible>(Response::new(
                http_body_util::Full::<bytes::Bytes>::default(),
            ))
        });
        let service = tower::Layer::layer(&self.auth, handler);
        let request = Request::get("/")
            .header("authorization", format!("Bearer {key}"))
            .body(())
            .unwrap();
        service.oneshot(request).await.unwrap().status()
    }
}

/// Waits until something holds, for at most ten seconds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while !holds() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in time: {what}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
