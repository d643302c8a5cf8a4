//! What happened, in order: every call to the issuer, every decree.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKey, KeyId, OrgCode, Scopes, Verification, Verifier, VerifyError};

use crate::world::{ENVIRONMENT_KEY, Key, Mode, Secret, Target};

/// A moment. The number orders what happens at one instant of the paused clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment {
    pub(crate) seq: u64,
    pub(crate) at: Duration,
}

/// What the issuer says of a good key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) org: Option<u8>,
    pub(crate) key: u8,
    pub(crate) scopes: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Yes(Facts),
    No,
    Doubtful,
    /// An error, a 429, or no answer in time.
    None,
}

/// A call to the issuer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) sent: Moment,
    /// When it was over, and how.
    pub(crate) over: Option<(Moment, Answer)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Block,
    Unblock,
    Invalidate,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Decree {
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
    pub(crate) decrees: Vec<Decree>,
    /// Requests of a layer with a `max_age`: these may ask although fresh facts are held.
    pub(crate) strict: Vec<(Secret, Moment)>,
    /// When our clock jumped ahead of the timers, and how far.
    pub(crate) jumps: Vec<(Moment, Duration)>,
    /// The end of the last call, and whether the issuer answered it.
    pub(crate) ends: Vec<(Moment, bool)>,
    /// What the issuer saw that it should not have.
    pub(crate) violations: Vec<String>,
    /// Calls about the keys of a crowd: an answer shows that the issuer works, whoever it is about.
    pub(crate) crowd_calls: Vec<Call>,
    /// The strangers of a crowd and the two keys behind them, in the order of their calls.
    pub(crate) crowd: Vec<String>,
}

/// The issuer, and the book it keeps.
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

    /// What the issuer would say now.
    fn truth(&self, secret: Secret) -> Option<Facts> {
        let key = &self.keys[usize::from(secret.key)];
        (key.is_live && key.generation == secret.generation).then_some(Facts {
            org: key.org.filter(|_| secret.key != ENVIRONMENT_KEY),
            key: secret.key,
            scopes: key.scopes,
        })
    }

    /// A second call about a key under way is allowed only if the first can bring nothing any more, or is too old for a
    /// request with a `max_age`.
    fn watch_single_flight(&mut self, secret: Secret, now: Moment) {
        let Some(first) = self
            .calls_of(secret)
            .iter()
            .rfind(|call| call.over.is_none())
        else {
            return;
        };
        // The flight began up to its whole deadline before its call, and a deadline does not run while the machine sleeps.
        let mut since = first.sent.at.saturating_sub(Duration::from_secs(10));
        for (jump, nap) in self.jumps.iter().rev() {
            if jump.seq < first.sent.seq && jump.at + *nap >= since {
                since = since.saturating_sub(*nap);
            }
        }
        let is_grounded = self.decrees.iter().any(|decree| {
            decree.when.at >= since
                && decree.kind != Kind::Unblock
                && [Target::Secret(secret), Target::All].contains(&decree.target)
        });
        let is_strict = self
            .strict
            .iter()
            .any(|(strict, when)| *strict == secret && when.at >= since);
        if !is_grounded && !is_strict {
            self.violations
                .push(format!("two calls about {secret:?} at once, {now:?}"));
        }
    }

    fn end(&mut self, secret: Secret, call: usize, answer: Answer) {
        let now = self.now();
        self.ends.push((now, answer != Answer::None));
        if let Some(calls) = self.calls.get_mut(&secret)
            && calls[call].over.is_none()
        {
            calls[call].over = Some((now, answer));
        }
    }
}

impl Issuer {
    pub(crate) fn new(clock: TestClock, keys: Vec<Key>, mode: Mode) -> Self {
        Self(Arc::new(Mutex::new(History {
            clock,
            seq: 0,
            keys,
            mode,
            calls: HashMap::new(),
            decrees: Vec::new(),
            strict: Vec::new(),
            jumps: Vec::new(),
            ends: Vec::new(),
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

/// Notes the end of a call that the layer gave up.
struct GivenUp<'a> {
    issuer: &'a Issuer,
    secret: Secret,
    call: usize,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        let mut history = self.issuer.history();
        if history.calls_of(self.secret)[self.call].over.is_none() {
            history.end(self.secret, self.call, Answer::None);
        }
    }
}

impl Verifier for Issuer {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let Some(secret) = secret_of(key.expose_secret()) else {
            return self.verify_one_of_a_crowd(key).await;
        };
        let (mode, truth, call) = {
            let mut history = self.history();
            let now = history.now();
            history.watch_single_flight(secret, now);
            let calls = history.calls.entry(secret).or_default();
            calls.push(Call {
                sent: now,
                over: None,
            });
            let call = calls.len() - 1;
            (history.mode, history.truth(secret), call)
        };
        let given_up = GivenUp {
            issuer: self,
            secret,
            call,
        };
        let answer = match mode {
            Mode::Answers(0) => truth.map_or(Answer::No, Answer::Yes),
            Mode::Answers(millis) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                truth.map_or(Answer::No, Answer::Yes)
            }
            Mode::Hangs => std::future::pending().await,
            Mode::Doubtful => Answer::Doubtful,
            Mode::Errors | Mode::Throttles(_) | Mode::Misconfigured => Answer::None,
        };
        self.history().end(secret, call, answer);
        drop(given_up);
        match (answer, mode) {
            (Answer::Yes(facts), _) => Ok(verification(facts)),
            (Answer::No, _) => Ok(Verification::invalid()),
            (Answer::Doubtful, _) => Ok(Verification::invalid_unconfirmed()),
            (Answer::None, Mode::Throttles(seconds)) => {
                Err(VerifyError::throttled(seconds.map(Duration::from_secs)))
            }
            (Answer::None, Mode::Misconfigured) => Err(VerifyError::misconfigured("bad secret")),
            (Answer::None, _) => Err(VerifyError::unavailable("out of order")),
        }
    }
}

impl Issuer {
    async fn verify_one_of_a_crowd(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let name = key.expose_secret().to_owned();
        let is_good = !name.starts_with("stranger");
        let sent = {
            let mut history = self.history();
            history.crowd.push(name);
            history.now()
        };
        tokio::time::sleep(Duration::from_millis(200)).await;
        {
            let mut history = self.history();
            let over = Some((history.now(), Answer::No));
            history.crowd_calls.push(Call { sent, over });
        }
        let good = Verification::of_organization(OrgCode::from_static("org_crowd"));
        Ok(if is_good {
            good
        } else {
            Verification::invalid()
        })
    }
}

fn verification(facts: Facts) -> Verification {
    let verification = match facts.org {
        Some(org) => Verification::of_organization(org_code(org)),
        None => Verification::without_organization(),
    };
    verification
        .with_key_id(key_id(facts.key))
        .with_scopes(Scopes::from_names([format!("version:{}", facts.scopes)]))
}
