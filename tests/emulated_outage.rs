//! Faults of the issuer, seen through the layer and the Kinde verifier over real sockets.

#![allow(clippy::unwrap_used)] // A test may fail on what it did not expect.

use std::time::Duration;

use axum::body::Body;
use axum::routing::get;
use axum::{Router, response::Response};
use http::Request;
use tower::ServiceExt;
use tower_orgkey::emulator::{Endpoint, Fault, IssuedKey, KeySpec, KindeEmulator, RejectedAs};
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKeyHandle, ApiKeyLayer, BreakerState, OrgContext, Rejection};

struct Stage {
    emulator: KindeEmulator,
    clock: TestClock,
    handle: ApiKeyHandle,
    app: Router,
    known: IssuedKey,
}

impl Stage {
    /// An application over an emulator, and a key that it knows.
    async fn set() -> Self {
        let emulator = KindeEmulator::start().await.unwrap();
        let clock = TestClock::new();
        let kinde = KindeVerifier::builder(emulator.issuer_url())
            .client_credentials(emulator.client_id(), emulator.client_secret())
            .test_clock(clock.clone())
            .build()
            .unwrap();
        let auth = ApiKeyLayer::builder(kinde)
            .test_clock(clock.clone())
            .build()
            .unwrap();
        let handle = auth.handle();
        let app = Router::new()
            .route("/", get(|_: OrgContext| async {}))
            .route_layer(auth);
        let known = emulator.issue_key(KeySpec::organization("org_known"));
        let stage = Self {
            emulator,
            clock,
            handle,
            app,
            known,
        };
        assert_eq!(stage.status(stage.known.secret()).await, 200);
        stage
    }

    async fn call(&self, secret: &str) -> Response {
        let request = Request::get("/")
            .header("authorization", format!("Bearer {secret}"))
            .body(Body::empty())
            .unwrap();
        self.app.clone().oneshot(request).await.unwrap()
    }

    async fn status(&self, secret: &str) -> u16 {
        self.call(secret).await.status().as_u16()
    }

    fn stranger(&self) -> IssuedKey {
        self.emulator
            .issue_key(KeySpec::organization("org_stranger"))
    }
}

fn code(response: &Response) -> &'static str {
    response.extensions().get::<Rejection>().unwrap().code()
}

#[tokio::test]
async fn fault_01_an_issuer_that_is_gone_leaves_known_keys_alone_and_tells_strangers_to_come_back()
{
    let stage = Stage::set().await;
    let stranger = stage.stranger();
    let addr = stage.emulator.addr();
    stage.emulator.shutdown().await;
    assert!(
        tokio::net::TcpStream::connect(addr).await.is_err(),
        "connections are refused"
    );
    // Fresh, stale, and past both: a known key passes all the same.
    for seconds in [0, 70, 300] {
        stage.clock.jump(Duration::from_secs(seconds));
        assert_eq!(stage.status(stage.known.secret()).await, 200, "{seconds} s");
    }
    let refused = stage.call(stranger.secret()).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(code(&refused), "verifier-unavailable");
    assert!(refused.headers().contains_key("retry-after"));
    assert!(!refused.headers().contains_key("www-authenticate"));
    stage.clock.jump(Duration::from_secs(900));
    assert_eq!(
        stage.status(stage.known.secret()).await,
        503,
        "past the hard TTL"
    );
}

#[tokio::test]
async fn fault_08_a_429_with_its_reset_leaves_the_issuer_alone_and_the_breaker_closed() {
    let stage = Stage::set().await;
    let strangers = [stage.stranger(), stage.stranger()];
    let throttled = Fault::status(429).with_header("ratelimit-reset", "30");
    stage.emulator.inject(Endpoint::Verify, throttled);
    stage.emulator.reset_calls();
    for stranger in &strangers {
        let refused = stage.call(stranger.secret()).await;
        assert_eq!(refused.status(), 503);
        let wait: u64 = refused.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((29..=30).contains(&wait), "{wait}");
    }
    assert_eq!(
        stage.emulator.calls().verify.faulted,
        1,
        "one 429, and no call after it"
    );
    assert_eq!(stage.handle.upstream().breaker, BreakerState::Closed);
    assert_eq!(stage.status(stage.known.secret()).await, 200);
    stage.emulator.clear_faults();
    stage.clock.jump(Duration::from_secs(31));
    assert_eq!(
        stage.status(strangers[0].secret()).await,
        200,
        "after the reset"
    );
}

#[tokio::test]
async fn fault_33_junk_that_the_issuer_answers_with_400_is_401_and_no_outage() {
    let stage = Stage::set().await;
    stage.emulator.set_rejected_as(RejectedAs::BadRequest);
    stage.emulator.reset_calls();
    for n in 0..40 {
        let refused = stage.call(&format!("k_live_junk_{n:08}")).await;
        assert_eq!(
            (refused.status().as_u16(), code(&refused)),
            (401, "invalid-token")
        );
    }
    assert_eq!(
        stage.emulator.calls().verify.total,
        40,
        "each was asked about"
    );
    assert_eq!(stage.handle.upstream().breaker, BreakerState::Closed);
    assert_eq!(stage.status(stage.known.secret()).await, 200);
    assert_eq!(stage.status(stage.stranger().secret()).await, 200);
}

#[tokio::test]
async fn fault_33b_an_issuer_that_says_400_to_everything_gives_up_no_known_key() {
    let stage = Stage::set().await;
    let stranger = stage.stranger();
    stage.emulator.inject(Endpoint::Verify, Fault::status(400));
    for seconds in [0, 130, 600] {
        stage.clock.jump(Duration::from_secs(seconds));
        assert_eq!(stage.status(stage.known.secret()).await, 200, "{seconds} s");
    }
    assert!(
        stage.emulator.calls().verify.faulted > 0,
        "the known key was refused"
    );
    assert_eq!(stage.status(stranger.secret()).await, 401);
    stage.clock.jump(Duration::from_secs(900));
    assert_eq!(
        stage.status(stage.known.secret()).await,
        401,
        "past the hard TTL it is a stranger"
    );
}
