//! Writes an event as OCSF 1.8.0. What the schema has no field for is under `unmapped`.

mod classification;
mod document;
mod json;
mod template;

use serde::ser::{Error, Serialize, Serializer};
use serde_json::Value;

pub(crate) use self::classification::{Class, Classification};
pub(crate) use self::template::Templates;
use crate::event::AuditEvent;

/// Reads back what [`AuditEvent::write_json`] writes, so that there is one description of the document.
impl Serialize for AuditEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = Vec::new();
        self.write_json(&mut json);
        let document: Value = serde_json::from_slice(&json).map_err(S::Error::custom)?;
        document.serialize(serializer)
    }
}
