//! Looks a key up for a request: joins the in-flight lookup or starts one, and waits for at most the caller deadline.

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

/// The result of a lookup for one request.
#[derive(Debug)]
pub(crate) enum LookupResult {
    Serve(Arc<Entry>, Tick),
    Invalid,
    CannotTell(CannotTell),
}

/// A key to look up, and how old the answer may be.
#[derive(Debug)]
pub(crate) struct LookupRequest {
    pub(crate) key: ApiKey,
    pub(crate) digest: KeyDigest,
    /// Accepts only a result of a call sent after this time, or of a call sent for this request.
    pub(crate) oldest: Option<Tick>,
    pub(crate) peer: Option<u64>,
}

/// The outcome of [`Cache::join`].
enum Joined {
    Lookup(Arc<Lookup>),
    /// No lookup is needed any more.
    Cached(LookupResult),
}

/// The outcome of [`Cache::join_or_start`].
pub(super) enum JoinedOrStarted {
    /// A lookup that was in flight.
    Joined(Arc<Lookup>),
    /// A new lookup. Its task must be spawned.
    Started(LookupTask, Start),
    /// No lookup: the result is cached meanwhile.
    Cached(LookupResult),
}

impl Cache {
    /// Starts a refresh in the background.
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

    /// Looks the key up, together with other requests for it. Waits at most `caller_deadline`.
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
                        // A slow answer is still the newest one. Another lookup would take as long.
                        (BlockStatus::Clear, Freshness::Overdue)
                            if now.since(entry.sent_at) <= self.settings.flight_deadline =>
                        {
                            return LookupResult::Serve(entry, now);
                        }
                        // Invalidated since the lookup completed, or the machine slept.
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

    /// Returns the cached result, if it needs no lookup.
    fn cached_result(&self, request: &LookupRequest, now: Tick) -> Option<LookupResult> {
        match self.servable(request.digest, request.oldest, now) {
            Some(entry) => (entry.freshness(now) == Freshness::Fresh)
                .then_some(LookupResult::Serve(entry, now)),
            None => self
                .is_invalid(request.digest, now)
                .then_some(LookupResult::Invalid),
        }
    }

    /// Joins the in-flight lookup for this key, or starts one if it is admitted.
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

    /// Joins the in-flight lookup for this key, or prepares one if it is admitted.
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
        // A lookup may have completed since this request read the cache. Lookups complete under the shard's lock, so there
        // is either an in-flight lookup or its result, and one burst of requests causes one call.
        if let Some(result) = self.cached_result(request, now) {
            return Ok(JoinedOrStarted::Cached(result));
        }
        let cached = self.servable(digest, None, now);
        let start = self.admit(request, cached.as_deref(), now)?;
        // The version is read before the call is sent: later invalidations apply to the result.
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

    /// Admits a new lookup for the request, or rejects it.
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
