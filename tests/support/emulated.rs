//! An application, a proxy and an emulator, and a key that the application knows.

use std::time::Duration;

use axum::body::Body;
use axum::routing::get;
use axum::{Router, response::Response};
use http::Request;
use kinde_emulator::{IssuedKey, KeySpec, KindeEmulator};
use tower::ServiceExt;
use tower_orgkey::kinde::{KindeVerifier, KindeVerifierBuilder};
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKeyHandle, ApiKeyLayer, BreakerState, OrgContext, Rejection};

use crate::support::proxy::FaultProxy;

/// Longer than the breaker stays open at first, shorter than both soft TTLs.
pub(crate) const A_WHILE: Duration = Duration::from_secs(70);

pub(crate) struct Stage {
    pub(crate) emulator: KindeEmulator,
    pub(crate) proxy: FaultProxy,
    pub(crate) clock: TestClock,
    pub(crate) handle: ApiKeyHandle,
    pub(crate) app: Router,
    pub(crate) known: IssuedKey,
}

impl Stage {
    /// An application, a proxy and an emulator, in this order, and a key that the application knows.
    pub(crate) async fn set() -> Self {
        Self::over(KindeEmulator::start().await.unwrap()).await
    }

    pub(crate) async fn over(emulator: KindeEmulator) -> Self {
        let clock = TestClock::new();
        let proxy = FaultProxy::to(emulator.addr());
        let kinde = kinde(&emulator, &proxy, &clock).build().unwrap();
        let auth = ApiKeyLayer::builder(kinde).test_clock(clock.clone());
        let auth = auth.build().unwrap();
        Self::with(emulator, proxy, clock, auth).await
    }

    pub(crate) async fn with(
        emulator: KindeEmulator,
        proxy: FaultProxy,
        clock: TestClock,
        auth: ApiKeyLayer,
    ) -> Self {
        let handle = auth.handle();
        let app = Router::new()
            .route("/", get(|_: OrgContext| async {}))
            .route_layer(auth);
        let known = emulator.issue_key(KeySpec::organization("org_known"));
        let stage = Self {
            emulator,
            proxy,
            clock,
            handle,
            app,
            known,
        };
        assert_eq!(stage.status(stage.known.secret()).await, 200);
        stage
    }

    pub(crate) async fn call(&self, secret: &str) -> Response {
        let request = Request::get("/")
            .header("authorization", format!("Bearer {secret}"))
            .body(Body::empty())
            .unwrap();
        self.app.clone().oneshot(request).await.unwrap()
    }

    pub(crate) async fn status(&self, secret: &str) -> u16 {
        self.call(secret).await.status().as_u16()
    }

    pub(crate) fn unknown_key(&self) -> IssuedKey {
        self.emulator
            .issue_key(KeySpec::organization("org_stranger"))
    }

    /// Checks the effect of a fault: known keys pass, unknown keys get 503, and no key gets 401.
    pub(crate) async fn shows_an_outage(&self, unknown_key: &IssuedKey) {
        for age in [0, 70, 300] {
            self.clock.jump(Duration::from_secs(age));
            assert_eq!(self.status(self.known.secret()).await, 200, "{age} s later");
            for unknown in [unknown_key.secret(), INVALID_KEY] {
                let rejected = self.call(unknown).await;
                assert_eq!(rejected.status(), 503, "{unknown}, {age} s later");
                assert_eq!(code(&rejected), "verifier-unavailable");
                let wait = rejected.headers()["retry-after"].to_str().unwrap();
                assert!(wait.parse::<u64>().unwrap() >= 1, "{wait}");
                assert!(!rejected.headers().contains_key("www-authenticate"));
            }
        }
    }

    /// Checks that the fault has no effect after it ended.
    pub(crate) async fn shows_recovery(&self, unknown_key: &IssuedKey) {
        self.clock.jump(A_WHILE);
        assert_eq!(self.status(unknown_key.secret()).await, 200);
        assert_eq!(self.status(INVALID_KEY).await, 401);
        self.emulator.reset_calls();
        assert_eq!(self.status(self.known.secret()).await, 200);
        assert!(
            self.emulator.calls().verify.total > 0,
            "the known key is verified again"
        );
        assert_eq!(self.handle.upstream().breaker, BreakerState::Closed);
    }
}

/// A key that was not issued.
pub(crate) const INVALID_KEY: &str = "k_live_none_00000000";

/// A verifier that reaches the emulator through the proxy.
pub(crate) fn kinde(
    emulator: &KindeEmulator,
    proxy: &FaultProxy,
    clock: &TestClock,
) -> KindeVerifierBuilder {
    let here = emulator.addr().to_string();
    let issuer = emulator
        .issuer_url()
        .replace(&here, &proxy.addr().to_string());
    let kinde = KindeVerifier::builder(issuer)
        .client_credentials(emulator.client_id(), emulator.client_secret())
        .audience(emulator.audience())
        // The attempt deadline suffices. On a busy machine a TLS handshake can take long.
        .connect_timeout(Duration::from_secs(5))
        .test_clock(clock.clone());
    match emulator.root_certificate_pem() {
        Some(root) => kinde.add_root_certificate_pem(root),
        None => kinde,
    }
}

pub(crate) fn code(response: &Response) -> &'static str {
    response.extensions().get::<Rejection>().unwrap().code()
}
