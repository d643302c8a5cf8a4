//! The report as a table for spreadsheets.

use std::io::{self, Write};

use crate::report::{Finding, KeyReview, ReviewReport, in_memory};
use crate::source::Source;
use crate::text::cell;

const HEADER: [&str; 23] = [
    "organization",
    "key",
    "name",
    "type",
    "status",
    "created",
    "secret_since",
    "last_used",
    "last_verified",
    "allowed",
    "rejected",
    "scopes_granted",
    "scopes_needed",
    "requests_replayed",
    "finding",
    "severity",
    "scopes",
    "proof",
    "coverage",
    "decision",
    "reviewer",
    "reason",
    "until",
];

impl ReviewReport {
    /// Returns the report as CSV (RFC 4180) with a header: a row per finding, and one per key without findings.
    ///
    /// A cell that a spreadsheet would take for a formula begins with `'`, and characters that are not visible or change the
    /// direction of a text are written as their number, such as `\u{202e}`.
    ///
    /// ```
    /// use tower_orgkey_review::ReviewReport;
    ///
    /// assert!(ReviewReport::default().to_csv().starts_with("organization,key,name,"));
    /// ```
    pub fn to_csv(&self) -> String {
        in_memory(|out| write(self, out))
    }
}

pub(crate) fn write(source: &impl Source, out: &mut impl Write) -> io::Result<()> {
    let mut writer = csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_writer(out);
    writer.write_record(HEADER)?;
    for (key, findings) in source.keys_with_findings() {
        for finding in &findings {
            writer.write_record(row(&key, Some(finding)))?;
        }
        if findings.is_empty() {
            writer.write_record(row(&key, None))?;
        }
    }
    writer.flush()
}

fn row(key: &KeyReview, finding: Option<&Finding>) -> [String; 23] {
    let time =
        |time: Option<crate::UnixMillis>| time.map(|time| time.to_string()).unwrap_or_default();
    let text = |of: fn(&Finding) -> &str| finding.map(|it| cell(of(it))).unwrap_or_default();
    let decision = finding.and_then(|finding| finding.decision.as_ref());
    let scopes = |scopes: &[String]| cell(&scopes.join(" "));
    [
        cell(key.org.as_deref().unwrap_or_default()),
        cell(&key.id),
        cell(&key.name),
        cell(&key.kind),
        cell(&key.status),
        time(key.created_at),
        time(key.secret_since),
        time(key.last_used),
        time(key.last_verified_at),
        key.allowed.to_string(),
        key.rejections().to_string(),
        scopes(&key.granted),
        key.needed.as_deref().map(scopes).unwrap_or_default(),
        key.replayed.to_string(),
        text(|finding| finding.kind.as_str()),
        text(|finding| finding.kind.severity().1),
        finding
            .map(|finding| scopes(&finding.scopes))
            .unwrap_or_default(),
        text(|finding| &finding.proof),
        text(|finding| &finding.coverage),
        decision.map(|it| cell(&it.decision)).unwrap_or_default(),
        decision.map(|it| cell(&it.reviewer)).unwrap_or_default(),
        decision.map(|it| cell(&it.reason)).unwrap_or_default(),
        time(decision.and_then(|it| it.until)),
    ]
}
