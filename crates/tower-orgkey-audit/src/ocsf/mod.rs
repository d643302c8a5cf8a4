//! Serializes an event as OCSF 1.8.0. What the schema has no field for is under `unmapped`.

mod classification;
mod document;
mod fields;

use serde::{Serialize, Serializer};

pub(crate) use self::classification::{Class, Classification};
use crate::event::{AuditEvent, AuditEventKind};

impl Serialize for AuditEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.kind {
            AuditEventKind::Request(request) => {
                self.request_document(request).serialize(serializer)
            }
            AuditEventKind::Suppressed(suppressed) => {
                self.suppressed_document(suppressed).serialize(serializer)
            }
            AuditEventKind::Lost(lost) => self.lost_document(lost).serialize(serializer),
        }
    }
}
