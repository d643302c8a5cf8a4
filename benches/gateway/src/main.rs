//! `orgkey gateway` under load, relative to servers that are measured in the same rounds: an axum server that answers 200, and
//! nginx without a check.

mod floor;
mod instructions;
mod servers;
#[path = "../../src/table.rs"]
mod table;
#[path = "../../src/wrk.rs"]
mod wrk;

use std::net::{SocketAddr, TcpListener};

use self::servers::{Nginx, Server};

const ROUNDS: usize = 31;

const BARE: &str = "an axum server that answers 200";
const AXUM: &str = "**floor**: a check by hand, a handler of axum";
const HYPER: &str = "the same, a service of hyper";
const PLAIN: &str = "the gateway, issuer and routes only";
const FULL: &str = "the gateway with audit, limits and assertions";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => tables(),
        ["instructions"] => instructions::table(),
        ["serve", row, address, dir] => {
            servers::serve(row, address.parse().expect("an address"), dir.as_ref());
        }
        _ => panic!("usage: benches/run gateway [instructions]"),
    }
}

fn tables() {
    instructions::table();
    let bare = Server::start("bare");
    let axum = Server::start("axum");
    let hyper = Server::start("hyper");
    let plain = Server::start("plain");
    let full = Server::start("full");
    let check = |server: &Server| server.load("/v1/nginx");
    compare(
        "checks: one server thread under `wrk -t1 -c32`",
        BARE,
        &|| check(&bare),
        &[
            (AXUM, &|| check(&axum)),
            (HYPER, &|| check(&hyper)),
            (PLAIN, &|| check(&plain)),
            (FULL, &|| check(&full)),
        ],
    );
    let without = Nginx::start(None, bare.address);
    let with = Nginx::start(Some(plain.address), bare.address);
    let through = |nginx: &Nginx| {
        let url = format!("http://{}/reports/1", nginx.address);
        wrk::rate(&url, [plain.bearer.as_str()])
    };
    compare(
        "requests through nginx, one worker",
        "without a check",
        &|| through(&without),
        &[("with `auth_request` to the gateway", &|| through(&with))],
    );
}

/// Measures rows in alternating rounds, and prints the median of the ratios of each round.
fn compare(title: &str, base: &str, of_base: &dyn Fn() -> f64, rows: &[(&str, &dyn Fn() -> f64)]) {
    let mut ratios = vec![Vec::new(); rows.len()];
    for _ in 0..ROUNDS {
        let base = of_base();
        for ((_, rate), ratios) in rows.iter().zip(&mut ratios) {
            ratios.push(rate() / base);
        }
    }
    let mut lines = vec![vec![base.to_owned(), table::ratio(1.0, 1.0)]];
    for ((row, _), ratios) in rows.iter().zip(ratios) {
        lines.push(vec![
            (*row).to_owned(),
            table::ratio(table::median(ratios), 1.0),
        ]);
    }
    let title = format!("{title}, median of {ROUNDS} rounds");
    table::print(&title, &["row", "requests per second, relative"], &lines);
}

/// Returns an address that was free a moment ago.
fn free_address() -> SocketAddr {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    free.local_addr().expect("a port")
}
