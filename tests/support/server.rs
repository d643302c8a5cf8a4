//! Servers in other languages, started by tests. `./test` installs what they need. Included beside `python`.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::python;

/// A server on loopback. It ends with this value.
pub(crate) struct Server {
    /// The JSON that it printed when it was ready, with its `port`.
    pub(crate) ready: Value,
    _child: Child,
}

impl Server {
    /// Starts a server, and waits until it prints a line of JSON.
    pub(crate) async fn start(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let child = command.spawn();
        let mut child =
            child.unwrap_or_else(|error| panic!("{command:?}: {error}; `./test` installs it"));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = async {
            loop {
                let line = lines.next_line().await.unwrap();
                let line = line.unwrap_or_else(|| {
                    panic!("{command:?} ended; `./test` installs what it needs")
                });
                if let Ok(ready @ Value::Object(_)) = serde_json::from_str(&line) {
                    return ready;
                }
            }
        };
        let ready = tokio::time::timeout(Duration::from_secs(60), ready).await;
        let ready = ready.unwrap_or_else(|_| panic!("{command:?} is not ready after 60 s"));
        // So that it never waits for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self {
            ready,
            _child: child,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        let port = self.ready["port"].as_u64().unwrap();
        SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()))
    }
}

/// Returns the command for a script in `tests/node`, whose packages are in the target directory.
pub(crate) fn node(script: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let packages = std::env::var_os("ORGKEY_TEST_NODE")
        .map_or_else(|| root.join("target/node"), PathBuf::from);
    let mut command = python::program("node");
    command
        .arg(root.canonicalize().unwrap().join("tests/node").join(script))
        .current_dir(packages);
    command
}
