//! Real servers: each test starts its own `redis-server`, on loopback, in a separate directory. The environment variable
//! `ORGKEY_TEST_REDIS` names another program, such as `valkey-server`.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tower_orgkey_fleet::FleetBuilder;

/// A server process. It is killed when this is dropped.
pub(crate) struct RedisServer {
    pub(crate) port: u16,
    directory: PathBuf,
    /// A configuration file, which sentinels need.
    file: Option<PathBuf>,
    arguments: Vec<String>,
    /// More arguments of `redis-cli`.
    client_arguments: Vec<String>,
    child: Option<Child>,
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments
        .iter()
        .map(|&argument| argument.to_owned())
        .collect()
}

impl RedisServer {
    /// Starts a server.
    ///
    /// # Panics
    ///
    /// If `redis-server` is not installed.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with more arguments: `--maxmemory 2mb`.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let mut server = Self::reserve(arguments);
        server.restart();
        server
    }

    /// Reserves the port of a server that is started later.
    pub(crate) fn reserve(arguments: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("orgkey-fleet-{}-{next}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        // The port is free again when the listener is dropped. Another process rarely takes it meanwhile.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            port: listener.local_addr().unwrap().port(),
            directory,
            file: None,
            arguments: owned(arguments),
            client_arguments: Vec::new(),
            child: None,
        }
    }

    /// Starts a sentinel that knows this server as `primary`.
    pub(crate) fn start_sentinel(primary: &Self, quorum: usize) -> Self {
        let mut server = Self::reserve_sentinel(primary, quorum, "");
        server.restart();
        server
    }

    /// Reserves the port of a sentinel with more lines of its configuration.
    pub(crate) fn reserve_sentinel(primary: &Self, quorum: usize, more: &str) -> Self {
        let mut server = Self::reserve(&["--sentinel"]);
        let file = server.directory.join("sentinel.conf");
        let settings = format!(
            "sentinel monitor primary 127.0.0.1 {} {quorum}\n\
             sentinel down-after-milliseconds primary 500\n\
             sentinel failover-timeout primary 3000\n{more}",
            primary.port
        );
        std::fs::write(&file, settings).unwrap();
        server.file = Some(file);
        server
    }

    /// Waits until sentinels are able to promote the replica of their primary.
    pub(crate) fn wait_until_promotable(replica: &Self, sentinels: &[Self]) {
        let port = replica.port.to_string();
        let quorum = format!("OK {} ", sentinels.len());
        let knows = |sentinel: &Self| {
            let replicas = sentinel.reply(&["SENTINEL", "REPLICAS", "primary"]);
            let reply = sentinel.reply(&["SENTINEL", "CKQUORUM", "primary"]);
            reply.starts_with(&quorum) && replicas.lines().any(|line| line == port)
        };
        wait_until("the sentinels know each other and the replica", || {
            let state = replica.reply(&["INFO", "replication"]);
            state.contains("master_link_status:up") && sentinels.iter().all(knows)
        });
    }

    /// Adds arguments for the next start.
    pub(crate) fn add_arguments(&mut self, arguments: &[&str]) {
        self.arguments.extend(owned(arguments));
    }

    /// Adds arguments of `redis-cli`: how it connects.
    pub(crate) fn add_client_arguments(&mut self, arguments: &[&str]) {
        self.client_arguments.extend(owned(arguments));
    }

    /// Starts the process, after it was killed or for the first time, and waits until it answers.
    pub(crate) fn restart(&mut self) {
        self.spawn();
        self.wait_until_it_answers();
    }

    /// Starts the process, and does not wait.
    pub(crate) fn spawn(&mut self) {
        let program = std::env::var("ORGKEY_TEST_REDIS");
        let program = program.unwrap_or_else(|_| "redis-server".to_owned());
        let mut command = Command::new(&program);
        command
            .args(&self.file)
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--enable-debug-command", "local"])
            .args(["--port", &self.port.to_string()])
            .arg("--dir")
            .arg(&self.directory)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = command.spawn();
        self.child = Some(child.unwrap_or_else(|error| {
            panic!("{program}: {error}; install the package redis-server (version 7 or 8)")
        }));
    }

    pub(crate) fn wait_until_it_answers(&self) {
        wait_until("the server answers", || self.reply(&["PING"]) == "PONG");
    }

    /// Kills the process.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a signal to the process: `STOP` or `CONT`.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        let status = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(status.unwrap().success());
    }

    /// Runs a command by `redis-cli` and returns its reply.
    pub(crate) fn command(&self, arguments: &[&str]) -> String {
        self.try_command(arguments)
            .unwrap_or_else(|| panic!("redis-cli {arguments:?} failed"))
    }

    /// Runs a command and returns its reply or error. Empty if the server does not answer.
    pub(crate) fn reply(&self, arguments: &[&str]) -> String {
        self.try_command(arguments).unwrap_or_default()
    }

    fn try_command(&self, arguments: &[&str]) -> Option<String> {
        let port = self.port.to_string();
        let output = Command::new("redis-cli")
            .args(["-p", &port])
            .args(&self.client_arguments)
            .args(arguments)
            .output()
            .expect("install the package redis-tools");
        let reply = String::from_utf8_lossy(&output.stdout);
        output.status.success().then(|| reply.trim().to_owned())
    }

    /// Returns the keys that match a pattern.
    pub(crate) fn keys(&self, pattern: &str) -> Vec<String> {
        let keys = self.command(&["KEYS", pattern]);
        keys.lines()
            .filter(|key| !key.is_empty())
            .map(str::to_owned)
            .collect()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Sets this server as the engine of a fleet.
    pub(crate) fn engine(&self) -> impl FnOnce(FleetBuilder) -> FleetBuilder + use<> {
        let url = self.url();
        move |fleet| fleet.redis(&url)
    }
}

/// Waits for at most 20 s, and blocks the thread.
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
