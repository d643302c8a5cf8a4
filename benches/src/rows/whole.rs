//! The whole stack, and each of its optional parts, with the same handler as the layer and its guard.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tower_orgkey::settings::{OrgSettingsLayer, settings_fn};
use tower_orgkey::{
    ApiKeyLayer, OrgConcurrencyLimitLayer, OrgContext, OrgRateLimitLayer, Quota, require_scope,
};
use tower_orgkey_audit::{AuditEvent, AuditLayer, AuditSink, AuditTrail, JsonLines, SinkError};
use tower_orgkey_usage::UsageLayer;

use super::log_file::LogFile;
use super::ours::{ask, warm_layer};
use super::{BEARER, Call, IS_PROFILED, REPORTS, Row, SCOPE, Under, api, passes, stacked, traced};

#[rustfmt::skip]
pub(crate) const ALL: &[Row] = &[
    Row { name: "whole-off", says: "`(auth, require_scope(..))`, all features compiled in, none used", under: Under::Router, build: off },
    Row { name: "whole-usage", says: "and `UsageLayer`", under: Under::Router, build: usage },
    Row { name: "whole-audit", says: "and `AuditLayer`, with its thread, into a file of JSON lines", under: Under::Router, build: audit },
    Row { name: "whole-rate", says: "and `OrgRateLimitLayer`", under: Under::Router, build: rate },
    Row { name: "whole-concurrency", says: "and `OrgConcurrencyLimitLayer`", under: Under::Router, build: concurrency },
    Row { name: "whole-settings", says: "and `OrgSettingsLayer`", under: Under::Router, build: settings },
    Row { name: "whole", says: "**audit, usage, auth, rate, settings, scope in one `layer`**", under: Under::Router, build: whole },
    Row { name: "whole-route-layers", says: "the same, each by `route_layer`", under: Under::Router, build: route_layers },
    Row { name: "whole-guarded", says: "`auth.require_scope(..)` by `route_layer`", under: Under::Router, build: guarded },
    Row { name: "count-floor", says: "the floor, and the least that counts requests", under: Under::Router, build: stacked::counting },
    Row { name: "rate-floor", says: "the floor, and the least that limits a rate", under: Under::Router, build: stacked::rate },
    Row { name: "settings-floor", says: "the floor, and the least that has settings", under: Under::Router, build: stacked::settings },
    Row { name: "trace-layer", says: "tower-http's `TraceLayer` alone, JSON to a file", under: Under::Router, build: traced::trace_layer },
    Row { name: "traced-from-fn", says: "a `from_fn` with one `tracing` event alone, JSON to a file", under: Under::Router, build: traced::from_fn_line },
    Row { name: "whole-two-route-layers", says: "the layer and the guard, each by `route_layer`", under: Under::Router, build: two_route_layers },
];

fn off() -> Call {
    passes(api().layer((warm_layer(), require_scope(SCOPE))))
}

fn usage() -> Call {
    let layers = (UsageLayer::new(), warm_layer(), require_scope(SCOPE));
    passes(api().layer(layers))
}

fn lines() -> JsonLines<LogFile> {
    JsonLines::new(LogFile::new())
}

pub(crate) fn trail() -> AuditTrail {
    AuditTrail::start(lines()).expect("a thread")
}

/// A trail that has room for this many events.
pub(crate) fn trail_with_room(events: usize) -> AuditTrail {
    let trail = AuditTrail::builder().sink(lines()).capacity(events);
    trail.start().expect("a thread")
}

/// Waits until everything is written, and asserts that no event was lost.
pub(crate) fn flush(trail: &AuditTrail) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let flushed = runtime
        .expect("a runtime")
        .block_on(trail.flush(Duration::from_secs(60)));
    flushed.expect("a sink that works");
    let stats = trail.stats();
    assert_eq!(
        (stats.lost, stats.written),
        (0, stats.accepted),
        "the row misses the cost of lost events"
    );
}

/// A sink that begins when its gate is dropped. The events have to fit into the queue.
struct Held {
    lines: JsonLines<LogFile>,
    gate: Receiver<()>,
}

impl AuditSink for Held {
    fn write(&mut self, events: &[AuditEvent]) -> Result<(), SinkError> {
        // Nothing is ever sent.
        let _ = self.gate.recv();
        self.lines.write(events)
    }
}

/// The trail of a row. Writes everything at the end, and asserts that no event was lost.
struct Complete {
    trail: AuditTrail,
    gate: Option<Sender<()>>,
}

impl Complete {
    fn new() -> Self {
        let (gate, held) = channel();
        let sink = Held {
            lines: lines(),
            gate: held,
        };
        Self {
            trail: AuditTrail::start(sink).expect("a thread"),
            // Counted instructions must not depend on how the threads take turns, so the sink gets whole batches, at the end.
            gate: IS_PROFILED.load(Ordering::Relaxed).then_some(gate),
        }
    }

    fn call(self, mut call: Call) -> Call {
        Box::new(move || {
            let _ = &self;
            call();
        })
    }
}

impl Drop for Complete {
    fn drop(&mut self) {
        self.gate.take();
        flush(&self.trail);
    }
}

fn audit() -> Call {
    let complete = Complete::new();
    let layers = (
        AuditLayer::new(&complete.trail),
        warm_layer(),
        require_scope(SCOPE),
    );
    complete.call(passes(api().layer(layers)))
}

fn rate_layer() -> OrgRateLimitLayer {
    OrgRateLimitLayer::new(|_: &OrgContext| Some(Quota::per_second(1_000_000_000)))
}

fn rate() -> Call {
    passes(api().layer((warm_layer(), rate_layer(), require_scope(SCOPE))))
}

fn concurrency() -> Call {
    let at_once = OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(2));
    passes(api().layer((warm_layer(), at_once, require_scope(SCOPE))))
}

fn settings_layer(auth: &ApiKeyLayer) -> OrgSettingsLayer<u32> {
    let loader = settings_fn(|_| async { Ok::<_, Infallible>(3_u32) });
    OrgSettingsLayer::new(&auth.handle(), loader)
}

fn settings() -> Call {
    let auth = warm_layer();
    let settings = settings_layer(&auth);
    warmed(api().layer((auth, settings, require_scope(SCOPE))))
}

fn whole() -> Call {
    let complete = Complete::new();
    let call = warmed(whole_router(&complete.trail));
    complete.call(call)
}

/// The API with everything on, for the key of all rows.
pub(crate) fn whole_router(trail: &AuditTrail) -> Router {
    whole_router_of(warm_layer(), trail)
}

/// The API with everything on.
pub(crate) fn whole_router_of(auth: ApiKeyLayer, trail: &AuditTrail) -> Router {
    let settings = settings_layer(&auth);
    let layers = (
        AuditLayer::new(trail),
        UsageLayer::new(),
        auth,
        rate_layer(),
        settings,
        require_scope(SCOPE),
    );
    api().layer(layers)
}

fn route_layers() -> Call {
    let auth = warm_layer();
    let settings = settings_layer(&auth);
    let complete = Complete::new();
    let router = Router::new()
        .route(
            REPORTS,
            get(async || "ok").route_layer(require_scope(SCOPE)),
        )
        .route_layer(settings)
        .route_layer(rate_layer())
        .route_layer(auth)
        .route_layer(UsageLayer::new())
        .route_layer(AuditLayer::new(&complete.trail));
    complete.call(warmed(router))
}

fn guarded() -> Call {
    let auth = warm_layer();
    let reports = get(async || "ok").route_layer(auth.require_scope(SCOPE));
    passes(Router::new().route(REPORTS, reports))
}

fn two_route_layers() -> Call {
    let reports = get(async || "ok").route_layer(require_scope(SCOPE));
    passes(
        Router::new()
            .route(REPORTS, reports)
            .route_layer(warm_layer()),
    )
}

/// A router whose organization has its settings loaded.
fn warmed(router: Router) -> Call {
    ask(&router, BEARER);
    passes(router)
}
