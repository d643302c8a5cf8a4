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
//! | error | `the issuer refuses known keys` | twenty known keys refused in 10 s, none confirmed: not believed |
//! | warn | `the issuer gave no answer` | a verification failed; `error` says how |
//! | warn | `the issuer fails` | the breaker opened |
//! | info | `trying the issuer again` | the breaker lets one call through |
//! | info | `the issuer answers again` | the breaker closed |
//! | warn | `the issuer asks for fewer calls` | a 429: calls pause for `pause` |
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
//! | warn | `the settings loader fails` | its breaker opened |
//! | info | `trying the settings loader again` | the breaker lets one load through |
//! | info | `the settings loader answers again` | the breaker closed |
//! | warn | `the settings loader asks for fewer calls` | loads pause for `pause` |
//! | debug | `asked the settings loader` | one load, with its `result` and how long it `took` |
//! | warn | `a limit holds fewer accounts` | more are active than its `capacity`: some begin anew (feature `limit`) |
//! | warn | `the usage sink takes no records` | `error` says why; once until it takes some |
//! | info | `the usage sink takes records again` | the end of that |
//! | error | `the usage sink refuses a record for good` | the record of this `id` is in no bill |
//! | error | `usage records are given up` | so many `records`; `why` says what for |
//! | warn | `the file of unsent usage records cannot be written` | `error` says why; once until it can |
//! | info | `the file of unsent usage records is written again` | the end of that |
//! | warn | `the file of unsent usage records ends in the middle of a line` | a crash cut a write short |
//! | error | `audit events are lost` | the queue of the audit trail is full |
//! | error | `the audit sink gave up events` | `events` of them, for what `error` says |
//! | warn | `the audit sink fails` | `error` says how; once until it works again |
//! | info | `the audit sink works again` | the end of that |
//! | debug | `asked the issuer` | one call, with its `result` and how long it `took` |
//! | debug | `request judged` | one request, with its `outcome` and, if it is known, whose |
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
//! | [`ISSUER_CALLS`] | counter | `result`: `valid`, `refused`, `unavailable`, `throttled`, `misconfigured` |
//! | [`ISSUER_LATENCY`] | histogram, seconds | |
//! | [`BREAKER`] | gauge: 0 closed, 1 half open, 2 open | |
//! | [`THROTTLED`] | counter | |
//! | [`IN_FLIGHT`], [`WAITING`] | gauges | |
//! | [`ENTRIES`] | gauge | |
//! | [`POLLER_WALKS`] | counter | `result`: `complete`, `not-believed`, `idle`, `failed` |
//! | [`POLLER_CALLS`] | counter | |
//! | [`POLLER_INVALIDATED`] | counter | |
//! | [`AUDIT_EVENTS`] | counter | `result`: `written`, `left-out`, `lost` |
//! | [`SETTINGS_LOOKUPS`] | counter | `result`: `fresh`, `stale`, `asked` |
//! | [`SETTINGS_DEFAULTS`] | counter | |
//! | [`SETTINGS_LOADS`] | counter | `settings`; `result`: `loaded`, `unavailable`, `throttled`, `broken` |
//! | [`SETTINGS_LATENCY`] | histogram, seconds | `settings` |
//! | [`SETTINGS_BREAKER`] | gauge: 0 closed, 1 half open, 2 open | `settings` |
//! | [`SETTINGS_THROTTLED`] | counter | `settings` |
//! | [`SETTINGS_IN_FLIGHT`], [`SETTINGS_WAITING`] | gauges | `settings` |
//! | [`SETTINGS_ENTRIES`] | gauge | `settings` |
//!
//! `settings` is the name of the type that is loaded, as the compiler gives it.
//! | [`USAGE_RECORDS`] | counter | `result`: `pushed`, `refused`, `dropped` |
//! | [`USAGE_PUSHES`] | counter | `result`: `accepted`, `retry`, `refused` |
//! | [`USAGE_WAITING`] | gauge | |
//! | [`USAGE_FOLDED`] | counter | |
//!
//! The audit trail's own `TracingSink` emits its events under the target [`AUDIT_TARGET`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use crate::cache::Found;
use crate::clock::Clock;
use crate::context::OrgContext;
use crate::rejection::Rejection;
use crate::verify::{Answer, Verification, VerifyError, VerifyErrorKind};

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
/// The state of the breaker: 0 closed, 1 half open, 2 open.
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

/// Counts records of usage by what became of them.
pub const USAGE_RECORDS: &str = "orgkey_usage_records_total";
/// Counts pushes of usage by how the sink answered.
pub const USAGE_PUSHES: &str = "orgkey_usage_pushes_total";
/// Records of usage that the sink has not taken yet.
pub const USAGE_WAITING: &str = "orgkey_usage_records_waiting";
/// Counts the rows of usage that had to make room and were folded into coarser ones.
pub const USAGE_FOLDED: &str = "orgkey_usage_rows_folded_total";
/// Counts the events of the audit trail by what became of them.
pub const AUDIT_EVENTS: &str = "orgkey_audit_events_total";
/// The target of the audit events themselves, where they are written through `tracing`.
pub const AUDIT_TARGET: &str = "tower_orgkey::audit";

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

#[cfg(feature = "audit")]
pub(crate) mod audit;
#[cfg(feature = "kinde")]
pub(crate) mod kinde;
#[cfg(feature = "kinde")]
pub(crate) mod poller;
#[cfg(feature = "settings")]
pub(crate) mod settings;

#[cfg(feature = "settings")]
#[cfg_attr(docsrs, doc(cfg(feature = "settings")))]
pub use self::settings::{
    SETTINGS_BREAKER, SETTINGS_DEFAULTS, SETTINGS_ENTRIES, SETTINGS_IN_FLIGHT, SETTINGS_LATENCY,
    SETTINGS_LOADS, SETTINGS_LOOKUPS, SETTINGS_THROTTLED, SETTINGS_WAITING,
};

/// Whom a cache and what stands before its verifier speak of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Voice {
    /// The issuer, and its keys.
    #[default]
    Issuer,
    /// The loader of settings of this type, and the organizations they are of.
    #[cfg(feature = "settings")]
    Settings(&'static str),
}
#[cfg(feature = "usage")]
pub(crate) mod usage;

/// Lets one event a second through, and counts the others.
struct Flood {
    second: AtomicU64,
    left_out: AtomicU64,
}

impl Flood {
    const fn new() -> Self {
        Self {
            second: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// How many were left out before this one, if this one is to be told.
    fn admit(&self) -> Option<u64> {
        // Seconds since boot, from one on, so that the first event finds another second in the cell.
        let now = Clock::System.now().0 / 1_000_000_000 + 1;
        let before = self.second.load(Ordering::Relaxed);
        let is_first = before != now
            && self
                .second
                .compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_first {
            Some(self.left_out.swap(0, Ordering::Relaxed))
        } else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

/// A guard or extractor was reached without the layer: 500 to the caller, and the fix to the operator.
pub(crate) fn layer_missing(who_asks: &str) {
    static FLOOD: Flood = Flood::new();
    if let Some(left_out) = FLOOD.admit() {
        tracing::error!(
            target: TARGET,
            who_asks,
            left_out,
            "refused with 500: no `ApiKeyLayer` stands in front of this route; add it with `.route_layer(auth)` after the \
             route and its guards"
        );
    }
}

/// `require_org` names a parameter that the route does not have.
#[cfg(feature = "axum")]
pub(crate) fn parameter_missing(parameter: &str) {
    static FLOOD: Flood = Flood::new();
    if let Some(left_out) = FLOOD.admit() {
        tracing::error!(
            target: TARGET,
            parameter,
            left_out,
            "refused with 500: `require_org` names a path parameter that this route does not have"
        );
    }
}

/// A limit gave up the accounts of an organization or a key that was not idle.
#[cfg(feature = "limit")]
pub(crate) fn limit_forgotten() {
    static FLOOD: Flood = Flood::new();
    if let Some(left_out) = FLOOD.admit() {
        tracing::warn!(
            target: TARGET,
            left_out,
            "a limit holds fewer accounts than organizations or keys are active: those that it forgets begin anew"
        );
    }
}

/// Too many known keys were refused, and nothing shows that the issuer works.
pub(crate) fn refusals_not_believed() {
    static FLOOD: Flood = Flood::new();
    if let Some(left_out) = FLOOD.admit() {
        tracing::error!(
            target: TARGET,
            left_out,
            "the issuer refuses known keys one after another and confirms none: its refusals are taken for a fault of its \
             own, and the keys are kept"
        );
    }
}

/// A request was let through.
#[inline]
pub(crate) fn allowed(context: &OrgContext) {
    // The cheap half of the event's own condition. The other half needs registers, which a hit then has to save.
    if LevelFilter::current() >= LevelFilter::DEBUG {
        tell_allowed(context);
    }
    observe!(SERVED_AGE, context.age());
}

/// Apart from its condition, which every request asks and hardly any fulfils.
#[cold]
#[inline(never)]
fn tell_allowed(context: &OrgContext) {
    tracing::debug!(
        target: TARGET,
        outcome = "allowed",
        org_code = %context.org_code(),
        key_id = context.key_id().map(tracing::field::display),
        age = ?context.age(),
        "request judged"
    );
}

/// A request was answered: refused, here or beneath the layer, or by the inner service.
pub(crate) fn answered(outcome: Outcome<'_>) {
    let outcome = match outcome {
        Outcome::Allowed => "allowed",
        Outcome::Anonymous => "anonymous",
        Outcome::Refused(rejection) => {
            tracing::debug!(target: TARGET, outcome = rejection.code(), "request judged");
            rejection.code()
        }
    };
    count!(REQUESTS, "outcome" = outcome;
        "allowed" "anonymous" "credential-missing" "credential-malformed" "invalid-token" "organization-required"
        "insufficient-scope" "organization-mismatch" "not-found" "verifier-unavailable" "verifier-misconfigured"
        "rate-limited" "concurrency-limited" "settings-unavailable" "internal");
}

/// How a request ended, as far as the layer is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome<'a> {
    Allowed,
    Anonymous,
    Refused(&'a Rejection),
}

/// A request looked for its key.
pub(crate) fn looked_up(found: Found) {
    let result = match found {
        Found::Fresh => "fresh",
        Found::Stale => "stale",
        Found::Refusal => "refused",
        Found::Nothing => "asked",
    };
    count!(LOOKUPS, "result" = result; "fresh" "stale" "refused" "asked");
}

/// The number of good keys held has changed.
pub(crate) fn entries(voice: Voice, number: usize) {
    match voice {
        Voice::Issuer => {
            set!(ENTRIES, number);
        }
        #[cfg(feature = "settings")]
        Voice::Settings(of) => settings::entries(of, number),
    }
}

/// The number of calls under way, or of those that wait, has changed.
pub(crate) fn occupied(voice: Voice, calls: usize, waiting: usize) {
    match voice {
        Voice::Issuer => {
            set!(IN_FLIGHT, calls);
            set!(WAITING, waiting);
        }
        #[cfg(feature = "settings")]
        Voice::Settings(of) => settings::occupied(of, calls, waiting),
    }
}

/// A call to the verifier has ended.
pub(crate) fn issuer_called(outcome: &Result<Verification, VerifyError>, took: Duration) {
    static FLOOD: Flood = Flood::new();
    let result = match outcome {
        Ok(Verification(Answer::Valid(_))) => "valid",
        Ok(Verification(Answer::Refused(_))) => "refused",
        Err(error) => match error.kind() {
            VerifyErrorKind::Unavailable => "unavailable",
            VerifyErrorKind::Throttled { .. } => "throttled",
            VerifyErrorKind::Misconfigured => "misconfigured",
        },
    };
    tracing::debug!(target: TARGET, result, ?took, "asked the issuer");
    count!(ISSUER_CALLS, "result" = result; "valid" "refused" "unavailable" "throttled" "misconfigured");
    observe!(ISSUER_LATENCY, took);
    if let Err(error) = outcome
        && let Some(left_out) = FLOOD.admit()
    {
        let error: &dyn std::error::Error = error;
        tracing::warn!(target: TARGET, error, left_out, "the issuer gave no answer");
    }
}

/// The breaker opened.
pub(crate) fn breaker_opened(voice: Voice, open_for: Duration) {
    match voice {
        Voice::Issuer => {
            set!(BREAKER, 2_usize);
            tracing::warn!(
                target: TARGET,
                ?open_for,
                "the issuer fails: known keys are served from what is held, unknown ones get 503"
            );
        }
        #[cfg(feature = "settings")]
        Voice::Settings(of) => settings::breaker_opened(of, open_for),
    }
}

/// The breaker lets one call through.
pub(crate) fn breaker_probes(voice: Voice) {
    match voice {
        Voice::Issuer => {
            set!(BREAKER, 1_usize);
            tracing::info!(target: TARGET, "trying the issuer again");
        }
        #[cfg(feature = "settings")]
        Voice::Settings(of) => settings::breaker_probes(of),
    }
}

/// The breaker closed.
pub(crate) fn breaker_closed(voice: Voice) {
    match voice {
        Voice::Issuer => {
            set!(BREAKER, 0_usize);
            tracing::info!(target: TARGET, "the issuer answers again");
        }
        #[cfg(feature = "settings")]
        Voice::Settings(of) => settings::breaker_closed(of),
    }
}

/// The issuer answered 429, and is left alone.
pub(crate) fn throttled(voice: Voice, pause: Duration) {
    match voice {
        Voice::Issuer => {
            #[cfg(feature = "metrics")]
            metrics::counter!(THROTTLED).increment(1);
            tracing::warn!(target: TARGET, ?pause, "the issuer asks for fewer calls");
        }
        #[cfg(feature = "settings")]
        Voice::Settings(of) => settings::throttled(of, pause),
    }
}
