//! An API with keys that name their organization, a wall clock for tests, and a sink in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use http::{Request, StatusCode};
use tower::ServiceExt;
use tower_orgkey::{ApiKey, ApiKeyLayer, KeyId, OrgCode, Verification, require_scope, verifier_fn};
use tower_orgkey_usage::test_util::TestWallClock;
use tower_orgkey_usage::{
    PushError, SpoolFile, SpoolFileError, UsageLayer, UsageLayerBuilder, UsageRecord, UsageSink,
    UsageSnapshot,
};

/// `key.<organization>.<key id>` is valid; any other key is not.
pub(crate) fn auth() -> ApiKeyLayer {
    let verifier = verifier_fn(|key: ApiKey| async move {
        let mut parts = key.expose_secret().split('.');
        Ok(match (parts.next(), parts.next(), parts.next()) {
            (Some("key"), Some(org), Some(id)) => {
                Verification::of_organization(OrgCode::new(org).unwrap())
                    .with_key_id(KeyId::new(id).unwrap())
            }
            _ => Verification::invalid(),
        })
    });
    ApiKeyLayer::builder(verifier)
        .capacity(1_000_000)
        .allow_anonymous()
        .build()
        .unwrap()
}

/// 10 July 2026, at the beginning of a minute.
pub(crate) fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_783_641_600)
}

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

pub(crate) fn wall() -> TestWallClock {
    TestWallClock::new(start())
}

/// Moves the clock into the next minute.
pub(crate) fn next_minute(wall: &TestWallClock) {
    wall.set(wall.now() + MINUTE);
}

/// Durations are zero, unless the test's runtime is paused and time passes there.
pub(crate) fn usage(wall: &TestWallClock) -> UsageLayerBuilder {
    UsageLayer::builder().test_wall_clock(wall.clone())
}

pub(crate) fn app(usage: &UsageLayer) -> Router {
    Router::new()
        .route("/reports/{id}", get(async || "12345"))
        .route("/upload", post(async || ()))
        .route(
            "/guarded",
            get(async || ()).route_layer(require_scope("never:held")),
        )
        .route("/never", get(pending::<()>))
        .route(
            "/panic",
            get(async || -> () { panic!("a handler of the test's panics") }),
        )
        .layer(auth())
        .layer(usage.clone())
}

pub(crate) fn request(method: &str, path: &str, key: Option<&str>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    request.body(Body::empty()).unwrap()
}

/// Reads a report with this key.
pub(crate) async fn read(app: &Router, key: &str) -> StatusCode {
    let request = request("GET", "/reports/1", Some(key));
    app.clone().oneshot(request).await.unwrap().status()
}

pub(crate) async fn read_times(app: &Router, times: u64, key: &str) {
    for _ in 0..times {
        assert_eq!(read(app, key).await, StatusCode::OK);
    }
}

pub(crate) fn of_org(snapshot: &UsageSnapshot, org: &str) -> u64 {
    let org = OrgCode::new(org).unwrap();
    snapshot.of_organization(&org).requests()
}

/// Requests by organization.
pub(crate) type Sums = BTreeMap<String, u64>;

pub(crate) fn sums(expected: &[(&str, u64)]) -> Sums {
    expected
        .iter()
        .map(|(org, count)| ((*org).to_owned(), *count))
        .collect()
}

/// The result of a batch.
pub(crate) type Judge =
    Box<dyn FnMut(&[UsageRecord]) -> Result<(), PushError> + Send + Sync + 'static>;

/// Stores records in memory.
pub(crate) struct Memory {
    judge: Mutex<Judge>,
    calls: AtomicUsize,
    taken: Mutex<Vec<UsageRecord>>,
}

impl Memory {
    pub(crate) fn new(
        judge: impl FnMut(&[UsageRecord]) -> Result<(), PushError> + Send + Sync + 'static,
    ) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self {
            judge: Mutex::new(Box::new(judge)),
            calls: AtomicUsize::new(0),
            taken: Mutex::default(),
        })
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn taken(&self) -> Vec<UsageRecord> {
        self.taken.lock().unwrap().clone()
    }

    /// Requests by organization; no id is repeated.
    pub(crate) fn sums(&self) -> Sums {
        let mut sums = Sums::new();
        let mut ids = BTreeSet::new();
        for record in self.taken() {
            assert!(ids.insert(record.id.clone()), "{} came twice", record.id);
            let org = record.account.organization().map(ToString::to_string);
            *sums.entry(org.unwrap_or_default()).or_default() += record.counts.requests();
        }
        sums
    }
}

impl UsageSink for Memory {
    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        // Usable after a panic.
        let answer = (self.judge.lock().unwrap_or_else(PoisonError::into_inner))(batch);
        if answer.is_ok() {
            self.taken.lock().unwrap().extend_from_slice(batch);
        }
        answer
    }
}

/// Counts the calls of a sink.
pub(crate) struct Counting<S> {
    sink: S,
    calls: AtomicUsize,
}

impl<S> Counting<S> {
    pub(crate) fn new(sink: S) -> std::sync::Arc<Self> {
        let calls = AtomicUsize::new(0);
        std::sync::Arc::new(Self { sink, calls })
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl<S: UsageSink> UsageSink for Counting<S> {
    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.sink.push(batch).await
    }
}

/// A directory with a spool file for one test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("orgkey-usage-{}-{name}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.join("unsent")
    }

    /// The file, after the last save of a dropped pusher has completed.
    pub(crate) fn file(&self) -> SpoolFile {
        for _ in 0..10_000 {
            match SpoolFile::open(self.path()) {
                Err(SpoolFileError::InUse { .. }) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                opened => return opened.unwrap(),
            }
        }
        panic!("the file is never let go of");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
