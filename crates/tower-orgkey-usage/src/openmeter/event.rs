//! A record as a CloudEvent.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::account::{KeyName, Route};
use crate::record::UsageRecord;
use crate::rfc_3339::rfc_3339;

/// Names that the user sets.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) source: String,
    pub(super) event_type: String,
    /// The subject of records that belong to no organization.
    pub(super) unattributed: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Event<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    time: String,
    subject: &'a str,
    datacontenttype: &'static str,
    data: Data<'a>,
}

#[derive(Debug, Serialize)]
struct Data<'a> {
    key: &'a str,
    route: &'a str,
    requests: u64,
    served: u64,
    rejected: u64,
    rejections: BTreeMap<&'static str, u64>,
    failed: u64,
    dropped: u64,
    panicked: u64,
    request_bytes: u64,
    response_bytes: u64,
    duration_seconds: f64,
}

impl<'a> Event<'a> {
    /// `None` for a record that is not sent.
    pub(super) fn of(record: &'a UsageRecord, names: &'a Names) -> Option<Self> {
        let subject = match record.account.organization() {
            Some(org) => org.as_str(),
            None => names.unattributed.as_deref()?,
        };
        let counts = &record.counts;
        Some(Self {
            specversion: "1.0",
            id: &record.id,
            source: &names.source,
            kind: &names.event_type,
            time: rfc_3339(record.minute),
            subject,
            datacontenttype: "application/json",
            data: Data {
                key: match &record.key {
                    KeyName::Id(id) => id.as_str(),
                    KeyName::Unnamed => "(unnamed)",
                    // With a space, which a key id cannot contain.
                    KeyName::Other => "(other keys)",
                },
                route: match &record.route {
                    Route::Template(template) => template,
                    Route::Unmatched => "(unmatched)",
                    Route::Other => "(other routes)",
                },
                requests: counts.requests(),
                served: counts.served(),
                rejected: counts.rejected(),
                rejections: counts
                    .rejections()
                    .map(|(kind, count)| (kind.code(), count))
                    .collect(),
                failed: counts.failed(),
                dropped: counts.dropped(),
                panicked: counts.panicked(),
                request_bytes: counts.request_bytes(),
                response_bytes: counts.response_bytes(),
                duration_seconds: counts.duration().as_secs_f64(),
            },
        })
    }
}
