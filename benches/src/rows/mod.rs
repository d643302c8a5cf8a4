//! The rows: layers around the same handler, and one request through each.

pub(crate) mod floor;
pub(crate) mod hand_made;
#[cfg(feature = "whole")]
mod log_file;
pub(crate) mod ours;
mod plain;
#[cfg(feature = "whole")]
mod stacked;
#[cfg(feature = "whole")]
pub(crate) mod traced;
#[cfg(feature = "whole")]
pub(crate) mod whole;

use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use futures_util::FutureExt;
use http::header::{ACCEPT, AUTHORIZATION, HOST, USER_AGENT};
use http::{HeaderValue, Request, StatusCode, Uri};
use tower_service::Service;

pub const KEY: &str = "k_live_0123456789abcdef0123456789abcdef";
pub const SCOPE: &str = "read:reports";
/// The scopes of the key: as many as a typical integration has.
pub(crate) const SCOPES: [&str; 4] = ["read:reports", "read:users", "write:reports", "write:users"];
pub(crate) const SECRET: [u8; 16] = *b"a fixed secret :";

pub const BEARER: &str = "Bearer k_live_0123456789abcdef0123456789abcdef";
const JUNK: &str = "Bearer k_live_ffffffffffffffffffffffffffffffff";
const MALFORMED: &str = "Bearer k_live_0123456789 abcdef0123456789abcde";

/// One request through a row, from its construction until the response is dropped.
pub type Call = Box<dyn FnMut()>;

/// The baseline of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Under {
    /// An axum router with one layer that does nothing.
    Router,
    /// The same, with a path parameter.
    Parameter,
    /// A plain Tower service with such a layer.
    Service,
}

impl Under {
    pub(crate) fn base(self) -> &'static str {
        match self {
            Self::Router => NO_OP,
            Self::Parameter => "parameter-no-op",
            Self::Service => "service-no-op",
        }
    }
}

#[derive(Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    pub says: &'static str,
    pub under: Under,
    pub build: fn() -> Call,
}

pub const NO_OP: &str = "no-op";
pub const FLOOR: &str = "floor";
pub const OURS: &str = "ours";

#[rustfmt::skip]
pub const ALL: &[Row] = &[
    Row { name: NO_OP, says: "(0) a layer that does nothing", under: Under::Router, build: floor::no_op },
    Row { name: "static-bearer", says: "tower-http static bearer, no context", under: Under::Router, build: floor::static_bearer },
    Row { name: "extension", says: "axum's `Extension` only", under: Under::Router, build: floor::extension },
    Row { name: FLOOR, says: "**floor**: bearer, one compare, one `Arc`, one scope", under: Under::Router, build: floor::floor },
    Row { name: OURS, says: "**ours**: `(auth, require_scope(..))`, fresh hit", under: Under::Router, build: ours::hit },
    Row { name: "ours-auth", says: "ours, the layer without a guard", under: Under::Router, build: ours::auth },
    Row { name: "ours-handler", says: "ours, and a handler that takes `OrgContext`", under: Under::Router, build: ours::handler },
    Row { name: "ours-invalid", says: "ours: an invalid key, from the cache", under: Under::Router, build: ours::invalid },
    Row { name: "ours-malformed", says: "ours: a malformed header", under: Under::Router, build: ours::malformed },
    Row { name: "papaya", says: "the floor over papaya, SipHash-1-3-128", under: Under::Router, build: hand_made::papaya },
    Row { name: "moka", says: "the floor over `moka::sync`, SipHash-1-3-128", under: Under::Router, build: hand_made::moka },
    Row { name: "from-fn", says: "typical `from_fn`: hex SHA-256, `moka::future`, owned context", under: Under::Router, build: hand_made::from_fn },
    Row { name: "parameter-no-op", says: "(0) a layer that does nothing, `/orgs/{org_code}/…`", under: Under::Parameter, build: floor::no_op_parameter },
    Row { name: "parameter-auth", says: "ours, the layer without a guard, `/orgs/{org_code}/…`", under: Under::Parameter, build: ours::auth_parameter },
    Row { name: "parameter-org", says: "ours: `(auth, require_org(..))`, `/orgs/{org_code}/…`", under: Under::Parameter, build: ours::org },
    Row { name: "service-no-op", says: "(0) a layer that does nothing, plain service", under: Under::Service, build: plain::no_op },
    Row { name: "service-extension", says: "axum's `Extension`, plain service", under: Under::Service, build: plain::extension },
    Row { name: "service-ours", says: "ours, plain service", under: Under::Service, build: plain::ours },
];

pub fn find(name: &str) -> Row {
    every()
        .find(|row| row.name == name)
        .unwrap_or_else(|| panic!("no row `{name}`"))
}

/// All rows of this build.
fn every() -> impl Iterator<Item = Row> {
    #[cfg(feature = "whole")]
    let more = whole::ALL;
    #[cfg(not(feature = "whole"))]
    let more = &[];
    ALL.iter().chain(more).copied()
}

/// Whether an external profiler counts the instructions of this process.
pub(crate) static IS_PROFILED: AtomicBool = AtomicBool::new(false);

/// Runs a row this many times, for an external profiler.
pub fn repeat(row: Row, times: u64) {
    IS_PROFILED.store(true, Ordering::Relaxed);
    let mut call = (row.build)();
    for _ in 0..times {
        call();
    }
}

/// A request as a client sends it.
pub fn request(path: &'static str, authorization: &'static str) -> Request<Body> {
    request_with(path, HeaderValue::from_static(authorization))
}

pub(crate) fn request_with(path: &'static str, authorization: HeaderValue) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = Uri::from_static(path);
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("api.example.com"));
    headers.insert(USER_AGENT, HeaderValue::from_static("client/1.0"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(AUTHORIZATION, authorization);
    request
}

pub const REPORTS: &str = "/reports";
const ORG_REPORTS: &str = "/orgs/org_1234567890/reports";

/// The API without a layer.
pub fn api() -> Router {
    Router::new()
        .route(REPORTS, get(async || "ok"))
        .route("/orgs/{org_code}/reports", get(async || "ok"))
}

/// One request through a router that was resolved before; otherwise axum applies all layers for each request.
pub fn through(
    path: &'static str,
    authorization: &'static str,
    expected: StatusCode,
    router: Router,
) -> Call {
    through_service(path, authorization, expected, router.with_state(()))
}

fn through_service<S>(
    path: &'static str,
    authorization: &'static str,
    expected: StatusCode,
    mut service: S,
) -> Call
where
    S: Service<Request<Body>, Response = http::Response<Body>> + 'static,
    S::Error: std::fmt::Debug,
{
    Box::new(move || {
        let response = service
            .call(request(path, authorization))
            .now_or_never()
            .expect("a request that waits for nothing")
            .expect("a response");
        assert_eq!(response.status(), expected);
    })
}

/// A valid key on the route without a parameter.
pub fn passes(router: Router) -> Call {
    through(REPORTS, BEARER, StatusCode::OK, router)
}
