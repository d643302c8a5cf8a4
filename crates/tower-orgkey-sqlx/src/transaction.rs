use std::fmt;
use std::ops::{Deref, DerefMut};

use sqlx::{PgConnection, PgPool, SqlSafeStr};
use tower_orgkey::OrgCode;

use crate::error::OrgTxError;
use crate::held::Held;
use crate::{isolation, telemetry};

/// Fails if the connection is already in a transaction that ran a statement: only `begin` with this mode does. Then removes the
/// rows that outlive transactions: those of cursors `with hold`, and those of temporary tables until a rollback.
const BEGIN: &str = "begin not deferrable; close all; discard temp";

/// A transaction in which PostgreSQL shows the rows of one organization.
///
/// It dereferences to [`PgConnection`], so `&mut *tx` executes queries, and `tx.begin()` of [`sqlx::Connection`] makes a
/// savepoint. It ends with [`commit`](Self::commit); if dropped, it is rolled back. As with sqlx, `commit` after a failed
/// statement rolls back without an error, so return the error of the statement.
///
/// The isolation level is the `default_transaction_isolation` of the connection: `set transaction isolation level` is
/// rejected by PostgreSQL, because the organization is set by a query.
///
/// # Panics
///
/// sqlx rolls the whole transaction back if the future of `tx.begin()` is dropped before the savepoint exists, by a timeout for
/// example. Statements would then run outside of the transaction, so `&mut *tx` panics. `commit` returns an error, and
/// `rollback` still works. A `&mut PgConnection` that was taken before and is used afterwards is not protected.
///
/// # As an extractor
///
/// With the feature `axum`, a handler takes an `OrgTx` as an argument if the state has an [`OrgPool`](crate::OrgPool). It then
/// holds a connection for as long as the handler runs. Without a connection the request gets 503.
///
/// ```
/// use axum::{Router, routing::post};
/// use tower_orgkey::Rejection;
/// use tower_orgkey_sqlx::{OrgPool, OrgTx};
///
/// async fn add(mut tx: OrgTx, title: String) -> Result<(), Rejection> {
///     sqlx::query("insert into notes (title) values ($1)")
///         .bind(title)
///         .execute(&mut *tx)
///         .await
///         .map_err(|_| Rejection::internal())?;
///     Ok(tx.commit().await?)
/// }
///
/// fn app(auth: tower_orgkey::ApiKeyLayer, pool: OrgPool) -> Router {
///     Router::new().route("/notes", post(add)).route_layer(auth).with_state(pool)
/// }
/// ```
pub struct OrgTx {
    held: Held,
    org: OrgCode,
}

impl OrgTx {
    /// Returns the organization whose rows the transaction sees.
    pub fn org_code(&self) -> &OrgCode {
        &self.org
    }

    /// Commits the transaction.
    ///
    /// If this future is dropped, it is unknown whether the transaction is committed, and the connection is closed.
    pub async fn commit(self) -> Result<(), OrgTxError> {
        if self.held.depth() != 1 {
            self.held.close();
            return Err(OrgTxError::NotInTransaction);
        }
        self.held.commit().await.map_err(OrgTxError::Commit)
    }

    /// Rolls the transaction back, and waits for it. Dropping does the same in the background.
    ///
    /// The connection is closed if the future that began a savepoint was dropped.
    pub async fn rollback(self) -> Result<(), OrgTxError> {
        self.held.rollback().await.map_err(OrgTxError::Rollback)
    }
}

impl Deref for OrgTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.held.connection
    }
}

impl DerefMut for OrgTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        assert!(
            self.held.depth() > 0,
            "the transaction was rolled back, because the future that began a savepoint was dropped"
        );
        &mut self.held.connection
    }
}

impl fmt::Debug for OrgTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrgTx")
            .field("org", &self.org)
            .finish_non_exhaustive()
    }
}

pub(crate) async fn begin(
    pool: &PgPool,
    org: &OrgCode,
    persistent: bool,
) -> Result<OrgTx, OrgTxError> {
    let begun = try_begin(pool, org, persistent).await;
    if let Err(error) = &begun {
        telemetry::begin_failed(error);
    }
    begun
}

async fn try_begin(pool: &PgPool, org: &OrgCode, persistent: bool) -> Result<OrgTx, OrgTxError> {
    let connection = pool.acquire().await.map_err(OrgTxError::Acquire)?;
    let set_up = set_up(Held::new(connection), org.clone(), persistent);
    let set_up = tokio::time::timeout(pool.options().get_acquire_timeout(), set_up);
    // On a separate task: a caller that is dropped would leave the state unknown, and the connection would be closed.
    match tokio::spawn(set_up).await {
        Ok(Ok(begun)) => begun,
        Ok(Err(_elapsed)) => Err(OrgTxError::Deadline),
        Err(_cancelled) => Err(OrgTxError::Shutdown),
    }
}

/// Never together with `begin`: sqlx does not know of the transaction while its `begin` is in flight, so a connection that is
/// returned then would show the organization's rows to the next query.
async fn set_up(mut held: Held, org: OrgCode, persistent: bool) -> Result<OrgTx, OrgTxError> {
    let begun = held.begin(BEGIN.into_sql_str()).await;
    begun.map_err(OrgTxError::Begin)?;
    let connection = &mut *held.connection;
    sqlx::query(isolation::SET_ORG)
        .persistent(persistent)
        .bind(isolation::ORG_SETTING)
        .bind(org.as_str())
        .execute(&mut *connection)
        .await
        .map_err(OrgTxError::Begin)?;
    // By another statement: outside of a transaction, `set_config` returns its argument and has no effect.
    let set: Option<String> = sqlx::query_scalar(isolation::READ_ORG)
        .persistent(persistent)
        .bind(isolation::ORG_SETTING)
        .fetch_one(connection)
        .await
        .map_err(OrgTxError::Begin)?;
    if set.as_deref() != Some(org.as_str()) {
        return Err(OrgTxError::NotSet);
    }
    held.is_ready();
    Ok(OrgTx { held, org })
}
