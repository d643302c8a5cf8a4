//! Macros for metrics. Without the feature `metrics`, they expand to nothing.

/// Increments a counter with one label. All values of the label are listed, so that no label is built at run time.
#[cfg(feature = "metrics")]
macro_rules! count {
    ($name:expr, $label:literal = $value:expr; $($known:literal)+) => {
        match $value {
            $($known => metrics::counter!($name, $label => $known).increment(1),)+
            // A test compares the list with its source.
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
