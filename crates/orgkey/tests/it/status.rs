//! The status page.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kinde_emulator::{Endpoint, Fault};
use serde::Deserialize;

use crate::checks::ROUTES;
use crate::python;
use crate::support::{ADMIN_TOKEN, Reply, World, request, send};

/// What the parser found in a page.
#[derive(Debug, Deserialize)]
pub(crate) struct Parsed {
    unclosed: Vec<String>,
    misplaced: Vec<String>,
    elements: BTreeMap<String, usize>,
    attributes: Vec<String>,
    cells: Vec<String>,
    styles: Vec<String>,
    refresh: Option<String>,
}

pub(crate) async fn page(world: &World) -> Reply {
    let bearer = format!("Bearer {ADMIN_TOKEN}");
    let reply = send(
        world.admin,
        request("GET", "/", &[("authorization", &bearer)]),
    )
    .await;
    assert_eq!(reply.status, 200);
    reply
}

pub(crate) async fn parsed(reply: &Reply) -> Parsed {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &reply.body).unwrap();
    let path = file.path().to_str().unwrap();
    serde_json::from_value(python::script("status_page.py", &[path]).await).unwrap()
}

/// Returns the cell behind the cell with this text.
pub(crate) fn beside<'a>(page: &'a Parsed, text: &str) -> &'a str {
    let at = page.cells.iter().position(|cell| cell == text).unwrap();
    &page.cells[at + 1]
}

async fn status_of(world: &World, target: &str, key: &str) -> u16 {
    let bearer = format!("Bearer {key}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-original-method", "GET"),
        ("x-original-uri", target),
    ];
    send(world.checks, request("GET", "/v1/nginx", &headers))
        .await
        .status
        .as_u16()
}

fn assert_is_sound(page: &Parsed) {
    assert!(
        page.unclosed.is_empty() && page.misplaced.is_empty(),
        "{page:?}"
    );
    for element in ["script", "img", "link", "iframe", "object", "form", "a"] {
        assert!(!page.elements.contains_key(element), "{element}");
    }
    for attribute in &page.attributes {
        let is_loaded = ["src", "href", "style", "action", "srcset"].contains(&attribute.as_str());
        assert!(!is_loaded && !attribute.starts_with("on"), "{attribute}");
    }
}

#[tokio::test]
async fn status_page_needs_the_token() {
    let world = World::start(ROUTES).await;
    let basic = format!(
        "Basic {}",
        BASE64_STANDARD.encode(format!("any:{ADMIN_TOKEN}"))
    );
    let wrong = format!(
        "Basic {}",
        BASE64_STANDARD.encode("any:wrong-but-long-enough")
    );
    for (headers, status) in [
        (&[][..], 401),
        (&[("authorization", wrong.as_str())], 401),
        (&[("authorization", basic.as_str())], 200),
    ] {
        let reply = send(world.admin, request("GET", "/", headers)).await;
        assert_eq!(reply.status, status);
        assert_eq!(reply.text().contains("<html"), status == 200);
    }
    page(&world).await;
}

#[tokio::test]
async fn status_page_permits_only_its_own_style() {
    let world = World::start(ROUTES).await;
    let reply = page(&world).await;
    let policy = reply.header("content-security-policy").unwrap();
    let page = parsed(&reply).await;
    let [style] = page.styles.as_slice() else {
        panic!("{page:?}")
    };
    let directives: Vec<_> = policy.split("; ").collect();
    assert_eq!(directives[0], "default-src 'none'");
    assert_eq!(directives[1], format!("style-src 'sha256-{style}'"));
    for directive in &directives[2..] {
        assert!(directive.ends_with(" 'none'"), "{directive}");
    }
    assert_eq!(reply.header("cache-control").as_deref(), Some("no-store"));
    assert_eq!(
        reply.header("x-content-type-options").as_deref(),
        Some("nosniff")
    );
    assert!(page.refresh.unwrap().parse::<u64>().unwrap() > 0);
}

#[tokio::test]
async fn empty_status_page_has_its_charts() {
    let world = World::start(ROUTES).await;
    let reply = page(&world).await;
    let page = parsed(&reply).await;
    assert_is_sound(&page);
    assert_eq!(page.elements["svg"], 10);
    assert_eq!(beside(&page, "rate-limited"), "0");
    assert_eq!(beside(&page, "the issuer"), "closed");
    assert!(page.cells.contains(&"no requests".to_owned()));
}

#[tokio::test]
async fn names_on_the_status_page_are_escaped() {
    let world = World::start(ROUTES).await;
    let hostile = r#"</td><script>alert("1")</script><img/src=x/onerror='x'>&lt;"#;
    let key = world.key(hostile, &["read:reports"]);
    for _ in 0..3 {
        assert_eq!(status_of(&world, "/reports/1", &key).await, 200);
    }
    let reply = page(&world).await;
    let page = parsed(&reply).await;
    assert_is_sound(&page);
    assert_eq!(beside(&page, hostile), "3");
    assert!(!reply.text().contains(&key));
}

#[tokio::test]
async fn status_page_shows_the_last_hour() {
    let limits = "[limits]\nrequests_per_minute = 600\nburst = 5\n";
    let world = World::start(&format!("{ROUTES}{limits}")).await;
    let key = world.key("org_1", &["read:reports"]);
    for (target, key, status, times) in [
        ("/reports/1", key.as_str(), 200, 4),
        ("/health", "unread-key", 200, 3),
        ("/reports/1", "never-seen-key", 401, 2),
        ("/none", "unread-key", 403, 1),
    ] {
        for _ in 0..times {
            assert_eq!(status_of(&world, target, key).await, status, "{target}");
        }
    }
    let reply = page(&world).await;
    let page = parsed(&reply).await;
    assert_is_sound(&page);
    for (row, count) in [
        ("allowed", "4"),
        ("public", "3"),
        ("invalid-token", "2"),
        ("no-route", "1"),
        ("rate-limited", "0"),
        ("org_1", "4"),
    ] {
        assert_eq!(beside(&page, row), count, "{row}");
    }
    // The first use of each of the two keys was a lookup.
    assert!(
        page.cells.contains(&"66.6 %".to_owned()),
        "{:?}",
        page.cells
    );
    assert!(
        reply
            .text()
            .contains("600 requests in 60 s, at most 5 at once")
    );
}

#[tokio::test]
async fn status_page_shows_an_open_circuit() {
    let world = World::start(ROUTES).await;
    world.emulator.inject(Endpoint::Verify, Fault::status(500));
    for number in 0..20 {
        let key = format!("never-seen-key-{number}");
        assert_eq!(status_of(&world, "/reports/1", &key).await, 503);
    }
    assert!(page(&world).await.text().contains("open for"));
}

#[tokio::test]
async fn pages_of_others_change_nothing() {
    let world = World::start(ROUTES).await;
    let key = world.key("org_1", &["read:reports"]);
    let basic = format!(
        "Basic {}",
        BASE64_STANDARD.encode(format!("any:{ADMIN_TOKEN}"))
    );
    let body = r#"{"org_code": "org_1"}"#;
    for (origin, status, allowed) in [
        (Some("null"), 403, 200),
        (Some("http://other.example"), 403, 200),
        (None, 200, 401),
    ] {
        let mut headers = vec![("authorization", basic.as_str())];
        headers.extend(origin.map(|origin| ("origin", origin)));
        let request = request("POST", "/v1/block", &headers);
        let reply = send(world.admin, request.map(|_| body.into())).await;
        assert_eq!(reply.status, status, "{origin:?}");
        assert_eq!(
            status_of(&world, "/reports/1", &key).await,
            allowed,
            "{origin:?}"
        );
    }
}
