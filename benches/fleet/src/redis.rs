//! A `redis-server` on loopback.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

pub(crate) struct RedisServer {
    process: Child,
    port: u16,
    _directory: TempDir,
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        let directory = TempDir::new().expect("a directory");
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("a port").port();
        drop(free);
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--port", &port.to_string(), "--dir"])
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Self {
            process,
            port,
            _directory: directory,
        }
    }

    /// Stops the process, which keeps its connections.
    pub(crate) fn hang(&self) {
        let process = self.process.id().to_string();
        let stopped = Command::new("kill").args(["-s", "STOP", &process]).status();
        assert!(stopped.expect("kill").success());
    }

    pub(crate) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Returns the memory that the data uses.
    pub(crate) fn megabytes(&self) -> f64 {
        let port = self.port.to_string();
        let info = Command::new("redis-cli")
            .args(["-p", &port, "INFO", "memory"])
            .output();
        let info = String::from_utf8(info.expect("redis-cli is installed").stdout);
        let info = info.expect("text");
        let bytes = info
            .lines()
            .find_map(|line| line.strip_prefix("used_memory:"));
        let bytes = bytes.and_then(|bytes| bytes.trim().parse::<f64>().ok());
        bytes.expect("a number") / 1_048_576.0
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
