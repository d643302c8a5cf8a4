//! Looks through Kinde's list of keys, so that what is rotated or taken away in Kinde's own pages takes effect here.

mod builder;
mod walk;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use self::builder::KeyPollerBuilder;
use self::walk::Comparison;
use super::token::RenewalGate;
use super::verifier::{Kinde, KindeVerifier};
use crate::cache::{ApiKeyHandle, CachedKey};
use crate::context::KeyId;
use crate::telemetry::poller as telemetry;
use crate::verify::{VerifyError, VerifyErrorKind};

/// Walks Kinde's list of keys from time to time, and invalidates what is held here of keys that are no longer good there.
///
/// Kinde tells nobody when a key is rotated or deleted, be it in its own pages or in its self-serve portal. Without a
/// poller that takes effect by the soft TTL: at most twice its length, and one verification. With one it takes effect within
/// one [period](KeyPollerBuilder::period), the time that a walk takes, and one verification, however long the soft TTL is.
///
/// # What a walk proves
///
/// One call a page to `GET /api/v1/api_keys?key_type=organization&status=active`, under a budget of its own: verification has
/// its calls to itself. Once the list was read to its end,
///
/// * a key held here whose id is absent from it is [invalidated](ApiKeyHandle::invalidate_key), and
/// * so is a secret whose last four characters are not those that the list shows for its id: it was rotated away.
///
/// Nothing is ever blocked: an invalidated key is verified anew by the next request that presents it. Keys that were
/// verified after the walk began are left alone, and so are keys without an id or an organization, and users' keys. A walk
/// that ends early, for whatever reason, proves nothing and changes nothing: an error, a page that makes no sense, a key
/// listed twice, a list that does not end within [its budget](KeyPollerBuilder::max_calls_per_walk).
///
/// A list that speaks against more than half of the keys held, and at least twenty of them, looks more like a list that is
/// not of everything (a token for one organization only, a fault of Kinde's) than like so many revocations. It is reported as
/// an error, and believed when the next complete walk finds it still so: then those take two walks.
///
/// To tell a rotated secret from its successor, entries keep four bytes more: a keyed digest of the secret's last four
/// characters, from which they cannot be read. Only layers with a poller keep it, for keys verified after the poller was
/// built. Two secrets with the same last four characters cannot be told apart; the soft TTL bounds those.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use tower_orgkey::ApiKeyLayer;
/// use tower_orgkey::kinde::{KeyPoller, KindeVerifier};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_orgkey::ConfigError> {
/// let kinde = KindeVerifier::builder("http://127.0.0.1:4010")
///     .client_credentials("the client's id", "the client's secret")
///     .build()?;
/// let auth = ApiKeyLayer::builder(kinde.clone()).soft_ttl(Duration::from_secs(300)).build()?;
/// let poller = KeyPoller::builder(&kinde, auth.handle())
///     .period(Duration::from_secs(30))
///     .build()?;
/// let polling = tokio::spawn(poller.run());
/// // … serve; then, at shutdown:
/// polling.abort();
/// # Ok(()) }
/// ```
pub struct KeyPoller {
    kinde: Arc<Kinde>,
    keys: ApiKeyHandle,
    settings: Settings,
    /// The next call does not go out before this.
    next_call: Instant,
    /// Calls that the walk under way has sent.
    calls: u32,
    renewals: RenewalGate,
    /// The last complete walk was not believed.
    is_doubtful: bool,
    is_failing: bool,
}

type Only = Box<dyn Fn(&KeyId) -> bool + Send + Sync>;

struct Settings {
    period: Duration,
    page_size: u32,
    max_calls_per_walk: u32,
    calls_per_second: u32,
    only: Option<Only>,
}

/// A walk takes no longer, whatever its budget: the longer it takes, the less of what is held it may judge.
const LONGEST_WALK: Duration = Duration::from_secs(10 * 60);
/// The longest pause that a 429 can order.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Fewer keys than this are believed to be taken away at once, whatever share they are.
const BELIEVED: usize = 20;

/// What a walk came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WalkReport {
    /// Calls sent: one a page, and one more for each new token. 0 when nothing was held, and so nothing was asked.
    pub calls: u32,
    /// Keys that Kinde listed.
    pub listed: usize,
    /// Secrets held here that could be compared with the list.
    pub compared: usize,
    /// How many of them were invalidated.
    pub invalidated: usize,
    /// `false` when the list spoke against so many keys that the next walk has to say so too.
    pub is_believed: bool,
}

/// A walk ended early. It proves nothing, and nothing was changed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the walk over the issuer's keys ended early")]
pub struct WalkError(#[source] VerifyError);

impl WalkError {
    /// What kept it from its end.
    pub fn kind(&self) -> VerifyErrorKind {
        self.0.kind()
    }
}

impl KeyPoller {
    /// A poller for the layer of this handle, over the verifier's token and connections.
    ///
    /// The token needs the scope `read:api_keys`, for the whole environment: one that is restricted to an organization sees
    /// that organization's keys alone.
    pub fn builder(kinde: &KindeVerifier, keys: ApiKeyHandle) -> KeyPollerBuilder {
        KeyPollerBuilder::new(kinde, keys)
    }

    /// Walks once in every period, for ever. Dropping the future stops it, at any moment.
    ///
    /// A walk that fails is tried again after a period, or when Kinde's 429 has asked for longer, after that, at most 60 s.
    pub async fn run(mut self) {
        // Nodes that started together do not walk together.
        let mut next = Instant::now() + self.settings.period.mul_f64(fastrand::f64());
        loop {
            tokio::time::sleep_until(next).await;
            let period = self.settings.period.mul_f64(0.9 + 0.1 * fastrand::f64());
            next = Instant::now() + period;
            if let Err(WalkError(error)) = self.walk_once().await {
                let asked = error.retry_after().unwrap_or_default().min(LONGEST_PAUSE);
                next = next.max(Instant::now() + asked);
            }
        }
    }

    /// Walks the list once, now. For schedules of your own.
    ///
    /// Dropped half-way it has changed nothing, or invalidated some of what it would have.
    pub async fn walk_once(&mut self) -> Result<WalkReport, WalkError> {
        let walked = match tokio::time::timeout(LONGEST_WALK, self.walk()).await {
            Ok(walked) => walked,
            Err(_) => Err(VerifyError::unavailable("the walk takes too long")),
        };
        match &walked {
            Ok(report) => {
                let end = match report {
                    WalkReport { calls: 0, .. } => telemetry::WalkEnd::Idle,
                    WalkReport {
                        is_believed: true, ..
                    } => telemetry::WalkEnd::Complete,
                    _ => telemetry::WalkEnd::NotBelieved,
                };
                telemetry::walked(end, report.compared, report.invalidated);
                if report.calls > 0 && std::mem::take(&mut self.is_failing) {
                    telemetry::works_again();
                }
            }
            Err(error) => {
                telemetry::failed();
                if !std::mem::replace(&mut self.is_failing, true) {
                    telemetry::fails(error);
                }
            }
        }
        walked.map_err(WalkError)
    }

    async fn walk(&mut self) -> Result<WalkReport, VerifyError> {
        let (mut held, began) = self.keys.cached_keys();
        if let Some(only) = &self.settings.only {
            held.retain(|held| held.key_id().is_some_and(only));
        }
        let compared = held.len();
        let mut report = WalkReport {
            calls: 0,
            listed: 0,
            compared,
            invalidated: 0,
            is_believed: true,
        };
        if held.is_empty() {
            return Ok(report);
        }
        self.calls = 0;
        let mut by_id: HashMap<KeyId, Vec<CachedKey>> = HashMap::new();
        for held in held {
            if let Some(key_id) = held.key_id() {
                by_id.entry(key_id.clone()).or_default().push(held);
            }
        }
        let mut comparison = Comparison::new(self.keys.clone(), by_id);
        let mut cursor: Option<KeyId> = None;
        loop {
            let page = self.page(cursor.as_ref()).await?;
            report.listed += page.keys.len();
            cursor = page.keys.last().map(|key| key.id.clone());
            comparison.see(page.keys)?;
            if !page.has_more {
                break;
            }
            if cursor.is_none() {
                return Err(VerifyError::unavailable(
                    "an empty page of the list says that there is more",
                ));
            }
        }
        report.calls = self.calls;
        let condemned = comparison.condemned();
        let is_too_much = condemned.len() >= BELIEVED && condemned.len() > compared / 2;
        report.is_believed = !is_too_much || self.is_doubtful;
        self.is_doubtful = !report.is_believed;
        if report.is_believed {
            report.invalidated = self.keys.invalidate_cached(&condemned, began).await;
        } else {
            telemetry::not_believed(condemned.len(), compared);
        }
        Ok(report)
    }
}

impl fmt::Debug for KeyPoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPoller")
            .field("issuer", &self.kinde.issuer)
            .field("period", &self.settings.period)
            .finish_non_exhaustive()
    }
}
