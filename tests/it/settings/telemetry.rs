//! Events and metrics of settings, and that those of the keys are separate.

use std::collections::BTreeMap;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tower_orgkey::telemetry;

use super::store::{Fault, Plan};
use super::{App, MINUTE, MS, Outcome, SECOND, plan, settle};
use crate::support::log::Log;

/// Returns every counter and gauge as `name{label=value}`, and the number of values of every histogram.
fn snapshot(snapshotter: &Snapshotter) -> BTreeMap<String, u64> {
    snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, _, _, value)| {
            let key = key.key();
            let labels: Vec<_> = key
                .labels()
                .map(|label| format!("{}={}", label.key(), label.value()))
                .collect();
            let value = match value {
                DebugValue::Counter(count) => count,
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                DebugValue::Gauge(value) => value.0 as u64,
                DebugValue::Histogram(values) => values.len() as u64,
            };
            (format!("{}{{{}}}", key.name(), labels.join(",")), value)
        })
        .collect()
}

/// Causes every outcome of a load, and opens the breaker.
async fn trouble() -> App {
    let app = App::with(|builder| builder.default_on_error(Plan::of("default", 0)));
    for _ in 0..3 {
        assert_eq!(app.get("one").await, plan("one", 0));
    }
    app.clock.jump(MINUTE);
    assert_eq!(app.get("one").await, plan("one", 0));
    settle().await;
    app.store.fails_for("broken", Fault::Broken);
    app.get("broken").await;
    app.store.fails(Fault::Unavailable);
    for n in 0..5 {
        let outcome = app.get(&format!("org_{n}")).await;
        assert!(matches!(outcome, Outcome::Default(_)));
    }
    app
}

#[tokio::test(start_paused = true)]
async fn settings_and_key_metrics_are_separate() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let app = trouble().await;
    // The half-open load is throttled.
    app.clock.jump(5 * SECOND);
    app.store.fails(Fault::Throttled);
    app.get("org_9").await;
    tokio::time::sleep(MS).await;

    let seen = snapshot(&snapshotter);
    let of = |name: &str, labels: &str| seen.get(&format!("{name}{{{labels}}}")).copied();
    // The keys: eight lookups and one refresh, all successful.
    assert_eq!(of(telemetry::ISSUER_CALLS, "result=valid"), Some(9));
    for result in ["unavailable", "throttled", "misconfigured", "invalid"] {
        let label = format!("result={result}");
        assert_eq!(of(telemetry::ISSUER_CALLS, &label), None, "{result}");
    }
    assert_eq!(of(telemetry::ISSUER_LATENCY, ""), Some(9));
    assert_eq!(of(telemetry::ENTRIES, ""), Some(8));
    assert_eq!(of(telemetry::BREAKER, "circuit=unknown"), None);
    assert_eq!(of(telemetry::THROTTLED, ""), None);
    assert_eq!(of(telemetry::IN_FLIGHT, ""), Some(0));
    assert_eq!(of(telemetry::LOOKUPS, "result=miss"), Some(8));
    assert_eq!(of(telemetry::LOOKUPS, "result=fresh"), Some(2));
    assert_eq!(of(telemetry::LOOKUPS, "result=stale"), Some(1));

    // The settings.
    let settings = format!("settings={}", std::any::type_name::<Plan>());
    let result = |result: &str| format!("{settings},result={result}");
    assert_eq!(of(telemetry::SETTINGS_LOOKUPS, "result=miss"), Some(8));
    assert_eq!(of(telemetry::SETTINGS_LOOKUPS, "result=fresh"), Some(2));
    assert_eq!(of(telemetry::SETTINGS_LOOKUPS, "result=stale"), Some(1));
    assert_eq!(of(telemetry::SETTINGS_LOADS, &result("loaded")), Some(2));
    assert_eq!(of(telemetry::SETTINGS_LOADS, &result("broken")), Some(1));
    assert_eq!(of(telemetry::SETTINGS_LOADS, &result("throttled")), Some(1));
    let unavailable = of(telemetry::SETTINGS_LOADS, &result("unavailable"));
    assert_eq!(
        unavailable,
        Some(app.store.failures() as u64 - 2),
        "each with its retry, as far as there was one"
    );
    assert_eq!(
        of(telemetry::SETTINGS_LATENCY, &settings),
        Some(app.store.calls() as u64)
    );
    assert_eq!(of(telemetry::SETTINGS_ENTRIES, &settings), Some(1));
    // A throttling store is alive, so the breaker is closed.
    let circuit = format!("{settings},circuit=unknown");
    assert_eq!(of(telemetry::SETTINGS_BREAKER, &circuit), Some(0));
    assert_eq!(of(telemetry::SETTINGS_THROTTLED, &settings), Some(1));
    assert_eq!(of(telemetry::SETTINGS_IN_FLIGHT, &settings), Some(0));
    assert_eq!(of(telemetry::SETTINGS_WAITING, &settings), Some(0));
    assert_eq!(of(telemetry::SETTINGS_DEFAULTS, ""), Some(7));
}

#[tokio::test(start_paused = true)]
async fn the_log_names_the_org_of_a_failed_load() {
    let (log, _guard) = Log::capture();
    let app = trouble().await;
    app.clock.jump(5 * SECOND);
    app.store.recovers();
    assert_eq!(app.get("new").await, plan("new", 0));
    // At most one such event is logged per second, in all tests of this process.
    app.store.fails_for("broken", Fault::Broken);
    let mut told = None;
    for _ in 0..1_000 {
        app.get("broken").await;
        let failed = log.lines("WARN", "settings load failed");
        told = failed.into_iter().find(|line| line.contains("\"broken\""));
        if told.is_some() {
            break;
        }
        std::thread::sleep(20 * MS);
    }
    let failed = told.unwrap();
    assert!(
        failed.contains("org_code=\"broken\"") && failed.contains("no such plan"),
        "{failed}"
    );
    assert!(!failed.contains("issuer"), "{failed}");
    for (level, message) in [
        ("WARN", "settings circuit breaker opened"),
        ("INFO", "settings circuit breaker half open"),
        ("INFO", "settings circuit breaker closed"),
    ] {
        assert_eq!(log.lines(level, message).len(), 1, "{message}");
    }
    let loads = log.lines("DEBUG", "settings load finished");
    assert_eq!(loads.len(), app.store.calls());
    for level in ["WARN", "ERROR", "INFO"] {
        let of_the_issuer = log.lines(level, "issuer");
        assert!(of_the_issuer.is_empty(), "{of_the_issuer:?}");
    }
    assert!(!log.text().contains("k_test_"), "a key is told");
}
