//! Behind PgBouncer in transaction mode, where two clients share one connection to the database.

use tower_orgkey_sqlx::OrgPool;

use crate::cluster::Database;
use crate::kit::{backend, org, orgs_seen};

#[tokio::test]
async fn fault_145_clients_share_a_connection() {
    let database = Database::new(&["org_1", "org_2"]).await;
    let bouncer = database.bouncer().await;
    let pools = [
        database.pool_at(bouncer.addr(), 2).await,
        database.pool_at(bouncer.addr(), 2).await,
    ];
    let mut backends = Vec::new();
    for round in 0..20 {
        let pool = &pools[round % 2];
        let orgs = OrgPool::unchecked(pool.clone()).persistent(false);
        let code = ["org_1", "org_2"][round / 2 % 2];
        let mut tx = orgs.begin(&org(code)).await.unwrap();
        assert_eq!(orgs_seen(&mut tx).await, [code; 3]);
        backends.push(backend(&mut tx).await);
        match round % 3 {
            0 => tx.commit().await.unwrap(),
            1 => tx.rollback().await.unwrap(),
            _ => drop(tx),
        }
        // On the connection that just had an organization.
        let mut other = pools[(round + 1) % 2].acquire().await.unwrap();
        assert_eq!(orgs_seen(&mut other).await, [""; 0]);
        backends.push(backend(&mut other).await);
    }
    backends.dedup();
    assert_eq!(
        backends.len(),
        1,
        "the clients had connections of their own"
    );
}
