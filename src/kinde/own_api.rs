//! Accepts only keys that were issued for this API.
//!
//! Verify takes no audience and names no API, so a key of another API of the same tenant verifies as valid. The key's record
//! names its APIs; it is looked up once per key id and cached for an hour, whether it names this API or not. Kinde's keys cannot be
//! moved to another API or organization, so a cached record does not go stale; the hour is the bound in case that ever changes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::status::StatusCode;
use moka::sync::Cache;

use super::http::Http;
use super::token::{Credentials, RenewalBackoff, Token};
use super::wire::{KeyReading, read_key};
use crate::clock::{Clock, Tick};
use crate::identifier::{KeyId, OrgCode};
use crate::telemetry;
use crate::verify::{Facts, VerifyError, within};

/// The time for which a record is cached.
const RECORD_TTL: Duration = Duration::from_secs(60 * 60);
/// The capacity of the cache of records: the default capacity of a layer.
const CAPACITY: u64 = 100_000;

/// Whether a key that verify accepted was issued for this API.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ownership {
    ThisApi,
    OtherApi,
    /// The record contradicts verify: the key is no longer active, or of another organization.
    Contradicted,
    /// The key has no record although verify has just accepted it: deleted meanwhile, or not created everywhere yet.
    NoRecord,
}

pub(super) struct OwnApi {
    http: Arc<Http>,
    clock: Clock,
    api_id: String,
    records: Cache<KeyId, CachedRecord>,
    token_state: Mutex<TokenState>,
}

#[derive(Clone)]
struct CachedRecord {
    org: Option<OrgCode>,
    ownership: Ownership,
    at: Tick,
}

/// Whether look-ups reject the token.
#[derive(Default)]
struct TokenState {
    is_logged: bool,
    renewals: RenewalBackoff,
}

/// The look-up of a key's record failed. Concerns neither the key nor verify.
#[derive(Debug, thiserror::Error)]
#[error("the look-up of the key's record failed")]
struct LookUpFailed(#[source] VerifyError);

fn look_up_failed(error: VerifyError) -> VerifyError {
    VerifyError::inconclusive(LookUpFailed(error))
}

impl OwnApi {
    pub(super) fn new(http: Arc<Http>, clock: Clock, api_id: String) -> Self {
        Self {
            http,
            clock,
            api_id,
            records: Cache::builder()
                .max_capacity(CAPACITY)
                // Frees memory only; the TTL is checked with the clock of this crate.
                .time_to_live(RECORD_TTL)
                .build(),
            token_state: Mutex::default(),
        }
    }

    /// Checks a key that verify accepted. Each call takes at most `deadline`.
    pub(super) async fn check(
        &self,
        facts: &Facts,
        credentials: &Credentials,
        token: Option<&Token>,
        deadline: Duration,
    ) -> Result<Ownership, VerifyError> {
        let Some(key_id) = &facts.key_id else {
            return Err(VerifyError::invalid_response(
                "the reply has no `key_id`, so the key cannot be checked against `api_id`",
            ));
        };
        let now = self.clock.now();
        let is_current =
            |record: &CachedRecord| record.org == facts.org && now.since(record.at) <= RECORD_TTL;
        if let Some(record) = self.records.get(key_id).filter(is_current) {
            return Ok(record.ownership);
        }
        let mut reading = self.look_up(key_id, facts, token, deadline).await?;
        let mut is_renewed = false;
        // The call carries no credential but the token, so a rejection is the token's and takes no probe. The token may have
        // been issued without its scopes, which verify does not notice, so verify's 200 is no reason to keep it.
        if let KeyReading::TokenRejected(_) = reading
            && let Some(token) = token
            && let Ok(Some(renewed)) = self.renewed(credentials, token, deadline).await
        {
            reading = self
                .look_up(key_id, facts, Some(&renewed), deadline)
                .await?;
            is_renewed = true;
        }
        let ownership = match reading {
            KeyReading::ThisApi => Ownership::ThisApi,
            KeyReading::OtherApi => Ownership::OtherApi,
            KeyReading::Contradicts => Ownership::Contradicted,
            KeyReading::NoRecord => Ownership::NoRecord,
            KeyReading::TokenRejected(status) => return Err(self.rejected(status)),
            KeyReading::CannotTell(error) => return Err(look_up_failed(error)),
        };
        {
            let mut state = self.token_state();
            state.is_logged = false;
            if is_renewed {
                state.renewals.reset();
            }
        }
        match ownership {
            Ownership::ThisApi | Ownership::OtherApi => {
                let record = CachedRecord {
                    org: facts.org.clone(),
                    ownership,
                    at: now,
                };
                self.records.insert(key_id.clone(), record);
            }
            // These may change.
            Ownership::Contradicted | Ownership::NoRecord => self.records.invalidate(key_id),
        }
        Ok(ownership)
    }

    async fn look_up(
        &self,
        key_id: &KeyId,
        facts: &Facts,
        token: Option<&Token>,
        deadline: Duration,
    ) -> Result<KeyReading, VerifyError> {
        let call = self.http.key(key_id, token.map(|token| &token.header));
        let reply = within(deadline, call).await.map_err(look_up_failed)?;
        Ok(read_key(&reply, key_id, facts.org.as_ref(), &self.api_id))
    }

    async fn renewed(
        &self,
        credentials: &Credentials,
        token: &Token,
        deadline: Duration,
    ) -> Result<Option<Token>, VerifyError> {
        let allow = |now: Tick| self.token_state().renewals.allow(now);
        within(deadline, credentials.renew(token.id, allow)).await
    }

    /// The look-up rejects the token, a renewed one included.
    fn rejected(&self, status: StatusCode) -> VerifyError {
        let was_logged = std::mem::replace(&mut self.token_state().is_logged, true);
        if !was_logged {
            telemetry::kinde::look_up_rejected(status.as_u16());
        }
        VerifyError::misconfigured(
            "the token may not look up keys; it needs the scope `read:api_keys`",
        )
    }

    fn token_state(&self) -> MutexGuard<'_, TokenState> {
        self.token_state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
