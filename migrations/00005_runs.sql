-- +goose Up

alter table models
    drop constraint models_kind_check,
    add constraint models_kind_check check (kind in ('encoder', 'aggregator', 'probe', 'mil'));

-- The cohort is a name and no reference: a run tells what was, also when the cohort is gone.
create table runs (
    id       text collate "C" primary key check (id ~ '^[0-9a-f]{64}$'),
    kind     text not null check (kind in ('probe', 'mil')),
    cohort   text not null,
    label    text not null,
    classes  text[] not null default '{}',
    settings jsonb not null check (jsonb_typeof(settings) = 'object'),
    methods  jsonb not null check (jsonb_typeof(methods) = 'array'),
    splits   text not null check (splits <> ''),
    left_out jsonb not null default '[]' check (jsonb_typeof(left_out) = 'array'),
    notes    text[] not null default '{}',
    created  timestamptz not null default now()
);
create index runs_created on runs (created, id);

create table predictions (
    run     text collate "C" not null references runs (id) on delete cascade,
    method  text not null check (method <> ''),
    split   text not null,
    slide   text collate "C" not null references slides (id) on delete cascade,
    patient text not null default '',
    p       double precision[] not null check (cardinality(p) > 0),
    truth   integer not null default 0,
    time    double precision not null default 0,
    event   boolean not null default false,
    primary key (run, method, split, slide)
);
create index predictions_slide on predictions (slide);

-- +goose Down
drop table predictions, runs;
delete from models where kind in ('probe', 'mil');
alter table models
    drop constraint models_kind_check,
    add constraint models_kind_check check (kind in ('encoder', 'aggregator'));
