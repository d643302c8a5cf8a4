//! What a review needs of the one before it, in little memory.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Read;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::error::Category;

use crate::coverage::Coverage;
use crate::keys::{KeyFacts, KeyList};
use crate::report::{Decision, Finding, KeyReview, ReviewReport, RevokedKey};
use crate::segment::index;
use crate::time::UnixMillis;

/// The previous review, to compare with: some 150 bytes for a key with two findings.
///
/// ```
/// use tower_orgkey_review::{Evidence, KeyList, PreviousReview, Review, ReviewPolicy, UnixMillis};
///
/// let (keys, evidence, policy) = (KeyList::new(UnixMillis::now()), Evidence::default(), ReviewPolicy::new());
/// let json = serde_json::to_vec(&Review::of(&keys, &evidence, &policy).stream()).unwrap();
///
/// let previous = PreviousReview::read(json.as_slice()).unwrap();
/// let mut report = Review::of(&keys, &evidence, &policy).previous(&previous).stream();
/// // Reads the text of the findings that are gone, and of no others.
/// report.read_settled(json.as_slice()).unwrap();
/// ```
#[derive(Default)]
pub struct PreviousReview {
    pub(crate) keys: Known,
    /// Hashes of the ids of the findings, ascending.
    findings: Vec<u64>,
    hasher: RandomState,
    /// The findings with a decision, by id.
    pub(crate) decided: HashMap<String, Finding>,
    pub(crate) decisions: Vec<Decision>,
    pub(crate) revoked: Vec<RevokedKey>,
    pub(crate) until: UnixMillis,
    /// All findings, if they are in memory.
    pub(crate) held: Option<Vec<Finding>>,
}

/// A report of an earlier review cannot be read. Returned by [`PreviousReview::read`] and
/// [`StreamedReport::read_settled`](crate::StreamedReport::read_settled).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PreviousReviewError(String);

impl PreviousReviewError {
    /// The report was replaced between the two times that it is read.
    pub(crate) fn changed() -> Self {
        Self("not the report that was read before: findings are missing".to_owned())
    }
}

impl PreviousReview {
    /// Returns what a review needs of this report. The findings are held in memory too, for those that are gone.
    pub fn of(report: &ReviewReport) -> Self {
        let mut previous = Self {
            decisions: report.decisions.clone(),
            revoked: report.revoked.clone(),
            until: report.coverage.until,
            ..Self::default()
        };
        for finding in &report.findings {
            previous.add_finding(finding.clone());
        }
        for key in &report.keys {
            previous.keys.push(key.clone());
        }
        previous.sort();
        previous.held = Some(report.findings.clone());
        previous
    }

    /// Reads a report as JSON, without holding its text or its findings in memory. The reader should be buffered.
    ///
    /// # Errors
    ///
    /// The text is not a report of all organizations in this version; or what the reader returned. The message quotes nothing.
    pub fn read(input: impl Read) -> Result<Self, PreviousReviewError> {
        let mut previous = Self::default();
        read(input, Parts::All(&mut previous))?;
        previous.sort();
        Ok(previous)
    }

    /// Returns the ids of the keys whose organization is known.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        let list = &self.keys.list;
        let of_org = (0..list.len()).filter(|at| list.org(*at).is_some());
        of_org.map(|at| list.id(at))
    }

    fn add_finding(&mut self, finding: Finding) {
        self.findings.push(self.hasher.hash_one(&finding.id));
        if finding.decision.is_some() {
            self.decided.insert(finding.id.clone(), finding);
        }
    }

    fn sort(&mut self) {
        self.findings.sort_unstable();
        self.findings.dedup();
        self.keys.sort();
    }

    /// How many findings there are.
    pub(crate) fn finding_count(&self) -> usize {
        self.findings.len()
    }

    /// Returns the place of a finding.
    pub(crate) fn finding(&self, id: &str) -> Option<usize> {
        let hash = self.hasher.hash_one(id);
        self.findings.binary_search(&hash).ok()
    }
}

impl fmt::Debug for PreviousReview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreviousReview")
            .field("keys", &self.keys.list.len())
            .field("findings", &self.findings.len())
            .finish_non_exhaustive()
    }
}

/// The keys of a review. A list holds them in little memory, with other times: since when the secret is the same in place of the
/// creation, and since when it is watched in place of the last verification.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) list: KeyList,
    /// The places of the keys by id and organization.
    pub(crate) places: Vec<u32>,
}

impl Known {
    fn push(&mut self, key: KeyReview) {
        self.list.push(KeyFacts {
            id: key.id,
            name: key.name,
            kind: key.kind,
            status: key.status,
            suffix: key.suffix,
            created_at: key.secret_since,
            last_verified_at: Some(key.watched_since),
            scopes: key.granted,
            org: key.org,
        });
    }

    fn sort(&mut self) {
        let name = |place: &u32| {
            let at = *place as usize;
            (self.list.id(at), self.list.org(at))
        };
        self.places = (0..index(self.list.len())).collect();
        self.places.sort_unstable_by(|a, b| name(a).cmp(&name(b)));
    }
}

/// What is read of a report.
enum Parts<'a> {
    All(&'a mut PreviousReview),
    Findings(&'a mut dyn FnMut(Finding)),
}

/// Reads the findings of a report.
pub(crate) fn read_findings(
    input: impl Read,
    mut each: impl FnMut(Finding),
) -> Result<(), PreviousReviewError> {
    read(input, Parts::Findings(&mut each))
}

fn read(input: impl Read, parts: Parts<'_>) -> Result<(), PreviousReviewError> {
    let mut deserializer = serde_json::Deserializer::from_reader(input);
    let read = deserializer.deserialize_map(parts);
    let read = read.and_then(|()| deserializer.end());
    read.map_err(|error| {
        let text = error.to_string();
        let known = [VERSION, ONE_ORGANIZATION].into_iter();
        let known =
            known.filter(|known| error.classify() == Category::Data && text.starts_with(known));
        PreviousReviewError(match (error.classify(), { known }.next()) {
            (Category::Io, _) => text,
            (_, Some(known)) => known.to_owned(),
            // Without the value.
            (_, None) => format!("not a report: line {}", error.line()),
        })
    })
}

const VERSION: &str = "a report of another version";
const ONE_ORGANIZATION: &str = "a report of one organization";

impl<'de> Visitor<'de> for Parts<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a report")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut report: A) -> Result<(), A::Error> {
        let mut missing = vec![
            "orgkey_review",
            "coverage",
            "findings",
            "keys",
            "decisions",
            "revoked",
        ];
        while let Some(name) = report.next_key::<String>()? {
            missing.retain(|missing| *missing != name);
            match (name.as_str(), &mut self) {
                ("orgkey_review", _) => {
                    if report.next_value::<u32>()? != 1 {
                        return Err(A::Error::custom(VERSION));
                    }
                }
                ("organization", _) => {
                    if report.next_value::<Option<String>>()?.is_some() {
                        return Err(A::Error::custom(ONE_ORGANIZATION));
                    }
                }
                ("findings", Parts::All(previous)) => {
                    report.next_value_seed(Each::new(|it| previous.add_finding(it)))?;
                }
                ("findings", Parts::Findings(each)) => report.next_value_seed(Each::new(each))?,
                ("keys", Parts::All(previous)) => {
                    report.next_value_seed(Each::new(|key| previous.keys.push(key)))?;
                }
                ("coverage", Parts::All(previous)) => {
                    previous.until = report.next_value::<Coverage>()?.until;
                }
                ("decisions", Parts::All(previous)) => previous.decisions = report.next_value()?,
                ("revoked", Parts::All(previous)) => previous.revoked = report.next_value()?,
                _ => {
                    report.next_value::<IgnoredAny>()?;
                }
            }
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(A::Error::custom("an incomplete report"))
        }
    }
}

/// Calls a function with each item of an array.
struct Each<T, F>(F, PhantomData<T>);

impl<T, F: FnMut(T)> Each<T, F> {
    fn new(each: F) -> Self {
        Self(each, PhantomData)
    }
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> DeserializeSeed<'de> for Each<T, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for Each<T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element()? {
            (self.0)(item);
        }
        Ok(())
    }
}
