//! Whose credential a 401 or 403 from verify refuses: the caller's key, or our own token.
//!
//! Kinde's contract does not say, so it is settled by evidence and never by a guess. The witness is a *probe*: a call
//! for which our token alone is needed.
//!
//! | the probe | means |
//! |---|---|
//! | is accepted | our token is good, so the refusal is the key's |
//! | is refused, and verify accepts the same token in a call sent later | the probe alone lacks its scope |
//! | is refused otherwise | our token is refused |
//! | fails | nobody can tell |
//!
//! That verify accepted the token *earlier* proves nothing: by its contract Kinde answers to a token that it has revoked
//! with 401 at verify and with 403 at the probe, just as to a bad key and a token without the probe's scope.
//!
//! Once the scope is known to be missing, probes say little: there is none for 15 minutes, and a refusal is read as the
//! key's, but only in the manner that gives up no known key before verify has accepted another one. Where verify has not
//! accepted the token for a minute, another token is tried first, as the token may have been revoked since.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::status::StatusCode;
use tokio::sync::watch;

use super::http::Http;
use super::token::{Token, TokenId, Waits};
use crate::clock::{Clock, Tick};
use crate::telemetry;
use crate::verify::VerifyError;

/// How old a proof may be that an unknown key is refused on.
const PROOF_LASTS: Duration = Duration::from_secs(5);
/// A token that verify accepted so lately is not renewed by force.
const TRUSTED: Duration = Duration::from_secs(60);
/// How long there are no probes once their scope is known to be missing.
const NO_PROBES: Duration = Duration::from_secs(15 * 60);

/// Whose refusal it is.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The key's: shown by a probe that was sent after the refusal.
    Key,
    /// The key's, by what was known before the refusal.
    KeyLikely,
    /// Our token's.
    Token,
    /// Our token's if another one is accepted, else the key's.
    TokenOrKey,
    CannotTell(VerifyError),
}

/// A refusal to be settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    /// When the refusal was read.
    pub(super) at: Tick,
    /// Whether the key was good before, so that only a later proof will do.
    pub(super) is_known: bool,
    /// Whether it is the second refusal in a row, with another token than the first.
    pub(super) is_second: bool,
}

pub(super) struct Evidence {
    http: Arc<Http>,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    accepted: Option<Accepted>,
    probe: Option<Probe>,
    /// Closed when the probe under way has ended.
    probing: Option<watch::Receiver<()>>,
    /// No probes before this time: verify takes our tokens, and the probe does not.
    scope_missing: Option<Tick>,
    is_scope_logged: bool,
    is_refusal_logged: bool,
    renewals: Gate,
}

/// A call that verify answered to this token.
struct Accepted {
    token: TokenId,
    sent_at: Tick,
}

struct Probe {
    token: TokenId,
    sent_at: Tick,
    found: Found,
}

#[derive(Clone, Debug)]
enum Found {
    Accepted,
    Refused(StatusCode),
    CannotTell(VerifyError),
}

impl Evidence {
    pub(super) fn new(http: Arc<Http>, clock: Clock) -> Self {
        Self {
            http,
            clock,
            state: Mutex::default(),
        }
    }

    /// Verify answered a call with this token.
    pub(super) fn verify_accepted(&self, token: TokenId, sent_at: Tick) {
        let mut state = self.state();
        state.renewals = Gate::default();
        if std::mem::take(&mut state.is_refusal_logged) {
            telemetry::kinde::token_accepted_again();
        }
        let is_newer = state
            .accepted
            .as_ref()
            .is_none_or(|last| (last.token, last.sent_at) < (token, sent_at));
        if is_newer {
            state.accepted = Some(Accepted { token, sent_at });
        }
        let is_proof = state.probe.as_ref().is_some_and(|probe| {
            matches!(probe.found, Found::Refused(StatusCode::FORBIDDEN))
                && probe.token == token
                && probe.sent_at < sent_at
        });
        if is_proof && state.scope_missing.is_none() {
            state.scope_is_missing(self.clock.now());
        }
    }

    /// Whether verify ever answered.
    pub(super) fn has_verify_accepted(&self) -> bool {
        self.state().accepted.is_some()
    }

    pub(super) async fn settle(self: &Arc<Self>, token: &Token, refused: Refused) -> Verdict {
        if self.is_scope_missing(token.id, refused) {
            return Verdict::KeyLikely;
        }
        // A tick earlier than the proof's own start is no proof for a known key.
        let oldest = if refused.is_known {
            refused.at
        } else {
            Tick(
                refused
                    .at
                    .0
                    .saturating_sub(crate::clock::nanos(PROOF_LASTS)),
            )
        };
        let (found, sent_at) = self.probe(token, oldest).await;
        match found {
            Found::Accepted if sent_at >= refused.at => Verdict::Key,
            Found::Accepted => Verdict::KeyLikely,
            Found::CannotTell(error) => Verdict::CannotTell(error),
            Found::Refused(status) => self.weigh(token.id, refused, status),
        }
    }

    fn is_scope_missing(&self, token: TokenId, refused: Refused) -> bool {
        let state = self.state();
        let now = self.clock.now();
        let Some(no_probes_before) = state.scope_missing else {
            return false;
        };
        // A known key that is refused while verify has not taken our token for a minute may mean that it is the token after
        // all; junk cannot give that sign.
        let is_sign = refused.is_known && !refused.is_second && !state.is_trusted(token, now);
        now < no_probes_before && !is_sign
    }

    /// The probe was refused.
    fn weigh(&self, token: TokenId, refused: Refused, probe: StatusCode) -> Verdict {
        let mut state = self.state();
        let now = self.clock.now();
        if probe == StatusCode::FORBIDDEN && state.scope_missing.is_some() {
            state.scope_is_missing(now);
            let is_token_good = state.is_trusted(token, now) || refused.is_second;
            return if is_token_good {
                Verdict::KeyLikely
            } else {
                Verdict::TokenOrKey
            };
        }
        if !std::mem::replace(&mut state.is_refusal_logged, true) {
            telemetry::kinde::token_refused(refused.status.as_u16(), probe.as_u16());
        }
        Verdict::Token
    }

    /// Whether another token may be fetched in place of this one. Asking counts as fetching.
    pub(super) fn may_renew(&self, token: TokenId, now: Tick) -> bool {
        let mut state = self.state();
        !state.is_trusted(token, now) && state.renewals.pass(now)
    }

    /// What a probe with this token found that was sent at `oldest` or later: the last one, the one under way, or one sent
    /// now. There is one at a time.
    async fn probe(self: &Arc<Self>, token: &Token, oldest: Tick) -> (Found, Tick) {
        loop {
            let mut probing = {
                let mut state = self.state();
                if let Some(probe) = &state.probe
                    && probe.token == token.id
                    && probe.sent_at >= oldest
                {
                    return (probe.found.clone(), probe.sent_at);
                }
                match &state.probing {
                    Some(probing) => probing.clone(),
                    None => self.begin(&mut state, token),
                }
            };
            // Ends by its sender's drop; nothing is ever sent.
            let _ = probing.changed().await;
        }
    }

    /// Sends a probe, on a task of its own: the verification that needs it may be dropped at its deadline.
    fn begin(self: &Arc<Self>, state: &mut State, token: &Token) -> watch::Receiver<()> {
        let (ended, probing) = watch::channel(());
        state.probing = Some(probing.clone());
        let evidence = Arc::clone(self);
        let token = token.clone();
        let sent_at = self.clock.now();
        tokio::spawn(async move {
            // Dropped last: by then the state says what was found.
            let _ended = ended;
            let mut landing = Landing {
                evidence: &evidence,
                probe: Some(Probe {
                    token: token.id,
                    sent_at,
                    found: Found::CannotTell(VerifyError::unavailable("the probe was dropped")),
                }),
            };
            let found = match evidence.http.probe(&token.header).await {
                Ok(reply) if reply.status.is_success() => Found::Accepted,
                Ok(reply) => match reply.status {
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                        Found::Refused(reply.status)
                    }
                    _ => Found::CannotTell(super::wire::cannot_tell(&reply)),
                },
                Err(error) => Found::CannotTell(error),
            };
            if let Some(probe) = &mut landing.probe {
                probe.found = found;
            }
        });
        probing
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes down what the probe found, however it ended.
struct Landing<'a> {
    evidence: &'a Evidence,
    probe: Option<Probe>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut state = self.evidence.state();
        state.probing = None;
        state.probe = self.probe.take();
        let is_accepted = matches!(
            &state.probe,
            Some(Probe {
                found: Found::Accepted,
                ..
            })
        );
        if is_accepted {
            state.scope_missing = None;
            state.is_scope_logged = false;
        }
    }
}

impl State {
    /// Whether verify accepted this token lately.
    fn is_trusted(&self, token: TokenId, now: Tick) -> bool {
        self.accepted
            .as_ref()
            .is_some_and(|last| last.token == token && now.since(last.sent_at) <= TRUSTED)
    }

    fn scope_is_missing(&mut self, now: Tick) {
        self.scope_missing = Some(now.after(NO_PROBES));
        if !std::mem::replace(&mut self.is_scope_logged, true) {
            telemetry::kinde::probe_lacks_scope();
        }
    }
}

/// Lets one pass, then none for 5 s, doubling to 15 min.
#[derive(Default)]
pub(super) struct Gate(Option<(Waits, Tick)>);

impl Gate {
    pub(super) fn pass(&mut self, now: Tick) -> bool {
        let (waits, not_before) = self
            .0
            .get_or_insert_with(|| (Waits::of_the_forbidden(), Tick::ZERO));
        let may = now >= *not_before;
        if may {
            *not_before = now.after(waits.next());
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::header::HeaderValue;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::kinde::token::static_token;
    use crate::test_util::TestClock;

    const TOKEN: HeaderValue = HeaderValue::from_static("Bearer token");

    /// Evidence over an issuer that answers every probe with this status, and how many there were.
    async fn evidence(status: StatusCode) -> (Arc<Evidence>, TestClock, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let probes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&probes);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                counted.fetch_add(1, Ordering::SeqCst);
                let reply =
                    format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(reply.as_bytes()).await;
            }
        });
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let http = Http::new(client, &issuer.parse().unwrap());
        let clock = TestClock::new();
        let evidence = Evidence::new(Arc::new(http), Clock::Test(clock.clone()));
        (Arc::new(evidence), clock, probes)
    }

    #[tokio::test]
    async fn only_a_probe_that_was_sent_after_a_refusal_concludes_that_it_is_the_keys() {
        let (evidence, clock, probes) = evidence(StatusCode::OK).await;
        let token = static_token(TOKEN);
        let refused = |is_known| Refused {
            status: StatusCode::UNAUTHORIZED,
            at: Clock::Test(clock.clone()).now(),
            is_known,
            is_second: false,
        };
        for (is_known, is_concluded, probes_so_far) in [
            (false, true, 1),
            // A proof that is a moment old: likely enough, of a key that nobody knows.
            (false, false, 1),
            (true, true, 2),
        ] {
            let verdict = evidence.settle(&token, refused(is_known)).await;
            assert_eq!(matches!(verdict, Verdict::Key), is_concluded, "{verdict:?}");
            let is_likely = matches!(verdict, Verdict::KeyLikely);
            assert_eq!(is_likely, !is_concluded, "{verdict:?}");
            assert_eq!(probes.load(Ordering::SeqCst), probes_so_far);
            clock.jump(Duration::from_millis(1));
        }
    }

    #[tokio::test]
    async fn only_a_yes_to_a_call_sent_after_the_probe_shows_that_the_scope_is_missing() {
        let (evidence, _clock, _probes) = evidence(StatusCode::FORBIDDEN).await;
        let token = static_token(TOKEN);
        let (found, sent_at) = evidence.probe(&token, Tick::ZERO).await;
        assert!(matches!(found, Found::Refused(StatusCode::FORBIDDEN)));
        for (later, is_proof) in [(0, false), (1, true)] {
            let sent_at = sent_at.after(Duration::from_nanos(later));
            evidence.verify_accepted(token.id, sent_at);
            let is_missing = evidence.state().scope_missing.is_some();
            assert_eq!(is_missing, is_proof, "{later} ns later");
        }
    }
}
