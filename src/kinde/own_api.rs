//! Accepts only keys that were issued for this API.
//!
//! Verify takes no audience and names no API, so a key of another API of the same tenant verifies as valid. The key's record
//! names its APIs; it is looked up once per key id and cached for an hour. Kinde's keys cannot be moved to another API or
//! organization, so a cached record does not go stale; the hour is the bound in case that ever changes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::status::StatusCode;
use moka::sync::Cache;
use tokio::time::timeout;

use super::http::Http;
use super::token::{Credentials, RenewalGate, Token};
use super::wire::{KeyReading, read_key};
use crate::clock::{Clock, Tick};
use crate::context::{KeyId, OrgCode};
use crate::telemetry;
use crate::verify::{Facts, VerifyError};

/// How long a record of a key of this API is cached.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// How many records are cached: as many as a layer caches keys by default.
const CAPACITY: u64 = 100_000;

/// Whether a key that verify accepted was issued for this API.
#[derive(Debug)]
pub(super) enum Ownership {
    Ours,
    NotOurs,
    /// The key has no record although verify has just accepted it: deleted meanwhile, or not created everywhere yet.
    NoRecord,
}

pub(super) struct OwnApi {
    http: Arc<Http>,
    clock: Clock,
    api_id: String,
    remembered: Cache<KeyId, Remembered>,
    trouble: Mutex<Trouble>,
}

#[derive(Clone)]
struct Remembered {
    org: Option<OrgCode>,
    at: Tick,
}

/// The look-up rejects the token.
#[derive(Default)]
struct Trouble {
    is_logged: bool,
    renewals: RenewalGate,
}

/// The look-up of a key's record failed. Concerns neither the key nor verify.
#[derive(Debug, thiserror::Error)]
#[error("the look-up of the key's record failed")]
struct LookUpFailed(#[source] VerifyError);

impl From<LookUpFailed> for VerifyError {
    fn from(error: LookUpFailed) -> Self {
        Self::inconclusive(error)
    }
}

impl OwnApi {
    pub(super) fn new(http: Arc<Http>, clock: Clock, api_id: String) -> Self {
        Self {
            http,
            clock,
            api_id,
            remembered: Cache::builder()
                .max_capacity(CAPACITY)
                // Housekeeping: the time that counts is read from our own clock.
                .time_to_live(REMEMBERED)
                .build(),
            trouble: Mutex::default(),
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
        let is_remembered = self.remembered.get(key_id).is_some_and(|remembered| {
            remembered.org == facts.org && now.since(remembered.at) <= REMEMBERED
        });
        if is_remembered {
            return Ok(Ownership::Ours);
        }
        let mut reading = self.look_up(key_id, facts, token, deadline).await?;
        let mut is_renewed = false;
        // The call carries no credential but the token, so a rejection is the token's and takes no probe. The token may have
        // been issued without its scopes, which verify does not notice, so verify's 200 is no reason to keep it.
        if let KeyReading::TokenRefused(_) = reading
            && let Some(token) = token
            && let Ok(Some(renewed)) = self.renewed(credentials, token, deadline).await
        {
            reading = self
                .look_up(key_id, facts, Some(&renewed), deadline)
                .await?;
            is_renewed = true;
        }
        let ownership = match reading {
            KeyReading::Ours => Ownership::Ours,
            KeyReading::NotOurs => Ownership::NotOurs,
            KeyReading::NoRecord => Ownership::NoRecord,
            KeyReading::TokenRefused(status) => return Err(self.rejected(status)),
            KeyReading::CannotTell(error) => return Err(LookUpFailed(error).into()),
        };
        {
            let mut trouble = self.trouble();
            trouble.is_logged = false;
            if is_renewed {
                trouble.renewals.reset();
            }
        }
        if matches!(ownership, Ownership::Ours) {
            let org = facts.org.clone();
            self.remembered
                .insert(key_id.clone(), Remembered { org, at: now });
        } else {
            self.remembered.invalidate(key_id);
        }
        Ok(ownership)
    }

    async fn look_up(
        &self,
        key_id: &KeyId,
        facts: &Facts,
        token: Option<&Token>,
        deadline: Duration,
    ) -> Result<KeyReading, LookUpFailed> {
        let call = self.http.key(key_id, token.map(|token| &token.header));
        let reply = within(deadline, call).await?;
        Ok(read_key(&reply, key_id, facts.org.as_ref(), &self.api_id))
    }

    async fn renewed(
        &self,
        credentials: &Credentials,
        token: &Token,
        deadline: Duration,
    ) -> Result<Option<Token>, LookUpFailed> {
        let gate = |now: Tick| self.trouble().renewals.pass(now);
        within(deadline, credentials.renew(token.id, gate)).await
    }

    /// The look-up rejects the token, a renewed one included.
    fn rejected(&self, status: StatusCode) -> VerifyError {
        let was_logged = std::mem::replace(&mut self.trouble().is_logged, true);
        if !was_logged {
            telemetry::kinde::look_up_refused(status.as_u16());
        }
        VerifyError::misconfigured(
            "the token may not look up keys; it needs the scope `read:api_keys`",
        )
    }

    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes one call within its deadline.
async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, VerifyError>>,
) -> Result<T, LookUpFailed> {
    match timeout(deadline, call).await {
        Ok(result) => result.map_err(LookUpFailed),
        Err(elapsed) => Err(LookUpFailed(VerifyError::unavailable(elapsed))),
    }
}
