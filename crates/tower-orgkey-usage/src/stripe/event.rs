//! A record as a meter event.

use serde::Serialize;
use url::form_urlencoded;

use crate::rfc_3339::rfc_3339;

#[derive(Debug, Serialize)]
pub(super) struct Batch<'a> {
    pub(super) events: Vec<Event<'a>>,
}

#[derive(Debug, Serialize)]
pub(super) struct Event<'a> {
    #[serde(rename = "event_name")]
    pub(super) name: &'a str,
    pub(super) identifier: &'a str,
    #[serde(serialize_with = "as_rfc_3339")]
    pub(super) timestamp: u64,
    pub(super) payload: Payload,
}

#[derive(Debug, Serialize)]
pub(super) struct Payload {
    pub(super) stripe_customer_id: String,
    /// A whole number as a string.
    pub(super) value: String,
}

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn as_rfc_3339<S: serde::Serializer>(seconds: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc_3339(*seconds))
}

impl Event<'_> {
    /// As version 1 of the API expects it.
    pub(super) fn form(&self) -> String {
        form_urlencoded::Serializer::new(String::new())
            .append_pair("event_name", self.name)
            .append_pair("identifier", self.identifier)
            .append_pair("timestamp", &self.timestamp.to_string())
            .append_pair(
                "payload[stripe_customer_id]",
                &self.payload.stripe_customer_id,
            )
            .append_pair("payload[value]", &self.payload.value)
            .finish()
    }
}
