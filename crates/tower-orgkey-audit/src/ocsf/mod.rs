//! An event in the words of OCSF 1.8.0.
//!
//! Only names that the schema has; what it has no name for stands under `unmapped`, which takes any.

mod fields;
mod fill;
mod verdict;

use serde::{Serialize, Serializer};

pub(super) use self::verdict::{Class, Verdict};
use super::event::{AuditEvent, AuditEventKind};

impl Serialize for AuditEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.kind {
            AuditEventKind::Request(request) => self.of_request(request).serialize(serializer),
            AuditEventKind::LeftOut(left_out) => self.of_left_out(left_out).serialize(serializer),
            AuditEventKind::Lost(lost) => self.of_lost(lost).serialize(serializer),
        }
    }
}
