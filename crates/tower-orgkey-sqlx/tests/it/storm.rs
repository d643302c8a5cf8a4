//! Many organizations on few connections, with callers that give up, statements that fail and backends that are killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::Connection;
use tower_orgkey_sqlx::OrgPool;

use crate::cluster::Database;
use crate::kit::{assert_clean, drop_after, org};
use crate::proxy::{Effect, Proxy};

const ORGANIZATIONS: usize = 64;
const VISITS: usize = 10;
/// What a visit waits for: the transaction, a select, an insert, a statement that fails, a savepoint, a delete, the commit.
const STAGES: usize = 7;

#[derive(Default)]
struct Counts {
    finished: AtomicUsize,
    failed: AtomicUsize,
    killed: AtomicUsize,
    dropped: [AtomicUsize; STAGES],
}

impl Counts {
    fn of(&self) -> Vec<usize> {
        [&self.finished, &self.failed, &self.killed]
            .into_iter()
            .chain(&self.dropped)
            .map(|count| count.load(Ordering::SeqCst))
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_144_storm() {
    let codes: Vec<String> = (0..ORGANIZATIONS)
        .map(|number| format!("org_{number}"))
        .collect();
    let codes: Vec<&str> = codes.iter().map(String::as_str).collect();
    let database = Database::new(&codes).await;
    let proxy = Proxy::to(Database::addr(), Effect::Delay(2)).await;
    let pool = database.pool_at(proxy.addr(), 8).await;
    let orgs = OrgPool::unchecked(pool.clone());
    let counts = Arc::new(Counts::default());

    let is_over = Arc::new(AtomicBool::new(false));
    let killer = tokio::spawn(kill_backends(
        database.admin().await,
        database.name().to_owned(),
        Arc::clone(&is_over),
        Arc::clone(&counts),
    ));
    let visitors: Vec<_> = codes
        .iter()
        .map(|code| {
            let visitor = visit_often((*code).to_owned(), orgs.clone(), Arc::clone(&counts));
            tokio::spawn(visitor)
        })
        .collect();
    for visitor in visitors {
        visitor.await.unwrap();
    }
    is_over.store(true, Ordering::SeqCst);
    killer.await.unwrap();

    let happened = counts.of();
    assert!(happened.iter().all(|count| *count > 0), "{happened:?}");
    assert_clean(&database, &pool).await;
    let mixed: i64 =
        sqlx::query_scalar("select count(*) from notes where title not like org || ' %'")
            .fetch_one(&mut database.admin().await)
            .await
            .unwrap();
    assert_eq!(mixed, 0, "a row was written for another organization");
}

async fn visit_often(code: String, orgs: OrgPool, counts: Arc<Counts>) {
    for _ in 0..VISITS {
        // A visit is polled some 20 times.
        let polls = fastrand::usize(1..24);
        let stage = AtomicUsize::new(0);
        match drop_after(polls, visit(&code, &orgs, &stage)).await {
            Some(Ok(())) => counts.finished.fetch_add(1, Ordering::SeqCst),
            Some(Err(_)) => counts.failed.fetch_add(1, Ordering::SeqCst),
            None => counts.dropped[stage.into_inner()].fetch_add(1, Ordering::SeqCst),
        };
    }
}

/// Panics if it sees a row of another organization. `stage` is what it waits for.
async fn visit(
    code: &str,
    orgs: &OrgPool,
    stage: &AtomicUsize,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let waits_for = |next| stage.store(next, Ordering::SeqCst);
    let mut tx = orgs.begin(&org(code)).await?;
    waits_for(1);
    let seen: Vec<String> =
        sqlx::query_scalar("select org from notes union all select org from comments")
            .fetch_all(&mut *tx)
            .await?;
    assert!(
        seen.len() >= 3 && seen.iter().all(|org| org == code),
        "{code} saw {seen:?}"
    );
    waits_for(2);
    let title = format!("{code} {}", fastrand::u64(..));
    let insert = sqlx::query("insert into notes (title) values ($1)").bind(&title);
    insert.execute(&mut *tx).await?;
    match fastrand::u8(0..3) {
        0 => {
            waits_for(3);
            let failing = sqlx::query("select 1 / (length($1) - length($1))").bind(&title);
            failing.execute(&mut *tx).await?;
        }
        1 => {
            waits_for(4);
            let mut savepoint = tx.begin().await?;
            waits_for(5);
            let delete = sqlx::query("delete from notes where title = $1").bind(&title);
            delete.execute(&mut *savepoint).await?;
            drop(savepoint);
        }
        _ => {}
    }
    waits_for(6);
    tx.commit().await?;
    Ok(())
}

async fn kill_backends(
    mut admin: sqlx::PgConnection,
    database: String,
    is_over: Arc<AtomicBool>,
    counts: Arc<Counts>,
) {
    let kill = "select count(pg_terminate_backend(pid)) from
        (select pid from pg_stat_activity where datname = $1 and usename = 'app' order by random() limit 1) as one";
    while !is_over.load(Ordering::SeqCst) {
        let killed: i64 = sqlx::query_scalar(kill)
            .bind(&database)
            .fetch_one(&mut admin)
            .await
            .unwrap();
        counts
            .killed
            .fetch_add(usize::try_from(killed).unwrap(), Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
