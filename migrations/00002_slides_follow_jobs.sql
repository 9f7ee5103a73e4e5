-- +goose Up

-- A slide's state follows its job, in the same transaction, whoever moves the job: the worker, a
-- person, or River's rescuer after the worker died. So no slide stays `encoding` with nobody at it.
-- The ends that only the worker knows (embedded, no_tissue, needs_mpp, failed with a reason of its
-- own) are written by the worker before the job ends, and are left alone here.
-- +goose StatementBegin
create function slides_follow_job() returns trigger language plpgsql as $$
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
        update slides set state = 'failed', changed = now(), reason = case
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
create trigger slides_follow_new_job after insert on river_job for each row
    when (new.kind = 'embed_slide') execute function slides_follow_job();
create trigger slides_follow_job after update of state on river_job for each row
    when (new.kind = 'embed_slide' and old.state <> new.state) execute function slides_follow_job();

-- +goose Down
drop trigger slides_follow_job on river_job;
drop trigger slides_follow_new_job on river_job;
drop function slides_follow_job();
