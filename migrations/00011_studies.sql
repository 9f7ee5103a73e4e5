-- +goose Up

-- A study that was run, as it was written, with its plan and what became of it. --quick is another study.
create table studies (
    name     text not null check (name <> ''),
    quick    boolean not null,
    text     text not null,
    command  text not null,
    plan     jsonb not null check (jsonb_typeof(plan) = 'object'),
    versions jsonb not null default '{}' check (jsonb_typeof(versions) = 'object'),
    outcomes jsonb not null default '[]' check (jsonb_typeof(outcomes) = 'array'),
    created  timestamptz not null default now(),
    changed  timestamptz not null default now(),
    primary key (name, quick)
);

-- Figures stand under the hash of all that determines them, so that studies share them. A row here says that they are
-- all there.
create table study_evaluations (
    key  text collate "C" primary key check (key ~ '^[0-9a-f]{32}$'),
    made timestamptz not null default now()
);
create table study_figures (
    key      text collate "C" not null references study_evaluations (key) on delete cascade,
    figure   text not null check (figure <> ''),
    training text not null, -- what was learned from: all, n=50, k=4; empty where nothing is
    fold     text not null, -- the split; empty without one
    value    double precision not null, -- NaN where it is not defined
    primary key (key, figure, training, fold)
);

create table study_runs (
    study      text not null,
    quick      boolean not null,
    run        integer not null, -- from 1
    levels     jsonb not null check (jsonb_typeof(levels) = 'object'), -- by factor
    seed       bigint not null,
    evaluation text not null,
    key        text collate "C" not null,
    primary key (study, quick, run, evaluation),
    foreign key (study, quick) references studies (name, quick) on delete cascade
);
create index study_runs_key on study_runs (key);

-- One row for each run, evaluation, figure and fold: docs/SQL.md.
create view study_results as
    select study, quick, run, levels, seed, evaluation, figure, training, fold, value
      from study_runs join study_figures using (key);

-- +goose Down
drop view study_results;
drop table study_runs, study_figures, study_evaluations, studies;
