//! The report as a page for people.

use std::fmt::Write as _;
use std::io::{self, Write};

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::report::{ChangedKey, Changes, Finding, KeyReview, ReviewReport, WeekCount, in_memory};
use crate::source::Source;
use crate::text::visible;
use crate::time::UnixMillis;

const STYLE: &str = ":root{color-scheme:light dark;--text:#1a1a1a;--page:#fff;--line:#ddd;--edge:#767676;--high:#b00020;--medium:#a65300;--bar:#3b6ea5}\
body{font:14px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:var(--text);background:var(--page);overflow-wrap:anywhere}\
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid var(--edge)}h3{font-size:1rem;margin:1.2rem 0 .3rem}\
table{border-collapse:collapse}th,td{text-align:left;padding:.25rem .8rem .25rem 0;vertical-align:top;border-bottom:1px solid var(--line)}\
.keys{width:100%;min-width:56rem}.keys td,.keys thead th{overflow-wrap:break-word}.date{white-space:nowrap}\
th{font-weight:600}code{font-weight:400}.number{text-align:right;font-variant-numeric:tabular-nums}.scroll{overflow-x:auto}\
article{margin:1rem 0;padding:.2rem 0 .2rem .8rem;border-left:4px solid var(--edge);break-inside:avoid}p,ol,ul{margin:.3rem 0}\
.High{border-color:var(--high)}.Medium{border-color:var(--medium)}.unused{color:var(--high)}\
svg{max-width:100%;height:auto}.base{fill:var(--edge)}.bar{fill:var(--bar);color:var(--bar)}.rejected{fill:var(--high);color:var(--high)}\
@media screen and (prefers-color-scheme:dark){:root{--text:#e6e6e6;--page:#161616;--line:#3a3a3a;--edge:#8f8f8f;--high:#ff8a94;--medium:#f0a050;--bar:#7aa7d8}}\
@media print{body{margin:0;max-width:none;font-size:11px}h2{break-after:avoid}tr{break-inside:avoid}.keys{min-width:0}.scroll{overflow:visible}}";

/// The hash names the style above, so no other one applies. Nothing is loaded and no script runs.
const POLICY: &str = "default-src 'none'; style-src 'sha256-Cgfx2CkguMGEVxL+Vj/SY33apYvdvJPPmky5ofTOFaY='; base-uri 'none'; form-action 'none'";

impl ReviewReport {
    /// Returns the report as one HTML page. It contains its style and its charts, loads nothing, and forbids scripts by its
    /// content security policy.
    ///
    /// ```
    /// use tower_orgkey_review::ReviewReport;
    ///
    /// assert!(ReviewReport::default().to_html().contains("default-src 'none'"));
    /// ```
    pub fn to_html(&self) -> String {
        in_memory(|out| write(self, out))
    }
}

/// Writes a page piece by piece, so that it is never in memory.
pub(crate) fn write(source: &impl Source, out: &mut impl Write) -> io::Result<()> {
    let report = source.head();
    let title = format!("Access review of {}", report.coverage.until.date());
    let begin = html! {
        (DOCTYPE)
        (PreEscaped("<html lang=\"en\">"))
        head {
            meta charset="utf-8";
            meta http-equiv="content-security-policy" content=(POLICY);
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="referrer" content="no-referrer";
            title { (title) }
            style { (PreEscaped(STYLE)) }
        }
        (PreEscaped("<body><main>"))
        h1 { (title) @if let Some(org) = &report.organization { ": " (name(org)) } }
        (changed(report))
        (covered(report))
    };
    put(out, &begin)?;
    let (all, open) = source.counts();
    put(
        out,
        &html! {
            h2 { "Findings" }
            p { (all) " findings, of which " (open) " are to be decided on." }
        },
    )?;
    for (finding, of_key) in source.findings() {
        put(out, &article(&finding, &of_key))?;
    }
    let mut last: Option<Option<String>> = None;
    for key in source.keys() {
        if last.as_ref() != Some(&key.org) {
            if last.is_some() {
                put(out, &PreEscaped(END_OF_KEYS))?;
            }
            let org = key.org.as_deref();
            let weeks = org.map(|org| source.requests(org)).unwrap_or_default();
            put(out, &keys_of(org, &weeks))?;
            last = Some(key.org.clone());
        }
        put(out, &key_row(&key))?;
    }
    if last.is_some() {
        put(out, &PreEscaped(END_OF_KEYS))?;
    }
    put(out, &PreEscaped("</main></body></html>"))
}

fn put<T: AsRef<str>>(out: &mut impl Write, part: &PreEscaped<T>) -> io::Result<()> {
    out.write_all(part.0.as_ref().as_bytes())
}

fn changed(report: &ReviewReport) -> Markup {
    html! {
        h2 { "Since the last review" }
        @match &report.changes {
            None => p { "This is the first review." },
            Some(changes) => (difference(changes)),
        }
    }
}

fn covered(report: &ReviewReport) -> Markup {
    let coverage = &report.coverage;
    let is_of_all = report.organization.is_none();
    html! {
        h2 { "What was recorded" }
        p { "From " (coverage.since) " until " (coverage.until) ": " (coverage.statement()) "." }
        @match coverage.nodes {
            Some(nodes) if is_of_all =>
                p { "A day counts only if at least " (nodes) " nodes recorded at every moment of it. Nodes are counted by audit trail and are not identified." },
            Some(_) => {}
            None => p { "A node whose newest audit files were not read would not be noticed."
                @if is_of_all { " Compare the number of trails with the nodes and their starts: each start begins a trail." } },
        }
        @if is_of_all {
            div .scroll tabindex="0" role="region" aria-label="What was recorded" { table { tbody {
                (row("Events", coverage.events)) (row("Trails", coverage.trails))
                (row("Missing sequence numbers", coverage.missing)) (row("Events reported as lost", coverage.lost))
                (row("Rejections without an event each", coverage.suppressed))
                (row("Lines that could not be read", coverage.malformed)) (row("Lines of another schema", coverage.foreign))
            } } }
        }
    }
}

/// Begins the keys of an organization. Their rows and [`END_OF_KEYS`] follow.
fn keys_of(org: Option<&str>, weeks: &[WeekCount]) -> Markup {
    let title = org.map_or("Organization not known".into(), visible);
    html! {
        h2 { @match org { Some(org) => (name(org)), None => (title) } }
        @if !weeks.is_empty() { (bars(weeks)) }
        (PreEscaped("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Keys of ")) (title)
        (PreEscaped("\"><table class=\"keys\">"))
        thead { tr {
            th scope="col" { "Key" } th scope="col" { "Status" } th scope="col" { "Created" } th scope="col" { "Last use" }
            th scope="col" { "Scopes" } th scope="col" .number { "Allowed" } th scope="col" .number { "Rejected" }
        } }
        (PreEscaped("<tbody>"))
    }
}

const END_OF_KEYS: &str = "</tbody></table></div>";

/// A text that a tenant may have chosen. It does not change the direction of what is around it.
fn name(text: &str) -> Markup {
    html! { bdi { (visible(text)) } }
}

fn row(title: &str, number: u64) -> Markup {
    html! { tr { th scope="row" { (title) } td .number { (number) } } }
}

fn difference(changes: &Changes) -> Markup {
    let list = |title: &str, keys: &[ChangedKey]| {
        html! {
            @if !keys.is_empty() {
                h3 { (title) ": " (keys.len()) }
                ul { @for key in keys { li {
                    (name(&key.name)) " (" (name(&key.id)) @if let Some(org) = &key.org { ", " (name(org)) } ")"
                    @for what in &key.what { "; " (name(what)) }
                } } }
            }
        }
    };
    let none = changes.added.is_empty() && changes.removed.is_empty() && changes.changed.is_empty();
    html! {
        p { "The last review was of " (changes.since) "." }
        @if none { p { "No key was added, removed or changed." } }
        (list("Keys added", &changes.added)) (list("Keys removed", &changes.removed)) (list("Keys changed", &changes.changed))
        h3 { "Findings" }
        p { (changes.found.len()) " new, " (changes.settled.len()) " settled, " (changes.decided.len()) " decided." }
        @if !changes.settled.is_empty() { ul { @for finding in &changes.settled { li {
            "Settled: " (finding.kind.title()) ", " (name(&finding.key)) @if let Some(org) = &finding.org { ", " (name(org)) }
        } } } }
        @if !changes.decided.is_empty() { ul { @for id in &changes.decided { li { "Decided: " (name(id)) } } } }
    }
}

fn article(finding: &Finding, of_key: &str) -> Markup {
    let severity = finding.kind.severity().1;
    html! {
        article .(severity) {
            h3 { (finding.kind.title()) ": " (name(&finding.key)) @if let Some(org) = &finding.org { ", " (name(org)) } }
            @if !of_key.is_empty() { p { "Named " (name(of_key)) } }
            p { (severity) ". " (name(&finding.proof)) }
            p { "Coverage: " (finding.coverage) @if !finding.is_conclusive { ", so this is not conclusive" } "." }
            @if !finding.scopes.is_empty() { p { "Scopes: " (scopes(&finding.scopes, None)) } }
            @if !finding.checklist.is_empty() { ol { @for step in &finding.checklist { li { (name(step)) } } } }
            @match &finding.decision {
                None => p { "To be decided: " code { (name(&finding.id)) } },
                Some(decision) => p {
                    "Decided: " (name(&decision.decision)) ", by " (name(&decision.reviewer)) ". " (name(&decision.reason))
                    @if let Some(until) = decision.until { " Until " (until) "." }
                    @if finding.is_decision_expired { " This decision is over; decide again: " code { (name(&finding.id)) } }
                },
            }
        }
    }
}

fn key_row(key: &KeyReview) -> Markup {
    let date =
        |time: Option<UnixMillis>| time.map_or_else(|| "not known".to_owned(), UnixMillis::date);
    html! { tr {
        th scope="row" { (name(&key.name)) br; code { (name(&key.id)) } @if let Some(suffix) = &key.suffix { br; "…" (name(suffix)) } }
        td { (name(&key.status)) br; (name(&key.kind)) }
        td .date { (date(key.created_at)) }
        td .date { @match key.last_used { Some(last) => (last.date()), None => "none recorded" } }
        td { (scopes(&key.granted, key.needed.as_deref())) @if key.needed.is_some() { br; "needed of " (key.replayed) " requests: "
            @match key.needed.as_deref() { Some([]) | None => "none", Some(needed) => (scopes(needed, None)) } }
            @if key.unguarded > 0 { br; (key.unguarded) " requests without a recorded policy: handlers may test scopes themselves" }
            @if key.truncated > 0 { br; (key.truncated) " requests may have met more policies" } }
        td .number { (key.allowed) }
        td .number { (key.rejections()) @for (code, count) in &key.rejected { br; (name(code)) " " (count) } }
    } }
}

/// Scopes, with those that were not needed marked.
fn scopes(scopes: &[String], needed: Option<&[String]>) -> Markup {
    html! { @for (n, scope) in scopes.iter().enumerate() {
        @if n > 0 { ", " }
        @if needed.is_some_and(|needed| !needed.contains(scope)) {
            span .unused { (name(scope)) " (not needed)" }
        } @else { (name(scope)) }
    } }
}

/// The width of a week with the gap behind its bar, that of the bar, and the height of the chart.
const STEP: u64 = 20;
const BAR: u64 = 17;
const HEIGHT: u64 = 80;
/// A chart shows the last of more weeks.
const WEEKS: usize = 104;

/// A bar per week, with the rejected requests on top.
fn bars(weeks: &[WeekCount]) -> Markup {
    let weeks = &weeks[weeks.len().saturating_sub(WEEKS)..];
    let whole = |week: &WeekCount| week.allowed.saturating_add(week.rejected);
    let most = weeks.iter().map(whole).max().unwrap_or(0);
    let first = weeks.first().map_or(0, |week| week.week.0);
    let place = |week: &WeekCount| week.week.days_since(UnixMillis(first)) / 7 * STEP;
    let width = weeks.last().map_or(0, place) + STEP;
    let (mut allowed, mut rejected) = (String::new(), String::new());
    for week in weeks {
        let x = place(week);
        let top = scaled(week.rejected, most);
        let height = scaled(week.allowed, most);
        // Writing to a string cannot fail.
        let _ = write!(allowed, "M{x} {HEIGHT}v-{height}h{BAR}v{height}z");
        let _ = write!(rejected, "M{x} {}v-{top}h{BAR}v{top}z", HEIGHT - height);
    }
    let sum: u64 = weeks.iter().map(whole).fold(0, u64::saturating_add);
    html! {
        p {
            "Requests by week, " span .bar { "■ allowed" } " and " span .rejected { "■ rejected" } ", "
            @if let [first, .., last] = weeks { "from the week of " (first.week.date()) " to that of " (last.week.date()) }
            @else { "of the week of " (UnixMillis(first).date()) }
            "; at most " (most) " in a week:"
        }
        svg viewBox={ "0 -2 " (width) " " (HEIGHT + 3) } width=(width) height=(HEIGHT + 3) role="img"
            aria-label={ (sum) " requests, at most " (most) " in a week" } {
            path .base d={ "M0 " (HEIGHT) "h" (width) "v1H0z" } {}
            path .bar d=(allowed) {}
            path .rejected d=(rejected) {}
        }
    }
}

/// A count that is not zero is visible.
fn scaled(count: u64, most: u64) -> u64 {
    let height = u128::from(count) * u128::from(HEIGHT) / u128::from(most.max(1));
    u64::try_from(height)
        .unwrap_or(HEIGHT)
        .max(u64::from(count > 0))
        .min(HEIGHT)
}
