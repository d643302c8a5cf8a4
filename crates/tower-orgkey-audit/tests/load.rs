//! The audit trail, usage, handlers and clients count the same requests.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::get;
use http::{Request, StatusCode};
use serde::Deserialize;
use tower::ServiceExt;
use tower_orgkey::{
    ApiKey, ApiKeyLayer, KeyId, OrgCode, OrgContext, RejectionKind, Scopes, Verification,
    VerifyError, require_scope, verifier_fn,
};
use tower_orgkey_audit::{AuditLayer, AuditTrail, JsonLines};
use tower_orgkey_usage::{Account, UsageLayer};

const ORGANIZATIONS: usize = 10_000;
const REQUESTS: usize = 1_000_000;
const CALLERS: usize = 4;
/// A number of requests that fits into the queue of the audit trail.
const A_ROUND: usize = 4_000;

/// Counts of each organization, and of unauthenticated requests at the end.
struct Tally(Vec<AtomicU64>);

impl Tally {
    fn new() -> Arc<Self> {
        let counts = (0..=ORGANIZATIONS).map(|_| AtomicU64::new(0));
        Arc::new(Self(counts.collect()))
    }

    fn count(&self, of: usize, by: u64) {
        self.0[of].fetch_add(by, Ordering::Relaxed);
    }

    fn of(&self, of: usize) -> u64 {
        self.0[of].load(Ordering::Relaxed)
    }
}

const UNAUTHENTICATED: usize = ORGANIZATIONS;

fn code(org: usize) -> String {
    format!("org_{org:05}")
}

fn number(org: &str) -> usize {
    org.strip_prefix("org_").unwrap().parse().unwrap()
}

/// Every organization has a key that reads reports, and one that does not.
async fn verify(key: ApiKey) -> Result<Verification, VerifyError> {
    let key = key.expose_secret();
    let Some((org, kind)) = key
        .strip_prefix("key-")
        .and_then(|rest| rest.split_once('-'))
    else {
        return Ok(Verification::invalid());
    };
    let verification = Verification::of_organization(OrgCode::new(format!("org_{org}")).unwrap())
        .with_key_id(KeyId::new(format!("id_of_{key}")).unwrap());
    Ok(if kind == "reader" {
        verification.with_scopes(Scopes::from_names(["read:reports"]))
    } else {
        verification
    })
}

async fn handler(State(served): State<Arc<Tally>>, org: OrgContext) {
    served.count(number(org.org_code().as_str()), 1);
}

/// What the audit trail wrote, by organization and status code.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Lines>>);

#[derive(Default)]
struct Lines {
    cut: Vec<u8>,
    of: HashMap<(usize, String), u64>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default = "one")]
    count: u64,
    /// Lines for several rejections have no single reason.
    #[serde(default)]
    status_code: String,
    actor: Option<Actor>,
}

fn one() -> u64 {
    1
}

#[derive(Deserialize)]
struct Actor {
    user: User,
}

#[derive(Deserialize)]
struct User {
    org: Option<Org>,
}

#[derive(Deserialize)]
struct Org {
    uid: String,
}

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = self.0.lock().unwrap();
        let mut text = std::mem::take(&mut lines.cut);
        text.extend_from_slice(bytes);
        let mut rest = &text[..];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Line = serde_json::from_slice(&rest[..end])?;
            let org = line.actor.and_then(|actor| actor.user.org);
            let org = org.map_or(UNAUTHENTICATED, |org| number(&org.uid));
            *lines.of.entry((org, line.status_code)).or_default() += line.count;
            rest = &rest[end + 1..];
        }
        lines.cut = rest.to_vec();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The responses that clients got.
struct Seen {
    ok: Arc<Tally>,
    forbidden: Arc<Tally>,
    unauthorized: AtomicU64,
}

/// Returns one of a fixed sequence of requests: most valid, some without the scope, some with invalid keys.
async fn call(app: Router, nth: usize, seen: &Seen) {
    // An odd factor visits all organizations in an irregular order.
    let org = nth * 7_919 % ORGANIZATIONS;
    // Differs in each of the hundred rounds, so that every organization makes requests of every kind.
    let (path, key) = match (nth + nth / ORGANIZATIONS) % 16 {
        3 => ("/reports/17", format!("key-{org:05}-idler")),
        7 => ("/reports/17", format!("junk-{:05}", org % 100)),
        n if n % 2 == 0 => ("/reports/17", format!("key-{org:05}-reader")),
        _ => ("/whoami", format!("key-{org:05}-idler")),
    };
    let request = Request::get(path)
        .header("authorization", format!("Bearer {key}"))
        .body(Body::empty())
        .unwrap();
    match app.oneshot(request).await.unwrap().status() {
        StatusCode::OK => seen.ok.count(org, 1),
        StatusCode::FORBIDDEN => seen.forbidden.count(org, 1),
        StatusCode::UNAUTHORIZED => {
            seen.unauthorized.fetch_add(1, Ordering::Relaxed);
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_usage_handlers_and_clients_agree() {
    let written = Written::default();
    let trail = AuditTrail::start(JsonLines::new(written.clone())).unwrap();
    let usage = UsageLayer::new();
    let served = Tally::new();
    let app = Router::new()
        .route(
            "/reports/{id}",
            get(handler).route_layer(require_scope("read:reports")),
        )
        .route("/whoami", get(handler))
        .route_layer(ApiKeyLayer::new(verifier_fn(verify)))
        .route_layer(usage.clone())
        .route_layer(AuditLayer::new(&trail))
        .with_state(Arc::clone(&served));
    let seen = Arc::new(Seen {
        ok: Tally::new(),
        forbidden: Tally::new(),
        unauthorized: AtomicU64::new(0),
    });

    for round in 0..REQUESTS / A_ROUND {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (app, seen) = (app.clone(), Arc::clone(&seen));
                tokio::spawn(async move {
                    let of_the_round = (0..A_ROUND).skip(caller).step_by(CALLERS);
                    for nth in of_the_round {
                        call(app.clone(), round * A_ROUND + nth, &seen).await;
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
        trail.flush(Duration::from_secs(60)).await.unwrap();
    }
    trail.shutdown(Duration::from_secs(60)).await.unwrap();

    let snapshot = usage.handle().snapshot();
    let mut counted: HashMap<usize, (u64, u64, u64)> = HashMap::new();
    for line in snapshot.lines() {
        let org = line.account.organization();
        let org = org.map_or(UNAUTHENTICATED, |org| number(org.as_str()));
        let sums = counted.entry(org).or_default();
        sums.0 += line.counts.requests();
        sums.1 += line.counts.rejected();
        sums.2 += line.counts.served();
    }
    let lines = written.0.lock().unwrap();
    let line = |org, code: &str| lines.of.get(&(org, code.to_owned())).copied().unwrap_or(0);
    for org in 0..ORGANIZATIONS {
        let (ok, forbidden) = (seen.ok.of(org), seen.forbidden.of(org));
        assert_eq!(served.of(org), ok, "{}: the handler", code(org));
        let audited = (line(org, "allowed"), line(org, "insufficient-scope"));
        assert_eq!(audited, (ok, forbidden), "{}: the audit trail", code(org));
        let requests = (ok + forbidden, forbidden, ok);
        assert_eq!(counted[&org], requests, "{}: usage", code(org));
    }
    // Unauthenticated rejections are sampled; lines with a count have the suppressed ones.
    let unauthorized = seen.unauthorized.load(Ordering::Relaxed);
    let audited_unauthenticated: u64 = lines
        .of
        .iter()
        .filter_map(|((org, _), count)| (*org == UNAUTHENTICATED).then_some(count))
        .sum();
    assert_eq!(audited_unauthenticated, unauthorized);
    let unauthenticated_usage = snapshot.of_account(&Account::Unauthenticated);
    assert_eq!(unauthenticated_usage.requests(), unauthorized);
    assert_eq!(
        unauthenticated_usage.rejected_for(RejectionKind::InvalidToken),
        unauthorized
    );

    assert_eq!(unauthorized, REQUESTS as u64 / 16);
    assert_eq!(snapshot.total().requests(), REQUESTS as u64);
    assert_eq!(counted.len(), ORGANIZATIONS + 1);
    assert_eq!(trail.stats().lost, 0);
}
