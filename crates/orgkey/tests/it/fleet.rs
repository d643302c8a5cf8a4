//! Gateways of a fleet, with a real engine.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Full;
use kinde_emulator::KindeEmulator;
use orgkey::gateway::{Bounds, Config, Gateway};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tracing::Level;

use crate::checks::ROUTES;
use crate::log::Log;
use crate::redis_server::RedisServer;
use crate::sentinels::UNTRUSTED;
use crate::support::{ADMIN_TOKEN, Files, Reply, World, request, send, until_line};

pub(crate) const PASSWORD: &str = "a/p@ss:word";

pub(crate) fn engine() -> RedisServer {
    let password = format!(">{PASSWORD}");
    RedisServer::start_with(&["--user", "orgkey", "on", &password, "~*", "&*", "+@all"])
}

/// The secret of a fleet and the password of its engine, in files.
pub(crate) fn secret() -> TempDir {
    let dir = TempDir::new().unwrap();
    // 32 bytes.
    std::fs::write(dir.path().join("fleet"), format!("{}=", "A".repeat(43))).unwrap();
    std::fs::write(dir.path().join("password"), format!("{PASSWORD}\n")).unwrap();
    dir
}

pub(crate) fn tables(engine: &RedisServer, secret: &TempDir, name: &str) -> String {
    format!(
        "{ROUTES}\n[fleet]\nname = 'gateways'\nredis = 'redis://orgkey@127.0.0.1:{}'\n\
         redis_password_file = '{dir}/password'\nsecret_file = '{dir}/fleet'\nnode_name = '{name}'\n[audit]\nfile = 'DIR/audit.jsonl'\n",
        engine.port,
        dir = secret.path().display()
    )
}

async fn check(world: &World, key: &str) -> u16 {
    let bearer = format!("Bearer {key}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-original-method", "GET"),
        ("x-original-uri", "/reports/1"),
    ];
    let reply = send(world.checks, request("GET", "/v1/nginx", &headers)).await;
    reply.status.as_u16()
}

async fn post(world: &World, path: &str, body: &Value) -> Reply {
    let token = format!("Bearer {ADMIN_TOKEN}");
    let request = request("POST", path, &[("authorization", &token)]);
    send(world.admin, request.map(|_| Full::from(body.to_string()))).await
}

/// Posts until both gateways have applied it.
pub(crate) async fn spread(world: &World, path: &str, body: &Value) {
    let both = async {
        loop {
            let reply = post(world, path, body).await;
            if reply.status == 200 {
                let reach: Value = serde_json::from_slice(&reply.body).unwrap();
                assert_eq!(reach["missing"], json!([]), "{reach}");
                if reach["applied"].as_array().unwrap().len() == 2 {
                    return;
                }
            }
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), both).await;
    waited.unwrap();
}

#[tokio::test]
async fn revocations_reach_the_other_gateway() {
    let (mut engine, secret) = (engine(), secret());
    let emulator = KindeEmulator::start().await.unwrap();
    let start = async |name| {
        let tables = tables(&engine, &secret, name);
        World::before(emulator.clone(), &tables, Bounds::default())
            .await
            .unwrap()
    };
    let (one, two) = (
        start("one").await,
        start("two'\nexpected_nodes = 3\n#'").await,
    );
    spread(&one, "/v1/invalidate", &json!({ "all": true })).await;

    let key = one.key("org_1", &["read:reports"]);
    assert_eq!(
        (check(&one, &key).await, check(&two, &key).await),
        (200, 200)
    );

    let org = json!({ "org_code": "org_1" });
    spread(&one, "/v1/block", &org).await;
    assert_eq!(
        (check(&one, &key).await, check(&two, &key).await),
        (401, 401)
    );
    spread(&two, "/v1/unblock", &org).await;
    assert_eq!(
        (check(&one, &key).await, check(&two, &key).await),
        (200, 200)
    );

    // One more than there are.
    let reply = post(&two, "/v1/block", &json!({ "org_code": "org_2" })).await;
    let reach: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(reach["hidden"], json!(1), "{reach}");

    // Without the engine, the response says that the other gateway does not know.
    engine.kill();
    let reply = post(&one, "/v1/block", &org).await;
    assert_eq!(reply.status, 503);
    assert!(reply.text().contains("this node only"), "{reply:?}");
    assert_eq!(
        (check(&one, &key).await, check(&two, &key).await),
        (401, 200)
    );
    let file = one.files.path("audit.jsonl");
    until_line(&file, |line| {
        line.contains("/v1/block") && line.contains("org_1")
    })
    .await;
}

/// Sends the block of an organization, and hangs up before the answer.
async fn hang_up_on_block(world: &World, org: &str) {
    let body = json!({ "org_code": org }).to_string();
    let head = format!(
        "POST /v1/block HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_TOKEN}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(world.admin).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
}

fn is_block_of_org_1(line: &str) -> bool {
    line.contains("/v1/block") && line.contains("org_1")
}

#[tokio::test]
async fn fault_200_the_client_of_a_revocation_hangs_up() {
    let (mut engine, secret) = (engine(), secret());
    let world = World::start(&tables(&engine, &secret, "one")).await;
    // Without the engine, the gateway waits before it answers.
    engine.kill();
    hang_up_on_block(&world, "org_1").await;
    let file = world.files.path("audit.jsonl");
    until_line(&file, is_block_of_org_1).await;
}

#[tokio::test]
async fn fault_200b_shutdown_awaits_revocations() {
    let (mut engine, secret) = (engine(), secret());
    let mut world = World::start(&tables(&engine, &secret, "one")).await;
    let key = world.key("org_1", &["read:reports"]);
    assert_eq!(check(&world, &key).await, 200);
    engine.kill();
    hang_up_on_block(&world, "org_1").await;
    while check(&world, &key).await != 401 {}
    let file = world.files.path("audit.jsonl");
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(!written.lines().any(is_block_of_org_1), "not under way");
    world.stop.take().unwrap().send(()).unwrap();
    (&mut world.running).await.unwrap();
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(written.lines().any(is_block_of_org_1), "{written}");
}

#[tokio::test]
async fn fault_221_updates_that_are_not_sent_are_logged() {
    let (mut engine, secret) = (engine(), secret());
    for is_down in [true, false] {
        let mut world = World::start(&tables(&engine, &secret, "one")).await;
        world.handle.until_ready().await;
        let (log, _guard) = Log::capture_up_to(Level::ERROR);
        if is_down {
            engine.kill();
            let reply = post(&world, "/v1/block", &json!({ "org_code": "org_1" })).await;
            assert_eq!(reply.status, 503);
        }
        world.stop.take().unwrap().send(()).unwrap();
        (&mut world.running).await.unwrap();
        let lines = log.lines("ERROR", "updates are not sent to the fleet");
        assert_eq!(lines.len(), usize::from(is_down), "{}", log.text());
        assert!(lines.iter().all(|line| line.contains("unsent=1")));
        if is_down {
            engine.restart();
        }
    }
}

#[tokio::test]
async fn an_issuer_without_an_environment_joins_no_fleet() {
    let (engine, secret) = (engine(), secret());
    let emulator = KindeEmulator::start().await.unwrap();
    let files = Files::new(&emulator);
    let config = |environment: &str| {
        let text = files.config(&emulator, &tables(&engine, &secret, "one"));
        let (before, after) = text.split_once("[issuer]").unwrap();
        let (_, after) = after.split_once("[[route]]").unwrap();
        let token = files.path("token");
        let issuer = format!(
            "[issuer]\nkind = 'unkey'\ntoken_file = '{}'\n{environment}\n[[route]]",
            token.display()
        );
        Config::parse(&format!("{before}{issuer}{after}")).unwrap()
    };
    let error = Gateway::start(config("")).await.unwrap_err().to_string();
    assert!(error.contains("identity"), "{error}");
    Gateway::start(config("environment = 'live'"))
        .await
        .unwrap();
}

/// With a certificate of a private authority. The gateway is a separate process, because it reads the roots from its environment.
#[tokio::test]
async fn the_engine_is_reached_by_tls() {
    let secret = secret();
    let [cert, key] = certificate(&secret);
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let (port, password) = (port.to_string(), format!(">{PASSWORD}"));
    let engine = RedisServer::start_with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-auth-clients",
        "no",
        "--user",
        "orgkey",
        "on",
        &password,
        "~*",
        "&*",
        "+@all",
    ]);
    let emulator = KindeEmulator::start().await.unwrap();
    let files = Files::new(&emulator);
    let tables = tables(&engine, &secret, "one").replace(
        &format!("redis://orgkey@127.0.0.1:{}", engine.port),
        &format!("rediss://orgkey@127.0.0.1:{port}"),
    );
    let config = files.path("gateway.toml");
    std::fs::write(&config, files.config(&emulator, &tables)).unwrap();
    let gateway = Process::start(&config, "/dev/null");
    gateway.until_logged(UNTRUSTED).await;
    assert_eq!(gateway.post("/v1/invalidate").await.status, 503);
    let gateway = Process::start(&config, &cert);
    let mut last = 0;
    for _ in 0..100 {
        last = gateway.post("/v1/invalidate").await.status.as_u16();
        if last == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(last, 200);
}

/// In a separate process, which has a recorder of metrics.
#[tokio::test]
async fn page_and_metrics_show_the_fleet() {
    let (mut engine, secret) = (engine(), secret());
    let emulator = KindeEmulator::start().await.unwrap();
    let files = Files::new(&emulator);
    let config = files.path("gateway.toml");
    let of_one = files.config(&emulator, &tables(&engine, &secret, "one"));
    std::fs::write(&config, of_one).unwrap();
    let one = Process::start(&config, "/dev/null");
    let tables = tables(&engine, &secret, "two");
    let two = World::before(emulator.clone(), &tables, Bounds::default());
    let two = two.await.unwrap();
    spread(&two, "/v1/invalidate", &json!({ "all": true })).await;
    let sent = post(&two, "/v1/invalidate", &json!({ "all": true })).await;
    assert_eq!(sent.status, 200);

    one.until_shown("/", ["followed for ", "one, two"]).await;
    let page = one.get("/").await;
    assert!(!page.contains("not followed"), "{page}");
    let gauges = ["orgkey_fleet_followed 1", "orgkey_fleet_nodes 2"];
    one.until_shown("/metrics", gauges).await;
    one.until_page_has_position().await;
    one.until_shown("/metrics", ["orgkey_fleet_lag 0", "orgkey_fleet_unsent 0"])
        .await;

    engine.kill();
    assert_eq!(one.post("/v1/invalidate").await.status, 503);
    let unsent = "Updates not sent</th><td class=\"number\">1<";
    one.until_shown("/", ["not followed for ", unsent]).await;
    let gauges = ["orgkey_fleet_followed 0", "orgkey_fleet_unsent 1"];
    one.until_shown("/metrics", gauges).await;
}

/// Writes a certificate for loopback, and its key. Returns their paths.
pub(crate) fn certificate(dir: &TempDir) -> [String; 2] {
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let [cert, key] = ["cert", "key"].map(|name| dir.path().join(name).display().to_string());
    std::fs::write(&cert, certified.cert.pem()).unwrap();
    std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    [cert, key]
}

/// A gateway, until it is dropped.
pub(crate) struct Process {
    child: Child,
    admin: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Process {
    /// Starts a gateway that trusts these authorities.
    pub(crate) fn start(config: &Path, roots: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_orgkey"))
            .args(["gateway", "--config"])
            .arg(config)
            .env("SSL_CERT_FILE", roots)
            .env_remove("SSL_CERT_DIR")
            // Why the engine is not reached.
            .env("RUST_LOG", "info,tower_orgkey_fleet=debug")
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.find_map(|line| line.ok().filter(|line| line.contains("admin=")));
        let log = Arc::<Mutex<String>>::default();
        let written = Arc::clone(&log);
        // For as long as the gateway runs: a full pipe would stop it.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                written.lock().unwrap().push_str(&line);
            }
        });
        let line = line.unwrap();
        let (_, rest) = line.split_once("admin=").unwrap();
        let end = rest.find(|c: char| !"0123456789.:".contains(c));
        let admin = rest[..end.unwrap_or(rest.len())].parse().unwrap();
        Self { child, admin, log }
    }

    /// Waits until the log has this text.
    pub(crate) async fn until_logged(&self, text: &str) {
        for _ in 0..600 {
            if self.log.lock().unwrap().contains(text) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{text:?} is not in {}", self.log.lock().unwrap());
    }

    async fn request(&self, method: &str, path: &str, body: String) -> Reply {
        let token = format!("Bearer {ADMIN_TOKEN}");
        let request = request(method, path, &[("authorization", &token)]);
        send(self.admin, request.map(|_| Full::from(body))).await
    }

    /// Posts an update of all keys.
    pub(crate) async fn post(&self, path: &str) -> Reply {
        let body = json!({ "all": true }).to_string();
        self.request("POST", path, body).await
    }

    async fn get(&self, path: &str) -> String {
        let reply = self.request("GET", path, String::new()).await;
        reply.text().to_owned()
    }

    /// Waits until the status page has the position of the metrics, which moves meanwhile, and all updates are applied.
    async fn until_page_has_position(&self) {
        let mut last = (String::new(), String::new());
        for _ in 0..200 {
            last = (self.get("/metrics").await, self.get("/").await);
            let (metrics, page) = &last;
            let mut lines = metrics.lines();
            let position = lines.find_map(|line| line.strip_prefix("orgkey_fleet_position "));
            let position: u64 = position.unwrap().parse().unwrap();
            let cell = format!("Position in the log</th><td class=\"number\">{position}<");
            let no_lag = "Updates not applied</th><td class=\"number\">0<";
            if position >= 2 && page.contains(&cell) && page.contains(no_lag) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{last:?}");
    }

    /// Waits until a page has these texts.
    async fn until_shown(&self, path: &str, texts: [&str; 2]) {
        let mut page = String::new();
        for _ in 0..200 {
            page = self.get(path).await;
            if texts.iter().all(|text| page.contains(text)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{texts:?} are not in {page}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
