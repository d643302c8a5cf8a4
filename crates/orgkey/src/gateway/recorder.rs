//! The recorder of metrics of the process.

use std::sync::OnceLock;

use foldhash::fast::RandomState;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// Installs the recorder, once.
pub(super) fn installed() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    let handle = HANDLE.get_or_init(|| {
        let recorder = PrometheusBuilder::new().build_recorder();
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

type Handles<T> = papaya::HashMap<Key, T, RandomState>;

/// Keeps the handles of metrics, which the recorder of Prometheus allocates for each use. All labels are bounded.
struct Kept {
    recorder: PrometheusRecorder,
    counters: Handles<Counter>,
    histograms: Handles<Histogram>,
}

/// Returns the handle of a metric, which `make` returns the first time.
fn kept<T: Clone>(handles: &Handles<T>, key: &Key, make: impl FnOnce() -> T) -> T {
    let handles = handles.pin();
    if let Some(handle) = handles.get(key) {
        return handle.clone();
    }
    let handle = make();
    handles.insert(key.clone(), handle.clone());
    handle
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
