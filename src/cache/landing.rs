//! What a flight brings, and what of it is written down.
//!
//! Everything here happens under the lock of the key's shard, so it comes wholly before an invalidation or wholly after.

use std::sync::Arc;

use super::Cache;
use super::entry::{Entry, Freshness};
use super::flight::{Flight, Landing, Shard};
use super::rules::Ruling;
use crate::clock::Tick;
use crate::key::{ApiKey, KeyDigest};
use crate::telemetry;
use crate::upstream::{CannotTell, Ticket};
use crate::verify::{Answer, Facts, Invalid};

/// What a verification came to, and when its call was sent.
#[derive(Debug)]
pub(super) enum Outcome {
    Yes(Facts, Tick),
    No(Invalid, Tick),
    CannotTell(CannotTell),
}

impl Cache {
    /// Writes down what a flight brought, unless it was grounded, and tells its waiters.
    pub(super) fn land(&self, flight: &Arc<Flight>, digest: KeyDigest, outcome: Outcome) {
        let now = self.clock.now();
        let confirms = match &outcome {
            Outcome::Yes(_, sent_at) | Outcome::No(Invalid::Definitive, sent_at) => Some(*sent_at),
            Outcome::No(_, _) | Outcome::CannotTell(_) => None,
        };
        let mut shard = self.flights.shard(digest);
        shard.remove(digest, flight);
        if !flight.has_landed() {
            let landing = match outcome {
                Outcome::Yes(facts, sent_at) => {
                    self.accept(&mut shard, flight, digest, facts, sent_at, now)
                }
                Outcome::No(refusal, sent_at) => {
                    self.refuse(&mut shard, flight, digest, refusal, sent_at, now)
                }
                Outcome::CannotTell(cannot_tell) => {
                    if let Some(held) = self.held(digest, None, now) {
                        self.refresh_later(&held, now);
                    }
                    Landing::CannotTell(cannot_tell)
                }
            };
            flight.land(landing);
        }
        drop(shard);
        telemetry::entries(self.upstream.voice(), self.store.len());
        for entry in confirms
            .into_iter()
            .flat_map(|sent_at| self.suspects.confirm(sent_at, now))
        {
            self.give_up(&entry, now);
        }
    }

    fn refuse(
        &self,
        shard: &mut Shard,
        flight: &Flight,
        digest: KeyDigest,
        refusal: Invalid,
        sent_at: Tick,
        now: Tick,
    ) -> Landing {
        if matches!(refusal, Invalid::Unconfirmed | Invalid::Undecided { .. })
            && let Some(held) = self.held(digest, None, now)
        {
            self.refresh_later(&held, now);
            if self.suspects.add(&held, now) {
                telemetry::refusals_not_believed();
            }
            return Landing::CannotTell(CannotTell::unavailable(self.settings.retry_after));
        }
        if let Invalid::Undecided { is_misconfigured } = refusal {
            return Landing::CannotTell(CannotTell {
                is_misconfigured,
                ..CannotTell::unavailable(self.settings.retry_after)
            });
        }
        if let Some(held) = self.store.get(digest) {
            if held.sent_at > sent_at {
                // A yes to a younger question has overtaken this no.
                return Landing::Grounded;
            }
            self.store.remove(&held);
        }
        if refusal != Invalid::Unconfirmed {
            self.former.forget(digest);
            // A yes to an older question may still be on its way, and must not overtake this no.
            shard.ground(digest);
        }
        self.refusals.note(digest, flight.began, now);
        self.rules.wake();
        Landing::No
    }

    fn accept(
        &self,
        shard: &mut Shard,
        flight: &Flight,
        digest: KeyDigest,
        facts: Facts,
        sent_at: Tick,
        now: Tick,
    ) -> Landing {
        let entry = Entry::new(
            self.shared.share(facts),
            digest,
            sent_at,
            flight.began,
            self.settings.lifetimes,
            now,
            self.me.clone(),
        );
        let entry = Arc::new(entry.with_tail(flight.tail));
        if self.rules.on(&entry) == Ruling::Fenced {
            return Landing::Grounded;
        }
        if entry.freshness(now) == Freshness::Expired {
            // A key that is over is as good as refused, older facts that knew of no end included.
            return self.refuse(shard, flight, digest, Invalid::Definitive, sent_at, now);
        }
        let held = self.store.get(digest);
        if held.as_ref().is_none_or(|held| held.sent_at <= sent_at) {
            self.store.insert(Arc::clone(&entry));
            self.refusals.forget(digest);
            self.former.forget(digest);
            if held.is_some_and(|held| !held.has_owner_of(&entry)) {
                self.rules.wake();
            }
        }
        Landing::Yes(entry)
    }

    /// A doubt about a known key was confirmed.
    fn give_up(&self, entry: &Arc<Entry>, now: Tick) {
        let _shard = self.flights.shard(entry.digest);
        let is_current = self
            .store
            .get(entry.digest)
            .is_some_and(|held| Arc::ptr_eq(&held, entry));
        if is_current {
            self.store.remove(entry);
            self.refusals.note(entry.digest, entry.began, now);
            self.rules.wake();
        }
    }
}

/// A flight under way, on a task of its own.
///
/// Made before its task is, and lands the flight however the task ends: by a verifier that panics, or with its runtime, and
/// be that before its first turn. A flight that nobody lands would take in all later callers of its key, and answer none.
pub(super) struct Airborne {
    pub(super) cache: Arc<Cache>,
    pub(super) flight: Arc<Flight>,
    pub(super) digest: KeyDigest,
}

impl Airborne {
    pub(super) async fn fly(self, key: ApiKey, ticket: Ticket) {
        let cache = &self.cache;
        let asked = cache.upstream.ask(ticket, &key, |at| self.flight.sent(at));
        let outcome = match tokio::time::timeout(cache.settings.flight_deadline, asked).await {
            Ok(Ok((verified, sent_at))) => match verified.answer {
                Answer::Valid(facts) => Outcome::Yes(facts, sent_at),
                Answer::Invalid(invalid) => Outcome::No(invalid, sent_at),
            },
            Ok(Err(cannot_tell)) => Outcome::CannotTell(cannot_tell),
            Err(_) => Outcome::CannotTell(CannotTell::unavailable(cache.settings.retry_after)),
        };
        cache.land(&self.flight, self.digest, outcome);
    }
}

impl Drop for Airborne {
    fn drop(&mut self) {
        if !self.flight.has_landed() {
            let retry_after = self.cache.settings.retry_after;
            let outcome = Outcome::CannotTell(CannotTell::unavailable(retry_after));
            self.cache.land(&self.flight, self.digest, outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cache::tests::cache;

    type Brought = fn(Tick) -> Outcome;

    const YES: Brought = |sent_at| Outcome::Yes(Facts::default(), sent_at);
    const DEFINITIVE: Brought = |sent_at| Outcome::No(Invalid::Definitive, sent_at);
    const CONCLUDED: Brought = |sent_at| Outcome::No(Invalid::Concluded, sent_at);
    const UNCONFIRMED: Brought = |sent_at| Outcome::No(Invalid::Unconfirmed, sent_at);
    const CANNOT_TELL: Brought = |_| Outcome::CannotTell(CannotTell::unavailable(Duration::ZERO));

    fn land(cache: &Cache, secret: &str, outcome: Outcome) {
        let digest = cache.digest(secret);
        let version = cache.rules.version();
        let flight = cache.flights.shard(digest).start(digest, version, None);
        cache.land(&flight, digest, outcome);
    }

    #[tokio::test(start_paused = true)]
    async fn a_doubt_about_a_known_key_is_confirmed_by_an_answer_to_a_later_call_about_another() {
        for (brought, confirms) in [
            (YES, true),
            (DEFINITIVE, true),
            // Shows that we may ask, not that the endpoint answers questions.
            (CONCLUDED, false),
            (UNCONFIRMED, false),
            (CANNOT_TELL, false),
        ] {
            let (cache, clock) = cache();
            land(&cache, "known-key", YES(cache.clock.now()));
            land(&cache, "known-key", UNCONFIRMED(cache.clock.now()));
            let digest = cache.digest("known-key");
            assert!(cache.store.get(digest).is_some());
            clock.jump(Duration::from_nanos(1));
            let outcome = brought(cache.clock.now());
            let what = format!("{outcome:?}");
            land(&cache, "other-key", outcome);
            assert_eq!(cache.store.get(digest).is_none(), confirms, "{what}");
            let is_refused = cache.stands_refused(digest, cache.clock.now());
            assert_eq!(is_refused, confirms, "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_former_key_is_one_until_the_issuer_says_of_the_key_itself_what_it_is_now() {
        for (brought, is_former) in [
            (YES, false),
            (DEFINITIVE, false),
            (CONCLUDED, false),
            (UNCONFIRMED, true),
            (CANNOT_TELL, true),
        ] {
            let (cache, _) = cache();
            let (digest, now) = (cache.digest("former-key"), cache.clock.now());
            cache.former.note(digest, now);
            let outcome = brought(now);
            let what = format!("{outcome:?}");
            land(&cache, "former-key", outcome);
            assert_eq!(cache.former.knows(digest, now), is_former, "{what}");
        }
    }
}
