//! The check at the start: each planted hole is found, and nothing else.

use std::collections::BTreeSet;

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tower_orgkey_sqlx::isolation::{Exceptions, FindingKind, IsolationReport};
use tower_orgkey_sqlx::{IsolationError, OrgPool};

use crate::cluster::Database;
use crate::kit::org;

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

/// The holes, each in the tables of the guide: what is run by an administrator in a database, and what must be found.
/// `{role}` is a role of the hole, with the rights of `app`, as which the check connects.
const HOLES: &[(&str, &[(FindingKind, &str)])] = &[
    ("alter role {role} superuser", &[
        (FindingKind::Superuser, "role {role}"),
        (FindingKind::NotForced, "public.legacy"),
        (FindingKind::Truncate, "public.comments"),
        (FindingKind::Truncate, "public.legacy"),
        (FindingKind::Truncate, "public.notes"),
        (FindingKind::RowsVisible, "public.comments"),
        (FindingKind::RowsVisible, "public.notes"),
    ]),
    ("alter role {role} bypassrls", &[
        (FindingKind::BypassRls, "role {role}"),
        (FindingKind::RowsVisible, "public.comments"),
        (FindingKind::RowsVisible, "public.notes"),
    ]),
    ("create role {role}_admin bypassrls; grant {role}_admin to {role}", &[
        (FindingKind::ReachableRole, "role {role}_admin"),
    ]),
    ("create role {role}_super superuser; grant {role}_super to {role}; alter role {role} noinherit", &[
        (FindingKind::ReachableRole, "role {role}_super"),
    ]),
    ("create role {role}_owner; alter table legacy owner to {role}_owner; grant {role}_owner to {role};
        alter role {role} noinherit; grant select on legacy to {role}", &[
        (FindingKind::ReachableRole, "role {role}_owner"),
    ]),
    ("create role {role}_owner; create table hidden (org text); alter table hidden enable row level security;
        alter table hidden owner to {role}_owner; grant {role}_owner to {role}; alter role {role} noinherit", &[
        (FindingKind::ReachableRole, "role {role}_owner"),
    ]),
    ("create role {role}_owner; create table hidden (org text); grant select on hidden to {role}_owner;
        grant {role}_owner to {role}; alter role {role} noinherit", &[
        (FindingKind::ReachableRole, "role {role}_owner"),
    ]),
    ("create role {role}_owner; create policy reporting on legacy to {role}_owner using (true);
        grant {role}_owner to {role}; alter role {role} noinherit", &[
        (FindingKind::ReachableRole, "role {role}_owner"),
    ]),
    ("create role {role}_owner replication; grant {role}_owner to {role}", &[
        (FindingKind::ReachableRole, "role {role}_owner"),
    ]),
    ("alter role {role} replication", &[(FindingKind::ServerAccess, "role {role}")]),
    ("grant pg_read_server_files to {role}", &[(FindingKind::ServerAccess, "role {role}")]),
    ("grant pg_execute_server_program to {role}; alter role {role} noinherit", &[
        (FindingKind::ReachableRole, "role pg_execute_server_program"),
    ]),
    ("create rule copied as on insert to notes do also delete from comments", &[(FindingKind::Rule, "public.notes.copied")]),
    ("create function log_note() returns trigger language plpgsql security definer as 'begin return new; end';
        revoke execute on function log_note from public;
        create trigger log after insert on notes for each row execute function log_note()", &[
        (FindingKind::DefinerFunction, "public.log_note()"),
    ]),
    ("create schema other; create table other.rows (id int); grant select on other.rows to app", &[
        (FindingKind::RowSecurityOff, "other.rows"),
    ]),
    ("alter table notes disable row level security", &[(FindingKind::RowSecurityOff, "public.notes")]),
    ("create table \"Plans\" (id int); grant select on \"Plans\" to app", &[
        (FindingKind::RowSecurityOff, "public.\"Plans\""),
    ]),
    ("alter table legacy owner to {role}; revoke truncate on legacy from {role}", &[
        (FindingKind::NotForced, "public.legacy"),
    ]),
    ("drop policy comments_of_org on comments", &[(FindingKind::NoPolicy, "public.comments")]),
    ("drop policy notes_of_no_other_org on notes; create policy oops on notes using (true)", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
        (FindingKind::RowsVisible, "public.notes"),
    ]),
    ("drop policy notes_of_no_other_org on notes; create policy oops on notes for insert with check (length(org) > 0)", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
    ]),
    // Depends on the organization, and is still true with any.
    ("drop policy notes_of_no_other_org on notes;
        create policy oops on notes for select using (org <> '' and current_setting('app.org', true) <> '')", &[
        (FindingKind::ForeignKey, "public.comments.comments_org_note_id_fkey"),
        (FindingKind::RowsVisible, "public.notes"),
    ]),
    ("drop policy notes_of_no_other_org on notes;
        create policy oops on notes for delete using (current_setting('app.org', true) <> '')", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
    ]),
    ("drop policy notes_of_no_other_org on notes;
        create policy oops on notes for update using (org = current_setting('app.org', true)) with check (true)", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
    ]),
    // Functions and tables that know nothing of the organization.
    ("create function is_live(title text) returns bool language sql as 'select title <> ''''';
        drop policy notes_of_no_other_org on notes; create policy live on notes as restrictive using (is_live(title));
        create policy oops on notes for delete using (true)", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
    ]),
    ("create schema app; grant usage on schema app to app;
        create function app.org_is_open(id bigint) returns bool language sql as 'select id > 0';
        drop policy notes_of_no_other_org on notes; create policy oops on notes for update using (app.org_is_open(id))", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
    ]),
    ("create table shared (title text);
        drop policy notes_of_no_other_org on notes;
        create policy oops on notes for delete using (title in (select s.title from shared s))", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
    ]),
    // It reads the organization, and what it allows is unknown: it does not close what another policy opens.
    ("create function is_mine(org text) returns bool language sql as 'select org = current_setting(''app.org'', true)';
        drop policy notes_of_no_other_org on notes; create policy mine on notes as restrictive using (is_mine(org));
        create policy oops on notes for delete using (true)", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
    ]),
    // Before an organization is set for the first time, and not after that.
    ("drop policy notes_of_no_other_org on notes;
        create policy oops on notes for select using (current_setting('app.org', true) is null or org = current_setting('app.org', true))", &[
        (FindingKind::RowsVisible, "public.notes"),
    ]),
    ("alter role {role} set app.org = 'org_1'", &[
        (FindingKind::OrganizationPreset, "session"),
        (FindingKind::RowsVisible, "public.comments"),
        (FindingKind::RowsVisible, "public.notes"),
    ]),
    ("create table documents (org uuid); insert into documents select gen_random_uuid();
        alter table documents enable row level security; grant select on documents to app;
        create policy documents_of_org on documents using (org = current_setting('app.org', true)::uuid)", &[
        (FindingKind::ProbeFailed, "public.documents"),
    ]),
    ("create table events (org text, at date) partition by range (at);
        create table events_1 partition of events for values from ('2026-01-01') to ('2027-01-01');
        alter table events enable row level security;
        create policy events_of_org on events using (org = nullif(current_setting('app.org', true), ''));
        grant select on events, events_1 to app", &[(FindingKind::Partition, "public.events_1")]),
    ("create materialized view totals as select org, count(*) from notes group by org; grant select on totals to app", &[
        (FindingKind::MaterializedView, "public.totals"),
    ]),
    ("create view all_notes as select * from notes; grant select on all_notes to app", &[
        (FindingKind::OwnerView, "public.all_notes"),
    ]),
    ("create view all_notes with (security_invoker = off) as select * from notes; grant select (title) on all_notes to app", &[
        (FindingKind::OwnerView, "public.all_notes"),
    ]),
    ("create function all_titles(first int) returns setof text language sql security definer as 'select title from notes'", &[
        (FindingKind::DefinerFunction, "public.all_titles(first integer)"),
    ]),
    ("create foreign data wrapper w; create server s foreign data wrapper w; create foreign table remote (id int) server s;
        grant select on remote to app", &[(FindingKind::ForeignTable, "public.remote")]),
    ("alter table notes add unique (id); alter table comments add constraint loose foreign key (note_id) references notes (id)", &[
        (FindingKind::ForeignKey, "public.comments.loose"),
    ]),
    // Columns of the policies that are not the organization's.
    ("alter table notes add unique (id); alter table comments add constraint loose foreign key (note_id) references notes (id);
        create policy live on notes as restrictive using (id > 0);
        create policy live on comments as restrictive using (note_id > 0)", &[
        (FindingKind::ForeignKey, "public.comments.loose"),
    ]),
    ("create table a (org text, region text, unique (region)); create table b (org text, region text,
            constraint loose foreign key (region) references a (region));
        create policy p on a using (org = current_setting('app.org', true) and region = current_setting('app.region', true));
        create policy p on b using (region = current_setting('app.region', true) and current_setting('app.org', true) = org);
        alter table a enable row level security; alter table b enable row level security; grant select on a, b to app", &[
        (FindingKind::ForeignKey, "public.b.loose"),
    ]),
    ("grant truncate on notes to app", &[(FindingKind::Truncate, "public.notes")]),
    ("create schema other; grant usage on schema other to app; create table other.rows (id int); grant update (id) on other.rows to app", &[
        (FindingKind::RowSecurityOff, "other.rows"),
    ]),
];

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
        let pool = PgPoolOptions::new().max_connections(1);
        let pool = pool
            .connect_with(database.options(Database::addr(), &role))
            .await
            .unwrap();
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
    // The server of this machine has a current version.
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

#[tokio::test]
async fn sound_policies_have_no_findings() {
    let database = Database::new(&["org_1"]).await;
    let tables = "create function org_is(org text) returns bool language plpgsql stable as
            $$ begin return org = nullif(current_setting('app.org', true), ''); end $$;
        create function \"the Org\"() returns text language sql stable
            begin atomic select nullif(current_setting('app.org', true), ''); end;
        create table a (id int, org text); create table b (id int, \"Org\" text); create table c (id int, note_id bigint);
        create table d (org uuid, id int, name varchar, primary key (org, id));
        create table e (\"Org\" uuid, id int, foreign key (\"Org\", id) references d);
        create policy p on d using (org = nullif(current_setting('app.org', true), '')::uuid and id > 0);
        create policy p on e using ((select nullif(current_setting('app.org', true), ''))::uuid = \"Org\");
        alter table d enable row level security; alter table e enable row level security; grant select, insert on d, e to app;
        insert into a values (1, 'org_1'); insert into b values (1, 'org_1'); insert into c select 1, id from notes;
        create policy p on a using (org_is(org));
        create policy p on b using (\"Org\" = (select \"the Org\"())) with check (\"Org\" = public.\"the Org\"());
        create policy p on c using (exists (select from notes n where n.id = note_id));
        alter table a enable row level security; alter table b enable row level security;
        alter table c enable row level security; grant select, insert, update, delete on a, b, c to app";
    let mut admin = database.admin().await;
    sqlx::raw_sql(tables).execute(&mut admin).await.unwrap();
    assert_eq!(findings(database.pool(1).await).await, []);
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
