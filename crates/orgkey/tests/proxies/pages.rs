//! Pages in a real browser: a name that a tenant chose neither runs nor loads anything, and the pages are accessible.
//!
//! Needs Chromium, and the packages of `tests/node`. Pictures of the pages are in `target/tmp`.

use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use crate::server::node;
use crate::support::{ADMIN_TOKEN, World, request, send};
use crate::{TABLES, python};

const NAMES: [&str; 7] = [
    "<script>alert(1)</script>",
    "\"><img src=http://127.0.0.1:9/img onerror=alert(2)>",
    "</style><svg onload=alert(3)>",
    "'><iframe title=x srcdoc=\"<script>parent.alert(4)</script>\"></iframe>",
    "<link rel=stylesheet href=http://127.0.0.1:9/css>",
    "user\u{202e}gnp.exe",
    "<p style=color:#eee;background:#fff;width:9999px>unreadable",
];

/// What the browser saw.
#[derive(Debug, Deserialize)]
struct Visit {
    page: String,
    view: String,
    dialogs: Vec<String>,
    requests: Vec<String>,
    errors: Vec<String>,
    barriers: Vec<String>,
    is_too_wide: bool,
}

async fn visit(pages: &[(&str, String)]) -> Vec<Visit> {
    let mut command = node("pages.js");
    command.arg(env!("CARGO_TARGET_TMPDIR"));
    for (name, url) in pages {
        command.args([name, url.as_str()]);
    }
    let output = python::output(command).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let visits: Vec<Visit> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(visits.len(), pages.len() * 3);
    visits
}

fn url(file: &Path) -> String {
    url::Url::from_file_path(file).unwrap().into()
}

/// The review of keys with hostile names, and the next one, which has changes.
async fn reviews(dir: &Path) -> Vec<(&'static str, String)> {
    let now = u64::try_from(UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    let mut lines = String::new();
    for (sequence, name) in NAMES.iter().enumerate() {
        let org = name.replace(' ', "/");
        let time = now - 86_400_000 * (sequence as u64) * 8;
        let line = json!({
            "class_uid": 6003,
            "metadata": { "product": { "name": "tower-orgkey" }, "uid": format!("{:016x}-{sequence}", 7), "sequence": sequence },
            "time": time, "end_time": time, "action_id": 1 + sequence % 2, "status_code": name,
            "actor": { "user": { "org": { "uid": org }, "programmatic_credentials": [{ "uid": format!("key_{sequence}") }] } },
            "authorizations": [{ "decision": "allowed", "policy": { "data": { "any_of": [[name]] } } }],
        });
        lines += &format!("{line}\n");
    }
    let keys = |suffix: &str| {
        let keys = NAMES.iter().enumerate().map(|(n, name)| {
            json!({ "id": format!("key_{n}"), "name": name, "key_suffix": suffix, "scopes": [name, "read", NAMES[0]],
                    "created_on": "2020-01-01T00:00:00Z", "organization_id": name.replace(' ', "/") })
        });
        json!(keys.collect::<Vec<_>>()).to_string()
    };
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    write("audit.jsonl", &lines);
    write("first.json", &keys(NAMES[0]));
    write("second.json", &keys(NAMES[1]));
    let run = async |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orgkey"));
        command
            .args(["review", "--audit", "audit.jsonl", "--name-template"])
            .args(["{org}-{env}"])
            .args(args)
            .current_dir(dir);
        let output = command.output().await.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
    };
    run(&["--keys", "first.json", "--out", "1.html", "--out", "1.json"]).await;
    let next = ["--keys", "second.json", "--previous", "1.json"];
    run(&[&next[..], &["--out", "2.html"]].concat()).await;
    let page = std::fs::read_to_string(dir.join("2.html")).unwrap();
    assert!(page.contains("&lt;script&gt;alert(1)"));
    vec![
        ("review", url(&dir.join("1.html"))),
        ("next-review", url(&dir.join("2.html"))),
    ]
}

/// The status page of a gateway without requests, and of one with keys of hostile organizations.
async fn status_pages() -> (Vec<World>, Vec<(&'static str, String)>) {
    let (empty, busy) = (World::start(TABLES).await, World::start(TABLES).await);
    for name in NAMES.iter().filter(|name| name.is_ascii()) {
        for scopes in [&["read:reports"][..], &[]] {
            let bearer = format!("Bearer {}", busy.key(&name.replace(' ', "/"), scopes));
            let headers = [
                ("authorization", bearer.as_str()),
                ("x-original-method", "GET"),
                ("x-original-uri", "/reports/1"),
            ];
            let reply = send(busy.checks, request("GET", "/v1/nginx", &headers)).await;
            assert_eq!(reply.status == 200, !scopes.is_empty());
        }
    }
    let url = |world: &World| format!("http://any:{ADMIN_TOKEN}@{}/", world.admin);
    let pages = vec![("status-empty", url(&empty)), ("status", url(&busy))];
    (vec![empty, busy], pages)
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_197_hostile_names_do_nothing_in_a_browser() {
    let dir = TempDir::new().unwrap();
    let mut pages = reviews(dir.path()).await;
    let (_running, of_gateways) = status_pages().await;
    pages.extend(of_gateways);
    for visit in visit(&pages).await {
        let Visit { page, view, .. } = &visit;
        assert_eq!(visit.dialogs, [""; 0], "{page} {view}");
        assert_eq!(visit.requests, [""; 0], "{page} {view}");
        assert_eq!(visit.errors, [""; 0], "{page} {view}");
        assert!(!visit.is_too_wide, "{page} {view}");
        // Without scripts, nothing else keeps the status page up to date.
        let barriers = visit.barriers.iter();
        let barriers: Vec<_> = barriers
            .filter(|it| !(page.starts_with("status") && it.starts_with("meta-refresh:")))
            .collect();
        assert_eq!(barriers, [""; 0], "{page} {view}");
    }
}

#[tokio::test]
async fn browser_shows_what_hostile_names_can_do() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("page.html");
    std::fs::write(&file, NAMES.concat()).unwrap();
    for visit in visit(&[("hostile", url(&file))]).await {
        assert!(visit.dialogs.len() >= 3, "{visit:?}");
        assert!(visit.requests.len() >= 2, "{visit:?}");
        assert!(!visit.errors.is_empty(), "{visit:?}");
        assert!(visit.is_too_wide, "{visit:?}");
        let barriers = visit.barriers.concat();
        assert!(barriers.contains("color-contrast:"), "{visit:?}");
    }
}
