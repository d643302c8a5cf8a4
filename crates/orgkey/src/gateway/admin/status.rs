//! The status page, for people.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{Html, IntoResponse};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use tower_orgkey::{ApiKeyHandle, BreakerState, Quota};
use tower_orgkey_fleet::{Fleet, FleetStatus};

use super::{Admin, chart};
use crate::gateway::recent::{LastHour, MINUTES};

/// The seconds after which a browser loads the page again.
const REFRESH: u64 = 10;

/// The most organizations that are listed.
const TOP: usize = 10;

/// The rejections that are drawn when there are none. Others are drawn as they come.
const USUAL: [&str; 8] = [
    "credential-missing",
    "invalid-token",
    "insufficient-scope",
    "organization-mismatch",
    "rate-limited",
    "verifier-unavailable",
    "no-route",
    "ambiguous-path",
];

const STYLE: &str = ":root{color-scheme:light dark;--text:#1a1a1a;--page:#fff;--line:#bbb;--bad:#b00020;--bar:#3b6ea5}\
body{font:14px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:var(--text);background:var(--page)}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}.scroll{overflow-x:auto}\
table{border-collapse:collapse}th,td{text-align:left;padding:.2rem 1.5rem .2rem 0;vertical-align:middle}\
th{font-weight:600}.name{overflow-wrap:anywhere;min-width:8rem}.number{text-align:right;font-variant-numeric:tabular-nums}\
.bad{color:var(--bad);font-weight:600}.base{fill:var(--line)}.bar{fill:var(--bar)}\
@media(max-width:40rem){th,td{padding-right:.8rem}svg{width:6rem;height:auto}}\
@media(prefers-color-scheme:dark){:root{--text:#e6e6e6;--page:#161616;--line:#555;--bad:#ff8a94;--bar:#7aa7d8}}";

/// The hash names the style above, so no other one applies. Without a source, nothing else is loaded or run.
const POLICY: &str = "default-src 'none'; style-src 'sha256-JqiqO5pgQ4OtlGESnUgs/hlBXqKZfaLdirzMTXdoR+U='; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

pub(super) async fn status(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let checks = &admin.checks;
    let page = page(
        &checks.decisions().keys(),
        admin.fleet.as_ref().map(Fleet::status),
        checks.decisions().quota(),
        &checks.recent().last_hour(),
    );
    let headers = [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    ];
    (headers, Html(page.into_string()))
}

fn page(
    keys: &ApiKeyHandle,
    of_fleet: Option<FleetStatus>,
    quota: Option<Quota>,
    hour: &LastHour,
) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="refresh" content=(REFRESH);
                title { "orgkey gateway" }
                style { (PreEscaped(STYLE)) }
            }
            body { main {
                h1 { "orgkey gateway" }
                (issuers(keys))
                (cache(keys))
                @if let Some(status) = of_fleet { (fleet(&status)) }
                (limits(quota))
                (checks(hour))
                (rejections(hour))
                (organizations(hour))
            } }
        }
    }
}

fn issuers(keys: &ApiKeyHandle) -> Markup {
    let columns = [
        "Issuer",
        "Circuit of known keys",
        "Circuit of unknown keys",
        "Pause after 429",
        "Rate limit",
        "Calls in flight",
        "Waiting",
    ];
    let rows = html! {
        @for (name, state) in keys.issuers() {
            tr {
                td .name { @if name.is_empty() { "the issuer" } @else { (name) } }
                td { (breaker(state.breaker)) }
                td { (breaker(state.unknown_breaker)) }
                td { @match state.paused_for {
                    Some(rest) => span .bad { (seconds(rest)) },
                    None => "none",
                } }
                td { @match state.calls_per_second {
                    Some(calls) => (format!("{calls:.1} calls/s")),
                    None => "none",
                } }
                td .number { (state.in_flight) }
                td .number { (state.waiting) }
            }
        }
    };
    table("Issuers", &columns, &rows)
}

/// A table under its title. A narrow screen scrolls it.
fn table(title: &str, columns: &[&str], rows: &Markup) -> Markup {
    html! {
        h2 { (title) }
        div .scroll tabindex="0" role="region" aria-label=(title) { table {
            thead { tr { @for column in columns { th scope="col" { (column) } } } }
            tbody { (rows) }
        } }
    }
}

fn breaker(state: BreakerState) -> Markup {
    html! {
        @match state {
            BreakerState::Closed => "closed",
            BreakerState::HalfOpen => span .bad { "half open" },
            BreakerState::Open { remaining } => span .bad { "open for " (seconds(remaining)) },
            _ => "unknown",
        }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64().ceil())
}

fn cache(keys: &ApiKeyHandle) -> Markup {
    let stats = keys.stats();
    let cached = stats.hits + stats.stale_hits + stats.invalid_hits;
    let hit_rate = percent(cached, cached + stats.misses);
    html! {
        h2 { "Cache, since the start" }
        table { tbody {
            tr { th scope="row" { "Hit rate" } td .number { @match hit_rate { Some(rate) => (rate), None => "no requests" } } }
            tr { th scope="row" { "Entries" } td .number { (stats.entries) } }
            tr { th scope="row" { "Invalid keys" } td .number { (stats.invalid_entries) } }
            tr { th scope="row" { "Evictions" } td .number { (stats.evictions) } }
        } }
    }
}

fn fleet(status: &FleetStatus) -> Markup {
    html! {
        h2 { "Fleet" }
        table { tbody {
            tr { th scope="row" { "Engine" } td {
                @if status.is_followed() { "followed for " (seconds(status.since)) }
                @else { span .bad { "not followed for " (seconds(status.since)) } }
            } }
            tr { th scope="row" { "Nodes" } td .name { (status.nodes.join(", ")) } }
            tr { th scope="row" { "Position in the log" } td .number { (status.position) } }
            tr { th scope="row" { "Updates not applied" } td .number { (status.lag) } }
            tr { th scope="row" { "Updates not sent" } td .number { (status.unsent) } }
            tr { th scope="row" { "Possible losses of updates" } td .number { (status.gaps) } }
            tr { th scope="row" { "Rejected values" } td .number { (status.rejected) } }
            tr { th scope="row" { "Results of other nodes" } td .number { (status.fetched) } }
            tr { th scope="row" { "Results not stored" } td .number { (status.not_stored) } }
            @if status.clock_differs {
                tr { th scope="row" { "Clock" } td { span .bad { "differs from the other nodes: no results are shared" } } }
            }
        } }
    }
}

/// Returns a share in percent, with one decimal place. `None` of nothing.
fn percent(part: u64, whole: u64) -> Option<String> {
    let tenths = (u128::from(part) * 1_000).checked_div(u128::from(whole))?;
    Some(format!("{}.{} %", tenths / 10, tenths % 10))
}

fn limits(quota: Option<Quota>) -> Markup {
    html! {
        h2 { "Limit of each organization" }
        @match quota {
            None => p { "none" },
            Some(quota) => p {
                (quota.requests()) " requests in " (seconds(quota.window())) ", at most " (quota.max_burst()) " at once"
            },
        }
    }
}

fn checks(hour: &LastHour) -> Markup {
    let none = [0; MINUTES];
    let of = |outcome| hour.outcomes.get(outcome).unwrap_or(&none);
    charts(
        "Checks in the last hour",
        [("allowed", of("allowed")), ("public", of("public"))],
    )
}

fn rejections(hour: &LastHour) -> Markup {
    let none = [0; MINUTES];
    let usual = USUAL.map(|code| (code, hour.outcomes.get(code).unwrap_or(&none)));
    let others = hour.outcomes.iter().map(|(code, counts)| (*code, counts));
    let others =
        others.filter(|(code, _)| !USUAL.contains(code) && !["allowed", "public"].contains(code));
    charts(
        "Rejections in the last hour",
        usual.into_iter().chain(others),
    )
}

fn charts<'a>(
    title: &str,
    rows: impl IntoIterator<Item = (&'a str, &'a [u64; MINUTES])>,
) -> Markup {
    let rows = html! {
        @for (outcome, counts) in rows {
            tr {
                td { (outcome) }
                td { (chart::bars(outcome, counts)) }
                td .number { (counts.iter().sum::<u64>()) }
            }
        }
    };
    table(title, &["Outcome", "By minute", "Requests"], &rows)
}

fn organizations(hour: &LastHour) -> Markup {
    let title = "Top organizations in the last hour";
    if hour.organizations.is_empty() {
        return html! { h2 { (title) } p { "none" } };
    }
    let whole = hour.organizations.iter().map(|(_, count)| count).sum();
    let rows = html! {
        @for (organization, count) in hour.organizations.iter().take(TOP) {
            tr {
                td .name { (organization.as_str()) }
                td { (chart::share(*count, whole)) }
                td .number { (count) }
            }
        }
    };
    table(title, &["Organization", "Share", "Allowed requests"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_have_one_decimal_place() {
        assert_eq!(percent(0, 0), None);
        assert_eq!(percent(2, 3).as_deref(), Some("66.6 %"));
        assert_eq!(percent(u64::MAX, u64::MAX).as_deref(), Some("100.0 %"));
    }
}
