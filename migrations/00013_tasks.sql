-- +goose Up

-- Verbs of the command line that somebody asked for over the API, and a worker does as a job.
create table tasks (
    id       bigint generated always as identity primary key,
    verb     text not null check (verb <> ''),
    settings jsonb not null check (jsonb_typeof(settings) = 'object'),
    job      bigint, -- its number; of one that goes on with another, that one's
    state    text not null default 'queued' check (state in ('queued', 'running', 'done', 'failed', 'cancelled')),
    progress text not null default '', -- the last line that told how far it is
    result   jsonb not null default '[]' check (jsonb_typeof(result) = 'array'),
    error    text not null default '',
    files    jsonb not null default '[]' check (jsonb_typeof(files) = 'array'),
    created  timestamptz not null default now(),
    started  timestamptz,
    finished timestamptz
);

drop trigger leases_follow_job on river_job;
create trigger leases_follow_job after update of state on river_job for each row
    when (new.kind in ('embed_slide', 'encode_views', 'study_stage', 'run_task') and old.state <> new.state) execute function leases_follow_job();

-- A task follows its job, until its worker writes how it ended.
-- +goose StatementBegin
create function tasks_follow_job() returns trigger language plpgsql as $$
declare
    task bigint := (new.args->'task'->>'id')::bigint;
    last jsonb := new.errors[array_upper(new.errors, 1)];
begin
    case
    when new.metadata ? 'continued_as' then
        update tasks set job = (new.metadata->>'continued_as')::bigint, state = 'queued' where id = task and state = 'running';
    when new.state = 'running' then
        update tasks set state = 'running', progress = '', started = now() where id = task and state = 'queued';
    when new.state in ('available', 'scheduled', 'retryable', 'pending') then
        update tasks set state = 'queued', error = '', finished = null where id = task; -- also one that ended, and is asked for again
    when new.state in ('cancelled', 'discarded') then
        update tasks set finished = now(),
            state = case when new.metadata ? 'cancel_attempted_at' then 'cancelled' else 'failed' end,
            error = case when new.metadata ? 'cancel_attempted_at' then '' else coalesce(last->>'error', 'the job was given up') end
         where id = task and state in ('queued', 'running');
    else null; -- completed: the worker wrote how it ended
    end case;
    return null;
end $$;
-- +goose StatementEnd
create trigger tasks_follow_job after update of state on river_job for each row
    when (new.kind = 'run_task' and old.state <> new.state) execute function tasks_follow_job();

-- +goose Down
delete from river_job where kind = 'run_task';
drop trigger tasks_follow_job on river_job;
drop function tasks_follow_job();
drop trigger leases_follow_job on river_job;
create trigger leases_follow_job after update of state on river_job for each row
    when (new.kind in ('embed_slide', 'encode_views', 'study_stage') and old.state <> new.state) execute function leases_follow_job();
drop table tasks;
