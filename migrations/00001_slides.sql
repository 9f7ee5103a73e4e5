-- +goose Up

-- Ids sort and compare by byte (collate "C"), so that a prefix is a range of the primary key.
create table slides (
    id              text collate "C" primary key check (id ~ '^[0-9a-f]{64}$'),
    name            text not null check (name <> ''),
    location        text not null check (location <> ''),
    bytes           bigint not null check (bytes >= 0),
    format          text not null default '',
    width           integer not null default 0 check (width >= 0),
    height          integer not null default 0 check (height >= 0),
    levels          jsonb not null default '[]' check (jsonb_typeof(levels) = 'array'),
    -- 0 is unknown. NaN sorts above Infinity, so this refuses both.
    mpp             double precision not null default 0 check (mpp >= 0 and mpp < 'Infinity'),
    mpp_source      text not null default '' check ((mpp_source <> '') = (mpp > 0)),
    mpp_doubt       text not null default '',
    objective_power double precision not null default 0 check (objective_power >= 0 and objective_power < 'Infinity'),
    state           text not null default 'queued'
                    check (state in ('queued', 'encoding', 'embedded', 'no_tissue', 'needs_mpp', 'failed')),
    reason          text not null default '',
    registered      timestamptz not null default now(),
    changed         timestamptz not null default now()
);
create index slides_registered on slides (registered, id);
create index slides_state on slides (state, registered, id);

-- Who waits for a slide listens to this; the payload is the slide's id.
-- +goose StatementBegin
create function slides_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('coverslip_slides', new.id);
    return null;
end $$;
-- +goose StatementEnd
create trigger slides_inserted after insert on slides for each row execute function slides_notify();
create trigger slides_changed after update on slides for each row
    when (old.state <> new.state or old.reason <> new.reason) execute function slides_notify();

create table models (
    sha256     text collate "C" primary key check (sha256 ~ '^[0-9a-f]{64}$'),
    kind       text not null check (kind in ('encoder', 'aggregator')),
    name       text not null check (name <> ''),
    dim        integer not null default 0 check (dim >= 0),
    tile_size  integer not null default 0 check (tile_size >= 0),
    tile_mpp   double precision not null default 0 check (tile_mpp >= 0 and tile_mpp < 'Infinity'),
    licence    text not null default '',
    source     text not null default '',
    registered timestamptz not null default now()
);
create index models_name on models (kind, name);

create table bags (
    key     text collate "C" primary key check (key ~ '^[0-9a-f]{64}$'),
    slide   text collate "C" not null references slides (id) on delete cascade,
    encoder text not null check (encoder <> ''),
    tiles   integer not null check (tiles >= 0),
    dim     integer not null check (dim > 0),
    bytes   bigint not null check (bytes >= 0),
    plan    jsonb not null check (jsonb_typeof(plan) = 'object'),
    timings jsonb not null default '[]' check (jsonb_typeof(timings) = 'array'),
    created timestamptz not null default now()
);
create index bags_slide on bags (slide);

-- Each write takes the next version and notes its transaction. A reader in step cannot go by the
-- version alone: 7 may commit after 8 was read. It goes by the transaction (storage.DB.Follow).
create sequence embeddings_version;
create table embeddings (
    slide      text collate "C" not null references slides (id) on delete cascade,
    encoder    text not null check (encoder <> ''),
    aggregator text not null check (aggregator <> ''),
    bag        text collate "C" not null references bags (key) on delete cascade,
    vector     real[] not null check (
                   cardinality(vector) > 0 and array_ndims(vector) = 1
                   and array_position(vector, null) is null
                   and 'NaN' <> all (vector) and 'Infinity' <> all (vector) and '-Infinity' <> all (vector)),
    dim        integer not null generated always as (cardinality(vector)) stored,
    version    bigint not null unique,
    written    xid8 not null,
    created    timestamptz not null default now(),
    primary key (slide, encoder, aggregator)
);
create index embeddings_written on embeddings (written);
create index embeddings_bag on embeddings (bag);

-- +goose StatementBegin
create function embeddings_stamp() returns trigger language plpgsql as $$
begin
    new.version := nextval('embeddings_version');
    new.written := pg_current_xact_id();
    return new;
end $$;
-- +goose StatementEnd
create trigger embeddings_stamped before insert or update on embeddings
    for each row execute function embeddings_stamp();

-- Without a payload, so that all writes of a transaction are one notification.
-- +goose StatementBegin
create function embeddings_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('coverslip_embeddings', '');
    return null;
end $$;
-- +goose StatementEnd
create trigger embeddings_written after insert or update on embeddings
    for each statement execute function embeddings_notify();

create table cohorts (
    name    text primary key check (name <> ''),
    created timestamptz not null default now()
);
create table cohort_slides (
    cohort  text not null references cohorts (name) on update cascade on delete cascade,
    slide   text collate "C" not null references slides (id) on delete cascade,
    patient text not null default '',
    site    text not null default '',
    labels  jsonb not null default '{}' check (jsonb_typeof(labels) = 'object'),
    primary key (cohort, slide)
);
create index cohort_slides_slide on cohort_slides (slide);

-- +goose Down
drop table cohort_slides, cohorts, embeddings, bags, models, slides;
drop sequence embeddings_version;
drop function embeddings_notify(), embeddings_stamp(), slides_notify();
