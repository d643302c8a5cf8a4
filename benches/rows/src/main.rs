//! Point selects in an `OrgTx`, relative to the same select without row security and without a transaction, which is measured in
//! the same rounds. It starts a PostgreSQL server on loopback, with the tables of the guide.

#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "the server of the tests, of which only a part is used"
)]
#[path = "../../../crates/tower-orgkey-sqlx/tests/it/cluster.rs"]
mod cluster;
#[path = "../../src/table.rs"]
mod table;

use std::time::Instant;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tower_orgkey::OrgContext;
use tower_orgkey::test_util::OrgContextBuilder;
use tower_orgkey_sqlx::OrgPool;

use self::cluster::Database;

const ORGANIZATIONS: i64 = 1_000;
const NOTES: i64 = 100;
const ROUNDS: usize = 15;
/// Of each row in a round.
const SELECTS: usize = 1_000;
/// Of one transaction in the last rows.
const TOGETHER: usize = 10;

const BY_ORG: &str = "select title from notes where org = $1 and id = $2";
/// The policy adds the organization.
const BY_ID: &str = "select title from notes where id = $1";

struct Bench {
    /// Of a superuser, whom policies do not concern.
    plain: PgPool,
    orgs: OrgPool,
    org: OrgContext,
    /// Of the notes of the organization.
    ids: Vec<i64>,
}

#[derive(Clone, Copy)]
enum Row {
    Plain,
    Transaction,
    OrgTx,
    TransactionOfMany,
    OrgTxOfMany,
}

const ROWS: [(Row, &str); 5] = [
    (Row::Plain, "no row security, no transaction"),
    (Row::Transaction, "no row security, in a transaction"),
    (Row::OrgTx, "in an `OrgTx`"),
    (
        Row::TransactionOfMany,
        "no row security, ten in a transaction",
    ),
    (Row::OrgTxOfMany, "ten in an `OrgTx`"),
];

#[tokio::main(worker_threads = 2)]
async fn main() -> sqlx::Result<()> {
    let bench = Bench::start().await?;
    // Prepared statements, and the cache of the server.
    for (row, _) in ROWS {
        bench.seconds(row).await?;
    }
    let mut base = Vec::new();
    let mut ratios = vec![Vec::new(); ROWS.len()];
    for _ in 0..ROUNDS {
        let plain = bench.seconds(Row::Plain).await?;
        base.push(plain);
        for ((row, _), ratios) in ROWS.iter().zip(&mut ratios).skip(1) {
            ratios.push(bench.seconds(*row).await? / plain);
        }
    }
    ratios[0] = vec![1.0];
    let rows = ROWS.iter().zip(ratios).map(|((_, name), ratios)| {
        vec![(*name).to_owned(), table::ratio(table::median(ratios), 1.0)]
    });
    let rows: Vec<_> = rows.collect();
    let title = format!("point selects, median of {ROUNDS} rounds");
    table::print(&title, &["row", "time per select, relative"], &rows);
    println!("\nThe first row takes {:.0} µs.", table::median(base) * 1e6);
    Ok(())
}

impl Bench {
    async fn start() -> sqlx::Result<Self> {
        let database = Database::new(&[]).await;
        let mut admin = database.admin().await;
        let fill = "insert into notes (org, title)
            select 'org_' || org, org || ' ' || note from generate_series(1, $1) org, generate_series(1, $2) note";
        sqlx::query(fill)
            .bind(ORGANIZATIONS)
            .bind(NOTES)
            .execute(&mut admin)
            .await?;
        sqlx::raw_sql("vacuum analyze").execute(&mut admin).await?;
        let ids = sqlx::query_scalar("select id from notes where org = 'org_500'")
            .fetch_all(&mut admin)
            .await?;
        let plain = PgPoolOptions::new()
            .max_connections(1)
            .connect_with(database.options(Database::addr(), "postgres"))
            .await?;
        Ok(Self {
            plain,
            orgs: OrgPool::unchecked(database.pool(1).await),
            org: OrgContextBuilder::new("org_500").build(),
            ids,
        })
    }

    /// Returns the seconds per select.
    async fn seconds(&self, row: Row) -> sqlx::Result<f64> {
        let began = Instant::now();
        let mut selected = 0;
        while selected < SELECTS {
            let together = match row {
                Row::Plain | Row::Transaction | Row::OrgTx => 1,
                Row::TransactionOfMany | Row::OrgTxOfMany => TOGETHER,
            };
            let ids = selected..selected + together;
            let ids = ids.map(|number| self.ids[number % self.ids.len()]);
            match row {
                Row::Plain => self.plain(ids).await?,
                Row::Transaction | Row::TransactionOfMany => self.in_transaction(ids).await?,
                Row::OrgTx | Row::OrgTxOfMany => self.in_org_tx(ids).await?,
            }
            selected += together;
        }
        // Exact: a few thousand.
        #[allow(clippy::cast_precision_loss)]
        Ok(began.elapsed().as_secs_f64() / selected as f64)
    }

    async fn plain(&self, ids: impl Iterator<Item = i64>) -> sqlx::Result<()> {
        for id in ids {
            let select = sqlx::query_scalar(BY_ORG).bind("org_500").bind(id);
            let _: String = select.fetch_one(&self.plain).await?;
        }
        Ok(())
    }

    async fn in_transaction(&self, ids: impl Iterator<Item = i64>) -> sqlx::Result<()> {
        let mut transaction = self.plain.begin().await?;
        for id in ids {
            let select = sqlx::query_scalar(BY_ORG).bind("org_500").bind(id);
            let _: String = select.fetch_one(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    async fn in_org_tx(&self, ids: impl Iterator<Item = i64>) -> sqlx::Result<()> {
        let begun = self.orgs.begin(&self.org).await;
        let mut transaction = begun.expect("the server runs until the end");
        for id in ids {
            let select = sqlx::query_scalar(BY_ID).bind(id);
            let _: String = select.fetch_one(&mut *transaction).await?;
        }
        let committed = transaction.commit().await;
        committed.expect("nothing failed in the transaction");
        Ok(())
    }
}
