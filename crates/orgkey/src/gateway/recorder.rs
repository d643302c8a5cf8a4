//! The recorder of metrics of the process.

use std::ptr;
use std::sync::OnceLock;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::once_map::OnceMap;

/// The upper bounds of the buckets of histograms, in seconds. Unlike quantiles, buckets can be added up over gateways.
const BUCKETS: [f64; 12] = [
    0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0,
];

/// Installs the recorder, once.
pub(super) fn installed() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    let handle = HANDLE.get_or_init(|| {
        // Fails only without buckets.
        let builder = PrometheusBuilder::new()
            .set_buckets(&BUCKETS)
            .unwrap_or_default();
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        let recorder = Kept {
            recorder,
            counters: Handles::default(),
            histograms: Handles::default(),
        };
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another recorder of metrics is installed: /metrics is empty");
        }
        handle
    });
    handle.clone()
}

type Handles<T> = OnceMap<Key, T>;

/// Compares the addresses first: most keys are constants.
fn is_same(key: &Key, other: &Key) -> bool {
    ptr::eq(key.name(), other.name()) && ptr::eq(key.labels().as_slice(), other.labels().as_slice())
        || key == other
}

/// Keeps the handles of metrics, which the recorder of Prometheus allocates for each use. All labels are bounded.
struct Kept {
    recorder: PrometheusRecorder,
    counters: Handles<Counter>,
    histograms: Handles<Histogram>,
}

/// Returns the handle of a metric, which `make` returns the first time.
fn kept<T: Clone>(handles: &Handles<T>, key: &Key, make: impl Fn() -> T) -> T {
    // The lower bits suffice.
    #[expect(clippy::cast_possible_truncation)]
    let hash = key.get_hash() as usize;
    let handle = handles.get_or_insert(hash, |other| is_same(key, other), || (key.clone(), make()));
    handle.cloned().unwrap_or_else(make)
}

impl Recorder for Kept {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.recorder.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.recorder.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.recorder.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        kept(&self.counters, key, || {
            self.recorder.register_counter(key, metadata)
        })
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.recorder.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        kept(&self.histograms, key, || {
            self.recorder.register_histogram(key, metadata)
        })
    }
}

#[cfg(test)]
mod tests {
    use metrics::Label;

    use super::*;

    #[test]
    fn equal_keys_have_one_handle() {
        static LABELS: &[Label] = &[Label::from_static_parts("outcome", "allowed")];
        static KEY: Key = Key::from_static_parts("checks", LABELS);
        let built = |value: &str| {
            Key::from_parts(
                "checks".to_owned(),
                vec![Label::new("outcome", value.to_owned())],
            )
        };
        let handles = Handles::default();
        let made = |key: &Key, number| kept(&handles, key, || number);
        assert_eq!(made(&KEY, 1), 1);
        assert_eq!(made(&KEY, 2), 1);
        assert_eq!(made(&built("allowed"), 3), 1);
        assert_eq!(made(&built("public"), 4), 4);
        assert_eq!(made(&Key::from_static_name("checks"), 5), 5);
    }
}
