//! The emulator, the clocks, and a process that bills, with totals that outlive it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use kinde_emulator::{AgreementSpec, KindeEmulator};
use tower_orgkey::OrgCode;
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey_usage::test_util::TestWallClock;
use tower_orgkey_usage::{
    KindeBillingSender, KindeBillingSink, PushError, SendReport, SpoolFile, SpoolFileError,
    TotalsFile, TotalsStore, Unsettled, UsageHandle, UsagePusher, UsageRecord, UsageSink,
};

use crate::kit::{Sums, app, next_minute, read_times, usage};

pub(crate) const MINUTE: u64 = 60;
const DAY: u64 = 86_400;
/// The length of a billing period.
const PERIOD: u64 = 2 * DAY;

/// A sink whose answers can be lost, and that can park a record.
pub(crate) struct Lossy<S> {
    sink: KindeBillingSink<S>,
    loses: Arc<AtomicBool>,
    parks: Arc<AtomicBool>,
}

impl<S: TotalsStore> UsageSink for Lossy<S> {
    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        if self.parks.swap(false, Ordering::SeqCst) {
            return Err(PushError::park("not now", [0]));
        }
        self.sink.push(batch).await?;
        if self.loses.swap(false, Ordering::SeqCst) {
            return Err(PushError::retry("the answer was lost"));
        }
        Ok(())
    }
}

/// A process that counts and bills.
pub(crate) struct Process<S> {
    pub(crate) app: Router,
    pub(crate) handle: UsageHandle,
    pub(crate) pusher: UsagePusher<Lossy<S>>,
    pub(crate) sender: KindeBillingSender<S>,
    pub(crate) loses: Arc<AtomicBool>,
    pub(crate) parks: Arc<AtomicBool>,
}

/// Where totals are, which outlive a process.
pub(crate) trait Totals {
    type Store: TotalsStore;

    fn open(&self) -> impl Future<Output = Self::Store>;
}

/// A totals file.
pub(crate) struct TotalsAt(PathBuf);

impl Totals for TotalsAt {
    type Store = TotalsFile;

    async fn open(&self) -> TotalsFile {
        patiently(|| TotalsFile::single_node(&self.0))
    }
}

/// The emulator, the clocks, and what is stored, which outlive a process.
pub(crate) struct World<T = TotalsAt> {
    pub(crate) emulator: KindeEmulator,
    pub(crate) wall: TestWallClock,
    /// When the first billing periods begin.
    begin: SystemTime,
    pub(crate) directory: PathBuf,
    pub(crate) totals: T,
}

impl World {
    pub(crate) async fn new() -> Self {
        let create = async |_: &KindeEmulator, directory: &Path| {
            let path = directory.join("totals");
            drop(TotalsFile::first_start(&path).unwrap());
            TotalsAt(path)
        };
        World::with(create).await
    }

    pub(crate) fn path(&self) -> &Path {
        &self.totals.0
    }
}

impl<T: Totals> World<T> {
    /// With the totals that are created, in this directory.
    pub(crate) async fn with(create: impl AsyncFnOnce(&KindeEmulator, &Path) -> T) -> Self {
        let emulator = KindeEmulator::builder()
            .token_lifetime(Duration::from_secs(4_000 * DAY))
            .start()
            .await
            .unwrap();
        let begin = SystemTime::now() - Duration::from_secs(DAY / 2);
        let name = format!("orgkey-billing-{:032x}", rand());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        let totals = create(&emulator, &directory).await;
        Self {
            emulator,
            wall: TestWallClock::new(SystemTime::now()),
            begin,
            totals,
            directory,
        }
    }

    /// Starts an agreement, in place of the organization's other one.
    pub(crate) fn agree(&self, org: &str) -> String {
        let periods = Duration::from_secs(PERIOD);
        let spec = AgreementSpec::new(org).feature("api_calls");
        self.emulator
            .start_agreement(spec.periods(self.begin, periods))
    }

    pub(crate) fn verifier(&self) -> KindeVerifier {
        KindeVerifier::builder(self.emulator.issuer_url())
            .client_credentials(self.emulator.client_id(), self.emulator.client_secret())
            .build()
            .unwrap()
    }

    pub(crate) async fn start(&self) -> Process<T::Store> {
        self.start_node("spool").await
    }

    /// Starts a process with this spool file.
    pub(crate) async fn start_node(&self, spool: &str) -> Process<T::Store> {
        let (sink, sender) = KindeBillingSink::builder(&self.verifier(), "api_calls")
            .test_wall_clock(self.wall.clone())
            .build(self.totals.open().await)
            .unwrap();
        let usage = usage(&self.wall).build().unwrap();
        let loses = Arc::new(AtomicBool::new(false));
        let parks = Arc::new(AtomicBool::new(false));
        let sink = Lossy {
            sink,
            loses: Arc::clone(&loses),
            parks: Arc::clone(&parks),
        };
        let spool = patiently(|| SpoolFile::open(self.directory.join(spool)));
        let pusher = usage.handle().pusher(sink).spool_file(spool);
        Process {
            app: app(&usage),
            handle: usage.handle(),
            pusher: pusher.build().unwrap(),
            sender,
            loses,
            parks,
        }
    }

    pub(crate) fn advance(&self, seconds: u64) {
        let seconds = Duration::from_secs(seconds);
        self.wall.set(self.wall.now() + seconds);
        let ahead = self
            .wall
            .now()
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        let ahead = i32::try_from(ahead.as_secs()).unwrap();
        self.emulator.set_clock_offset(ahead);
    }

    /// The seconds until the present billing period ends.
    pub(crate) fn left(&self) -> u64 {
        let into = self.wall.now().duration_since(self.begin).unwrap();
        PERIOD - into.as_secs() % PERIOD
    }

    pub(crate) fn billed(&self) -> Sums {
        let mut sums = Sums::new();
        for period in self.emulator.usage() {
            if period.total > 0 {
                *sums.entry(period.org_code).or_default() += period.total;
            }
        }
        sums
    }

    /// The totals of an organization's periods, in no order of agreements.
    pub(crate) fn totals_of(&self, org: &str) -> Vec<u64> {
        let usage = self.emulator.usage().into_iter();
        usage
            .filter(|period| period.org_code == org)
            .map(|period| period.total)
            .collect()
    }

    pub(crate) fn calls(&self) -> u64 {
        self.emulator.calls().record_usage.total
    }

    pub(crate) fn assert_never_lowered(&self) {
        for period in self.emulator.usage() {
            assert_eq!(period.lowered, 0, "{period:?}");
        }
    }

    /// Returns whether Kinde billed these units. A person would look at the invoice.
    pub(crate) fn was_billed(&self, units: &Unsettled) -> bool {
        self.emulator.usage().iter().any(|period| {
            let starts_at = units.period_starts_at;
            let at = period
                .starts_at
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap();
            let shown = starts_at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            period.agreement_id == units.agreement_id
                && at.as_secs() == shown.as_secs()
                && period.total >= units.total
        })
    }
}

impl<T> Drop for World<T> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn rand() -> u128 {
    u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..))
}

/// Opens a file that a dropped process may still write.
fn patiently<T>(open: impl Fn() -> Result<T, SpoolFileError>) -> T {
    for _ in 0..10_000 {
        match open() {
            Err(SpoolFileError::InUse { .. }) => std::thread::sleep(Duration::from_millis(1)),
            opened => return opened.unwrap(),
        }
    }
    panic!("the file is never let go of");
}

pub(crate) fn org(name: &str) -> OrgCode {
    OrgCode::new(name).unwrap()
}

impl<S: TotalsStore> Process<S> {
    /// Serves requests, and pushes their counts to the sink.
    pub(crate) async fn serve(&mut self, world: &World<impl Totals>, org: &str, times: u64) {
        read_times(&self.app, times, &format!("key.{org}.k1")).await;
        next_minute(&world.wall);
        world.advance(0);
        self.push().await;
    }

    pub(crate) async fn push(&mut self) {
        // Twice: the first answer may be lost.
        for _ in 0..2 {
            self.pusher.push_closed().await;
        }
        assert_eq!(self.handle.stats().waiting, 0);
    }

    pub(crate) async fn send(&mut self) -> SendReport {
        self.sender.send_due().await
    }

    pub(crate) async fn unsettled(&self) -> Vec<Unsettled> {
        self.sender.unsettled().await.unwrap()
    }

    /// Settles what is parked, as Kinde shows it, and sends until nothing is due.
    pub(crate) async fn settle(&mut self, world: &World<impl Totals>) {
        for _ in 0..20 {
            for units in self.unsettled().await {
                let was_billed = world.was_billed(&units);
                self.sender.settle(&units, was_billed).await.unwrap();
            }
            let report = self.send().await;
            if report == SendReport::default() && self.unsettled().await.is_empty() {
                return;
            }
            world.advance(6 * MINUTE);
        }
        panic!("units are held for good");
    }
}
