//! The instructions of a request with a cached key, counted by callgrind in a child process.

use std::convert::Infallible;
use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::time::sleep;
use tower::{Layer, ServiceExt};
use tower_orgkey::{ApiKey, ApiKeyLayer, OrgCode, Verification, Verifier, VerifyError};
use tower_orgkey_fleet::{Fleet, FleetSecret};

const REQUESTS: u32 = 20_000;
/// In place of the URL of an engine.
pub(crate) const NO_ENGINE: &str = "none";

/// Returns the instructions per request, in a fleet unless there is no engine.
pub(crate) fn instructions(engine: &str) -> f64 {
    let program = std::env::current_exe().expect("this program");
    // Only inside the function, so that neither the start nor the task of the fleet counts.
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*measured_hits*")
        .arg(program)
        .args(["hits", engine])
        .output()
        .expect("valgrind is installed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let (_, count) = said.split_once("Collected :").expect("valgrind's figure");
    let count = count.split_whitespace().next().expect("a number");
    count.parse::<f64>().expect("a number") / f64::from(REQUESTS)
}

struct Issuer;

impl Verifier for Issuer {
    async fn verify(&self, _: &ApiKey) -> Result<Verification, VerifyError> {
        Ok(Verification::of_organization(OrgCode::from_static("org_1")))
    }

    fn identity(&self) -> String {
        "issuer".to_owned()
    }
}

/// Runs in the child process.
pub(crate) fn count(engine: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let builder = ApiKeyLayer::builder(Issuer);
        if engine == NO_ENGINE {
            return measure(&builder.build().expect("a layer")).await;
        }
        let fleet = Fleet::builder("bench")
            .secret(FleetSecret::new(&[7; 32]).expect("a secret"))
            .redis(engine)
            .build()
            .expect("a fleet");
        let auth = builder.fleet(&fleet).build().expect("a layer");
        tokio::spawn(fleet.run());
        while !fleet.status().is_followed() {
            sleep(Duration::from_millis(1)).await;
        }
        measure(&auth).await;
    });
}

type Body = Full<Bytes>;

async fn handler(_: Request<()>) -> Result<Response<Body>, Infallible> {
    Ok(Response::new(Body::default()))
}

fn request() -> Request<()> {
    Request::get("/")
        .header("authorization", "Bearer k_live_0000000001")
        .body(())
        .expect("a request")
}

async fn measure(auth: &ApiKeyLayer) {
    let service = auth.layer(tower::service_fn(handler));
    let warm = service.clone().oneshot(request()).await;
    assert_eq!(warm.map(|response| response.status()), Ok(StatusCode::OK));
    // Never waits, so that nothing else runs meanwhile.
    measured_hits(move || {
        let response = service.clone().oneshot(request()).now_or_never();
        let status = response.map(|response| response.map(|response| response.status()));
        assert_eq!(black_box(status), Some(Ok(StatusCode::OK)));
    });
}

#[inline(never)]
fn measured_hits(hit: impl Fn()) {
    for _ in 0..REQUESTS {
        hit();
    }
}
