-- +goose Up

-- A slide that was registered by what others say of its bytes, which nobody has read yet, has an id made of
-- that and is provisional. Once the bytes are read whole it takes their SHA-256 for its id; the id it had
-- stays an alias, by which it is found when it is imported or asked for again.
alter table slides
    add column provisional boolean not null default false,
    add column md5  text not null default '' check (md5 ~ '^([0-9a-f]{32})?$'), -- what they must have; empty: nobody said
    add column kind text not null default '', -- of the error in reason
    drop constraint slides_state_check,
    add constraint slides_state_check
        check (state in ('registered', 'queued', 'encoding', 'embedded', 'no_tissue', 'needs_mpp', 'failed'));
create table slide_aliases (
    alias text collate "C" primary key check (alias ~ '^[0-9a-f]{64}$'),
    slide text collate "C" not null references slides (id) on update cascade on delete cascade
);
create index slide_aliases_slide on slide_aliases (slide);
alter table cohort_slides
    drop constraint cohort_slides_slide_fkey,
    add foreign key (slide) references slides (id) on update cascade on delete cascade;
alter table bags
    drop constraint bags_slide_fkey,
    add foreign key (slide) references slides (id) on update cascade on delete cascade;
alter table embeddings
    drop constraint embeddings_slide_fkey,
    add foreign key (slide) references slides (id) on update cascade on delete cascade;

-- A lease is there while a job runs. Its worker makes beat grow; the sweeper notes when it last saw it grow,
-- by one clock, and takes the job from a worker that is silent (storage/queue/lease.go).
create table leases (
    job  bigint primary key,
    beat bigint not null default 0,
    kept int    not null default 0, -- tiles that whoever takes over need not encode
    seen_beat bigint not null default 0,
    seen timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
create table lease_sweeps (at timestamptz not null);
insert into lease_sweeps values ('-infinity');
insert into leases (job) select id from river_job where state = 'running' and kind in ('embed_slide', 'encode_views');

-- +goose StatementBegin
create function leases_follow_job() returns trigger language plpgsql as $$
begin
    if new.state = 'running' then
        insert into leases (job) values (new.id) on conflict (job) do update set beat = leases.beat + 1, kept = 0;
    else
        delete from leases where job = new.id;
    end if;
    return null;
end $$;
-- +goose StatementEnd
create trigger leases_follow_job after update of state on river_job for each row
    when (new.kind in ('embed_slide', 'encode_views') and old.state <> new.state) execute function leases_follow_job();

-- As in 00002, but a job that another one goes on with leaves the slide to that one, and a failure has a kind.
-- +goose StatementBegin
create or replace function slides_follow_job() returns trigger language plpgsql as $$
declare
    last jsonb := new.errors[array_upper(new.errors, 1)];
begin
    case
    when new.metadata ? 'continued_as' then null;
    when new.state = 'running' then
        update slides set state = 'encoding', reason = '', kind = '', changed = now()
         where id = new.args->>'slide' and state <> 'encoding';
    when new.state in ('available', 'scheduled', 'retryable', 'pending') then
        update slides set state = 'queued', reason = '', kind = '', changed = now()
         where id = new.args->>'slide' and state <> 'queued';
    when new.state in ('cancelled', 'discarded') then
        update slides set state = 'failed', changed = now(),
         kind = case when new.metadata ? 'cancel_attempted_at' then 'canceled' else 'internal' end,
         reason = case
            when new.metadata ? 'cancel_attempted_at'
                then format('the job was cancelled (start it again: coverslip jobs retry %s)', new.id)
            else coalesce(last->>'error', 'the job was given up')
            end
         where id = new.args->>'slide' and state in ('queued', 'encoding');
    else null; -- completed: the worker wrote how it ended
    end case;
    return null;
end $$;
-- +goose StatementEnd

-- Jobs of one kind have a queue of their own.
update river_job set queue = case kind when 'encode_views' then 'views' else 'embed' end where queue = 'default';

-- +goose Down
update river_job set queue = 'default' where queue in ('embed', 'views');
drop trigger leases_follow_job on river_job;
drop function leases_follow_job();
drop table lease_sweeps, leases, slide_aliases;
update slides set state = 'queued' where state = 'registered';
alter table slides
    drop column provisional, drop column md5, drop column kind,
    drop constraint slides_state_check,
    add constraint slides_state_check check (state in ('queued', 'encoding', 'embedded', 'no_tissue', 'needs_mpp', 'failed'));
-- +goose StatementBegin
create or replace function slides_follow_job() returns trigger language plpgsql as $$
declare
    last jsonb := new.errors[array_upper(new.errors, 1)];
begin
    case
    when new.state = 'running' then
        update slides set state = 'encoding', reason = '', changed = now()
         where id = new.args->>'slide' and state <> 'encoding';
    when new.state in ('available', 'scheduled', 'retryable', 'pending') then
        update slides set state = 'queued', reason = '', changed = now()
         where id = new.args->>'slide' and state <> 'queued';
    when new.state in ('cancelled', 'discarded') then
        update slides set state = 'failed', changed = now(), reason = coalesce(last->>'error', 'the job was given up')
         where id = new.args->>'slide' and state in ('queued', 'encoding');
    else null;
    end case;
    return null;
end $$;
-- +goose StatementEnd
