//! Throughput over loopback, with a load generator, relative to a server without a layer.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

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
    #[cfg(feature = "whole")]
    ("trace-layer", "tower-http's `TraceLayer`, JSON to a file"),
    #[cfg(feature = "whole")]
    (
        "traced-from-fn",
        "a `from_fn` with one `tracing` event, JSON to a file",
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
    fn start(row: &'static str) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut process = Command::new(program)
            .args(["serve", row])
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        // The child chooses the port: one that is free here could be taken by another process before the child binds it.
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a pipe"))
            .read_line(&mut line)
            .expect("the child's address");
        let address = line.trim().parse().expect("the child's address");
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

/// Serves a row forever, and prints its address.
pub(crate) fn serve(row: &str) {
    let router: Router = match row {
        "bare" => rows::api(),
        "ours" => rows::api().layer((ours::warm_layer(), require_scope(SCOPE))),
        "from-fn" => hand_made::typical_router(),
        #[cfg(feature = "whole")]
        "whole" => rows::whole::whole_router(&rows::whole::trail()),
        #[cfg(feature = "whole")]
        "trace-layer" => rows::traced::globally(rows::traced::trace_layer_router),
        #[cfg(feature = "whole")]
        "traced-from-fn" => rows::traced::globally(rows::traced::from_fn_router),
        _ => panic!("no row `{row}`"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        println!("{}", listener.local_addr().expect("a port"));
        axum::serve(listener, router).await.expect("a server");
    });
}
