//! Compares the layer with alternatives, on the same router and in one run.
//!
//! Each alternative is set up as its documentation shows, with its support for organizations and scopes. They differ: a JWT is
//! verified on every request and cannot be revoked; introspection calls an issuer, like this layer.

mod introspection;
mod jwt;

use std::process::ExitCode;

use tower_orgkey_benches::hit;
use tower_orgkey_benches::rows::{self, Row, Under};

#[rustfmt::skip]
const PEERS: &[Row] = &[
    Row { name: "zitadel", says: "zitadel: cached introspection, an extractor", under: Under::Router, build: introspection::zitadel },
    Row { name: "jwt-auth-hs256", says: "axum-jwt-auth: HS256, an extractor", under: Under::Router, build: jwt::axum_jwt_auth },
    Row { name: "aliri-hs256", says: "aliri_tower: HS256 and a scope, layers", under: Under::Router, build: jwt::aliri },
    Row { name: "authorizer-hs256", says: "jwt-authorizer: HS256, a layer", under: Under::Router, build: jwt::authorizer_hs256 },
    Row { name: "authorizer-rs256", says: "jwt-authorizer: RS256, a layer", under: Under::Router, build: jwt::authorizer_rs256 },
    Row { name: "authorizer-eddsa", says: "jwt-authorizer: EdDSA, a layer", under: Under::Router, build: jwt::authorizer_eddsa },
];

/// The rows of the other benches for comparison.
const OURS: [&str; 6] = [
    rows::NO_OP,
    "static-bearer",
    rows::FLOOR,
    rows::OURS,
    "ours-handler",
    "from-fn",
];

fn main() -> ExitCode {
    let rows: Vec<Row> = OURS
        .into_iter()
        .map(rows::find)
        .chain(PEERS.iter().copied())
        .collect();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => hit::table(
            "peers: one request, whole and over a layer that does nothing",
            &rows,
        ),
        // The child process of the bench.
        ["row", name, times] => {
            let row = rows.iter().find(|row| row.name == name);
            let row = row.unwrap_or_else(|| panic!("no row `{name}`"));
            rows::repeat(*row, times.parse().expect("a number of requests"));
        }
        _ => {
            eprintln!("usage: benches/run peers");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
