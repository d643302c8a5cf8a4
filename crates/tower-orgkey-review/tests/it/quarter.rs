//! A quarter in which real layers and an emulated issuer live, with planted facts. The review finds each, and nothing else.
//!
//! The clock of the issuer is moved; the audit layer has the clock of the machine, so the times of its lines are moved likewise.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::Request;
use kinde_emulator::{IssuedKey, KeySpec, KindeEmulator};
use serde_json::Value;
use tower::ServiceExt;
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::{ApiKeyLayer, OrgContext, require_any_scope, require_scope};
use tower_orgkey_audit::{AuditLayer, AuditTrail, JsonLines};
use tower_orgkey_review::{
    Evidence, EvidenceBuilder, KeyList, PreviousReview, Review, ReviewPolicy, UnixMillis,
};

use crate::ids;

const DAYS: i32 = 95;

#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A service behind the layers.
struct Node {
    app: Router,
    trail: AuditTrail,
    lines: Lines,
    /// All lines so far, with moved times.
    moved: String,
}

impl Node {
    fn start(emulator: &KindeEmulator) -> Self {
        let kinde = KindeVerifier::builder(emulator.issuer_url())
            .client_credentials(emulator.client_id(), emulator.client_secret())
            .build()
            .unwrap();
        let lines = Lines::default();
        let trail = AuditTrail::builder()
            .sink(JsonLines::new(lines.clone()))
            .start()
            .unwrap();
        let handler = || get(async |org: OrgContext| org.org_code().to_string());
        let app = Router::new()
            .route(
                "/reports",
                handler().route_layer(require_scope("read:reports")),
            )
            .route(
                "/export",
                handler().route_layer(require_any_scope(["export", "admin"])),
            )
            .route("/open", handler())
            .route_layer(ApiKeyLayer::new(kinde))
            .route_layer(AuditLayer::new(&trail));
        Self {
            app,
            trail,
            lines,
            moved: String::new(),
        }
    }

    async fn send(&self, path: &str, key: &IssuedKey) -> u16 {
        let request =
            Request::get(path).header("authorization", format!("Bearer {}", key.secret()));
        let request = request.body(Body::empty()).unwrap();
        let response = self.app.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        axum::body::to_bytes(response.into_body(), usize::MAX)
            .await
            .unwrap();
        status
    }

    /// Ends a day: moves the times of its lines.
    async fn end_day(&mut self, offset: i32) {
        self.trail.flush(Duration::from_secs(30)).await.unwrap();
        let text = String::from_utf8(std::mem::take(&mut *self.lines.0.lock().unwrap())).unwrap();
        for line in text.lines() {
            let mut event: Value = serde_json::from_str(line).unwrap();
            for name in ["time", "start_time", "end_time"] {
                let time = event[name].as_i64().unwrap() + i64::from(offset) * 1_000;
                event[name] = time.into();
            }
            self.moved += &event.to_string();
            self.moved.push('\n');
        }
    }
}

/// Reads the issuer's list, with the organizations of keys without a request.
async fn list(emulator: &KindeEmulator, now: UnixMillis) -> KeyList {
    let http = reqwest::Client::new();
    let get = async |path: String| -> Value {
        let reply = http.get(format!("{}{path}", emulator.issuer_url()));
        let reply = reply
            .bearer_auth(emulator.issue_token(["read:api_keys"]))
            .send()
            .await
            .unwrap();
        reply.json().await.unwrap()
    };
    let mut list = get("/api/v1/api_keys?page_size=500".to_owned()).await;
    assert_eq!(list["has_more"], false);
    for key in list["api_keys"].as_array_mut().unwrap() {
        let record = get(format!("/api/v1/api_keys/{}", key["id"].as_str().unwrap())).await;
        let record = record.get("api_key").unwrap_or(&record);
        key["organization_id"] = record["organization_id"].clone();
    }
    KeyList::from_json(&list.to_string(), now).unwrap()
}

fn policy() -> ReviewPolicy {
    ReviewPolicy::new()
        .name_template("{org}-{env:prod|test}-{purpose}".parse().unwrap())
        .organizations(["org_a", "org_b"])
}

fn fold(nodes: &[Node]) -> Evidence {
    let evidence = nodes.iter().enumerate().map(|(n, node)| {
        let mut builder = EvidenceBuilder::new();
        builder
            .read(&format!("node-{n}"), node.moved.as_bytes(), |_| {})
            .unwrap();
        assert_eq!(builder.problems(), []);
        builder.finish()
    });
    evidence.fold(Evidence::default(), |all, one| all.merge(one).unwrap())
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "one story, day by day")]
async fn a_quarter_has_what_was_planted() {
    let emulator = KindeEmulator::builder()
        .token_lifetime(Duration::from_secs(200 * 86_400))
        .start()
        .await
        .unwrap();
    let offset = |day: i32| (day - DAYS) * 86_400;
    emulator.set_clock_offset(offset(0));
    let mut nodes = [Node::start(&emulator), Node::start(&emulator)];

    let spec = |org: &str, name: &str, scopes: &[&str]| {
        KeySpec::organization(org)
            .name(name)
            .scopes(scopes.iter().copied())
    };
    let needs = ["read:reports", "export"];
    let good = emulator.issue_key(spec("org_a", "a-prod-good", &needs));
    let unused = emulator.issue_key(spec("org_a", "a-prod-unused", &needs));
    let broad = emulator.issue_key(spec(
        "org_a",
        "a-prod-broad",
        &["admin", "export", "never", "read:reports"],
    ));
    let misnamed = emulator.issue_key(spec("org_a", "my key", &needs));
    let gone = emulator.issue_key(spec("org_gone", "gone-prod-x", &needs));
    let old = emulator.issue_key(spec("org_b", "b-prod-old", &needs));
    let revoked = emulator.issue_key(spec("org_b", "b-prod-revoked", &needs));
    let rejected = emulator.issue_key(spec("org_b", "b-prod-rejected", &["export"]));
    let environment = emulator.issue_key(KeySpec::environment().name("env-prod-x"));

    let mut rotated: BTreeMap<String, IssuedKey> = BTreeMap::new();
    let mut first = None;
    for day in 1..=DAYS {
        emulator.set_clock_offset(offset(day));
        for node in &nodes {
            for key in [&good, &misnamed, &gone, &old] {
                let key = rotated.get(key.id()).unwrap_or(key);
                assert_eq!(node.send("/reports", key).await, 200);
                assert_eq!(node.send("/export", key).await, 200);
            }
            // Still accepted after it was revoked: the cache knows no other time than that of the machine.
            assert_eq!(node.send("/export", &revoked).await, 200);
            assert_eq!(node.send("/reports", &broad).await, 200);
            assert_eq!(node.send("/open", &broad).await, 200);
            assert_eq!(node.send("/export", &rejected).await, 200);
            assert_eq!(node.send("/reports", &rejected).await, 403);
        }
        let now = UnixMillis::now();
        let now = UnixMillis(
            (i64::try_from(now.0).unwrap() + i64::from(offset(day)) * 1_000).unsigned_abs(),
        );
        for node in &mut nodes {
            node.end_day(offset(day)).await;
        }
        if day == 60 {
            // All but one, and those that nothing says about.
            for key in [&good, &misnamed, &gone] {
                rotated.insert(key.id().to_owned(), emulator.rotate(key.id()));
            }
            for key in [&unused, &broad, &rejected] {
                emulator.rotate(key.id());
            }
            emulator.rotate(environment.id());
        }
        if day == 60 {
            emulator.revoke(revoked.id());
        }
        // A review before and one after the rotations.
        if day == 59 || day == 61 {
            let keys = list(&emulator, now).await;
            let evidence = fold(&nodes);
            let policy = policy();
            let review = Review::of(&keys, &evidence, &policy);
            first = Some(match &first {
                Some(before) => review.previous(&PreviousReview::of(before)).report(),
                None => review.report(),
            });
        }
    }
    let keys = list(&emulator, UnixMillis::now()).await;
    let evidence = fold(&nodes);
    let first = first.unwrap();
    let report = Review::of(&keys, &evidence, &policy())
        .previous(&PreviousReview::of(&first))
        .report();
    assert!(report.coverage.is_whole(), "{:?}", report.coverage);
    let mut expected = vec![
        format!("used-after-revocation org_b {}", revoked.id()),
        format!("organization-gone org_gone {}", gone.id()),
        format!("unused org_a {}", unused.id()),
        format!("over-scoped org_a {}", broad.id()),
        format!("rotation-due org_b {}", old.id()),
        format!("not-of-organization - {}", environment.id()),
        format!("unused - {}", environment.id()),
        format!("never-asked org_a {}", broad.id()),
        format!("often-rejected org_b {}", rejected.id()),
        format!("name org_a {}", misnamed.id()),
    ];
    let mut found = ids(&report);
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);

    let reviewed = |key: &IssuedKey| report.keys.iter().find(|it| it.id == key.id()).unwrap();
    assert_eq!(
        reviewed(&good).needed.as_deref().unwrap(),
        ["export", "read:reports"]
    );
    assert_eq!(
        reviewed(&broad).needed.as_deref().unwrap(),
        ["read:reports"]
    );
    let requests = 2 * u64::from(DAYS.unsigned_abs());
    assert_eq!(
        (reviewed(&good).replayed, reviewed(&good).unguarded),
        (2 * requests, 0)
    );
    assert_eq!(
        (reviewed(&broad).replayed, reviewed(&broad).unguarded),
        (requests, requests)
    );
    assert_eq!(reviewed(&rejected).rejected["insufficient-scope"], requests);
    assert_eq!(reviewed(&rejected).denied, ["read:reports"]);
    let of_a: u64 = report.requests["org_a"]
        .iter()
        .map(|week| week.allowed)
        .sum();
    assert_eq!(of_a, 6 * requests);

    // One line less, and the unused key is only one that was not seen.
    let lines: Vec<_> = nodes[0].moved.lines().map(str::to_owned).collect();
    let mut without = lines.clone();
    without.remove(lines.len() / 2);
    nodes[0].moved = without.join("\n");
    let partial = Review::of(&keys, &fold(&nodes), &policy())
        .previous(&PreviousReview::of(&first))
        .report();
    assert_eq!(
        (partial.coverage.missing, partial.coverage.whole_days),
        (1, 89)
    );
    let unused = format!("not-seen org_a {}", unused.id());
    assert!(ids(&partial).contains(&unused.as_str()));
    assert!(!ids(&partial).iter().any(|id| id.starts_with("unused")));
}
