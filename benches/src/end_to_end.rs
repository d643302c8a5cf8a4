//! Throughput over loopback, with a load generator, relative to a server without a layer.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::time::Duration;

use axum::Router;
use tower_orgkey::require_scope;

use crate::rows::{self, REPORTS, SCOPE, hand_made, ours};
use crate::{table, wrk};

const ROUNDS: usize = 15;
const ROWS: &[(&str, &str)] = &[
    ("bare", "the server without the layer"),
    ("ours", "ours: `(auth, require_scope(..))`"),
    ("from-fn", "typical `from_fn`"),
    #[cfg(feature = "whole")]
    (
        "whole",
        "audit to a file, usage, auth, rate, settings, scope",
    ),
];

pub(crate) fn table() {
    let servers: Vec<(Server, Vec<f64>)> = ROWS
        .iter()
        .map(|(name, _)| (Server::start(name), Vec::new()))
        .collect();
    let mut servers = servers;
    for _ in 0..ROUNDS {
        for (server, rates) in &mut servers {
            rates.push(server.load());
        }
    }
    let rates: Vec<f64> = servers
        .into_iter()
        .map(|(_, rates)| table::median(rates))
        .collect();
    let lines: Vec<_> = ROWS
        .iter()
        .zip(&rates)
        .map(|((_, says), rate)| {
            vec![
                (*says).to_owned(),
                format!("{rate:.0}"),
                format!("{:.3}", rate / rates[0]),
                format!("{:.3}", rate / rates[2]),
            ]
        })
        .collect();
    table::print(
        &format!(
            "end to end: one server thread under `wrk -t1 -c32`, median of {ROUNDS} alternating rounds"
        ),
        &[
            "row",
            "requests per second",
            "relative to the bare server",
            "relative to `from_fn`",
        ],
        &lines,
    );
}

struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start(row: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("a port");
        drop(free);
        let program = std::env::current_exe().expect("this program");
        let process = Command::new(program)
            .args(["serve", row, &address.to_string()])
            .spawn()
            .expect("a child");
        while TcpStream::connect(address).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { process, address }
    }

    /// Requests per second over one second.
    fn load(&self) -> f64 {
        let bearer = format!("Authorization: {}", rows::BEARER);
        wrk::rate(
            &format!("http://{}{REPORTS}", self.address),
            [bearer.as_str()],
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Serves a row forever.
pub(crate) fn serve(row: &str, address: &str) {
    let router: Router = match row {
        "bare" => rows::api(),
        "ours" => rows::api().layer((ours::warm_layer(), require_scope(SCOPE))),
        "from-fn" => hand_made::typical_router(),
        #[cfg(feature = "whole")]
        "whole" => rows::whole::whole_router(&rows::whole::trail()),
        _ => panic!("no row `{row}`"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .expect("a port");
        axum::serve(listener, router).await.expect("a server");
    });
}
