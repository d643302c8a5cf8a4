//! Events of the region layer.

use super::{RateLimitedLog, TARGET};
use crate::identifier::OrgCode;

/// Emits that the home of an organization is a region that the layer does not declare.
pub(crate) fn region_undeclared(org: &OrgCode) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    if let Some(suppressed) = LOG.admit() {
        tracing::error!(
            target: TARGET,
            org_code = %org,
            suppressed,
            "rejected with 503: the home of the organization is a region that `RegionLayer` does not declare; add it with \
             `.region(name, base)`"
        );
    }
}
