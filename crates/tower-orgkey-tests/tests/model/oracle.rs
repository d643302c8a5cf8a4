//! The plain model: which outcomes of a request are permitted, after all that has happened.
//!
//! It knows no tables, versions, flights or tasks. It reads the history and applies the published rules:
//!
//! * What is served is what the issuer said of this very secret in one call, and how old it is counts from that call.
//! * Nothing is served past the hard TTL; nor past twice the soft TTL, unless the issuer gave no answer.
//! * Nothing from before a block or an invalidation is served after it, and nothing at all during a block.
//! * A no ends what an earlier call said. It is remembered 5 to 60 s, and an invalidation ends it.
//! * "Cannot tell" is never 401, never ends what is held, and needs a reason.

use std::time::Duration;

use crate::history::{Answer, Call, Facts, History, Kind, Moment};
use crate::world::{STRICT, Secret, Target};

/// The bounds that the model believes in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// How long facts may be served when the issuer answers.
    pub(crate) stale: Duration,
    /// How long facts may be served at all.
    pub(crate) hard: Duration,
}

/// What a handler was given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served {
    pub(crate) when: Moment,
    pub(crate) facts: Facts,
    pub(crate) sent_at: Duration,
    pub(crate) is_stale: bool,
}

/// A request and what came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) secret: Secret,
    pub(crate) strict: Option<usize>,
    pub(crate) begun: Moment,
    pub(crate) ended: Moment,
    pub(crate) status: u16,
    pub(crate) served: Option<Served>,
    /// Whether nothing stood between us and the issuer when it began; unknown for requests that overlap with others.
    pub(crate) way_was_open: bool,
}

/// After a failure the breaker may be open for 60 s, a pause after a 429 lasts as long, and then the rate rises again in
/// some eight steps of a second.
const TROUBLE: Duration = Duration::from_secs(75);
/// A flight lives no longer.
const FLIGHT: Duration = Duration::from_secs(10);
/// A caller waits no longer.
const CALLER: Duration = Duration::from_millis(2_500);
/// How long a refusal is remembered at first, and at last.
const REFUSAL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

pub(crate) struct Oracle<'a> {
    pub(crate) history: &'a History,
    pub(crate) bounds: Bounds,
    pub(crate) soft: Duration,
}

type Verdict = Result<(), String>;

fn ensure(holds: bool, otherwise: &str) -> Verdict {
    holds.then_some(()).ok_or_else(|| otherwise.to_owned())
}

impl Call {
    fn answer_before(&self, seq: u64) -> Option<(Moment, Answer)> {
        self.over.filter(|(when, _)| when.seq < seq)
    }

    fn said_yes_before(&self, seq: u64) -> Option<Facts> {
        match self.answer_before(seq) {
            Some((_, Answer::Yes(facts))) => Some(facts),
            _ => None,
        }
    }
}

impl Oracle<'_> {
    pub(crate) fn judge(&self, seen: &Seen) -> Verdict {
        self.must(seen)?;
        match (seen.status, &seen.served) {
            (200, Some(served)) => self.may_serve(seen, served),
            (403, None) => self.may_find_no_organization(seen),
            (401, None) => self.may_refuse(seen),
            (503, None) => self.may_not_tell(seen),
            _ => Err("no such outcome".to_owned()),
        }
    }

    fn may_serve(&self, seen: &Seen, served: &Served) -> Verdict {
        let calls = self.history.calls_of(seen.secret);
        let facts = served.facts;
        ensure(facts.org.is_some(), "served without an organization")?;
        let said = |call: &&Call| {
            call.sent.at == served.sent_at && call.said_yes_before(served.when.seq) == Some(facts)
        };
        let Some(call) = calls.iter().rfind(said) else {
            return Err("served what the issuer did not say of this key".to_owned());
        };
        let age = served.when.at - call.sent.at;
        ensure(age < self.bounds.hard, "served past the hard TTL")?;
        if let Some(strict) = seen.strict {
            ensure(
                call.sent.at + STRICT[strict] >= seen.begun.at,
                "served facts older than max_age",
            )?;
        }
        ensure(
            !self.is_decreed(seen.secret, facts, call.sent.seq, served.when.seq),
            "served facts from before a block or an invalidation",
        )?;
        ensure(
            !self.is_blocked(seen.secret, facts, served.when.seq),
            "served while blocked",
        )?;
        let is_ended_by_a_no = calls.iter().any(|other| {
            other.sent.at > call.sent.at
                && matches!(other.answer_before(seen.begun.seq), Some((_, Answer::No)))
        });
        ensure(!is_ended_by_a_no, "served in spite of a later no")?;
        ensure(
            served.is_stale || age < self.soft,
            "old facts are called fresh",
        )?;
        ensure(
            !served.is_stale || age >= self.soft * 85 / 100,
            "young facts are called stale",
        )?;
        if age >= self.bounds.stale {
            ensure(
                self.is_trouble(seen),
                "served past twice the soft TTL, though the issuer answers",
            )?;
            let later = |call: &&Call| call.sent.at > served.sent_at;
            let is_answered = self.asked_during(seen).filter(later).any(|call| {
                matches!(call.answer_before(seen.ended.seq), Some((_, answer)) if matches!(answer, Answer::Yes(_) | Answer::No))
            });
            ensure(
                !is_answered,
                "served old facts, though the issuer gave this very request a younger answer",
            )?;
        }
        Ok(())
    }

    fn may_find_no_organization(&self, seen: &Seen) -> Verdict {
        let said = self.history.calls_of(seen.secret).iter().filter(|call| {
            call.said_yes_before(seen.ended.seq)
                .is_some_and(|facts| facts.org.is_none())
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

    fn may_refuse(&self, seen: &Seen) -> Verdict {
        let secret = seen.secret;
        let calls = self.history.calls_of(secret);
        let was_ever_yes = calls
            .iter()
            .filter_map(|call| call.said_yes_before(seen.ended.seq));
        let is_blocked = was_ever_yes
            .chain([Facts {
                org: None,
                key: u8::MAX,
                scopes: 0,
            }])
            .any(|facts| {
                self.is_blocked(secret, facts, seen.begun.seq)
                    || self.is_decreed_as(
                        Kind::Block,
                        secret,
                        facts,
                        seen.begun.seq,
                        seen.ended.seq,
                    )
            });
        if is_blocked {
            return Ok(());
        }
        let lasts = self.longest_refusal(seen);
        let is_refused = calls.iter().any(|call| {
            let Some((over, answer)) = call.answer_before(seen.ended.seq) else {
                return false;
            };
            let at_once = answer == Answer::No
                || (answer == Answer::Doubtful && self.may_be_unknown(secret, call));
            let later = (answer == Answer::Doubtful)
                .then(|| self.confirmed(secret, over, seen.ended))
                .flatten();
            let mut noted = at_once.then_some(over).into_iter().chain(later);
            noted.any(|noted| {
                noted.seq > seen.begun.seq
                    || (seen.begun.at - noted.at < lasts
                        && !self.is_refusal_void(secret, call, noted, seen.begun))
            })
        });
        ensure(
            is_refused,
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
            self.is_trouble(seen) || self.waited_through_a_change(seen),
            "503, though the issuer answers",
        )?;
        ensure(
            !seen.way_was_open || self.asked_during(seen).next().is_some(),
            "503 without asking, though the way was open",
        )
    }

    /// What there is only one answer to.
    fn must(&self, seen: &Seen) -> Verdict {
        if seen.strict.is_some() {
            return Ok(());
        }
        let Some(held) = self.must_hold(seen.secret, seen.begun) else {
            return self.must_remember_a_no(seen);
        };
        let Some(facts) = held.said_yes_before(seen.begun.seq) else {
            return Ok(());
        };
        if self.is_blocked(seen.secret, facts, seen.begun.seq) {
            return ensure(seen.status == 401, "blocked, and not refused");
        }
        let age = seen.begun.at - held.sent.at;
        if age < self.soft * 170 / 100 {
            let status = if facts.org.is_some() { 200 } else { 403 };
            ensure(seen.status == status, "a known key was not served")?;
            ensure(seen.ended.at == seen.begun.at, "a hit had to wait")?;
            let is_newest = seen
                .served
                .is_none_or(|served| served.sent_at == held.sent.at);
            ensure(is_newest, "served other facts than the youngest")?;
        } else if seen.way_was_open && age >= self.soft * 2 && age < self.bounds.hard {
            ensure(
                self.asked_during(seen).next().is_some(),
                "overdue facts, and nobody asked",
            )?;
        }
        Ok(())
    }

    /// In its first five seconds a refusal costs no call.
    fn must_remember_a_no(&self, seen: &Seen) -> Verdict {
        let calls = self.history.calls_of(seen.secret);
        let Some(last) = calls.iter().max_by_key(|call| call.sent) else {
            return Ok(());
        };
        let Some((noted, Answer::No)) = last.answer_before(seen.begun.seq) else {
            return Ok(());
        };
        let others_are_over = calls
            .iter()
            .all(|call| call.answer_before(noted.seq + 1).is_some());
        let is_void = self.is_refusal_void(seen.secret, last, noted, seen.begun)
            || self.is_grounded(seen.secret, last);
        if !others_are_over || is_void || seen.begun.at - noted.at >= REFUSAL.0 {
            return Ok(());
        }
        ensure(seen.status == 401, "a refusal of a moment ago is forgotten")?;
        ensure(
            seen.ended.at == seen.begun.at,
            "a remembered refusal had to wait",
        )
    }

    /// The call whose facts the layer must still have, if they are not too old.
    fn must_hold(&self, secret: Secret, when: Moment) -> Option<&Call> {
        let calls = self.history.calls_of(secret);
        let held = calls
            .iter()
            .filter(|call| call.said_yes_before(when.seq).is_some())
            .max_by_key(|call| call.sent)?;
        let facts = held.said_yes_before(when.seq)?;
        let is_overtaken = calls.iter().any(|call| {
            call.sent > held.sent
                && call.sent < when
                && matches!(call.over, Some((_, Answer::No | Answer::Doubtful)))
        });
        let is_in_doubt = calls.iter().any(|call| {
            matches!(call.over, Some((over, Answer::No | Answer::Doubtful)) if over > held.sent && over < when)
        });
        let is_gone = when.at - held.sent.at >= self.bounds.hard
            || self.is_decreed(secret, facts, held.sent.seq, when.seq)
            || self.is_grounded(secret, held)
            || is_overtaken
            || is_in_doubt;
        (!is_gone).then_some(held)
    }

    /// Whether a decree may have come between the beginning of a call's flight and the call: then its answer counts for
    /// nothing, and the history does not tell. A flight calls at once, at the same instant, unless there is trouble.
    fn is_grounded(&self, secret: Secret, call: &Call) -> bool {
        let delay = if self.is_trouble_at(call.sent) {
            FLIGHT
        } else {
            Duration::ZERO
        };
        let until = call.over.map_or(u64::MAX, |(over, _)| over.seq);
        self.history.decrees.iter().any(|decree| {
            decree.kind != Kind::Unblock
                && decree.when.at + delay >= call.sent.at
                && decree.when.seq < until
                && (matches!(decree.target, Target::All | Target::Id(_) | Target::Org(_))
                    || decree.target == Target::Secret(secret))
        })
    }

    fn is_decreed(&self, secret: Secret, facts: Facts, after: u64, before: u64) -> bool {
        self.is_decreed_as(Kind::Block, secret, facts, after, before)
            || self.is_decreed_as(Kind::Invalidate, secret, facts, after, before)
    }

    fn is_decreed_as(
        &self,
        kind: Kind,
        secret: Secret,
        facts: Facts,
        after: u64,
        before: u64,
    ) -> bool {
        self.history.decrees.iter().any(|decree| {
            decree.kind == kind
                && (after + 1..before).contains(&decree.when.seq)
                && is_about(decree.target, secret, facts)
        })
    }

    fn is_blocked(&self, secret: Secret, facts: Facts, seq: u64) -> bool {
        let mut blocked = Vec::new();
        let earlier = |decree: &&crate::history::Decree| decree.when.seq < seq;
        for decree in self.history.decrees.iter().filter(earlier) {
            match decree.kind {
                Kind::Block => blocked.push(decree.target),
                Kind::Unblock => blocked.retain(|target| *target != decree.target),
                Kind::Invalidate => {}
            }
        }
        blocked
            .into_iter()
            .any(|target| is_about(target, secret, facts))
    }

    /// Calls about the key that were under way at some time of the request.
    fn asked_during<'a>(&'a self, seen: &'a Seen) -> impl Iterator<Item = &'a Call> {
        self.history
            .calls_of(seen.secret)
            .iter()
            .filter(|call| call.sent.seq < seen.ended.seq)
            .filter(|call| call.answer_before(seen.begun.seq).is_none())
    }

    /// Whether something may keep us from an answer of the issuer that counts.
    fn is_trouble(&self, seen: &Seen) -> bool {
        let failed_meanwhile = self.history.ends.iter().any(|(when, is_answered)| {
            !is_answered && (seen.begun.seq..seen.ended.seq).contains(&when.seq)
        });
        let is_probing = || {
            let last = self
                .history
                .ends
                .iter()
                .rfind(|(when, _)| *when < seen.begun);
            matches!(last, Some((_, false)))
        };
        let is_in_doubt = self
            .asked_during(seen)
            .any(|call| matches!(call.over, Some((_, Answer::Doubtful))));
        failed_meanwhile || is_in_doubt || self.is_trouble_at(seen.begun) || is_probing()
    }

    fn is_trouble_at(&self, moment: Moment) -> bool {
        self.history.ends.iter().any(|(when, is_answered)| {
            !is_answered && *when < moment && moment.at - when.at <= TROUBLE
        })
    }

    /// Whether a caller used up its patience because it had to ask more than once.
    fn waited_through_a_change(&self, seen: &Seen) -> bool {
        let during = |when: &Moment| (seen.begun.seq..seen.ended.seq).contains(&when.seq);
        seen.ended.at - seen.begun.at >= CALLER
            && (self.history.jumps.iter().any(|(jump, _)| during(jump))
                || self
                    .history
                    .decrees
                    .iter()
                    .any(|decree| during(&decree.when)))
    }

    /// Whether a doubtful refusal may have met a key that was not known, against which it is enough.
    fn may_be_unknown(&self, secret: Secret, call: &Call) -> bool {
        self.must_hold(secret, call.sent).is_none()
    }

    /// When a doubtful refusal was confirmed by an answer to a later call, about whichever key.
    fn confirmed(&self, secret: Secret, doubt: Moment, before: Moment) -> Option<Moment> {
        let renewed = |until: Moment| {
            self.history.calls_of(secret).iter().any(|call| {
                matches!(call.over, Some((over, Answer::Yes(_))) if over > doubt && over < until)
            })
        };
        let every_call = self.history.calls.values().flatten();
        let every_call = every_call.chain(&self.history.crowd_calls);
        every_call
            .filter(|call| call.sent.at > doubt.at)
            .filter_map(|call| match call.answer_before(before.seq)? {
                (over, Answer::Yes(_) | Answer::No) => Some(over),
                _ => None,
            })
            .filter(|over| over.at - doubt.at <= Duration::from_secs(60) && !renewed(*over))
            .max()
    }

    /// Whether a refusal counts no more: invalidated, or overtaken by a yes.
    fn is_refusal_void(&self, secret: Secret, call: &Call, noted: Moment, now: Moment) -> bool {
        let is_invalidated = self.history.decrees.iter().any(|decree| {
            decree.kind != Kind::Unblock
                && decree.when > noted
                && decree.when < now
                && [Target::Secret(secret), Target::All].contains(&decree.target)
        });
        let is_overtaken = self.history.calls_of(secret).iter().any(|other| {
            other.sent > call.sent
                && matches!(other.answer_before(now.seq), Some((over, Answer::Yes(_))) if over > noted)
        });
        is_invalidated || is_overtaken
    }

    /// Five seconds, doubled for every refusal since the last yes.
    fn longest_refusal(&self, seen: &Seen) -> Duration {
        // By when they were sent: a yes that a later question's no has overtaken ends nothing.
        let calls = self.history.calls_of(seen.secret).iter();
        let last_yes = calls
            .clone()
            .filter(|call| call.said_yes_before(seen.begun.seq).is_some())
            .map(|call| call.sent)
            .max();
        let refusals = calls
            .filter(|call| {
                let answer = call.answer_before(seen.begun.seq);
                matches!(answer, Some((_, Answer::No | Answer::Doubtful)))
            })
            .filter(|call| last_yes.is_none_or(|last_yes| call.sent > last_yes))
            .count();
        let doublings = u32::try_from(refusals.saturating_sub(1)).unwrap_or(u32::MAX);
        REFUSAL
            .0
            .saturating_mul(1 << doublings.min(4))
            .min(REFUSAL.1)
    }
}

fn is_about(target: Target, secret: Secret, facts: Facts) -> bool {
    match target {
        Target::Secret(other) => other == secret,
        Target::Id(key) => key == facts.key,
        Target::Org(org) => Some(org) == facts.org,
        Target::All => true,
    }
}
