-- +goose Up

-- Who keeps a copy of the cohorts listens to this. Without a payload, so that all writes of a transaction
-- are one notification.
-- +goose StatementBegin
create function cohorts_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('coverslip_cohorts', '');
    return null;
end $$;
-- +goose StatementEnd
create trigger cohorts_changed after insert or update or delete on cohorts for each statement execute function cohorts_notify();
create trigger cohort_slides_changed after insert or update or delete on cohort_slides for each statement execute function cohorts_notify();

-- For people with SQL (docs/SQL.md). Cosine similarity of embeddings is their inner product: their norm is 1.
create function inner_product(a real[], b real[]) returns double precision
    language sql immutable strict parallel safe as
    $$ select sum(x::double precision * y) from unnest(a, b) as t (x, y) $$;
create view slide_embeddings as
    select e.slide, s.name, e.encoder, e.aggregator, e.dim, e.vector, e.bag, e.created
      from embeddings e join slides s on s.id = e.slide;
create view cohort_embeddings as
    select c.cohort, e.slide, s.name, c.patient, c.site, c.labels, e.encoder, e.aggregator, e.dim, e.vector, e.created
      from cohort_slides c join embeddings e on e.slide = c.slide join slides s on s.id = e.slide;

-- Of a key only its SHA-256 is kept: keys are random and long, so nobody can try them all.
create table api_keys (
    id       text collate "C" primary key,
    sha256   bytea not null unique check (length(sha256) = 32),
    name     text not null check (name <> ''),
    scope    text not null check (scope in ('read', 'write', 'admin')),
    created  timestamptz not null default now(),
    expires  timestamptz,
    used     timestamptz,
    revoked  timestamptz
);

-- Who changed what. Rows are only added.
create table audit_log (
    id         bigint generated always as identity primary key,
    at         timestamptz not null default now(),
    who        text not null,              -- the name of a key, the subject of a token, or "" where nobody is asked
    action     text not null,              -- the operation of the contract
    path       text not null,
    slide      text collate "C" not null default '',
    status     integer not null,
    remote     text not null,
    request_id text not null
);
create index audit_log_at on audit_log (at);

-- Answers to requests that came with an Idempotency-Key, for a day.
create table idempotency_keys (
    who      text not null,
    key      text collate "C" not null,
    request  bytea not null,               -- SHA-256 of method, path and body
    status   integer not null default 0,   -- 0: it is being answered
    header   jsonb not null default '{}',
    body     bytea not null default '',
    created  timestamptz not null default now(),
    primary key (who, key)
);
create index idempotency_keys_created on idempotency_keys (created);

-- +goose Down
drop table idempotency_keys, audit_log, api_keys;
drop view cohort_embeddings, slide_embeddings;
drop function inner_product(real[], real[]);
drop trigger cohort_slides_changed on cohort_slides;
drop trigger cohorts_changed on cohorts;
drop function cohorts_notify();
