//! The findings, and how they are printed.

use std::fmt::Write as _;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::json;

use super::scrub::Scrubber;
use super::table::IssuerTable;

/// How wide the table is, in characters.
const WIDTH: u16 = 120;

/// What a finding means for the configuration, from harmless to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    Ok,
    /// Works, but not as well as it could, or not all could be found out.
    Warning,
    /// Does not work as configured, but with the recommended lines.
    Change,
    /// Does not work.
    Failure,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    result: Level,
    observed: String,
    means: String,
}

/// All findings. Their texts are cleaned when they are added.
#[derive(Default)]
pub(super) struct Report {
    pub(super) scrubber: Scrubber,
    findings: Vec<Finding>,
    pub(super) recommended: Option<IssuerTable>,
}

impl Report {
    pub(super) fn add(
        &mut self,
        check: &'static str,
        result: Level,
        observed: impl AsRef<str>,
        means: impl AsRef<str>,
    ) {
        self.findings.push(Finding {
            check,
            result,
            observed: self.scrubber.clean(observed.as_ref()),
            means: self.scrubber.clean(means.as_ref()),
        });
    }

    pub(super) fn worst(&self) -> Level {
        let levels = self.findings.iter().map(|finding| finding.result);
        levels.max().unwrap_or(Level::Failure)
    }

    /// Returns whether the configuration works as it is.
    pub(super) fn works(&self) -> bool {
        self.worst() < Level::Change
    }

    fn lines(&self) -> Option<String> {
        self.recommended.as_ref()?.lines().ok()
    }

    pub(super) fn to_json(&self) -> String {
        let report = json!({
            "works": self.works(),
            "checks": self.findings,
            "recommended": self.recommended,
            "recommended_lines": self.lines(),
        });
        format!("{report:#}\n")
    }

    pub(super) fn to_table(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(presets::ASCII_FULL)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(WIDTH)
            .set_header(["check", "result", "observed", "what it means"]);
        for finding in &self.findings {
            let result = match finding.result {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Change => "change",
                Level::Failure => "FAILURE",
            };
            table.add_row([finding.check, result, &finding.observed, &finding.means]);
        }
        let mut text = format!("{table}\n\n");
        // Writing to a string does not fail.
        let _ = match self.lines() {
            Some(lines) => writeln!(text, "Lines for gateway.toml:\n\n{lines}"),
            None => writeln!(
                text,
                "No lines can be recommended before the failures are mended.\n"
            ),
        };
        let verdict = match self.worst() {
            Level::Ok => "All of this works.",
            Level::Warning => "This works. See the warnings.",
            Level::Change => "This does not work as configured. It works with the lines above.",
            Level::Failure => "This does not work. See the failures.",
        };
        let _ = writeln!(text, "{verdict}");
        text
    }
}
