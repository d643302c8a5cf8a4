//! The findings as events of OCSF 1.8.0.

use std::collections::HashSet;
use std::io::{self, Write};

use serde_json::{Value, json};

use crate::report::{Finding, ReviewReport, in_memory};
use crate::source::Source;
use crate::text::visible;

impl ReviewReport {
    /// Returns the findings as JSON lines: events of the class 2003 (Compliance Finding) of OCSF 1.8.0.
    ///
    /// The first review creates a finding, later ones update it, and one that is gone is closed. A decision that is valid
    /// suppresses its finding.
    ///
    /// ```
    /// use tower_orgkey_review::ReviewReport;
    ///
    /// assert_eq!(ReviewReport::default().to_ocsf(), "");
    /// ```
    pub fn to_ocsf(&self) -> String {
        in_memory(|out| write(self, out))
    }
}

pub(crate) fn write(source: &impl Source, out: &mut impl Write) -> io::Result<()> {
    let report = source.head();
    let found = report.changes.as_ref().map(|changes| &changes.found);
    let found: Option<HashSet<&String>> = found.map(|found| found.iter().collect());
    for (finding, _) in source.findings() {
        let is_new = found.as_ref().is_none_or(|ids| ids.contains(&finding.id));
        let activity = if is_new { (1, "Create") } else { (2, "Update") };
        let status = if finding.is_open() {
            (1, "New")
        } else {
            (3, "Suppressed")
        };
        writeln!(out, "{}", event(report, &finding, activity, status))?;
    }
    for finding in report.changes.iter().flat_map(|changes| &changes.settled) {
        let event = event(report, finding, (3, "Close"), (4, "Resolved"));
        writeln!(out, "{event}")?;
    }
    Ok(())
}

fn event(
    report: &ReviewReport,
    finding: &Finding,
    activity: (u32, &str),
    status: (u32, &str),
) -> Value {
    let (severity_id, severity) = finding.kind.severity();
    let time = report.coverage.until.0;
    let compliance = match activity.0 {
        3 => json!({ "status_id": 1, "status": "Pass", "control": finding.kind.as_str() }),
        _ => json!({ "status_id": 3, "status": "Fail", "control": finding.kind.as_str() }),
    };
    let mut event = json!({
        "activity_id": activity.0,
        "activity_name": activity.1,
        "category_uid": 2,
        "category_name": "Findings",
        "class_uid": 2003,
        "class_name": "Compliance Finding",
        "type_uid": 200_300 + activity.0,
        "type_name": format!("Compliance Finding: {}", activity.1),
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status.0,
        "status": status.1,
        "time": time,
        "message": visible(&finding.proof),
        "metadata": {
            "version": "1.8.0",
            "product": { "name": "tower-orgkey", "vendor_name": "tower-orgkey", "version": env!("CARGO_PKG_VERSION") },
            "log_name": "review",
        },
        "compliance": compliance,
        "finding_info": {
            "uid": finding.id,
            "title": finding.kind.title(),
            "desc": visible(&finding.proof),
            "types": [finding.kind.as_str()],
        },
        "resources": [{ "uid": finding.key, "type": "API Key" }],
        "remediation": { "desc": visible(&finding.checklist.join(" ")) },
        "unmapped": {
            "coverage": finding.coverage,
            "is_conclusive": finding.is_conclusive,
            "scopes": finding.scopes,
        },
    });
    if let Some(org) = &finding.org {
        event["resources"][0]["group"] = json!({ "uid": org, "type": "Organization" });
    }
    if let Some(decision) = &finding.decision {
        event["comment"] = format!(
            "{} by {}: {}",
            visible(&decision.decision),
            visible(&decision.reviewer),
            visible(&decision.reason)
        )
        .into();
    }
    event
}
