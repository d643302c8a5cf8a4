//! The review: a pure function of a key list, evidence and a policy.

use crate::evidence::Evidence;
use crate::keys::KeyList;
use crate::policy::ReviewPolicy;
use crate::previous::PreviousReview;
use crate::report::Decision;

/// An access review. [`report`](Self::report) depends on nothing but what it is given.
///
/// ```
/// use tower_orgkey_review::{EvidenceBuilder, KeyList, Review, ReviewPolicy, UnixMillis};
///
/// # fn lines() -> &'static [u8] { &[] }
/// let keys = KeyList::from_json(r#"[{ "id": "key_1", "type": "user" }]"#, UnixMillis::now()).unwrap();
/// let mut evidence = EvidenceBuilder::new();
/// evidence.read("audit.jsonl", lines(), |_| {}).unwrap();
///
/// let report = Review::of(&keys, &evidence.finish(), &ReviewPolicy::new()).report();
/// assert_eq!(report.findings[0].id, "not-of-organization - key_1");
/// ```
#[derive(Debug)]
#[must_use]
pub struct Review<'a> {
    pub(crate) keys: &'a KeyList,
    pub(crate) evidence: &'a Evidence,
    pub(crate) policy: &'a ReviewPolicy,
    pub(crate) previous: Option<&'a PreviousReview>,
    pub(crate) decisions: &'a [Decision],
}

impl<'a> Review<'a> {
    /// Returns a review without an earlier one and without decisions. The time of the review is that of the list.
    pub fn of(keys: &'a KeyList, evidence: &'a Evidence, policy: &'a ReviewPolicy) -> Self {
        Self {
            keys,
            evidence,
            policy,
            previous: None,
            decisions: &[],
        }
    }

    /// Sets the previous review. It shows what changed, when a secret was rotated, and what was decided.
    pub fn previous(mut self, previous: &'a PreviousReview) -> Self {
        self.previous = Some(previous);
        self
    }

    /// Sets decisions. One about the same finding as a decision of the previous review replaces it.
    pub fn decisions(mut self, decisions: &'a [Decision]) -> Self {
        self.decisions = decisions;
        self
    }
}
