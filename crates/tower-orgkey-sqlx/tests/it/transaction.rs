//! What an `OrgTx` shows, and what a connection is like after it.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use sqlx::Connection;
use sqlx::postgres::PgPoolOptions;
use tower_orgkey::OrgCode;
use tower_orgkey_sqlx::{OrgPool, OrgTxError};

use crate::cluster::Database;
use crate::kit::{assert_clean, backend, drop_after, org, orgs_seen};
use crate::log::Log;
use crate::proxy::{Effect, Proxy};

#[tokio::test]
async fn transaction_shows_rows_of_its_organization() {
    let database = Database::new(&["org_1", "org_2", "a/b'\\"]).await;
    let pool = database.pool(1).await;
    let orgs = OrgPool::unchecked(pool.clone());
    for code in ["org_1", "org_2", "a/b'\\"] {
        let mut tx = orgs.begin(&org(code)).await.unwrap();
        assert_eq!(tx.org_code().as_str(), code);
        assert_eq!(orgs_seen(&mut tx).await, [code; 3]);
    }
    let mut tx = orgs.begin(&org("org_3")).await.unwrap();
    assert_eq!(orgs_seen(&mut tx).await, [""; 0]);
    drop(tx);
    assert_clean(&database, &pool).await;
}

#[tokio::test]
async fn commit_keeps_and_drop_discards() {
    let database = Database::new(&[]).await;
    let pool = database.pool(1).await;
    let orgs = OrgPool::unchecked(pool.clone());
    for title in ["committed", "dropped", "rolled back"] {
        let mut tx = orgs.begin(&org("org_1")).await.unwrap();
        let insert = sqlx::query("insert into notes (title) values ($1)").bind(title);
        insert.execute(&mut *tx).await.unwrap();
        match title {
            "committed" => tx.commit().await.unwrap(),
            "dropped" => drop(tx),
            _ => tx.rollback().await.unwrap(),
        }
    }
    let mut admin = database.admin().await;
    let kept: Vec<(String, String)> = sqlx::query_as("select org, title from notes")
        .fetch_all(&mut admin)
        .await
        .unwrap();
    assert_eq!(kept, [("org_1".into(), "committed".into())]);
    assert_clean(&database, &pool).await;
}

#[tokio::test]
async fn rows_of_another_organization_cannot_be_written() {
    let database = Database::new(&["org_2"]).await;
    let orgs = OrgPool::unchecked(database.pool(1).await);
    let foreign: i64 = sqlx::query_scalar("select min(id) from notes")
        .fetch_one(&mut database.admin().await)
        .await
        .unwrap();
    for (statement, code) in [
        (
            "insert into notes (org, title) values ('org_2', 'x')",
            "42501",
        ),
        ("truncate notes", "42501"),
        ("copy notes from stdin", "0A000"),
        // The reference is to a note of org_1, which does not exist.
        (
            &format!("insert into comments (note_id, body) values ({foreign}, 'x')"),
            "23503",
        ),
    ] {
        let mut tx = orgs.begin(&org("org_1")).await.unwrap();
        let error = sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(&mut *tx)
            .await
            .unwrap_err();
        let found = error
            .as_database_error()
            .and_then(|error| error.code().map(String::from));
        assert_eq!(found.as_deref(), Some(code), "{statement}: {error}");
    }
    let mut tx = orgs.begin(&org("org_1")).await.unwrap();
    for statement in ["update notes set title = 'x'", "delete from notes"] {
        let done = sqlx::query(statement).execute(&mut *tx).await.unwrap();
        assert_eq!(done.rows_affected(), 0);
    }
}

#[tokio::test]
async fn fault_140_drop_at_each_await() {
    let database = Database::new(&["org_1"]).await;
    // Without sqlx's test of an idle connection, which closes it when dropped.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .test_before_acquire(false);
    let proxy = Proxy::to(Database::addr(), Effect::Delay(2)).await;
    let options = database.options(proxy.addr(), "app");
    let pool = pool.connect_with(options).await.unwrap();
    let orgs = OrgPool::unchecked(pool.clone());
    let before = backend(&mut pool.acquire().await.unwrap()).await;
    let mut dropped = 0;
    // `begin` alone: dropping it anywhere keeps the connection.
    while drop_after(dropped, orgs.begin(&org("org_1")))
        .await
        .is_none()
    {
        dropped += 1;
        assert_clean(&database, &pool).await;
        let after = backend(&mut pool.acquire().await.unwrap()).await;
        assert_eq!(before, after, "the connection was closed");
    }
    assert!(dropped > 1);

    // And the use of the transaction.
    let visit = async || {
        let mut tx = orgs.begin(&org("org_1")).await.unwrap();
        assert!(orgs_seen(&mut tx).await.iter().all(|org| org == "org_1"));
        let mut savepoint = tx.begin().await.unwrap();
        let insert = "insert into notes (title) select 'x' || random()";
        sqlx::query(insert).execute(&mut *savepoint).await.unwrap();
        savepoint.commit().await.unwrap();
        tx.commit().await.unwrap();
    };
    let mut polls = 0;
    while drop_after(polls, visit()).await.is_none() {
        polls += 1;
        assert_clean(&database, &pool).await;
    }
    assert!(polls > 1);
}

#[tokio::test]
async fn fault_141_connection_left_in_transaction() {
    let database = Database::new(&["org_1", "org_2"]).await;
    let pool = database.pool(1).await;
    let orgs = OrgPool::unchecked(pool.clone());
    // What a dropped `pool.begin()` of sqlx 0.9.0 leaves behind: a transaction that sqlx does not know of.
    let mut stale = pool.acquire().await.unwrap();
    sqlx::raw_sql("begin; select set_config('app.org', 'org_2', true); insert into notes (title) values ('stale')")
        .execute(&mut *stale)
        .await
        .unwrap();
    assert_eq!(orgs_seen(&mut stale).await, ["org_2"; 4]);
    drop(stale);

    let error = orgs.begin(&org("org_1")).await.unwrap_err();
    assert!(matches!(error, OrgTxError::Begin(_)), "{error:?}");
    assert_clean(&database, &pool).await;
    let mut tx = orgs.begin(&org("org_1")).await.unwrap();
    assert_eq!(orgs_seen(&mut tx).await, ["org_1"; 3]);
    tx.commit().await.unwrap();
    let stale: i64 = sqlx::query_scalar("select count(*) from notes where title = 'stale'")
        .fetch_one(&mut database.admin().await)
        .await
        .unwrap();
    assert_eq!(stale, 0, "another transaction was committed");
}

#[tokio::test]
async fn fault_141b_rows_that_outlive_a_transaction() {
    let database = Database::new(&["org_1", "org_2"]).await;
    let pool = database.pool(1).await;
    let orgs = OrgPool::unchecked(pool.clone());
    let mut first = orgs.begin(&org("org_1")).await.unwrap();
    let before = backend(&mut first).await;
    let keep = "create temporary table kept as select * from notes;
        declare held cursor with hold for select * from notes";
    sqlx::raw_sql(keep).execute(&mut *first).await.unwrap();
    first.commit().await.unwrap();
    let kept = "select to_regclass('pg_temp.kept') is not null, exists (select from pg_cursors where name = 'held')";
    let mut connection = pool.acquire().await.unwrap();
    let found: (bool, bool) = sqlx::query_as(kept)
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    assert_eq!(found, (true, true));
    drop(connection);

    // The rollback of the first gives the table back. The second does not have it either.
    for _ in 0..2 {
        let mut tx = orgs.begin(&org("org_2")).await.unwrap();
        assert_eq!(backend(&mut tx).await, before);
        let found: (bool, bool) = sqlx::query_as(kept).fetch_one(&mut *tx).await.unwrap();
        assert_eq!(found, (false, false));
        tx.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn fault_142_setting_has_no_effect() {
    let database = Database::new(&["org_1"]).await;
    let set: &[u8] = b"select pg_catalog.set_config($1, $2, true)";
    // It returns another text, but sets nothing; and another organization is set.
    for (old, new) in [
        (set, &b"select pg_catalog.concat($1, $2, 1 = 1)   "[..]),
        (b"org_1", b"org_2"),
    ] {
        let proxy = Proxy::to(Database::addr(), Effect::Replace(old, new)).await;
        let pool = database.pool_at(proxy.addr(), 1).await;
        let before = backend(&mut pool.acquire().await.unwrap()).await;
        let error = OrgPool::unchecked(pool.clone())
            .begin(&org("org_1"))
            .await
            .unwrap_err();
        assert!(proxy.replaced() > 0);
        assert!(matches!(error, OrgTxError::NotSet), "{error:?}");
        let after = backend(&mut pool.acquire().await.unwrap()).await;
        assert_ne!(before, after, "the connection was not closed");
        assert_clean(&database, &pool).await;
    }
}

#[tokio::test]
async fn fault_143_savepoint_left_open() {
    let database = Database::new(&["org_1"]).await;
    let pool = database.pool(1).await;
    let orgs = OrgPool::unchecked(pool.clone());
    let mut tx = orgs.begin(&org("org_1")).await.unwrap();
    std::mem::forget(tx.begin().await.unwrap());
    drop(tx);
    assert_clean(&database, &pool).await;

    let mut tx = orgs.begin(&org("org_1")).await.unwrap();
    std::mem::forget(tx.begin().await.unwrap());
    let error = tx.commit().await.unwrap_err();
    assert!(matches!(error, OrgTxError::NotInTransaction), "{error:?}");
    assert_clean(&database, &pool).await;

    let mut tx = orgs.begin(&org("org_1")).await.unwrap();
    std::mem::forget(tx.begin().await.unwrap());
    tx.rollback().await.unwrap();
    assert_clean(&database, &pool).await;

    // A dropped `begin` of a savepoint rolls everything back: no later statement may run as if it had not.
    let mut dropped = false;
    for _ in 0..100 {
        let mut tx = orgs.begin(&org("org_1")).await.unwrap();
        // The server may have answered before the first poll ended. Then nothing was dropped.
        dropped = drop_after(1, tx.begin()).await.is_none();
        if !dropped {
            continue;
        }
        let used = std::panic::catch_unwind(AssertUnwindSafe(|| std::ptr::from_mut(&mut *tx)));
        assert!(
            used.is_err(),
            "a statement can run outside of the transaction"
        );
        let error = tx.commit().await.unwrap_err();
        assert!(matches!(error, OrgTxError::NotInTransaction), "{error:?}");
        assert_clean(&database, &pool).await;
        break;
    }
    assert!(dropped);

    // Of two dropped ones, sqlx does not know of the transaction that the second begins.
    for is_rolled_back in [true, false] {
        let mut dropped = false;
        for _ in 0..100 {
            let mut tx = orgs.begin(&org("org_1")).await.unwrap();
            let connection = &mut *tx;
            dropped = drop_after(1, connection.begin()).await.is_none()
                && drop_after(1, connection.begin()).await.is_none();
            if is_rolled_back {
                tx.rollback().await.unwrap();
            } else {
                drop(tx);
            }
            assert_clean(&database, &pool).await;
            if dropped {
                break;
            }
        }
        assert!(dropped);
    }
}

#[tokio::test]
async fn job_is_reported_before_it_begins() {
    let database = Database::new(&["org_1"]).await;
    let pool = database.pool(1).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let jobs = Arc::clone(&seen);
    let orgs = OrgPool::unchecked(pool.clone())
        .on_job(move |org, reason| jobs.lock().unwrap().push(format!("{org}: {reason}")));
    let code = OrgCode::from_static("org_1");
    let (log, _guard) = Log::capture();
    let mut tx = orgs.begin_for_job(&code, "nightly report").await.unwrap();
    assert_eq!(orgs_seen(&mut tx).await, ["org_1"; 3]);
    drop(tx);
    orgs.begin(&org("org_1")).await.unwrap();
    pool.close().await;
    orgs.begin_for_job(&code, "retry").await.unwrap_err();
    assert_eq!(
        *seen.lock().unwrap(),
        ["org_1: nightly report", "org_1: retry"]
    );
    let logged = log.lines("INFO", "organization transaction of a job");
    assert_eq!(logged.len(), 2, "{logged:?}");
    assert!(logged[0].contains("org_code=org_1") && logged[0].contains("nightly report"));
}

#[tokio::test]
async fn empty_pool_is_an_error() {
    let database = Database::new(&[]).await;
    let pool = PgPoolOptions::new().max_connections(1);
    let pool = pool.acquire_timeout(Duration::from_secs(3));
    let options = database.options(Database::addr(), "app");
    let orgs = OrgPool::unchecked(pool.connect_with(options).await.unwrap());
    let _held = orgs.begin(&org("org_1")).await.unwrap();
    let error = orgs.begin(&org("org_1")).await.unwrap_err();
    assert!(
        matches!(error, OrgTxError::Acquire(sqlx::Error::PoolTimedOut)),
        "{error:?}"
    );
    let rejection = tower_orgkey::Rejection::from(error);
    assert_eq!(rejection.code(), "database-unavailable");
    assert_eq!(rejection.status(), 503);
}

#[tokio::test]
async fn silent_server_ends_at_the_deadline() {
    let database = Database::new(&[]).await;
    let proxy = Proxy::to(Database::addr(), Effect::Stall(b"begin not deferrable")).await;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(Duration::from_secs(3))
        .test_before_acquire(false);
    let options = database.options(proxy.addr(), "app");
    let orgs = OrgPool::unchecked(pool.connect_with(options).await.unwrap());
    let context = org("org_1");
    let begun = tokio::time::timeout(Duration::from_mins(1), orgs.begin(&context));
    let error = begun.await.unwrap().unwrap_err();
    assert!(matches!(error, OrgTxError::Deadline), "{error:?}");
}

#[tokio::test]
async fn failures_to_begin_are_logged_once_a_second() {
    let database = Database::new(&[]).await;
    let pool = database.pool(1).await;
    let orgs = OrgPool::unchecked(pool.clone());
    pool.close().await;
    let (log, _guard) = Log::capture();
    let second = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        usize::try_from(now.unwrap().as_secs()).unwrap()
    };
    let lines = || log.lines("ERROR", "organization transaction failed to begin");
    let first = second();
    let mut calls = 0;
    // Another test may have used up the event of this second, and the first two may be a moment apart.
    while lines().len() < 3 {
        orgs.begin(&org("org_1")).await.unwrap_err();
        calls += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let logged = lines();
    assert!(logged.len() <= second() - first + 1 && logged.len() < calls);
    assert!(logged[2].contains("no database connection"), "{logged:?}");
    assert!(!logged[2].contains("suppressed=0"), "{logged:?}");
}
