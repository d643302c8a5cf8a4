//! What a client sees, over a socket.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

mod anonymous;
mod composition;
mod credential;
mod error_format;
mod extractors;
mod header;
mod observer;
mod organization;
mod other_credentials;
mod rejections;
mod responses;
mod secrecy;
mod stacked;
mod unchanged;

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use tower_orgkey::{
    ApiKeyLayer, OrgContext, ScopeSet, Scoped, Verification, require_all_scopes, require_org,
    require_scope,
};

use crate::support::wire::serve;
use crate::support::{Answer, Issuer, org};

/// Valid keys of two organizations, and one key of each other kind.
const ONE: &str = "k_test_one_0123456789";
const TWO: &str = "k_test_two_0123456789";
const NOBODY: &str = "k_test_nobody_0123456";
const USER: &str = "k_test_user_012345678";
const DOUBTFUL: &str = "k_test_doubtful_01234";
const STRANGE: &str = "k_test_strange_012345";
const BAD: &str = "k_test_bad_0123456789";

fn issuer() -> Issuer {
    let user =
        crate::support::issuer::verification("org_one", &["read:reports"]).with_user_id("kp_7");
    Issuer::knowing([
        (ONE, org("org_one", &["read:reports"])),
        (TWO, org("org_two", &["read:reports", "write:reports"])),
        (NOBODY, Answer::Valid(Verification::without_organization())),
        (USER, Answer::Valid(user)),
        (DOUBTFUL, Answer::Unavailable),
        (STRANGE, Answer::Misconfigured),
    ])
}

struct BothReports;

impl ScopeSet for BothReports {
    const ALTERNATIVES: &'static [&'static [&'static str]] = &[&["read:reports", "write:reports"]];
}

async fn whoami(org: OrgContext) -> String {
    org.org_code().to_string()
}

async fn open() -> &'static str {
    "open"
}

fn guarded() -> Router {
    Router::new()
        .route("/whoami", get(whoami).post(whoami))
        .route(
            "/read",
            get(open).route_layer(require_scope("read:reports")),
        )
        .route(
            "/guarded",
            get(open).route_layer(require_all_scopes(["read:reports", "write:reports"])),
        )
        .route("/typed", get(async |_: Scoped<BothReports>| "open"))
        .route(
            "/orgs/{org_code}",
            get(open).route_layer(require_org("org_code")),
        )
        .route(
            "/hidden/{org_code}",
            get(open).route_layer(require_org("org_code").with_not_found()),
        )
        .route(
            "/misnamed/{org}",
            get(open).route_layer(require_org("org_code")),
        )
}

async fn start(issuer: &Issuer) -> SocketAddr {
    serve(guarded().route_layer(ApiKeyLayer::new(issuer.clone()))).await
}
