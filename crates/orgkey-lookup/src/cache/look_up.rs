//! Looks a key up for a request: joins the in-flight lookup or starts one, and waits for at most the caller deadline.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Cache;
use super::blocks::BlockStatus;
use super::complete::{LookupTask, Start};
use super::entry::{Entry, Freshness};
use super::in_flight::{Completion, Lookup};
use crate::clock::Tick;
use crate::source::{Position, Source, Value};
use crate::upstream::{CannotTell, Priority, RETRY_AFTER, Subject};

/// The result of a lookup for one request.
#[derive(Debug)]
pub enum LookupResult<S: Source> {
    /// A result to serve, and the time at which it was found to be usable.
    Serve(Arc<Entry<S>>, Tick),
    /// The key is invalid, expired or blocked.
    Invalid,
    /// The lookup failed, and nothing is cached that may be served.
    CannotTell(CannotTell),
}

/// A key to look up, and how old the answer may be.
pub struct LookupRequest<S: Source> {
    /// What the call needs.
    pub query: S::Query,
    /// The key that the result is cached by.
    pub key: S::Key,
    /// Accepts only a result of a call sent after this time, or of a call sent for this request.
    pub oldest: Option<Tick>,
    /// Who presents the key. Unknown keys of different peers take turns.
    pub peer: Option<u64>,
}

impl<S: Source> LookupRequest<S> {
    /// Creates a request without a peer.
    pub fn new(query: S::Query, key: S::Key, oldest: Option<Tick>) -> Self {
        Self {
            query,
            key,
            oldest,
            peer: None,
        }
    }
}

impl<S: Source> fmt::Debug for LookupRequest<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the query, which may contain a secret.
        f.debug_struct("LookupRequest")
            .field("key", &self.key)
            .field("oldest", &self.oldest)
            .finish_non_exhaustive()
    }
}

/// The outcome of [`Cache::join`].
pub(super) enum Joined<S: Source> {
    Lookup(Arc<Lookup<S>>),
    /// No lookup is needed any more.
    Cached(LookupResult<S>),
}

/// The outcome of [`Cache::join_or_start`].
pub(super) enum JoinedOrStarted<S: Source> {
    /// A lookup that was in flight.
    Joined(Arc<Lookup<S>>),
    /// A new lookup. Its task must be spawned.
    Started(LookupTask<S>, Start<S>),
    /// No lookup: the result is cached meanwhile.
    Cached(LookupResult<S>),
}

impl<S: Source> Cache<S> {
    /// Starts a refresh in the background.
    pub fn refresh(self: &Arc<Self>, query: S::Query, entry: &Arc<Entry<S>>) {
        let request = LookupRequest::new(query, entry.key.clone(), None);
        if self.join(&request, true).is_err() {
            self.refresh_later(entry, self.clock.now());
        }
    }

    /// Delays the next lookup of a known key after one that failed or was rejected: by a twelfth of the soft TTL.
    pub(super) fn refresh_later(&self, entry: &Entry<S>, now: Tick) {
        entry.retry_after_failure(now.after(self.config.lifetimes.soft / 12));
    }

    /// Looks the key up, together with other requests for it. Waits at most `caller_deadline`.
    pub async fn look_up(self: Arc<Self>, request: LookupRequest<S>) -> LookupResult<S> {
        let deadline = tokio::time::Instant::now() + self.config.caller_deadline;
        let cannot_tell = loop {
            let lookup = match self.join(&request, false) {
                Ok(Joined::Lookup(lookup)) => lookup,
                Ok(Joined::Cached(result)) => return result,
                Err(cannot_tell) => break cannot_tell,
            };
            let Ok(completion) = tokio::time::timeout_at(deadline, lookup.completed()).await else {
                break CannotTell::unavailable(RETRY_AFTER);
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
                            if now.since(entry.sent_at) <= self.config.lookup_deadline =>
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
        match self.servable(&request.key, request.oldest, now) {
            Some(entry) => LookupResult::Serve(entry, now),
            None if self.blocks.is_key_blocked(&request.key) => LookupResult::Invalid,
            None => LookupResult::CannotTell(cannot_tell),
        }
    }

    /// Returns the cached result, if it needs no lookup.
    fn cached_result(&self, request: &LookupRequest<S>, now: Tick) -> Option<LookupResult<S>> {
        match self.servable(&request.key, request.oldest, now) {
            Some(entry) => (entry.freshness(now) == Freshness::Fresh && !self.is_due(&entry, now))
                .then_some(LookupResult::Serve(entry, now)),
            None => self
                .is_invalid(&request.key, now)
                .then_some(LookupResult::Invalid),
        }
    }

    /// Joins the in-flight lookup for this key, or starts one if it is admitted.
    pub(super) fn join(
        self: &Arc<Self>,
        request: &LookupRequest<S>,
        in_background: bool,
    ) -> Result<Joined<S>, CannotTell> {
        Ok(match self.join_or_start(request)? {
            JoinedOrStarted::Joined(lookup) => {
                if !in_background {
                    self.coalesced.fetch_add(1, Ordering::Relaxed);
                }
                Joined::Lookup(lookup)
            }
            JoinedOrStarted::Started(task, start) => {
                let lookup = Arc::clone(&task.lookup);
                tokio::spawn(task.run(request.query.clone(), start));
                Joined::Lookup(lookup)
            }
            JoinedOrStarted::Cached(result) => Joined::Cached(result),
        })
    }

    /// Joins the in-flight lookup for this key, or prepares one if it is admitted.
    pub(super) fn join_or_start(
        self: &Arc<Self>,
        request: &LookupRequest<S>,
    ) -> Result<JoinedOrStarted<S>, CannotTell> {
        // Before the lock is taken: this is code of another crate.
        let Some(upstream) = self.source.upstream_of(&request.query) else {
            return Ok(JoinedOrStarted::Cached(LookupResult::Invalid));
        };
        let key = &request.key;
        let mut shard = self.in_flight.shard(key);
        if let Some(lookup) = shard.joinable(key, request.oldest) {
            return Ok(JoinedOrStarted::Joined(lookup));
        }
        let now = self.clock.now();
        // A lookup may have completed since this request read the cache. Lookups complete under the shard's lock, so there
        // is either an in-flight lookup or its result, and one burst of requests causes one call.
        if let Some(result) = self.cached_result(request, now) {
            return Ok(JoinedOrStarted::Cached(result));
        }
        let known = self.servable(key, None, now);
        // Before the version: updates are applied before the position moves, so all later updates have a higher version.
        let position = self.source.position();
        let start = self.admit(request, upstream, known.as_deref(), position, now)?;
        // The version is read before the call is sent: later invalidations apply to the result.
        let lookup = shard.start(
            key,
            self.blocks.version(),
            upstream,
            self.source.mark(&request.query),
        );
        if matches!(start, Start::Fetch(_)) {
            // A result of the second tier is older than any request.
            lookup.sent(Tick::ZERO);
        }
        drop(shard);
        self.at(upstream).upstream.report();
        let task = LookupTask {
            cache: Arc::clone(self),
            lookup,
            key: key.clone(),
            known,
            position,
        };
        Ok(JoinedOrStarted::Started(task, start))
    }

    /// Admits a new lookup for the request, or rejects it. Called under the lock of a shard, so it emits nothing.
    fn admit(
        &self,
        request: &LookupRequest<S>,
        upstream: usize,
        known: Option<&Entry<S>>,
        position: Option<Position>,
        now: Tick,
    ) -> Result<Start<S>, CannotTell> {
        let key = &request.key;
        let upstream = &self.at(upstream).upstream;
        let priority = match known {
            Some(known) if request.oldest.is_none() && known.is_served_while_refreshed(now) => {
                Priority::Refresh
            }
            Some(_) => Priority::Known,
            None if self.is_recently_valid(key, now) => Priority::RecentlyValid,
            None => Priority::Unknown { peer: request.peer },
        };
        let mut forced_wait = Duration::ZERO;
        if let Some(known) = known
            && request.oldest.is_some()
        {
            let organization = known.value.organization();
            forced_wait = upstream.take_forced_turn(organization, now)?;
        }
        let subject = Subject {
            key: key.clone(),
            priority,
        };
        if !forced_wait.is_zero() {
            return Ok(Start::After(forced_wait, subject));
        }
        // After a failure or an unconfirmed answer, the upstream's own answer is needed.
        let has_failed = known.is_some_and(Entry::has_failed);
        if position.is_some() && request.oldest.is_none() && !has_failed {
            return Ok(Start::Fetch(subject));
        }
        upstream.admit(subject, now).map(Start::Now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::kit::{Facts, TestError, TestSource, request};
    use crate::source::{Answer, BreakerState, FailureKind};

    #[tokio::test(start_paused = true)]
    async fn a_failing_upstream_does_not_affect_others() {
        let failing: [(&[&str], bool); 2] = [
            (&["b/0", "b/1", "b/2", "b/3", "b/4"], true),
            (&["b/busy"], false),
        ];
        for (names, opens) in failing {
            let source = TestSource(|name| match name {
                "a" => Ok(Answer::Valid(Facts::default())),
                "b/busy" => Err(TestError(FailureKind::Throttled { retry_after: None })),
                _ => Err(TestError(FailureKind::Unavailable)),
            });
            let cache = Cache::new(source, Config::default(), Clock::System);
            for name in names {
                let result = Arc::clone(&cache).look_up(request(name)).await;
                assert!(matches!(result, LookupResult::CannotTell(_)), "{result:?}");
            }
            let (a, b) = (cache.upstream(0), cache.upstream(1));
            let is_open = matches!(b.unknown_breaker, BreakerState::Open { .. });
            assert_eq!((is_open, b.paused_for.is_some()), (opens, !opens));
            assert_eq!(a.unknown_breaker, BreakerState::Closed);
            assert_eq!(a.paused_for, None);
            let result = cache.look_up(request("a")).await;
            assert!(matches!(result, LookupResult::Serve(..)), "{result:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_without_upstream_is_invalid() {
        let source = TestSource(|name| unreachable!("{name} was called"));
        let cache = Cache::new(source, Config::default(), Clock::System);
        for n in 0..1_000 {
            let name = format!("none/{n}");
            let result = Arc::clone(&cache).look_up(request(&name)).await;
            assert!(matches!(result, LookupResult::Invalid), "{result:?}");
        }
        assert_eq!(cache.stats().invalid_entries, 0);
        for upstream in 0..2 {
            let state = cache.upstream(upstream);
            assert_eq!((state.in_flight, state.waiting), (0, 0));
        }
    }
}
