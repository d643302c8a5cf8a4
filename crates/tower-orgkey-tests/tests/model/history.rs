//! What happened, in order: calls to the issuer, blocks and invalidations.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKey, KeyId, OrgCode, Scopes, Verification, Verifier, VerifyError};

use crate::circuits::{Circuits, Class, Counting, End};
use crate::world::{ENVIRONMENT_KEY, Key, Mode, NEVER_ISSUED, Secret, Target};

/// A moment. The number orders events at one instant of the paused clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment {
    pub(crate) seq: u64,
    pub(crate) at: Duration,
}

/// What the issuer says about a valid key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Details {
    pub(crate) org: Option<u8>,
    pub(crate) key: u8,
    pub(crate) scopes: u16,
}

/// The outcome of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Valid(Details),
    Invalid,
    Unconfirmed,
    /// An error, or no reply in time.
    Failed,
    /// A reply that makes no sense.
    InvalidResponse,
    Throttled,
    Misconfigured,
}

impl Answer {
    /// Returns whether the issuer answered the question.
    pub(crate) fn is_answer(self) -> bool {
        matches!(self, Self::Valid(_) | Self::Invalid | Self::Unconfirmed)
    }

    /// Returns whether no doubt is left.
    pub(crate) fn is_definitive(self) -> bool {
        matches!(self, Self::Valid(_) | Self::Invalid)
    }
}

/// A call to the issuer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) class: Class,
    pub(crate) sent: Moment,
    /// When it was over, and its outcome.
    pub(crate) over: Option<(Moment, Answer)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Block,
    Unblock,
    Invalidate,
}

/// A block or an invalidation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Update {
    pub(crate) when: Moment,
    pub(crate) kind: Kind,
    pub(crate) target: Target,
}

#[derive(Debug)]
pub(crate) struct History {
    clock: TestClock,
    seq: u64,
    pub(crate) keys: Vec<Key>,
    pub(crate) mode: Mode,
    pub(crate) calls: HashMap<Secret, Vec<Call>>,
    pub(crate) updates: Vec<Update>,
    /// Requests to a route with a `max_age`, which may call although a fresh result is cached.
    pub(crate) strict: Vec<(Secret, Moment)>,
    /// When the layer's clock jumped ahead of the timers, and how far.
    pub(crate) jumps: Vec<(Moment, Duration)>,
    /// The ends of calls without a definitive answer.
    pub(crate) failures: Vec<Moment>,
    /// The ends of calls that the issuer answered with 429.
    pub(crate) throttled: Vec<Moment>,
    pub(crate) circuits: Circuits,
    /// Calls that the issuer should not have received.
    pub(crate) violations: Vec<String>,
    /// Calls about the keys of a crowd. An answer shows that the issuer works, whatever key it is about.
    pub(crate) crowd_calls: Vec<Call>,
    /// The keys of a crowd, in the order of their calls.
    pub(crate) crowd: Vec<String>,
}

/// The issuer, and its records.
#[derive(Clone, Debug)]
pub(crate) struct Issuer(Arc<Mutex<History>>);

impl History {
    pub(crate) fn now(&mut self) -> Moment {
        self.seq += 1;
        Moment {
            seq: self.seq,
            at: self.clock.elapsed(),
        }
    }

    pub(crate) fn calls_of(&self, secret: Secret) -> &[Call] {
        self.calls.get(&secret).map_or(&[], Vec::as_slice)
    }

    /// Returns what the issuer would say now.
    fn truth(&self, secret: Secret) -> Answer {
        let Some(key) = self.keys.get(usize::from(secret.key)) else {
            return Answer::Invalid;
        };
        if !key.makes_sense {
            return Answer::InvalidResponse;
        }
        if !key.is_valid || key.generation != secret.generation {
            return Answer::Invalid;
        }
        Answer::Valid(Details {
            org: key.org.filter(|_| secret.key != ENVIRONMENT_KEY),
            key: secret.key,
            scopes: key.scopes,
        })
    }

    /// Returns the kind of key that a call begun now is for.
    fn class(&self, secret: Secret, is_known: bool) -> Class {
        let is_valid = |call: &Call| matches!(call.over, Some((_, Answer::Valid(_))));
        if is_known {
            Class::Known
        } else if self.calls_of(secret).iter().any(is_valid) {
            Class::OnceValid
        } else {
            Class::Unknown
        }
    }

    /// A second call for a key is allowed only if the first one can bring nothing any more, or is too old for a request to
    /// a route with a `max_age`.
    fn watch_coalescing(&mut self, secret: Secret, now: Moment) {
        let Some(first) = self
            .calls_of(secret)
            .iter()
            .rfind(|call| call.over.is_none())
        else {
            return;
        };
        // The lookup began up to its whole deadline before its call, and a deadline does not run while the machine sleeps.
        let mut since = first.sent.at.saturating_sub(Duration::from_secs(10));
        for (jump, nap) in self.jumps.iter().rev() {
            if jump.seq < first.sent.seq && jump.at + *nap >= since {
                since = since.saturating_sub(*nap);
            }
        }
        let is_cancelled = self.updates.iter().any(|update| {
            update.when.at >= since
                && update.kind != Kind::Unblock
                && [Target::Secret(secret), Target::All].contains(&update.target)
        });
        let is_strict = self
            .strict
            .iter()
            .any(|(strict, when)| *strict == secret && when.at >= since);
        if !is_cancelled && !is_strict {
            self.violations
                .push(format!("two calls for {secret:?} at once, {now:?}"));
        }
    }

    fn end(&mut self, secret: Secret, call: usize, answer: Answer) {
        let now = self.now();
        let Some(call) = self
            .calls
            .get_mut(&secret)
            .map(|calls| &mut calls[call])
            .filter(|call| call.over.is_none())
        else {
            return;
        };
        call.over = Some((now, answer));
        let (class, sent) = (call.class, call.sent);
        self.note_end(secret, class, sent, now, answer);
    }

    fn note_end(
        &mut self,
        secret: Secret,
        class: Class,
        sent: Moment,
        over: Moment,
        answer: Answer,
    ) {
        if !answer.is_definitive() {
            self.failures.push(over);
        }
        if answer == Answer::Throttled {
            self.throttled.push(over);
        }
        self.circuits.note(&End {
            secret,
            class,
            sent,
            over,
            answer,
        });
    }
}

impl Issuer {
    pub(crate) fn new(clock: TestClock, keys: Vec<Key>, mode: Mode, counting: Counting) -> Self {
        Self(Arc::new(Mutex::new(History {
            clock,
            seq: 0,
            keys,
            mode,
            calls: HashMap::new(),
            updates: Vec::new(),
            strict: Vec::new(),
            jumps: Vec::new(),
            failures: Vec::new(),
            throttled: Vec::new(),
            circuits: Circuits::new(counting),
            violations: Vec::new(),
            crowd_calls: Vec::new(),
            crowd: Vec::new(),
        })))
    }

    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap()
    }
}

pub(crate) fn text_of(secret: Secret) -> String {
    format!("k_model_{}_{}", secret.key, secret.generation)
}

fn secret_of(text: &str) -> Option<Secret> {
    let (key, generation) = text.strip_prefix("k_model_")?.split_once('_')?;
    Some(Secret {
        key: key.parse().ok()?,
        generation: generation.parse().ok()?,
    })
}

pub(crate) fn org_code(org: u8) -> OrgCode {
    OrgCode::new(format!("org_{org}")).unwrap()
}

pub(crate) fn key_id(key: u8) -> KeyId {
    KeyId::new(format!("id_{key}")).unwrap()
}

/// Notes the end of a call that the layer dropped.
struct Dropped<'a> {
    issuer: &'a Issuer,
    secret: Secret,
    call: usize,
}

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        let mut history = self.issuer.history();
        history.end(self.secret, self.call, Answer::Failed);
    }
}

impl Verifier for Issuer {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.call(key, false).await
    }

    async fn reverify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.call(key, true).await
    }
}

impl Issuer {
    async fn call(&self, key: &ApiKey, is_known: bool) -> Result<Verification, VerifyError> {
        let Some(secret) = secret_of(key.expose_secret()) else {
            return self.call_for_crowd(key, is_known).await;
        };
        let (mode, truth, class, call) = {
            let mut history = self.history();
            let now = history.now();
            history.watch_coalescing(secret, now);
            let class = history.class(secret, is_known);
            let calls = history.calls.entry(secret).or_default();
            calls.push(Call {
                class,
                sent: now,
                over: None,
            });
            let call = calls.len() - 1;
            (history.mode, history.truth(secret), class, call)
        };
        let dropped = Dropped {
            issuer: self,
            secret,
            call,
        };
        let answer = match mode {
            Mode::FailsForUnknown if class == Class::Unknown => Answer::Failed,
            Mode::Answers(0) | Mode::FailsForUnknown => truth,
            Mode::Answers(millis) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                truth
            }
            Mode::Hangs => std::future::pending().await,
            Mode::Unconfirmed => Answer::Unconfirmed,
            Mode::Errors => Answer::Failed,
            Mode::Throttles(_) => Answer::Throttled,
            Mode::Misconfigured => Answer::Misconfigured,
        };
        self.history().end(secret, call, answer);
        drop(dropped);
        match answer {
            Answer::Valid(details) => Ok(verification(details)),
            Answer::Invalid => Ok(Verification::invalid()),
            Answer::Unconfirmed => Ok(Verification::invalid_unconfirmed()),
            Answer::Failed => Err(VerifyError::unavailable("out of order")),
            Answer::InvalidResponse => Err(VerifyError::invalid_response("no organization")),
            Answer::Misconfigured => Err(VerifyError::misconfigured("bad secret")),
            Answer::Throttled => {
                let wait = match mode {
                    Mode::Throttles(seconds) => seconds.map(Duration::from_secs),
                    _ => None,
                };
                Err(VerifyError::throttled(wait))
            }
        }
    }

    async fn call_for_crowd(
        &self,
        key: &ApiKey,
        is_known: bool,
    ) -> Result<Verification, VerifyError> {
        let name = key.expose_secret().to_owned();
        let class = match name.as_str() {
            _ if is_known => Class::Known,
            name if name.starts_with("unknown") => Class::Unknown,
            _ => Class::OnceValid,
        };
        let sent = {
            let mut history = self.history();
            history.crowd.push(name);
            history.now()
        };
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut history = self.history();
        let over = history.now();
        history.crowd_calls.push(Call {
            class,
            sent,
            over: Some((over, Answer::Invalid)),
        });
        // The circuits do not ask which key an answer is about.
        let secret = Secret {
            key: NEVER_ISSUED,
            generation: u16::MAX,
        };
        history.note_end(secret, class, sent, over, Answer::Invalid);
        Ok(if class == Class::Unknown {
            Verification::invalid()
        } else {
            Verification::of_organization(OrgCode::from_static("org_crowd"))
        })
    }
}

fn verification(details: Details) -> Verification {
    let verification = match details.org {
        Some(org) => Verification::of_organization(org_code(org)),
        None => Verification::without_organization(),
    };
    verification
        .with_key_id(key_id(details.key))
        .with_scopes(Scopes::from_names([format!("version:{}", details.scopes)]))
}
