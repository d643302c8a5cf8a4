//! What reports are written from.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use crate::report::{Finding, KeyReview, ReviewReport, WeekCount};

/// A report in memory, or one that computes its keys and findings while it is written.
pub(crate) trait Source {
    /// Returns the report. Its findings, keys and requests are those of the other methods.
    fn head(&self) -> &ReviewReport;

    /// Returns how many findings there are, and how many of them are open.
    fn counts(&self) -> (usize, usize);

    /// Returns the findings, the most severe first, each with the name of its key.
    fn findings(&self) -> impl Iterator<Item = (Cow<'_, Finding>, Cow<'_, str>)>;

    /// Returns the keys by organization and id.
    fn keys(&self) -> impl Iterator<Item = Cow<'_, KeyReview>>;

    /// Returns the keys with their findings.
    fn keys_with_findings(
        &self,
    ) -> impl Iterator<Item = (Cow<'_, KeyReview>, Vec<Cow<'_, Finding>>)>;

    /// Returns the requests of an organization by week.
    fn requests(&self, org: &str) -> Cow<'_, [WeekCount]>;
}

impl Source for ReviewReport {
    fn head(&self) -> &ReviewReport {
        self
    }

    fn counts(&self) -> (usize, usize) {
        let open = self.findings.iter().filter(|finding| finding.is_open());
        (self.findings.len(), open.count())
    }

    fn findings(&self) -> impl Iterator<Item = (Cow<'_, Finding>, Cow<'_, str>)> {
        let keys = self.keys.iter();
        let names: HashMap<_, _> = keys
            .map(|key| ((key.org.as_deref(), key.id.as_str()), key.name.as_str()))
            .collect();
        self.findings.iter().map(move |finding| {
            let name = names.get(&(finding.org.as_deref(), finding.key.as_str()));
            let name = name.copied().unwrap_or_default();
            (Cow::Borrowed(finding), Cow::Borrowed(name))
        })
    }

    fn keys(&self) -> impl Iterator<Item = Cow<'_, KeyReview>> {
        self.keys.iter().map(Cow::Borrowed)
    }

    fn keys_with_findings(
        &self,
    ) -> impl Iterator<Item = (Cow<'_, KeyReview>, Vec<Cow<'_, Finding>>)> {
        let mut findings = BTreeMap::<_, Vec<_>>::new();
        for finding in &self.findings {
            let key = (finding.org.as_deref(), finding.key.as_str());
            let of_key = findings.entry(key).or_default();
            of_key.push(Cow::Borrowed(finding));
        }
        self.keys.iter().map(move |key| {
            let of_key = findings.remove(&(key.org.as_deref(), key.id.as_str()));
            (Cow::Borrowed(key), of_key.unwrap_or_default())
        })
    }

    fn requests(&self, org: &str) -> Cow<'_, [WeekCount]> {
        let weeks = self.requests.get(org);
        Cow::Borrowed(weeks.map_or(&[], Vec::as_slice))
    }
}
