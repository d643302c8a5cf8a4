//! The calls of a reconciliation, and the comparison of its pages with the cached keys.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use super::KeyReconciler;
use crate::handle::{ApiKeyHandle, CachedKey};
use crate::identifier::KeyId;
use crate::kinde::token::Token;
use crate::kinde::wire::{ListReading, ListedKey, Page, read_list};
use crate::telemetry::reconciler as telemetry;
use crate::verify::VerifyError;

/// The cached keys that no page has shown to be valid yet.
pub(super) struct Comparison {
    keys: ApiKeyHandle,
    /// Not listed yet.
    unlisted: HashMap<KeyId, Vec<CachedKey>>,
    rotated: Vec<CachedKey>,
    /// Hashes of all listed ids. A list that repeats an id is invalid.
    listed: HashSet<u64>,
    hasher: RandomState,
}

impl Comparison {
    pub(super) fn new(keys: ApiKeyHandle, cached: HashMap<KeyId, Vec<CachedKey>>) -> Self {
        Self {
            keys,
            unlisted: cached,
            rotated: Vec::new(),
            listed: HashSet::new(),
            hasher: RandomState::new(),
        }
    }

    pub(super) fn add(&mut self, page: Vec<ListedKey>) -> Result<(), VerifyError> {
        for key in page {
            if !self.listed.insert(self.hasher.hash_one(&key.id)) {
                return Err(VerifyError::unavailable("the list has a key twice"));
            }
            // The request asks for active keys only, so an inactive one counts as missing.
            if key.is_inactive {
                continue;
            }
            let Some(cached) = self.unlisted.remove(&key.id) else {
                continue;
            };
            let tail = key.suffix.and_then(|suffix| self.keys.listed_tail(&suffix));
            self.rotated
                .extend(cached.into_iter().filter(|key| key.differs_from(tail)));
        }
        Ok(())
    }

    /// Returns the cached keys that the complete list lacks, or has with another secret.
    pub(super) fn outdated(self) -> Vec<CachedKey> {
        let mut outdated = self.rotated;
        outdated.extend(self.unlisted.into_values().flatten());
        outdated
    }
}

impl KeyReconciler {
    /// Reads the page after this key, at the configured rate.
    pub(super) async fn page(&mut self, after: Option<&KeyId>) -> Result<Page, VerifyError> {
        let Some(token) = self.kinde.credentials.token().await? else {
            return Err(token_rejected());
        };
        let mut reading = self.call(after, &token).await?;
        let renewals = &mut self.renewals;
        let allow = |now| renewals.allow(now);
        // The token may have been revoked early, or issued without its scopes.
        if let ListReading::TokenRejected = reading
            && let Some(renewed) = self.kinde.credentials.renew(token.id, allow).await?
        {
            reading = self.call(after, &renewed).await?;
        }
        match reading {
            ListReading::Page(page) => Ok(page),
            ListReading::CannotTell(error) => Err(error),
            ListReading::TokenRejected => Err(token_rejected()),
        }
    }

    async fn call(
        &mut self,
        after: Option<&KeyId>,
        token: &Token,
    ) -> Result<ListReading, VerifyError> {
        if self.calls >= self.settings.max_calls {
            return Err(VerifyError::unavailable(
                "the list is longer than `max_calls` pages",
            ));
        }
        tokio::time::sleep_until(self.next_call).await;
        self.calls += 1;
        self.next_call = Instant::now() + Duration::from_secs(1) / self.settings.calls_per_second;
        telemetry::called();
        let reply = self
            .kinde
            .http
            .list(self.settings.page_size, after, &token.header)
            .await?;
        Ok(read_list(&reply))
    }
}

fn token_rejected() -> VerifyError {
    VerifyError::misconfigured("the token may not list keys; it needs the scope `read:api_keys`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ApiKeyLayer;
    use crate::kinde::KindeVerifier;

    #[tokio::test(start_paused = true)]
    async fn failing_calls_keep_to_the_rate() {
        // A bound port without a listener.
        let port = tokio::net::TcpSocket::new_v4().unwrap();
        port.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let kinde = KindeVerifier::builder(format!("http://{}", port.local_addr().unwrap()))
            .bearer_token("token")
            .build()
            .unwrap();
        let keys = ApiKeyLayer::new(kinde.clone()).handle();
        let reconciler = KeyReconciler::builder(&kinde, keys).calls_per_second(5);
        let mut reconciler = reconciler.build().unwrap();
        let interval = Duration::from_millis(200);
        for _ in 0..3 {
            let not_before = reconciler.next_call;
            reconciler.page(None).await.unwrap_err();
            assert!(Instant::now() >= not_before);
            assert!(reconciler.next_call >= not_before + interval);
        }
        assert_eq!(reconciler.calls, 3);
    }
}
