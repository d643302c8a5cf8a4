//! The totals of several nodes in PostgreSQL, for billing with Kinde: all nodes count, and the one with an advisory lock sends.
//!
//! The lock belongs to a session, so connect to the server itself, not through a pooler in transaction mode. What was counted and
//! sent must not be lost: leave `synchronous_commit` on, and let a standby take over only if it is one of `synchronous_standby_names`.
//! After any other failover, stop all nodes and call [`PostgresTotals::after_restore`] before they start again.

use std::time::{Duration, SystemTime};

use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tower_orgkey::OrgCode;
use tower_orgkey_usage::{
    Ledger, MaybeAdded, OrgTotal, RecordUnits, Totals, TotalsError, TotalsStore,
};

/// The tables.
pub const SCHEMA: &str = include_str!("schema.sql");

// Of these tables, because a database may have them in several schemas.
const TRY_LOCK: &str = "select pg_try_advisory_lock(hashtextextended('billing_features'::regclass::oid::text || ' ' || $1, 0))";

/// Ends the session of a sender that has vanished within a minute, and its lock with it.
const KEEPALIVES: [(&str, &str); 3] = [
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
];

/// How long the server may take for the totals of all organizations.
const DEADLINE: Duration = Duration::from_secs(30);

// In the order of keys, so that two nodes cannot wait for each other. Sums are bounded: an organization chooses the size that a
// request declares, and an error would stop the counts of all.
const ADD: &str = "with batch as (
        select distinct on (id) * from unnest($2::text[], $3::bigint[], $4::text[], $5::bigint[])
            as record (id, minute, organization, units) order by id
    ), added as (
        insert into billing_records (feature, id, minute) select $1, id, minute from batch
        on conflict do nothing returning id
    )
    insert into billing_organizations (feature, organization, counted)
    select $1, organization, least(sum(units), 9223372036854775807)::bigint from batch join added using (id) group by organization order by organization
    on conflict (feature, organization) do update
    set counted = least(billing_organizations.counted::numeric + excluded.counted, 9223372036854775807)::bigint";

// One statement, so that a future that is dropped leaves no transaction open.
const SAVE: &str = "with saved as (
        select * from unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::boolean[])
            as saved (organization, ledger, agreement, starts_at, total, is_confirmed)
    ), ledgers as (
        insert into billing_organizations (feature, organization, ledger)
        select $1, organization, ledger::jsonb from saved order by organization
        on conflict (feature, organization) do update set ledger = excluded.ledger
    )
    insert into billing_totals (feature, agreement, period_starts_at, organization, total, is_confirmed)
    select $1, agreement, starts_at, organization, total, is_confirmed from saved where agreement is not null
    on conflict (feature, agreement, period_starts_at, organization)
    do update set total = excluded.total, is_confirmed = excluded.is_confirmed";

/// The totals of a metered feature, in the tables of [`SCHEMA`].
#[derive(Debug)]
pub struct PostgresTotals {
    pool: PgPool,
    issuer: String,
    feature: String,
    /// The connection with the lock, if this node sends. Closing it is what lets another node send.
    sender: Mutex<Option<PgConnection>>,
}

impl PostgresTotals {
    /// Uses the totals of this feature. The issuer is the URL that the `KindeVerifier` is built with.
    pub fn new(pool: PgPool, issuer: impl Into<String>, feature: impl Into<String>) -> Self {
        Self {
            pool,
            issuer: issuer.into().trim_end_matches('/').to_owned(),
            feature: feature.into(),
            sender: Mutex::new(None),
        }
    }

    /// Creates the totals. Call it once, when nothing was sent for the feature in the present billing periods: tables that were
    /// lost must not begin with a total of 0.
    pub async fn first_start(&self) -> Result<(), sqlx::Error> {
        let create = "insert into billing_features (feature, issuer) values ($1, $2)";
        let create = sqlx::query(create).bind(&self.feature).bind(&self.issuer);
        create.execute(&self.pool).await.map(drop)
    }

    /// Stops sends for the present billing periods. Call it after a restore from a backup and after a failover that may have lost
    /// transactions, while no node runs: a total that is too low would lower the bill.
    pub async fn after_restore(&self) -> Result<(), TotalsError> {
        let totals = self.load().await?.ok_or("another node has the lock")?;
        let ledgers = totals.organizations.into_iter().map(|mut org| {
            org.forget();
            (org.organization, org.ledger)
        });
        let ledgers: Vec<_> = ledgers.collect();
        let mut sender = self.sender.lock().await;
        let mut connection = sender.take().ok_or(LOST)?;
        // At once: without the time, a total of 0 would be sent.
        let mut transaction = connection.begin().await?;
        self.write(&mut transaction, &ledgers).await?;
        let unknown = "update billing_features set unknown_before = $2 where feature = $1";
        let unknown = sqlx::query(unknown).bind(&self.feature);
        let now = seconds(SystemTime::now())?;
        unknown.bind(now).execute(&mut *transaction).await?;
        transaction.commit().await?;
        *sender = Some(connection);
        Ok(())
    }

    /// Deletes the ids of records of earlier minutes. Keep those of some months: a record that is pushed later is parked.
    pub async fn delete_ids(&self, before: SystemTime) -> Result<(), TotalsError> {
        let before = seconds(before)?;
        let mut transaction = self.pool.begin().await?;
        for statement in [
            // Waits for pushes that have read the old value, and makes later ones read this one.
            "update billing_features set ids_since = greatest(ids_since, $2) where feature = $1",
            "delete from billing_records where feature = $1 and minute < $2",
        ] {
            let statement = sqlx::query(statement).bind(&self.feature).bind(before);
            statement.execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    async fn read(&self, connection: &mut PgConnection) -> Result<Totals, TotalsError> {
        let of = "select unknown_before from billing_features where feature = $1 and issuer = $2";
        let of = sqlx::query_scalar(of)
            .bind(&self.feature)
            .bind(&self.issuer);
        let unknown_before: Option<Option<i64>> = of.fetch_optional(&mut *connection).await?;
        let unknown_before = unknown_before
            .ok_or(NO_TOTALS)?
            .map(u64::try_from)
            .transpose()?;
        let all = "select organization, counted, ledger::text from billing_organizations where feature = $1";
        let all = sqlx::query_as(all)
            .bind(&self.feature)
            .fetch_all(connection);
        let all: Vec<(String, i64, Option<String>)> = all.await?;
        let organizations = all.into_iter().map(|(organization, counted, ledger)| {
            Ok(OrgTotal {
                organization: OrgCode::new(organization)?,
                counted: counted.try_into()?,
                ledger: ledger.map_or(Ok(Ledger::default()), |ledger| {
                    serde_json::from_str(&ledger)
                })?,
            })
        });
        Ok(Totals {
            organizations: organizations.collect::<Result<_, TotalsError>>()?,
            unknown_before: unknown_before
                .map(|at| SystemTime::UNIX_EPOCH + Duration::from_secs(at)),
        })
    }

    /// Stores ledgers, on the connection with the lock.
    async fn write(
        &self,
        connection: &mut PgConnection,
        ledgers: &[(OrgCode, Ledger)],
    ) -> Result<(), TotalsError> {
        let totals: Vec<_> = ledgers.iter().map(|(_, ledger)| ledger.total()).collect();
        let orgs: Vec<&str> = ledgers.iter().map(|(org, _)| org.as_str()).collect();
        let json = ledgers
            .iter()
            .map(|(_, ledger)| serde_json::to_string(ledger));
        let json: Vec<String> = json.collect::<Result<_, _>>()?;
        let agreements = totals
            .iter()
            .map(|total| Some(&*total.as_ref()?.agreement_id));
        let starts = totals
            .iter()
            .map(|total| total.as_ref().map(|total| seconds(total.period_starts_at)));
        let sums = totals
            .iter()
            .map(|total| Some(bounded(total.as_ref()?.sent)));
        let confirmed = totals
            .iter()
            .map(|total| Some(total.as_ref()?.is_confirmed));
        let save = sqlx::query(SAVE)
            .bind(&self.feature)
            .bind(orgs)
            .bind(json)
            .bind(agreements.collect::<Vec<Option<&str>>>())
            .bind(
                starts
                    .map(Option::transpose)
                    .collect::<Result<Vec<_>, _>>()?,
            )
            .bind(sums.collect::<Vec<Option<i64>>>())
            .bind(confirmed.collect::<Vec<Option<bool>>>());
        save.execute(connection).await?;
        Ok(())
    }
}

const LOST: &str = "the connection with the lock was lost";
const NO_TOTALS: &str = "there are no totals of this feature and issuer";

impl TotalsStore for PostgresTotals {
    fn bind(&self, issuer: &str, feature_code: &str) -> Result<(), TotalsError> {
        if (issuer, feature_code) == (&*self.issuer, &*self.feature) {
            Ok(())
        } else {
            Err("has the totals of another issuer or feature".into())
        }
    }

    async fn add(&self, records: &[RecordUnits]) -> Result<(), TotalsError> {
        let mut transaction = self.pool.begin().await?;
        let since =
            "select ids_since from billing_features where feature = $1 and issuer = $2 for share";
        let since = sqlx::query_scalar(since)
            .bind(&self.feature)
            .bind(&self.issuer);
        let since: Option<i64> = since.fetch_optional(&mut *transaction).await?;
        let since = u64::try_from(since.ok_or(NO_TOTALS)?)?;
        let old = records
            .iter()
            .enumerate()
            .filter(|(_, record)| record.minute < since);
        let places: Vec<usize> = old.map(|(place, _)| place).collect();
        if !places.is_empty() {
            return Err(MaybeAdded { places }.into());
        }
        let ids: Vec<&str> = records.iter().map(|record| &*record.id).collect();
        let minutes: Result<Vec<i64>, _> = records
            .iter()
            .map(|record| record.minute.try_into())
            .collect();
        let orgs: Vec<&str> = records
            .iter()
            .map(|record| record.organization.as_str())
            .collect();
        let units = records.iter().map(|record| bounded(record.units));
        let units: Vec<i64> = units.collect();
        let add = sqlx::query(ADD)
            .bind(&self.feature)
            .bind(ids)
            .bind(minutes?)
            .bind(orgs)
            .bind(units);
        add.execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    async fn load(&self) -> Result<Option<Totals>, TotalsError> {
        let mut sender = self.sender.lock().await;
        let mut connection = if let Some(connection) = sender.take() {
            connection
        } else {
            // Not one of the pool, which may close it.
            let options = (*self.pool.connect_options()).clone().options(KEEPALIVES);
            let mut connection = timeout(DEADLINE, options.connect()).await??;
            let lock = sqlx::query_scalar(TRY_LOCK).bind(&self.feature);
            let is_locked: bool = timeout(DEADLINE, lock.fetch_one(&mut connection)).await??;
            if !is_locked {
                return Ok(None);
            }
            connection
        };
        // After an error the connection is dropped, and the lock with it.
        let totals = timeout(DEADLINE, self.read(&mut connection)).await??;
        *sender = Some(connection);
        Ok(Some(totals))
    }

    async fn save(&self, ledgers: &[(OrgCode, Ledger)]) -> Result<(), TotalsError> {
        let mut sender = self.sender.lock().await;
        let mut connection = sender.take().ok_or(LOST)?;
        timeout(DEADLINE, self.write(&mut connection, ledgers)).await??;
        *sender = Some(connection);
        Ok(())
    }
}

fn bounded(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}

fn seconds(at: SystemTime) -> Result<i64, TotalsError> {
    Ok(at
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_secs()
        .try_into()?)
}
