//! Ten thousand concurrent requests with one unknown key.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderValue, StatusCode};
use tower::ServiceExt;
use tower_orgkey::{ApiKeyLayer, OrgCode, Verification, verifier_fn};

use crate::rows::{self, REPORTS};
use crate::table;

const WAITERS: usize = 10_000;
const ROUNDS: usize = 5;

pub(crate) fn table() {
    let lines = [50, 100, 300].map(|milliseconds| {
        let latency = Duration::from_millis(milliseconds);
        let mut ninety_ninth = Vec::new();
        let mut calls = 0;
        for _ in 0..ROUNDS {
            let (p99, called) = herd(latency);
            ninety_ninth.push(p99.as_secs_f64());
            calls = calls.max(called);
        }
        let p99 = table::median(ninety_ninth);
        vec![
            format!("{latency:?}"),
            calls.to_string(),
            format!("{:.0} ms", p99 * 1e3),
            table::ratio(p99, latency.as_secs_f64()),
        ]
    });
    table::print(
        &format!("herd: {WAITERS} concurrent requests with one unknown key"),
        &["issuer's latency", "calls", "p99", "p99 / latency"],
        &lines,
    );
}

fn herd(latency: Duration) -> (Duration, u32) {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let auth = ApiKeyLayer::new(verifier_fn(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            tokio::time::sleep(latency).await;
            Ok(Verification::of_organization(OrgCode::from_static(
                "org_1234567890",
            )))
        }
    }));
    let router = rows::api().layer(auth).with_state(());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let mut took = runtime.block_on(async {
        let tasks: Vec<_> = (0..WAITERS)
            .map(|_| {
                let router = router.clone();
                tokio::spawn(async move {
                    let authorization = HeaderValue::from_static(rows::BEARER);
                    let request = rows::request_with(REPORTS, authorization);
                    let begin = Instant::now();
                    let response = router.oneshot(request).await.expect("a response");
                    assert_eq!(response.status(), StatusCode::OK);
                    begin.elapsed()
                })
            })
            .collect();
        let mut took = Vec::with_capacity(WAITERS);
        for task in tasks {
            took.push(task.await.expect("a task that ends"));
        }
        took
    });
    took.sort();
    (took[WAITERS * 99 / 100], calls.load(Ordering::Relaxed))
}
