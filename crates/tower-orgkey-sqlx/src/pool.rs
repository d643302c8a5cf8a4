use std::fmt;
use std::sync::Arc;

use sqlx::PgPool;
use tower_orgkey::{OrgCode, OrgContext};

use crate::error::OrgTxError;
use crate::telemetry;
use crate::transaction::{self, OrgTx};

type JobObserver = dyn Fn(&OrgCode, &str) + Send + Sync;

/// Begins transactions in which PostgreSQL shows the rows of one organization.
///
/// It does not give access to the pool: a statement runs in an [`OrgTx`] or through a pool of yours. Clones share the pool.
///
/// ```
/// use tower_orgkey::{OrgContext, Rejection};
/// use tower_orgkey_sqlx::OrgPool;
///
/// async fn titles(org: &OrgContext, pool: &OrgPool) -> Result<Vec<String>, Rejection> {
///     let mut tx = pool.begin(org).await?;
///     // No `where org = …`: the policy adds it.
///     sqlx::query_scalar("select title from notes order by id")
///         .fetch_all(&mut *tx)
///         .await
///         .map_err(|_| Rejection::internal())
/// }
/// ```
#[derive(Clone)]
pub struct OrgPool {
    pool: PgPool,
    persistent: bool,
    on_job: Option<Arc<JobObserver>>,
}

impl OrgPool {
    /// Uses this pool without a check of the database. [`checked`](Self::checked) is the same with the check.
    ///
    /// ```
    /// use sqlx::postgres::PgPoolOptions;
    /// use tower_orgkey_sqlx::OrgPool;
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let pool = PgPoolOptions::new().connect_lazy("postgres://app@127.0.0.1/app").unwrap();
    /// let pool = OrgPool::unchecked(pool);
    /// # });
    /// ```
    pub fn unchecked(pool: PgPool) -> Self {
        Self {
            pool,
            persistent: true,
            on_job: None,
        }
    }

    /// Whether the two statements that set and read the organization are prepared once per connection. The default is `true`.
    ///
    /// Use `false` behind `PgBouncer` in transaction mode before its version 1.21, or with `max_prepared_statements = 0`, and
    /// then [`persistent(false)`](sqlx::query::Query::persistent) for your own queries too. It costs two round trips per
    /// transaction.
    ///
    /// ```
    /// # use tower_orgkey_sqlx::OrgPool;
    /// # fn behind_pgbouncer(pool: sqlx::PgPool) -> OrgPool {
    /// OrgPool::unchecked(pool).persistent(false)
    /// # }
    /// ```
    pub fn persistent(mut self, persistent: bool) -> Self {
        self.persistent = persistent;
        self
    }

    /// Calls this function with the organization and the reason before each [`begin_for_job`](Self::begin_for_job). It
    /// replaces an earlier one. The function must not block.
    ///
    /// An audit trail of `tower-orgkey-audit` records jobs as actions of an operator:
    ///
    /// ```
    /// use tower_orgkey_audit::AuditTrail;
    /// # use tower_orgkey_sqlx::OrgPool;
    ///
    /// # fn audited(pool: OrgPool, trail: AuditTrail) -> OrgPool {
    /// pool.on_job(move |org, reason| trail.record_operator_action(reason, &format!("org_code={org}")))
    /// # }
    /// ```
    pub fn on_job(mut self, observer: impl Fn(&OrgCode, &str) + Send + Sync + 'static) -> Self {
        self.on_job = Some(Arc::new(observer));
        self
    }

    /// Begins a transaction for the organization of this request.
    ///
    /// It waits for a connection at most as long as the acquire timeout of the pool (30 s by default), and as long again for
    /// the database. The future may be dropped at any time: the transaction is rolled back, and the connection returns to the
    /// pool.
    ///
    /// A handler that calls this when it needs the database holds a connection for a shorter time than one that takes an
    /// [`OrgTx`] as an extractor.
    pub async fn begin(&self, org: &OrgContext) -> Result<OrgTx, OrgTxError> {
        transaction::begin(&self.pool, org.org_code(), self.persistent).await
    }

    /// Begins a transaction for a job that no request of the organization caused, such as a nightly report.
    ///
    /// `reason` names the job for an auditor. Each call emits an event at `INFO`, "organization transaction of a job", with the
    /// fields `org_code` and `reason`, and calls the function of [`on_job`](Self::on_job). Both happen before the transaction
    /// begins, and also if it then fails.
    ///
    /// ```
    /// use tower_orgkey::OrgCode;
    /// use tower_orgkey_sqlx::{OrgPool, OrgTxError};
    ///
    /// async fn nightly(pool: &OrgPool, organizations: &[OrgCode]) -> Result<(), OrgTxError> {
    ///     for org in organizations {
    ///         let mut tx = pool.begin_for_job(org, "nightly report").await?;
    ///         // …
    ///         tx.commit().await?;
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub async fn begin_for_job(&self, org: &OrgCode, reason: &str) -> Result<OrgTx, OrgTxError> {
        telemetry::job(org, reason);
        if let Some(observer) = &self.on_job {
            observer(org, reason);
        }
        transaction::begin(&self.pool, org, self.persistent).await
    }
}

impl fmt::Debug for OrgPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrgPool")
            .field("size", &self.pool.size())
            .field("idle", &self.pool.num_idle())
            .field("persistent", &self.persistent)
            .finish_non_exhaustive()
    }
}
