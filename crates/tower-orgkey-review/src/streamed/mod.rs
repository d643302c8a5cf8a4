//! A report that computes its keys and findings while it is written.

mod entry;
mod json;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::{self, Write};

use self::entry::{Entry, Place};
use crate::changes::{Before, Decisions, FindingChanges};
use crate::coverage::Coverage;
use crate::findings::Judge;
use crate::keys::{KeyFacts, KeyList};
use crate::policy::ReviewPolicy;
use crate::previous::{PreviousReview, PreviousReviewError, read_findings};
use crate::report::{
    Finding, FindingKind, KeyReview, NOT_LISTED, ReviewReport, RevokedKey, WeekCount,
};
use crate::review::Review;
use crate::seen::Seen;
use crate::segment::index;
use crate::source::Source;
use crate::time::UnixMillis;
use crate::{ocsf, page, table};

/// The result of a [`Review`](crate::Review) of many keys. Returned by [`Review::stream`](crate::Review::stream).
///
/// It holds some 30 bytes per key and finding beside the list and the evidence. Keys and findings are computed each time that they
/// are written. What changed since the previous review is held, as are decisions and revoked keys.
///
/// As JSON, it is a [`ReviewReport`].
///
/// ```
/// use tower_orgkey_review::{Evidence, KeyFacts, KeyList, Review, ReviewPolicy, ReviewReport, UnixMillis};
///
/// let mut keys = KeyList::new(UnixMillis::now());
/// keys.push(KeyFacts { id: "key_1".to_owned(), ..KeyFacts::default() });
/// let (evidence, policy) = (Evidence::default(), ReviewPolicy::new());
/// let report = Review::of(&keys, &evidence, &policy).stream();
///
/// let mut json = Vec::new();
/// serde_json::to_writer(&mut json, &report).unwrap();
/// let read: ReviewReport = serde_json::from_slice(&json).unwrap();
/// assert_eq!(read.keys[0].id, "key_1");
/// ```
#[must_use]
pub struct StreamedReport<'a> {
    list: &'a KeyList,
    /// The places of the keys on the list, by id.
    by_id: Vec<u32>,
    policy: &'a ReviewPolicy,
    seen: Seen<'a>,
    before: Before<'a>,
    previous: Option<&'a PreviousReview>,
    /// Which findings of the previous review are there again.
    is_again: Vec<bool>,
    decisions: Decisions<'a>,
    /// By name.
    orgs: Vec<&'a str>,
    /// By organization and id.
    entries: Vec<Entry>,
    /// In the order of a report.
    findings: Vec<(FindingKind, u32)>,
    open: usize,
    /// Everything but keys, findings and requests.
    head: ReviewReport,
}

impl<'a> Review<'a> {
    /// Returns the report, in memory. [`stream`](Self::stream) is for a review of many keys.
    pub fn report(&self) -> ReviewReport {
        self.stream().to_report()
    }

    /// Returns a report that computes keys and findings while it is written.
    pub fn stream(&self) -> StreamedReport<'a> {
        StreamedReport::of(self)
    }
}

impl<'a> StreamedReport<'a> {
    pub(crate) fn of(review: &Review<'a>) -> Self {
        let (list, policy) = (review.keys, review.policy);
        let now = list.listed_at;
        let segments: Vec<_> = review.evidence.since(policy.window_start(now)).collect();
        let coverage = Coverage::of(review.evidence, &segments, now, policy);
        let decisions = Decisions::of(review.previous, review.decisions, now);
        let mut report = Self {
            list,
            by_id: list.by_id(),
            policy,
            seen: Seen::of(segments),
            before: Before(review.previous.map(|previous| &previous.keys)),
            previous: review.previous,
            is_again: Vec::new(),
            orgs: Vec::new(),
            entries: Vec::new(),
            findings: Vec::new(),
            open: 0,
            head: ReviewReport {
                orgkey_review: 1,
                coverage,
                decisions: decisions.all(),
                ..ReviewReport::default()
            },
            decisions,
        };
        report.set_entries();
        report.head.revoked = report.revoked();
        report.set_findings();
        report
    }

    /// Returns how much of the window was recorded.
    pub fn coverage(&self) -> &Coverage {
        &self.head.coverage
    }

    /// Returns the number of keys, each once per organization.
    pub fn key_count(&self) -> usize {
        self.entries.len()
    }

    /// Returns the number of findings.
    pub fn finding_count(&self) -> usize {
        self.findings.len()
    }

    /// Returns the number of findings to decide on.
    pub fn open_count(&self) -> usize {
        self.open
    }

    /// Adds the findings that are gone from the report of the previous review, which is read again. Reads nothing if there are
    /// none, or if [they are in memory](PreviousReview::of).
    ///
    /// # Errors
    ///
    /// As [`PreviousReview::read`], and if it is not the report that was read first, because findings are missing.
    pub fn read_settled(&mut self, input: impl io::Read) -> Result<(), PreviousReviewError> {
        let (Some(previous), Some(changes)) = (self.previous, &mut self.head.changes) else {
            return Ok(());
        };
        if previous.held.is_some() || self.is_again.iter().all(|is_again| *is_again) {
            return Ok(());
        }
        let mut settled = Vec::new();
        let mut is_read = self.is_again.clone();
        read_findings(input, |finding| {
            if let Some(place) = previous.finding(&finding.id)
                && !self.is_again[place]
            {
                is_read[place] = true;
                settled.push(finding);
            }
        })?;
        if is_read.contains(&false) {
            return Err(PreviousReviewError::changed());
        }
        changes.settled = settled;
        Ok(())
    }

    /// Returns the keys, by organization and id.
    pub fn keys(&self) -> impl Iterator<Item = KeyReview> {
        self.entries.iter().map(|entry| self.key_review(*entry))
    }

    /// Returns the findings, the most severe first.
    pub fn findings(&self) -> impl Iterator<Item = Finding> {
        Source::findings(self).map(|(finding, _)| finding.into_owned())
    }

    /// Returns the report in memory.
    #[must_use]
    pub fn to_report(&self) -> ReviewReport {
        self.part(|_| true)
    }

    /// Returns the part about one organization, as [`ReviewReport::for_organization`] does.
    #[must_use]
    pub fn for_organization(&self, org: &str) -> ReviewReport {
        let part = self.part(|of| of == Some(org));
        part.for_organization(org)
    }

    /// Writes what [`ReviewReport::to_html`] returns, in many small pieces: use a buffered writer.
    ///
    /// # Errors
    ///
    /// What the writer returned.
    pub fn write_html(&self, mut out: impl Write) -> io::Result<()> {
        page::write(self, &mut out)?;
        out.flush()
    }

    /// Writes what [`ReviewReport::to_csv`] returns.
    ///
    /// # Errors
    ///
    /// What the writer returned.
    pub fn write_csv(&self, mut out: impl Write) -> io::Result<()> {
        table::write(self, &mut out)
    }

    /// Writes what [`ReviewReport::to_ocsf`] returns, in many small pieces: use a buffered writer.
    ///
    /// # Errors
    ///
    /// What the writer returned.
    pub fn write_ocsf(&self, mut out: impl Write) -> io::Result<()> {
        ocsf::write(self, &mut out)?;
        out.flush()
    }

    fn id(&self, key: Place) -> &'a str {
        match key {
            Place::List(at) => self.list.id(at as usize),
            Place::Evidence(at) => self.seen.id(at),
        }
    }

    fn org(&self, entry: Entry) -> Option<&'a str> {
        let place = (entry.org as usize).checked_sub(1)?;
        Some(self.orgs[place])
    }

    /// Returns the place of a key on the list.
    fn listed(&self, id: &str) -> Option<usize> {
        let of = |place: &u32| self.list.id(*place as usize);
        let at = self.by_id.binary_search_by(|place| of(place).cmp(id));
        Some(self.by_id[at.ok()?] as usize)
    }

    /// Returns the organizations of a key of the list.
    fn orgs_of(&self, at: usize) -> BTreeSet<&'a str> {
        let id = self.list.id(at);
        let mut orgs: BTreeSet<_> = self.list.org(at).into_iter().collect();
        orgs.extend(self.seen.orgs_of(id));
        if orgs.is_empty() {
            orgs.extend(self.before.org(id));
        }
        orgs
    }

    fn set_entries(&mut self) {
        let mut orgs = self.seen.orgs();
        orgs.extend((0..self.list.len()).filter_map(|at| self.list.org(at)));
        let of_before = self.by_id.iter();
        orgs.extend(of_before.filter_map(|at| self.before.org(self.list.id(*at as usize))));
        self.orgs = orgs.into_iter().collect();
        let mut entries = Vec::with_capacity(self.by_id.len());
        let mut add = |key: Place, orgs: &mut dyn ExactSizeIterator<Item = &str>| {
            let is_shared = orgs.len() > 1;
            if orgs.len() == 0 {
                entries.push(Entry::new(0, key, is_shared));
            }
            for org in orgs {
                // All are there.
                let place = self.orgs.partition_point(|held| *held < org);
                entries.push(Entry::new(index(place) + 1, key, is_shared));
            }
        };
        for at in &self.by_id {
            let orgs = self.orgs_of(*at as usize);
            add(Place::List(*at), &mut orgs.into_iter());
        }
        for (at, id) in self.seen.ids() {
            if self.listed(id).is_none() {
                let orgs = self.seen.orgs_of(id);
                add(Place::Evidence(at), &mut orgs.into_iter());
            }
        }
        entries.sort_unstable_by(|a, b| (a.org, self.id(a.key())).cmp(&(b.org, self.id(b.key()))));
        self.entries = entries;
    }

    fn set_findings(&mut self) {
        let judge = self.judge();
        let previous = self.previous;
        let mut changes = previous.map(|it| FindingChanges::new(&self.decisions, it));
        let mut findings = Vec::new();
        let mut open = 0;
        for (n, entry) in (0..).zip(&self.entries) {
            for mut finding in judge.findings(&self.key_review(*entry)) {
                self.decisions.apply(&mut finding);
                open += usize::from(finding.is_open());
                findings.push((finding.kind, n));
                if let Some(changes) = &mut changes {
                    changes.add(&finding, n);
                }
            }
        }
        findings.sort_unstable();
        let changes = changes.map(|changes| {
            let (mut changes, is_again) = changes.finish();
            for at in &self.by_id {
                let at = *at as usize;
                let orgs: Vec<_> = self.orgs_of(at).into_iter().collect();
                self.before.compare(&self.list.get(at), &orgs, &mut changes);
            }
            changes.removed = self.before.removed(|id| self.listed(id).is_some());
            (changes, is_again)
        });
        let (changes, is_again) = changes.unzip();
        self.findings = findings;
        self.open = open;
        self.head.changes = changes;
        self.is_again = is_again.unwrap_or_default();
    }

    fn judge(&self) -> Judge<'_> {
        // Since when each key is known to be inactive or gone, in any organization.
        let mut revoked = HashMap::new();
        for key in &self.head.revoked {
            let held = revoked.entry(key.id.as_str()).or_insert(key.seen_at);
            *held = key.seen_at.min(*held);
        }
        Judge {
            policy: self.policy,
            coverage: &self.head.coverage,
            revoked,
            seen: &self.seen,
            now: self.list.listed_at,
        }
    }

    /// Returns since when keys are known to be inactive or gone: those of before, and those of this list.
    fn revoked(&self) -> Vec<RevokedKey> {
        let now = self.list.listed_at;
        let mut revoked: BTreeMap<(Option<&str>, &str), UnixMillis> = BTreeMap::new();
        if let Some(previous) = self.previous {
            let keys = &previous.keys.list;
            let gone = (0..keys.len()).map(|at| (keys.org(at), keys.id(at), now));
            let known = previous.revoked.iter();
            let known = known.map(|key| (key.org.as_deref(), key.id.as_str(), key.seen_at));
            for (org, id, seen_at) in known.chain(gone) {
                let is_active = |at| self.list.is_active(at);
                if !self.listed(id).is_some_and(is_active) {
                    let held = revoked.entry((org, id)).or_insert(seen_at);
                    *held = seen_at.min(*held);
                }
            }
        }
        for entry in &self.entries {
            let (org, id) = (self.org(*entry), self.id(entry.key()));
            let is_revoked = match entry.key() {
                Place::List(at) => !self.list.is_active(at as usize),
                // One that was created after the list was read is not on it either.
                Place::Evidence(_) => {
                    let first = org.and_then(|org| self.seen.first_used(org, id));
                    first.is_some_and(|first| first <= now)
                }
            };
            if is_revoked {
                revoked.entry((org, id)).or_insert(now);
            }
        }
        let revoked = revoked.into_iter();
        revoked
            .map(|((org, id), seen_at)| RevokedKey {
                org: org.map(str::to_owned),
                id: id.to_owned(),
                seen_at,
            })
            .collect()
    }

    fn key_review(&self, entry: Entry) -> KeyReview {
        let org = self.org(entry);
        let key = match entry.key() {
            Place::List(at) => self.list.get(at as usize),
            Place::Evidence(at) => {
                let id = self.seen.id(at);
                let known = self.before.get(org, id);
                KeyFacts {
                    id: id.to_owned(),
                    name: known.map_or_else(String::new, |key| key.name),
                    status: NOT_LISTED.to_owned(),
                    ..KeyFacts::default()
                }
            }
        };
        // Its times are others.
        let known = self.before.any(org, &key.id);
        let now = self.list.listed_at;
        let is_rotated = known.as_ref().is_some_and(|known| {
            known.suffix.is_some() && key.suffix.is_some() && known.suffix != key.suffix
        });
        let (secret_since, watched_since, last_suffix) = match known {
            // It was rotated before this list, so it is at least as old.
            Some(known) if is_rotated => (Some(now), known.last_verified_at.unwrap_or(now), None),
            Some(known) => {
                let secret_since = known.created_at.or(key.created_at);
                // Without a suffix, nothing was watched.
                let watched = known.suffix.is_some() || key.suffix.is_none();
                let watched_since = known.last_verified_at.filter(|_| watched);
                (secret_since, watched_since.unwrap_or(now), known.suffix)
            }
            None => (key.created_at, now, None),
        };
        let mut review = KeyReview {
            org: org.map(str::to_owned),
            id: key.id,
            name: key.name,
            kind: key.kind,
            status: key.status,
            is_suffix_listed: key.suffix.is_some(),
            suffix: key.suffix.or(last_suffix),
            created_at: key.created_at,
            last_verified_at: key.last_verified_at,
            secret_since,
            watched_since,
            granted: key.scopes,
            is_shared: entry.is_shared,
            ..KeyReview::default()
        };
        if let Some(org) = org {
            self.seen.add(&mut review, org);
        }
        review
    }

    /// Returns the report of the keys of some organizations.
    fn part(&self, is_in: impl Fn(Option<&str>) -> bool) -> ReviewReport {
        let is_in_org = |entry: &Entry| is_in(self.org(*entry));
        let keys = self.entries.iter().filter(|entry| is_in_org(entry));
        let findings = self.findings.iter();
        let findings = findings.filter(|(_, key)| is_in_org(&self.entries[*key as usize]));
        let orgs = self.orgs.iter().filter(|org| is_in(Some(org)));
        let requests = orgs.map(|org| ((*org).to_owned(), self.seen.requests(org)));
        let judge = self.judge();
        ReviewReport {
            keys: keys.map(|entry| self.key_review(*entry)).collect(),
            findings: findings
                .filter_map(|(kind, key)| Some(self.finding(&judge, *kind, *key)?.0))
                .collect(),
            requests: requests.filter(|(_, weeks)| !weeks.is_empty()).collect(),
            ..self.head.clone()
        }
    }

    /// Returns a finding, and the name of its key.
    fn finding(&self, judge: &Judge<'_>, kind: FindingKind, key: u32) -> Option<(Finding, String)> {
        let key = self.key_review(self.entries[key as usize]);
        let mut finding = judge.finding(kind, &key)?;
        self.decisions.apply(&mut finding);
        Some((finding, key.name))
    }
}

impl Source for StreamedReport<'_> {
    fn head(&self) -> &ReviewReport {
        &self.head
    }

    fn counts(&self) -> (usize, usize) {
        (self.findings.len(), self.open)
    }

    fn findings(&self) -> impl Iterator<Item = (Cow<'_, Finding>, Cow<'_, str>)> {
        let judge = self.judge();
        self.findings.iter().filter_map(move |(kind, key)| {
            let (finding, name) = self.finding(&judge, *kind, *key)?;
            Some((Cow::Owned(finding), Cow::Owned(name)))
        })
    }

    fn keys(&self) -> impl Iterator<Item = Cow<'_, KeyReview>> {
        StreamedReport::keys(self).map(Cow::Owned)
    }

    fn keys_with_findings(
        &self,
    ) -> impl Iterator<Item = (Cow<'_, KeyReview>, Vec<Cow<'_, Finding>>)> {
        let judge = self.judge();
        self.entries.iter().map(move |entry| {
            let key = self.key_review(*entry);
            let findings = judge.findings(&key).into_iter().map(|mut finding| {
                self.decisions.apply(&mut finding);
                Cow::Owned(finding)
            });
            let findings = findings.collect();
            (Cow::Owned(key), findings)
        })
    }

    fn requests(&self, org: &str) -> Cow<'_, [WeekCount]> {
        Cow::Owned(self.seen.requests(org))
    }
}

impl fmt::Debug for StreamedReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamedReport")
            .field("keys", &self.entries.len())
            .field("findings", &self.findings.len())
            .finish_non_exhaustive()
    }
}
