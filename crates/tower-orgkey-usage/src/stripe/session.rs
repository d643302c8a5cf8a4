//! The session whose token authenticates meter events.

use std::time::Duration;

use http::HeaderValue;
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::{MAX_BODY, STRIPE_VERSION, VERSION_HEADER};
use crate::http_client::{Endpoint, classify, send};
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
struct Session<'a> {
    authentication_token: &'a str,
}

impl Sessions {
    pub(super) fn new(endpoint: Endpoint, key: HeaderValue) -> Self {
        Self {
            endpoint,
            key,
            current: Mutex::new(None),
        }
    }

    /// Returns the authorization of a session, which is a new one if the current one is `expired` or will expire soon.
    pub(super) async fn authorization(
        &self,
        expired: Option<&HeaderValue>,
    ) -> Result<HeaderValue, PushError> {
        let mut current = self.current.lock().await;
        if let Some((token, until)) = &*current
            && *until > Instant::now()
            && expired != Some(token)
        {
            return Ok(token.clone());
        }
        let begin = Instant::now();
        let token = timeout(DEADLINE, self.create()).await;
        let token =
            token.map_err(|_| PushError::not_stored("the creation of a session timed out"))?;
        let token = token.map_err(PushError::into_not_stored)?;
        *current = Some((token.clone(), begin + LIFETIME));
        Ok(token)
    }

    async fn create(&self) -> Result<HeaderValue, PushError> {
        let request = self.endpoint.post();
        let request = request.header(AUTHORIZATION, &self.key);
        let request = request.header(VERSION_HEADER, STRIPE_VERSION);
        let response = send(request.header(CONTENT_LENGTH, 0)).await?;
        classify(response.status(), response.headers())?;
        let body = orgkey_http::read_body(response, MAX_BODY).await;
        let body = body.map_err(|error| PushError::retry(error.without_url()))?;
        let session = body.as_ref().and_then(|body| {
            let session: Session<'_> = serde_json::from_slice(body).ok()?;
            orgkey_http::bearer(session.authentication_token)
        });
        session.ok_or_else(|| PushError::retry("the session has no usable token"))
    }
}
