//! Admits only keys that were issued for this API.
//!
//! Verify takes no audience and names no API, so a key of another API of the same tenant verifies as valid. The key's own
//! record tells; it is looked up once per key id and remembered for an hour. Kinde's keys cannot be moved to another API
//! or organization, so what is remembered does not go stale; the hour bounds the damage if that ever changes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::sync::Cache;

use super::evidence::Gate;
use super::http::Http;
use super::token::{Credentials, Token};
use super::wire::{KeyReading, read_key};
use crate::clock::{Clock, Tick};
use crate::context::{KeyId, OrgCode};
use crate::telemetry;
use crate::verify::{Facts, VerifyError};

/// How long a record that let a key pass is remembered.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// How many records are remembered: as many as a layer holds keys by default.
const CAPACITY: u64 = 100_000;

/// Whether a key that verify accepted is one of ours.
#[derive(Debug)]
pub(super) enum Ownership {
    Ours,
    NotOurs,
    /// There is no record of a key that verify has just accepted: deleted in between, or not there yet.
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

/// Our token is refused at the look-up.
#[derive(Default)]
struct Trouble {
    is_logged: bool,
    renewals: Gate,
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

    pub(super) async fn check(
        &self,
        facts: &Facts,
        credentials: &Credentials,
        token: Option<&Token>,
    ) -> Result<Ownership, VerifyError> {
        let Some(key_id) = &facts.key_id else {
            return Err(VerifyError::unavailable(
                "the reply has no `key_id` to look the key's API up by",
            ));
        };
        let now = self.clock.now();
        let is_remembered = self.remembered.get(key_id).is_some_and(|remembered| {
            remembered.org == facts.org && now.since(remembered.at) <= REMEMBERED
        });
        if is_remembered {
            return Ok(Ownership::Ours);
        }
        let mut reading = self.look_up(key_id, facts, token).await?;
        // Nobody else's credential is in the call, so it is our token, with no probe to ask. It may be one that was made
        // without its scopes, which verify does not notice; hence verify's yes to it is no reason to keep it.
        if let KeyReading::TokenRefused(_) = reading
            && let Some(token) = token
            && let Credentials::Client(source) = credentials
            && let Some(renewed) = source.renew(token.id, |now| self.may_renew(now)).await?
        {
            reading = self.look_up(key_id, facts, Some(&renewed)).await?;
        }
        if !matches!(
            reading,
            KeyReading::TokenRefused(_) | KeyReading::CannotTell(_)
        ) {
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Trouble::default();
        }
        match reading {
            KeyReading::Ours => {
                let org = facts.org.clone();
                self.remembered
                    .insert(key_id.clone(), Remembered { org, at: now });
                Ok(Ownership::Ours)
            }
            KeyReading::NotOurs => {
                self.remembered.invalidate(key_id);
                Ok(Ownership::NotOurs)
            }
            KeyReading::NoRecord => {
                self.remembered.invalidate(key_id);
                Ok(Ownership::NoRecord)
            }
            KeyReading::TokenRefused(status) => {
                let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                if !std::mem::replace(&mut trouble.is_logged, true) {
                    telemetry::kinde::look_up_refused(status.as_u16());
                }
                Err(VerifyError::misconfigured(
                    "our token may not look keys up; it needs the scope `read:api_keys`",
                ))
            }
            KeyReading::CannotTell(error) => Err(error),
        }
    }

    async fn look_up(
        &self,
        key_id: &KeyId,
        facts: &Facts,
        token: Option<&Token>,
    ) -> Result<KeyReading, VerifyError> {
        let reply = self
            .http
            .key(key_id, token.map(|token| &token.header))
            .await?;
        Ok(read_key(&reply, key_id, facts.org.as_ref(), &self.api_id))
    }

    fn may_renew(&self, now: Tick) -> bool {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.renewals.pass(now)
    }
}
