/// The result of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PushReport {
    /// Records that the sink has stored.
    pub pushed: u64,
    /// Records that the sink will never store.
    pub undeliverable: u64,
    /// Records that were dropped because more than `max_waiting` waited.
    pub dropped: u64,
    /// Records that still wait.
    pub waiting: usize,
    /// Records that are parked.
    pub parked: usize,
}

impl PushReport {
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            pushed: self.pushed - before.pushed,
            undeliverable: self.undeliverable - before.undeliverable,
            dropped: self.dropped - before.dropped,
            waiting: self.waiting,
            parked: self.parked,
        }
    }
}
