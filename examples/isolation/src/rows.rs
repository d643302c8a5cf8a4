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

/// Checks the database as the role of this client. Stop the start unless `into_result` of the report is `Ok`.
///
/// # Panics
///
/// If `FINDINGS` is not of the same version as `IsolationReport`.
pub async fn check(client: &mut Client) -> Result<IsolationReport, Error> {
    let rows = client.query(FINDINGS, &[]).await?;
    let rows = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2)));
    #[expect(clippy::expect_used, reason = "both are of one crate")]
    let mut report = IsolationReport::read::<&str>(rows).expect("findings of another version");
    for table in client.query(PROBED, &[]).await? {
        let table: &str = table.get(0);
        for org in ["", "00000000-0000-0000-0000-000000000000"] {
            let transaction = client.transaction().await?;
            transaction.execute(SET_ORG, &[&ORG_SETTING, &org]).await?;
            let seen = transaction.query_one(&probe(table), &[]).await?;
            if seen.get(0) {
                report.rows_visible(table);
            }
        }
    }
    Ok(report)
}
