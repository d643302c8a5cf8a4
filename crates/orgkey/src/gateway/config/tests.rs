use super::*;

const MINIMAL: &str = r#"
[listen]
checks = "127.0.0.1:8080"

[issuer]
kind = "kinde"
url = "https://acme.kinde.com"
client_id = "id"
client_secret_env = "KINDE_SECRET"
"#;

fn errors(text: &str) -> Vec<(usize, String)> {
    let problems = Config::parse(text).unwrap_err();
    problems
        .into_iter()
        .map(|problem| (problem.line, problem.message))
        .collect()
}

#[test]
fn minimal_configuration_is_enough() {
    let config = Config::parse(MINIMAL).unwrap();
    assert_eq!(config.listen.dialects, Dialect::ALL);
    assert_eq!(config.warnings().len(), 2);
}

#[test]
fn full_configuration_is_read() {
    let text = r#"
[listen]
checks = "unix:/run/orgkey.sock"
dialects = ["nginx", "forward-auth", "envoy"]
admin  = "127.0.0.1:9090"
admin_token_file = "/run/secrets/orgkey-admin"

[issuer]
kind = "kinde"
url = "https://acme.kinde.com"
client_id = "id"
client_secret_file = "/run/secrets/kinde"
api_id = "api"

[keys]
header = "authorization"
soft_ttl = "60s"
hard_ttl = "15m"

[[route]]
match = "GET,POST /reports/{id}"
scopes = ["read:reports"]
[[route]]
match = "* /orgs/{org_code}/{*rest}"
organization = "org_code"
any_of = [["a"], ["b", "c"]]
[[route]]
match = "GET /health"
public = true

[limits]
requests_per_minute = 600
burst = 50
[audit]
file = "/var/log/orgkey/audit.jsonl"
client_address_header = "x-real-ip"
[identity]
assertion_audience = "reports-api"
assertion_key_file = "/run/secrets/orgkey-ed25519.pem"
"#;
    let config = Config::parse(text).unwrap();
    assert_eq!(
        config.listen.checks,
        Address::Unix("/run/orgkey.sock".into())
    );
    assert_eq!(config.keys.hard_ttl, Some(Duration::from_secs(900)));
    assert_eq!(config.limit, Some(Quota::per_minute(600).burst(50)));
    assert_eq!(config.warnings(), Vec::<&str>::new());
    let lines: Vec<_> = config
        .routes
        .iter()
        .map(|route| (route.line, route.to_string()))
        .collect();
    assert_eq!(lines[1], (23, "* /orgs/{org_code}/{*rest}".to_owned()));
    assert!(matches!(config.routes[2].demand, Demand::Nothing));
}

#[test]
fn several_issuers_have_names_and_prefixes() {
    let issuer = |name: &str| {
        format!(
            "[[issuer]]\nname = '{name}'\nprefixes = ['{name}_']\nkind = 'kinde'\nurl = 'https://{name}.kinde.com'\n\
             client_id = 'id'\nclient_secret_env = 'SECRET'\n"
        )
    };
    let listen = "[listen]\nchecks = '[::1]:0'\n";
    let config = Config::parse(&format!("{listen}{}{}", issuer("eu"), issuer("us"))).unwrap();
    assert_eq!(
        (config.issuers.len(), config.shared_organizations),
        (2, false)
    );
    let twice = errors(&format!("{listen}{}{}", issuer("eu"), issuer("eu")));
    assert_eq!(twice.len(), 1, "{twice:?}");
}

/// A configuration with this issuer.
fn issuer(lines: &str) -> String {
    format!("[listen]\nchecks = '[::1]:0'\n[issuer]\n{lines}\n")
}

#[test]
fn other_issuers_are_read() {
    for lines in [
        "kind = 'introspection'\nurl = 'https://idp.example/introspect'\nclient_id = 'id'\n\
         client_secret_env = 'SECRET'\naudience = 'api'\npreset = 'zitadel'\nservice_accounts = true\ncanary_env = 'CANARY'",
        "kind = 'introspection'\nurl = 'http://127.0.0.1:4445/admin/oauth2/introspect'\n\
         any_audience = true\norganization_claim = 'org'\nallow_missing_token_type = true",
        "kind = 'workos'\ntoken_file = '/run/secrets/workos'",
        "kind = 'unkey'\ntoken_env = 'UNKEY'\norganization_in_meta = 'org'\nurl = 'https://unkey.example/v2'",
    ] {
        let config = Config::parse(&issuer(lines));
        assert!(config.is_ok(), "{lines} {config:?}");
    }
    let open =
        "kind = 'introspection'\nurl = 'http://127.0.0.1/'\nany_audience = true\npreset = 'hydra'";
    let warnings = Config::parse(&issuer(open)).unwrap().warnings();
    assert!(
        warnings.iter().any(|text| text.contains("any_audience")),
        "{warnings:?}"
    );
}

#[test]
fn mistakes_about_other_issuers_are_reported() {
    let server = "kind = 'introspection'\nurl = 'http://127.0.0.1/'\n";
    let complete = format!("{server}audience = 'api'\npreset = 'hydra'\n");
    for (lines, found) in [
        (format!("{server}preset = 'hydra'"), "any_audience"),
        (format!("{complete}any_audience = true"), "any_audience"),
        (format!("{server}audience = 'api'"), "organization_claim"),
        (
            format!("{complete}organization_claim = 'a'"),
            "organization_claim",
        ),
        (format!("{complete}client_id = 'id'"), "client_id"),
        (
            format!("{complete}canary_env = 'A'\ncanary_file = '/b'"),
            "canary_file",
        ),
        (format!("{complete}token_env = 'A'"), "token_env"),
        (complete.replace("127.0.0.1", "idp.example"), "url"),
        ("kind = 'workos'".to_owned(), "token_file"),
        (
            "kind = 'workos'\ntoken_env = 'A'\nurl = 'x'".to_owned(),
            "url",
        ),
        (
            "kind = 'workos'\ntoken_env = 'A'\nclient_id = 'x'".to_owned(),
            "client_id",
        ),
        ("kind = 'auth0'".to_owned(), "kind"),
    ] {
        let problems = errors(&issuer(&lines));
        assert_eq!(problems.len(), 1, "{lines} {problems:?}");
        assert!(problems[0].1.contains(found), "{lines} {problems:?}");
    }
}

#[test]
fn all_errors_are_reported_by_line() {
    let text = r#"[listen]
checks = "127.0.0.1"
colour = "blue"
dialects = ["apache"]
[issuer]
kind = "kinde"
url = "http://acme.kinde.com"
client_id = ""
[keys]
soft_ttl = "soon"
[[route]]
match = "get /a"
[[route]]
match = "GET /a//b"
scopes = ["a b"]
[[route]]
match = "GET /c"
public = true
organization = "org"
[limit]
requests_per_minute = 0
"#;
    let lines: Vec<_> = errors(text).into_iter().map(|(line, _)| line).collect();
    assert_eq!(lines, [2, 3, 4, 5, 10, 12, 14, 15, 16, 19, 20]);
}

#[test]
fn syntax_errors_have_lines() {
    let found = errors(&format!("{MINIMAL}\n[keys]\nheader = \n[limits\n"));
    assert!(found.iter().any(|(line, _)| *line == 12), "{found:?}");
}

#[test]
fn values_are_checked_by_what_uses_them() {
    for (text, line) in [
        ("[keys]\nsoft_ttl = '60s'\nhard_ttl = '61s'", 12),
        ("[keys]\nheader = 'cookie'", 11),
        ("[limits]\nrequests_per_minute = 0", 11),
        ("[limits]\nburst = 1", 10),
        (
            "[identity]\nassertion_audience = ' '\nassertion_key_file = '/k'",
            11,
        ),
        (
            "[fleet]\nname = 'a b'\nredis = 'redis://h'\nsecret_file = '/s'",
            11,
        ),
        (
            "[fleet]\nname = 'a'\nredis = 'http://h'\nsecret_file = '/s'",
            12,
        ),
        (
            "[fleet]\nname = 'a'\nredis = 'redis://h'\nsecret_file = '/s'\nexpected_nodes = 0",
            14,
        ),
        ("[[route]]\nmatch = 'GET /a'\nassertion_audience = 'x'", 10),
        ("[[route]]\nmatch = 'GET /{a}'\norganization = 'b'", 12),
        // Two braces are a literal one.
        ("[[route]]\nmatch = 'GET /{{a}}'\norganization = 'a'", 12),
        (
            "[[route]]\nmatch = 'GET /{a}/b/{a}'\norganization = 'a'",
            11,
        ),
        ("[[route]]\nmatch = 'GET /a'\nscopes = []", 12),
        ("[[route]]\nmatch = 'GET /a'\nany_of = []", 12),
        ("[[route]]\nmatch = 'GET /a'\nhost = 'a:80'", 12),
        ("[[route]]\nmatch = 'HEAD /a'", 11),
        ("[[route]]\nmatch = 'GET /a;v=1'", 11),
    ] {
        let found = errors(&format!("{MINIMAL}{text}\n"));
        assert_eq!(found.len(), 1, "{text} {found:?}");
        assert_eq!(found[0].0, line, "{text} {found:?}");
    }
}

#[test]
fn secrets_are_not_values() {
    let text = MINIMAL.replace(
        "client_secret_env = \"KINDE_SECRET\"",
        "client_secret = \"hunter2\"",
    );
    let found = errors(&text);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(!format!("{found:?}").contains("hunter2"));
}

#[test]
fn the_password_of_the_engine_is_in_a_file() {
    let fleet = |redis: &str, more: &str| {
        format!("{MINIMAL}[fleet]\nname = 'a'\nredis = '{redis}'\nsecret_file = '/s'\n{more}\n")
    };
    let found = errors(&fleet("redis://u:hunter2@h", ""));
    assert_eq!(found.len(), 1);
    assert!(found[0].1.contains("redis_password_file"), "{found:?}");
    assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");

    let config = Config::parse(&fleet("redis://u@h", "redis_password_file = '/p'")).unwrap();
    assert!(
        config
            .warnings()
            .iter()
            .any(|warning| warning.contains("`redis`"))
    );
    let other = Config::parse(MINIMAL).unwrap();
    assert_eq!(config.fixed_differences(&other), ["[fleet]"]);
    for local in [
        "redis://127.0.0.1",
        "redis://[::1]:7000",
        "redis://localhost",
        "rediss://h",
    ] {
        let config = Config::parse(&fleet(local, "")).unwrap();
        assert_eq!(config.warnings().len(), other.warnings().len(), "{local}");
    }
    let both = "redis_password_file = '/p'\nredis_password_env = 'P'";
    assert_eq!(errors(&fleet("redis://u@h", both)).len(), 1);
}

#[test]
fn sentinels_are_read() {
    let fleet = |redis: &str, more: &str| {
        format!("{MINIMAL}[fleet]\nname = 'a'\nredis = '{redis}'\nsecret_file = '/s'\n{more}\n")
    };
    let sentinels = "sentinels = ['redis://127.0.0.1:26379', 'redis://[::1]:26379']";
    let config = Config::parse(&fleet("redis://u@mymaster", sentinels)).unwrap();
    assert_eq!(config.fleet.as_ref().unwrap().sentinels.len(), 2);
    let minimal = Config::parse(MINIMAL).unwrap().warnings().len();
    let remote = "sentinels = ['redis://10.0.0.1:26379']";
    let encrypted = "sentinels = ['rediss://10.0.0.1:26379']";
    for (redis, more, warnings) in [
        ("redis://u@mymaster", sentinels, 1),
        ("redis://u@mymaster", encrypted, 1),
        ("rediss://u@mymaster", remote, 1),
        ("rediss://u@mymaster", encrypted, 0),
        ("rediss://u@mymaster", sentinels, 0),
    ] {
        let config = Config::parse(&fleet(redis, more)).unwrap();
        assert_eq!(
            config.warnings().len(),
            minimal + warnings,
            "{redis} {more}"
        );
    }
    let password = format!("{remote}\nsentinel_password_file = '/p'");
    Config::parse(&fleet("redis://u@mymaster", &password)).unwrap();

    for (redis, more, line) in [
        ("redis://u@mymaster", "sentinels = []", 14),
        ("redis://u@mymaster", "sentinels = ['hunter2']", 14),
        ("redis+unix:///socket", remote, 12),
        (
            "redis://u@mymaster",
            "sentinels = ['redis://:hunter2@10.0.0.1']",
            14,
        ),
        ("redis://u@mymaster", "sentinel_password_file = '/p'", 10),
    ] {
        let found = errors(&fleet(redis, more));
        assert_eq!(found.len(), 1, "{more} {found:?}");
        assert_eq!(found[0].0, line, "{more} {found:?}");
        assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
    }
}
