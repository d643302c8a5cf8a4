-- What would show a role the rows of other organizations, as (kind, object, detail), from the role's own view.
with
me as (select oid, rolname, rolsuper, rolbypassrls from pg_catalog.pg_roles where rolname = current_user),
-- What reads rows without row security, or makes a role a member of others.
powers as (
    select oid, case when rolreplication then 'REPLICATION' when rolname ~ '^pg_' then 'programs or files of the server'
        else 'CREATEROLE before PostgreSQL 16' end as power
    from pg_catalog.pg_roles
    where rolreplication or rolname in ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files')
        or rolcreaterole and pg_catalog.current_setting('server_version_num')::int < 160000
),
-- The role that connected, and all that `set role` can take from it.
reachable as (
    select r.oid, r.rolname, r.rolsuper, r.rolbypassrls, pg_catalog.pg_has_role(r.oid, 'USAGE') as is_inherited
    from pg_catalog.pg_roles r, pg_catalog.pg_roles login
    where login.rolname = session_user and r.rolname <> current_user
        -- A superuser can take every role: its own row says enough.
        and (r.oid = login.oid or not login.rolsuper and pg_catalog.pg_has_role(session_user, r.oid,
            case when pg_catalog.current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end))
),
schemas as (
    select oid, nspname from pg_catalog.pg_namespace
    where nspname not in ('pg_catalog', 'information_schema') and nspname !~ '^pg_temp'
),
everything as (
    select c.oid, c.relkind, c.relrowsecurity, c.relforcerowsecurity, c.relispartition, c.relowner,
        pg_catalog.format('%I.%I', s.nspname, c.relname) as name,
        c.relkind in ('r', 'p') and not c.relrowsecurity or c.relkind in ('m', 'f')
            or c.relkind = 'v' and not exists (select from pg_catalog.pg_options_to_table(c.reloptions) o
                where o.option_name = 'security_invoker' and o.option_value::bool) as ignores_policies
    from pg_catalog.pg_class c join schemas s on s.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f')
),
relations as (
    select * from everything
    where pg_catalog.has_table_privilege(oid, 'DELETE, TRUNCATE')
        -- Of a column, or of the table.
        or pg_catalog.has_any_column_privilege(oid, 'SELECT, INSERT, UPDATE')
),
isolated as (select * from relations where relkind in ('r', 'p') and relrowsecurity),
policies as (
    select p.oid, p.polrelid, p.polpermissive, p.polcmd, p.polroles,
        pg_catalog.pg_get_expr(p.polqual, p.polrelid) as rows_used,
        pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) as rows_written,
        exists (select from pg_catalog.unnest(p.polroles) as r(role)
            where r.role = 0 or pg_catalog.pg_has_role(r.role, 'USAGE')) as applies
    from pg_catalog.pg_policy p
),
-- The functions of a policy that read the organization, and its other tables with row security: also by their short names.
-- Not those declared immutable: their result becomes part of a prepared statement, which serves the organization after it.
binders as (
    select d.objid as policy, n.name
    from pg_catalog.pg_depend d
    join pg_catalog.pg_proc f on d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass and f.oid = d.refobjid
    join pg_catalog.pg_namespace s on s.oid = f.pronamespace
    cross join lateral (values
        (pg_catalog.quote_ident(f.proname)), (pg_catalog.format('%I.%I', s.nspname, f.proname))) as n (name)
    where d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass and f.provolatile <> 'i' and pg_catalog.strpos(
        case when f.prokind in ('f', 'w') then pg_catalog.pg_get_functiondef(f.oid) else '' end, '''app.org''') > 0
    union
    select d.objid, n.name
    from pg_catalog.pg_depend d
    join pg_catalog.pg_class c on d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and c.oid = d.refobjid
    join pg_catalog.pg_namespace s on s.oid = c.relnamespace
    join policies p on p.oid = d.objid and p.polrelid <> c.oid
    cross join lateral (values
        (pg_catalog.quote_ident(c.relname)), (pg_catalog.format('%I.%I', s.nspname, c.relname))) as n (name)
    where d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass and c.relkind in ('r', 'p') and c.relrowsecurity
),
-- The expressions of policies, and the names in them, without texts and casts. Columns of subqueries are qualified there.
expressions as (
    select p.oid as policy, p.polrelid, p.polpermissive, p.polroles, p.applies, c.command, c.expression, array(
        select m.match[1] from pg_catalog.regexp_matches(
            pg_catalog.regexp_replace(c.expression,
                '''[^'']*''|::[[:alnum:]_."]+(?: varying| with time zone| without time zone)?', ' ', 'g'),
            '((?:"(?:[^"]|"")+"|[[:alnum:]_$]+)(?:[.](?:"(?:[^"]|"")+"|[[:alnum:]_$]+))*)', 'g') as m (match)) as names
    from policies p
    cross join lateral (values
        ('r', 'select', p.rows_used),
        ('a', 'insert', coalesce(p.rows_written, p.rows_used)),
        ('w', 'update', p.rows_used),
        ('w', 'update to', coalesce(p.rows_written, p.rows_used)),
        ('d', 'delete', p.rows_used)
    ) as c (code, command, expression)
    where p.polcmd in ('*', c.code) and c.expression is not null
),
-- What each policy says about each command: whether it has a column and the organization, as far as the names tell.
rules as (
    select e.polrelid, e.polpermissive, e.polroles, e.applies, e.command, e.expression, e.names,
        r.reads and c.has_column as reads_setting,
        c.has_column and (r.reads or exists (
            select from binders b where b.policy = e.policy and b.name = any (e.names))) as is_bound
    from expressions e
    join pg_catalog.pg_class t on t.oid = e.polrelid
    cross join lateral (select exists (select from pg_catalog.pg_attribute a where a.attrelid = t.oid and a.attnum > 0
        and (pg_catalog.quote_ident(a.attname) = any (e.names)
            or pg_catalog.format('%I.%I', t.relname, a.attname) = any (e.names)))) as c (has_column)
    cross join lateral (values (pg_catalog.strpos(e.expression, 'current_setting(''app.org''') > 0)) as r (reads)
),
-- A restrictive policy closes the table only if it reads the setting itself: what a function allows is unknown.
open_commands as (
    select polrelid, command from rules where applies group by polrelid, command
    having bool_or(polpermissive and not is_bound) and not bool_or(not polpermissive and reads_setting)
),
-- The columns that each policy of a table compares with the organization: those of an expression that reads the setting, beside
-- its equals sign, and all columns of one that leaves it to a function or another table.
organization_columns as (
    select a.attrelid as relation, a.attnum as number
    from rules r
    join pg_catalog.pg_class t on t.oid = r.polrelid
    join pg_catalog.pg_attribute a on a.attrelid = t.oid and a.attnum > 0
    where r.is_bound and array[pg_catalog.quote_ident(a.attname), pg_catalog.format('%I.%I', t.relname, a.attname)]
        && case when r.reads_setting then array(
            select coalesce(m.match[1], m.match[2]) from pg_catalog.regexp_matches(r.expression,
                '((?:"(?:[^"]|"")+"|[[:alnum:]_$.])+)\)?(?:::[[:alnum:]_." ]+)?\)? = (?:(?! AND | OR )[^=])*current_setting\(''app[.]org'''
                || '|current_setting\(''app[.]org''(?:(?! AND | OR )[^=])* = \(*((?:"(?:[^"]|"")+"|[[:alnum:]_$.])+)',
                'g') as m (match)) else r.names end
    group by a.attrelid, a.attnum
    having count(*) = (select count(*) from rules o where o.polrelid = a.attrelid and o.is_bound)
)
select 'superuser', 'role ' || rolname, 'current role' from me where rolsuper
union all
select 'bypass-rls', 'role ' || rolname, 'current role' from me where rolbypassrls and not rolsuper
union all
select 'server-access', 'role ' || me.rolname, pg_catalog.string_agg(distinct p.power, ', ')
from me join powers p on p.oid = me.oid or p.power like 'programs%' and pg_catalog.pg_has_role(p.oid, 'USAGE')
where not me.rolsuper group by me.rolname
union all
select 'reachable-role', 'role ' || rolname, power
from (
    select r.rolname, case
        when r.rolsuper then 'superuser'
        when r.rolbypassrls then 'BYPASSRLS'
        when p.power is not null and not (r.is_inherited and p.power like 'programs%') then p.power
        when r.is_inherited then null
        when exists (select from everything t where t.relkind in ('r', 'p') and t.relrowsecurity and not t.relforcerowsecurity
            and pg_catalog.pg_has_role(r.oid, t.relowner, 'USAGE')) then 'owns a table without FORCE'
        when exists (select from everything t where t.ignores_policies and t.oid not in (select oid from relations)
            and (pg_catalog.has_table_privilege(r.oid, t.oid, 'DELETE, TRUNCATE')
                or pg_catalog.has_any_column_privilege(r.oid, t.oid, 'SELECT, INSERT, UPDATE')))
            then 'can use a relation without policies'
        when exists (select from pg_catalog.pg_largeobject_metadata l where pg_catalog.pg_has_role(r.oid, l.lomowner, 'USAGE')
            or exists (select from pg_catalog.aclexplode(l.lomacl) a
                where a.grantee <> 0 and pg_catalog.pg_has_role(r.oid, a.grantee, 'USAGE')))
            then 'can use large objects'
        when exists (
            select from rules x cross join lateral (select exists (select from pg_catalog.unnest(x.polroles) as o (role)
                where o.role = 0 or pg_catalog.pg_has_role(r.oid, o.role, 'USAGE')) as concerns) c
            where c.concerns group by x.polrelid, x.command
            having bool_or(x.polpermissive and not x.is_bound and not x.applies)
                and not bool_or(not x.polpermissive and x.reads_setting)) then 'has a policy without the organization'
    end as power
    from reachable r left join powers p on p.oid = r.oid
) as found where power is not null
union all
-- Run before the setting is changed.
select 'organization-preset', 'session', 'app.org is set: alter role … reset app.org, alter database … reset app.org'
where pg_catalog.current_setting('app.org', true) <> ''
union all
select 'row-security-off', name, 'alter table … enable row level security'
from relations where relkind in ('r', 'p') and not relrowsecurity and not relispartition
union all
select 'partition', name, 'the policies of the parent do not apply'
from relations where relkind in ('r', 'p') and not relrowsecurity and relispartition
union all
select 'not-forced', name, 'the current role has the rights of the owner'
from isolated where not relforcerowsecurity and pg_catalog.pg_has_role(relowner, 'USAGE')
union all
select 'no-policy', name, 'no permissive policy applies to the current role'
from isolated i where not exists (select from policies p where p.polrelid = i.oid and p.applies and p.polpermissive)
union all
select 'policy-without-organization', i.name, pg_catalog.string_agg(o.command, ', ' order by o.command)
from isolated i join open_commands o on o.polrelid = i.oid group by i.name
union all
select 'truncate', name, 'revoke truncate' from isolated where pg_catalog.has_table_privilege(oid, 'TRUNCATE')
union all
select 'materialized-view', name, 'has no row security' from relations where relkind = 'm'
union all
select 'foreign-table', name, 'has no row security' from relations where relkind = 'f'
union all
select 'large-object', 'database', count(*) || ' without row security'
from pg_catalog.pg_largeobject_metadata l
where pg_catalog.current_setting('lo_compat_privileges')::boolean or pg_catalog.pg_has_role(l.lomowner, 'USAGE') or exists (
    select from pg_catalog.aclexplode(l.lomacl) a where a.grantee = 0 or pg_catalog.pg_has_role(a.grantee, 'USAGE'))
having count(*) > 0
union all
select 'owner-view', name, 'reads with the rights of its owner: security_invoker'
from relations, me where relkind = 'v' and ignores_policies and relowner <> me.oid
union all
select 'rule', r.name || '.' || pg_catalog.quote_ident(w.rulename), 'its actions run with the rights of the owner'
from relations r join pg_catalog.pg_rewrite w on w.ev_class = r.oid, me
where w.rulename <> '_RETURN' and r.relowner <> me.oid
union all
select 'definer-function',
    pg_catalog.format('%I.%I(%s)', s.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)),
    'runs with the rights of ' || pg_catalog.pg_get_userbyid(p.proowner)
from pg_catalog.pg_proc p join schemas s on s.oid = p.pronamespace, me
where p.prosecdef and p.proowner <> me.oid and (pg_catalog.has_function_privilege(p.oid, 'EXECUTE')
    -- Of a trigger, nobody needs the privilege.
    or exists (select from pg_catalog.pg_trigger t join relations r on r.oid = t.tgrelid where t.tgfoid = p.oid))
union all
select 'foreign-key', i.name || '.' || pg_catalog.quote_ident(k.conname), 'both sides need the organization'
from pg_catalog.pg_constraint k
join isolated i on i.oid = k.conrelid
join pg_catalog.pg_class target on target.oid = k.confrelid and target.relrowsecurity
where k.contype = 'f' and k.conparentid = 0 and not exists (
    select from rows from (pg_catalog.unnest(k.conkey), pg_catalog.unnest(k.confkey)) as pair (here, there)
    join organization_columns h on h.relation = k.conrelid and h.number = pair.here
    join organization_columns t on t.relation = k.confrelid and t.number = pair.there)
union all
select 'old-server', 'server', 'PostgreSQL ' || pg_catalog.current_setting('server_version') || ': CVE-2024-10976'
from pg_catalog.current_setting('server_version_num') as v (text), lateral (select v.text::int) as n (number)
where n.number < case n.number / 10000
    when 17 then 170001 when 16 then 160005 when 15 then 150009 when 14 then 140014 when 13 then 130017
    when 12 then 120021 else 120000 end
