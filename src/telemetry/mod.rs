//! The names of all events and metrics. They are part of the public interface: a change is a breaking change.
//!
//! # Events
//!
//! Events of [`tracing`] have the target [`TARGET`], and never contain a key or its digest. An event for a change of state is
//! emitted once per change. An event that any request can cause is emitted at most once per second and cause, and its field `suppressed`
//! has the number of events left out since the last one.
//!
//! [`troubleshooting`](crate::troubleshooting) has the causes of the warnings and errors, and what to do about them.
//!
//! | level | message begins | fields, and when |
//! |---|---|---|
//! | error | ``rejected with 500: no `ApiKeyLayer` `` | `component` is a guard or an extractor without the layer |
//! | error | `rejected with 500: this layer is inside` | `layer` must be outside the `ApiKeyLayer` |
//! | error | `rejected with 500: this layer must be inside` | `layer` is outside the `ApiKeyLayer`, or there is none |
//! | error | ``rejected with 500: `require_org` `` | the route has no path parameter of the name `parameter` |
//! | error | ``rejected with 500: no `OrgSettingsLayer` `` | `component` takes settings of the type `settings`, and their layer is missing |
//! | error | `key not kept` | `method` of an `OrgContext` needs the key, and the layer does not keep it |
//! | error | `issuer rejects known keys` | the issuer rejects the number `keys` of known keys and answers no other key; the keys stay cached |
//! | warn | `verification failed` | `error`, `cause` and `result` |
//! | warn | `circuit breaker opened` | no keys (`circuit` is `known`) or no unknown keys (`unknown`) are verified for `open_for` |
//! | info | `circuit breaker half open` | one call tries the issuer |
//! | info | `circuit breaker closed` | keys are verified again |
//! | warn | `issuer asks for fewer calls` | the issuer responded with 429; calls pause for `pause` |
//! | error | `TLS certificate of the issuer not trusted` | with `security = true` and `cause`; nothing was sent. Once until a connection succeeds |
//! | error | `access token request failed` | `error`, `cause`, and `code`, which is a code of RFC 6749 or `other`. Once until a request succeeds |
//! | info | `access token request succeeded again` | after a failure |
//! | error | `issuer rejects the access token` | `verify_status` and `probe_status`. Once until verify accepts a token |
//! | info | `issuer accepts the access token again` | after a rejection |
//! | warn | `access token cannot list keys` | it lacks the scope `read:api_keys`. Once until a probe is accepted |
//! | error | `access token cannot look up keys` | with `api_id`: it lacks the scope `read:api_keys`. Once until a look-up is accepted |
//! | info | `cached keys invalidated` | the reconciler has invalidated the number `invalidated` of the `compared` keys |
//! | error | `issuer's key list contradicts most cached keys` | it contradicts `outdated` of the `compared` keys, and is applied only if the next list does too |
//! | warn | `reconciliation failed` | `error`. Once until a reconciliation succeeds |
//! | info | `reconciliation succeeded again` | after a failure |
//! | warn | `settings load failed` | `org_code`, `error` and `settings` |
//! | warn | `settings circuit breaker opened` | no settings (`circuit` is `known`), or none of organizations without cached settings (`unknown`), are loaded for `open_for` |
//! | info | `settings circuit breaker half open` | one load tries the loader |
//! | info | `settings circuit breaker closed` | settings are loaded again |
//! | warn | `settings loader asks for fewer calls` | loads pause for `pause` |
//! | warn | `limit table full` | more organizations or keys are active than the `capacity` of a limit (feature `limit`) |
//! | debug | `settings load finished` | `settings`, `result`, `org_code` and `took` |
//! | debug | `verification finished` | `result`, `cause` and `took` |
//! | debug | `request allowed` | `org_code`, `key_id` and `age` |
//! | debug | `request rejected` | `outcome`, the code of the [rejection](crate::rejection) |
//!
//! With several issuers, the events about verifications have the field `issuer`: its name.
//!
//! # Metrics
//!
//! With the feature `metrics`, through the facade of that name. Labels are bounded: they contain no key, digest or organization.
//!
//! | name | kind | labels |
//! |---|---|---|
//! | [`REQUESTS`] | counter | `outcome`: `allowed`, `anonymous`, `other-credential`, or the code of a [kind of rejection](crate::RejectionKind::code) |
//! | [`LOOKUPS`] | counter | `result`: `fresh`, `stale`, `invalid`, `miss` |
//! | [`SERVED_AGE`] | histogram, seconds | |
//! | [`ISSUER_CALLS`] | counter | `result`: `valid`, `invalid`, `undecided`, `unavailable`, `throttled`, `invalid_response`, `inconclusive`, `misconfigured` |
//! | [`ISSUER_LATENCY`] | histogram, seconds | |
//! | [`BREAKER`] | gauge: 0 closed, 1 half open, 2 open | `circuit`: `known`, `unknown` |
//! | [`THROTTLED`] | counter | |
//! | [`IN_FLIGHT`], [`WAITING`] | gauges | |
//! | [`ENTRIES`] | gauge | |
//! | [`RECONCILER_RUNS`] | counter | `result`: `complete`, `unconfirmed`, `idle`, `failed` |
//! | [`RECONCILER_CALLS`] | counter | |
//! | [`RECONCILER_INVALIDATED`] | counter | |
//! | [`SETTINGS_LOOKUPS`] | counter | `result`: `fresh`, `stale`, `miss` |
//! | [`SETTINGS_DEFAULTS`] | counter | |
//! | [`SETTINGS_LOADS`] | counter | `settings`; `result`: `loaded`, `unavailable`, `throttled`, `broken` |
//! | [`SETTINGS_LATENCY`] | histogram, seconds | `settings` |
//! | [`SETTINGS_BREAKER`] | gauge: 0 closed, 1 half open, 2 open | `settings`; `circuit`: `known`, `unknown` |
//! | [`SETTINGS_THROTTLED`] | counter | `settings` |
//! | [`SETTINGS_IN_FLIGHT`], [`SETTINGS_WAITING`] | gauges | `settings` |
//! | [`SETTINGS_ENTRIES`] | gauge | `settings` |
//!
//! A request that passes nested layers is counted in [`REQUESTS`] by the outermost one that authenticates it. Each layer observes
//! [`SERVED_AGE`] and emits `request allowed`, because each decides by its own result. An outer layer that allows anonymous requests,
//! for keys in two headers, counts those with the key of the inner layer as `anonymous` too.
//!
//! With several issuers, [`ISSUER_CALLS`], [`ISSUER_LATENCY`], [`BREAKER`], [`THROTTLED`], [`IN_FLIGHT`] and [`WAITING`] also have the
//! label `issuer`: the name of the issuer.
//!
//! `settings` is the name of the loaded type, as [`std::any::type_name`] returns it.

#[macro_use]
mod macros;

#[cfg(feature = "kinde")]
pub(crate) mod kinde;
#[cfg(feature = "limit")]
pub(crate) mod limit;
mod placement;
mod rate_limited_log;
#[cfg(feature = "kinde")]
pub(crate) mod reconciler;
#[cfg(feature = "region")]
mod region;
mod requests;

pub(crate) use self::placement::layer_inside;
#[cfg(any(feature = "limit", feature = "region", feature = "settings"))]
pub(crate) use self::placement::layer_outside;
pub(crate) use self::rate_limited_log::{RateLimitedLog, RateLimitedLogs};
#[cfg(feature = "region")]
pub(crate) use self::region::region_undeclared;
#[cfg(feature = "axum")]
pub(crate) use self::requests::parameter_missing;
pub(crate) use self::requests::{key_not_kept, layer_missing, looked_up};

/// The target of every event of this crate.
pub const TARGET: &str = "tower_orgkey";

/// Counts requests by their outcome.
pub const REQUESTS: &str = "orgkey_requests_total";
/// Counts what requests found in the cache.
pub const LOOKUPS: &str = "orgkey_cache_lookups_total";
/// The age of the verification results that requests were served from, in seconds.
pub const SERVED_AGE: &str = "orgkey_served_age_seconds";
/// Counts calls to the verifier by their result.
pub const ISSUER_CALLS: &str = "orgkey_issuer_calls_total";
/// The duration of calls to the verifier, in seconds.
pub const ISSUER_LATENCY: &str = "orgkey_issuer_call_seconds";
/// The state of the circuit breaker: 0 closed, 1 half open, 2 open.
pub const BREAKER: &str = "orgkey_breaker_state";
/// Counts the pauses after a 429.
pub const THROTTLED: &str = "orgkey_throttled_total";
/// Calls to the verifier in flight.
pub const IN_FLIGHT: &str = "orgkey_calls_in_flight";
/// Verifications in the admission queue.
pub const WAITING: &str = "orgkey_verifications_waiting";
/// Cached valid keys.
pub const ENTRIES: &str = "orgkey_entries";
/// Counts the runs of the reconciler.
pub const RECONCILER_RUNS: &str = "orgkey_reconciler_runs_total";
/// Counts the calls of the reconciler to the issuer.
pub const RECONCILER_CALLS: &str = "orgkey_reconciler_calls_total";
/// Counts the keys that the reconciler invalidated.
pub const RECONCILER_INVALIDATED: &str = "orgkey_reconciler_invalidated_total";

/// Counts what requests found in the cache of settings.
pub const SETTINGS_LOOKUPS: &str = "orgkey_settings_lookups_total";
/// Counts requests that got the default, because their settings could not be loaded.
pub const SETTINGS_DEFAULTS: &str = "orgkey_settings_defaults_total";
/// Counts calls to the settings loader by their result.
pub const SETTINGS_LOADS: &str = "orgkey_settings_loads_total";
/// The duration of calls to the settings loader, in seconds.
pub const SETTINGS_LATENCY: &str = "orgkey_settings_load_seconds";
/// The state of the circuit breaker of the settings loader: 0 closed, 1 half open, 2 open.
pub const SETTINGS_BREAKER: &str = "orgkey_settings_breaker_state";
/// Counts the pauses that the settings loader asked for.
pub const SETTINGS_THROTTLED: &str = "orgkey_settings_throttled_total";
/// Calls to the settings loader in flight.
pub const SETTINGS_IN_FLIGHT: &str = "orgkey_settings_loads_in_flight";
/// Loads of settings that wait for their turn.
pub const SETTINGS_WAITING: &str = "orgkey_settings_loads_waiting";
/// Organizations with cached settings.
pub const SETTINGS_ENTRIES: &str = "orgkey_settings_entries";

/// Returns the sources of an error, joined by colons. Many subscribers show an error without its sources.
pub(crate) fn causes(error: &dyn std::error::Error) -> Option<String> {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes
        .map(ToString::to_string)
        .reduce(|causes, cause| format!("{causes}: {cause}"))
}
