//! `orgkey review`, with an emulated issuer and audit lines.

use std::path::PathBuf;
use std::process::Output;

use kinde_emulator::{Endpoint, Fault, KeySpec, KindeEmulator};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::nested::nested_documents;

/// Files of a review, and the issuer.
struct Stage {
    emulator: KindeEmulator,
    dir: TempDir,
}

impl Stage {
    async fn set() -> Self {
        let stage = Self {
            emulator: KindeEmulator::start().await.unwrap(),
            dir: TempDir::new().unwrap(),
        };
        let config = format!(
            "[issuer]\nkind = \"kinde\"\nurl = \"{}\"\nclient_id = \"{}\"\nclient_secret_env = \"TEST_SECRET\"\n",
            stage.emulator.issuer_url(),
            stage.emulator.client_id()
        );
        stage.file("gateway.toml", &config);
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Runs the command in the directory of the files.
    async fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orgkey"));
        command
            .arg("review")
            .args(args)
            .current_dir(self.dir.path())
            .env("TEST_SECRET", self.emulator.client_secret());
        let output = command.output().await.unwrap();
        let printed = [&output.stdout[..], &output.stderr[..]].concat();
        let printed = String::from_utf8(printed).unwrap();
        assert!(!printed.contains(&self.emulator.client_secret()));
        output
    }

    async fn succeed(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn fail(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    }
}

/// A line of the audit trail, of now.
fn line(sequence: u64, org: &str, key: &str, scope: &str) -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let line = json!({
        "class_uid": 6003,
        "metadata": { "product": { "name": "tower-orgkey" }, "uid": format!("{:016x}-{sequence}", 7), "sequence": sequence },
        "time": u64::try_from(now).unwrap(), "end_time": u64::try_from(now).unwrap(), "action_id": 1, "status_code": "allowed",
        "actor": { "user": { "org": { "uid": org }, "programmatic_credentials": [{ "uid": key }] } },
        "authorizations": [{ "decision": "allowed", "policy": { "data": { "any_of": [[scope]] } } }],
    });
    format!("{line}\n")
}

fn findings(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().unwrap();
    findings
        .iter()
        .map(|finding| finding["id"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn reviews_follow_each_other() {
    let stage = Stage::set().await;
    let spec = |org| KeySpec::organization(org).scopes(["read:reports", "write:reports"]);
    let one = stage.emulator.issue_key(spec("org_1").name("=one"));
    let two = stage.emulator.issue_key(spec("org_2").name("two"));
    let lines = line(0, "org_1", one.id(), "read:reports")
        + "broken\n"
        + &line(1, "org_1", one.id(), "read:reports");
    stage.file("audit.jsonl", &lines);
    let common = ["--audit", "audit.jsonl", "--config", "gateway.toml"];
    let with = |more: &[&'static str]| [&common[..], more].concat();
    let output = stage.run(&with(&["--out", "first.json"])).await;
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        errors,
        "orgkey review: audit.jsonl:2: not JSON, or cut off\n"
    );
    let first: Value = serde_json::from_str(&stage.read("first.json")).unwrap();
    let never = format!("never-asked org_1 {}", one.id());
    let not_seen = format!("not-seen org_2 {}", two.id());
    // The organization of a key without a request is asked for.
    assert_eq!(
        findings(&first),
        [
            never.as_str(),
            &format!("never-asked org_2 {}", two.id()),
            &not_seen
        ]
    );
    assert_eq!(stage.emulator.calls().get_key.total, 1);

    stage.emulator.rotate(two.id());
    stage.emulator.delete(one.id());
    let decisions = format!(
        "[[decision]]\nfinding = \"{not_seen}\"\ndecision = \"keep\"\nreviewer = \"security\"\nreason = \"new\"\nuntil = \"2999-01-31\"\n"
    );
    stage.file("decisions.toml", &decisions);
    let printed = stage
        .succeed(&with(&[
            "--previous",
            "first.json",
            "--decisions",
            "decisions.toml",
            "--out",
            "second.json",
            "--out",
            "page.html",
            "--out",
            "table.csv",
            "--out",
            "events.jsonl",
        ]))
        .await;
    assert!(
        printed.starts_with("2 keys, 2 findings, 1 to be decided on; "),
        "{printed}"
    );
    // Known from the last review.
    assert_eq!(stage.emulator.calls().get_key.total, 1);
    let second: Value = serde_json::from_str(&stage.read("second.json")).unwrap();
    assert_eq!(second["changes"]["removed"][0]["id"], one.id());
    assert_eq!(
        second["changes"]["changed"][0]["what"],
        json!(["secret rotated"])
    );
    assert_eq!(second["changes"]["settled"][0]["id"], never.as_str());
    let page = stage.read("page.html");
    let (changes, found) = (
        page.find("Keys removed: 1").unwrap(),
        page.find("<h2>Findings").unwrap(),
    );
    assert!(changes < found);
    assert!(stage.read("table.csv").contains("'=one"));
    assert_eq!(stage.read("events.jsonl").lines().count(), 3);

    // The decision is carried, and a report of one organization shows no other.
    stage
        .succeed(&with(&[
            "--previous",
            "second.json",
            "--org",
            "org_2",
            "--out",
            "org_2.json",
        ]))
        .await;
    let third = stage.read("org_2.json");
    assert!(third.contains("\"keep\"") && !third.contains("org_1") && !third.contains(one.id()));
    let error = stage
        .fail(&with(&["--previous", "org_2.json", "--out", "x.json"]))
        .await;
    assert!(error.contains("a report of one organization"), "{error}");
}

#[tokio::test]
async fn stored_evidence_replaces_audit_files() {
    let stage = Stage::set().await;
    stage.file("a.jsonl", &line(0, "org_1", "key_1", "read"));
    stage.file("b.jsonl", &line(1, "org_1", "key_1", "read"));
    stage.file(
        "keys.json",
        r#"{"listed_at":"2999-01-01T00:00:00Z","api_keys":[{"id":"key_1","scopes":["read"]}]}"#,
    );
    let save = |file, to| {
        [
            "--audit",
            file,
            "--keys",
            "keys.json",
            "--save-evidence",
            to,
            "--out",
            "x.json",
        ]
    };
    stage.succeed(&save("a.jsonl", "a.evidence")).await;
    stage.succeed(&save("b.jsonl", "b.evidence")).await;
    let keys = ["--keys", "keys.json", "--window-days", "3650"];
    // The window is longer than the time until the list, so its time is that of today.
    stage.file("keys.json", r#"[{"id":"key_1","scopes":["read"]}]"#);
    let stored = [
        "--evidence",
        "a.evidence",
        "b.evidence",
        "a.evidence",
        "--out",
        "stored.json",
    ];
    stage.succeed(&[&keys[..], &stored[..]].concat()).await;
    let report: Value = serde_json::from_str(&stage.read("stored.json")).unwrap();
    assert_eq!(report["keys"][0]["replayed"], 2);
    let both = [
        "--audit",
        "a.jsonl",
        "b.jsonl",
        "--save-evidence",
        "both.evidence",
        "--evidence",
        "a.evidence",
        "--out",
        "x.json",
    ];
    let error = stage.fail(&[&keys[..], &both[..]].concat()).await;
    assert!(error.contains("two segments overlap"), "{error}");
}

#[tokio::test]
async fn files_that_are_read_are_not_replaced() {
    let stage = Stage::set().await;
    stage.file("a.jsonl", &line(0, "org_1", "key_1", "read"));
    stage.file("b.jsonl", &line(1, "org_1", "key_1", "read"));
    stage.file("keys.json", "[]");
    let save = |file, more: &[&'static str]| {
        let first = ["--audit", file, "--keys", "keys.json", "--save-evidence"];
        [&first[..], more].concat()
    };
    stage
        .succeed(&save("a.jsonl", &["a.evidence", "--out", "x.json"]))
        .await;
    let before = stage.read("a.evidence");
    for more in [
        &[
            "./a.evidence",
            "--evidence",
            "a.evidence",
            "--out",
            "x.json",
        ][..],
        &["b.jsonl", "--out", "x.json"],
        &["b.evidence", "--out", "b.jsonl"],
    ] {
        let error = stage.fail(&save("b.jsonl", more)).await;
        assert!(error.contains("must not be replaced"), "{error}");
    }
    // What cannot be merged is not stored.
    stage
        .fail(&save(
            "a.jsonl",
            &["c.evidence", "--evidence", "keys.json", "--out", "x.json"],
        ))
        .await;
    assert_eq!(stage.read("a.evidence"), before);
    assert_eq!(
        stage.read("b.jsonl").lines().count(),
        1,
        "the audit file is the same"
    );
    assert!(!stage.path("b.evidence").exists() && !stage.path("c.evidence").exists());
}

#[tokio::test]
async fn no_input_is_replaced_under_any_name() {
    let stage = Stage::set().await;
    stage.file("audit.jsonl", &line(0, "org_1", "key_1", "read"));
    stage.file("organizations.csv", "org_1\n");
    stage.file("decisions.json", "");
    stage.file("keys.json", "[]");
    let read = [
        "--audit",
        "audit.jsonl",
        "--organizations",
        "organizations.csv",
    ];
    let read = [&read[..], &["--decisions", "decisions.json"]].concat();
    let keys = [&read[..], &["--keys", "keys.json"]].concat();
    stage
        .succeed(&[&keys[..], &["--out", "first.json"]].concat())
        .await;
    std::fs::copy(stage.path("gateway.toml"), stage.path("gateway.json")).unwrap();
    std::fs::hard_link(stage.path("first.json"), stage.path("hard.json")).unwrap();
    std::fs::hard_link(stage.path("first.json"), stage.path("next.csv.tmp")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("first.json", stage.path("soft.json")).unwrap();
    let inputs = [
        "audit.jsonl",
        "organizations.csv",
        "decisions.json",
        "first.json",
    ];
    let files = || [&inputs[..], &["keys.json", "gateway.json"]].concat();
    let before: Vec<_> = files().iter().map(|name| stage.read(name)).collect();
    let names = ["hard.json", "soft.json", "./keys.json", "next.csv"];
    let with_keys = [&keys[..], &["--previous", "first.json", "--out"]].concat();
    for name in inputs.iter().chain(&names) {
        let error = stage.fail(&[&with_keys[..], &[name]].concat()).await;
        assert!(error.contains("must not be replaced"), "{name} {error}");
    }
    let with_config = [&read[..], &["--config", "gateway.json", "--out"]].concat();
    let error = stage
        .fail(&[&with_config[..], &["gateway.json"]].concat())
        .await;
    assert!(error.contains("must not be replaced"), "{error}");
    let after: Vec<_> = files().iter().map(|name| stage.read(name)).collect();
    assert_eq!(after, before);
    // Another file may be replaced.
    for _ in 0..2 {
        stage
            .succeed(&[&with_keys[..], &["second.json"]].concat())
            .await;
    }
}

#[tokio::test]
async fn progress_is_shown_on_a_terminal_only() {
    const RUN: &str =
        "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

    let stage = Stage::set().await;
    stage.file("audit.jsonl", &line(0, "org_1", "key_1", "read"));
    stage.file("keys.json", "[]");
    let args = [
        "--audit",
        "audit.jsonl",
        "--keys",
        "keys.json",
        "--out",
        "x.json",
    ];
    let output = stage.run(&args).await;
    let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(
        !printed.contains('%') && !printed.contains('\r'),
        "{printed}"
    );

    let mut command = Command::new("python3");
    let command = command
        .args(["-c", RUN, env!("CARGO_BIN_EXE_orgkey"), "review"])
        .args(args)
        .stdin(std::process::Stdio::null())
        .current_dir(stage.dir.path());
    let output = command.output().await.unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("\r100 %, 1 lines\r\x1b[K"), "{printed:?}");
}

/// Returns the configuration of an issuer of several.
fn named(name: &str, emulator: &KindeEmulator) -> String {
    format!(
        "[[issuer]]\nname = \"{name}\"\nprefixes = [\"{name}_\"]\nkind = \"kinde\"\nurl = \"{}\"\n\
         client_id = \"{}\"\nclient_secret_env = \"TEST_SECRET\"\n",
        emulator.issuer_url(),
        emulator.client_id()
    )
}

#[tokio::test]
async fn several_issuers_are_one_list() {
    let stage = Stage::set().await;
    let client = (stage.emulator.client_id(), stage.emulator.client_secret());
    let other = KindeEmulator::builder().client_credentials(client.0, client.1);
    let other = other.start().await.unwrap();
    let spec = KeySpec::organization("org_1").scopes(["read"]);
    let a = stage.emulator.issue_key(spec.clone().name("a"));
    let b = other.issue_key(spec.name("b"));
    let ids = [format!("a:{}", a.id()), format!("b:{}", b.id())];
    let both = named("a", &stage.emulator) + &named("b", &other);
    for (sharing, orgs) in [
        ("", ["a:org_1", "b:org_1"]),
        ("organizations = \"shared\"\n", ["org_1", "org_1"]),
    ] {
        stage.file("several.toml", &format!("{sharing}{both}"));
        // The organization of the other key is asked for.
        stage.file("audit.jsonl", &line(0, orgs[0], &ids[0], "read"));
        let args = ["--audit", "audit.jsonl", "--config", "several.toml"];
        let args = [&args[..], &["--out", "x.json"]].concat();
        stage.succeed(&args).await;
        let report: Value = serde_json::from_str(&stage.read("x.json")).unwrap();
        let mut keys: Vec<_> = report["keys"].as_array().unwrap().iter().collect();
        keys.sort_by_key(|key| key["name"].as_str());
        for (key, (id, org)) in keys.iter().zip(ids.iter().zip(orgs)) {
            assert_eq!((&key["id"], &key["org"]), (&json!(id), &json!(org)));
            assert_eq!(key["status"], "active");
        }
        assert_eq!([&keys[0]["allowed"], &keys[1]["allowed"]], [1, 0]);
        assert_eq!(keys.len(), 2);
        let of_nobody = [&args[..], &["--org", "org_9"]].concat();
        let error = stage.fail(&of_nobody).await;
        assert!(error.contains("no key and no request"), "{error}");
    }
    // Requests from before the issuers had names, and from when there were several.
    let several = "[[issuer]]\nname = \"a\"\nprefixes = [\"a_\"]\n";
    let one = named("a", &stage.emulator).replacen(several, "[issuer]\n", 1);
    stage.file("one.toml", &one);
    for (config, id) in [("several.toml", a.id()), ("one.toml", &*ids[0])] {
        stage.file("before.jsonl", &line(0, "org_1", id, "read"));
        let args = ["--audit", "before.jsonl", "--config", config];
        let args = [&args[..], &["--out", "y.json"]].concat();
        let error = stage.fail(&args).await;
        assert!(error.contains("does not name"), "{config}: {error}");
    }
    for (config, expected) in [
        (
            named("a", &stage.emulator) + &named("a", &other),
            "a name of its own",
        ),
        (both.replacen("name = \"a\"\n", "", 1), "a name of its own"),
        (
            both.replacen("kind = \"kinde\"", "kind = \"unkey\"", 1),
            "`unkey`",
        ),
    ] {
        stage.file("wrong.toml", &config);
        let args = ["--audit", "audit.jsonl", "--config", "wrong.toml"];
        let error = stage
            .fail(&[&args[..], &["--out", "x.json"]].concat())
            .await;
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn fault_198_an_unreadable_issuer_stops_the_review() {
    let stage = Stage::set().await;
    let client = (stage.emulator.client_id(), stage.emulator.client_secret());
    let other = KindeEmulator::builder().client_credentials(client.0, client.1);
    let other = other.start().await.unwrap();
    other.inject(Endpoint::ListKeys, Fault::status(503));
    stage.file("audit.jsonl", "");
    let both = named("a", &stage.emulator) + &named("b", &other);
    stage.file("several.toml", &both);
    let args = ["--audit", "audit.jsonl", "--config", "several.toml"];
    let error = stage
        .fail(&[&args[..], &["--out", "x.json"]].concat())
        .await;
    let expected = "issuer b: the list of keys: status 503";
    assert!(error.contains(expected), "{error}");
    assert!(other.calls().list_keys.total > 0);
    other.clear_faults();
    other.inject(Endpoint::Token, Fault::status(401));
    let error = stage
        .fail(&[&args[..], &["--out", "x.json"]].concat())
        .await;
    assert!(error.contains("issuer b: the token endpoint"), "{error}");
    assert!(!stage.path("x.json").exists());
}

#[tokio::test]
async fn fault_193_an_incomplete_list_stops_the_review() {
    let stage = Stage::set().await;
    stage.file("audit.jsonl", "");
    for n in 0..3 {
        let spec = KeySpec::organization("org_1").name(format!("key-{n}"));
        stage.emulator.issue_key(spec);
    }
    let json = |body: &str| Fault::reply(200, "application/json", body.to_owned());
    for (fault, expected) in [
        (Fault::without_member("has_more"), "incomplete"),
        (Fault::without_member("api_keys"), "no api_keys"),
        (json("[]"), "no JSON object"),
        (json(r#"{"has_more":true,"api_keys":[]}"#), "incomplete"),
        (json(r#"{"has_more":false,"api_keys":[{}]}"#), "key 1"),
        (Fault::status(500), "status 500"),
    ] {
        stage.emulator.clear_faults();
        stage.emulator.inject(Endpoint::ListKeys, fault);
        let calls = stage.emulator.calls().list_keys.total;
        let args = ["--audit", "audit.jsonl", "--config", "gateway.toml"];
        let error = stage
            .fail(&[&args[..], &["--out", "x.json"]].concat())
            .await;
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(stage.emulator.calls().list_keys.total > calls);
        assert!(!stage.path("x.json").exists());
    }
}

#[tokio::test]
async fn fault_212_nested_documents_do_not_end_the_review() {
    let stage = Stage::set().await;
    stage.file("audit.jsonl", "");
    let nested = nested_documents(1024 * 1024);
    let args = ["--audit", "audit.jsonl", "--config", "gateway.toml"];
    let args = [&args[..], &["--out", "x.json"]].concat();
    for (page, expected) in [
        (
            format!(r#"{{"has_more":false,"api_keys":[],"more":{nested}}}"#),
            None,
        ),
        (
            format!(r#"{{"has_more":false,"api_keys":[{nested}]}}"#),
            Some("key 1"),
        ),
        (nested, Some("no JSON object")),
    ] {
        stage.emulator.clear_faults();
        let page = Fault::reply(200, "application/json", page);
        stage.emulator.inject(Endpoint::ListKeys, page);
        match expected {
            None => drop(stage.succeed(&args).await),
            Some(expected) => {
                let error = stage.fail(&args).await;
                assert!(error.contains(expected), "{expected}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn fault_194_an_unreadable_audit_file_stops_the_review() {
    let stage = Stage::set().await;
    stage.file("a.jsonl", &line(0, "org_1", "key_1", "read"));
    stage.file("keys.json", "[]");
    std::fs::create_dir(stage.path("directory.jsonl")).unwrap();
    for file in ["missing.jsonl", "directory.jsonl"] {
        let args = ["--audit", "a.jsonl", file, "--keys", "keys.json"];
        let out = ["--save-evidence", "x.evidence", "--out", "x.json"];
        let error = stage.fail(&[&args[..], &out[..]].concat()).await;
        assert!(error.contains(file), "{error}");
        assert!(!stage.path("x.json").exists() && !stage.path("x.evidence").exists());
    }
}

#[tokio::test]
async fn number_of_nodes_is_taken_into_account() {
    let stage = Stage::set().await;
    stage.file("a.jsonl", &line(0, "org_1", "key_1", "read"));
    stage.file("keys.json", "[]");
    let args = ["--audit", "a.jsonl", "--keys", "keys.json", "--nodes"];
    stage
        .succeed(&[&args[..], &["2", "--out", "x.json"]].concat())
        .await;
    let report: Value = serde_json::from_str(&stage.read("x.json")).unwrap();
    assert_eq!(report["coverage"]["nodes"], 2);
    stage
        .fail(&[&args[..], &["0", "--out", "x.json"]].concat())
        .await;
}

#[tokio::test]
async fn mistakes_are_told() {
    let stage = Stage::set().await;
    stage.file("audit.jsonl", "");
    stage.file("bad.json", "{}");
    stage.file("bad.toml", "[[decision]]\nfinding = 1\n");
    stage.file("list.json", "[]");
    let cases: [(&[&str], &str); 6] = [
        (
            &[
                "--audit",
                "audit.jsonl",
                "--keys",
                "list.json",
                "--out",
                "x.pdf",
            ],
            "must end in",
        ),
        (
            &[
                "--audit",
                "audit.jsonl",
                "--keys",
                "bad.json",
                "--out",
                "x.csv",
            ],
            "api_keys is missing",
        ),
        (
            &[
                "--audit",
                "none.jsonl",
                "--keys",
                "list.json",
                "--out",
                "x.csv",
            ],
            "none.jsonl",
        ),
        (
            &[
                "--audit",
                "audit.jsonl",
                "--keys",
                "list.json",
                "--previous",
                "bad.json",
                "--out",
                "x.csv",
            ],
            "not a report",
        ),
        (
            &[
                "--audit",
                "audit.jsonl",
                "--keys",
                "list.json",
                "--decisions",
                "bad.toml",
                "--out",
                "x.csv",
            ],
            "finding",
        ),
        (
            &[
                "--audit",
                "audit.jsonl",
                "--keys",
                "list.json",
                "--name-template",
                "{",
                "--out",
                "x.csv",
            ],
            "placeholder",
        ),
    ];
    for (args, expected) in cases {
        let error = stage.fail(args).await;
        assert!(error.contains(expected), "{args:?} {error}");
    }
    assert!(!stage.path("x.csv").exists());
    stage.emulator.set_token_scopes(["other"]);
    let error = stage
        .fail(&[
            "--audit",
            "audit.jsonl",
            "--config",
            "gateway.toml",
            "--out",
            "x.csv",
        ])
        .await;
    assert!(error.contains("read:api_keys"), "{error}");
}
