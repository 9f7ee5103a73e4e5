-- +goose Up

-- What a cohort's label columns hold; the values lie in cohort_slides.labels as JSON numbers, texts and
-- booleans.
create table cohort_labels (
    cohort text not null references cohorts (name) on update cascade on delete cascade,
    name   text collate "C" not null check (name <> ''),
    kind   text not null check (kind in ('number', 'category', 'bool')),
    primary key (cohort, name)
);
insert into cohort_labels (cohort, name, kind)
    select distinct cohort, jsonb_object_keys(labels), 'category' from cohort_slides;

-- A version is a cohort of its own, called brca@1, that does not change any more.
alter table cohorts add column version_of text references cohorts (name) on update cascade on delete set null;

-- +goose Down
alter table cohorts drop column version_of;
drop table cohort_labels;
