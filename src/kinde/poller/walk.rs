//! One walk: its calls, and what the pages say of the keys held.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use super::KeyPoller;
use crate::cache::{ApiKeyHandle, CachedKey};
use crate::context::KeyId;
use crate::kinde::token::{Credentials, Token};
use crate::kinde::wire::{ListReading, ListedKey, Page, read_list};
use crate::telemetry::poller as telemetry;
use crate::verify::VerifyError;

/// What is held, less what the pages have shown to be good.
pub(super) struct Comparison {
    keys: ApiKeyHandle,
    /// Not seen yet.
    unseen: HashMap<KeyId, Vec<CachedKey>>,
    rotated: Vec<CachedKey>,
    /// Hashes of all ids seen: a list that repeats itself is not being walked, whatever it says.
    seen: HashSet<u64>,
    hasher: RandomState,
}

impl Comparison {
    pub(super) fn new(keys: ApiKeyHandle, held: HashMap<KeyId, Vec<CachedKey>>) -> Self {
        Self {
            keys,
            unseen: held,
            rotated: Vec::new(),
            seen: HashSet::new(),
            hasher: RandomState::new(),
        }
    }

    pub(super) fn see(&mut self, listed: Vec<ListedKey>) -> Result<(), VerifyError> {
        for key in listed {
            if !self.seen.insert(self.hasher.hash_one(&key.id)) {
                return Err(VerifyError::unavailable("the list shows a key twice"));
            }
            // The filter was for active keys; one that is listed in spite of it is as good as absent.
            if key.is_inactive {
                continue;
            }
            let Some(held) = self.unseen.remove(&key.id) else {
                continue;
            };
            let tail = key.suffix.and_then(|suffix| self.keys.listed_tail(&suffix));
            self.rotated
                .extend(held.into_iter().filter(|held| held.differs_from(tail)));
        }
        Ok(())
    }

    /// What a whole list speaks against: keys that it does not show, or shows with another secret.
    pub(super) fn condemned(self) -> Vec<CachedKey> {
        let mut condemned = self.rotated;
        condemned.extend(self.unseen.into_values().flatten());
        condemned
    }
}

impl KeyPoller {
    /// The page after this key, at the poller's pace.
    pub(super) async fn page(&mut self, after: Option<&KeyId>) -> Result<Page, VerifyError> {
        let Some(token) = self.kinde.credentials.token().await? else {
            return Err(token_refused());
        };
        match self.call(after, &token).await? {
            ListReading::Page(page) => return Ok(page),
            ListReading::CannotTell(error) => return Err(error),
            ListReading::TokenRefused => {}
        }
        // It may be a token that was revoked early, or one that was made without its scopes.
        let Credentials::Client(source) = &self.kinde.credentials else {
            return Err(token_refused());
        };
        let renewals = &mut self.renewals;
        let Some(renewed) = source.renew(token.id, |now| renewals.pass(now)).await? else {
            return Err(token_refused());
        };
        match self.call(after, &renewed).await? {
            ListReading::Page(page) => Ok(page),
            ListReading::CannotTell(error) => Err(error),
            ListReading::TokenRefused => Err(token_refused()),
        }
    }

    async fn call(
        &mut self,
        after: Option<&KeyId>,
        token: &Token,
    ) -> Result<ListReading, VerifyError> {
        if self.calls >= self.settings.max_calls_per_walk {
            return Err(VerifyError::unavailable(
                "the list does not end within the walk's budget of calls",
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

fn token_refused() -> VerifyError {
    VerifyError::misconfigured(
        "our own token may not list keys; it needs the scope `read:api_keys`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ApiKeyLayer;
    use crate::kinde::KindeVerifier;

    #[tokio::test(start_paused = true)]
    async fn calls_go_out_at_the_pollers_pace_whatever_becomes_of_them() {
        // A port that is held, and that nothing listens on.
        let port = tokio::net::TcpSocket::new_v4().unwrap();
        port.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let kinde = KindeVerifier::builder(format!("http://{}", port.local_addr().unwrap()))
            .bearer_token("token")
            .build()
            .unwrap();
        let keys = ApiKeyLayer::new(kinde.clone()).handle();
        let poller = KeyPoller::builder(&kinde, keys).calls_per_second(5);
        let mut poller = poller.build().unwrap();
        let pace = Duration::from_millis(200);
        for _ in 0..3 {
            let not_before = poller.next_call;
            poller.page(None).await.unwrap_err();
            assert!(Instant::now() >= not_before);
            assert!(poller.next_call >= not_before + pace);
        }
        assert_eq!(poller.calls, 3);
    }
}
