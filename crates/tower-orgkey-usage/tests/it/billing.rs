//! Billing with Kinde, over a socket to the emulator: the sums are exact, whatever fails.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use kinde_emulator::{AgreementSpec, Endpoint, Fault, KindeEmulator};
use proptest::prelude::*;
use tower_orgkey::OrgCode;
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey_usage::test_util::TestWallClock;
use tower_orgkey_usage::{
    HoldReason, KindeBillingSender, KindeBillingSink, PushError, SendReport, Settlement, SpoolFile,
    SpoolFileError, TotalsFile, Unsettled, UsageHandle, UsagePusher, UsageRecord, UsageSink,
};

use crate::kit::{Sums, app, next_minute, read_times, sums, usage};

const MINUTE: u64 = 60;
const DAY: u64 = 86_400;
/// The length of a billing period.
const PERIOD: u64 = 2 * DAY;

/// A sink whose answers can be lost, and that can park a record.
struct Lossy {
    sink: KindeBillingSink<TotalsFile>,
    loses: Arc<AtomicBool>,
    parks: Arc<AtomicBool>,
}

impl UsageSink for Lossy {
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
struct Process {
    app: Router,
    handle: UsageHandle,
    pusher: UsagePusher<Lossy>,
    sender: KindeBillingSender<TotalsFile>,
    loses: Arc<AtomicBool>,
    parks: Arc<AtomicBool>,
}

/// The emulator, the clocks, and the files, which outlive a process.
struct World {
    emulator: KindeEmulator,
    wall: TestWallClock,
    /// When the first billing periods begin.
    begin: SystemTime,
    directory: PathBuf,
}

impl World {
    async fn new() -> Self {
        let emulator = KindeEmulator::builder()
            .token_lifetime(Duration::from_secs(4_000 * DAY))
            .start()
            .await
            .unwrap();
        let begin = SystemTime::now() - Duration::from_secs(DAY / 2);
        let name = format!("orgkey-billing-{:032x}", rand());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        drop(TotalsFile::first_start(directory.join("totals")).unwrap());
        Self {
            emulator,
            wall: TestWallClock::new(SystemTime::now()),
            begin,
            directory,
        }
    }

    fn totals(&self) -> PathBuf {
        self.directory.join("totals")
    }

    /// Starts an agreement, in place of the organization's other one.
    fn agree(&self, org: &str) -> String {
        let periods = Duration::from_secs(PERIOD);
        let spec = AgreementSpec::new(org).feature("api_calls");
        self.emulator
            .start_agreement(spec.periods(self.begin, periods))
    }

    fn open_totals(&self) -> TotalsFile {
        patiently(|| TotalsFile::single_node(self.totals()))
    }

    fn verifier(&self) -> KindeVerifier {
        KindeVerifier::builder(self.emulator.issuer_url())
            .client_credentials(self.emulator.client_id(), self.emulator.client_secret())
            .build()
            .unwrap()
    }

    fn start(&self) -> Process {
        let (sink, sender) = KindeBillingSink::builder(&self.verifier(), "api_calls")
            .test_wall_clock(self.wall.clone())
            .build(self.open_totals())
            .unwrap();
        let usage = usage(&self.wall).build().unwrap();
        let loses = Arc::new(AtomicBool::new(false));
        let parks = Arc::new(AtomicBool::new(false));
        let sink = Lossy {
            sink,
            loses: Arc::clone(&loses),
            parks: Arc::clone(&parks),
        };
        let spool = patiently(|| SpoolFile::open(self.directory.join("spool")));
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

    fn advance(&self, seconds: u64) {
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
    fn left(&self) -> u64 {
        let into = self.wall.now().duration_since(self.begin).unwrap();
        PERIOD - into.as_secs() % PERIOD
    }

    fn billed(&self) -> Sums {
        let mut sums = Sums::new();
        for period in self.emulator.usage() {
            if period.total > 0 {
                *sums.entry(period.org_code).or_default() += period.total;
            }
        }
        sums
    }

    /// The totals of an organization's periods, in no order of agreements.
    fn totals_of(&self, org: &str) -> Vec<u64> {
        let usage = self.emulator.usage().into_iter();
        usage
            .filter(|period| period.org_code == org)
            .map(|period| period.total)
            .collect()
    }

    fn calls(&self) -> u64 {
        self.emulator.calls().record_usage.total
    }

    fn assert_never_lowered(&self) {
        for period in self.emulator.usage() {
            assert_eq!(period.lowered, 0, "{period:?}");
        }
    }

    /// Returns whether Kinde billed these units. A person would look at the invoice.
    fn was_billed(&self, units: &Unsettled) -> bool {
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

impl Drop for World {
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

fn org(name: &str) -> OrgCode {
    OrgCode::new(name).unwrap()
}

impl Process {
    /// Serves requests, and pushes their counts to the sink.
    async fn serve(&mut self, world: &World, org: &str, times: u64) {
        read_times(&self.app, times, &format!("key.{org}.k1")).await;
        next_minute(&world.wall);
        world.advance(0);
        self.push().await;
    }

    async fn push(&mut self) {
        // Twice: the first answer may be lost.
        for _ in 0..2 {
            self.pusher.push_closed().await;
        }
        assert_eq!(self.handle.stats().waiting, 0);
    }

    async fn send(&mut self) -> SendReport {
        self.sender.send_due().await
    }

    async fn unsettled(&self) -> Vec<Unsettled> {
        self.sender.unsettled().await.unwrap()
    }

    /// Settles what is parked, as Kinde shows it, and sends until nothing is due.
    async fn settle(&mut self, world: &World) {
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

#[tokio::test]
async fn totals_are_sent_as_absolutes() {
    let world = World::new().await;
    let agreement = world.agree("org_1");
    let mut process = world.start();
    process.serve(&world, "org_1", 3).await;
    assert_eq!(world.calls(), 0, "a push sends nothing");
    assert_eq!(process.send().await.accepted, 1);
    let sent = world.emulator.last_request(Endpoint::RecordUsage).unwrap();
    for (field, value) in [
        ("customer_agreement_id", &*agreement),
        ("billing_feature_code", "api_calls"),
        ("meter_value", "3"),
        ("meter_type_code", "absolute"),
    ] {
        assert_eq!(sent.field(field), Some(value));
    }
    process.serve(&world, "org_1", 4).await;
    process.send().await;
    let calls = world.emulator.calls();
    process.send().await;
    assert_eq!(
        world.emulator.calls(),
        calls,
        "nothing is due, so Kinde is not asked"
    );
    assert_eq!(world.billed(), sums(&[("org_1", 7)]));
    assert_eq!(calls.token.ok, 1, "one token for all calls");
}

#[tokio::test]
async fn fault_168_a_lost_answer_bills_once() {
    let world = World::new().await;
    world.agree("org_1");
    let mut process = world.start();
    process.serve(&world, "org_1", 5).await;
    world
        .emulator
        .inject(Endpoint::RecordUsage, Fault::lose_reply().times(2));
    for _ in 0..2 {
        let report = process.send().await;
        assert_eq!(report.held, [(org("org_1"), HoldReason::Unavailable)]);
    }
    assert_eq!(world.emulator.calls().record_usage.faulted, 2);
    assert_eq!(process.send().await.accepted, 1);
    assert_eq!(world.billed(), sums(&[("org_1", 5)]));
    // An answer that says that nothing was recorded.
    process.serve(&world, "org_1", 1).await;
    world.advance(6 * MINUTE);
    world
        .emulator
        .inject(Endpoint::RecordUsage, Fault::status(500).times(1));
    process.send().await;
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 6)]));
    world.assert_never_lowered();
}

#[tokio::test]
async fn fault_169_a_late_request_lowers_no_total() {
    for restarts in [false, true] {
        let world = World::new().await;
        world.agree("org_1");
        let mut process = world.start();
        process.serve(&world, "org_1", 5).await;
        world
            .emulator
            .inject(Endpoint::RecordUsage, Fault::late().times(1));
        process.send().await;
        assert_eq!(world.emulator.calls().record_usage.faulted, 1);
        if restarts {
            drop(process);
            process = world.start();
        }
        process.serve(&world, "org_1", 2).await;
        process.send().await;
        assert_eq!(
            world.billed(),
            sums(&[("org_1", 5)]),
            "only the same total is repeated"
        );
        let report = process.send().await;
        assert_eq!(report.held, [(org("org_1"), HoldReason::Unanswered)]);
        world.advance(4 * MINUTE);
        world.emulator.clear_faults();
        world.advance(2 * MINUTE);
        assert_eq!(process.send().await.accepted, 1);
        assert_eq!(world.billed(), sums(&[("org_1", 7)]));
        world.assert_never_lowered();
    }
}

#[tokio::test]
async fn fault_170_the_end_of_a_period_moves_no_unit() {
    let world = World::new().await;
    world.agree("org_1");
    world.agree("org_2");
    let mut process = world.start();
    process.serve(&world, "org_1", 5).await;
    process.serve(&world, "org_2", 4).await;
    process.send().await;
    let sent = world.calls();
    world.advance(world.left() - 4 * MINUTE);
    process.serve(&world, "org_1", 3).await;
    let report = process.send().await;
    assert_eq!(report.held, [(org("org_1"), HoldReason::PeriodEnds)]);
    assert_eq!(world.calls(), sent);

    // The period is over, and Kinde shows it still.
    world.advance(world.left() + MINUTE);
    world.emulator.set_period_lag(Duration::from_secs(3_600));
    let report = process.send().await;
    let unknown = |name| (org(name), HoldReason::UnknownPeriod);
    assert_eq!(report.held, [unknown("org_1"), unknown("org_2")]);
    assert_eq!(world.calls(), sent);

    world.emulator.set_period_lag(Duration::ZERO);
    assert_eq!(process.send().await.accepted, 2);
    assert_eq!(world.totals_of("org_1"), [5, 3]);
    assert_eq!(
        world.totals_of("org_2"),
        [4, 0],
        "the first total is sent even if it is 0"
    );
    world.assert_never_lowered();
}

#[tokio::test]
async fn fault_171_a_new_agreement_gets_the_rest() {
    let world = World::new().await;
    let old = world.agree("org_1");
    let mut process = world.start();
    process.serve(&world, "org_1", 5).await;
    process.send().await;
    process.serve(&world, "org_1", 3).await;
    let new = world.agree("org_1");
    let stale = format!("{{\"agreements\":[{{\"id\":\"{old}\",");
    process.send().await;
    let mut billed: Vec<_> = world.emulator.usage();
    billed.sort_by_key(|period| period.total);
    let billed: Vec<_> = billed
        .iter()
        .map(|period| (&*period.agreement_id, period.total))
        .collect();
    assert_eq!(billed, [(&*new, 3), (&*old, 5)]);

    // An old reply that shows the closed agreement again.
    process.serve(&world, "org_1", 2).await;
    world.emulator.inject(
        Endpoint::ListAgreements,
        Fault::rewrite(move |body| {
            let (_, rest) = body.split_once("\"id\":\"").unwrap();
            let (_, rest) = rest.split_once("\",").unwrap();
            let (head, _) = body.split_once("\"id\":\"").unwrap();
            let old = stale.split('"').nth(5).unwrap();
            format!("{head}\"id\":\"{old}\",{rest}")
        })
        .times(1),
    );
    let report = process.send().await;
    assert_eq!(world.emulator.calls().list_agreements.faulted, 1);
    assert_eq!(report.held, [(org("org_1"), HoldReason::UnknownPeriod)]);
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 10)]));
    world.assert_never_lowered();
}

#[tokio::test]
async fn fault_172_lost_totals_are_not_sent() {
    for loss in ["missing", "older", "no second file"] {
        let world = World::new().await;
        world.agree("org_1");
        world.agree("org_2");
        let mut process = world.start();
        process.serve(&world, "org_1", 5).await;
        process.serve(&world, "org_2", 5).await;
        process.send().await;
        drop(process);
        drop(world.open_totals());
        let older = fs::read(world.totals()).unwrap();
        let mut process = world.start();
        process.serve(&world, "org_1", 4).await;
        process.serve(&world, "org_2", 4).await;
        process.send().await;
        drop(process);
        drop(world.open_totals());
        match loss {
            "missing" => fs::remove_file(world.totals()).unwrap(),
            "older" => fs::write(world.totals(), &older).unwrap(),
            _ => fs::remove_file(world.directory.join("totals.sent")).unwrap(),
        }
        let sent = world.calls();

        // Counting goes on, nothing is sent.
        let mut process = world.start();
        process.serve(&world, "org_1", 2).await;
        process.serve(&world, "org_2", 2).await;
        let lost = |name| (org(name), HoldReason::UnknownTotal);
        assert_eq!(process.send().await.held, [lost("org_1"), lost("org_2")]);
        drop(process);
        let mut process = world.start();
        assert_eq!(process.send().await.held, [lost("org_1"), lost("org_2")]);
        assert_eq!(world.calls(), sent, "{loss}");

        // One is continued by hand, the other one in its next period.
        process.sender.resume(&org("org_1"), 9).await.unwrap();
        process.send().await;
        assert_eq!(
            world.billed(),
            sums(&[("org_1", 11), ("org_2", 9)]),
            "{loss}"
        );
        world.advance(world.left() + MINUTE);
        process.send().await;
        assert_eq!(
            world.billed(),
            sums(&[("org_1", 11), ("org_2", 11)]),
            "{loss}"
        );
        world.assert_never_lowered();
    }
}

#[tokio::test]
async fn fault_173_a_held_organization_holds_no_other() {
    let world = World::new().await;
    world.emulator.add_organization("org_free");
    world.agree("org_1");
    let mut process = world.start();
    for name in ["org_free", "org_none", "org_1"] {
        process.serve(&world, name, 2).await;
    }
    let report = process.send().await;
    let none = |name| (org(name), HoldReason::NoAgreement);
    assert_eq!(report.held, [none("org_free"), none("org_none")]);
    assert_eq!(world.billed(), sums(&[("org_1", 2)]));

    // Null, and several agreements.
    process.serve(&world, "org_1", 2).await;
    let null = |body: &str| {
        body.replace(
            "\"current_period_end\":\"",
            "\"current_period_end\":null,\"x\":\"",
        )
    };
    let twice = |body: &str| {
        let mut body: serde_json::Value = serde_json::from_str(body).unwrap();
        let first = body["agreements"][0].clone();
        body["agreements"].as_array_mut().unwrap().push(first);
        body.to_string()
    };
    for (fault, reason) in [
        (Fault::rewrite(null), HoldReason::UnknownPeriod),
        (Fault::rewrite(twice), HoldReason::SeveralAgreements),
        (Fault::status(400), HoldReason::Rejected),
        (Fault::status(503), HoldReason::Unavailable),
        (
            Fault::reply(200, "application/json", "{"),
            HoldReason::Unavailable,
        ),
    ] {
        world.emulator.inject(Endpoint::ListAgreements, fault);
        let report = process.send().await;
        assert!(report.held.contains(&(org("org_1"), reason)), "{report:?}");
    }
    world.emulator.clear_faults();
    world.agree("org_free");
    world.agree("org_none");
    process.send().await;
    assert_eq!(
        world.billed(),
        sums(&[("org_1", 4), ("org_free", 2), ("org_none", 2)])
    );
}

#[tokio::test]
async fn fault_174_a_repeated_push_counts_once() {
    let world = World::new().await;
    world.agree("org_1");
    let mut process = world.start();
    process.loses.store(true, Ordering::SeqCst);
    process.serve(&world, "org_1", 5).await;
    assert!(!process.loses.load(Ordering::SeqCst), "no answer was lost");
    // Killed after the records were added, and before the pusher knew.
    read_times(&process.app, 3, "key.org_1.k1").await;
    next_minute(&world.wall);
    process.loses.store(true, Ordering::SeqCst);
    assert_eq!(process.pusher.push_closed().await.waiting, 1);
    drop(process);
    let mut process = world.start();
    process.push().await;
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 8)]));
}

#[tokio::test]
async fn fault_174_a_record_after_later_ones_counts() {
    let world = World::new().await;
    world.agree("org_1");
    let mut process = world.start();
    process.serve(&world, "org_1", 1).await;
    process.parks.store(true, Ordering::SeqCst);
    process.serve(&world, "org_1", 2).await;
    assert_eq!(process.handle.stats().parked, 1);
    process.serve(&world, "org_1", 4).await;
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 5)]));
    let parked = process.pusher.parked();
    let settled = parked.settle(Settlement::PushAgain, |_| true).await;
    assert_eq!(settled.unwrap(), 1);
    // The answer is lost, and the next process repeats it.
    process.loses.store(true, Ordering::SeqCst);
    assert_eq!(process.pusher.push_closed().await.waiting, 1);
    drop(parked);
    drop(process);
    let mut process = world.start();
    process.push().await;
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 7)]));
}

#[tokio::test]
async fn answer_of_a_proxy_is_no_rejection() {
    // Kinde may have recorded the total before a proxy gave up.
    for (status, parked) in [(408, 1), (409, 1), (502, 1), (400, 0), (422, 0)] {
        let world = World::new().await;
        world.agree("org_1");
        let mut process = world.start();
        process.serve(&world, "org_1", 5).await;
        world
            .emulator
            .inject(Endpoint::RecordUsage, Fault::status(status).times(1));
        assert_eq!(process.send().await.held.len(), 1);
        world.advance(world.left() + MINUTE);
        process.send().await;
        assert_eq!(process.unsettled().await.len(), parked, "{status}");
        let billed = if parked == 0 { 5 } else { 0 };
        assert_eq!(world.billed().values().sum::<u64>(), billed, "{status}");
    }
}

#[tokio::test]
async fn fault_175_an_unanswered_total_is_parked() {
    for (fault, was_billed) in [(Fault::lose_reply(), true), (Fault::close(), false)] {
        for changes_plan in [false, true] {
            let world = World::new().await;
            world.agree("org_1");
            let mut process = world.start();
            process.serve(&world, "org_1", 5).await;
            process.send().await;
            process.serve(&world, "org_1", 3).await;
            world
                .emulator
                .inject(Endpoint::RecordUsage, fault.clone().times(1));
            process.send().await;
            assert_eq!(world.emulator.calls().record_usage.faulted, 1);
            if changes_plan {
                world.agree("org_1");
            } else {
                world.advance(world.left() + MINUTE);
            }
            process.serve(&world, "org_1", 2).await;
            process.send().await;
            let parked = process.unsettled().await;
            assert_eq!(parked.len(), 1);
            assert_eq!((parked[0].units, parked[0].total), (3, 8));
            let sum = if was_billed { 10 } else { 7 };
            assert_eq!(
                world.billed(),
                sums(&[("org_1", sum)]),
                "nothing is billed twice"
            );
            assert_eq!(world.was_billed(&parked[0]), was_billed);
            process.sender.settle(&parked[0], was_billed).await.unwrap();
            assert!(process.sender.settle(&parked[0], was_billed).await.is_err());
            process.send().await;
            assert_eq!(world.billed(), sums(&[("org_1", 10)]));
        }
    }
}

#[tokio::test]
async fn fault_175_a_killed_sender_leaves_a_parked_total() {
    let world = World::new().await;
    world.agree("org_1");
    let mut process = world.start();
    process.serve(&world, "org_1", 5).await;
    // Recorded at once, and answered too slowly.
    let slow = Fault::trickle(Duration::from_secs(60)).times(1);
    world.emulator.inject(Endpoint::RecordUsage, slow);
    tokio::select! {
        _ = process.sender.send_due() => panic!("it was answered"),
        () = async {
            while world.billed().is_empty() {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    drop(process);
    let mut process = world.start();
    world.advance(world.left() + MINUTE);
    process.serve(&world, "org_1", 2).await;
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 7)]));
    assert_eq!(process.unsettled().await[0].total, 5);
}

#[tokio::test]
async fn round_ends_while_kinde_is_down() {
    let world = World::new().await;
    let mut process = world.start();
    for n in 0..8 {
        process.serve(&world, &format!("org_{n}"), 1).await;
    }
    world
        .emulator
        .inject(Endpoint::GetOrganization, Fault::status(503));
    for (last, calls) in [("org_4", 5), ("org_1", 10)] {
        process.send().await;
        assert_eq!(world.emulator.calls().get_organization.total, calls);
        let request = world.emulator.last_request(Endpoint::GetOrganization);
        let query = request.unwrap().uri().query().unwrap().to_owned();
        assert!(query.contains(&format!("code={last}&")), "{query}");
    }
}

#[tokio::test]
async fn sends_end_while_kinde_does_not_answer() {
    let world = World::new().await;
    let mut process = world.start();
    let mut agreements = Vec::new();
    for n in 0..8 {
        let name = format!("org_{n}");
        agreements.push(world.agree(&name));
        process.serve(&world, &name, 1).await;
    }
    world
        .emulator
        .inject(Endpoint::RecordUsage, Fault::status(503).times(5));
    assert_eq!(process.send().await.held.len(), 8);
    assert_eq!(world.calls(), 5);
    // Those that were not sent are first.
    world
        .emulator
        .inject(Endpoint::RecordUsage, Fault::status(429));
    process.send().await;
    let sent = world.emulator.last_request(Endpoint::RecordUsage).unwrap();
    assert_eq!(sent.field("customer_agreement_id"), Some(&*agreements[5]));
}

#[tokio::test]
async fn store_belongs_to_one_feature() {
    let world = World::new().await;
    drop(world.start());
    let store = Arc::new(world.open_totals());
    let build = |feature| {
        let builder = KindeBillingSink::builder(&world.verifier(), feature);
        builder.build(Arc::clone(&store))
    };
    assert_eq!(build("tokens").unwrap_err().field(), "store");
    assert!(build("api_calls").is_ok());
}

#[tokio::test]
async fn ended_agreement_is_not_asked_for_again() {
    let world = World::new().await;
    world.agree("org_1");
    let mut process = world.start();
    process.serve(&world, "org_1", 3).await;
    process.send().await;
    world.advance(world.left() + MINUTE);
    let none = Fault::reply(200, "application/json", r#"{"agreements":[]}"#);
    world.emulator.inject(Endpoint::ListAgreements, none);
    assert_eq!(process.send().await, SendReport::default());
    let calls = world.emulator.calls();
    process.send().await;
    assert_eq!(world.emulator.calls(), calls);
    process.serve(&world, "org_1", 2).await;
    let none = (org("org_1"), HoldReason::NoAgreement);
    assert_eq!(process.send().await.held, [none]);
    world.emulator.clear_faults();
    process.send().await;
    assert_eq!(world.totals_of("org_1"), [3, 2]);
}

#[tokio::test]
async fn revoked_token_is_renewed() {
    let world = World::new().await;
    world.agree("org_1");
    let mut process = world.start();
    process.serve(&world, "org_1", 1).await;
    process.send().await;
    world.emulator.revoke_tokens();
    process.serve(&world, "org_1", 1).await;
    assert_eq!(process.send().await.accepted, 1);
    assert_eq!(world.emulator.calls().token.ok, 2);
    // A scope that is missing is no reason for more tokens.
    world
        .emulator
        .inject(Endpoint::RecordUsage, Fault::reject_token());
    for _ in 0..5 {
        process.serve(&world, "org_1", 1).await;
        let report = process.send().await;
        assert_eq!(report.held, [(org("org_1"), HoldReason::Rejected)]);
    }
    assert_eq!(world.emulator.calls().token.ok, 2);
    world.emulator.clear_faults();
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 7)]));
}

#[tokio::test]
async fn throttled_sender_waits() {
    let world = World::new().await;
    world.agree("org_1");
    world.agree("org_2");
    let mut process = world.start();
    process.serve(&world, "org_1", 1).await;
    process.serve(&world, "org_2", 1).await;
    let busy = Fault::status(429).with_header("ratelimit-reset", "60");
    world.emulator.inject(Endpoint::RecordUsage, busy);
    assert_eq!(process.send().await.held.len(), 2);
    let calls = world.emulator.calls();
    assert_eq!(calls.record_usage.total, 1);
    assert_eq!(process.send().await, SendReport::default());
    assert_eq!(world.emulator.calls(), calls);
    let agreement = || {
        let sent = world.emulator.last_request(Endpoint::RecordUsage).unwrap();
        sent.field("customer_agreement_id").unwrap().to_owned()
    };
    let first = agreement();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    process.send().await;
    assert_eq!(world.calls(), 2);
    assert_ne!(agreement(), first, "the other one is first");
}

#[tokio::test]
async fn totals_file_has_one_process() {
    let world = World::new().await;
    let totals = world.open_totals();
    assert!(matches!(
        TotalsFile::single_node(world.totals()),
        Err(SpoolFileError::InUse { .. })
    ));
    drop(totals);
    assert!(matches!(
        TotalsFile::first_start(world.totals()),
        Err(SpoolFileError::Io { .. })
    ));
    let mut bytes = fs::read(world.totals()).unwrap();
    bytes[30] ^= 1;
    fs::write(world.totals(), &bytes).unwrap();
    assert!(matches!(
        TotalsFile::single_node(world.totals()),
        Err(SpoolFileError::Damaged { .. })
    ));
    assert_eq!(fs::read(world.totals()).unwrap(), bytes);
}

#[derive(Clone, Debug)]
enum Step {
    Serve {
        org: usize,
        times: u64,
        loses: bool,
    },
    Send,
    /// With a fault for the next `times` calls of an endpoint.
    Faulted {
        at: Endpoint,
        fault: Breaks,
        times: u64,
    },
    /// A total that arrives while others are sent.
    Late {
        org: usize,
        more: u64,
    },
    Wait {
        minutes: u64,
    },
    /// Shortly before, or after, the end of a period.
    NearEnd,
    Roll,
    Lag {
        minutes: u64,
    },
    ChangePlan {
        org: usize,
    },
    Restart,
}

#[derive(Clone, Copy, Debug)]
enum Breaks {
    LosesReply,
    Closes,
    Fails,
    RejectsToken,
    Truncates,
}

impl Breaks {
    fn fault(self) -> Fault {
        match self {
            Self::LosesReply => Fault::lose_reply(),
            Self::Closes => Fault::close(),
            Self::Fails => Fault::status(503),
            Self::RejectsToken => Fault::reject_token(),
            Self::Truncates => Fault::truncate(),
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let at = prop_oneof![
        3 => Just(Endpoint::RecordUsage),
        1 => Just(Endpoint::ListAgreements),
        1 => Just(Endpoint::GetOrganization),
    ];
    let fault = prop_oneof![
        2 => Just(Breaks::LosesReply),
        2 => Just(Breaks::Closes),
        1 => Just(Breaks::Fails),
        1 => Just(Breaks::RejectsToken),
        1 => Just(Breaks::Truncates),
    ];
    let org = 0..3_usize;
    prop_oneof![
        4 => (org.clone(), 1..6_u64, any::<bool>())
            .prop_map(|(org, times, loses)| Step::Serve { org, times, loses }),
        3 => Just(Step::Send),
        3 => (at, fault, 1..4_u64).prop_map(|(at, fault, times)| Step::Faulted { at, fault, times }),
        2 => (org.clone(), 1..6_u64).prop_map(|(org, more)| Step::Late { org, more }),
        2 => (1..15_u64).prop_map(|minutes| Step::Wait { minutes }),
        1 => Just(Step::NearEnd),
        2 => Just(Step::Roll),
        1 => (0..90_u64).prop_map(|minutes| Step::Lag { minutes }),
        1 => org.prop_map(|org| Step::ChangePlan { org }),
        1 => Just(Step::Restart),
    ]
}

async fn bills_exactly(steps: &[Step]) {
    let names = ["org_0", "org_1", "org_2"];
    let world = World::new().await;
    for name in names {
        world.agree(name);
    }
    let mut served: BTreeMap<String, u64> = BTreeMap::new();
    let mut process = world.start();
    for step in steps {
        match *step {
            Step::Serve { org, times, loses } => {
                process.loses.store(loses, Ordering::SeqCst);
                process.serve(&world, names[org], times).await;
                *served.entry(names[org].to_owned()).or_default() += times;
            }
            Step::Send => {
                process.send().await;
            }
            Step::Faulted { at, fault, times } => {
                world.emulator.inject(at, fault.fault().times(times));
                process.send().await;
            }
            Step::Late { org, more } => {
                world
                    .emulator
                    .inject(Endpoint::RecordUsage, Fault::late().times(1));
                process.send().await;
                process.serve(&world, names[org], more).await;
                *served.entry(names[org].to_owned()).or_default() += more;
                process.send().await;
                process.send().await;
                world.advance(2 * MINUTE);
                process.send().await;
                // Within the 5 min that a request may take.
                world.emulator.clear(Endpoint::RecordUsage);
            }
            Step::Wait { minutes } => world.advance(minutes * MINUTE),
            Step::NearEnd => {
                if world.left() > 4 * MINUTE {
                    world.advance(world.left() - 4 * MINUTE);
                }
            }
            Step::Roll => world.advance(world.left() + MINUTE),
            Step::Lag { minutes } => {
                world
                    .emulator
                    .set_period_lag(Duration::from_secs(minutes * MINUTE));
            }
            Step::ChangePlan { org } => {
                world.agree(names[org]);
            }
            Step::Restart => {
                drop(process);
                process = world.start();
            }
        }
        world.assert_never_lowered();
        for (name, billed) in world.billed() {
            let served = served.get(&name).copied().unwrap_or_default();
            assert!(
                billed <= served,
                "{name}: {billed} of {served} after {step:?}"
            );
        }
    }
    world.emulator.clear_faults();
    world.emulator.set_period_lag(Duration::ZERO);
    process.settle(&world).await;
    assert_eq!(world.billed(), served);
    world.assert_never_lowered();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn sums_are_exact_whatever_fails(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(bills_exactly(&steps));
    }
}
