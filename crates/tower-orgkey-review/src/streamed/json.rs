//! A report as JSON, whose items are computed while they are written.

use serde::ser::{Serialize, SerializeStruct as _, Serializer};

use super::StreamedReport;

impl Serialize for StreamedReport<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let head = &self.head;
        let requests = || {
            let orgs = self.orgs.iter();
            let requests = orgs.map(|org| (*org, self.seen.requests(org)));
            requests.filter(|(_, weeks)| !weeks.is_empty())
        };
        let mut report = serializer.serialize_struct("ReviewReport", 9)?;
        report.serialize_field("orgkey_review", &head.orgkey_review)?;
        report.serialize_field("organization", &head.organization)?;
        report.serialize_field("coverage", &head.coverage)?;
        report.serialize_field("changes", &head.changes)?;
        report.serialize_field("findings", &Items(|| self.findings()))?;
        report.serialize_field("keys", &Items(|| self.keys()))?;
        report.serialize_field("requests", &Members(requests))?;
        report.serialize_field("decisions", &head.decisions)?;
        report.serialize_field("revoked", &head.revoked)?;
        report.end()
    }
}

/// An array whose items are computed.
struct Items<F>(F);

impl<F: Fn() -> I, I: Iterator<Item: Serialize>> Serialize for Items<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0())
    }
}

/// An object whose members are computed.
struct Members<F>(F);

impl<F: Fn() -> I, I: Iterator<Item = (K, V)>, K: Serialize, V: Serialize> Serialize
    for Members<F>
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0())
    }
}
