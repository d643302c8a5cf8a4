//! The store with a real PostgreSQL, and the emulator's billing.

#![allow(clippy::unwrap_used)]
// Rust 1.88, for which the shared files are written, has no larger units.
#![allow(clippy::duration_suboptimal_units)]

#[path = "../../../crates/tower-orgkey-sqlx/tests/it/cluster.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod cluster;
#[path = "../../../crates/tower-orgkey-usage/tests/it/kit.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod kit;
#[path = "../../../crates/tower-orgkey-usage/tests/it/billing/random.rs"]
mod random;
#[path = "../../../crates/tower-orgkey-usage/tests/it/billing/world.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod world;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use example_billing::{PostgresTotals, SCHEMA};
use kinde_emulator::{Endpoint, Fault, KindeEmulator};
use proptest::prelude::*;
use sqlx::{Executor, PgPool};
use tower_orgkey_usage::{
    HoldReason, KindeBillingSink, ParkReason, SendReport, Settlement, TotalsStore,
};

use crate::cluster::Database;
use crate::kit::{app, next_minute, read_times, sums, usage};
use crate::random::{bills_exactly, steps};
use crate::world::{MINUTE, Process, Totals, World, org};

/// A database with the tables.
struct Tables {
    database: Database,
    pool: PgPool,
    issuer: String,
}

impl Tables {
    async fn create(issuer: &str) -> Self {
        let database = Database::empty().await;
        let pool = PgPool::connect_lazy_with(database.options(Database::addr(), "postgres"));
        pool.execute(SCHEMA).await.unwrap();
        let tables = Self {
            database,
            pool,
            issuer: issuer.to_owned(),
        };
        tables.store().first_start().await.unwrap();
        tables
    }

    fn store(&self) -> PostgresTotals {
        PostgresTotals::new(self.pool.clone(), &self.issuer, "api_calls")
    }

    async fn backends_with_lock(&self) -> Vec<i32> {
        let locks = "select pid from pg_locks where locktype = 'advisory' and database =
            (select oid from pg_database where datname = current_database())";
        let locks = sqlx::query_scalar(locks).fetch_all(&self.pool);
        locks.await.unwrap()
    }

    /// Waits until the server has noticed that a connection was closed.
    async fn unlocked(&self) {
        while !self.backends_with_lock().await.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}

impl Totals for Tables {
    type Store = PostgresTotals;

    async fn open(&self) -> PostgresTotals {
        self.store()
    }
}

/// A process at a time: the next one starts when the last one's lock is released.
struct OneByOne(Tables);

impl Totals for OneByOne {
    type Store = PostgresTotals;

    async fn open(&self) -> PostgresTotals {
        self.0.unlocked().await;
        self.0.store()
    }
}

async fn world() -> World<Tables> {
    World::with(async |emulator: &KindeEmulator, _| Tables::create(emulator.issuer_url()).await)
        .await
}

/// Sends until the server has noticed that the other node is gone.
async fn send_after(process: &mut Process<PostgresTotals>, tables: &Tables) -> SendReport {
    tables.unlocked().await;
    process.send().await
}

#[tokio::test]
async fn fault_206_a_huge_count_stops_no_other() {
    let world = world().await;
    let builder = KindeBillingSink::builder(&world.verifier(), "api_calls")
        .test_wall_clock(world.wall.clone())
        .measure(|record| match record.account.organization() {
            Some(org) if org.as_str() == "org_1" => 1 << 63,
            _ => record.counts.served(),
        });
    let (sink, _sender) = builder.build(world.totals.store()).unwrap();
    let usage = usage(&world.wall).build().unwrap();
    let mut pusher = usage.handle().pusher(sink).build().unwrap();
    let app = app(&usage);
    // In one record, in the sum of a batch, and in the sum of two.
    for keys in [1, 2] {
        for key in 0..keys {
            read_times(&app, 1, &format!("key.org_1.k{key}")).await;
        }
        read_times(&app, 1, "key.org_2.k1").await;
        next_minute(&world.wall);
        assert_eq!(pusher.push_closed().await.waiting, 0);
    }
    let store = world.totals.store();
    let most = i64::MAX.cast_unsigned();
    let totals = store.load().await.unwrap().unwrap();
    let counted = totals.organizations.iter();
    let counted = counted.map(|org| (org.organization.as_str(), org.counted));
    let counted: BTreeMap<&str, u64> = counted.collect();
    assert_eq!(counted, BTreeMap::from([("org_1", most), ("org_2", 2)]));
}

#[tokio::test]
async fn one_of_two_nodes_sends() {
    let world = world().await;
    world.agree("org_1");
    let mut first = world.start_node("first").await;
    let mut second = world.start_node("second").await;
    first.serve(&world, "org_1", 3).await;
    second.serve(&world, "org_1", 4).await;
    assert_eq!(first.send().await.accepted, 1);
    assert_eq!(world.billed(), sums(&[("org_1", 7)]));

    second.serve(&world, "org_1", 5).await;
    assert_eq!(second.send().await, SendReport::default());
    assert_eq!(world.calls(), 1, "the other node has the lock");
    assert_eq!(world.totals.backends_with_lock().await.len(), 1);
    // Between two rounds too.
    world.advance(10 * MINUTE);
    assert_eq!(second.send().await, SendReport::default());
    drop(first);
    let report = send_after(&mut second, &world.totals).await;
    assert_eq!(report.accepted, 1);
    assert_eq!(world.billed(), sums(&[("org_1", 12)]));
    world.assert_never_lowered();
}

#[tokio::test]
async fn fault_172c_a_lost_connection_stops_sends() {
    let world = world().await;
    let agreement = world.agree("org_1");
    let mut first = world.start_node("first").await;
    let mut second = world.start_node("second").await;
    first.serve(&world, "org_1", 3).await;
    // After the totals were loaded, and before they are stored and sent.
    let options = world.totals.database.options(Database::addr(), "postgres");
    let kill = move |body: &str| {
        let options = options.clone();
        let body = body.to_owned();
        let killer = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let pool = PgPool::connect_lazy_with(options);
                let kill = "select count(pg_terminate_backend(pid, 10000)) from pg_locks
                    where locktype = 'advisory' and database =
                    (select oid from pg_database where datname = current_database())";
                let killed: i64 = sqlx::query_scalar(kill).fetch_one(&pool).await.unwrap();
                assert_eq!(killed, 1);
            });
        });
        killer.join().unwrap();
        body
    };
    let fault = Fault::rewrite(kill).times(1);
    world.emulator.inject(Endpoint::ListAgreements, fault);
    first.send().await;
    assert_eq!(world.emulator.calls().list_agreements.faulted, 1);
    assert_eq!(world.calls(), 0, "what cannot be stored is not sent");

    second.serve(&world, "org_1", 4).await;
    assert_eq!(second.send().await.accepted, 1);
    first.serve(&world, "org_1", 1).await;
    assert_eq!(first.send().await, SendReport::default());
    assert_eq!(world.billed(), sums(&[("org_1", 7)]));
    let sent = "select agreement, organization, total, is_confirmed from billing_totals";
    let sent: Vec<(String, String, i64, bool)> = sqlx::query_as(sent)
        .fetch_all(&world.totals.pool)
        .await
        .unwrap();
    assert_eq!(sent, [(agreement, "org_1".to_owned(), 7, true)]);
    world.assert_never_lowered();
}

#[tokio::test]
async fn totals_are_stored_before_the_send() {
    let world = world().await;
    world.agree("org_1");
    let mut process = world.start().await;
    process.serve(&world, "org_1", 5).await;
    process.send().await;
    process.serve(&world, "org_1", 3).await;
    world
        .emulator
        .inject(Endpoint::RecordUsage, Fault::lose_reply().times(1));
    world.advance(10 * MINUTE);
    process.send().await;
    let sent = "select total, is_confirmed from billing_totals";
    let sent: (i64, bool) = sqlx::query_as(sent)
        .fetch_one(&world.totals.pool)
        .await
        .unwrap();
    assert_eq!(sent, (8, false));
    drop(process);
    let mut process = world.start().await;
    process.serve(&world, "org_1", 2).await;
    send_after(&mut process, &world.totals).await;
    assert_eq!(
        world.billed(),
        sums(&[("org_1", 8)]),
        "the same is repeated"
    );
    world.advance(10 * MINUTE);
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 10)]));
    world.assert_never_lowered();
}

#[tokio::test]
async fn old_ids_are_parked_as_maybe_stored() {
    let world = world().await;
    world.agree("org_1");
    let mut process = world.start().await;
    process.serve(&world, "org_1", 5).await;
    let store = world.totals.store();
    let now = world.wall.now();
    store
        .delete_ids(now + Duration::from_secs(1))
        .await
        .unwrap();
    // A lower bound does not bring back what was deleted.
    store.delete_ids(SystemTime::UNIX_EPOCH).await.unwrap();
    read_times(&process.app, 2, "key.org_1.k1").await;
    kit::next_minute(&world.wall);
    process.pusher.push_closed().await;
    let parked = process.pusher.parked();
    let list = parked.list();
    assert!(
        matches!(list[0].reason, ParkReason::MaybeStored { .. }),
        "{list:?}"
    );
    parked.settle(Settlement::Billed, |_| true).await.unwrap();
    process.serve(&world, "org_1", 4).await;
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 9)]));
}

#[tokio::test]
async fn restored_totals_are_not_sent() {
    let world = world().await;
    world.agree("org_1");
    world.agree("org_2");
    let mut process = world.start().await;
    process.serve(&world, "org_1", 5).await;
    process.send().await;
    drop(process);
    world.totals.unlocked().await;
    world.totals.store().after_restore().await.unwrap();
    world.totals.unlocked().await;
    let mut process = world.start().await;
    process.serve(&world, "org_1", 2).await;
    process.serve(&world, "org_2", 2).await;
    let lost = |name| (org(name), HoldReason::UnknownTotal);
    assert_eq!(process.send().await.held, [lost("org_1"), lost("org_2")]);
    world.advance(world.left() + MINUTE);
    process.send().await;
    assert_eq!(world.billed(), sums(&[("org_1", 7), ("org_2", 2)]));
}

#[tokio::test]
async fn tables_have_to_be_those_of_the_feature() {
    let world = world().await;
    let totals = &world.totals;
    assert!(totals.store().first_start().await.is_err(), "once only");
    for (issuer, feature) in [
        (&*totals.issuer, "tokens"),
        ("https://acme.kinde.com", "api_calls"),
    ] {
        let store = PostgresTotals::new(totals.pool.clone(), issuer, feature);
        let builder = KindeBillingSink::builder(&world.verifier(), "api_calls");
        assert_eq!(builder.build(store).unwrap_err().field(), "store");
        let store = PostgresTotals::new(totals.pool.clone(), issuer, feature);
        assert!(store.load().await.is_err(), "it was not created");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn sums_are_exact_whatever_fails(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let create = async |emulator: &KindeEmulator, _: &std::path::Path| {
                OneByOne(Tables::create(emulator.issuer_url()).await)
            };
            bills_exactly(&World::with(create).await, &steps).await;
        });
    }
}
