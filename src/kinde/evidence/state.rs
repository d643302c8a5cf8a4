//! The answers of verify and the probe, and the decision about a 401 or 403. No I/O; the caller passes in the time.

use std::time::Duration;

use http::status::StatusCode;

use crate::clock::Tick;
use crate::identifier::KeyId;
use crate::kinde::token::{RenewalBackoff, TokenId};

/// The time for which a 200 from verify counts as recent.
pub(super) const RECENT: Duration = Duration::from_secs(60);
/// The time between probes while the probe is unusable.
pub(super) const NO_PROBES: Duration = Duration::from_secs(15 * 60);

/// A position in the order in which calls were sent and replies were read.
///
/// Drawn under the lock, so two events never share one, as they can share a clock tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::kinde) struct Seq(u64);

/// A 401 or 403 from verify.
#[derive(Clone, Copy, Debug)]
pub(in crate::kinde) struct Unauthorized {
    pub(in crate::kinde) status: StatusCode,
    /// The token that verify was called with.
    pub(in crate::kinde) token: TokenId,
    /// When the reply was read.
    pub(in crate::kinde) read: Seq,
    /// Whether an earlier result of the key is still cached.
    pub(in crate::kinde) is_known: bool,
    /// Whether this answers the one retry, made with a newer token.
    pub(in crate::kinde) is_retry: bool,
}

/// The decision about a 401 or 403.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kinde) enum Decision {
    /// The key is invalid.
    Invalid,
    /// Retry with a renewed token. Where there is none, undecided.
    Renew { is_misconfigured: bool },
    /// The evidence does not show whether the answer is about the key or about the token.
    Undecided { is_misconfigured: bool },
}

/// The event to log after the lock is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    TokenRejected {
        verify: StatusCode,
        probe: StatusCode,
    },
    TokenAcceptedAgain,
    ProbeUnusable,
}

/// The result of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Accepted,
    Rejected(StatusCode),
    /// Anything else, or no reply.
    Failed,
}

#[derive(Debug)]
pub(super) struct Probe {
    pub(super) token: TokenId,
    pub(super) sent: Seq,
    pub(super) read: Seq,
    pub(super) found: Found,
}

/// The last 200 from verify under the newest token that it has accepted.
#[derive(Clone, Copy, Debug)]
struct Answered {
    token: TokenId,
    sent: Seq,
    at: Tick,
}

/// The last 401 or 403 about a known key that no 200 under the same token has confirmed.
#[derive(Debug)]
struct Unconfirmed {
    token: TokenId,
    read: Seq,
    key_id: Option<KeyId>,
    /// Whether there are unconfirmed answers about other keys too.
    has_others: bool,
}

#[derive(Debug, Default)]
pub(super) struct State {
    last: Seq,
    answered: Option<Answered>,
    probe: Option<Probe>,
    unconfirmed: Option<Unconfirmed>,
    /// Set while the probe is unusable: verify has answered 200 under a token that the probe had rejected before. No probe is
    /// sent before this time.
    no_probe_before: Option<Tick>,
    is_unusable_logged: bool,
    /// When the rejection was read that was logged.
    rejection_logged: Option<Seq>,
    renewals: RenewalBackoff,
}

impl State {
    pub(super) fn draw(&mut self) -> Seq {
        self.last.0 += 1;
        self.last
    }

    /// Verify answered 200 to a call sent at `sent`.
    pub(super) fn answered(
        &mut self,
        token: TokenId,
        sent: Seq,
        is_retry: bool,
        now: Tick,
    ) -> Option<Event> {
        if is_retry {
            self.renewals.reset();
        }
        let is_newer = self
            .answered
            .is_none_or(|last| (last.token, last.sent) < (token, sent));
        if is_newer {
            let at = now;
            self.answered = Some(Answered { token, sent, at });
        }
        self.unconfirmed
            .take_if(|no| no.token == token && no.read < sent);
        let contradicts_probe = self.probe.as_ref().is_some_and(|probe| {
            matches!(probe.found, Found::Rejected(_)) && probe.token == token && probe.read < sent
        });
        if contradicts_probe && self.no_probe_before.is_none() {
            // One more probe may show that the token was granted its scope meanwhile.
            self.no_probe_before = Some(now);
        }
        let was_rejected = self.rejection_logged.take_if(|read| *read < sent);
        was_rejected.map(|_| Event::TokenAcceptedAgain)
    }

    pub(super) fn has_answered(&self) -> bool {
        self.answered.is_some()
    }

    /// Returns whether verify answered 200 under this token in the last 60 s.
    pub(super) fn has_answered_lately(&self, token: TokenId, now: Tick) -> bool {
        self.answered
            .is_some_and(|last| last.token == token && now.since(last.at) < RECENT)
    }

    pub(super) fn probe_ended(&mut self, probe: Probe, now: Tick) -> Option<Event> {
        let mut event = None;
        match probe.found {
            Found::Accepted => {
                self.no_probe_before = None;
                self.is_unusable_logged = false;
            }
            Found::Rejected(_) if self.no_probe_before.is_some() => {
                self.no_probe_before = Some(now.after(NO_PROBES));
                if !std::mem::replace(&mut self.is_unusable_logged, true) {
                    event = Some(Event::ProbeUnusable);
                }
            }
            Found::Rejected(_) | Found::Failed => {}
        }
        self.probe = Some(probe);
        event
    }

    /// Decides, or returns `None` when that takes a probe sent from now on.
    pub(super) fn decide(&self, answer: &Unauthorized, now: Tick) -> Option<Decision> {
        const UNDECIDED: Decision = Decision::Undecided {
            is_misconfigured: false,
        };
        let is_confirmed = self
            .answered
            .is_some_and(|last| last.token == answer.token && last.sent > answer.read);
        if is_confirmed {
            return Some(Decision::Invalid);
        }
        if self.no_probe_before.is_some_and(|time| now < time) {
            let is_lately = self.has_answered_lately(answer.token, now);
            return Some(if answer.is_retry || is_lately {
                UNDECIDED
            } else {
                Decision::Renew {
                    is_misconfigured: false,
                }
            });
        }
        let probe = self.probe.as_ref().filter(|probe| {
            // Waiting for another probe is pointless when the one that was waited for has failed.
            let since = match probe.found {
                Found::Accepted | Found::Rejected(_) => probe.sent,
                Found::Failed => probe.read,
            };
            probe.token == answer.token && since > answer.read
        })?;
        Some(match probe.found {
            Found::Failed => UNDECIDED,
            Found::Rejected(_) if answer.is_retry => Decision::Undecided {
                is_misconfigured: true,
            },
            Found::Rejected(_) => Decision::Renew {
                is_misconfigured: true,
            },
            Found::Accepted if answer.is_known => UNDECIDED,
            Found::Accepted if self.is_known_key_unconfirmed(answer.token) => UNDECIDED,
            Found::Accepted => Decision::Invalid,
        })
    }

    fn is_known_key_unconfirmed(&self, token: TokenId) -> bool {
        self.unconfirmed
            .as_ref()
            .is_some_and(|no| no.token == token)
    }

    /// Returns the event for a decision that says that verify and the probe reject the token, once until a later 200.
    pub(super) fn rejected(&mut self, answer: &Unauthorized) -> Option<Event> {
        let Some(Probe {
            found: Found::Rejected(probe),
            read,
            ..
        }) = self.probe
        else {
            return None;
        };
        let is_first = self.rejection_logged.replace(read).is_none();
        is_first.then_some(Event::TokenRejected {
            verify: answer.status,
            probe,
        })
    }

    /// Returns whether a token may be renewed early now. If so, the renewal is counted.
    pub(super) fn may_renew(&mut self, now: Tick) -> bool {
        self.renewals.allow(now)
    }

    /// The answer about a known key remains unconfirmed.
    pub(super) fn leave_unconfirmed(&mut self, answer: &Unauthorized, key_id: Option<&KeyId>) {
        let Unauthorized { token, read, .. } = *answer;
        let is_confirmed = self
            .answered
            .is_some_and(|last| last.token == token && last.sent > read);
        let earlier = self.unconfirmed.as_ref();
        if is_confirmed || earlier.is_some_and(|no| no.token > token) {
            return;
        }
        let has_others = earlier.is_some_and(|no| {
            let is_other = key_id.is_none() || no.key_id.as_ref() != key_id;
            no.token == token && (no.has_others || is_other)
        });
        self.unconfirmed = Some(Unconfirmed {
            token,
            read: earlier.map_or(read, |no| no.read.max(read)),
            key_id: key_id.cloned(),
            has_others,
        });
    }

    /// The record of this key shows that the unconfirmed answers about it were right.
    pub(super) fn confirm(&mut self, key_id: &KeyId) {
        self.unconfirmed
            .take_if(|no| !no.has_others && no.key_id.as_ref() == Some(key_id));
    }
}

#[cfg(test)]
mod tests;
