use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use tower_orgkey::RejectionKind;
use tower_orgkey::observer::EarlyEnd;

/// The upper bounds of the duration buckets, in milliseconds and inclusive. One more bucket counts longer durations.
///
/// The bounds are those of `http.server.request.duration` in OpenTelemetry's semantic conventions.
pub const DURATION_BOUNDS_MS: [u64; 14] = [
    5, 10, 25, 50, 75, 100, 250, 500, 750, 1_000, 2_500, 5_000, 7_500, 10_000,
];

const BUCKETS: usize = DURATION_BOUNDS_MS.len() + 1;

/// Counts of requests. Counts can be added up.
///
/// ```
/// use tower_orgkey_usage::Counts;
///
/// let counts = Counts::default();
/// assert_eq!((counts.requests(), counts.rejected()), (0, 0));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Counts {
    requests: u64,
    served: u64,
    failed: u64,
    dropped: u64,
    panicked: u64,
    request_bytes: u64,
    response_bytes: u64,
    duration_nanos: u64,
    durations: [u64; BUCKETS],
    /// By kind, in the order of [`RejectionKind::ALL`], without those that did not occur.
    rejections: Vec<(RejectionKind, u64)>,
}

impl Counts {
    /// Returns the number of requests, however they ended.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Returns the number of requests that reached the handler and were not rejected. Bill these.
    ///
    /// Requests whose handler responded with an error status, failed, panicked, or was dropped are included. A request that
    /// ended early before `ApiKeyLayer` let it through, for example because the client disconnected during the verification,
    /// is neither served nor rejected.
    pub fn served(&self) -> u64 {
        self.served
    }

    /// Returns the number of requests that were rejected by the layer, or by a guard, extractor, limit or handler.
    pub fn rejected(&self) -> u64 {
        self.rejections.iter().map(|(_, count)| count).sum()
    }

    /// Returns the number of requests that were rejected for this.
    pub fn rejected_for(&self, kind: RejectionKind) -> u64 {
        let held = self.rejections.iter().find(|(held, _)| *held == kind);
        held.map_or(0, |(_, count)| *count)
    }

    /// Returns the kinds of rejections that occurred, each with its number, in the order of [`RejectionKind::ALL`].
    pub fn rejections(&self) -> impl Iterator<Item = (RejectionKind, u64)> + '_ {
        self.rejections.iter().copied()
    }

    /// Returns the number of requests for which the inner service returned an error.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// Returns the number of requests whose future was dropped before the response: the client disconnected, or a timeout
    /// expired.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Returns the number of requests whose handler panicked.
    pub fn panicked(&self) -> u64 {
        self.panicked
    }

    /// Returns the sum of the declared sizes of request bodies. A body of unknown size counts as 0.
    pub fn request_bytes(&self) -> u64 {
        self.request_bytes
    }

    /// Returns the sum of the sizes of response bodies that were known when the response began. A stream counts as 0.
    pub fn response_bytes(&self) -> u64 {
        self.response_bytes
    }

    /// Returns the sum of the durations, each from the call of the layer to the head of the response or to the early end.
    pub fn duration(&self) -> Duration {
        Duration::from_nanos(self.duration_nanos)
    }

    /// Returns the number of requests in each bucket of [`DURATION_BOUNDS_MS`], not cumulative, and of those that took
    /// longer.
    pub fn durations(&self) -> &[u64] {
        &self.durations
    }
}

/// One request that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) took: Duration,
    pub(crate) how: How,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    Answered(Option<RejectionKind>),
    EndedEarly(EarlyEnd),
}

impl Counts {
    /// `is_let_through`: an `ApiKeyLayer` let the request through.
    pub(crate) fn count(&mut self, ended: Ended, is_let_through: bool) {
        let took = u64::try_from(ended.took.as_nanos()).unwrap_or(u64::MAX);
        self.requests += 1;
        self.request_bytes = self.request_bytes.saturating_add(ended.request_bytes);
        self.response_bytes = self.response_bytes.saturating_add(ended.response_bytes);
        self.duration_nanos = self.duration_nanos.saturating_add(took);
        let bucket = DURATION_BOUNDS_MS.partition_point(|bound| took > bound * 1_000_000);
        self.durations[bucket] += 1;
        let is_rejected = matches!(ended.how, How::Answered(Some(_)));
        self.served += u64::from(is_let_through && !is_rejected);
        match ended.how {
            How::Answered(None) => {}
            How::Answered(Some(kind)) => {
                self.reject(kind, 1);
            }
            How::EndedEarly(EarlyEnd::Failed) => self.failed += 1,
            How::EndedEarly(EarlyEnd::Panicked) => self.panicked += 1,
            // And any end that this version does not know.
            How::EndedEarly(_) => self.dropped += 1,
        }
    }

    pub(crate) fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// Adds other counts, and saturates.
    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.numbers_mut().into_iter().zip(other.numbers()) {
            *mine = mine.saturating_add(theirs);
        }
        for (kind, count) in other.rejections() {
            self.reject(kind, count);
        }
    }

    fn reject(&mut self, kind: RejectionKind, more: u64) {
        let place = |kind| RejectionKind::ALL.iter().position(|known| *known == kind);
        let mut rejections = self.rejections.iter_mut();
        if let Some((_, count)) = rejections.find(|(held, _)| *held == kind) {
            *count = count.saturating_add(more);
        } else {
            self.rejections.push((kind, more));
            self.rejections.sort_by_key(|(kind, _)| place(*kind));
        }
    }

    /// Subtracts other counts. `None` if any of them is larger.
    pub(crate) fn checked_sub(&self, there: &Self) -> Option<Self> {
        let mut rest = self.clone();
        for (mine, theirs) in rest.numbers_mut().into_iter().zip(there.numbers()) {
            *mine = mine.checked_sub(theirs)?;
        }
        for (kind, theirs) in there.rejections() {
            let mut rejections = rest.rejections.iter_mut();
            let (_, mine) = rejections.find(|(held, _)| *held == kind)?;
            *mine = mine.checked_sub(theirs)?;
        }
        rest.rejections.retain(|(_, count)| *count > 0);
        Some(rest)
    }

    fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        [
            self.requests,
            self.served,
            self.failed,
            self.dropped,
            self.panicked,
            self.request_bytes,
            self.response_bytes,
            self.duration_nanos,
        ]
        .into_iter()
        .chain(self.durations)
    }

    fn numbers_mut(&mut self) -> impl IntoIterator<Item = &mut u64> {
        [
            &mut self.requests,
            &mut self.served,
            &mut self.failed,
            &mut self.dropped,
            &mut self.panicked,
            &mut self.request_bytes,
            &mut self.response_bytes,
            &mut self.duration_nanos,
        ]
        .into_iter()
        .chain(&mut self.durations)
    }
}

/// The serialized form, with rejections by code.
#[derive(Serialize, Deserialize)]
struct Wire {
    requests: u64,
    served: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    rejections: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "is_zero")]
    failed: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    dropped: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    panicked: u64,
    request_bytes: u64,
    response_bytes: u64,
    duration_nanos: u64,
    durations: [u64; BUCKETS],
}

#[allow(clippy::trivially_copy_pass_by_ref)] // The signature that `serde` asks for.
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl From<Counts> for Wire {
    fn from(counts: Counts) -> Self {
        Self {
            requests: counts.requests,
            served: counts.served,
            rejections: counts
                .rejections()
                .map(|(kind, count)| (kind.code().to_owned(), count))
                .collect(),
            failed: counts.failed,
            dropped: counts.dropped,
            panicked: counts.panicked,
            request_bytes: counts.request_bytes,
            response_bytes: counts.response_bytes,
            duration_nanos: counts.duration_nanos,
            durations: counts.durations,
        }
    }
}

impl TryFrom<Wire> for Counts {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Self, String> {
        let mut counts = Self::default();
        for (code, count) in wire.rejections {
            let mut kinds = RejectionKind::ALL.iter();
            let Some(kind) = kinds.find(|kind| kind.code() == code) else {
                return Err(format!("unknown rejection {code:?}"));
            };
            if count > 0 {
                counts.reject(*kind, count);
            }
        }
        Ok(Self {
            requests: wire.requests,
            served: wire.served,
            failed: wire.failed,
            dropped: wire.dropped,
            panicked: wire.panicked,
            request_bytes: wire.request_bytes,
            response_bytes: wire.response_bytes,
            duration_nanos: wire.duration_nanos,
            durations: wire.durations,
            rejections: counts.rejections,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(took: Duration, how: How) -> Ended {
        Ended {
            took,
            how,
            request_bytes: 3,
            response_bytes: 5,
        }
    }

    #[test]
    fn bounds_of_buckets_are_inclusive() {
        let mut counts = Counts::default();
        for nanos in [0, 5_000_000, 5_000_001, 10_000_000_000, 10_000_000_001] {
            counts.count(
                ended(Duration::from_nanos(nanos), How::Answered(None)),
                true,
            );
        }
        let mut expected = [0; BUCKETS];
        (expected[0], expected[1], expected[13], expected[14]) = (2, 1, 1, 1);
        assert_eq!(counts.durations(), expected);
        assert_eq!(counts.duration(), Duration::from_nanos(20_010_000_002));
    }

    #[test]
    fn counts_add_subtract_and_serialize() {
        let mut one = Counts::default();
        let rejected = How::Answered(Some(RejectionKind::NotFound));
        one.count(ended(Duration::from_millis(7), rejected), true);
        let dropped = How::EndedEarly(EarlyEnd::Dropped);
        one.count(ended(Duration::ZERO, dropped), false);
        let mut other = Counts::default();
        for how in [
            How::EndedEarly(EarlyEnd::Failed),
            How::EndedEarly(EarlyEnd::Panicked),
            How::Answered(None),
        ] {
            other.count(ended(Duration::from_secs(60), how), true);
        }
        let mut both = one.clone();
        both.add(&other);
        assert_eq!((both.requests(), both.served()), (5, 3));
        assert_eq!((one.requests(), one.served()), (2, 0));
        assert_eq!((both.request_bytes(), both.response_bytes()), (15, 25));
        assert_eq!(both.checked_sub(&one).as_ref(), Some(&other));
        assert_eq!(both.checked_sub(&other).as_ref(), Some(&one));
        assert_eq!(one.checked_sub(&both), None);
        assert_eq!(
            other.checked_sub(&one),
            None,
            "there is no rejection to subtract"
        );

        let written = serde_json::to_string(&both).unwrap();
        assert_eq!(serde_json::from_str::<Counts>(&written).unwrap(), both);
        let unknown = written.replace("not-found", "not-heard-of");
        assert!(serde_json::from_str::<Counts>(&unknown).is_err());
    }
}
