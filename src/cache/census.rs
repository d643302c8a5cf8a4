//! Compares what is held with what an issuer lists.
//!
//! A list is older than a verification that was sent while it was read, so it judges only what was held before. And it is
//! no issuer's answer about a key, so what it speaks against is invalidated: asked about once more, by whoever comes next.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::entry::{Entry, Freshness};
use super::handle::ApiKeyHandle;
use super::rules::Ruling;
use crate::clock::Tick;
use crate::key::{KEY_TAIL_LEN, KeyTail};

/// So many at a time: each batch costs every cached key one consultation of the rules.
const BATCH: usize = 1_000;

/// A good key of an organization, as a list can judge it.
#[derive(Clone, Debug)]
pub(crate) struct Held(Arc<Entry>);

impl Held {
    pub(crate) fn key_id(&self) -> Option<&crate::context::KeyId> {
        self.0.facts.key_id.as_ref()
    }

    /// Whether the secret is shown to be another than the listed one. An entry that does not know its secret's end, and
    /// a list that does not show it, prove nothing.
    pub(crate) fn differs_from(&self, listed: Option<KeyTail>) -> bool {
        matches!((self.0.tail, listed), (Some(held), Some(listed)) if held != listed)
    }
}

impl ApiKeyHandle {
    /// From now on entries keep what their comparison needs.
    pub(crate) fn keep_tails(&self) {
        self.0.keeps_tails.store(true, Ordering::Relaxed);
    }

    /// The end of a secret as an issuer lists it, if it is one.
    pub(crate) fn listed_tail(&self, suffix: &str) -> Option<KeyTail> {
        if suffix.len() == KEY_TAIL_LEN {
            self.0.secret.tail(suffix)
        } else {
            None
        }
    }

    /// The keys of organizations that are held now, and which moment that is. Only those with an id can be compared.
    pub(crate) fn held(&self) -> (Vec<Held>, Tick) {
        let cache = &self.0;
        // Read first: what is verified while the store is read counts as verified later.
        let now = cache.clock.now();
        let mut entries = cache.store.all();
        entries.retain(|entry| {
            let facts = &entry.facts;
            let is_organizations =
                facts.org.is_some() && facts.user().is_none() && facts.key_id.is_some();
            is_organizations
                && entry.sent_at < now
                && !matches!(entry.freshness(now), Freshness::Expired | Freshness::Gone)
                && cache.rules.on(entry) == Ruling::Clear
        });
        (entries.into_iter().map(Held).collect(), now)
    }

    /// Invalidates what is held of these keys, except what was verified since. Returns how many that were.
    pub(crate) async fn invalidate_held(&self, held: &[Held], since: Tick) -> usize {
        let cache = &self.0;
        let mut invalidated = 0;
        for batch in held.chunks(BATCH) {
            let digests: Vec<_> = batch
                .iter()
                .map(|Held(entry)| entry.digest)
                .filter(|digest| {
                    let current = cache.store.get(*digest);
                    current.is_some_and(|current| current.sent_at < since)
                })
                .collect();
            // The fence is for those who hold facts outside of the store: streams, waiters, flights.
            cache.rules.fence_keys(&digests, self.fence());
            for digest in &digests {
                cache.forget(*digest);
            }
            invalidated += digests.len();
            tokio::task::yield_now().await;
        }
        invalidated
    }
}
