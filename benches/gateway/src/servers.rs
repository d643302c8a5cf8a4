//! The servers that are compared, each in a separate process.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kinde_emulator::{KeySpec, KindeEmulator};
use orgkey::gateway::{Config, Gateway};
use tempfile::TempDir;

use crate::{floor, free_address, wrk};

const ROUTES: &str = "[[route]]\nmatch = 'GET,POST /reports/{id}'\nscopes = ['read:reports']\n\
                      [[route]]\nmatch = '* /orgs/{org_code}/{*rest}'\norganization = 'org_code'\n";

/// A limit that no load reaches.
const FULL: &str = "[limits]\nrequests_per_minute = 4000000000\nburst = 4000000000\n\
                    [audit]\nfile = 'DIR/AUDIT_FILE'\n\
                    [identity]\nassertion_audience = 'reports-api'\nassertion_key_file = 'DIR/key.pem'\n";

const AUDIT_FILE: &str = "audit.jsonl";

/// A server of this program.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: SocketAddr,
    /// The header with a valid key.
    pub(crate) bearer: String,
    /// Its files. Removed when the process has ended.
    dir: TempDir,
}

impl Server {
    pub(crate) fn start(row: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        Self::start_as(Command::new(program), row)
    }

    /// Starts a row by this program, or a command that runs it.
    pub(crate) fn start_as(mut command: Command, row: &str) -> Self {
        let address = free_address();
        let dir = TempDir::new().expect("a directory");
        let mut process = command
            .args(["serve", row, &address.to_string()])
            .arg(dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut key = String::new();
        let out = process.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut key).expect("a key");
        wait_for(address);
        Self {
            process,
            address,
            bearer: format!("Authorization: Bearer {}", key.trim_end()),
            dir,
        }
    }

    /// Requests per second, as nginx sends them.
    pub(crate) fn load(&self, path: &str) -> f64 {
        self.empty_audit_file();
        wrk::rate(&format!("http://{}{path}", self.address), self.headers())
    }

    /// Empties the file, if there is one, so that each round uses the memory of the one before. A virtual machine may have to get
    /// new pages from its host one by one, which takes longer than the check.
    fn empty_audit_file(&self) {
        let path = self.dir.path().join(AUDIT_FILE);
        match File::options().write(true).open(path) {
            Ok(file) => file.set_len(0).expect("an empty file"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
        }
    }

    /// The headers of a check request.
    pub(crate) fn headers(&self) -> [&str; 4] {
        [
            self.bearer.as_str(),
            "X-Original-Method: GET",
            "X-Original-URI: /reports/1",
            "X-Original-Host: api.example.com",
        ]
    }

    /// Ends the server by a signal, and returns what it wrote to a piped standard error.
    pub(crate) fn end(mut self) -> String {
        terminate(&self.process);
        let mut said = String::new();
        if let Some(mut error) = self.process.stderr.take() {
            error.read_to_string(&mut said).expect("text");
        }
        said
    }
}

fn terminate(process: &Child) {
    let _ = Command::new("kill").arg(process.id().to_string()).status();
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn wait_for(address: SocketAddr) {
    while TcpStream::connect(address).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Serves a row forever, and prints a key that it accepts.
pub(crate) fn serve(row: &str, address: SocketAddr, dir: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        if ["bare", "axum", "hyper"].contains(&row) {
            println!("{}", floor::KEY);
            let listener = tokio::net::TcpListener::bind(address)
                .await
                .expect("a port");
            let router = match row {
                "hyper" => return floor::serve(listener).await,
                "axum" => floor::router(),
                // Also the service behind nginx.
                _ => Router::new()
                    .route("/v1/nginx", any(async || ()))
                    .route("/reports/{id}", any(async || ())),
            };
            return axum::serve(listener, router).await.expect("a server");
        }
        let emulator = KindeEmulator::start().await.expect("an issuer");
        let spec = KeySpec::organization("org_1").scopes(["read:reports"]);
        println!("{}", emulator.issue_key(spec).secret());
        let text = config(row, address, &emulator, dir);
        let config = Config::parse(&text).unwrap_or_else(|problems| panic!("{problems:?}"));
        let gateway = Gateway::start(config).await.expect("a gateway");
        gateway.run(std::future::pending()).await;
    });
}

fn config(row: &str, address: SocketAddr, emulator: &KindeEmulator, dir: &Path) -> String {
    std::fs::write(dir.join("secret"), emulator.client_secret()).expect("a file");
    // An Ed25519 key in PKCS #8.
    let prefix = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
    let der = BASE64_STANDARD.encode([&prefix[..], &[7; 32]].concat());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n");
    std::fs::write(dir.join("key.pem"), pem).expect("a file");
    let tables = if row == "full" { FULL } else { "" };
    format!(
        "[listen]\nchecks = '{address}'\n[issuer]\nkind = 'kinde'\nurl = '{}'\nclient_id = '{}'\n\
         client_secret_file = 'DIR/secret'\n{ROUTES}{tables}",
        emulator.issuer_url(),
        emulator.client_id(),
    )
    .replace("DIR", &dir.display().to_string())
    .replace("AUDIT_FILE", AUDIT_FILE)
}

/// nginx in front of a service.
pub(crate) struct Nginx {
    process: Child,
    pub(crate) address: SocketAddr,
    _dir: TempDir,
}

impl Nginx {
    /// Starts nginx with the configuration of the repository if there is a gateway, and without a check if there is none.
    pub(crate) fn start(gateway: Option<SocketAddr>, service: SocketAddr) -> Self {
        let dir = TempDir::new().expect("a directory");
        let address = free_address();
        let text = if let Some(gateway) = gateway {
            let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("../../crates/orgkey/proxies/nginx.conf");
            let text = std::fs::read_to_string(file).expect("the configuration");
            text.replace("8080", &gateway.port().to_string())
        } else {
            "upstream app { server 127.0.0.1:9000; }\n\
             server { listen 127.0.0.1:8000; location / { proxy_set_header Host $host; proxy_pass http://app; } }\n"
                .to_owned()
        };
        let text = text
            .replace("8000", &address.port().to_string())
            .replace("9000", &service.port().to_string());
        std::fs::write(dir.path().join("nginx.conf"), text).expect("a file");
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {name};"));
        let main = format!(
            "daemon off; worker_processes 1; pid nginx.pid; error_log stderr; events {{ }} \
             http {{ access_log off; {} include nginx.conf; }}",
            temporary.join(" ")
        );
        std::fs::write(dir.path().join("main.conf"), main).expect("a file");
        let process = Command::new("nginx")
            .arg("-p")
            .arg(dir.path())
            .args(["-c", "main.conf", "-e", "stderr"])
            .spawn()
            .expect("nginx is installed");
        wait_for(address);
        Self {
            process,
            address,
            _dir: dir,
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // nginx ends its workers on SIGTERM only.
        terminate(&self.process);
        let _ = self.process.wait();
    }
}
