//! The region layer: where organizations are served.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::any;
use http::{Extensions, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;
use tower::{ServiceBuilder, ServiceExt};
use tower_orgkey::region::{Home, RegionLayer, RegionLayerBuilder};
use tower_orgkey::settings::{OrgSettings, OrgSettingsLayer, SettingsError, settings_fn};
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{
    ApiKey, ApiKeyHandle, ApiKeyLayer, OrgCode, OrgContext, RejectionKind, RequestHead,
    RequestObservation,
};

use crate::python;
use crate::support::log::Log;
use crate::support::wire::{get, raw_request, serve, until_logged};
use crate::support::{Issuer, org};

const EU: &str = "k_eu_one_0123456789";
const US: &str = "k_us_two_0123456789";
const LOST: &str = "k_xx_lost_0123456789";
const US_BASE: &str = "https://us.api.example.com";

fn issuer() -> Issuer {
    Issuer::knowing([
        (EU, org("org_eu", &[])),
        (US, org("org_us", &[])),
        (LOST, org("org_lost", &[])),
    ])
}

/// The home by the name of the organization.
fn by_name(org: &OrgContext, _: &Extensions) -> Home {
    match org.org_code().as_str() {
        "org_eu" => Home::At("eu".into()),
        "org_us" => Home::At("us".into()),
        "org_mars" => Home::At("mars".into()),
        _ => Home::Unknown,
    }
}

fn eu() -> RegionLayerBuilder {
    RegionLayer::builder("eu", by_name).region("us", US_BASE)
}

/// An application whose handler reads the whole body, and the number of its calls.
fn app(region: RegionLayer, auth: ApiKeyLayer) -> (Router, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let handler = {
        let calls = Arc::clone(&calls);
        any(move |_body: Bytes| {
            calls.fetch_add(1, Ordering::SeqCst);
            async { "served" }
        })
    };
    let app = Router::new()
        .route("/reports", handler)
        .route_layer(region)
        .route_layer(auth);
    (app, calls)
}

#[tokio::test]
async fn fault_150_other_region_gets_421_and_its_address() {
    let (app, calls) = app(eu().build().unwrap(), ApiKeyLayer::new(issuer()));
    let address = serve(app).await;
    assert_eq!(get(address, "/reports").key(EU).send().await.status, 200);
    assert_eq!(calls.load(Ordering::SeqCst), 1);

    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
        let request = raw_request(address, method, "/reports")
            .key(US)
            .body("body");
        let response = request.send().await;
        assert_eq!(response.status, 421, "{method}");
        let problem = response.json();
        assert_eq!(problem["code"], "wrong-region");
        assert_eq!(problem["status"], 421);
        assert_eq!(problem["region"], "us");
        assert_eq!(problem["base"], US_BASE);
        assert_eq!(response.header("cache-control"), Some("no-store"));
        for absent in ["location", "www-authenticate", "retry-after"] {
            assert_eq!(response.header(absent), None, "{method} {absent}");
        }
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

/// Two deployments, which know the address of each other, and the calls of their handlers.
struct Regions {
    eu: SocketAddr,
    eu_calls: Arc<AtomicUsize>,
    us: SocketAddr,
    us_calls: Arc<AtomicUsize>,
}

impl Regions {
    async fn start() -> Self {
        let (app_eu, eu_calls) = app(eu().build().unwrap(), ApiKeyLayer::new(issuer()));
        let eu = serve(app_eu).await;
        let region = RegionLayer::builder("us", by_name).region("eu", format!("http://{eu}"));
        let (app_us, us_calls) = app(region.build().unwrap(), ApiKeyLayer::new(issuer()));
        let us = serve(app_us).await;
        Self {
            eu,
            eu_calls,
            us,
            us_calls,
        }
    }
}

/// A client that follows redirects by itself, as most do, and one that does not.
#[tokio::test]
async fn fault_150_no_client_is_sent_elsewhere() {
    let regions = Regions::start().await;
    let Regions {
        eu: here,
        us: there,
        ..
    } = regions;
    let (here_calls, there_calls) = (regions.eu_calls, regions.us_calls);
    for policy in [
        reqwest::redirect::Policy::default(),
        reqwest::redirect::Policy::none(),
    ] {
        let client = reqwest::Client::builder()
            .redirect(policy)
            .no_proxy()
            .build()
            .unwrap();
        let send = async |address, key: &str| {
            let request = client
                .post(format!("http://{address}/reports"))
                .bearer_auth(key);
            request.body("secret").send().await.unwrap()
        };
        let rejected = send(there, EU).await;
        assert_eq!(rejected.status(), StatusCode::MISDIRECTED_REQUEST);
        let problem: serde_json::Value = rejected.json().await.unwrap();
        assert_eq!(here_calls.load(Ordering::SeqCst), 0);
        // What a client does with the address is its decision.
        let base = problem["base"].as_str().unwrap();
        assert_eq!(base, format!("http://{here}"));
        assert_eq!(send(here, EU).await.status(), StatusCode::OK);
        assert_eq!(here_calls.swap(0, Ordering::SeqCst), 1);
    }
    assert_eq!(there_calls.load(Ordering::SeqCst), 0);
}

/// Programs that would send the key and the body along to another host.
#[tokio::test]
async fn fault_150_curl_and_fetch_stay_where_they_are() {
    let regions = Regions::start().await;
    let url = format!("http://{}/reports", regions.us);
    let header = format!("authorization: Bearer {EU}");
    let post = [
        "--silent",
        "--noproxy",
        "*",
        "--header",
        &header,
        "--data",
        "secret",
        &url,
    ];
    let written = ["--write-out", "\n%{http_code} %{num_redirects}"];
    let mut follows = Command::new("curl");
    follows.args(["--location-trusted", "--post301", "--post302", "--post303"]);
    let mut stays = Command::new("curl");
    for curl in [&mut follows, &mut stays] {
        curl.args(post).args(written);
    }
    let mut fetches = python::program("node");
    let script = "const [url, authorization] = process.argv.slice(1);
        fetch(url, { method: 'POST', body: 'secret', headers: { authorization, 'x-api-key': authorization } })
            .then(async (reply) => console.log(`${await reply.text()}\n${reply.status} ${Number(reply.redirected)}`));";
    fetches.args(["-e", script, &url, &format!("Bearer {EU}")]);

    for client in [follows, stays, fetches] {
        let name = format!("{:?}", client.as_std().get_program());
        let output = python::output(client).await;
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, end) = text.trim_end().rsplit_once('\n').unwrap_or_default();
        assert_eq!(end, "421 0", "{name}: {text}");
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["base"], format!("http://{}", regions.eu));
    }
    assert_eq!(regions.eu_calls.load(Ordering::SeqCst), 0);
    assert_eq!(regions.us_calls.load(Ordering::SeqCst), 0);
}

/// A body that counts how often it is polled.
struct Counted(Arc<AtomicUsize>);

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Poll::Ready(None)
    }
}

#[tokio::test]
async fn fault_151_body_is_not_polled_outside_home() {
    let (app, calls) = app(eu().build().unwrap(), ApiKeyLayer::new(issuer()));
    for (key, is_served) in [(US, false), (LOST, false), (EU, true)] {
        let polls = Arc::new(AtomicUsize::new(0));
        let request = Request::post("/reports")
            .header("authorization", format!("Bearer {key}"))
            .body(Body::new(Counted(Arc::clone(&polls))))
            .unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().is_success(), is_served, "{key}");
        assert_eq!(polls.load(Ordering::SeqCst) > 0, is_served, "{key}");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

/// A service may act when it is called, before its future is polled.
#[tokio::test]
async fn fault_151_inner_service_is_not_called_outside_home() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let app = ServiceBuilder::new()
        .layer(ApiKeyLayer::new(issuer()))
        .layer(eu().build().unwrap())
        .service_fn(move |_: Request<Body>| {
            count.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Ok::<_, Infallible>(Response::new(Body::empty())))
        });
    for (key, status, expected) in [(US, 421, 0), (LOST, 503, 0), (EU, 200, 1)] {
        let request = Request::get("/reports")
            .header("authorization", format!("Bearer {key}"))
            .body(Body::empty())
            .unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(calls.load(Ordering::SeqCst), expected, "{key}");
    }
}

/// A client that waits for permission to send its body does not get it.
#[tokio::test]
async fn fault_151_body_is_not_asked_for_over_the_wire() {
    let (app, _) = app(eu().build().unwrap(), ApiKeyLayer::new(issuer()));
    let address = serve(app).await;
    for (key, first_line) in [(US, "HTTP/1.1 421 "), (EU, "HTTP/1.1 100 ")] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /reports HTTP/1.1\r\nhost: api.test\r\nauthorization: Bearer {key}\r\n\
             expect: 100-continue\r\ncontent-length: 1000000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut line = vec![0; first_line.len()];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&line), first_line);
    }
}

#[tokio::test]
async fn fault_152_unknown_home_is_rejected_with_503() {
    let (strict, calls) = app(eu().build().unwrap(), ApiKeyLayer::new(issuer()));
    let strict = serve(strict).await;
    let response = get(strict, "/reports").key(LOST).send().await;
    assert_eq!(response.status, 503);
    assert_eq!(response.code(), "region-unknown");
    assert_eq!(response.header("retry-after"), Some("60"));
    assert_eq!(calls.load(Ordering::SeqCst), 0);

    let lenient = eu().unknown_is_here().build().unwrap();
    let (lenient, calls) = app(lenient, ApiKeyLayer::new(issuer()));
    let lenient = serve(lenient).await;
    assert_eq!(get(lenient, "/reports").key(LOST).send().await.status, 200);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(get(lenient, "/reports").key(US).send().await.status, 421);
}

#[tokio::test]
async fn undeclared_region_is_rejected_and_logged() {
    let (log, _guard) = Log::capture();
    let issuer = Issuer::knowing([(US, org("org_mars", &[]))]);
    // Not even with the default: the data names a place, and it is not here.
    let region = eu().unknown_is_here().build().unwrap();
    let (app, calls) = app(region, ApiKeyLayer::new(issuer));
    let request = get(serve(app).await, "/reports").key(US);
    let holding = ["`RegionLayer` does not declare", "org_mars"];
    let (response, _) = until_logged(&log, "ERROR", &holding, &request).await;
    assert_eq!(response.status, 503);
    assert!(!response.body.contains("mars"), "{response:?}");
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn status_can_be_forbidden() {
    let region = eu().region_without_base("ch").with_forbidden();
    let (app, _) = app(region.build().unwrap(), ApiKeyLayer::new(issuer()));
    let address = serve(app).await;
    let response = get(address, "/reports").key(US).send().await;
    assert_eq!(response.status, 403);
    assert_eq!(response.json()["status"], 403);
    assert_eq!(response.json()["region"], "us");
    assert_eq!(response.header("www-authenticate"), None);
}

#[test]
fn region_without_base_names_the_region_alone() {
    let region = eu().region_without_base("ch").build().unwrap();
    let rejection = region.wrong_region("ch");
    assert_eq!(rejection.kind(), RejectionKind::WrongRegion);
    assert_eq!(rejection.region(), Some("ch"));
    assert_eq!(rejection.region_base(), None);
    let undeclared = region.wrong_region("mars");
    assert_eq!(undeclared.kind(), RejectionKind::RegionUnknown);
    assert_eq!(undeclared.region(), None);
}

#[test]
fn invalid_regions_do_not_build() {
    for name in ["", "e u", "eu\"", "e\u{fc}", &"x".repeat(65)] {
        let error = RegionLayer::builder(name.to_owned(), by_name).build();
        assert_eq!(error.unwrap_err().field(), "builder", "{name:?}");
        let error = eu().region(name.to_owned(), US_BASE).build();
        assert_eq!(error.unwrap_err().field(), "region", "{name:?}");
    }
    for base in [
        "",
        "us.api.example.com",
        "/us",
        "ftp://us.api.example.com",
        "https://",
        "https://user:password@us.api.example.com",
        "https://us.api.example.com?next=",
        "https://us.api.example.com#top",
        "https://us.api.example.com\r\nlocation: https://evil.example",
        "javascript:alert(1)",
    ] {
        let error = eu().region("ch", base).build();
        assert_eq!(error.unwrap_err().field(), "region", "{base:?}");
    }
    for twice in ["eu", "us"] {
        let error = eu().region_without_base(twice).build();
        assert_eq!(error.unwrap_err().field(), "region", "{twice}");
    }
}

/// The regions of organizations, as a database would hold them.
type Table = Arc<RwLock<HashMap<&'static str, &'static str>>>;

fn from_settings(_: &OrgContext, extensions: &Extensions) -> Home {
    match OrgSettings::<&'static str>::of(extensions) {
        Some(region) => Home::At((**region).into()),
        None => Home::Unknown,
    }
}

fn moving_app(table: &Table) -> (Router, Arc<AtomicUsize>, ApiKeyHandle, TestClock) {
    let clock = TestClock::new();
    let auth = ApiKeyLayer::builder(issuer()).test_clock(clock.clone());
    let auth = auth.build().unwrap();
    let handle = auth.handle();
    let table = Arc::clone(table);
    let homes = OrgSettingsLayer::new(
        &handle,
        settings_fn(move |org: OrgCode| {
            let region = table.read().unwrap()[org.as_str()];
            async move { Ok::<_, SettingsError>(region) }
        }),
    );
    let region = RegionLayer::builder("eu", from_settings).region("us", US_BASE);
    let calls = Arc::new(AtomicUsize::new(0));
    let handler = {
        let calls = Arc::clone(&calls);
        any(move || {
            calls.fetch_add(1, Ordering::SeqCst);
            async { "served" }
        })
    };
    let app = Router::new()
        .route("/reports", handler)
        .route_layer(region.build().unwrap())
        .route_layer(homes)
        .route_layer(auth);
    (app, calls, handle, clock)
}

async fn status(app: &Router, key: &str) -> u16 {
    let request = Request::get("/reports")
        .header("authorization", format!("Bearer {key}"))
        .body(Body::empty())
        .unwrap();
    app.clone()
        .oneshot(request)
        .await
        .unwrap()
        .status()
        .as_u16()
}

/// Starts clients that call all the time until they are rejected, and waits until each has been served several times.
async fn eight_clients(app: &Router, calls: &AtomicUsize) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let app = app.clone();
        clients.spawn(async move {
            while status(&app, EU).await == 200 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(calls.load(Ordering::SeqCst) > 80);
    clients
}

#[tokio::test(start_paused = true)]
async fn fault_153_new_home_applies_at_once_if_invalidated() {
    let table = Table::new(HashMap::from([("org_eu", "eu")]).into());
    let (app, calls, handle, _) = moving_app(&table);
    let org = OrgCode::new("org_eu").unwrap();
    let clients = eight_clients(&app, &calls).await;
    table.write().unwrap().insert("org_eu", "us");
    handle.invalidate_org(&org);
    let before = calls.load(Ordering::SeqCst);
    assert_eq!(status(&app, EU).await, 421);
    clients.join_all().await;
    assert_eq!(
        calls.load(Ordering::SeqCst),
        before,
        "served after the move"
    );
    table.write().unwrap().insert("org_eu", "eu");
    handle.invalidate_org(&org);
    assert_eq!(status(&app, EU).await, 200);
}

#[tokio::test(start_paused = true)]
async fn fault_153_new_home_applies_within_two_soft_ttls() {
    let table = Table::new(HashMap::from([("org_eu", "eu")]).into());
    let (app, calls, _, clock) = moving_app(&table);
    let clients = eight_clients(&app, &calls).await;
    table.write().unwrap().insert("org_eu", "us");
    // The default soft TTL is 60 s. A request after one of them may be served while the settings are loaded again.
    for _ in 0..120 {
        clock.jump(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let before = calls.load(Ordering::SeqCst);
    assert_eq!(status(&app, EU).await, 421);
    clients.join_all().await;
    assert_eq!(calls.load(Ordering::SeqCst), before, "served after 120 s");
}

/// The only request after the move is two soft TTLs later: nothing has loaded the settings before.
#[tokio::test(start_paused = true)]
async fn fault_153_new_home_applies_to_the_first_request_after_two_soft_ttls() {
    let table = Table::new(HashMap::from([("org_eu", "eu")]).into());
    let (app, _, _, clock) = moving_app(&table);
    assert_eq!(status(&app, EU).await, 200);
    table.write().unwrap().insert("org_eu", "us");
    clock.jump(Duration::from_secs(120));
    assert_eq!(status(&app, EU).await, 421);
}

/// A host name per region: the key needs no mark.
#[tokio::test]
async fn fault_154_hint_by_host_rejects_without_a_call() {
    let region = eu().build().unwrap();
    let hint = region.clone();
    let issuer = issuer();
    let auth = ApiKeyLayer::builder(issuer.clone())
        .reject_before_lookup(move |head: RequestHead<'_>, _: &ApiKey| {
            let host = head.headers.get("host")?;
            (host == "us.api.example.com").then(|| hint.wrong_region("us"))
        })
        .build()
        .unwrap();
    let (app, calls) = app(region, auth);
    let request_to = |host: &str, key: &str| {
        Request::get("/reports")
            .header("host", host)
            .header("authorization", format!("Bearer {key}"))
            .body(Body::empty())
            .unwrap()
    };
    let elsewhere = request_to("us.api.example.com", EU);
    let response = app.clone().oneshot(elsewhere).await.unwrap();
    assert_eq!((response.status().as_u16(), issuer.calls()), (421, 0));
    // What the hint lets pass is still decided by the home.
    for (key, status) in [(EU, 200), (US, 421)] {
        let request = request_to("eu.api.example.com", key);
        let response = app.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status, "{key}");
    }
    assert_eq!((issuer.calls(), calls.load(Ordering::SeqCst)), (2, 1));
}

#[tokio::test]
async fn fault_154_hint_rejects_without_a_call() {
    let region = eu().build().unwrap();
    let hint = region.clone();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let issuer = issuer();
    let auth = ApiKeyLayer::builder(issuer.clone())
        .reject_before_lookup(move |head: RequestHead<'_>, key: &ApiKey| {
            count.fetch_add(1, Ordering::SeqCst);
            assert_eq!(head.uri.path(), "/reports");
            let is_us = key.expose_secret().starts_with("k_us_");
            is_us.then(|| hint.wrong_region("us"))
        })
        .build()
        .unwrap();
    let handle = auth.handle();
    let (app, calls) = app(region, auth);
    let address = serve(app).await;
    for _ in 0..3 {
        let response = get(address, "/reports").key(US).send().await;
        assert_eq!(
            (response.status, response.code()),
            (421, "wrong-region".to_owned())
        );
    }
    assert_eq!((issuer.calls(), handle.stats().entries), (0, 0));
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    // The hint lets the key of this region pass to its verification, and is not asked about the cached result.
    for _ in 0..3 {
        assert_eq!(get(address, "/reports").key(EU).send().await.status, 200);
    }
    assert_eq!(issuer.calls(), 1);
    assert_eq!(asked.load(Ordering::SeqCst), 4);
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

/// The hint can only say "not here": what it lets pass is decided by the layer.
#[tokio::test]
async fn hint_cannot_accept_a_request() {
    let auth = ApiKeyLayer::builder(issuer())
        .reject_before_lookup(|_: RequestHead<'_>, _: &ApiKey| None)
        .build()
        .unwrap();
    let (app, calls) = app(eu().build().unwrap(), auth);
    let address = serve(app).await;
    assert_eq!(get(address, "/reports").key(US).send().await.status, 421);
    let unknown = get(address, "/reports").key("k_unknown_0123456789");
    assert_eq!(unknown.send().await.status, 401);
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn layer_outside_of_api_key_layer_is_500() {
    let app = Router::new()
        .route("/reports", any(async || "served"))
        .route_layer(eu().build().unwrap());
    let response = get(serve(app).await, "/reports").send().await;
    assert_eq!(response.status, 500);
}

#[tokio::test]
async fn anonymous_requests_have_no_home() {
    let auth = ApiKeyLayer::builder(issuer()).allow_anonymous();
    let (app, calls) = app(eu().build().unwrap(), auth.build().unwrap());
    let address = serve(app).await;
    assert_eq!(get(address, "/reports").send().await.status, 200);
    assert_eq!(get(address, "/reports").key(US).send().await.status, 421);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

/// An outer layer learns who was rejected, and why.
#[tokio::test]
async fn rejection_is_observed_with_its_organization() {
    let (app, _) = app(eu().build().unwrap(), ApiKeyLayer::new(issuer()));
    let mut request = Request::get("/reports")
        .header("authorization", format!("Bearer {US}"))
        .body(Body::empty())
        .unwrap();
    let observation = RequestObservation::attach(request.extensions_mut());
    let response = app.oneshot(request).await.unwrap();
    let rejection = observation.rejection_of(&response).unwrap();
    assert_eq!(rejection.kind(), RejectionKind::WrongRegion);
    let caller = format!("{:?}", observation.caller());
    assert!(caller.contains("org_us"), "{caller}");
}
