use std::time::Duration;

use tower_orgkey::Rejection;

/// Why a transaction of an organization could not begin or commit.
///
/// In a handler, `?` converts it into a [`Rejection`]: 503 with the code `database-unavailable`, and `Retry-After: 1`. Nothing
/// of the database's message reaches the caller.
///
/// ```
/// use tower_orgkey::{OrgContext, Rejection};
/// use tower_orgkey_sqlx::OrgPool;
///
/// async fn touch(org: &OrgContext, pool: &OrgPool) -> Result<(), Rejection> {
///     let tx = pool.begin(org).await?;
///     Ok(tx.commit().await?)
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrgTxError {
    /// The pool gave no connection: all are in use for as long as its acquire timeout, the database is down, or the pool is
    /// closed.
    #[error("no database connection")]
    Acquire(#[source] sqlx::Error),
    /// The transaction could not begin, or the organization could not be set. Also when other code left the connection in a
    /// transaction in which it ran a statement. The connection is closed.
    #[error("the transaction could not begin")]
    Begin(#[source] sqlx::Error),
    /// Begin and set took longer than the acquire timeout of the pool. The connection is closed.
    #[error("the transaction did not begin in time")]
    Deadline,
    /// After the organization was set, the transaction had another one or none: a proxy or a function of the database
    /// interferes. The connection is closed.
    #[error("the transaction does not have the organization that was set")]
    NotSet,
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    Shutdown,
    /// [`commit`](crate::OrgTx::commit) outside of the transaction: a savepoint is open, or the transaction was rolled back
    /// because the future that began a savepoint was dropped. The connection is closed, and nothing is committed.
    #[error("the transaction has ended, or a savepoint is open")]
    NotInTransaction,
    /// The commit failed, or its reply was lost. In the latter case it is unknown whether the transaction is committed.
    #[error("the transaction could not be committed")]
    Commit(#[source] sqlx::Error),
    /// The rollback failed. The connection is closed, so nothing is committed.
    #[error("the transaction could not be rolled back")]
    Rollback(#[source] sqlx::Error),
}

impl From<OrgTxError> for Rejection {
    fn from(_: OrgTxError) -> Self {
        Self::custom(
            http::StatusCode::SERVICE_UNAVAILABLE,
            "database-unavailable",
            "The request could not be served at this time. Try again later.",
        )
        .with_retry_after(Duration::from_secs(1))
    }
}
