use sqlx::error::DatabaseError;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, SqlSafeStr};

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
    /// A table could not be probed: its policy fails without an organization, for example, because it casts the empty text
    /// (`nullif(current_setting('app.org', true), '')` is null).
    #[error("the table {table} could not be probed")]
    Probe {
        /// The table, quoted as in SQL.
        table: String,
        /// What the database answered.
        source: sqlx::Error,
    },
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
    /// without an organization, and with one that does not exist: no row may be visible. That takes an index whose first column
    /// is the organization, or a scan of the table. The connection of the check is closed afterwards.
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
        let mut connection = pool.acquire().await.map_err(IsolationError::Check)?;
        // A dropped check leaves a transaction.
        connection.close_on_drop();
        let report = check(&mut connection).await?;
        let report = report.without(exceptions);
        report.into_result().map_err(IsolationError::Findings)?;
        Ok(Self::unchecked(pool))
    }
}

async fn check(connection: &mut PgConnection) -> Result<IsolationReport, IsolationError> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(isolation::FINDINGS)
        .persistent(false)
        .fetch_all(&mut *connection)
        .await
        .map_err(IsolationError::Check)?;
    let mut report = IsolationReport::read(rows)?;
    let tables: Vec<String> = sqlx::query_scalar(isolation::PROBED)
        .persistent(false)
        .fetch_all(&mut *connection)
        .await
        .map_err(IsolationError::Check)?;
    for table in tables {
        let probed = async {
            // A code of no organization that is also a UUID, for policies that cast it.
            let unknown = "select pg_catalog.gen_random_uuid()::text";
            let unknown: String = sqlx::query_scalar(unknown)
                .persistent(false)
                .fetch_one(&mut *connection)
                .await?;
            let without = sees_rows(connection, "", &table).await?;
            let with_unknown = match sees_rows(connection, &unknown, &table).await {
                // The policy casts the code to another type: class 22 is an error in data.
                Err(error) if is_data_error(&error) => false,
                other => other?,
            };
            Ok(without || with_unknown)
        };
        match probed.await {
            Ok(true) => report.rows_visible(&table),
            Ok(false) => {}
            Err(source) => return Err(IsolationError::Probe { table, source }),
        }
    }
    Ok(report)
}

async fn sees_rows(connection: &mut PgConnection, org: &str, table: &str) -> sqlx::Result<bool> {
    let mut transaction = connection.begin().await?;
    sqlx::query(isolation::SET_ORG)
        .persistent(false)
        .bind(isolation::ORG_SETTING)
        .bind(org)
        .execute(&mut *transaction)
        .await?;
    let probe = AssertSqlSafe(isolation::probe(table)).into_sql_str();
    let sees = sqlx::query_scalar(probe).persistent(false);
    let sees = sees.fetch_one(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(sees)
}

fn is_data_error(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| code.starts_with("22"))
}
