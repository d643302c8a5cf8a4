//! A record as a CloudEvent.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::account::{KeyName, Route};
use crate::record::UsageRecord;

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

/// Seconds since the Unix epoch as RFC 3339 writes them, in UTC.
fn rfc_3339(seconds: u64) -> String {
    /// The days of 400 years, after which dates repeat.
    const ERA: u64 = 146_097;

    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Counted from 1 March 0000, so that a leap day is the last of its year.
    let days = days + 719_468;
    let (era, day) = (days / ERA, days % ERA);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (time / 3_600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn times_are_rfc_3339(seconds in 0_u64..=253_402_207_200) {
            let timestamp = jiff::Timestamp::from_second(i64::try_from(seconds).unwrap()).unwrap();
            prop_assert_eq!(rfc_3339(seconds), timestamp.to_string());
        }
    }
}
