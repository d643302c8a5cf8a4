use sqlx::pool::PoolConnection;
use sqlx::{Database, Postgres, SqlStr};
use sqlx_core::transaction::TransactionManager;

type Manager = <Postgres as Database>::TransactionManager;

/// A connection in a transaction, which returns to its pool only in a known state.
///
/// A [`sqlx::Transaction`] always returns it.
pub(crate) struct Held {
    pub(crate) connection: PoolConnection<Postgres>,
    state: State,
}

enum State {
    /// A statement that begins or ends the transaction may be in flight.
    Unknown,
    Open,
    Ended,
}

impl Held {
    /// Until [`is_ready`](Self::is_ready) is called, dropping it closes the connection.
    pub(crate) fn new(connection: PoolConnection<Postgres>) -> Self {
        Self {
            connection,
            state: State::Unknown,
        }
    }

    pub(crate) async fn begin(&mut self, statement: SqlStr) -> sqlx::Result<()> {
        Manager::begin(&mut self.connection, Some(statement)).await
    }

    /// The transaction is as it should be: dropping it rolls back, and keeps the connection.
    pub(crate) fn is_ready(&mut self) {
        self.state = State::Open;
    }

    /// The transaction, and the savepoints in it.
    pub(crate) fn depth(&self) -> usize {
        Manager::get_transaction_depth(&self.connection)
    }

    pub(crate) async fn commit(mut self) -> sqlx::Result<()> {
        self.state = State::Unknown;
        Manager::commit(&mut self.connection).await?;
        self.state = State::Ended;
        Ok(())
    }

    pub(crate) async fn rollback(mut self) -> sqlx::Result<()> {
        self.state = State::Unknown;
        if self.depth() == 0 {
            // sqlx's count is wrong: another `begin` may be in flight, which only closing the connection undoes.
            return Ok(());
        }
        while self.depth() > 0 {
            Manager::rollback(&mut self.connection).await?;
        }
        self.state = State::Ended;
        Ok(())
    }

    pub(crate) fn close(mut self) {
        self.state = State::Unknown;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        match self.state {
            State::Ended => {}
            State::Open if self.depth() > 0 => {
                // More than once if a savepoint was leaked.
                while self.depth() > 0 {
                    Manager::start_rollback(&mut self.connection);
                }
            }
            // `Open` without a transaction: sqlx's count is wrong after the future that began a savepoint was dropped.
            State::Open | State::Unknown => self.connection.close_on_drop(),
        }
    }
}
