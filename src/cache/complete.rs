//! Completes a lookup: what its answer changes in the cache, and what its waiters get.
//!
//! Everything here happens under the lock of the key's shard, so it comes wholly before an invalidation or wholly after it.

use std::sync::Arc;
use std::time::Duration;

use super::Cache;
use super::blocks::BlockStatus;
use super::entry::{Entry, Freshness};
use super::in_flight::{Completion, Lookup, Shard};
use super::unconfirmed::{Followed, Received};
use crate::clock::Tick;
use crate::key::{ApiKey, KeyDigest};
use crate::telemetry;
use crate::upstream::{Admission, CannotTell, Subject};
use crate::verify::{Answer, Facts, Invalid, Verification};

/// How a verification ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The answer, and when its call was sent.
    Answered(Verification, Tick),
    CannotTell(CannotTell),
}

/// A lookup that completes now.
struct Ending<'a> {
    lookup: &'a Lookup,
    digest: KeyDigest,
    sent_at: Tick,
    now: Tick,
}

impl Cache {
    /// Completes a lookup, unless it was cancelled by an invalidation.
    pub(super) fn complete(&self, lookup: &Arc<Lookup>, digest: KeyDigest, outcome: Outcome) {
        let now = self.clock.now();
        let answered = match &outcome {
            Outcome::Answered(Verification { answer, credential }, sent_at)
                if shows_that_the_issuer_answers(answer) =>
            {
                Some((*credential, *sent_at))
            }
            _ => None,
        };
        let mut shard = self.in_flight.shard(digest);
        shard.remove(digest, lookup);
        if !lookup.is_complete() {
            let completion = match outcome {
                Outcome::Answered(Verification { answer, credential }, sent_at) => {
                    let ending = Ending {
                        lookup,
                        digest,
                        sent_at,
                        now,
                    };
                    match answer {
                        Answer::Valid(facts) => self.accept(&mut shard, &ending, facts),
                        Answer::Invalid(Invalid::Definitive | Invalid::Concluded) => {
                            self.reject(&mut shard, &ending, true)
                        }
                        Answer::Invalid(unconfirmed) => {
                            self.note(&mut shard, &ending, unconfirmed, credential)
                        }
                    }
                }
                Outcome::CannotTell(cannot_tell) => {
                    if let Some(cached) = self.servable(digest, None, now) {
                        self.refresh_later(&cached, now);
                    }
                    Completion::CannotTell(cannot_tell)
                }
            };
            lookup.complete(completion);
        }
        drop(shard);
        telemetry::entries(self.upstream.component(), self.store.len());
        match answered {
            Some((credential, sent_at)) => {
                for followed in self.unconfirmed.answered(credential, sent_at, now) {
                    self.follow(&followed, now);
                }
            }
            None => {
                if let Some(keys) = self.unconfirmed.take_report(now) {
                    telemetry::unconfirmed_invalid_answers(keys);
                }
            }
        }
    }

    fn accept(&self, shard: &mut Shard, ending: &Ending<'_>, facts: Facts) -> Completion {
        let &Ending {
            lookup,
            digest,
            sent_at,
            now,
        } = ending;
        let entry = Entry::new(
            self.interner.intern(facts),
            digest,
            sent_at,
            lookup.began,
            self.settings.lifetimes,
            now,
            Some(Arc::clone(&self.me)),
        );
        let entry = Arc::new(entry.with_tail(lookup.tail));
        if self.blocks.status(&entry) == BlockStatus::Invalidated {
            return Completion::Cancelled;
        }
        if entry.freshness(now) == Freshness::Expired {
            // An expired key is invalid, whatever an older entry without an expiry says.
            return self.reject(shard, ending, true);
        }
        let cached = self.store.get(digest);
        if cached
            .as_ref()
            .is_none_or(|cached| cached.sent_at <= sent_at)
        {
            self.store.insert(Arc::clone(&entry));
            self.invalid_keys.remove(digest);
            self.recently_valid.forget(digest);
            self.unconfirmed.forget(digest);
            if cached.is_some_and(|cached| !cached.has_owner_of(&entry)) {
                self.blocks.wake_key(digest);
            }
        }
        Completion::Valid(entry)
    }

    /// The key is invalid. If that is certain, older lookups of it are cancelled.
    fn reject(&self, shard: &mut Shard, ending: &Ending<'_>, is_certain: bool) -> Completion {
        let &Ending {
            lookup,
            digest,
            sent_at,
            now,
        } = ending;
        if let Some(cached) = self.store.get(digest) {
            if cached.sent_at > sent_at {
                // The key was valid by a call that was sent later.
                return Completion::Cancelled;
            }
            self.store.remove(&cached);
        }
        if is_certain {
            self.recently_valid.forget(digest);
            // An older call may still bring a valid answer, which must not replace this one.
            shard.cancel(digest);
        }
        self.unconfirmed.forget(digest);
        self.invalid_keys.insert(digest, lookup.began, now);
        self.blocks.wake_key(digest);
        Completion::Invalid
    }

    /// The key may be invalid.
    fn note(
        &self,
        shard: &mut Shard,
        ending: &Ending<'_>,
        unconfirmed: Invalid,
        credential: u64,
    ) -> Completion {
        let now = ending.now;
        let cannot_tell = match unconfirmed {
            Invalid::Undecided {
                is_misconfigured: true,
            } => CannotTell::misconfigured(),
            _ => CannotTell::unavailable(self.settings.retry_after),
        };
        let received = Received {
            credential,
            sent_at: ending.sent_at,
            read_at: now,
        };
        let cached = self.servable(ending.digest, None, now);
        let is_certain = match &cached {
            Some(cached) => self.unconfirmed.note_known(cached, received),
            None if unconfirmed == Invalid::Unconfirmed => {
                return self.reject(shard, ending, false);
            }
            None => {
                let (digest, began) = (ending.digest, ending.lookup.began);
                self.unconfirmed.note_unknown(digest, began, received)
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

    /// The issuer answered after an unconfirmed answer.
    fn follow(&self, followed: &Followed, now: Tick) {
        let (digest, began) = match followed {
            Followed::Known(entry) => (entry.digest, entry.began),
            Followed::Unknown(digest, began) => (*digest, *began),
            Followed::Doubted(entry) => return entry.doubt(),
        };
        let _shard = self.in_flight.shard(digest);
        match (followed, self.store.get(digest)) {
            (Followed::Known(entry), Some(cached)) if Arc::ptr_eq(&cached, entry) => {
                self.store.remove(entry);
            }
            (Followed::Unknown(..), None) => {}
            // Replaced or removed meanwhile.
            _ => return,
        }
        self.recently_valid.forget(digest);
        self.invalid_keys.insert(digest, began, now);
        self.blocks.wake_key(digest);
    }
}

/// Returns whether an answer shows that the endpoint and the credential work.
fn shows_that_the_issuer_answers(answer: &Answer) -> bool {
    matches!(
        answer,
        Answer::Valid(_) | Answer::Invalid(Invalid::Definitive)
    )
}

/// When a lookup calls the issuer.
pub(super) enum Start {
    Now(Admission),
    /// After this time, if it is admitted then.
    After(Duration, Subject),
}

/// The task of a lookup.
///
/// It is made before the task is spawned and completes the lookup when it is dropped: by a verifier that panics, or with its
/// runtime. A lookup that never completes would block its key.
pub(super) struct LookupTask {
    pub(super) cache: Arc<Cache>,
    pub(super) lookup: Arc<Lookup>,
    pub(super) digest: KeyDigest,
}

impl LookupTask {
    pub(super) async fn run(self, key: ApiKey, start: Start) {
        let cache = &self.cache;
        let verified = async {
            let admission = match start {
                Start::Now(admission) => admission,
                Start::After(wait, subject) => {
                    tokio::time::sleep(wait).await;
                    cache.upstream.admit(subject, cache.clock.now())?
                }
            };
            let sent = |at| self.lookup.sent(at);
            cache.upstream.verify(admission, &key, sent).await
        };
        let outcome = match tokio::time::timeout(cache.settings.flight_deadline, verified).await {
            Ok(Ok((verification, sent_at))) => Outcome::Answered(verification, sent_at),
            Ok(Err(cannot_tell)) => Outcome::CannotTell(cannot_tell),
            Err(_) => Outcome::CannotTell(CannotTell::unavailable(cache.settings.retry_after)),
        };
        cache.complete(&self.lookup, self.digest, outcome);
    }
}

impl Drop for LookupTask {
    fn drop(&mut self) {
        if !self.lookup.is_complete() {
            let retry_after = self.cache.settings.retry_after;
            let outcome = Outcome::CannotTell(CannotTell::unavailable(retry_after));
            self.cache.complete(&self.lookup, self.digest, outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheResult;
    use crate::cache::tests::cache;

    type Brought = fn(Tick) -> Outcome;

    const VALID: Brought =
        |sent_at| Outcome::Answered(Verification::valid(Facts::default()), sent_at);
    const DEFINITIVE: Brought = |sent_at| invalid(Invalid::Definitive, sent_at);
    const CONCLUDED: Brought = |sent_at| invalid(Invalid::Concluded, sent_at);
    const UNCONFIRMED: Brought = |sent_at| invalid(Invalid::Unconfirmed, sent_at);
    const UNDECIDED: Brought = |sent_at| {
        let is_misconfigured = false;
        invalid(Invalid::Undecided { is_misconfigured }, sent_at)
    };
    const CANNOT_TELL: Brought = |_| Outcome::CannotTell(CannotTell::unavailable(Duration::ZERO));

    fn invalid(invalid: Invalid, sent_at: Tick) -> Outcome {
        Outcome::Answered(Verification::invalid_as(invalid), sent_at)
    }

    fn under(credential: u64, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Answered(verification, sent_at) => {
                Outcome::Answered(verification.with_credential(credential), sent_at)
            }
            Outcome::CannotTell(_) => outcome,
        }
    }

    fn complete(cache: &Cache, secret: &str, outcome: Outcome) {
        let digest = cache.digest(secret);
        let version = cache.blocks.version();
        let lookup = cache.in_flight.shard(digest).start(digest, version, None);
        cache.complete(&lookup, digest, outcome);
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
                let digest = cache.digest("known-key");
                assert!(cache.store.get(digest).is_some());
                clock.jump(Duration::from_nanos(1));
                let outcome = brought(cache.clock.now());
                let what = format!("{outcome:?}");
                complete(&cache, "other-key", outcome);
                assert_eq!(cache.store.get(digest).is_none(), confirms, "{what}");
                let is_rejected = cache.is_invalid(digest, cache.clock.now());
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
            let digest = cache.digest("unknown-key");
            assert!(!cache.is_invalid(digest, cache.clock.now()));
            clock.jump(Duration::from_nanos(1));
            complete(
                &cache,
                "other-key",
                under(credential, VALID(cache.clock.now())),
            );
            let is_rejected = cache.is_invalid(digest, cache.clock.now());
            assert_eq!(is_rejected, confirms, "{credential}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_found_valid_meanwhile_is_not_rejected() {
        let (cache, clock) = cache();
        complete(&cache, "some-key-1", under(7, UNDECIDED(cache.clock.now())));
        complete(&cache, "some-key-1", under(8, VALID(cache.clock.now())));
        clock.jump(Duration::from_nanos(1));
        complete(&cache, "other-key", under(7, VALID(cache.clock.now())));
        let digest = cache.digest("some-key-1");
        assert!(cache.store.get(digest).is_some());
        assert!(!cache.is_invalid(digest, cache.clock.now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_doubted_key_is_verified_before_it_is_served() {
        let (cache, clock) = cache();
        let keys: Vec<_> = (0..20).map(|n| format!("known-key-{n}")).collect();
        let look = |cache: &Cache| {
            let (now, digest) = (cache.clock.now(), cache.digest(&keys[0]));
            let cached = cache.get_fresh(digest, None, now).expect_err("not fresh");
            cache.classify(cached, keys[0].as_bytes(), digest, None, now)
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
            let (digest, now) = (cache.digest("once-valid"), cache.clock.now());
            cache.recently_valid.note(digest, now);
            let outcome = brought(now);
            let what = format!("{outcome:?}");
            complete(&cache, "once-valid", outcome);
            assert_eq!(
                cache.recently_valid.contains(digest, now),
                is_recently_valid,
                "{what}"
            );
        }
    }
}
