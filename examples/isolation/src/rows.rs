//! Rows of one organization with `tokio-postgres`.

use tokio_postgres::{Client, Error, Transaction};
use tower_orgkey::OrgContext;
use tower_orgkey_sqlx::isolation::{
    FINDINGS, IsolationReport, ORG_SETTING, PROBED, READ_ORG, SET_ORG, probe,
};

/// Begins a transaction that shows the rows of this organization, or returns `None` if the setting has no effect.
///
/// It needs no task: `tokio-postgres` rolls back when the future that begins a transaction is dropped, and when the transaction
/// is.
pub async fn begin<'a>(
    client: &'a mut Client,
    org: &OrgContext,
) -> Result<Option<Transaction<'a>>, Error> {
    let org = org.org_code().as_str();
    let transaction = client.transaction().await?;
    transaction.execute(SET_ORG, &[&ORG_SETTING, &org]).await?;
    let set = transaction.query_one(READ_ORG, &[&ORG_SETTING]).await?;
    let is_set = set.get::<_, Option<&str>>(0) == Some(org);
    Ok(is_set.then_some(transaction))
}

/// Checks the database as the role of this client, which must be a new connection. Stop the start unless `into_result` of the
/// report is `Ok`.
///
/// # Panics
///
/// If `FINDINGS` is not of the same version as `IsolationReport`.
pub async fn check(client: &mut Client) -> Result<IsolationReport, Error> {
    let mut transaction = client.transaction().await?;
    let rows = transaction.query(FINDINGS, &[]).await?;
    let rows = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2)));
    #[expect(clippy::expect_used, reason = "both are of one crate")]
    let mut report = IsolationReport::read::<&str>(rows).expect("findings of another version");
    let tables = transaction.query(PROBED, &[]).await?;
    let unknown = "00000000-0000-0000-0000-000000000000";
    // First all without: once set, the setting is never null again.
    for org in [None, Some(""), Some(unknown)] {
        for table in &tables {
            let table: &str = table.get(0);
            let savepoint = transaction.transaction().await?;
            if let Some(org) = org {
                savepoint.execute(SET_ORG, &[&ORG_SETTING, &org]).await?;
            }
            match savepoint.query_one(&probe(table), &[]).await {
                Ok(seen) if seen.get(0) => report.rows_visible(table),
                Ok(_) => {}
                Err(error) => {
                    let code = error.code().map_or("", |code| code.code()).to_owned();
                    // The policy casts the code to another type.
                    if org != Some(unknown) || !code.starts_with("22") {
                        report.probe_failed(table, &code);
                    }
                }
            }
            savepoint.rollback().await?;
        }
    }
    transaction.rollback().await?;
    Ok(report)
}
