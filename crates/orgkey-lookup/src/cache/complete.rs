//! Completes a lookup: what its answer changes in the cache, and what its waiters get.
//!
//! Everything here happens under the lock of the key's shard, so it comes wholly before an invalidation or wholly after it.

use std::sync::Arc;
use std::time::Duration;

use super::blocks::BlockStatus;
use super::entry::{Entry, Freshness};
use super::in_flight::{Completion, Lookup, Shard};
use super::unconfirmed::{Followed, Received};
use super::{Cache, UpstreamOfCache};
use crate::clock::{Tick, nanos};
use crate::source::{Answer, Answered, Fetched, Invalid, Position, Source, Telemetry, Value};
use crate::upstream::{Admission, CannotTell, Priority, RETRY_AFTER, Subject};

/// How a verification ended.
#[derive(Debug)]
pub(super) enum Outcome<V> {
    /// The answer, and when its call was sent.
    Answered(Answered<V>, Tick),
    CannotTell(CannotTell),
}

/// A lookup that completes now.
struct Ending<'a, S: Source> {
    lookup: &'a Lookup<S>,
    key: &'a S::Key,
    sent_at: Tick,
    now: Tick,
}

impl<S: Source> Cache<S> {
    /// Completes a lookup, unless it was cancelled by an invalidation. Returns whether it found the key valid.
    pub(super) fn complete(
        &self,
        lookup: &Arc<Lookup<S>>,
        key: &S::Key,
        outcome: Outcome<S::Value>,
    ) -> bool {
        let now = self.clock.now();
        let mut was_known = false;
        let mut is_valid = false;
        let answered = match &outcome {
            Outcome::Answered(Answered { answer, credential }, sent_at)
                if shows_that_the_issuer_answers(answer) =>
            {
                Some((*credential, *sent_at))
            }
            _ => None,
        };
        let mut shard = self.in_flight.shard(key);
        shard.remove(key, lookup);
        if !lookup.is_complete() {
            let completion = match outcome {
                Outcome::Answered(Answered { answer, credential }, sent_at) => {
                    let ending = Ending {
                        lookup,
                        key,
                        sent_at,
                        now,
                    };
                    match answer {
                        Answer::Valid(value) => self.accept(&mut shard, &ending, value),
                        Answer::Invalid(invalid) => {
                            was_known = self.store.get(key).is_some();
                            match invalid {
                                Invalid::Definitive | Invalid::Concluded => {
                                    self.reject(&mut shard, &ending, true)
                                }
                                unconfirmed => {
                                    self.note(&mut shard, &ending, unconfirmed, credential)
                                }
                            }
                        }
                    }
                }
                Outcome::CannotTell(cannot_tell) => {
                    if let Some(cached) = self.servable(key, None, now) {
                        self.refresh_later(&cached, now);
                    }
                    Completion::CannotTell(cannot_tell)
                }
            };
            was_known &= matches!(completion, Completion::Invalid);
            is_valid = matches!(completion, Completion::Valid(_));
            lookup.complete(completion);
        }
        drop(shard);
        if was_known {
            self.source.rejected(key);
        }
        S::Telemetry::entries(self.store.len());
        let UpstreamOfCache {
            upstream,
            unconfirmed,
        } = self.at(lookup.upstream);
        match answered {
            Some((credential, sent_at)) => {
                for followed in unconfirmed.answered(credential, sent_at, now) {
                    self.follow(&followed, sent_at, now);
                }
            }
            None => {
                if let Some(keys) = unconfirmed.take_report(now) {
                    S::Telemetry::unconfirmed_invalid_answers(upstream.label(), keys);
                }
            }
        }
        is_valid
    }

    fn accept(
        &self,
        shard: &mut Shard<S>,
        ending: &Ending<'_, S>,
        value: S::Value,
    ) -> Completion<S> {
        let &Ending {
            lookup,
            key,
            sent_at,
            now,
        } = ending;
        let entry = Arc::new(Entry::new(
            value,
            key.clone(),
            lookup.mark,
            sent_at,
            lookup.began,
            self.config.lifetimes,
            now,
            Some(Arc::clone(&self.me)),
        ));
        if self.blocks.status(&entry) == BlockStatus::Invalidated {
            return Completion::Cancelled;
        }
        if entry.freshness(now) == Freshness::Expired {
            // An expired key is invalid, whatever an older entry without an expiry says.
            return self.reject(shard, ending, true);
        }
        let cached = self.store.get(key);
        if cached
            .as_ref()
            .is_none_or(|cached| cached.sent_at <= sent_at)
        {
            self.store.insert(Arc::clone(&entry));
            self.invalid_keys.remove(key);
            self.recently_valid.forget(key);
            self.at(lookup.upstream).unconfirmed.forget(key);
            if cached.is_some_and(|cached| !cached.value.has_owner_of(&entry.value)) {
                self.blocks.wake_key(key);
            }
        }
        Completion::Valid(entry)
    }

    /// The key is invalid. If that is certain, older lookups of it are cancelled.
    fn reject(
        &self,
        shard: &mut Shard<S>,
        ending: &Ending<'_, S>,
        is_certain: bool,
    ) -> Completion<S> {
        let &Ending {
            lookup,
            key,
            sent_at,
            now,
        } = ending;
        if let Some(cached) = self.store.get(key) {
            if cached.sent_at > sent_at {
                // The key was valid by a call that was sent later.
                return Completion::Cancelled;
            }
            self.store.remove(&cached);
        }
        if is_certain {
            self.recently_valid.forget(key);
            // An older call may still bring a valid answer, which must not replace this one.
            shard.cancel_sent_until(key, sent_at);
        }
        self.at(lookup.upstream).unconfirmed.forget(key);
        let certain_at = is_certain.then_some(sent_at);
        if self.invalid_keys.insert(key, lookup.began, certain_at, now) {
            // Still invalid. It does not go before new keys any more.
            self.recently_valid.forget(key);
        }
        self.blocks.reject_key(key, sent_at);
        Completion::Invalid
    }

    /// The key may be invalid.
    fn note(
        &self,
        shard: &mut Shard<S>,
        ending: &Ending<'_, S>,
        unconfirmed: Invalid,
        credential: u64,
    ) -> Completion<S> {
        let now = ending.now;
        let cannot_tell = match unconfirmed {
            Invalid::Undecided {
                is_misconfigured: true,
            } => CannotTell::misconfigured(),
            _ => CannotTell::unavailable(RETRY_AFTER),
        };
        let received = Received {
            credential,
            sent_at: ending.sent_at,
            read_at: now,
        };
        let answers = &self.at(ending.lookup.upstream).unconfirmed;
        let cached = self.servable(ending.key, None, now);
        let is_certain = match &cached {
            Some(cached) => answers.note_known(cached, received),
            None if unconfirmed == Invalid::Unconfirmed => {
                return self.reject(shard, ending, false);
            }
            None => {
                let (key, began) = (ending.key, ending.lookup.began);
                answers.note_unknown(key, began, received)
            }
        };
        if is_certain {
            return self.reject(shard, ending, true);
        }
        if let Some(cached) = &cached {
            self.refresh_later(cached, now);
        }
        Completion::CannotTell(cannot_tell)
    }

    /// The issuer answered, after an unconfirmed answer, a call that was sent at this time.
    fn follow(&self, followed: &Followed<S>, sent_at: Tick, now: Tick) {
        let (key, began, noted_at) = match followed {
            Followed::Known(entry, noted_at) => (&entry.key, entry.began, *noted_at),
            Followed::Unknown(key, began, noted_at) => (key, *began, *noted_at),
            Followed::Doubted(entry) => return entry.doubt(),
        };
        let mut shard = self.in_flight.shard(key);
        let cached = self.store.get(key);
        match (followed, &cached) {
            (Followed::Known(entry, _), Some(cached)) if Arc::ptr_eq(cached, entry) => {
                self.store.remove(cached);
            }
            // Fetched meanwhile.
            (Followed::Unknown(..), Some(cached)) if cached.sent_at <= noted_at => {
                self.store.remove(cached);
            }
            (Followed::Unknown(..), None) => {}
            // Replaced or removed meanwhile.
            _ => return,
        }
        self.recently_valid.forget(key);
        // As in `reject`.
        shard.cancel_sent_until(key, sent_at);
        // The key may have become valid since.
        self.invalid_keys.insert(key, began, Some(noted_at), now);
        self.blocks.reject_key(key, sent_at);
        drop(shard);
        if cached.is_some() {
            self.source.rejected(key);
        }
    }

    /// Caches a result of the second tier. Completes the lookup if the result will be fresh for a while. Otherwise returns it,
    /// for use if the upstream does not answer, and the lookup goes on. The age counts from `fetched_at`, when the fetch
    /// began.
    fn accept_fetched(
        &self,
        lookup: &Arc<Lookup<S>>,
        key: &S::Key,
        fetched: Fetched<S::Value>,
        fetched_at: Tick,
    ) -> Option<Arc<Entry<S>>> {
        let now = self.clock.now();
        let Fetched {
            value,
            age,
            version,
        } = fetched;
        // The clock begins when the machine boots. A result from before is not used, rather than taken for a younger one.
        let sent_at = Tick(fetched_at.0.checked_sub(nanos(age))?);
        let entry = Arc::new(Entry::new(
            value,
            key.clone(),
            lookup.mark,
            sent_at,
            lookup.began.min(version),
            self.config.lifetimes,
            now,
            Some(Arc::clone(&self.me)),
        ));
        let mut shard = self.in_flight.shard(key);
        let cached = self.store.get(key);
        let is_usable = !lookup.is_complete()
            && self.blocks.status(&entry) == BlockStatus::Clear
            // The version is the word of the second tier, and counts only against the result.
            && !self.blocks.is_invalidated_since_sent(&entry)
            && matches!(
                entry.freshness(now),
                Freshness::Fresh | Freshness::Stale | Freshness::Overdue
            )
            && !self.invalid_keys.refuse(key, sent_at, now)
            && cached
                .as_ref()
                .is_none_or(|cached| cached.sent_at < sent_at);
        if !is_usable {
            return None;
        }
        self.store.insert(Arc::clone(&entry));
        self.recently_valid.forget(key);
        if cached.is_some_and(|cached| !cached.value.has_owner_of(&entry.value)) {
            self.blocks.wake_key(key);
        }
        if entry.freshness(now) == Freshness::Fresh && !self.is_due(&entry, now) {
            shard.remove(key, lookup);
            lookup.complete(Completion::Valid(Arc::clone(&entry)));
        }
        Some(entry)
    }
}

/// Returns whether an answer shows that the endpoint and the credential work.
fn shows_that_the_issuer_answers<V>(answer: &Answer<V>) -> bool {
    matches!(
        answer,
        Answer::Valid(_) | Answer::Invalid(Invalid::Definitive)
    )
}

/// When a lookup calls the issuer.
pub(super) enum Start<S: Source> {
    Now(Admission<S>),
    /// After this time, if it is admitted then.
    After(Duration, Subject<S::Key>),
    /// If the second tier has no fresh result, and it is admitted then.
    Fetch(Subject<S::Key>),
}

/// The task of a lookup.
///
/// It is made before the task is spawned and completes the lookup when it is dropped: by a verifier that panics, or with its
/// runtime. A lookup that never completes would block its key.
pub(super) struct LookupTask<S: Source> {
    pub(super) cache: Arc<Cache<S>>,
    pub(super) lookup: Arc<Lookup<S>>,
    pub(super) key: S::Key,
    /// The cached result of a known key.
    pub(super) known: Option<Arc<Entry<S>>>,
    /// Where this node was in the updates that nodes share when the lookup began.
    pub(super) position: Option<Position>,
}

impl<S: Source> LookupTask<S> {
    pub(super) async fn run(mut self, query: S::Query, mut start: Start<S>) {
        let fetched_at = self.cache.clock.now();
        if let Start::Fetch(subject) = &mut start
            && let Some(fetched) = self.cache.source.fetch(&query, self.known.is_some()).await
        {
            let fetched = self
                .cache
                .accept_fetched(&self.lookup, &self.key, fetched, fetched_at);
            if self.lookup.is_complete() {
                S::Telemetry::entries(self.cache.store.len());
                return;
            }
            if fetched.is_some() {
                subject.priority = Priority::Known;
                self.known = fetched;
            }
        }
        let cache = &self.cache;
        let upstream = &cache.at(self.lookup.upstream).upstream;
        let verified = async {
            let admission = match start {
                Start::Now(admission) => admission,
                Start::Fetch(subject) => {
                    let admission = upstream.admit(subject, cache.clock.now())?;
                    upstream.report();
                    admission
                }
                Start::After(wait, subject) => {
                    tokio::time::sleep(wait).await;
                    let admission = upstream.admit(subject, cache.clock.now())?;
                    upstream.report();
                    admission
                }
            };
            let sent = |at| self.lookup.sent(at);
            let known = self.known.as_ref().map(|entry| &entry.value);
            upstream
                .call(&cache.source, admission, &query, known, sent)
                .await
        };
        let outcome = match tokio::time::timeout(cache.config.lookup_deadline, verified).await {
            Ok(Ok((answered, sent_at))) => Outcome::Answered(answered, sent_at),
            Ok(Err(cannot_tell)) => Outcome::CannotTell(cannot_tell),
            Err(_) => Outcome::CannotTell(CannotTell::unavailable(RETRY_AFTER)),
        };
        let stored = match (&outcome, self.position) {
            (Outcome::Answered(answered, sent_at), Some(began)) => match &answered.answer {
                Answer::Valid(value) => {
                    let age = cache.clock.now().since(*sent_at);
                    Some(cache.source.store(&query, value, age, began))
                }
                Answer::Invalid(_) => None,
            },
            _ => None,
        };
        // An answer that this node discards is not stored for others.
        if cache.complete(&self.lookup, &self.key, outcome)
            && let Some(stored) = stored
        {
            stored.await;
        }
    }
}

impl<S: Source> Drop for LookupTask<S> {
    fn drop(&mut self) {
        if !self.lookup.is_complete() {
            let outcome = Outcome::CannotTell(CannotTell::unavailable(RETRY_AFTER));
            self.cache.complete(&self.lookup, &self.key, outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::tests::cache;
    use crate::cache::{CacheResult, Target};
    use crate::kit::{Facts, TestSource, test_key};

    type Brought = fn(Tick) -> Outcome<Facts>;

    const VALID: Brought = |sent_at| answered(Answer::Valid(Facts::default()), sent_at);
    const DEFINITIVE: Brought = |sent_at| invalid(Invalid::Definitive, sent_at);
    const CONCLUDED: Brought = |sent_at| invalid(Invalid::Concluded, sent_at);
    const UNCONFIRMED: Brought = |sent_at| invalid(Invalid::Unconfirmed, sent_at);
    const UNDECIDED: Brought = |sent_at| {
        let is_misconfigured = false;
        invalid(Invalid::Undecided { is_misconfigured }, sent_at)
    };
    const CANNOT_TELL: Brought = |_| Outcome::CannotTell(CannotTell::unavailable(Duration::ZERO));

    fn answered(answer: Answer<Facts>, sent_at: Tick) -> Outcome<Facts> {
        let credential = 0;
        Outcome::Answered(Answered { answer, credential }, sent_at)
    }

    fn invalid(invalid: Invalid, sent_at: Tick) -> Outcome<Facts> {
        answered(Answer::Invalid(invalid), sent_at)
    }

    fn under(credential: u64, outcome: Outcome<Facts>) -> Outcome<Facts> {
        match outcome {
            Outcome::Answered(Answered { answer, .. }, sent_at) => {
                Outcome::Answered(Answered { answer, credential }, sent_at)
            }
            Outcome::CannotTell(_) => outcome,
        }
    }

    /// Starts a lookup of the key with this name.
    fn start(cache: &Cache<TestSource>, name: &str) -> Arc<Lookup<TestSource>> {
        let key = test_key(name);
        let version = cache.blocks.version();
        let upstream = cache.source.upstream_of(&name.to_owned()).unwrap();
        cache
            .in_flight
            .shard(&key)
            .start(&key, version, upstream, ())
    }

    /// Completes a lookup of the key with this name.
    fn complete(cache: &Cache<TestSource>, name: &str, outcome: Outcome<Facts>) {
        let lookup = start(cache, name);
        cache.complete(&lookup, &test_key(name), outcome);
    }

    #[tokio::test(start_paused = true)]
    async fn only_definitive_answers_confirm() {
        for (brought, confirms) in [
            (VALID, true),
            (DEFINITIVE, true),
            (CONCLUDED, false),
            (UNCONFIRMED, false),
            (UNDECIDED, false),
            (CANNOT_TELL, false),
        ] {
            for noted in [UNCONFIRMED, UNDECIDED] {
                let (cache, clock) = cache();
                complete(&cache, "known-key", VALID(cache.clock.now()));
                complete(&cache, "known-key", noted(cache.clock.now()));
                let key = test_key("known-key");
                assert!(cache.store.get(&key).is_some());
                clock.jump(Duration::from_nanos(1));
                let outcome = brought(cache.clock.now());
                let what = format!("{outcome:?}");
                complete(&cache, "other-key", outcome);
                assert_eq!(cache.store.get(&key).is_none(), confirms, "{what}");
                let is_rejected = cache.is_invalid(&key, cache.clock.now());
                assert_eq!(is_rejected, confirms, "{what}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn undecided_answers_reject_once_confirmed() {
        for (credential, confirms) in [(7, true), (8, false)] {
            let (cache, clock) = cache();
            complete(
                &cache,
                "unknown-key",
                under(7, UNDECIDED(cache.clock.now())),
            );
            let key = test_key("unknown-key");
            assert!(!cache.is_invalid(&key, cache.clock.now()));
            clock.jump(Duration::from_nanos(1));
            complete(
                &cache,
                "other-key",
                under(credential, VALID(cache.clock.now())),
            );
            let is_rejected = cache.is_invalid(&key, cache.clock.now());
            assert_eq!(is_rejected, confirms, "{credential}");
        }
    }

    /// A call that was sent before the key was revoked may be answered last.
    #[tokio::test(start_paused = true)]
    async fn fault_76b_an_older_call_revives_no_key() {
        for (was_known, noted) in [(true, UNCONFIRMED), (true, UNDECIDED), (false, UNDECIDED)] {
            let (cache, clock) = cache();
            let key = test_key("some-key");
            if was_known {
                complete(&cache, "some-key", VALID(cache.clock.now()));
            }
            let (older, sent_at) = (start(&cache, "some-key"), cache.clock.now());
            clock.jump(Duration::from_millis(200));
            complete(&cache, "some-key", noted(cache.clock.now()));
            clock.jump(Duration::from_millis(150));
            complete(&cache, "other-key", VALID(cache.clock.now()));
            let now = cache.clock.now();
            assert!(cache.is_invalid(&key, now), "confirmed, {was_known}");
            clock.jump(Duration::from_millis(550));
            cache.complete(&older, &key, VALID(sent_at));
            let (is_cached, now) = (cache.store.get(&key).is_some(), cache.clock.now());
            assert_eq!((is_cached, cache.is_invalid(&key, now)), (false, true));
        }
    }

    /// A key may be valid again when a call is sent after the confirming one.
    #[tokio::test(start_paused = true)]
    async fn fault_76d_a_newer_call_is_not_cancelled() {
        for (was_known, noted) in [(true, UNCONFIRMED), (true, UNDECIDED), (false, UNDECIDED)] {
            let (cache, clock) = cache();
            let key = test_key("some-key");
            if was_known {
                complete(&cache, "some-key", VALID(cache.clock.now()));
            }
            let watchers = cache.blocks.watchers();
            let watch = watchers.watch(&key);
            complete(&cache, "some-key", noted(cache.clock.now()));
            let [sent, confirming, newer] = [(); 3].map(|()| {
                clock.jump(Duration::from_millis(10));
                cache.clock.now()
            });
            let unsent = start(&cache, "some-key");
            let [older, same, newest] = [sent, confirming, newer].map(|sent_at| {
                let lookup = start(&cache, "some-key");
                lookup.sent(sent_at);
                lookup
            });
            clock.jump(Duration::from_millis(10));
            complete(&cache, "other-key", VALID(confirming));
            assert!(cache.is_invalid(&key, cache.clock.now()), "confirmed");
            let cancelled = [&older, &same, &newest, &unsent].map(|lookup| lookup.is_complete());
            assert_eq!(cancelled, [true, true, false, true]);
            cache.complete(&newest, &key, VALID(newer));
            assert!(cache.store.get(&key).is_some());
            assert!(!cache.is_invalid(&key, cache.clock.now()));
            // Streams of the older result end, and those of the newer one do not.
            assert!(watch.is_rejected_since(sent) && !watch.is_rejected_since(newer));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_its_upstream_confirms_an_answer() {
        for (other, confirms) in [("other", true), ("b/other", false)] {
            let (cache, clock) = cache();
            complete(&cache, "known", VALID(cache.clock.now()));
            complete(&cache, "known", UNCONFIRMED(cache.clock.now()));
            clock.jump(Duration::from_nanos(1));
            complete(&cache, other, VALID(cache.clock.now()));
            let is_removed = cache.store.get(&test_key("known")).is_none();
            assert_eq!(is_removed, confirms, "{other}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_found_valid_meanwhile_is_not_rejected() {
        let (cache, clock) = cache();
        complete(&cache, "some-key-1", under(7, UNDECIDED(cache.clock.now())));
        complete(&cache, "some-key-1", under(8, VALID(cache.clock.now())));
        clock.jump(Duration::from_nanos(1));
        complete(&cache, "other-key", under(7, VALID(cache.clock.now())));
        let key = test_key("some-key-1");
        assert!(cache.store.get(&key).is_some());
        assert!(!cache.is_invalid(&key, cache.clock.now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_doubted_key_is_verified_before_it_is_served() {
        let (cache, clock) = cache();
        let keys: Vec<_> = (0..20).map(|n| format!("known-key-{n}")).collect();
        let look = |cache: &Cache<TestSource>| {
            let (now, key) = (cache.clock.now(), test_key(&keys[0]));
            let cached = cache.get_fresh(&key, None, now).expect_err("not fresh");
            cache.classify(cached, &key, None, now)
        };
        for key in &keys {
            complete(&cache, key, VALID(cache.clock.now()));
        }
        clock.jump(Duration::from_secs(61));
        for key in &keys {
            complete(&cache, key, UNCONFIRMED(cache.clock.now()));
        }
        assert!(
            matches!(look(&cache), CacheResult::Serve(_)),
            "served meanwhile"
        );
        clock.jump(Duration::from_secs(10));
        complete(&cache, "other-key", VALID(cache.clock.now()));
        assert!(matches!(look(&cache), CacheResult::LookUp));
        // Verified again, and the issuer does not answer: served as before.
        complete(&cache, &keys[0], CANNOT_TELL(cache.clock.now()));
        assert!(matches!(look(&cache), CacheResult::Serve(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn recently_valid_ends_with_a_certain_answer() {
        for (brought, is_recently_valid) in [
            (VALID, false),
            (DEFINITIVE, false),
            (CONCLUDED, false),
            (UNCONFIRMED, true),
            (UNDECIDED, true),
            (CANNOT_TELL, true),
        ] {
            let (cache, _) = cache();
            let (key, now) = (test_key("once-valid"), cache.clock.now());
            cache.recently_valid.note(&key, now);
            let outcome = brought(now);
            let what = format!("{outcome:?}");
            complete(&cache, "once-valid", outcome);
            assert_eq!(
                cache.recently_valid.contains(&key, now),
                is_recently_valid,
                "{what}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeated_invalid_answer_ends_recently_valid() {
        let (cache, clock) = cache();
        let key = test_key("once-valid");
        cache.recently_valid.note(&key, cache.clock.now());
        for is_recently_valid in [true, false] {
            complete(&cache, "once-valid", UNCONFIRMED(cache.clock.now()));
            let now = cache.clock.now();
            assert!(cache.is_invalid(&key, now));
            assert_eq!(cache.recently_valid.contains(&key, now), is_recently_valid);
            clock.jump(Duration::from_secs(5));
        }
    }

    /// Whatever version the second tier says, a result is not used if its call was sent before an invalidation of it.
    #[tokio::test(start_paused = true)]
    async fn fetched_results_are_refused_by_their_age() {
        type Invalidate = fn(&Cache<TestSource>);
        let kinds: [Invalidate; 4] = [
            |cache| {
                cache.invalidate_all();
            },
            |cache| {
                cache.invalidate(Target::Key(&test_key("some-key")));
            },
            |cache| {
                cache.invalidate(Target::KeyId("id_1"));
            },
            |cache| {
                cache.invalidate(Target::Organization("org_a"));
            },
        ];
        for (nth, invalidate) in kinds.into_iter().enumerate() {
            for (age, is_used) in [(5, false), (1, true)] {
                let (cache, clock) = cache();
                clock.jump(Duration::from_secs(100));
                invalidate(&cache);
                clock.jump(Duration::from_secs(3));
                let key = test_key("some-key");
                let version = cache.blocks.version();
                let upstream = cache.source.upstream_of(&"some-key".to_owned()).unwrap();
                let mut shard = cache.in_flight.shard(&key);
                let lookup = shard.start(&key, version, upstream, ());
                drop(shard);
                let fetched = Fetched {
                    value: Facts::of("org_a", "id_1"),
                    age: Duration::from_secs(age),
                    version: u64::MAX,
                };
                let now = cache.clock.now();
                let accepted = cache.accept_fetched(&lookup, &key, fetched, now);
                assert_eq!(accepted.is_some(), is_used, "kind {nth}, {age} s");
            }
        }
    }

    /// Returns whether a result of the second tier of this age is used.
    fn uses_fetched(cache: &Cache<TestSource>, name: &str, age: Duration) -> bool {
        let (lookup, key) = (start(cache, name), test_key(name));
        let fetched = Fetched {
            value: Facts::default(),
            age,
            version: u64::MAX,
        };
        let now = cache.clock.now();
        cache.accept_fetched(&lookup, &key, fetched, now).is_some()
    }

    /// The result of another node may be from before the invalid answer, however long that is cached.
    #[tokio::test(start_paused = true)]
    async fn fault_222_a_fetched_result_revives_no_key() {
        for (brought, is_certain) in [(DEFINITIVE, true), (CONCLUDED, true), (UNCONFIRMED, false)] {
            for wait in [6, 100, 800] {
                let (cache, clock) = cache();
                complete(&cache, "some-key", brought(cache.clock.now()));
                let wait = Duration::from_secs(wait);
                clock.jump(wait);
                let key = test_key("some-key");
                assert!(!cache.is_invalid(&key, cache.clock.now()), "not cached");
                assert_eq!(uses_fetched(&cache, "some-key", wait), !is_certain);
                clock.jump(Duration::from_nanos(1));
                let is_newer_used = uses_fetched(&cache, "some-key", wait);
                assert!(is_newer_used);
            }
        }
    }

    /// An invalid answer that is confirmed after an older result was fetched.
    #[tokio::test(start_paused = true)]
    async fn fault_222_a_confirmed_answer_ends_an_older_result() {
        for (age, is_older) in [(3, true), (1, false)] {
            let (cache, clock) = cache();
            let key = test_key("some-key");
            complete(&cache, "some-key", UNDECIDED(cache.clock.now()));
            clock.jump(Duration::from_secs(2));
            assert!(uses_fetched(&cache, "some-key", Duration::from_secs(age)));
            complete(&cache, "other-key", VALID(cache.clock.now()));
            assert_eq!(cache.store.get(&key).is_none(), is_older, "{age}");
            assert_eq!(cache.is_invalid(&key, cache.clock.now()), is_older);
        }
    }

    /// The answer of another key says nothing about a key that was verified meanwhile.
    #[tokio::test(start_paused = true)]
    async fn a_newer_result_is_used_after_a_confirmation() {
        for age in [9, 7] {
            let (cache, clock) = cache();
            complete(&cache, "some-key", UNDECIDED(cache.clock.now()));
            clock.jump(Duration::from_secs(2));
            complete(&cache, "other-key", VALID(cache.clock.now()));
            clock.jump(Duration::from_secs(6));
            let is_newer = age == 7;
            assert_eq!(
                uses_fetched(&cache, "some-key", Duration::from_secs(age)),
                is_newer
            );
        }
    }

    /// The time that the second tier takes counts.
    #[tokio::test(start_paused = true)]
    async fn the_age_of_a_fetched_result_counts_from_the_request() {
        let (cache, clock) = cache();
        clock.jump(Duration::from_secs(100));
        let key = test_key("some-key");
        let upstream = cache.source.upstream_of(&"some-key".to_owned()).unwrap();
        let mut shard = cache.in_flight.shard(&key);
        let lookup = shard.start(&key, cache.blocks.version(), upstream, ());
        drop(shard);
        let fetched_at = cache.clock.now();
        clock.jump(Duration::from_secs(7));
        let fetched = Fetched {
            value: Facts::default(),
            age: Duration::from_secs(1),
            version: u64::MAX,
        };
        let entry = cache.accept_fetched(&lookup, &key, fetched, fetched_at);
        let age = cache.clock.now().since(entry.unwrap().sent_at);
        assert_eq!(age, Duration::from_secs(8));
    }
}
