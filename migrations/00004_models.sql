-- +goose Up

-- One file may be used in several ways: which input it is given, which outputs are features. spec is the
-- YAML of an encoder that a user added; rows without one are written down as they are used.
alter table models
    add column spec_sha256 text collate "C" not null default '' check (spec_sha256 ~ '^([0-9a-f]{64})?$'),
    add column spec        text not null default '',
    drop constraint models_pkey,
    add primary key (sha256, spec_sha256);
create unique index models_added on models (kind, name) where spec <> '';

-- +goose Down
drop index models_added;
delete from models m using models other where m.sha256 = other.sha256 and m.spec_sha256 > other.spec_sha256;
alter table models
    drop constraint models_pkey,
    add primary key (sha256),
    drop column spec,
    drop column spec_sha256;
