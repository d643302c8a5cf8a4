//! Bills with Kinde, whose meter has no idempotency keys.

mod builder;
mod file;
mod ledger;
mod sender;
mod store;
mod telemetry;
mod wire;

use std::fmt;
use std::sync::Arc;

use tower_orgkey::kinde::KindeVerifier;

pub use self::builder::KindeBillingBuilder;
pub use self::file::TotalsFile;
pub use self::ledger::{HoldReason, Ledger, PeriodTotal};
pub use self::sender::{KindeBillingSender, ResumeError, SendReport, Unsettled};
pub use self::store::{MaybeAdded, OrgTotal, RecordUnits, Totals, TotalsError, TotalsStore};
use crate::account::Account;
use crate::record::UsageRecord;
use crate::sink::{PushError, UsageSink};

/// The measure of a record, in units.
type Measure = dyn Fn(&UsageRecord) -> u64 + Send + Sync;

/// Counts records for a metered feature of Kinde, and stores the counts. A [`KindeBillingSender`] sends them, to `POST
/// /api/v1/billing/meter_usage`.
///
/// **Experimental**: it was not used with a live tenant yet, see [below](#what-only-a-tenant-can-tell).
///
/// # Exact sums without idempotency keys
///
/// Kinde's meter counts a call that is repeated twice. So the sender never adds: it sends the total of the organization's agreement
/// and billing period (`absolute`), which may be repeated. The sum over all periods and agreements of an organization is the
/// number of units that were counted. Units are whole numbers: by default [`served`](crate::Counts::served), the requests minus
/// those that were rejected.
///
/// | rule | without it |
/// |---|---|
/// | each record is added once, also one that is [pushed again](crate::Settlement::PushAgain) after later ones, and stored before anything is sent | a crash or a repeated push changes the sum |
/// | one writer: a [`TotalsFile`] for a single node, or a [`TotalsStore`] for several, of which one sends | the totals of two nodes replace each other |
/// | a total that was not answered is repeated until it is; a greater one follows 5 min later | a request that arrives late lowers the total |
/// | nothing is sent in the last 5 min of a billing period, nor until Kinde shows the next one; the rest is in the next total | the total of one period is taken as that of the next one |
/// | the first total of a period is sent even if it is 0 | as before, if a request is delayed for longer |
/// | a new agreement, after a change of plan, gets what the old one has not | units are billed twice or never |
/// | what was sent but not answered when its period or agreement ended is [parked](KindeBillingSender::unsettled), and logged | as before |
/// | a total that is lower than the last one, or that was [lost](TotalsFile#lost-and-older-files), is not sent | the bill is lowered |
///
/// An organization without agreement, or with an unknown billing period, is [held](HoldReason) and logged. Its units are kept, and
/// other organizations are billed. So is one with the agreement of another organization, until the billing period of the other
/// one's total is over: their totals would replace each other. This sink sees only organizations in its store, and which agreement
/// they have only when it sends; it does not notice other programs that send usage to the same agreement.
///
/// One sink bills one feature, and a layer has one pusher: several features need several layers. Each feature needs a separate
/// store; one that has the totals of another feature or of another issuer is an error. While a total is in flight, the wall clock
/// must not step forward by minutes.
///
/// Records without an organization are not counted. Those of
/// [organizations that were counted together](crate::Account::OtherOrganizations) are [parked](crate::ParkReason::Held), and can
/// only be settled as [billed](crate::Settlement::Billed), in another way: choose
/// [`organizations`](crate::UsageLayerBuilder::organizations) large enough.
///
/// # Access
///
/// The sender uses the access token of a [`KindeVerifier`]. The application needs the scopes `read:organizations`,
/// `read:billing_agreements` and `create:meter_usage`; build a second verifier with another application to keep them from the one
/// that verifies keys. It makes two or three calls per [interval](KindeBillingBuilder::interval) for each organization with new
/// units, one at a time.
///
/// # What only a tenant can tell
///
/// Kinde's documentation leaves open: whether `absolute` replaces the usage of the billing period and no other; when a period ends
/// for usage that arrives around its end, and when the agreement shows the next one; what is answered to usage of an agreement that
/// was cancelled; whether cancelled agreements are listed without `expires_on`; the greatest `meter_value`; and how many calls are
/// permitted. Compare the first invoices with the [snapshots](crate::UsageSnapshot).
///
/// # Example
///
/// ```no_run
/// use tower_orgkey::kinde::KindeVerifier;
/// use tower_orgkey_usage::{KindeBillingSink, SpoolFile, TotalsFile, UsageLayer};
///
/// # async fn bill(kinde: KindeVerifier) -> Result<(), Box<dyn std::error::Error>> {
/// let usage = UsageLayer::new();
/// let totals = TotalsFile::single_node("/var/lib/acme/billing.totals")?;
/// let (sink, sender) = KindeBillingSink::builder(&kinde, "api_calls").build(totals)?;
/// let spool = SpoolFile::open("/var/lib/acme/usage.spool")?;
/// tokio::spawn(usage.handle().pusher(sink).spool_file(spool).build()?.run());
/// tokio::spawn(sender.run());
/// # Ok(()) }
/// ```
#[must_use]
pub struct KindeBillingSink<S> {
    store: Arc<S>,
    measure: Box<Measure>,
}

impl KindeBillingSink<TotalsFile> {
    /// Returns a builder for the metered feature with this code.
    pub fn builder(kinde: &KindeVerifier, feature_code: impl Into<String>) -> KindeBillingBuilder {
        KindeBillingBuilder::new(kinde, feature_code.into())
    }
}

impl<S: TotalsStore> UsageSink for KindeBillingSink<S> {
    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        let (mut places, mut units, mut merged) = (Vec::new(), Vec::new(), Vec::new());
        for (place, record) in batch.iter().enumerate() {
            let measured = (self.measure)(record);
            if measured == 0 {
                continue;
            }
            match &record.account {
                Account::Organization(org) => {
                    places.push(place);
                    units.push(RecordUnits {
                        id: record.id.clone(),
                        minute: record.minute,
                        organization: org.clone(),
                        units: measured,
                    });
                }
                Account::OtherOrganizations => merged.push(place),
                Account::Anonymous | Account::Unauthenticated => {}
            }
        }
        if !merged.is_empty() {
            return Err(PushError::park(
                "a record is of several organizations",
                merged,
            ));
        }
        if units.is_empty() {
            return Ok(());
        }
        let Err(error) = self.store.add(&units).await else {
            return Ok(());
        };
        match error.downcast::<MaybeAdded>() {
            Ok(old) => {
                telemetry::maybe_counted(old.places.len());
                let at = old.places.iter().filter_map(|at| places.get(*at).copied());
                let at: Vec<usize> = at.collect();
                Err(PushError::park_maybe_stored(*old, at))
            }
            // Then records need not be pushed in another order, of which the file keeps track.
            Err(error) if error.is::<std::io::Error>() => Err(PushError::retry(error).of_sink()),
            Err(error) => Err(PushError::retry(error)),
        }
    }
}

impl<S> fmt::Debug for KindeBillingSink<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KindeBillingSink").finish_non_exhaustive()
    }
}
