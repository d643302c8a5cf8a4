//! Decides whether a 401 or 403 from verify is about the caller's key or about the access token of this service.
//!
//! Kinde's contract does not say, so evidence decides. There are three sources: a newer token, a later 200 from verify under
//! the same token, and a *probe*, a call that needs the token and no key. The table of decisions is in the
//! [module documentation](crate::kinde#401-and-403-are-ambiguous); [`state`] implements it without I/O, and this module sends
//! the probes and looks up records.
//!
//! # Order
//!
//! Evidence counts only if it came after the answer in question: the token may have been revoked in between. Each event draws
//! a sequence number, a call before it is sent and a reply after it was read, so a call with a greater number than a reply was
//! sent after that reply had been read. Clock ticks measure durations only.
//!
//! # Probes
//!
//! At most one probe is in flight. It answers for all verifications that had read their 401 or 403 before it was sent; the
//! others wait for it and then share the next one. Two probes are sent at least 200 ms apart, so invalid keys cost at most
//! five probes per second. A probe runs on its own task, because the verification that started it may be dropped.

mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::HeaderValue;
use http::status::StatusCode;
use tokio::sync::watch;

pub(super) use self::state::{Decision, Seq, Unauthorized};
use self::state::{Event, Found, Probe, State};
use super::http::Http;
use super::token::{Token, TokenId};
use super::wire::shows_no_active_key;
use crate::clock::{Clock, Tick};
use crate::identifier::KeyId;
use crate::telemetry;
use crate::verify::within;

/// The least time between the sendings of two probes.
const PROBE_SPACING: Duration = Duration::from_millis(200);

pub(super) struct Evidence {
    http: Arc<Http>,
    clock: Clock,
    shared: Mutex<Shared>,
    /// Held while a record is looked up.
    look_up: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Shared {
    state: State,
    /// Closed when the probe in flight has ended.
    probing: Option<watch::Receiver<()>>,
    last_probe_at: Option<Tick>,
}

impl Evidence {
    pub(super) fn new(http: Arc<Http>, clock: Clock) -> Self {
        Self {
            http,
            clock,
            shared: Mutex::default(),
            look_up: tokio::sync::Mutex::default(),
        }
    }

    /// Draws the sequence number of a call that is sent next, or of a reply that was read.
    pub(super) fn draw(&self) -> Seq {
        self.lock().state.draw()
    }

    /// Verify answered 200 to a call sent at `sent`. `is_retry` says that an older token was answered 401 or 403 before.
    pub(super) fn verify_answered(&self, token: TokenId, sent: Seq, is_retry: bool) {
        let now = self.clock.now();
        let event = self.lock().state.answered(token, sent, is_retry, now);
        event.into_iter().for_each(emit);
    }

    /// Returns whether verify has ever answered 200.
    pub(super) fn has_verify_answered(&self) -> bool {
        self.lock().state.has_answered()
    }

    /// Decides what a 401 or 403 under this token means. Sends a probe if need be, which takes at most `deadline`.
    pub(super) async fn decide(
        self: &Arc<Self>,
        token: &Token,
        answer: &Unauthorized,
        deadline: Duration,
    ) -> Decision {
        loop {
            let mut started = None;
            let mut probing = {
                let mut shared = self.lock();
                if let Some(decision) = shared.state.decide(answer, self.clock.now()) {
                    let event = match decision {
                        Decision::Renew {
                            is_misconfigured: true,
                        }
                        | Decision::Undecided {
                            is_misconfigured: true,
                        } => shared.state.rejected(answer),
                        _ => None,
                    };
                    drop(shared);
                    event.into_iter().for_each(emit);
                    return decision;
                }
                if let Some(probing) = &shared.probing {
                    probing.clone()
                } else {
                    let (ended, probing) = watch::channel(());
                    shared.probing = Some(probing.clone());
                    started = Some(ended);
                    probing
                }
            };
            if let Some(ended) = started {
                let probe = ProbeInFlight {
                    evidence: Arc::clone(self),
                    token: token.id,
                    sent: Seq::default(),
                    found: Found::Failed,
                    _ended: ended,
                };
                tokio::spawn(probe.run(token.header.clone(), deadline));
            }
            // Resolves when the sender is dropped; nothing is ever sent.
            let _ = probing.changed().await;
        }
    }

    fn until_next_probe(&self) -> Duration {
        let now = self.clock.now();
        let last = self.lock().last_probe_at;
        last.map_or(Duration::ZERO, |last| {
            PROBE_SPACING.saturating_sub(now.since(last))
        })
    }

    fn probe_sent(&self) -> Seq {
        let now = self.clock.now();
        let mut shared = self.lock();
        shared.last_probe_at = Some(now);
        shared.state.draw()
    }

    /// Returns whether a token may be renewed early now. If so, the renewal is counted.
    pub(super) fn may_renew(&self, now: Tick) -> bool {
        self.lock().state.may_renew(now)
    }

    /// The answer about a known key remains unconfirmed.
    pub(super) fn leave_unconfirmed(&self, answer: &Unauthorized, key_id: Option<&KeyId>) {
        self.lock().state.leave_unconfirmed(answer, key_id);
    }

    /// Returns whether the issuer's record of a key shows that the key is no longer active, where verify's answers give no
    /// evidence: it has not answered 200 under this token for 60 s. One record is looked up at a time; others are skipped.
    pub(super) async fn record_confirms(
        &self,
        key_id: &KeyId,
        token: &Token,
        deadline: Duration,
    ) -> bool {
        let is_lately = {
            let now = self.clock.now();
            self.lock().state.has_answered_lately(token.id, now)
        };
        if is_lately {
            return false;
        }
        let Ok(_turn) = self.look_up.try_lock() else {
            return false;
        };
        let reply = within(deadline, self.http.key(key_id, Some(&token.header))).await;
        let confirms = matches!(&reply, Ok(reply) if shows_no_active_key(reply, key_id));
        if confirms {
            self.lock().state.confirm(key_id);
        }
        confirms
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Records what the probe found when dropped, also when its task is dropped, and then wakes those who wait.
struct ProbeInFlight {
    evidence: Arc<Evidence>,
    token: TokenId,
    sent: Seq,
    found: Found,
    /// Dropped after the result is recorded.
    _ended: watch::Sender<()>,
}

impl ProbeInFlight {
    async fn run(mut self, token: HeaderValue, deadline: Duration) {
        let evidence = Arc::clone(&self.evidence);
        tokio::time::sleep(evidence.until_next_probe()).await;
        self.sent = evidence.probe_sent();
        let reply = within(deadline, evidence.http.probe(&token)).await;
        if let Ok(reply) = reply {
            self.found = match reply.status {
                status if status.is_success() => Found::Accepted,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Found::Rejected(reply.status),
                _ => Found::Failed,
            };
        }
    }
}

impl Drop for ProbeInFlight {
    fn drop(&mut self) {
        let now = self.evidence.clock.now();
        let event = {
            let mut shared = self.evidence.lock();
            shared.probing = None;
            let probe = Probe {
                token: self.token,
                sent: self.sent,
                read: shared.state.draw(),
                found: self.found,
            };
            shared.state.probe_ended(probe, now)
        };
        event.into_iter().for_each(emit);
    }
}

/// Called without the lock: a `tracing` subscriber may call the verifier.
fn emit(event: Event) {
    match event {
        Event::TokenRejected { verify, probe } => {
            telemetry::kinde::token_rejected(verify.as_u16(), probe.as_u16());
        }
        Event::TokenAcceptedAgain => telemetry::kinde::token_accepted_again(),
        Event::ProbeUnusable => telemetry::kinde::probe_lacks_scope(),
    }
}
