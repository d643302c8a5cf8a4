//! Contexts, queries, and what must hold for the connections of a pool afterwards.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Postgres};
use tower_orgkey::OrgContext;
use tower_orgkey::test_util::OrgContextBuilder;

use crate::cluster::Database;

pub(crate) fn org(code: &str) -> OrgContext {
    OrgContextBuilder::new(code).build()
}

/// The organizations of all notes that this connection sees.
pub(crate) async fn orgs_seen(connection: &mut PgConnection) -> Vec<String> {
    sqlx::query_scalar("select org from notes union all select org from comments order by 1")
        .persistent(false)
        .fetch_all(connection)
        .await
        .unwrap()
}

pub(crate) async fn backend(connection: &mut PgConnection) -> i32 {
    let pid = sqlx::query_scalar("select pg_backend_pid()").persistent(false);
    pid.fetch_one(connection).await.unwrap()
}

/// Polls the future this many times and drops it. Returns the output if it was ready.
pub(crate) async fn drop_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polled = 0;
    std::future::poll_fn(|context| {
        if polled == polls {
            return Poll::Ready(None);
        }
        polled += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polled == polls => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Takes all connections of the pool, and asserts that none shows a row, has an organization or is in a transaction.
pub(crate) async fn assert_clean(database: &Database, pool: &PgPool) {
    let mut all: Vec<PoolConnection<Postgres>> = Vec::new();
    for _ in 0..pool.options().get_max_connections() {
        all.push(pool.acquire().await.unwrap());
    }
    let sessions = "select count(*) from pg_stat_activity
        where datname = $1 and usename = 'app' and (state <> 'idle' or xact_start is not null)";
    let mut admin = database.admin().await;
    let mut in_transaction: i64 = 1;
    // A server may need a moment to see that a connection was closed.
    for _ in 0..100 {
        in_transaction = sqlx::query_scalar(sessions)
            .bind(database.name())
            .fetch_one(&mut admin)
            .await
            .unwrap();
        if in_transaction == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(in_transaction, 0, "connections were left in a transaction");
    for connection in &mut all {
        let org: Option<String> =
            sqlx::query_scalar("select nullif(current_setting('app.org', true), '')")
                .fetch_one(&mut **connection)
                .await
                .unwrap();
        assert_eq!(org, None, "a connection was left with an organization");
        assert_eq!(orgs_seen(connection).await, [""; 0]);
    }
}
