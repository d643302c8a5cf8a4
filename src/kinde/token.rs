//! Our own token: fetched once at a time, renewed ahead, and renewed by force as rarely as possible.
//!
//! Kinde bills every token, so nothing here is fetched twice, and nothing without need. A fetch runs on a task of its own:
//! the verification that began it may be dropped at its deadline, and the next one finds the token there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use http::header::HeaderValue;
use tokio::sync::watch;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::http::Http;
use super::wire::{TokenReading, read_token};
use crate::clock::{Clock, Tick};
use crate::telemetry;
use crate::verify::{VerifyError, VerifyErrorKind};

/// Which token it is. Later tokens have greater numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TokenId(u64);

#[derive(Clone)]
pub(super) struct Token {
    pub(super) id: TokenId,
    pub(super) header: HeaderValue,
}

/// What we present ourselves with.
pub(super) enum Credentials {
    Client(Arc<TokenSource>),
    Static(Token),
    None,
}

impl Credentials {
    pub(super) async fn token(&self) -> Result<Option<Token>, VerifyError> {
        match self {
            Self::Client(source) => source.token().await.map(Some),
            Self::Static(token) => Ok(Some(token.clone())),
            Self::None => Ok(None),
        }
    }
}

pub(super) fn static_token(header: HeaderValue) -> Token {
    Token {
        id: TokenId::default(),
        header,
    }
}

/// Tokens by client credentials (RFC 6749 §4.4).
pub(super) struct TokenSource {
    http: Arc<Http>,
    clock: Clock,
    request: TokenRequest,
    state: Mutex<State>,
}

/// What stands in the form.
pub(super) struct TokenRequest {
    pub(super) client_id: Zeroizing<String>,
    pub(super) client_secret: Zeroizing<String>,
    pub(super) audience: String,
    pub(super) scope: Option<String>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    last_id: TokenId,
    /// Closed when the fetch under way has ended.
    fetch: Option<watch::Receiver<()>>,
    failures: Option<Failures>,
}

struct Held {
    token: Token,
    refresh_at: Tick,
    expires_at: Tick,
}

/// Fetches that failed, one after another.
struct Failures {
    last: VerifyError,
    waits: Waits,
    not_before: Tick,
}

impl TokenSource {
    pub(super) fn new(http: Arc<Http>, clock: Clock, request: TokenRequest) -> Self {
        Self {
            http,
            clock,
            request,
            state: Mutex::default(),
        }
    }

    /// The token to use now. Waits for one only when there is none.
    pub(super) async fn token(self: &Arc<Self>) -> Result<Token, VerifyError> {
        let mut has_waited = false;
        loop {
            let mut fetch = {
                let mut state = self.state();
                let now = self.clock.now();
                let held = state.held.as_ref().filter(|held| now < held.expires_at);
                if let Some(held) = held {
                    let token = held.token.clone();
                    if now >= held.refresh_at && state.may_fetch(now) {
                        self.fetch(&mut state);
                    }
                    return Ok(token);
                }
                match &state.failures {
                    Some(failures) if has_waited || now < failures.not_before => {
                        return Err(failures.last.clone());
                    }
                    None if has_waited => {
                        return Err(VerifyError::unavailable("the token's fetch was dropped"));
                    }
                    _ => self.fetch(&mut state),
                }
            };
            // Ends by its sender's drop; nothing is ever sent.
            let _ = fetch.changed().await;
            has_waited = true;
        }
    }

    /// Another token than this one, because it was refused: the one that has taken its place, or one fetched now if the
    /// gate lets it. `None` when there is to be none now.
    pub(super) async fn renew(
        self: &Arc<Self>,
        refused: TokenId,
        gate: impl FnOnce(Tick) -> bool,
    ) -> Result<Option<Token>, VerifyError> {
        if let Some(mut fetch) = {
            let mut state = self.state();
            let now = self.clock.now();
            match &state.fetch {
                _ if state.last_id != refused => None,
                Some(fetch) => Some(fetch.clone()),
                None if state.may_fetch(now) && gate(now) => Some(self.fetch(&mut state)),
                None => return Ok(None),
            }
        } {
            let _ = fetch.changed().await;
            let state = self.state();
            if let Some(failures) = &state.failures
                && state.last_id == refused
            {
                return Err(failures.last.clone());
            }
        }
        self.token().await.map(Some)
    }

    /// The fetch under way, or one that begins now.
    fn fetch(self: &Arc<Self>, state: &mut State) -> watch::Receiver<()> {
        if let Some(fetch) = &state.fetch {
            return fetch.clone();
        }
        let (ended, fetch) = watch::channel(());
        state.fetch = Some(fetch.clone());
        let source = Arc::clone(self);
        tokio::spawn(async move {
            // Dropped last, also when the runtime shuts down: by then the state says how it went.
            let _ended = ended;
            let landing = Landing(&source);
            let sent_at = source.clock.now();
            let reading = match source.http.token(source.request.form()).await {
                Ok(reply) => read_token(&reply),
                Err(error) => TokenReading::CannotTell(error),
            };
            source.land(reading, sent_at);
            drop(landing);
        });
        fetch
    }

    fn land(&self, reading: TokenReading, sent_at: Tick) {
        let mut state = self.state();
        let now = self.clock.now();
        let (error, code) = match reading {
            TokenReading::Token { header, lifetime } => {
                if state.failures.take().is_some() {
                    telemetry::kinde::token_back();
                }
                state.last_id.0 += 1;
                // Drawn, so that many nodes that started together do not renew together.
                let share = 0.75 + 0.1 * fastrand::f64();
                state.held = Some(Held {
                    token: Token {
                        id: state.last_id,
                        header,
                    },
                    refresh_at: sent_at.after(lifetime.mul_f64(share)),
                    expires_at: sent_at.after(lifetime),
                });
                return;
            }
            TokenReading::Refused(code) => {
                let error = VerifyError::misconfigured(format!(
                    "the token endpoint refuses our credentials: {code}"
                ));
                (error, Some(code))
            }
            TokenReading::CannotTell(error) => (error, None),
        };
        let kind = |error: &VerifyError| error.kind() == VerifyErrorKind::Misconfigured;
        let mut waits = match state.failures.take() {
            Some(failures) if kind(&failures.last) == kind(&error) => failures.waits,
            _ => {
                telemetry::kinde::token_fails(&error, code);
                if kind(&error) {
                    Waits::of_the_forbidden()
                } else {
                    Waits::of_the_unreachable()
                }
            }
        };
        let asked = error.retry_after().unwrap_or_default().min(LONGEST_PAUSE);
        state.failures = Some(Failures {
            not_before: now.after(waits.next().max(asked)),
            last: error,
            waits,
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks the fetch as ended, however it ended.
struct Landing<'a>(&'a TokenSource);

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.0.state().fetch = None;
    }
}

impl State {
    fn may_fetch(&self, now: Tick) -> bool {
        self.failures
            .as_ref()
            .is_none_or(|failures| now >= failures.not_before)
    }
}

impl TokenRequest {
    fn form(&self) -> Bytes {
        // Three bytes for each at worst, so that the buffer never grows and leaves no copy of the secret behind.
        let values = [&*self.client_id, &*self.client_secret, &self.audience];
        let scope = self.scope.as_deref().unwrap_or_default();
        let len = values.iter().map(|value| value.len()).sum::<usize>() + scope.len();
        let buffer = String::with_capacity(3 * len + 128);
        let mut form = form_urlencoded::Serializer::new(buffer);
        form.append_pair("grant_type", "client_credentials")
            .append_pair("client_id", &self.client_id)
            .append_pair("client_secret", &self.client_secret)
            .append_pair("audience", &self.audience);
        if let Some(scope) = &self.scope {
            form.append_pair("scope", scope);
        }
        Bytes::from_owner(Zeroizing::new(form.finish().into_bytes()))
    }
}

/// The longest pause that an issuer's 429 can order.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Ever longer waits.
pub(super) struct Waits {
    waits: ExponentialBackoff,
    longest: Duration,
}

impl Waits {
    /// 1 s, doubling to 60 s: for an endpoint that does not answer.
    fn of_the_unreachable() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(60))
    }

    /// 5 s, doubling to 15 min: for an endpoint that answers, and says no. Each try may be billed.
    pub(super) fn of_the_forbidden() -> Self {
        Self::new(Duration::from_secs(5), Duration::from_secs(15 * 60))
    }

    fn new(shortest: Duration, longest: Duration) -> Self {
        Self {
            waits: ExponentialBuilder::new()
                .with_min_delay(shortest)
                .with_max_delay(longest)
                .without_max_times()
                .build(),
            longest,
        }
    }

    pub(super) fn next(&mut self) -> Duration {
        self.waits.next().unwrap_or(self.longest)
    }
}
