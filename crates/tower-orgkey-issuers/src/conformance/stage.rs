//! A layer with the verifier under test, and its clock.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, RETRY_AFTER};
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use tower::{ServiceExt as _, service_fn};
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKey, ApiKeyLayer, ConfigError, OrgContext, Verifier};

use super::watched::{Record, Watched};

/// The soft TTL of the layer. Each entry's is shortened at random by up to 15 %.
pub(super) const SOFT_TTL: Duration = Duration::from_secs(60);

pub(super) struct Stage {
    layer: ApiKeyLayer,
    pub(super) clock: TestClock,
    pub(super) record: Arc<Record>,
}

/// What a caller saw.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The handler ran, for this organization.
    Organization(String),
    /// This status, and whether there was a `Retry-After`.
    Status(u16, bool),
}

impl Seen {
    pub(super) fn is_organization(&self, organization: &str) -> Result<(), String> {
        match self {
            Self::Organization(seen) if seen == organization => Ok(()),
            Self::Organization(seen) => Err(format!("a key of {organization} acts for {seen}")),
            Self::Status(status, _) => Err(format!("a valid key got {status}")),
        }
    }

    pub(super) fn is_unauthorized(&self) -> Result<(), String> {
        match self {
            Self::Status(401, _) => Ok(()),
            Self::Status(status, _) => Err(format!("an invalid key got {status}")),
            Self::Organization(_) => Err("an invalid key was accepted".to_owned()),
        }
    }

    pub(super) fn is_unavailable(&self) -> Result<(), String> {
        match self {
            Self::Status(503, true) => Ok(()),
            Self::Status(503, false) => Err("503 had no Retry-After".to_owned()),
            Self::Status(status, _) => Err(format!("a new valid key got {status}")),
            Self::Organization(_) => Err("a new key was accepted: there was no fault".to_owned()),
        }
    }
}

impl Stage {
    /// A layer that has verified no key.
    pub(super) fn new<V: Verifier>(verifier: Arc<V>) -> Result<Self, ConfigError> {
        let watched = Watched::new(verifier);
        let (record, clock) = (watched.record(), TestClock::new());
        let builder = ApiKeyLayer::builder(watched).max_key_len(tower_orgkey::MAX_KEY_LEN);
        Ok(Self {
            layer: builder
                .soft_ttl(SOFT_TTL)
                .test_clock(clock.clone())
                .build()?,
            clock,
            record,
        })
    }

    /// Sends a request with this key.
    pub(super) async fn request(&self, key: &ApiKey) -> Seen {
        let handler = service_fn(async |request: Request<()>| {
            let mut response = Response::new(Full::<Bytes>::default());
            if let Ok(org) = OrgContext::of(request.extensions()) {
                response.extensions_mut().insert(org.org_code().clone());
            }
            Ok::<_, std::convert::Infallible>(response)
        });
        let service = tower::Layer::layer(&self.layer, handler);
        let mut request = Request::new(());
        // All bytes of a key are valid in a header.
        if let Ok(value) = HeaderValue::try_from(format!("Bearer {}", key.expose_secret())) {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let Ok(response) = service.oneshot(request).await;
        match response.extensions().get::<tower_orgkey::OrgCode>() {
            Some(org) => Seen::Organization(org.as_str().to_owned()),
            None => Seen::Status(
                response.status().as_u16(),
                response.headers().contains_key(RETRY_AFTER),
            ),
        }
    }

    /// Waits until the layer has stored the results of all calls.
    pub(super) async fn settle(&self) {
        let handle = self.layer.handle();
        while handle.issuers().any(|(_, state)| state.in_flight > 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Lets a soft TTL pass, sends a request with a stale key, waits until it has been verified again, and returns
    /// what a second request sees.
    pub(super) async fn verify_again(&self, key: &ApiKey) -> Result<Seen, String> {
        self.clock.jump(SOFT_TTL);
        self.verify_stale(key).await
    }

    /// The same, for a key that is stale.
    pub(super) async fn verify_stale(&self, key: &ApiKey) -> Result<Seen, String> {
        let finished = self.record.finished();
        if let Seen::Organization(_) = self.request(key).await {
            self.record.wait_beyond(finished).await?;
        }
        self.settle().await;
        Ok(self.request(key).await)
    }
}
