use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Postgres, Row, SqlSafeStr};

use crate::OrgPool;
use crate::isolation::{self, Exceptions, IsolationReport, UnknownFinding};

/// Why a service should not start on a database.
///
/// [`OrgPool::checked`] returns it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IsolationError {
    /// The database shows rows of other organizations, or could. It prints a table of the findings.
    #[error(transparent)]
    Findings(IsolationReport),
    /// The check itself failed.
    #[error("the database could not be checked")]
    Check(#[source] sqlx::Error),
}

impl From<UnknownFinding> for IsolationError {
    fn from(unknown: UnknownFinding) -> Self {
        Self::Check(sqlx::Error::Decode(unknown.into()))
    }
}

impl OrgPool {
    /// Checks the database as the role of this pool, and uses the pool if it isolates organizations.
    ///
    /// It looks for everything of [`FindingKind`](crate::isolation::FindingKind), and then reads each table with row security
    /// in a session in which no organization was ever set, with an empty one, and with one that does not exist: no row may be
    /// visible. That takes an index whose first column is the organization, or a scan of the table.
    ///
    /// All of it runs in one transaction, which is rolled back. The connection is closed afterwards, and so are idle ones on
    /// which an organization was set before.
    ///
    /// The check sees what the role may use when it runs. A migration after it is not checked.
    ///
    /// ```no_run
    /// use sqlx::PgPool;
    /// use tower_orgkey_sqlx::OrgPool;
    /// use tower_orgkey_sqlx::isolation::{Exceptions, FindingKind};
    ///
    /// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = PgPool::connect("postgres://app@127.0.0.1/app").await?;
    /// let shared = Exceptions::none().except(FindingKind::RowSecurityOff, "public.plans");
    /// let pool = OrgPool::checked(pool, &shared).await?;
    /// # Ok(()) }
    /// ```
    pub async fn checked(pool: PgPool, exceptions: &Exceptions) -> Result<Self, IsolationError> {
        let report = check(&pool).await?;
        let report = report.without(exceptions);
        report.into_result().map_err(IsolationError::Findings)?;
        Ok(Self::unchecked(pool))
    }
}

async fn check(pool: &PgPool) -> Result<IsolationReport, IsolationError> {
    let mut connection = unused_session(pool).await.map_err(IsolationError::Check)?;
    // A dropped check leaves a transaction, and sqlx 0.9.0 does not always know of it.
    connection.close_on_drop();
    // One transaction, in which PgBouncer keeps to one connection: statements are prepared there.
    let mut transaction = connection.begin().await.map_err(IsolationError::Check)?;
    let mut report = findings(&mut transaction).await?;
    let tables: Vec<String> = sqlx::query_scalar(isolation::PROBED)
        .persistent(false)
        .fetch_all(&mut *transaction)
        .await
        .map_err(IsolationError::Check)?;
    // A code of no organization that is also a UUID, for policies that cast it.
    let unknown: String = sqlx::query_scalar("select pg_catalog.gen_random_uuid()::text")
        .persistent(false)
        .fetch_one(&mut *transaction)
        .await
        .map_err(IsolationError::Check)?;
    // First all without: once set, the setting is never null again.
    for org in [None, Some(""), Some(&*unknown)] {
        for table in &tables {
            let probed = probe(&mut transaction, org, table).await;
            match probed.map_err(IsolationError::Check)? {
                Probed::NoRows => {}
                Probed::Rows => report.rows_visible(table),
                // The policy casts the code to another type: class 22 is an error in data.
                Probed::Failed(code) if org == Some(&*unknown) && code.starts_with("22") => {}
                Probed::Failed(code) => report.probe_failed(table, &code),
            }
        }
    }
    transaction
        .rollback()
        .await
        .map_err(IsolationError::Check)?;
    Ok(report)
}

/// A connection of the pool, with all that its hooks do, on which no organization was set, if there is one.
async fn unused_session(pool: &PgPool) -> sqlx::Result<PoolConnection<Postgres>> {
    let mut connection = pool.acquire().await?;
    for _ in 0..pool.size() {
        if read_org(&mut connection).await?.is_none() {
            break;
        }
        connection.close().await?;
        connection = pool.acquire().await?;
    }
    Ok(connection)
}

/// As one simple statement, which also `PgBouncer` keeps on one connection.
async fn read_org(connection: &mut PgConnection) -> sqlx::Result<Option<String>> {
    let read = "select pg_catalog.current_setting('app.org', true)";
    let row = sqlx::raw_sql(read).fetch_one(connection).await?;
    row.try_get(0)
}

async fn findings(connection: &mut PgConnection) -> Result<IsolationReport, IsolationError> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(isolation::FINDINGS)
        .persistent(false)
        .fetch_all(&mut *connection)
        .await
        .map_err(IsolationError::Check)?;
    Ok(IsolationReport::read(rows)?)
}

enum Probed {
    NoRows,
    Rows,
    /// The SQLSTATE. Messages are left out, since they can contain data.
    Failed(String),
}

async fn probe(
    connection: &mut PgConnection,
    org: Option<&str>,
    table: &str,
) -> sqlx::Result<Probed> {
    let mut savepoint = connection.begin().await?;
    let sees = sees_rows(&mut savepoint, org, table).await;
    // Fails if the connection is lost.
    savepoint.rollback().await?;
    match sees {
        Ok(true) => Ok(Probed::Rows),
        Ok(false) => Ok(Probed::NoRows),
        Err(sqlx::Error::Database(error)) => {
            let code = error.code().unwrap_or_default();
            Ok(Probed::Failed(code.into_owned()))
        }
        Err(error) => Err(error),
    }
}

async fn sees_rows(
    connection: &mut PgConnection,
    org: Option<&str>,
    table: &str,
) -> sqlx::Result<bool> {
    if let Some(org) = org {
        sqlx::query(isolation::SET_ORG)
            .persistent(false)
            .bind(isolation::ORG_SETTING)
            .bind(org)
            .execute(&mut *connection)
            .await?;
    }
    let probe = AssertSqlSafe(isolation::probe(table)).into_sql_str();
    let sees = sqlx::query_scalar(probe).persistent(false);
    sees.fetch_one(connection).await
}
