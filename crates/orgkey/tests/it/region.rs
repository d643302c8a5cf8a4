//! Which organizations a gateway serves.

use std::path::PathBuf;

use orgkey::gateway::{Config, Error};
use serde_json::Value;
use tempfile::TempDir;

use crate::checks::ROUTES;
use crate::support::{Reply, World, request, send, until_line};

/// A file of homes, and the table of a configuration that names it.
struct Homes {
    dir: TempDir,
}

impl Homes {
    fn new(text: &str) -> Self {
        let homes = Self {
            dir: TempDir::new().unwrap(),
        };
        homes.write(text);
        homes
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("homes.toml")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    fn tables(&self, more: &str) -> String {
        let path = self.path();
        format!(
            "{ROUTES}\n[region]\nhere = 'eu'\nhomes_file = '{}'\n{more}\n\
             [[region.other]]\nname = 'us'\nbase = 'https://us.api.example.com'\n",
            path.display()
        )
    }
}

async fn check(world: &World, key: &str) -> Reply {
    let bearer = format!("Bearer {key}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-original-method", "GET"),
        ("x-original-uri", "/reports/1"),
    ];
    send(world.checks, request("GET", "/v1/nginx", &headers)).await
}

const HOMES: &str = "org_eu = 'eu'\norg_us = 'us'\n";

#[tokio::test]
async fn only_organizations_at_home_are_served() {
    let homes = Homes::new(HOMES);
    let world = World::start(&homes.tables("")).await;
    let here = world.key("org_eu", &["read:reports"]);
    assert_eq!(check(&world, &here).await.status, 200);

    let elsewhere = world.key("org_us", &["read:reports"]);
    let reply = check(&world, &elsewhere).await;
    assert_eq!(reply.status, 421);
    let problem: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(problem["code"], "wrong-region");
    assert_eq!(problem["region"], "us");
    assert_eq!(problem["base"], "https://us.api.example.com");
    for absent in ["location", "x-org-code", "x-org-key-id", "x-org-scopes"] {
        assert_eq!(reply.header(absent), None, "{absent}");
    }

    let unknown = world.key("org_new", &["read:reports"]);
    let reply = check(&world, &unknown).await;
    assert_eq!(
        (reply.status.as_u16(), reply.code()),
        (503, "region-unknown".to_owned())
    );
    assert!(reply.header("retry-after").is_some());
}

#[tokio::test]
async fn reload_moves_an_organization() {
    let homes = Homes::new(HOMES);
    let tables = homes.tables("");
    let world = World::start(&tables).await;
    let key = world.key("org_eu", &["read:reports"]);
    assert_eq!(check(&world, &key).await.status, 200);
    homes.write("org_eu = 'us'\norg_us = 'us'\n");
    assert_eq!(check(&world, &key).await.status, 200, "not read yet");
    world.reload(&tables).unwrap();
    assert_eq!(check(&world, &key).await.status, 421);
    // The verification result stays.
    assert_eq!(world.emulator.calls().verify.total, 1);

    // A file with an error changes nothing, routes included.
    homes.write("org_eu = 'mars'\n");
    let moved = tables.replace("/reports/{id}", "/documents/{id}");
    let error = world.reload(&moved).unwrap_err();
    assert!(matches!(error, Error::Config(_)), "{error}");
    assert!(error.to_string().contains("mars"), "{error}");
    assert_eq!(check(&world, &key).await.status, 421);

    let changed = tables.replace("here = 'eu'", "here = 'ap'");
    let error = world.reload(&changed).unwrap_err();
    assert!(matches!(error, Error::NeedsRestart(tables) if tables == ["[region]"]));
}

#[tokio::test]
async fn settings_of_the_table_apply() {
    let homes = Homes::new(HOMES);
    let more = "status = 403\nunknown = 'here'\nminimal_audit = true";
    let audit = "[audit]\nfile = 'DIR/audit.jsonl'\n";
    let world = World::start(&format!("{}{audit}", homes.tables(more))).await;
    let unknown = world.key("org_new", &["read:reports"]);
    assert_eq!(check(&world, &unknown).await.status, 200);
    let elsewhere = world.key("org_us", &["read:reports"]);
    let reply = check(&world, &elsewhere).await;
    assert_eq!(
        (reply.status.as_u16(), reply.code()),
        (403, "wrong-region".to_owned())
    );
    let file = world.files.path("audit.jsonl");
    let line = until_line(&file, |line| line.contains("wrong-region")).await;
    assert!(!line.contains("org_us"), "{line}");
}

#[tokio::test]
async fn prefix_of_another_region_costs_no_call() {
    let prefixes = "[region]\nhere = 'eu'\n[[region.other]]\nname = 'ap'\nkey_prefixes = ['k_u']\n\
         [[region.other]]\nname = 'us'\nkey_prefixes = ['k_us_']\n\
         [[region.other]]\nname = 'ch'\nkey_prefixes = ['k_us']\n";
    let world = World::start(&format!("{ROUTES}{prefixes}")).await;
    // The longest prefix decides.
    for (key, region) in [
        ("k_us_0123456789", "us"),
        ("k_usa_0123456789", "ch"),
        ("k_ur_0123456789", "ap"),
    ] {
        let reply = check(&world, key).await;
        assert_eq!(
            (reply.status.as_u16(), reply.code()),
            (421, "wrong-region".to_owned())
        );
        let problem: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(problem["region"], region);
    }
    assert_eq!(world.emulator.calls().verify.total, 0);
    let here = world.key("org_eu", &["read:reports"]);
    assert_eq!(check(&world, &here).await.status, 200);
}

#[tokio::test]
async fn invalid_homes_stop_the_start() {
    let homes = Homes::new(HOMES);
    for text in ["org_eu", "org_eu = 7", "'org eu' = 'eu'", "org_eu = 'mars'"] {
        homes.write(text);
        let error = World::try_start(&homes.tables("")).await.err().unwrap();
        assert!(error.to_string().contains("homes_file"), "{text}: {error}");
    }
    // All organizations would be served here.
    homes.write("");
    let here = homes.tables("unknown = 'here'");
    assert!(World::try_start(&here).await.is_err());
    std::fs::remove_file(homes.path()).unwrap();
    let error = World::try_start(&homes.tables("")).await.err().unwrap();
    assert!(error.to_string().contains("homes.toml"), "{error}");
}

#[test]
fn invalid_regions_are_reported_by_line() {
    let problems = |region: &str| {
        let text = format!(
            "[listen]\nchecks = '127.0.0.1:0'\n[issuer]\nkind = 'kinde'\nurl = 'https://acme.kinde.com'\n\
             client_id = 'a'\nclient_secret_env = 'B'\n{region}"
        );
        let problems = Config::parse(&text).unwrap_err();
        problems
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    };
    for (region, line, reason) in [
        ("[region]\nhomes_file = 'x'", 8, "needs `here`"),
        ("[region]\nhere = 'eu'", 8, "needs `homes_file`"),
        (
            "[region]\nhere = 'e u'\nhomes_file = 'x'",
            8,
            "letters, digits",
        ),
        (
            "[region]\nhere = 'eu'\nhomes_file = 'x'\nstatus = 302",
            11,
            "421 or 403",
        ),
        (
            "[region]\nhere = 'eu'\nhomes_file = 'x'\nbase = 'y'",
            11,
            "no key `base`",
        ),
        (
            "[region]\nhere = 'eu'\nhomes_file = 'x'\n[[region.other]]\nname = 'us'\nbase = 'us'",
            8,
            "base address",
        ),
        (
            "[region]\nhere = 'eu'\n[[region.other]]\nname = 'us'\nkey_prefixes = ['a']\n\
             [[region.other]]\nname = 'ap'\nkey_prefixes = ['a']",
            8,
            "prefix of keys twice",
        ),
        (
            "[region]\nhere = 'eu'\n[[region.other]]\nname = 'us'\nkey_prefixes = ['']",
            12,
            "must not be empty",
        ),
    ] {
        let problems = problems(region);
        let expected = format!("{line}: ");
        assert!(
            problems.starts_with(&expected) && problems.contains(reason),
            "{region}: {problems}"
        );
    }
}
