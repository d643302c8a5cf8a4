//! How a request gets an answer that is not at hand: it boards a flight, and waits no longer than a caller waits.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Cache;
use super::blocks::BlockStatus;
use super::complete::{LookupTask, Start};
use super::entry::{Entry, Freshness};
use super::in_flight::{Completion, Lookup};
use crate::clock::Tick;
use crate::key::{ApiKey, KeyDigest};
use crate::upstream::{CannotTell, Priority, Subject};

/// How a question was settled.
#[derive(Debug)]
pub(crate) enum LookupResult {
    Serve(Arc<Entry>, Tick),
    Invalid,
    CannotTell(CannotTell),
}

/// A question to settle: whose key, and how old an answer may be.
#[derive(Debug)]
pub(crate) struct LookupRequest {
    pub(crate) key: ApiKey,
    pub(crate) digest: KeyDigest,
    /// Only facts from a call sent after this time will do, and those of a call that is sent for this very question.
    pub(crate) oldest: Option<Tick>,
    pub(crate) peer: Option<u64>,
}

/// What comes of asking for a flight.
enum Joined {
    Lookup(Arc<Lookup>),
    /// None is needed any more.
    Cached(LookupResult),
}

/// A question's place.
pub(super) enum JoinedOrStarted {
    /// In a flight under way.
    Joined(Arc<Lookup>),
    /// In a flight of its own, that has yet to be given a task.
    Started(LookupTask, Start),
    /// In none: the answer is there by now.
    Cached(LookupResult),
}

impl Cache {
    /// Begins a refresh behind a request that is served already.
    pub(crate) fn refresh(self: &Arc<Self>, key: ApiKey, entry: &Arc<Entry>) {
        let request = LookupRequest {
            digest: entry.digest,
            key,
            oldest: None,
            peer: None,
        };
        if self.join(&request, true).is_err() {
            self.refresh_later(entry, self.clock.now());
        }
    }

    /// Delays the next lookup of a known key after one that failed or was rejected: by a twelfth of the soft TTL.
    pub(super) fn refresh_later(&self, entry: &Entry, now: Tick) {
        entry.retry_after_failure(now.after(self.settings.lifetimes.soft / 12));
    }

    /// Asks the issuer, together with whoever else asks about the key, and waits for the answer no longer than a caller
    /// waits.
    pub(crate) async fn look_up(self: Arc<Self>, request: LookupRequest) -> LookupResult {
        let deadline = tokio::time::Instant::now() + self.settings.caller_deadline;
        let cannot_tell = loop {
            let lookup = match self.join(&request, false) {
                Ok(Joined::Lookup(lookup)) => lookup,
                Ok(Joined::Cached(result)) => return result,
                Err(cannot_tell) => break cannot_tell,
            };
            let Ok(completion) = tokio::time::timeout_at(deadline, lookup.completed()).await else {
                break CannotTell::unavailable(self.settings.retry_after);
            };
            match completion {
                Completion::Valid(entry) => {
                    let now = self.clock.now();
                    match (self.blocks.status(&entry), entry.freshness(now)) {
                        (BlockStatus::Blocked, _) | (_, Freshness::Expired) => {
                            return LookupResult::Invalid;
                        }
                        (BlockStatus::Clear, Freshness::Fresh | Freshness::Stale) => {
                            return LookupResult::Serve(entry, now);
                        }
                        // An answer that took its time is still the newest there is: to ask again would take as long.
                        (BlockStatus::Clear, Freshness::Overdue)
                            if now.since(entry.sent_at) <= self.settings.flight_deadline =>
                        {
                            return LookupResult::Serve(entry, now);
                        }
                        // Invalidated between the landing and this look, or slept over.
                        _ => {}
                    }
                }
                Completion::Invalid if !self.blocks.is_all_invalidated_since(lookup.began) => {
                    return LookupResult::Invalid;
                }
                Completion::CannotTell(cannot_tell) => break cannot_tell,
                Completion::Invalid | Completion::Cancelled => {}
            }
        };
        let now = self.clock.now();
        match self.servable(request.digest, request.oldest, now) {
            Some(entry) => LookupResult::Serve(entry, now),
            None if self.blocks.is_key_blocked(request.digest) => LookupResult::Invalid,
            None => LookupResult::CannotTell(cannot_tell),
        }
    }

    /// What has landed since the question was asked, if it answers it.
    fn cached_result(&self, request: &LookupRequest, now: Tick) -> Option<LookupResult> {
        match self.servable(request.digest, request.oldest, now) {
            Some(entry) => (entry.freshness(now) == Freshness::Fresh)
                .then_some(LookupResult::Serve(entry, now)),
            None => self
                .is_invalid(request.digest, now)
                .then_some(LookupResult::Invalid),
        }
    }

    /// The flight that will answer the question: one under way, or a new one if the issuer may be asked.
    fn join(
        self: &Arc<Self>,
        request: &LookupRequest,
        in_background: bool,
    ) -> Result<Joined, CannotTell> {
        Ok(match self.join_or_start(request)? {
            JoinedOrStarted::Joined(lookup) => {
                if !in_background {
                    self.coalesced.fetch_add(1, Ordering::Relaxed);
                }
                Joined::Lookup(lookup)
            }
            JoinedOrStarted::Started(task, start) => {
                let lookup = Arc::clone(&task.lookup);
                tokio::spawn(task.run(request.key.clone(), start));
                Joined::Lookup(lookup)
            }
            JoinedOrStarted::Cached(result) => Joined::Cached(result),
        })
    }

    /// Finds the question its flight, or makes one.
    pub(super) fn join_or_start(
        self: &Arc<Self>,
        request: &LookupRequest,
    ) -> Result<JoinedOrStarted, CannotTell> {
        let digest = request.digest;
        let mut shard = self.in_flight.shard(digest);
        if let Some(lookup) = shard.joinable(digest, request.oldest) {
            return Ok(JoinedOrStarted::Joined(lookup));
        }
        let now = self.clock.now();
        // A flight may have landed between this request's look-up and this line. Landings hold the shard's lock, so what
        // is not there now is on no flight either, and one burst of requests is one call.
        if let Some(result) = self.cached_result(request, now) {
            return Ok(JoinedOrStarted::Cached(result));
        }
        let cached = self.servable(digest, None, now);
        let start = self.admit(request, cached.as_deref(), now)?;
        // Read before the call is sent: whatever is decreed from here on condemns what the call brings.
        let lookup = shard.start(
            digest,
            self.blocks.version(),
            self.tail_to_keep(&request.key),
        );
        drop(shard);
        let task = LookupTask {
            cache: Arc::clone(self),
            lookup,
            digest,
        };
        Ok(JoinedOrStarted::Started(task, start))
    }

    /// Admits the lookup that will answer the question.
    fn admit(
        &self,
        request: &LookupRequest,
        cached: Option<&Entry>,
        now: Tick,
    ) -> Result<Start, CannotTell> {
        let digest = request.digest;
        let priority = match cached {
            Some(_) => Priority::Known,
            None if self.is_recently_valid(digest, now) => Priority::RecentlyValid,
            None => Priority::Unknown { peer: request.peer },
        };
        let subject = Subject {
            digest,
            priority,
            key_id: cached.and_then(|cached| cached.facts.key_id.clone()),
        };
        if let Some(cached) = cached
            && request.oldest.is_some()
        {
            let org = cached.facts.org.as_ref();
            let wait = self.upstream.take_forced_turn(org, now)?;
            if !wait.is_zero() {
                return Ok(Start::After(wait, subject));
            }
        }
        self.upstream.admit(subject, now).map(Start::Now)
    }
}
