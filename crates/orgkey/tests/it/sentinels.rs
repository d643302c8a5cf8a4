//! Sentinels that a gateway asks for the engine of its fleet.

use std::time::Duration;

use kinde_emulator::KindeEmulator;
use orgkey::gateway::Bounds;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fleet::{PASSWORD, Process, certificate, engine, secret, spread, tables};
use crate::redis_server::RedisServer;
use crate::support::{Files, World};

/// The passwords of the default users of servers and sentinels, and of the user of the gateways at the sentinels.
const OF_SERVERS: &str = "of-servers";
const OF_SENTINELS: &str = "of-sentinels";
const AT_SENTINELS: &str = "at/sent@nels";
/// Parts of errors, of a server that rejects a password and of a gateway that rejects a certificate.
const REJECTED: &str = "Password authentication failed";
pub(crate) const UNTRUSTED: &str = "invalid peer certificate";

#[tokio::test]
async fn sentinels_find_the_engine() {
    let (engine, secret) = (engine(), secret());
    let sentinel = RedisServer::start_sentinel(&engine, 1);
    let emulator = KindeEmulator::start().await.unwrap();
    let start = async |name| {
        let address = format!("127.0.0.1:{}'", engine.port);
        let by_name = format!("primary'\nsentinels = ['{}']", sentinel.url());
        let tables = tables(&engine, &secret, name).replace(&address, &by_name);
        World::before(emulator.clone(), &tables, Bounds::default())
            .await
            .unwrap()
    };
    let (one, _two) = (start("one").await, start("two").await);
    spread(&one, "/v1/invalidate", &json!({ "all": true })).await;
}

/// A primary, its replica and three sentinels. All require passwords and accept only TLS, and gateways have the documented
/// permissions.
struct Servers {
    primary: RedisServer,
    replica: RedisServer,
    sentinels: [RedisServer; 3],
}

impl Servers {
    fn start(secret: &TempDir, [cert, key]: &[String; 2]) -> Self {
        let start = |server: &mut RedisServer, password: &str| {
            let port = server.port.to_string();
            server.add_arguments(&[
                "--port",
                "0",
                "--tls-port",
                &port,
                "--tls-replication",
                "yes",
            ]);
            server.add_arguments(&["--tls-cert-file", cert, "--tls-key-file", key]);
            server.add_arguments(&["--tls-ca-cert-file", cert, "--tls-auth-clients", "no"]);
            server.add_client_arguments(&["--tls", "--cacert", cert]);
            server.add_client_arguments(&["--no-auth-warning", "--pass", password]);
            server.restart();
        };
        let server = |more: &[&str]| {
            let rules = tower_orgkey_fleet::ACL_RULES.replace("acme-api", "gateways");
            let password = format!(">{PASSWORD}");
            let mut server = RedisServer::reserve(&["--repl-diskless-sync-delay", "0"]);
            server.add_arguments(&["--requirepass", OF_SERVERS, "--masterauth", OF_SERVERS]);
            server.add_arguments(&["--user", "orgkey", "on", &password]);
            server.add_arguments(&rules.split_whitespace().collect::<Vec<_>>());
            server.add_arguments(more);
            start(&mut server, OF_SERVERS);
            server
        };
        let primary = server(&[]);
        let of = format!("127.0.0.1 {}", primary.port);
        let replica = server(&["--replicaof", &of]);
        let settings = format!(
            "requirepass {OF_SENTINELS}\nsentinel sentinel-pass {OF_SENTINELS}\n\
             sentinel auth-pass primary {OF_SERVERS}\n\
             user gateway on >{AT_SENTINELS} -@all +@connection +role +sentinel|masters\n"
        );
        let sentinels = [(); 3].map(|()| {
            let mut sentinel = RedisServer::reserve_sentinel(&primary, 2, &settings);
            start(&mut sentinel, OF_SENTINELS);
            sentinel
        });
        RedisServer::wait_until_promotable(&replica, &sentinels);
        std::fs::write(secret.path().join("at-sentinels"), AT_SENTINELS).unwrap();
        Self {
            primary,
            replica,
            sentinels,
        }
    }

    fn tables(&self, secret: &TempDir, name: &str) -> String {
        let [a, b, c] = self.sentinels.each_ref().map(|sentinel| sentinel.port);
        let by_name = format!(
            "rediss://orgkey@primary'\nsentinels = ['rediss://gateway@127.0.0.1:{a}', \
             'rediss://gateway@127.0.0.1:{b}', 'rediss://gateway@127.0.0.1:{c}']\n\
             sentinel_password_file = '{}/at-sentinels'",
            secret.path().display()
        );
        let address = format!("redis://orgkey@127.0.0.1:{}'", self.primary.port);
        tables(&self.primary, secret, name).replace(&address, &by_name)
    }
}

/// Posts until both gateways have applied it.
async fn reaches_both(gateway: &Process) {
    let mut last = String::new();
    for _ in 0..600 {
        let reply = gateway.post("/v1/invalidate").await;
        reply.text().clone_into(&mut last);
        let reach: Value = serde_json::from_str(&last).unwrap();
        if reach["applied"]
            .as_array()
            .is_some_and(|all| all.len() == 2)
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not applied by both: {last}");
}

#[tokio::test]
async fn sentinels_with_passwords_and_tls_find_the_engine() {
    let secret = secret();
    let certificate = certificate(&secret);
    let [cert, _] = &certificate;
    let mut servers = Servers::start(&secret, &certificate);
    let emulator = KindeEmulator::start().await.unwrap();
    let files = Files::new(&emulator);
    let config = |name: &str, wrong: Option<&str>| {
        let mut tables = servers.tables(&secret, name);
        if let Some(password) = wrong {
            // The password of others.
            let file = |name: &str| format!("'{}/{name}'", secret.path().display());
            assert!(tables.contains(&file(password)), "{tables}");
            tables = tables.replace(&file(password), &file("fleet"));
        }
        let path = files.path(&format!("{name}.toml"));
        std::fs::write(&path, files.config(&emulator, &tables)).unwrap();
        path
    };
    for (wrong, roots, error) in [
        (Some("password"), cert.as_str(), REJECTED),
        (Some("at-sentinels"), cert.as_str(), REJECTED),
        (None, "/dev/null", UNTRUSTED),
    ] {
        let gateway = Process::start(&config("wrong", wrong), roots);
        gateway.until_logged(error).await;
        let status = gateway.post("/v1/invalidate").await.status;
        assert_eq!(status, 503, "{wrong:?} {roots}");
    }
    // By the servers that they are for.
    let [sentinel, ..] = &servers.sentinels;
    for (server, user) in [(&servers.primary, "orgkey"), (sentinel, "gateway")] {
        let denied = server.command(&["ACL", "LOG"]);
        assert!(denied.contains("auth") && denied.contains(user), "{denied}");
    }
    let one = Process::start(&config("one", None), cert);
    let _two = Process::start(&config("two", None), cert);
    reaches_both(&one).await;

    servers.primary.kill();
    reaches_both(&one).await;
    assert!(servers.replica.command(&["ROLE"]).starts_with("master"));
    assert_eq!(servers.replica.command(&["ACL", "LOG"]), "", "denied");
}
