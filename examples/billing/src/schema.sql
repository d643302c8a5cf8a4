create table billing_features (
    feature text primary key,
    issuer text not null,
    -- In seconds since the Unix epoch: after a restore, totals that were sent before are unknown.
    unknown_before bigint,
    -- Ids of earlier minutes were deleted.
    ids_since bigint not null default 0
);

create table billing_records (
    feature text not null references billing_features,
    id text not null,
    minute bigint not null,
    primary key (feature, id)
);
create index on billing_records (feature, minute);

create table billing_organizations (
    feature text not null references billing_features,
    organization text not null,
    counted bigint not null default 0,
    ledger jsonb,
    primary key (feature, organization)
);

-- What Kinde was told, to compare with its invoices. A total is written before it is sent.
create table billing_totals (
    feature text not null references billing_features,
    agreement text not null,
    period_starts_at bigint not null,
    organization text not null,
    total bigint not null,
    is_confirmed boolean not null,
    primary key (feature, agreement, period_starts_at, organization)
);
