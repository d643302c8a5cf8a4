//! What is remembered of keys, and how an answer is had for one that is not.
//!
//! ```text
//! look ─┬ fresh ──────────────────────────────▶ served
//!       ├ stale ─ (one refresh behind it) ────▶ served
//!       ├ refused, blocked, expired ──────────▶ refused
//!       └ overdue, unknown ─ settle ─ flight ─┬─ yes ─▶ served
//!                                             ├─ no ──▶ refused
//!                                             └─ cannot tell ─▶ served if still held, else 503
//! ```
//!
//! * [`store`] holds the good keys, [`refusals`] the refused ones: two caches, so that junk cannot push out the good.
//!   [`former`] remembers which keys were good, without their facts.
//! * [`rules`] are blocks and fences. Every way that facts can take passes them: at the look-up, at the landing of a
//!   flight, and once more when a waiter takes what landed.
//! * [`flight`] is the single flight. [`suspects`] weighs refusals that may have meant something else.
//!
//! Nothing here judges: organization and scopes are the guards' business, on every request anew.

mod entry;
mod flight;
mod former;
mod handle;
mod refusals;
mod rules;
mod stats;
mod store;
mod suspects;

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use self::entry::Freshness;
pub(crate) use self::entry::{Entry, Lifetimes};
use self::flight::{Flight, Flights, Landing, Shard};
use self::former::Former;
pub use self::handle::{ApiKeyHandle, Stats};
use self::refusals::Refusals;
pub use self::rules::BlockListFull;
use self::rules::{Rules, Ruling};
use self::stats::Counters;
pub(crate) use self::stats::Found;
use self::store::Store;
use self::suspects::Suspects;
use crate::clock::{Clock, Tick};
use crate::config::Settings;
use crate::key::{ApiKey, DigestSecret, KeyDigest};
use crate::telemetry;
use crate::upstream::{Asker, CannotTell, Ticket, Upstream};
use crate::verify::{Answer, Facts, Refusal};

/// What a layer and its clones remember.
#[derive(Debug)]
pub(crate) struct Cache {
    me: Weak<Self>,
    pub(crate) clock: Clock,
    secret: DigestSecret,
    settings: Settings,
    store: Store,
    refusals: Refusals,
    former: Arc<Former>,
    rules: Rules,
    flights: Flights,
    suspects: Suspects,
    upstream: Upstream,
    counters: Counters,
    coalesced: AtomicU64,
}

/// What a look-up finds.
#[derive(Debug)]
pub(crate) enum Look {
    /// Facts to serve now.
    Serve(Arc<Entry>),
    /// Facts to serve now, while this caller begins a refresh.
    ServeAndRefresh(Arc<Entry>),
    /// A no.
    Refused,
    /// Nothing that may be served without asking first.
    Ask,
}

/// How a question was settled.
#[derive(Debug)]
pub(crate) enum Settled {
    Serve(Arc<Entry>, Tick),
    Refused,
    CannotTell(CannotTell),
}

/// A question to settle: whose key, and how old an answer may be.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) key: ApiKey,
    pub(crate) digest: KeyDigest,
    /// Only facts from a call sent at this time or later will do.
    pub(crate) oldest: Option<Tick>,
    pub(crate) peer: Option<u64>,
}

impl Cache {
    pub(crate) fn new(
        settings: Settings,
        clock: Clock,
        secret: DigestSecret,
        upstream: Upstream,
    ) -> Arc<Self> {
        let former = Arc::new(Former::new(settings.capacity));
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            clock,
            secret,
            store: Store::new(
                settings.capacity,
                settings.lifetimes.hard,
                Arc::clone(&former),
            ),
            refusals: Refusals::new((settings.capacity / 10).max(1)),
            former,
            rules: Rules::default(),
            flights: Flights::default(),
            suspects: Suspects::default(),
            upstream,
            counters: Counters::default(),
            coalesced: AtomicU64::new(0),
            settings,
        })
    }

    pub(crate) fn digest(&self, key: &str) -> KeyDigest {
        self.secret.digest(key)
    }

    /// What is held of a key, by an answer no older than `oldest`.
    pub(crate) fn look(&self, digest: KeyDigest, oldest: Option<Tick>, now: Tick) -> Look {
        let (look, found) = match self.store.get(digest, now) {
            Some(entry) => self.look_at(entry, oldest, now),
            None if self.stands_refused(digest, now) => (Look::Refused, Found::Refusal),
            None => (Look::Ask, Found::Nothing),
        };
        self.counters.count(found);
        telemetry::looked_up(found);
        look
    }

    fn look_at(&self, entry: Arc<Entry>, oldest: Option<Tick>, now: Tick) -> (Look, Found) {
        match self.rules.on(&entry) {
            Ruling::Clear => {}
            Ruling::Blocked => return (Look::Refused, Found::Refusal),
            Ruling::Fenced => {
                self.retire(&entry);
                return (Look::Ask, Found::Nothing);
            }
        }
        match entry.freshness(now) {
            Freshness::Expired => {
                self.store.remove(&entry);
                self.refusals.note(entry.digest, entry.began, now);
                (Look::Refused, Found::Refusal)
            }
            Freshness::Gone => {
                self.retire(&entry);
                (Look::Ask, Found::Nothing)
            }
            _ if oldest.is_some_and(|oldest| entry.sent_at < oldest) => (Look::Ask, Found::Nothing),
            Freshness::Fresh => (Look::Serve(entry), Found::Fresh),
            Freshness::Stale
                if entry.claim_refresh(now, now.after(self.settings.flight_deadline)) =>
            {
                (Look::ServeAndRefresh(entry), Found::Stale)
            }
            Freshness::Stale => (Look::Serve(entry), Found::Stale),
            Freshness::Overdue => (Look::Ask, Found::Nothing),
        }
    }

    /// Whether the key is refused from memory, or blocked without being known.
    fn stands_refused(&self, digest: KeyDigest, now: Tick) -> bool {
        self.refusals
            .standing(digest, now)
            .is_some_and(|refused| !self.rules.is_all_fenced_since(refused.began))
            || self.rules.is_key_blocked(digest)
    }

    /// Lets facts go that may not be served any more, and remembers that their key was good.
    fn retire(&self, entry: &Arc<Entry>) {
        self.store.remove(entry);
        self.former.note(entry.digest, entry.sent_at);
    }

    /// Facts about the key that may still be served if the issuer does not answer.
    fn held(&self, digest: KeyDigest, oldest: Option<Tick>, now: Tick) -> Option<Arc<Entry>> {
        let entry = self.store.get(digest, now)?;
        let may_serve = self.rules.on(&entry) == Ruling::Clear
            && !matches!(entry.freshness(now), Freshness::Expired | Freshness::Gone)
            && oldest.is_none_or(|oldest| entry.sent_at >= oldest);
        may_serve.then_some(entry)
    }

    /// Begins a refresh behind a request that is served already.
    pub(crate) fn refresh(self: &Arc<Self>, key: ApiKey, entry: &Arc<Entry>) {
        let question = Question {
            digest: entry.digest,
            key,
            oldest: None,
            peer: None,
        };
        if self.board(&question, true).is_err() {
            self.refresh_later(entry, self.clock.now());
        }
    }

    fn refresh_later(&self, entry: &Entry, now: Tick) {
        entry.refresh_after(now.after(self.settings.lifetimes.soft / 12));
    }

    /// Asks the issuer, together with whoever else asks about the key, and waits for the answer no longer than a caller
    /// waits.
    pub(crate) async fn settle(self: Arc<Self>, question: Question) -> Settled {
        let deadline = tokio::time::Instant::now() + self.settings.caller_deadline;
        let cannot_tell = loop {
            let flight = match self.board(&question, false) {
                Ok(flight) => flight,
                Err(cannot_tell) => break cannot_tell,
            };
            let Ok(landing) = tokio::time::timeout_at(deadline, flight.landed()).await else {
                break CannotTell::unavailable(self.settings.retry_after);
            };
            match landing {
                Landing::Yes(entry) => {
                    let now = self.clock.now();
                    match (self.rules.on(&entry), entry.freshness(now)) {
                        (Ruling::Blocked, _) | (_, Freshness::Expired) => return Settled::Refused,
                        (Ruling::Clear, Freshness::Fresh | Freshness::Stale) => {
                            return Settled::Serve(entry, now);
                        }
                        // Invalidated between the landing and this look, or slept over.
                        _ => {}
                    }
                }
                Landing::No if !self.rules.is_all_fenced_since(flight.began) => {
                    return Settled::Refused;
                }
                Landing::CannotTell(cannot_tell) => break cannot_tell,
                Landing::No | Landing::Grounded => {}
            }
            if self.rules.is_key_blocked(question.digest) {
                return Settled::Refused;
            }
        };
        let now = self.clock.now();
        match self.held(question.digest, question.oldest, now) {
            Some(entry) => Settled::Serve(entry, now),
            None if self.rules.is_key_blocked(question.digest) => Settled::Refused,
            None => Settled::CannotTell(cannot_tell),
        }
    }

    /// The flight that will answer the question: one under way, or a new one if the issuer may be asked.
    fn board(
        self: &Arc<Self>,
        question: &Question,
        in_background: bool,
    ) -> Result<Arc<Flight>, CannotTell> {
        let digest = question.digest;
        let mut shard = self.flights.shard(digest);
        if let Some(flight) = shard.boarding(digest, question.oldest) {
            self.coalesced.fetch_add(1, Ordering::Relaxed);
            return Ok(flight);
        }
        let now = self.clock.now();
        let asker = match self.held(digest, None, now) {
            Some(_) => Asker::Known { in_background },
            None if self.former.knows(digest, now) => Asker::Former,
            None => Asker::Stranger {
                peer: question.peer,
            },
        };
        let ticket = self.upstream.ticket(asker, now)?;
        // Read before the call is sent: whatever is decreed from here on condemns what the call brings.
        let flight = shard.start(digest, self.rules.version());
        drop(shard);
        let task = fly(
            Arc::clone(self),
            Arc::clone(&flight),
            question.key.clone(),
            digest,
            ticket,
        );
        tokio::spawn(task);
        Ok(flight)
    }

    /// Writes down what a flight brought, unless it was grounded, and tells its waiters.
    fn land(&self, flight: &Arc<Flight>, digest: KeyDigest, outcome: Outcome) {
        let now = self.clock.now();
        let confirms = match &outcome {
            Outcome::Yes(_, sent_at) | Outcome::No(Refusal::Definitive, sent_at) => Some(*sent_at),
            Outcome::No(Refusal::Unconfirmed, _) | Outcome::CannotTell(_) => None,
        };
        let mut shard = self.flights.shard(digest);
        shard.remove(digest, flight);
        if !flight.has_landed() {
            let landing = match outcome {
                Outcome::Yes(facts, sent_at) => self.accept(flight, digest, facts, sent_at, now),
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
        telemetry::entries(self.store.len());
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
        refusal: Refusal,
        sent_at: Tick,
        now: Tick,
    ) -> Landing {
        if refusal == Refusal::Unconfirmed
            && let Some(held) = self.held(digest, None, now)
        {
            self.refresh_later(&held, now);
            if self.suspects.add(&held, now) {
                telemetry::refusals_not_believed();
            }
            return Landing::CannotTell(CannotTell::unavailable(self.settings.retry_after));
        }
        if let Some(held) = self.store.get(digest, now) {
            if held.sent_at > sent_at {
                // A yes to a younger question has overtaken this no.
                return Landing::Grounded;
            }
            self.store.remove(&held);
        }
        if refusal == Refusal::Definitive {
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
        flight: &Flight,
        digest: KeyDigest,
        facts: Facts,
        sent_at: Tick,
        now: Tick,
    ) -> Landing {
        let entry = Entry::new(
            facts,
            digest,
            sent_at,
            flight.began,
            self.settings.lifetimes,
            now,
            self.me.clone(),
        );
        let entry = Arc::new(entry);
        if self.rules.on(&entry) == Ruling::Fenced {
            return Landing::Grounded;
        }
        if entry.freshness(now) == Freshness::Expired {
            self.refusals.note(digest, flight.began, now);
            return Landing::No;
        }
        let is_newest = self
            .store
            .get(digest, now)
            .is_none_or(|held| held.sent_at <= sent_at);
        if is_newest {
            self.store.insert(Arc::clone(&entry));
            self.refusals.forget(digest);
            self.former.forget(digest);
        }
        Landing::Yes(entry)
    }

    /// Forgets whatever is held of a key or on its way, all at once.
    fn forget(&self, digest: KeyDigest) {
        let mut shard = self.flights.shard(digest);
        shard.ground(digest);
        if let Some(entry) = self.store.get(digest, self.clock.now()) {
            self.retire(&entry);
        }
        self.refusals.forget(digest);
    }

    /// Waits until the entry's key may not be served any more.
    pub(crate) async fn ended(self: Arc<Self>, mut entry: Arc<Entry>) {
        /// Timers stop while the machine sleeps and our clock does not, so the clock is read every so often.
        const AT_LEAST_EVERY: Duration = Duration::from_secs(10);

        loop {
            // Enrolled before the look, so that no change between the two is missed.
            let mut changed = pin!(self.rules.changed());
            changed.as_mut().enable();
            let now = self.clock.now();
            // A refresh has brought younger facts: it is their end that counts, if they are about the same caller.
            if let Some(held) = self.held(entry.digest, None, now)
                && held.facts.org == entry.facts.org
                && held.facts.user == entry.facts.user
            {
                entry = held;
            }
            let is_over = self.rules.on(&entry) != Ruling::Clear
                || matches!(entry.freshness(now), Freshness::Expired | Freshness::Gone)
                || self.stands_refused(entry.digest, now);
            if is_over {
                return;
            }
            let wait = entry.hard_until().since(now).min(AT_LEAST_EVERY);
            // Woken or not, the loop looks again.
            drop(tokio::time::timeout(wait, changed).await);
        }
    }

    /// A doubt about a known key was confirmed.
    fn give_up(&self, entry: &Arc<Entry>, now: Tick) {
        let _shard = self.flights.shard(entry.digest);
        let is_current = self
            .store
            .get(entry.digest, now)
            .is_some_and(|held| Arc::ptr_eq(&held, entry));
        if is_current {
            self.store.remove(entry);
            self.refusals.note(entry.digest, entry.began, now);
            self.rules.wake();
        }
    }
}

/// What a verification came to, and when its call was sent.
#[derive(Debug)]
enum Outcome {
    Yes(Facts, Tick),
    No(Refusal, Tick),
    CannotTell(CannotTell),
}

/// One flight, on its own task.
async fn fly(
    cache: Arc<Cache>,
    flight: Arc<Flight>,
    key: ApiKey,
    digest: KeyDigest,
    ticket: Ticket,
) {
    /// Lands the flight if its task ends early: a verifier that panics, a runtime that shuts down.
    struct Landed<'a> {
        cache: &'a Cache,
        flight: &'a Arc<Flight>,
        digest: KeyDigest,
    }

    impl Drop for Landed<'_> {
        fn drop(&mut self) {
            if !self.flight.has_landed() {
                let retry_after = self.cache.settings.retry_after;
                let outcome = Outcome::CannotTell(CannotTell::unavailable(retry_after));
                self.cache.land(self.flight, self.digest, outcome);
            }
        }
    }

    let landed = Landed {
        cache: &cache,
        flight: &flight,
        digest,
    };
    let asked = cache.upstream.ask(ticket, &key, |at| flight.sent(at));
    let outcome = match tokio::time::timeout(cache.settings.flight_deadline, asked).await {
        Ok(Ok((Answer::Valid(facts), sent_at))) => Outcome::Yes(facts, sent_at),
        Ok(Ok((Answer::Refused(refusal), sent_at))) => Outcome::No(refusal, sent_at),
        Ok(Err(cannot_tell)) => Outcome::CannotTell(cannot_tell),
        Err(_) => Outcome::CannotTell(CannotTell::unavailable(cache.settings.retry_after)),
    };
    cache.land(&flight, digest, outcome);
    drop(landed);
}
