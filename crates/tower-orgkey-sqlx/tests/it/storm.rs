//! Many organizations on few connections, with callers that give up, statements that fail and backends that are killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::Connection;
use tower_orgkey_sqlx::OrgPool;

use crate::cluster::Database;
use crate::kit::{assert_clean, org};
use crate::proxy::{Effect, Proxy};

const ORGANIZATIONS: usize = 64;
const VISITS: usize = 10;

#[derive(Default)]
struct Counts {
    finished: AtomicUsize,
    dropped: AtomicUsize,
    failed: AtomicUsize,
    killed: AtomicUsize,
}

impl Counts {
    fn of(&self) -> [usize; 4] {
        [&self.finished, &self.dropped, &self.failed, &self.killed]
            .map(|count| count.load(Ordering::SeqCst))
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
        // From before the pool gives a connection to after the commit.
        let patience = Duration::from_millis(fastrand::u64(0..1 << fastrand::u32(2..12)));
        match tokio::time::timeout(patience, visit(&code, &orgs)).await {
            Ok(Ok(())) => counts.finished.fetch_add(1, Ordering::SeqCst),
            Ok(Err(_)) => counts.failed.fetch_add(1, Ordering::SeqCst),
            Err(_) => counts.dropped.fetch_add(1, Ordering::SeqCst),
        };
    }
}

/// Panics if it sees a row of another organization.
async fn visit(code: &str, orgs: &OrgPool) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut tx = orgs.begin(&org(code)).await?;
    let seen: Vec<String> =
        sqlx::query_scalar("select org from notes union all select org from comments")
            .fetch_all(&mut *tx)
            .await?;
    assert!(
        seen.len() >= 3 && seen.iter().all(|org| org == code),
        "{code} saw {seen:?}"
    );
    let title = format!("{code} {}", fastrand::u64(..));
    let insert = sqlx::query("insert into notes (title) values ($1)").bind(&title);
    insert.execute(&mut *tx).await?;
    match fastrand::u8(0..5) {
        0 => {
            let failing = sqlx::query("select 1 / (length($1) - length($1))").bind(&title);
            failing.execute(&mut *tx).await?;
        }
        1 => {
            let mut savepoint = tx.begin().await?;
            let delete = sqlx::query("delete from notes where title = $1").bind(&title);
            delete.execute(&mut *savepoint).await?;
            drop(savepoint);
        }
        _ => {}
    }
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
