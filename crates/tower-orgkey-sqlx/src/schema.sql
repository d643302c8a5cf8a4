-- The tables of the guide. Run by their owner, which is not the role of the service.
create table notes (
    -- The default, so that an insert need not name the organization.
    org text not null default nullif(current_setting('app.org', true), ''),
    id bigint not null generated always as identity,
    title text not null,
    -- The organization comes first: the policy finds its rows by this index, and other tables can refer to both columns.
    primary key (org, id),
    -- Not `unique (title)`: its error would show that another organization has the title.
    unique (org, title)
);

create table comments (
    org text not null default nullif(current_setting('app.org', true), ''),
    id bigint not null generated always as identity,
    note_id bigint not null,
    body text not null,
    primary key (org, id),
    -- Not `note_id references notes (id)`: foreign keys are checked without row security.
    foreign key (org, note_id) references notes (org, id) on delete cascade
);
create index on comments (org, note_id);

-- `force`, so that the owner is subject to the policies too.
alter table notes enable row level security, force row level security;
alter table comments enable row level security, force row level security;

-- A permissive policy shows rows, and a restrictive one hides them whatever other policies show: a permissive
-- `using (true)`, added later by mistake, has no effect.
create policy notes_of_org on notes to app
    using (org = (select nullif(current_setting('app.org', true), '')));
create policy notes_of_no_other_org on notes as restrictive to public
    using (org = (select nullif(current_setting('app.org', true), '')));
create policy comments_of_org on comments to app
    using (org = (select nullif(current_setting('app.org', true), '')));
create policy comments_of_no_other_org on comments as restrictive to public
    using (org = (select nullif(current_setting('app.org', true), '')));

-- With the rights of the caller (PostgreSQL 15 and later). Other views ignore the policies.
create view latest_notes with (security_invoker) as
    select id, title from notes order by id desc limit 10;

-- Not `grant all`: `truncate` ignores the policies.
grant usage on schema public to app;
grant select, insert, update, delete on notes, comments to app;
grant select on latest_notes to app;
