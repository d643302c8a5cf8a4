//! Events about billing.

use std::error::Error;

use tower_orgkey::OrgCode;
use tower_orgkey::telemetry::TARGET;

use super::ledger::HoldReason;

pub(super) fn totals_lost() {
    tracing::error!(
        target: TARGET,
        "usage totals missing or older than the last send: each organization waits for its next billing period"
    );
}

pub(super) fn maybe_counted(records: usize) {
    tracing::error!(
        target: TARGET,
        records,
        "usage records parked: too old to know whether they were counted for billing"
    );
}

/// Once for each organization and reason.
pub(super) fn held(org: &OrgCode, reason: HoldReason) {
    let organization = org.as_str();
    tracing::warn!(target: TARGET, organization, %reason, "usage total held");
}

pub(super) fn unsettled(org: &OrgCode, agreement: &str, units: u64) {
    let organization = org.as_str();
    tracing::error!(
        target: TARGET,
        organization,
        agreement,
        units,
        "usage unsettled: the billing period ended before Kinde answered"
    );
}

pub(super) fn store_failed(error: &(dyn Error + 'static)) {
    tracing::error!(target: TARGET, error, "usage totals store failed, nothing is sent");
}
