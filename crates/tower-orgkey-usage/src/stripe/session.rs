//! The session whose token authenticates meter events.

use std::time::Duration;

use http::HeaderValue;
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use serde::{Deserialize, Deserializer};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::clock::StripeClock;
use super::{STRIPE_VERSION, VERSION_HEADER};
use crate::http_meter::{Endpoint, send};
use crate::sink::PushError;

/// Stripe's tokens are valid for 15 min.
const LIFETIME: Duration = Duration::from_secs(14 * 60);
/// Ends before the pusher's timeout, after which the batch would count as sent.
const DEADLINE: Duration = Duration::from_secs(3);

pub(super) struct Sessions {
    endpoint: Endpoint,
    key: HeaderValue,
    current: Mutex<Option<(HeaderValue, Instant)>>,
}

#[derive(Deserialize)]
struct Session {
    #[serde(deserialize_with = "zeroizing")]
    authentication_token: Zeroizing<String>,
}

fn zeroizing<'de, D: Deserializer<'de>>(value: D) -> Result<Zeroizing<String>, D::Error> {
    String::deserialize(value).map(Zeroizing::new)
}

impl Sessions {
    pub(super) fn new(endpoint: Endpoint, key: HeaderValue) -> Self {
        Self {
            endpoint,
            key,
            current: Mutex::new(None),
        }
    }

    /// Returns the authorization of a session, which is a new one if the current one is `expired` or will expire soon, or if
    /// Stripe's time is no longer known.
    pub(super) async fn authorization(
        &self,
        expired: Option<&HeaderValue>,
        clock: &StripeClock,
    ) -> Result<HeaderValue, PushError> {
        let mut current = self.current.lock().await;
        if let Some((token, until)) = &*current
            && *until > Instant::now()
            && expired != Some(token)
            && !clock.is_stale()
        {
            return Ok(token.clone());
        }
        let begin = Instant::now();
        let token = timeout(DEADLINE, self.create(clock)).await;
        let token =
            token.map_err(|_| PushError::not_stored("the creation of a session timed out"))?;
        let token = token.map_err(PushError::into_not_stored)?;
        *current = Some((token.clone(), begin + LIFETIME));
        Ok(token)
    }

    async fn create(&self, clock: &StripeClock) -> Result<HeaderValue, PushError> {
        let request = self.endpoint.post();
        let request = request.header(AUTHORIZATION, &self.key);
        let request = request.header(VERSION_HEADER, STRIPE_VERSION);
        let reply = send(request.header(CONTENT_LENGTH, 0)).await?;
        clock.note(&reply);
        reply.result()?;
        let session: Option<Session> = reply.json().await?;
        let session =
            session.and_then(|session| orgkey_http::bearer(&session.authentication_token));
        session.ok_or_else(|| PushError::retry("the session has no usable token"))
    }
}
