//! The access token of this service: one fetch at a time, renewed before it expires, and renewed early only when needed.
//!
//! Kinde bills every token, so concurrent verifications share one fetch. A fetch runs on its own task: the verification that
//! started it may be dropped at its deadline, and the next one finds the token.

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

/// The number of a token. Newer tokens have greater numbers. 0 for a static token and for no token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TokenId(u64);

impl TokenId {
    /// Returns the number for [`Verification::with_credential`](crate::Verification::with_credential).
    pub(super) fn generation(self) -> u64 {
        self.0
    }

    #[cfg(test)]
    pub(super) fn numbered(number: u64) -> Self {
        Self(number)
    }
}

#[derive(Clone)]
pub(super) struct Token {
    pub(super) id: TokenId,
    pub(super) header: HeaderValue,
}

/// The credentials of this service.
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

    /// Returns the current token if it is newer than this one. Never waits.
    pub(super) fn newer_than(&self, token: TokenId) -> Option<Token> {
        match self {
            Self::Client(source) => source.newer_than(token),
            Self::Static(_) | Self::None => None,
        }
    }

    /// Returns a newer token than this one, which the issuer rejected: see [`TokenSource::renew`].
    pub(super) async fn renew(
        &self,
        rejected: TokenId,
        allow: impl FnOnce(Tick) -> bool,
    ) -> Result<Option<Token>, VerifyError> {
        match self {
            Self::Client(source) => source.renew(rejected, allow).await,
            Self::Static(_) | Self::None => Ok(None),
        }
    }
}

pub(super) fn static_token(header: HeaderValue) -> Token {
    Token {
        id: TokenId::default(),
        header,
    }
}

/// Fetches tokens with client credentials (RFC 6749 §4.4).
pub(super) struct TokenSource {
    http: Arc<Http>,
    clock: Clock,
    request: TokenRequest,
    state: Mutex<State>,
}

/// The fields of the form.
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
    /// Closed when the fetch in flight has ended.
    fetch: Option<watch::Receiver<()>>,
    failures: Option<Failures>,
}

struct Held {
    token: Token,
    refresh_at: Tick,
    expires_at: Tick,
}

/// The last fetches failed.
struct Failures {
    last: VerifyError,
    waits: Waits,
    not_before: Tick,
}

/// The event to log after a fetch.
enum FetchEvent {
    Recovered,
    Failed(VerifyError, Option<&'static str>),
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

    /// Returns the current token. Waits for a fetch only when there is none.
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
                        return Err(VerifyError::unavailable("the token request was dropped"));
                    }
                    _ => self.fetch(&mut state),
                }
            };
            // Resolves when the sender is dropped; nothing is ever sent.
            let _ = fetch.changed().await;
            has_waited = true;
        }
    }

    fn newer_than(&self, token: TokenId) -> Option<Token> {
        let state = self.state();
        let now = self.clock.now();
        let held = state.held.as_ref().filter(|held| now < held.expires_at)?;
        (held.token.id > token).then(|| held.token.clone())
    }

    /// Returns a newer token than this one, which the issuer rejected. Waits for a fetch that is in flight, and starts one if
    /// there is none and `allow` permits it. `None` if there is no newer token and no fetch was permitted.
    pub(super) async fn renew(
        self: &Arc<Self>,
        rejected: TokenId,
        allow: impl FnOnce(Tick) -> bool,
    ) -> Result<Option<Token>, VerifyError> {
        if let Some(mut fetch) = {
            let mut state = self.state();
            let now = self.clock.now();
            match &state.fetch {
                _ if state.last_id != rejected => None,
                Some(fetch) => Some(fetch.clone()),
                None if state.may_fetch(now) && allow(now) => Some(self.fetch(&mut state)),
                None => return Ok(None),
            }
        } {
            let _ = fetch.changed().await;
            let state = self.state();
            if state.last_id == rejected {
                return match &state.failures {
                    Some(failures) => Err(failures.last.clone()),
                    None => Ok(None),
                };
            }
        }
        self.token().await.map(Some)
    }

    /// Returns the fetch in flight, or starts one.
    fn fetch(self: &Arc<Self>, state: &mut State) -> watch::Receiver<()> {
        if let Some(fetch) = &state.fetch {
            return fetch.clone();
        }
        let (ended, fetch) = watch::channel(());
        state.fetch = Some(fetch.clone());
        let source = Arc::clone(self);
        tokio::spawn(async move {
            // Dropped last, also when the runtime shuts down, so that waiters find the state updated.
            let _ended = ended;
            let in_flight = InFlight(&source);
            let sent_at = source.clock.now();
            let reading = match source.http.token(source.request.form()).await {
                Ok(reply) => read_token(&reply),
                Err(error) => TokenReading::CannotTell(error),
            };
            source.complete(reading, sent_at);
            drop(in_flight);
        });
        fetch
    }

    fn complete(&self, reading: TokenReading, sent_at: Tick) {
        let event = self.state().complete(reading, sent_at, self.clock.now());
        match event {
            Some(FetchEvent::Recovered) => telemetry::kinde::token_request_recovered(),
            Some(FetchEvent::Failed(error, code)) => {
                telemetry::kinde::token_request_failed(&error, code);
            }
            None => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks the fetch as ended when dropped, also when its task is dropped.
struct InFlight<'a>(&'a TokenSource);

impl Drop for InFlight<'_> {
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

    fn complete(&mut self, reading: TokenReading, sent_at: Tick, now: Tick) -> Option<FetchEvent> {
        let (error, code) = match reading {
            TokenReading::Token { header, lifetime } => {
                self.last_id.0 += 1;
                // Drawn at random, so that nodes that started together do not renew together.
                let share = 0.75 + 0.1 * fastrand::f64();
                self.held = Some(Held {
                    token: Token {
                        id: self.last_id,
                        header,
                    },
                    refresh_at: sent_at.after(lifetime.mul_f64(share)),
                    expires_at: sent_at.after(lifetime),
                });
                return self.failures.take().map(|_| FetchEvent::Recovered);
            }
            TokenReading::Rejected(code) => {
                let error = VerifyError::misconfigured(format!(
                    "the token endpoint rejects the client credentials: {code}"
                ));
                (error, Some(code))
            }
            TokenReading::CannotTell(error) => (error, None),
        };
        let last = for_verification(&error);
        let is_same =
            |failures: &Failures| is_misconfigured(&failures.last) == is_misconfigured(&last);
        let before = self.failures.take().filter(is_same);
        let event = before
            .is_none()
            .then(|| FetchEvent::Failed(error.clone(), code));
        let mut waits = match before {
            Some(failures) => failures.waits,
            None if is_misconfigured(&last) => Waits::after_rejection(),
            None => Waits::after_failure(),
        };
        let asked = error.retry_after().unwrap_or_default().min(MAX_PAUSE);
        self.failures = Some(Failures {
            not_before: now.after(waits.next().max(asked)),
            last,
            waits,
        });
        event
    }
}

fn is_misconfigured(error: &VerifyError) -> bool {
    error.kind() == VerifyErrorKind::Misconfigured
}

/// Turns an error of the token request into one for the verification that needs the token.
///
/// Only verify's own 429 may pause verifications, and only verify's own reply can be an invalid response about a key.
fn for_verification(error: &VerifyError) -> VerifyError {
    match error.kind() {
        VerifyErrorKind::Throttled { .. } => {
            VerifyError::inconclusive("the token endpoint asks for fewer calls")
        }
        VerifyErrorKind::InvalidResponse => VerifyError::unavailable(error.clone()),
        _ => error.clone(),
    }
}

impl TokenRequest {
    fn form(&self) -> Bytes {
        // Encoding takes at most three bytes per byte, so the buffer never grows, which would leave a copy of the secret.
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

/// The max pause that a 429 of the token endpoint is followed for.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Waits that double.
#[derive(Debug)]
pub(super) struct Waits {
    waits: ExponentialBackoff,
    max: Duration,
}

impl Waits {
    /// 1 s, doubling to 60 s: for an endpoint that fails.
    fn after_failure() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(60))
    }

    /// 5 s, doubling to 15 min: for an endpoint that rejects the request. Each attempt may be billed.
    pub(super) fn after_rejection() -> Self {
        Self::new(Duration::from_secs(5), Duration::from_secs(15 * 60))
    }

    fn new(min: Duration, max: Duration) -> Self {
        Self {
            waits: ExponentialBuilder::new()
                .with_min_delay(min)
                .with_max_delay(max)
                .without_max_times()
                .build(),
            max,
        }
    }

    pub(super) fn next(&mut self) -> Duration {
        self.waits.next().unwrap_or(self.max)
    }
}

/// Limits how often a token is renewed early: once at any time, then after 5 s, doubling to 15 min until [reset](Self::reset).
#[derive(Debug, Default)]
pub(super) struct RenewalBackoff(Option<(Waits, Tick)>);

impl RenewalBackoff {
    /// Returns whether a token may be renewed now. If so, the renewal is counted.
    pub(super) fn allow(&mut self, now: Tick) -> bool {
        let (waits, not_before) = self
            .0
            .get_or_insert_with(|| (Waits::after_rejection(), Tick::ZERO));
        let may = now >= *not_before;
        if may {
            *not_before = now.after(waits.next());
        }
        may
    }

    /// A renewed token helped.
    pub(super) fn reset(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_error_is_about_no_key_and_no_pause() {
        for (error, kind) in [
            (
                VerifyError::throttled(Some(Duration::from_secs(30))),
                VerifyErrorKind::Inconclusive,
            ),
            (
                VerifyError::invalid_response("no token"),
                VerifyErrorKind::Unavailable,
            ),
            (
                VerifyError::unavailable("status 500"),
                VerifyErrorKind::Unavailable,
            ),
            (
                VerifyError::misconfigured("invalid_client"),
                VerifyErrorKind::Misconfigured,
            ),
        ] {
            assert_eq!(for_verification(&error).kind(), kind, "{error:?}");
        }
    }
}
