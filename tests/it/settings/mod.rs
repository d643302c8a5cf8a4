//! Settings of organizations, through the layer, with a store in memory that counts its calls.

#![allow(clippy::unchecked_time_subtraction)] // Written out, bounds are easier to compare with the documented ones.

mod breaker;
mod extract;
mod invalidation;
mod loads;
mod properties;
mod readiness;
mod store;
mod telemetry;

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_orgkey::settings::{OrgSettings, OrgSettingsLayer, OrgSettingsLayerBuilder};
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{
    ApiKeyHandle, ApiKeyLayer, OrgCode, Rejection, RejectionKind, Verification, verifier_fn,
};

use self::store::{Plan, Store};
use crate::support::service::{request, settle};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A layer of keys that accepts every key: `k_test_<org>` is a key of `<org>`.
fn auth() -> (ApiKeyLayer, TestClock) {
    let verifier = verifier_fn(|key| async move {
        let org = OrgCode::new(&key.expose_secret()["k_test_".len()..]).unwrap();
        Ok(Verification::of_organization(org))
    });
    let clock = TestClock::new();
    let auth = ApiKeyLayer::builder(verifier)
        .test_clock(clock.clone())
        .build()
        .unwrap();
    (auth, clock)
}

fn key_of(org: &str) -> String {
    format!("k_test_{org}")
}

fn code(org: &str) -> OrgCode {
    OrgCode::new(org).unwrap()
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The handler got these settings.
    Plan(Plan),
    /// The handler got the default.
    Default(Plan),
    /// Rejected with 503, and the seconds of `Retry-After`.
    Unavailable(u64),
}

fn plan(org: &str, revision: u64) -> Outcome {
    Outcome::Plan(Plan::of(org, revision))
}

impl Outcome {
    fn of(response: &Response<Bytes>) -> Self {
        if let Some(rejection) = response.extensions().get::<Rejection>() {
            assert_eq!(rejection.kind(), RejectionKind::SettingsUnavailable);
            assert_eq!(response.status(), 503);
            let retry_after = response.headers()["retry-after"].to_str().unwrap();
            return Self::Unavailable(retry_after.parse().unwrap());
        }
        assert_eq!(response.status(), 200);
        let plan: &OrgSettings<Plan> = response.extensions().get().unwrap();
        if plan.is_default() {
            Self::Default((**plan).clone())
        } else {
            Self::Plan((**plan).clone())
        }
    }

    fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(1..=60))
    }
}

/// Both layers, and a handler that returns the settings as an extension.
#[derive(Clone)]
struct App {
    store: Store,
    clock: TestClock,
    keys: ApiKeyHandle,
    layer: OrgSettingsLayer<Plan>,
    service: tower::util::BoxCloneSyncService<Request<()>, Response<Bytes>, Infallible>,
}

impl App {
    fn new() -> Self {
        Self::with(|builder| builder)
    }

    fn with(
        set: impl FnOnce(OrgSettingsLayerBuilder<Plan>) -> OrgSettingsLayerBuilder<Plan>,
    ) -> Self {
        let (auth, clock) = auth();
        let store = Store::default();
        let keys = auth.handle();
        let builder = OrgSettingsLayer::builder(&keys, store.clone());
        let layer = set(builder).build().unwrap();
        let handler = service_fn(async |request: Request<()>| {
            let mut response = Response::new(Bytes::new());
            if let Some(plan) = OrgSettings::<Plan>::of(request.extensions()) {
                response.extensions_mut().insert(plan.clone());
            }
            Ok::<_, Infallible>(response)
        });
        let service = auth.layer(layer.layer(handler));
        Self {
            store,
            clock,
            keys,
            layer,
            service: tower::util::BoxCloneSyncService::new(service),
        }
    }

    async fn get(&self, org: &str) -> Outcome {
        let response = self.service.clone().oneshot(request(&key_of(org))).await;
        let outcome = Outcome::of(&response.unwrap());
        if let Outcome::Plan(plan) = &outcome {
            assert_eq!(plan.org, org, "another organization's settings");
        }
        outcome
    }

    /// Spawns a request.
    fn begin(&self, org: &'static str) -> tokio::task::JoinHandle<Outcome> {
        let app = self.clone();
        tokio::spawn(async move { app.get(org).await })
    }

    /// Sends a request, and checks that it does not wait.
    async fn get_now(&self, org: &str) -> Outcome {
        let before = self.clock.elapsed();
        let outcome = self.get(org).await;
        assert_eq!(self.clock.elapsed(), before, "it waited");
        outcome
    }
}
