//! The plain model: which outcomes of a request are permitted, after all that has happened.
//!
//! It has no tables, versions, lookups or tasks. It reads the history and applies the published rules:
//!
//! * What is served is what the issuer said about this very secret in one call, and its age counts from that call.
//! * Nothing is served past the hard TTL, or past twice the soft TTL unless the verification failed.
//! * Nothing from before a block or an invalidation is served after it, and nothing at all during a block.
//! * An invalid answer ends what an earlier call said. It is remembered for 5 to 60 s, and an invalidation ends it.
//! * "Cannot tell" is never 401, never ends what is cached, and needs a reason.
//! * The reasons of a known or recently valid key are a failure of its own, a 429, and failures of such keys: never a failure
//!   of an unknown key, and never replies about another key that make no sense.

use std::time::Duration;

use crate::circuits::{Circuit, Counting};
use crate::history::{Answer, Call, Details, History, Kind, Moment, Update};
use crate::world::{STRICT, Secret, Target};

/// The bounds that the model believes in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// How long a result may be served while verifications succeed.
    pub(crate) stale: Duration,
    /// How long a result may be served at all.
    pub(crate) hard: Duration,
    /// Which failures open a circuit.
    pub(crate) counting: Counting,
}

/// What a handler received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served {
    pub(crate) when: Moment,
    pub(crate) details: Details,
    pub(crate) sent_at: Duration,
    pub(crate) is_stale: bool,
}

/// A request and its outcome.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) secret: Secret,
    pub(crate) strict: Option<usize>,
    pub(crate) begun: Moment,
    pub(crate) ended: Moment,
    pub(crate) status: u16,
    pub(crate) served: Option<Served>,
    pub(crate) way: Way,
}

/// Whether nothing stood between a request and the issuer when it began. `false` if requests overlapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) is_open_for_known: bool,
    pub(crate) is_open_for_unknown: bool,
}

/// Which circuit the lookups of a key belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The key is known or recently valid.
    Known,
    Unknown,
    /// The history does not show whether the layer remembers the key.
    Either,
}

/// A pause after a 429 lasts up to 60 s, and then the rate rises again in some eight steps of a second.
const THROTTLED: Duration = Duration::from_secs(75);
/// After a failure the breaker may be open for 60 s, and a pause may last as long.
const TROUBLE: Duration = Duration::from_secs(75);
/// A key whose replies make no sense is not verified for up to 60 s, and a known one for a twelfth of the soft TTL more.
const BACKOFF: Duration = Duration::from_secs(62);
/// The longest lifetime of a lookup.
const LOOKUP: Duration = Duration::from_secs(10);
/// The longest wait of a caller.
const CALLER: Duration = Duration::from_millis(2_500);
/// How long an invalid key is remembered at first, and at last.
const INVALID: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// How long a key is remembered as recently valid.
const RECENTLY_VALID: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) struct Oracle<'a> {
    pub(crate) history: &'a History,
    pub(crate) bounds: Bounds,
    pub(crate) soft: Duration,
}

/// Permitted, or a complaint.
type Verdict = Result<(), String>;

fn ensure(holds: bool, otherwise: &str) -> Verdict {
    holds.then_some(()).ok_or_else(|| otherwise.to_owned())
}

impl Call {
    fn answer_before(&self, seq: u64) -> Option<(Moment, Answer)> {
        self.over.filter(|(when, _)| when.seq < seq)
    }

    fn valid_before(&self, seq: u64) -> Option<Details> {
        match self.answer_before(seq) {
            Some((_, Answer::Valid(details))) => Some(details),
            _ => None,
        }
    }
}

impl Oracle<'_> {
    /// Checks the outcome of a request.
    pub(crate) fn check(&self, seen: &Seen) -> Verdict {
        self.must(seen)?;
        match (seen.status, &seen.served) {
            (200, Some(served)) => self.may_serve(seen, served),
            (403, None) => self.may_find_no_organization(seen),
            (401, None) => self.may_reject(seen),
            (503, None) => self.may_not_tell(seen),
            _ => Err("no such outcome".to_owned()),
        }
    }

    /// Checks whether the circuits are closed.
    pub(crate) fn check_circuits(&self, known_is_closed: bool, unknown_is_closed: bool) -> Verdict {
        let check = |circuit: &Circuit, is_closed: bool, name: &str| {
            let what = "without enough failures in a row";
            ensure(
                is_closed || circuit.may_be_open(),
                &format!("the circuit of {name} keys is open {what}"),
            )?;
            let what = "though enough keys failed in a row";
            ensure(
                !is_closed || !circuit.must_be_open(),
                &format!("the circuit of {name} keys is closed {what}"),
            )
        };
        let circuits = &self.history.circuits;
        check(&circuits.known, known_is_closed, "known")?;
        check(&circuits.unknown, unknown_is_closed, "unknown")
    }

    fn may_serve(&self, seen: &Seen, served: &Served) -> Verdict {
        let calls = self.history.calls_of(seen.secret);
        let details = served.details;
        ensure(details.org.is_some(), "served without an organization")?;
        let said = |call: &&Call| {
            call.sent.at == served.sent_at && call.valid_before(served.when.seq) == Some(details)
        };
        let Some(call) = calls.iter().rfind(said) else {
            return Err("served what the issuer did not say about this key".to_owned());
        };
        let age = served.when.at - call.sent.at;
        ensure(age < self.bounds.hard, "served past the hard TTL")?;
        if let Some(strict) = seen.strict {
            ensure(
                call.sent.at + STRICT[strict] >= seen.begun.at,
                "served a result older than max_age",
            )?;
        }
        ensure(
            !self.is_invalidated(seen.secret, details, call.sent.seq, served.when.seq),
            "served a result from before a block or an invalidation",
        )?;
        ensure(
            !self.is_blocked(seen.secret, details, served.when.seq),
            "served while blocked",
        )?;
        let is_ended = calls.iter().any(|other| {
            other.sent.at > call.sent.at
                && matches!(
                    other.answer_before(seen.begun.seq),
                    Some((_, Answer::Invalid))
                )
        });
        ensure(!is_ended, "served in spite of a later invalid answer")?;
        ensure(
            served.is_stale || age < self.soft,
            "an old result is called fresh",
        )?;
        ensure(
            !served.is_stale || age >= self.soft * 85 / 100,
            "a young result is called stale",
        )?;
        if age >= self.bounds.stale {
            ensure(
                self.is_trouble(seen),
                "served past twice the soft TTL, though the issuer answers",
            )?;
            let later = |call: &&Call| call.sent.at > served.sent_at;
            let is_answered = self.called_during(seen).filter(later).any(|call| {
                let answer = call.answer_before(seen.ended.seq);
                answer.is_some_and(|(_, answer)| answer.is_definitive())
            });
            ensure(
                !is_answered,
                "served an old result, though the issuer gave this very request a younger answer",
            )?;
        }
        Ok(())
    }

    fn may_find_no_organization(&self, seen: &Seen) -> Verdict {
        let said = self.history.calls_of(seen.secret).iter().filter(|call| {
            call.valid_before(seen.ended.seq)
                .is_some_and(|details| details.org.is_none())
        });
        let youngest = said.map(|call| seen.ended.at - call.sent.at).min();
        ensure(
            youngest.is_some(),
            "403, though the issuer names an organization",
        )?;
        ensure(
            youngest < Some(self.bounds.hard),
            "served past the hard TTL, if only with 403",
        )
    }

    fn may_reject(&self, seen: &Seen) -> Verdict {
        let secret = seen.secret;
        let calls = self.history.calls_of(secret);
        let was_ever_valid = calls
            .iter()
            .filter_map(|call| call.valid_before(seen.ended.seq));
        let is_blocked = was_ever_valid
            .chain([Details {
                org: None,
                key: u8::MAX,
                scopes: 0,
            }])
            .any(|details| {
                self.is_blocked(secret, details, seen.begun.seq)
                    || self.is_updated(Kind::Block, secret, details, seen.begun.seq, seen.ended.seq)
            });
        if is_blocked {
            return Ok(());
        }
        let lasts = self.longest_invalid(seen);
        let is_invalid = calls.iter().any(|call| {
            let Some((over, answer)) = call.answer_before(seen.ended.seq) else {
                return false;
            };
            let at_once = answer == Answer::Invalid
                || (answer == Answer::Unconfirmed && self.may_be_unknown(secret, call));
            let later = (answer == Answer::Unconfirmed)
                .then(|| self.confirmed(secret, over, seen.ended))
                .flatten();
            let mut noted = at_once.then_some(over).into_iter().chain(later);
            noted.any(|noted| {
                noted.seq > seen.begun.seq
                    || (seen.begun.at - noted.at < lasts
                        && !self.is_invalid_void(secret, call, noted, seen.begun))
            })
        });
        ensure(
            is_invalid,
            "401, though the issuer said no such thing, or too long ago",
        )
    }

    fn may_not_tell(&self, seen: &Seen) -> Verdict {
        if seen.strict.is_none()
            && let Some(held) = self.must_hold(seen.secret, seen.begun)
        {
            let is_servable = self.must_hold(seen.secret, seen.ended).is_some()
                && seen.ended.at - held.sent.at < self.bounds.hard;
            ensure(!is_servable, "503 for a known key")?;
        }
        ensure(
            self.is_trouble(seen) || self.waited_through_an_update(seen),
            "503, though the issuer answers",
        )?;
        ensure(
            !self.is_way_open(seen)
                || self.backs_off(seen)
                || self.called_during(seen).next().is_some(),
            "503 without a call, though the way was open",
        )
    }

    /// Checks what has only one permitted outcome.
    fn must(&self, seen: &Seen) -> Verdict {
        if seen.strict.is_some() {
            return Ok(());
        }
        let Some(held) = self.must_hold(seen.secret, seen.begun) else {
            return self.must_remember_an_invalid_key(seen);
        };
        let Some(details) = held.valid_before(seen.begun.seq) else {
            return Ok(());
        };
        if self.is_blocked(seen.secret, details, seen.begun.seq) {
            return ensure(seen.status == 401, "blocked, and not rejected");
        }
        let age = seen.begun.at - held.sent.at;
        if age < self.soft * 170 / 100 {
            let status = if details.org.is_some() { 200 } else { 403 };
            ensure(seen.status == status, "a known key was not served")?;
            ensure(seen.ended.at == seen.begun.at, "a hit had to wait")?;
            let is_newest = seen
                .served
                .is_none_or(|served| served.sent_at == held.sent.at);
            ensure(is_newest, "served another result than the youngest")?;
        } else if age >= self.soft * 2 && age < self.bounds.hard && self.is_way_open(seen) {
            ensure(
                self.called_during(seen).next().is_some() || self.is_trouble(seen),
                "an overdue result was not verified",
            )?;
        }
        Ok(())
    }

    /// For its first five seconds an invalid key costs no call.
    fn must_remember_an_invalid_key(&self, seen: &Seen) -> Verdict {
        let calls = self.history.calls_of(seen.secret);
        let Some(last) = calls.iter().max_by_key(|call| call.sent) else {
            return Ok(());
        };
        let Some((noted, Answer::Invalid)) = last.answer_before(seen.begun.seq) else {
            return Ok(());
        };
        let others_are_over = calls
            .iter()
            .all(|call| call.answer_before(noted.seq + 1).is_some());
        let is_void = self.is_invalid_void(seen.secret, last, noted, seen.begun)
            || self.is_cancelled(seen.secret, last);
        if !others_are_over || is_void || seen.begun.at - noted.at >= INVALID.0 {
            return Ok(());
        }
        ensure(
            seen.status == 401,
            "an invalid key of a moment ago is forgotten",
        )?;
        ensure(
            seen.ended.at == seen.begun.at,
            "a remembered invalid key had to wait",
        )
    }

    /// Returns the call whose result the layer must still have, if it is not too old.
    pub(crate) fn must_hold(&self, secret: Secret, when: Moment) -> Option<&Call> {
        let calls = self.history.calls_of(secret);
        let held = calls
            .iter()
            .filter(|call| call.valid_before(when.seq).is_some())
            .max_by_key(|call| call.sent)?;
        let details = held.valid_before(when.seq)?;
        let is_no = |answer| matches!(answer, Answer::Invalid | Answer::Unconfirmed);
        let is_overtaken = calls.iter().any(|call| {
            call.sent > held.sent
                && call.sent < when
                && call.over.is_some_and(|(_, answer)| is_no(answer))
        });
        let is_in_doubt = calls.iter().any(|call| {
            let over = call.over.filter(|(_, answer)| is_no(*answer));
            over.is_some_and(|(over, _)| over > held.sent && over < when)
        });
        let is_gone = when.at - held.sent.at >= self.bounds.hard
            || self.is_invalidated(secret, details, held.sent.seq, when.seq)
            || self.is_cancelled(secret, held)
            || is_overtaken
            || is_in_doubt;
        (!is_gone).then_some(held)
    }

    /// Returns which circuit the lookups of a request belong to.
    pub(crate) fn side(&self, seen: &Seen) -> Side {
        let calls = self.history.calls_of(seen.secret);
        let was_valid = |call: &&Call| call.valid_before(seen.ended.seq).is_some();
        if !calls.iter().any(|call| was_valid(&call)) {
            return Side::Unknown;
        }
        let is_remembered = calls.iter().any(|call| {
            let is_invalid_since = |other: &Call| {
                let over = other.answer_before(seen.ended.seq);
                over.is_some_and(|(over, answer)| {
                    matches!(answer, Answer::Invalid | Answer::Unconfirmed) && over > call.sent
                })
            };
            call.valid_before(seen.begun.seq).is_some()
                && seen.ended.at - call.sent.at < RECENTLY_VALID
                && !self.is_cancelled(seen.secret, call)
                && !calls.iter().any(is_invalid_since)
        });
        if is_remembered {
            Side::Known
        } else {
            Side::Either
        }
    }

    /// Returns whether a block or an invalidation may have come between the beginning of a call's lookup and the call: then
    /// its answer counts for nothing, and the history does not show it. A lookup calls at once, at the same instant, unless
    /// there is trouble.
    fn is_cancelled(&self, secret: Secret, call: &Call) -> bool {
        let delay = if self.is_trouble_at(call.sent) {
            LOOKUP
        } else {
            Duration::ZERO
        };
        let until = call.over.map_or(u64::MAX, |(over, _)| over.seq);
        self.history.updates.iter().any(|update| {
            update.kind != Kind::Unblock
                && update.when.at + delay >= call.sent.at
                && update.when.seq < until
                && (matches!(update.target, Target::All | Target::Id(_) | Target::Org(_))
                    || update.target == Target::Secret(secret))
        })
    }

    fn is_invalidated(&self, secret: Secret, details: Details, after: u64, before: u64) -> bool {
        self.is_updated(Kind::Block, secret, details, after, before)
            || self.is_updated(Kind::Invalidate, secret, details, after, before)
    }

    fn is_updated(
        &self,
        kind: Kind,
        secret: Secret,
        details: Details,
        after: u64,
        before: u64,
    ) -> bool {
        self.history.updates.iter().any(|update| {
            update.kind == kind
                && (after + 1..before).contains(&update.when.seq)
                && is_about(update.target, secret, details)
        })
    }

    fn is_blocked(&self, secret: Secret, details: Details, seq: u64) -> bool {
        let mut blocked = Vec::new();
        let earlier = |update: &&Update| update.when.seq < seq;
        for update in self.history.updates.iter().filter(earlier) {
            match update.kind {
                Kind::Block => blocked.push(update.target),
                Kind::Unblock => blocked.retain(|target| *target != update.target),
                Kind::Invalidate => {}
            }
        }
        blocked
            .into_iter()
            .any(|target| is_about(target, secret, details))
    }

    /// Returns the calls for the key that were in flight at some time of the request.
    fn called_during<'a>(&'a self, seen: &'a Seen) -> impl Iterator<Item = &'a Call> {
        self.history
            .calls_of(seen.secret)
            .iter()
            .filter(|call| call.sent.seq < seen.ended.seq)
            .filter(|call| call.answer_before(seen.begun.seq).is_none())
    }

    /// Returns whether a request has a reason to go without a definitive answer of the issuer.
    fn is_trouble(&self, seen: &Seen) -> bool {
        // A known key is not verified again for a twelfth of the soft TTL after a lookup that failed or was rejected.
        let since = seen.begun.at.saturating_sub(self.soft / 12);
        let circuits = &self.history.circuits;
        let may_be_open = |circuit: &Circuit| circuit.may_be_open_within(since, seen.ended);
        let is_circuit_open = match self.side(seen) {
            Side::Known => may_be_open(&circuits.known),
            Side::Unknown => may_be_open(&circuits.unknown),
            Side::Either => may_be_open(&circuits.known) || may_be_open(&circuits.unknown),
        };
        is_circuit_open || self.failed_since(seen, since) || self.backs_off(seen) || {
            let since = seen.begun.at.saturating_sub(THROTTLED);
            let mut throttled = self.history.throttled.iter().rev();
            throttled.any(|when| when.at >= since && *when < seen.ended)
        }
    }

    /// Returns whether a call for the key itself brought no definitive answer.
    fn failed_since(&self, seen: &Seen, since: Duration) -> bool {
        self.history.calls_of(seen.secret).iter().any(|call| {
            let over = call.answer_before(seen.ended.seq);
            over.is_some_and(|(over, answer)| over.at >= since && !answer.is_definitive())
        })
    }

    /// Returns whether the replies about the key itself make no sense.
    fn backs_off(&self, seen: &Seen) -> bool {
        let since = seen.begun.at.saturating_sub(BACKOFF);
        self.history.calls_of(seen.secret).iter().any(|call| {
            let over = call.answer_before(seen.ended.seq);
            over.is_some_and(|(over, answer)| over.at >= since && answer == Answer::InvalidResponse)
        })
    }

    fn is_way_open(&self, seen: &Seen) -> bool {
        let Way {
            is_open_for_known,
            is_open_for_unknown,
        } = seen.way;
        match self.side(seen) {
            Side::Known => is_open_for_known,
            Side::Unknown => is_open_for_unknown,
            Side::Either => is_open_for_known && is_open_for_unknown,
        }
    }

    /// Returns whether a lookup may not have called at once.
    fn is_trouble_at(&self, moment: Moment) -> bool {
        let mut failures = self.history.failures.iter();
        failures.any(|when| *when < moment && moment.at - when.at <= TROUBLE)
    }

    /// Returns whether a request waited for the whole caller deadline because its key was invalidated meanwhile.
    fn waited_through_an_update(&self, seen: &Seen) -> bool {
        let during = |when: &Moment| (seen.begun.seq..seen.ended.seq).contains(&when.seq);
        seen.ended.at - seen.begun.at >= CALLER
            && (self.history.jumps.iter().any(|(jump, _)| during(jump))
                || self
                    .history
                    .updates
                    .iter()
                    .any(|update| during(&update.when)))
    }

    /// Returns whether an unconfirmed answer may have met an unknown key, which it rejects at once.
    fn may_be_unknown(&self, secret: Secret, call: &Call) -> bool {
        self.must_hold(secret, call.sent).is_none()
    }

    /// Returns when an unconfirmed answer was confirmed: by an answer to a later call, about any key.
    fn confirmed(&self, secret: Secret, noted: Moment, before: Moment) -> Option<Moment> {
        let is_renewed = |until: Moment| {
            self.history.calls_of(secret).iter().any(|call| {
                matches!(call.over, Some((over, Answer::Valid(_))) if over > noted && over < until)
            })
        };
        let every_call = self.history.calls.values().flatten();
        let every_call = every_call.chain(&self.history.crowd_calls);
        every_call
            .filter(|call| call.sent.at > noted.at)
            .filter_map(|call| call.answer_before(before.seq))
            .filter(|(_, answer)| answer.is_definitive())
            .map(|(over, _)| over)
            .filter(|over| !is_renewed(*over))
            .max()
    }

    /// Returns whether an invalid answer counts no more: invalidated, or overtaken by a valid one.
    fn is_invalid_void(&self, secret: Secret, call: &Call, noted: Moment, now: Moment) -> bool {
        let is_invalidated = self.history.updates.iter().any(|update| {
            update.kind != Kind::Unblock
                && update.when > noted
                && update.when < now
                && [Target::Secret(secret), Target::All].contains(&update.target)
        });
        let is_overtaken = self.history.calls_of(secret).iter().any(|other| {
            other.sent > call.sent
                && matches!(other.answer_before(now.seq), Some((over, Answer::Valid(_))) if over > noted)
        });
        is_invalidated || is_overtaken
    }

    /// Returns five seconds, doubled for every invalid answer since the last valid one.
    fn longest_invalid(&self, seen: &Seen) -> Duration {
        // By when they were sent: a valid answer that a later call's invalid one has overtaken ends nothing.
        let calls = self.history.calls_of(seen.secret).iter();
        let last_valid = calls
            .clone()
            .filter(|call| call.valid_before(seen.begun.seq).is_some())
            .map(|call| call.sent)
            .max();
        let invalid = calls
            .filter(|call| {
                let answer = call.answer_before(seen.begun.seq);
                matches!(answer, Some((_, Answer::Invalid | Answer::Unconfirmed)))
            })
            .filter(|call| last_valid.is_none_or(|last_valid| call.sent > last_valid))
            .count();
        let doublings = u32::try_from(invalid.saturating_sub(1)).unwrap_or(u32::MAX);
        INVALID
            .0
            .saturating_mul(1 << doublings.min(4))
            .min(INVALID.1)
    }
}

fn is_about(target: Target, secret: Secret, details: Details) -> bool {
    match target {
        Target::Secret(other) => other == secret,
        Target::Id(key) => key == details.key,
        Target::Org(org) => Some(org) == details.org,
        Target::All => true,
    }
}
