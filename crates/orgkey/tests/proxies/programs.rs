//! Starts the proxies with the files of `proxies/`, on free ports.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::support::{request, send};

/// A proxy and the way it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    Nginx,
    Traefik,
    Caddy,
    EnvoyHttp,
    EnvoyGrpc,
}

impl Setup {
    pub(crate) fn is_envoy(self) -> bool {
        matches!(self, Self::EnvoyHttp | Self::EnvoyGrpc)
    }

    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Nginx => &["nginx.conf"],
            Self::Traefik => &["traefik.yaml", "traefik-routes.yaml"],
            Self::Caddy => &["Caddyfile"],
            Self::EnvoyHttp => &["envoy-http.yaml"],
            Self::EnvoyGrpc => &["envoy-grpc.yaml"],
        }
    }

    fn command(self, dir: &Path) -> Command {
        let mut command;
        match self {
            Self::Nginx => {
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|name| format!("{name}_temp_path {name};"));
                let main = format!(
                    "daemon off; pid nginx.pid; error_log stderr; events {{ }} http {{ access_log off; {} include nginx.conf; }}",
                    temporary.join(" ")
                );
                std::fs::write(dir.join("main.conf"), main).unwrap();
                command = Command::new("nginx");
                command
                    .arg("-p")
                    .arg(dir)
                    .args(["-c", "main.conf", "-e", "stderr"]);
            }
            Self::Traefik => {
                command = Command::new("traefik");
                command.arg("--configFile=traefik.yaml");
            }
            Self::Caddy => {
                command = Command::new("caddy");
                command.args(["run", "--config", "Caddyfile", "--adapter", "caddyfile"]);
            }
            Self::EnvoyHttp | Self::EnvoyGrpc => {
                command = Command::new("envoy");
                command.args([
                    "-c",
                    self.files()[0],
                    "--use-dynamic-base-id",
                    "--concurrency",
                    "1",
                    "-l",
                    "warning",
                ]);
            }
        }
        command
            .current_dir(dir)
            .env("HOME", dir)
            .stdout(Stdio::null());
        command
    }
}

/// A running proxy. Killed when it is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    process: Child,
    _dir: TempDir,
}

impl Proxy {
    pub(crate) async fn start(setup: Setup, gateway: SocketAddr, service: SocketAddr) -> Self {
        let dir = TempDir::new().unwrap();
        // Free until the proxy takes it.
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        for file in setup.files() {
            let from = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("proxies")
                .join(file);
            let text = std::fs::read_to_string(from).unwrap();
            let text = [("8000", address), ("8080", gateway), ("9000", service)]
                .iter()
                .fold(text, |text, (port, address)| {
                    assert!(
                        text.contains(port) || setup == Setup::Traefik,
                        "{file} {port}"
                    );
                    text.replace(port, &address.port().to_string())
                });
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let process = setup.command(dir.path()).spawn();
        let process = process.unwrap_or_else(|error| {
            panic!("install the program for {setup:?}, see the head of the test: {error}")
        });
        let mut proxy = Self {
            address,
            process,
            _dir: dir,
        };
        // Traefik listens before it has its routes.
        for _ in 0..600 {
            if TcpStream::connect(address).await.is_ok()
                && send(address, request("GET", "/health", &[])).await.status == 200
            {
                return proxy;
            }
            assert_eq!(proxy.process.try_wait().unwrap(), None, "{setup:?} ended");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{setup:?} does not answer");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // nginx ends its workers on SIGTERM only.
        let _ = Command::new("kill")
            .arg(self.process.id().to_string())
            .status();
        let _ = self.process.wait();
    }
}
