//! The check at the start: each planted hole is found, and nothing else.

use std::collections::BTreeSet;

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tower_orgkey_sqlx::isolation::{Exceptions, FINDINGS, FindingKind, IsolationReport};
use tower_orgkey_sqlx::{IsolationError, OrgPool};

use crate::cluster::Database;
use crate::holes::HOLES;
use crate::kit::{assert_clean, drop_after, org};

async fn findings(pool: PgPool) -> Vec<(FindingKind, String)> {
    match OrgPool::checked(pool, &Exceptions::none()).await {
        Ok(_) => Vec::new(),
        Err(IsolationError::Findings(report)) => list(&report),
        Err(error) => panic!("{error:?}"),
    }
}

fn list(report: &IsolationReport) -> Vec<(FindingKind, String)> {
    let findings = report.findings().iter();
    findings
        .map(|finding| (finding.kind(), finding.object().to_owned()))
        .collect()
}

#[tokio::test]
async fn fault_146_each_hole_is_found() {
    let mut found_kinds = BTreeSet::new();
    for (number, (hole, expected)) in HOLES.iter().enumerate() {
        let database = Database::new(&["org_1"]).await;
        let role = format!("role_{number}");
        let mut admin = database.admin().await;
        // A table whose owner is not forced, which is sound as long as the service is not its owner.
        let legacy = "create table legacy (org text);
            alter table legacy enable row level security;
            create policy legacy_of_org on legacy using (org = nullif(current_setting('app.org', true), ''));
            grant select on legacy to app;";
        let roles = format!("{legacy} create role {role} login; grant app to {role};");
        sqlx::raw_sql(AssertSqlSafe(roles))
            .execute(&mut admin)
            .await
            .unwrap();
        let pool = database.pool_of(&role).await;
        assert_eq!(findings(pool.clone()).await, [], "before: {hole}");

        let hole = hole.replace("{role}", &role);
        sqlx::raw_sql(AssertSqlSafe(hole.clone()))
            .execute(&mut admin)
            .await
            .unwrap();
        let expected: Vec<(FindingKind, String)> = expected
            .iter()
            .map(|(kind, object)| (*kind, object.replace("{role}", &role)))
            .collect();
        assert_eq!(findings(pool.clone()).await, expected, "{hole}");

        // As exceptions by name, all are accepted; one less, and it is reported.
        let except = |findings: &[(FindingKind, String)]| {
            findings
                .iter()
                .fold(Exceptions::none(), |exceptions, (kind, object)| {
                    exceptions.except(*kind, object.clone())
                })
        };
        OrgPool::checked(pool.clone(), &except(&expected))
            .await
            .unwrap();
        let error = OrgPool::checked(pool, &except(&expected[1..]))
            .await
            .unwrap_err();
        let IsolationError::Findings(report) = error else {
            panic!("{error:?}")
        };
        assert_eq!(list(&report), expected[..1]);
        found_kinds.extend(expected.into_iter().map(|(kind, _)| kind));
        drop_roles(&mut admin, &role).await;
    }
    // By `old_servers_are_found`.
    found_kinds.insert(FindingKind::OldServer);
    assert_eq!(found_kinds, FindingKind::ALL.iter().copied().collect());
}

/// Roles belong to the server, and a superuser among them would be seen by others.
async fn drop_roles(admin: &mut sqlx::PgConnection, role: &str) {
    for role in [
        role.to_owned(),
        format!("{role}_admin"),
        format!("{role}_super"),
        format!("{role}_owner"),
    ] {
        let drop = format!(
            "do $$ begin if exists (select from pg_roles where rolname = '{role}') then
                drop owned by {role} cascade; drop role {role}; end if; end $$"
        );
        sqlx::raw_sql(AssertSqlSafe(drop))
            .execute(&mut *admin)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn sound_database_has_no_findings() {
    let database = Database::new(&["org_1"]).await;
    let pool = database.pool(1).await;
    OrgPool::checked(pool, &Exceptions::none()).await.unwrap();
    let bouncer = database.bouncer().await;
    let pool = database.pool_at(bouncer.addr(), 1).await;
    OrgPool::checked(pool, &Exceptions::none()).await.unwrap();
}

/// Each in a database with the tables of the guide: what is sound, although it looks like a hole.
const SOUND: &[&str] = &[
    // Policies with functions, casts, other tables and aggregates.
    "create function org_is(org text) returns bool language plpgsql stable as
            $$ begin return org = nullif(current_setting('app.org', true), ''); end $$;
        create function \"the Org\"() returns text language sql stable
            begin atomic select nullif(current_setting('app.org', true), ''); end;
        create aggregate largest(text) (sfunc = text_larger, stype = text);
        create table a (id int, org text); create table b (id int, \"Org\" text); create table c (id int, note_id bigint);
        create table d (org bigint); create table e (org text);
        insert into a values (1, 'org_1'); insert into b values (1, 'org_1'); insert into c select 1, id from notes;
        insert into d values (1); insert into e values ('org_1');
        create policy p on a using (org_is(org));
        create policy p on b using (\"Org\" = (select \"the Org\"())) with check (\"Org\" = public.\"the Org\"());
        create policy p on c using (exists (select from notes n where n.id = note_id));
        create policy p on d using (org = nullif(current_setting('app.org', true), '')::bigint);
        create policy p on e using (org = (select largest(nullif(current_setting('app.org', true), ''))));
        alter table a enable row level security; alter table b enable row level security;
        alter table c enable row level security; alter table d enable row level security;
        alter table e enable row level security; grant select, insert, update, delete on a, b, c, d, e to app",
    // The restrictive policies close what a permissive one opens.
    "create policy oops on notes using (true); create policy oops on comments for insert with check (true)",
    // Foreign keys with the organization, however the policies compare it, and to a table without row security.
    "create table a (org uuid, id int, name varchar, primary key (org, id));
        create table b (\"Org\" uuid, id int, foreign key (\"Org\", id) references a);
        create table c (org varchar(20), id int, primary key (org, id));
        create table d (org varchar(20), id int, foreign key (org, id) references c);
        create function org_is(org text) returns bool language sql stable
            as $$ select org = nullif(current_setting('app.org', true), '') $$;
        create table e (org text, id int, primary key (org, id));
        create table f (org text, id int, foreign key (org, id) references e);
        create table plans (id int primary key); create table g (org text, plan int references plans);
        create policy p on a using (org = nullif(current_setting('app.org', true), '')::uuid and id > 0);
        create policy p on b using ((select nullif(current_setting('app.org', true), ''))::uuid = \"Org\");
        create policy p on c using (org = current_setting('app.org', true));
        create policy p on d using (current_setting('app.org', true) = org);
        create policy p on e using (org_is(org)); create policy p on f using (org_is(org));
        create policy p on g using (org = current_setting('app.org', true));
        alter table a enable row level security; alter table b enable row level security;
        alter table c enable row level security; alter table d enable row level security;
        alter table e enable row level security; alter table f enable row level security;
        alter table g enable row level security; grant select, insert on a, b, c, d, e, f, g to app",
    // What the role cannot use: a schema, columns to read, objects without a grant, a trigger of another table.
    "create schema hidden; create table hidden.a (org text); alter table hidden.a enable row level security;
        create policy p on hidden.a using (org = current_setting('app.org', true)); grant select on hidden.a to app;
        create table a (org text); alter table a enable row level security; grant insert on a to app;
        create policy p on a using (org = current_setting('app.org', true));
        create table shared (id int); create materialized view m as select * from notes; create view v as select * from notes;
        create function f() returns trigger language plpgsql security definer as 'begin return new; end';
        revoke execute on function f from public;
        create trigger t after insert on shared for each row execute function f();
        select lo_create(0)",
    // What runs with the rights of the role itself.
    "create view v as select * from notes; alter view v owner to app;
        create function f() returns int language sql security definer as 'select 1'; alter function f owner to app;
        create table a (org text); alter table a enable row level security, force row level security;
        create policy p on a using (org = current_setting('app.org', true)); create rule r as on insert to a do also nothing;
        alter table a owner to app; revoke truncate on a from app",
];

#[tokio::test]
async fn sound_databases_have_no_findings() {
    for sound in SOUND {
        let database = Database::new(&["org_1"]).await;
        let mut admin = database.admin().await;
        sqlx::raw_sql(*sound).execute(&mut admin).await.unwrap();
        let found = findings(database.pool(1).await).await;
        // Roles belong to the server.
        let drop = "drop owned by app cascade";
        sqlx::raw_sql(drop).execute(&mut admin).await.unwrap();
        assert_eq!(found, [], "{sound}");
    }
}

#[tokio::test]
async fn temporary_tables_of_others_are_no_findings() {
    let database = Database::new(&[]).await;
    let pool = database.pool(2).await;
    let mut other = pool.acquire().await.unwrap();
    let create =
        "create temporary table kept (org text); create temporary table kept_too (org text);
        alter table kept_too enable row level security";
    sqlx::raw_sql(create).execute(&mut *other).await.unwrap();
    assert_eq!(findings(pool.clone()).await, []);
}

/// Before `PostgreSQL` 16, it makes the role a member of any other.
#[tokio::test]
async fn createrole_is_found_before_16() {
    let database = Database::new(&[]).await;
    let mut admin = database.admin().await;
    let create = "create role role_maker login createrole; grant app to role_maker";
    sqlx::raw_sql(create).execute(&mut admin).await.unwrap();
    let pool = database.pool_of("role_maker").await;
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int")
        .fetch_one(&pool)
        .await
        .unwrap();
    let expected = if version < 160_000 {
        vec![(FindingKind::ServerAccess, "role role_maker".to_owned())]
    } else {
        Vec::new()
    };
    let found = findings(pool).await;
    drop_roles(&mut admin, "role_maker").await;
    assert_eq!(found, expected);
}

/// The numbers of the first releases without CVE-2024-10976.
#[tokio::test]
async fn old_servers_are_found() {
    let database = Database::new(&[]).await;
    let pool = database.pool(1).await;
    let of_server = "from pg_catalog.current_setting('server_version_num') as v (text)";
    assert!(FINDINGS.contains(of_server));
    for (version, is_old) in [
        (110_022, true),
        (120_020, true),
        (120_021, false),
        (130_016, true),
        (130_017, false),
        (140_013, true),
        (140_014, false),
        (150_008, true),
        (150_009, false),
        (160_004, true),
        (160_005, false),
        (170_000, true),
        (170_001, false),
        (180_000, false),
    ] {
        let with_version = format!("from (values ('{version}')) as v (text)");
        let statement = AssertSqlSafe(FINDINGS.replace(of_server, &with_version));
        let rows: Vec<(String, String, String)> = sqlx::query_as(statement)
            .persistent(false)
            .fetch_all(&pool)
            .await
            .unwrap();
        let report = IsolationReport::read(rows).unwrap();
        let expected = [(FindingKind::OldServer, "server".to_owned())];
        assert_eq!(list(&report), expected[..usize::from(is_old)], "{version}");
    }
}

#[tokio::test]
async fn dropped_check_leaves_no_transaction() {
    let database = Database::new(&["org_1"]).await;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .test_before_acquire(false);
    let options = database.options(Database::addr(), "app");
    let pool = pool.connect_with(options).await.unwrap();
    let none = Exceptions::none();
    let mut polls = 0;
    while drop_after(polls, OrgPool::checked(pool.clone(), &none))
        .await
        .is_none()
    {
        polls += 1;
        assert_clean(&database, &pool).await;
    }
    assert!(polls > 1);
}

#[tokio::test]
async fn role_that_was_set_can_be_reset() {
    let database = Database::new(&[]).await;
    let options = database
        .options(Database::addr(), "postgres")
        .options([("role", "app")]);
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect_with(options)
        .await
        .unwrap();
    let expected = [(FindingKind::ReachableRole, "role postgres".to_owned())];
    assert_eq!(findings(pool).await, expected);
}

#[tokio::test]
async fn connection_with_an_organization_before() {
    let database = Database::new(&["org_1"]).await;
    let hole = "drop policy notes_of_no_other_org on notes; create policy oops on notes for select
        using (current_setting('app.org', true) is null or org = current_setting('app.org', true))";
    let mut admin = database.admin().await;
    sqlx::raw_sql(hole).execute(&mut admin).await.unwrap();
    let pool = database.pool(2).await;
    let orgs = OrgPool::unchecked(pool.clone());
    let first = orgs.begin(&org("org_1")).await.unwrap();
    let second = orgs.begin(&org("org_1")).await.unwrap();
    first.rollback().await.unwrap();
    second.rollback().await.unwrap();
    let expected = [(FindingKind::RowsVisible, "public.notes".to_owned())];
    assert_eq!(findings(pool).await, expected);
}

#[tokio::test]
async fn policy_that_raises_shows_no_rows() {
    let database = Database::new(&[]).await;
    let strict = "create function org_or_error() returns text language plpgsql stable as $$ begin
            if coalesce(current_setting('app.org', true), '') = '' then raise exception 'no organization'; end if;
            return current_setting('app.org');
        end $$;
        create table documents (org text); insert into documents values ('org_1');
        alter table documents enable row level security; grant select on documents to app;
        create policy documents_of_org on documents using (org = org_or_error())";
    let mut admin = database.admin().await;
    sqlx::raw_sql(strict).execute(&mut admin).await.unwrap();
    assert_eq!(findings(database.pool(1).await).await, []);
}

#[tokio::test]
async fn checks_behind_one_connection_do_not_mix() {
    let database = Database::new(&["org_1"]).await;
    let bouncer = database.bouncer().await;
    let mut checks = Vec::new();
    for _ in 0..20 {
        let pool = database.pool_at(bouncer.addr(), 1).await;
        checks.push(async move { OrgPool::checked(pool, &Exceptions::none()).await });
    }
    for checked in futures_util::future::join_all(checks).await {
        checked.unwrap();
    }
}
