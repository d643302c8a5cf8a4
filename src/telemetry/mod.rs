//! The names of our events and metrics, all in one place. They are a part of the public contract.
//!
//! # Events
//!
//! Through [`tracing`], under the target [`TARGET`]. None of them ever holds a key or a digest of one. A change of state is
//! told once; what every request could cause is told at most once a second, with the number of those left out.
//!
//! | level | message begins | means |
//! |---|---|---|
//! | error | `refused with 500: no ApiKeyLayer` | a guard or an extractor without the layer in front of it |
//! | error | `refused with 500: require_org` | the route has no path parameter of that name |
//! | error | `key not kept` | `method` of an `OrgContext` needs the key, and the layer does not keep it; at most once per second |
//! | error | `issuer rejects known keys` | so many `keys` were rejected, and no answer about another key confirms it: they are kept |
//! | warn | `verification failed` | `error` says how, `cause` why; at most once per second |
//! | warn | `circuit breaker opened` | no keys (`circuit` is `known`), or no unknown keys (`unknown`), are verified for `open_for` |
//! | info | `circuit breaker half open` | one call tries the issuer |
//! | info | `circuit breaker closed` | keys are verified again |
//! | warn | `issuer asks for fewer calls` | a 429: calls pause for `pause` |
//! | error | `the issuer's TLS certificate is refused` | a security event: nothing was sent; once until a connection stands |
//! | error | `cannot fetch our own token` | `code` is one of RFC 6749's, or `other`; once until it works again |
//! | info | `our own token can be fetched again` | the end of that |
//! | error | `the issuer refuses our own token` | verify and the probe refuse it; once until verify accepts one |
//! | info | `the issuer accepts our own token again` | the end of that |
//! | warn | `our own token may verify keys but not list them` | it lacks `read:api_keys`; once until a probe is accepted |
//! | error | `our own token may not look keys up` | with `api_id`: it lacks `read:api_keys`; once until it may |
//! | info | `keys were rotated or taken away at the issuer` | the poller has `invalidated` so many of the keys held |
//! | error | `the issuer's list speaks against most of the keys held` | `condemned` of `compared`: not believed before the next walk |
//! | warn | `the poller cannot walk the issuer's keys` | `error` says why; once until a walk is complete |
//! | info | `the poller walks the issuer's keys again` | the end of that |
//! | error | `refused with 500: no OrgSettingsLayer` | `OrgSettings<T>` without the layer of its type beneath the `ApiKeyLayer` |
//! | warn | `an organization's settings could not be loaded` | a load failed: `org_code` says whose, `error` says how |
//! | warn | `settings circuit breaker opened` | no settings, or none of organizations that have none cached, are loaded for `open_for` |
//! | info | `settings circuit breaker half open` | one load tries the loader |
//! | info | `settings circuit breaker closed` | settings are loaded again |
//! | warn | `settings loader asks for fewer calls` | loads pause for `pause` |
//! | debug | `asked the settings loader` | one load, with its `result` and how long it `took` |
//! | warn | `a limit holds fewer accounts` | more are active than its `capacity`: some begin anew (feature `limit`) |
//! | debug | `verification finished` | one verification, with its `result`, how long it `took` and, if it failed, the `cause` |
//! | debug | `request judged` | one request, with its `outcome` and, if it is known, whose |
//!
//! With several issuers, the events about verifications have the field `issuer`: its name.
//!
//! # Metrics
//!
//! With the feature `metrics`, through the facade of that name. Labels are bounded: no key, no digest, no organization.
//!
//! | name | kind | labels |
//! |---|---|---|
//! | [`REQUESTS`] | counter | `outcome`: `allowed`, `anonymous`, or the code of a [rejection](crate::rejection) |
//! | [`LOOKUPS`] | counter | `result`: `fresh`, `stale`, `refused`, `asked` |
//! | [`SERVED_AGE`] | histogram, seconds | |
//! | [`ISSUER_CALLS`] | counter | `result`: `valid`, `invalid`, `undecided`, `unavailable`, `throttled`, `invalid_response`, `inconclusive`, `misconfigured` |
//! | [`ISSUER_LATENCY`] | histogram, seconds | |
//! | [`BREAKER`] | gauge: 0 closed, 1 half open, 2 open | `circuit`: `known`, `unknown` |
//! | [`THROTTLED`] | counter | |
//! | [`IN_FLIGHT`], [`WAITING`] | gauges | |
//! | [`ENTRIES`] | gauge | |
//! | [`POLLER_WALKS`] | counter | `result`: `complete`, `not-believed`, `idle`, `failed` |
//! | [`POLLER_CALLS`] | counter | |
//! | [`POLLER_INVALIDATED`] | counter | |
//! | [`SETTINGS_LOOKUPS`] | counter | `result`: `fresh`, `stale`, `asked` |
//! | [`SETTINGS_DEFAULTS`] | counter | |
//! | [`SETTINGS_LOADS`] | counter | `settings`; `result`: `loaded`, `unavailable`, `throttled`, `broken` |
//! | [`SETTINGS_LATENCY`] | histogram, seconds | `settings` |
//! | [`SETTINGS_BREAKER`] | gauge: 0 closed, 1 half open, 2 open | `settings`; `circuit`: `known`, `unknown` |
//! | [`SETTINGS_THROTTLED`] | counter | `settings` |
//! | [`SETTINGS_IN_FLIGHT`], [`SETTINGS_WAITING`] | gauges | `settings` |
//! | [`SETTINGS_ENTRIES`] | gauge | `settings` |
//!
//! With several issuers, [`ISSUER_CALLS`], [`ISSUER_LATENCY`], [`BREAKER`], [`THROTTLED`], [`IN_FLIGHT`] and [`WAITING`] also have the
//! label `issuer`: the name of the issuer.
//!
//! `settings` is the name of the type that is loaded, as the compiler gives it.

#[macro_use]
mod macros;

#[cfg(feature = "kinde")]
pub(crate) mod kinde;
#[cfg(feature = "limit")]
pub(crate) mod limit;
#[cfg(feature = "kinde")]
pub(crate) mod poller;
mod rate_limited_log;
mod requests;
#[cfg(feature = "settings")]
pub(crate) mod settings;
mod upstream;

use self::rate_limited_log::RateLimitedLog;
#[cfg(feature = "axum")]
pub(crate) use self::requests::parameter_missing;
pub(crate) use self::requests::{
    Outcome, allowed, answered, key_not_kept, layer_missing, looked_up,
};
#[cfg(feature = "settings")]
#[cfg_attr(docsrs, doc(cfg(feature = "settings")))]
pub use self::settings::{
    SETTINGS_BREAKER, SETTINGS_DEFAULTS, SETTINGS_ENTRIES, SETTINGS_IN_FLIGHT, SETTINGS_LATENCY,
    SETTINGS_LOADS, SETTINGS_LOOKUPS, SETTINGS_THROTTLED, SETTINGS_WAITING,
};
pub(crate) use self::upstream::{
    breaker_closed, breaker_opened, breaker_state, breaker_tries, entries, issuer_called, occupied,
    throttled, unconfirmed_invalid_answers,
};

/// The target of every event of this crate.
pub const TARGET: &str = "tower_orgkey";

/// Counts requests by their outcome.
pub const REQUESTS: &str = "orgkey_requests_total";
/// Counts what requests found in the cache.
pub const LOOKUPS: &str = "orgkey_cache_lookups_total";
/// How old the facts were that requests were served from, in seconds.
pub const SERVED_AGE: &str = "orgkey_served_age_seconds";
/// Counts calls to the verifier by their result.
pub const ISSUER_CALLS: &str = "orgkey_issuer_calls_total";
/// How long calls to the verifier took, in seconds.
pub const ISSUER_LATENCY: &str = "orgkey_issuer_call_seconds";
/// The state of the circuit breaker: 0 closed, 1 half open, 2 open.
pub const BREAKER: &str = "orgkey_breaker_state";
/// Counts the pauses that a 429 brought about.
pub const THROTTLED: &str = "orgkey_throttled_total";
/// Calls to the verifier under way.
pub const IN_FLIGHT: &str = "orgkey_calls_in_flight";
/// Verifications that wait for their turn.
pub const WAITING: &str = "orgkey_verifications_waiting";
/// Good keys held.
pub const ENTRIES: &str = "orgkey_entries";
/// Counts the poller's walks over the issuer's list of keys.
pub const POLLER_WALKS: &str = "orgkey_poller_walks_total";
/// Counts the poller's calls to the issuer.
pub const POLLER_CALLS: &str = "orgkey_poller_calls_total";
/// Counts the keys that the poller invalidated.
pub const POLLER_INVALIDATED: &str = "orgkey_poller_invalidated_total";
