//! Databases with holes, for the check at the start.

use tower_orgkey_sqlx::isolation::FindingKind;

/// The holes, each in the tables of the guide: what is run by an administrator in a database, and what must be found.
/// `{role}` is a role of the hole, with the rights of `app`, as which the check connects.
pub(crate) const HOLES: &[(&str, &[(FindingKind, &str)])] = &[
    ("alter role {role} superuser bypassrls", &[
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
    ("grant pg_write_server_files to {role}", &[(FindingKind::ServerAccess, "role {role}")]),
    ("grant pg_execute_server_program to {role}; alter role {role} noinherit", &[
        (FindingKind::ReachableRole, "role pg_execute_server_program"),
    ]),
    ("create rule copied as on insert to notes do also delete from comments", &[(FindingKind::Rule, "public.notes.copied")]),
    ("create function log_note() returns trigger language plpgsql security definer as 'begin return new; end';
        revoke execute on function log_note from public;
        create trigger log after insert on notes for each row execute function log_note()", &[
        (FindingKind::DefinerFunction, "public.log_note()"),
    ]),
    ("create table events (org text, at date) partition by range (at); grant select on events to app", &[
        (FindingKind::RowSecurityOff, "public.events"),
    ]),
    ("create table events (org text, at date) partition by range (at); alter table events enable row level security;
        grant select on events to app", &[(FindingKind::NoPolicy, "public.events")]),
    ("alter table notes disable row level security", &[(FindingKind::RowSecurityOff, "public.notes")]),
    ("create table \"Plans\" (id int); grant select on \"Plans\" to app", &[
        (FindingKind::RowSecurityOff, "public.\"Plans\""),
    ]),
    ("alter table legacy owner to {role}; revoke truncate on legacy from {role}", &[
        (FindingKind::NotForced, "public.legacy"),
    ]),
    // Inherited rights are those of the role itself.
    ("create role {role}_owner; alter table legacy owner to {role}_owner; grant {role}_owner to {role}", &[
        (FindingKind::NotForced, "public.legacy"),
        (FindingKind::Truncate, "public.legacy"),
    ]),
    ("drop policy comments_of_org on comments", &[(FindingKind::NoPolicy, "public.comments")]),
    ("alter policy comments_of_org on comments to app_owner", &[(FindingKind::NoPolicy, "public.comments")]),
    ("drop policy notes_of_no_other_org on notes; create policy oops on notes using (true)", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
        (FindingKind::RowsVisible, "public.notes"),
    ]),
    ("drop policy notes_of_no_other_org on notes; create policy oops on notes for insert with check (length(org) > 0)", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
    ]),
    ("drop policy notes_of_no_other_org on notes; create policy oops on notes for select using (id > 0)", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
        (FindingKind::RowsVisible, "public.notes"),
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
    ("drop policy notes_of_no_other_org on notes;
        create policy oops on notes for update using (id > 0) with check (org = current_setting('app.org', true))", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
    ]),
    // Becomes part of a prepared statement.
    ("create function current_org() returns text language sql immutable
            as $$ select nullif(current_setting('app.org', true), '') $$;
        drop policy notes_of_no_other_org on notes; create policy oops on notes for delete using (org = current_org())", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
    ]),
    // Names that are not those of columns: in a text, of types, of the table, and of a column that the system adds.
    ("drop policy notes_of_no_other_org on notes;
        create policy oops on notes for delete using (current_setting('app.org', true) <> 'it''s org')", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
    ]),
    ("create table d (org text, text int, varying int, zone int); alter table d enable row level security; grant delete on d to app;
        create policy oops on d using (current_setting('app.org', true)::varchar::text::timestamp::timestamptz < now())", &[
        (FindingKind::PolicyWithoutOrganization, "public.d"),
    ]),
    ("create function is_ok(note notes) returns bool language sql as 'select true'; drop policy notes_of_no_other_org on notes;
        create policy oops on notes for delete using (is_ok(notes) and id > 0)", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
    ]),
    ("drop policy notes_of_no_other_org on notes;
        create policy oops on notes for delete using (tableoid > 0 and current_setting('app.org', true) <> '')", &[
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
    ("drop policy notes_of_no_other_org on notes;
        create policy live on notes as restrictive using (current_setting('app.org', true) <> '');
        create policy oops on notes for delete using (true)", &[
        (FindingKind::PolicyWithoutOrganization, "public.notes"),
    ]),
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
    ("do $$ begin execute format('grant select on large object %s to app', lo_create(0)); end $$", &[
        (FindingKind::LargeObject, "database"),
    ]),
    ("do $$ begin execute format('grant select on large object %s to public', lo_create(0)); end $$", &[
        (FindingKind::LargeObject, "database"),
    ]),
    ("do $$ begin execute format('alter large object %s owner to app', lo_create(0)); end $$", &[
        (FindingKind::LargeObject, "database"),
    ]),
    ("select lo_create(0); alter role {role} set lo_compat_privileges = on", &[
        (FindingKind::LargeObject, "database"),
    ]),
    ("create role {role}_owner; grant {role}_owner to {role}; alter role {role} noinherit;
        do $$ begin execute format('alter large object %s owner to {role}_owner', lo_create(0)); end $$", &[
        (FindingKind::ReachableRole, "role {role}_owner"),
    ]),
    ("create role {role}_owner; grant {role}_owner to {role}; alter role {role} noinherit;
        do $$ begin execute format('grant select on large object %s to {role}_owner', lo_create(0)); end $$", &[
        (FindingKind::ReachableRole, "role {role}_owner"),
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
    // A column that only one of two policies compares with the organization. And once, not for each partition.
    ("create table a (org text, region text, unique (region)); create table b (org text, region text,
            constraint loose foreign key (region) references a (region)) partition by list (org);
        create table b_1 partition of b for values in ('org_1');
        create policy p on a using (org = current_setting('app.org', true));
        create policy q on a using (region = current_setting('app.org', true));
        create policy p on b using (region = current_setting('app.org', true));
        create policy p on b_1 using (region = current_setting('app.org', true));
        alter table a enable row level security; alter table b enable row level security;
        alter table b_1 enable row level security; grant select on a, b, b_1 to app", &[
        (FindingKind::ForeignKey, "public.b.loose"),
    ]),
    ("grant truncate on notes to app", &[(FindingKind::Truncate, "public.notes")]),
    // Each privilege alone, in a schema that the role may use only later.
    ("create schema other; create table other.rows (id int); grant select on other.rows to app", &[
        (FindingKind::RowSecurityOff, "other.rows"),
    ]),
    ("create schema other; create table other.rows (id int); grant insert (id) on other.rows to app", &[
        (FindingKind::RowSecurityOff, "other.rows"),
    ]),
    ("create schema other; create table other.rows (id int); grant update (id) on other.rows to app", &[
        (FindingKind::RowSecurityOff, "other.rows"),
    ]),
    ("create schema other; create table other.rows (id int); grant delete on other.rows to app", &[
        (FindingKind::RowSecurityOff, "other.rows"),
    ]),
    ("create schema other; create table other.rows (id int); grant truncate on other.rows to app", &[
        (FindingKind::RowSecurityOff, "other.rows"),
    ]),
];
