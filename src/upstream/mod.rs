//! What stands before any verifier.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Tick};
use crate::key::ApiKey;
use crate::verify::{Answer, DynVerifier, VerifyErrorKind};

/// On whose behalf the issuer is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A key whose facts are held.
    Known { in_background: bool },
    /// A key that was good in the last day.
    Former,
    /// Any other key, and who presents it.
    Stranger { peer: Option<u64> },
}

/// The leave to ask once.
#[derive(Debug)]
pub(crate) struct Ticket {
    asker: Asker,
}

/// The issuer did not tell, or was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CannotTell {
    pub(crate) is_misconfigured: bool,
    pub(crate) retry_after: Duration,
}

impl CannotTell {
    pub(crate) fn unavailable(retry_after: Duration) -> Self {
        Self {
            is_misconfigured: false,
            retry_after,
        }
    }
}

pub(crate) struct Upstream {
    verifier: Arc<dyn DynVerifier>,
    clock: Clock,
    attempt_deadline: Duration,
    retry_after: Duration,
}

impl Upstream {
    pub(crate) fn new(
        verifier: Arc<dyn DynVerifier>,
        clock: Clock,
        settings: &crate::config::Settings,
    ) -> Self {
        Self {
            verifier,
            clock,
            attempt_deadline: settings.attempt_deadline,
            retry_after: settings.retry_after,
        }
    }

    pub(crate) fn ticket(&self, asker: Asker, _now: Tick) -> Result<Ticket, CannotTell> {
        Ok(Ticket { asker })
    }

    pub(crate) async fn ask(
        &self,
        ticket: Ticket,
        key: &ApiKey,
        sent: impl Fn(Tick),
    ) -> Result<(Answer, Tick), CannotTell> {
        let is_known = matches!(ticket.asker, Asker::Known { .. });
        let sent_at = self.clock.now();
        sent(sent_at);
        let call = self.verifier.call(key, is_known);
        match tokio::time::timeout(self.attempt_deadline, call).await {
            Ok(Ok(verification)) => Ok((verification.0, sent_at)),
            Ok(Err(error)) => Err(CannotTell {
                is_misconfigured: error.kind() == VerifyErrorKind::Misconfigured,
                retry_after: error.retry_after().unwrap_or(self.retry_after),
            }),
            Err(_) => Err(CannotTell::unavailable(self.retry_after)),
        }
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").finish_non_exhaustive()
    }
}
