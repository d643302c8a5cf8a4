//! The optional features, each with the same handler as the layer and its guard.

use std::convert::Infallible;

use axum::Router;
use tower_orgkey_audit::{AuditEvent, AuditLayer, AuditSink, AuditTrail, SinkError};
use tower_orgkey::settings::{OrgSettingsLayer, settings_fn};
use tower_orgkey_usage::UsageLayer;
use tower_orgkey::{OrgConcurrencyLimitLayer, OrgContext, OrgRateLimitLayer, Quota, require_scope};

use super::ours::{ask, warm_layer};
use super::{BEARER, Call, Row, SCOPE, Under, api, passes};

#[rustfmt::skip]
pub(crate) const ALL: &[Row] = &[
    Row { name: "layers-off", says: "`(auth, require_scope(..))`, all features compiled in, none used", under: Under::Router, build: off },
    Row { name: "layers-usage", says: "and `UsageLayer`", under: Under::Router, build: usage },
    Row { name: "layers-audit", says: "and `AuditLayer`, its thread's work included, into a sink that writes nothing", under: Under::Router, build: audit },
    Row { name: "layers-rate", says: "and `OrgRateLimitLayer`", under: Under::Router, build: rate },
    Row { name: "layers-concurrency", says: "and `OrgConcurrencyLimitLayer`", under: Under::Router, build: concurrency },
    Row { name: "layers-settings", says: "and `OrgSettingsLayer`", under: Under::Router, build: settings },
];

fn off() -> Call {
    passes(api().layer((warm_layer(), require_scope(SCOPE))))
}

fn usage() -> Call {
    let layers = (UsageLayer::new(), warm_layer(), require_scope(SCOPE));
    passes(api().layer(layers))
}

/// Accepts every event.
struct Nowhere;

impl AuditSink for Nowhere {
    fn write(&mut self, _: &[AuditEvent]) -> Result<(), SinkError> {
        Ok(())
    }
}

fn audit() -> Call {
    let trail = AuditTrail::start(Nowhere).expect("a thread");
    let layers = (AuditLayer::new(&trail), warm_layer(), require_scope(SCOPE));
    passes(api().layer(layers))
}

fn rate() -> Call {
    let rate = OrgRateLimitLayer::new(|_: &OrgContext| Some(Quota::per_second(1_000_000_000)));
    passes(api().layer((warm_layer(), rate, require_scope(SCOPE))))
}

fn concurrency() -> Call {
    let at_once = OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(2));
    passes(api().layer((warm_layer(), at_once, require_scope(SCOPE))))
}

fn settings() -> Call {
    let auth = warm_layer();
    let loader = settings_fn(|_| async { Ok::<_, Infallible>(3_u32) });
    let settings = OrgSettingsLayer::new(&auth.handle(), loader);
    let router: Router = api().layer((auth, settings, require_scope(SCOPE)));
    ask(&router, BEARER);
    passes(router)
}
