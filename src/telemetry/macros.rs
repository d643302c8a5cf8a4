//! Metrics in one line each. Without the feature `metrics` they come to nothing.

/// Counts under a label whose values are all known here, so that counting builds no label.
#[cfg(feature = "metrics")]
macro_rules! count {
    ($name:expr, $label:literal = $value:expr; $($known:literal)+) => {
        match $value {
            $($known => metrics::counter!($name, $label => $known).increment(1),)+
            // Every value is listed; a test holds the lists to their sources.
            _ => {}
        }
    };
}

#[cfg(not(feature = "metrics"))]
macro_rules! count {
    ($name:expr, $label:literal = $value:expr; $($known:literal)+) => {
        let _ = $value;
    };
}

#[cfg(feature = "metrics")]
macro_rules! observe {
    ($name:expr, $seconds:expr) => {
        metrics::histogram!($name).record($seconds.as_secs_f64())
    };
}

#[cfg(not(feature = "metrics"))]
macro_rules! observe {
    ($name:expr, $seconds:expr) => {
        let _ = $seconds;
    };
}

#[cfg(feature = "metrics")]
macro_rules! set {
    ($name:expr, $value:expr) => {
        // Exact to 2^53.
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!($name).set($value as f64)
    };
}

#[cfg(not(feature = "metrics"))]
macro_rules! set {
    ($name:expr, $value:expr) => {
        let _ = $value;
    };
}
