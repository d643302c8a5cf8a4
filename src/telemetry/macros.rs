//! Macros for metrics. Without the feature `metrics`, they expand to nothing.

/// Returns the handle of a metric. Its key is a constant, which the macros of [`metrics`] only make of a literal name: they would
/// build and hash the key for each request.
#[cfg(feature = "metrics")]
macro_rules! handle {
    ($register:ident, $name:expr $(, $label:literal => $value:literal)?) => {{
        static LABELS: &[metrics::Label] = &[$(metrics::Label::from_static_parts($label, $value))?];
        static KEY: metrics::Key = metrics::Key::from_static_parts($name, LABELS);
        static METADATA: metrics::Metadata<'_> =
            metrics::Metadata::new(module_path!(), metrics::Level::INFO, Some(module_path!()));
        metrics::with_recorder(|recorder| recorder.$register(&KEY, &METADATA))
    }};
}

/// Increments a counter with one label. All values of the label are listed, so that no label is built at run time.
#[cfg(feature = "metrics")]
macro_rules! count {
    ($name:expr, $label:literal = $value:expr; $($known:literal)+) => {
        match $value {
            $($known => handle!(register_counter, $name, $label => $known).increment(1),)+
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
        handle!(register_histogram, $name).record($seconds.as_secs_f64())
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
        handle!(register_gauge, $name).set($value as f64)
    };
}

#[cfg(not(feature = "metrics"))]
macro_rules! set {
    ($name:expr, $value:expr) => {
        let _ = $value;
    };
}
