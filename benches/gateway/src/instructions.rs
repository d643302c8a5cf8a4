//! Instructions of a check in the whole process of a server, counted by callgrind.
//!
//! The server gets a few checks in one run and many in another. The difference excludes its start.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::servers::Server;
use crate::{AXUM, BARE, FULL, HYPER, PLAIN, table};

/// As many as under `wrk`.
const CONNECTIONS: usize = 32;
const FEW: usize = 50;
const MANY: usize = 550;

/// Prints the instructions of each row.
pub(crate) fn table() {
    let bare = of("bare");
    let rows = [
        (BARE, "bare"),
        (AXUM, "axum"),
        (HYPER, "hyper"),
        (PLAIN, "plain"),
        (FULL, "full"),
    ];
    let lines = rows.map(|(title, row)| {
        let count = if row == "bare" { bare } else { of(row) };
        vec![
            title.to_owned(),
            format!("{count:.0}"),
            format!("{:+.0}", count - bare),
        ]
    });
    let columns = ["row", "instructions of a check", "over the first"];
    table::print("checks: the whole process of the server", &columns, &lines);
}

/// Returns the instructions of a check.
fn of(row: &str) -> f64 {
    let more = (MANY - FEW) * CONNECTIONS;
    (in_all(row, MANY) - in_all(row, FEW)) / more as f64
}

/// Returns the instructions of a server that gets this many checks on each connection.
fn in_all(row: &str, checks: usize) -> f64 {
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().expect("this program"))
        .stderr(Stdio::piped());
    let server = Server::start_as(valgrind, row);
    send(&server, checks);
    let said = server.end();
    let (_, count) = said.split_once("Collected :").expect("valgrind's figure");
    let count = count.split_whitespace().next().expect("a number");
    count.parse().expect("a number")
}

/// Sends rounds of checks, one on each connection.
fn send(server: &Server, rounds: usize) {
    let headers = server.headers().join("\r\n");
    let request = format!(
        "GET /v1/nginx HTTP/1.1\r\nHost: {}\r\n{headers}\r\n\r\n",
        server.address
    );
    let connect = |_| TcpStream::connect(server.address).expect("a connection");
    let mut connections: Vec<_> = (0..CONNECTIONS).map(connect).collect();
    for _ in 0..rounds {
        for connection in &mut connections {
            connection.write_all(request.as_bytes()).expect("a server");
        }
        connections.iter_mut().for_each(read_response);
    }
}

/// Reads a response of 200 without a body.
fn read_response(connection: &mut TcpStream) {
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        let mut buffer = [0; 4_096];
        let len = connection.read(&mut buffer).expect("a response");
        assert!(len > 0, "the connection is closed");
        response.extend_from_slice(&buffer[..len]);
    }
    assert!(response.starts_with(b"HTTP/1.1 200 "));
}
