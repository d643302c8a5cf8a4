-- Once per database server, by an administrator.
create role app_owner nologin;
create role app login;
