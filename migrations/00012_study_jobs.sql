-- +goose Up

-- Stages of studies are jobs, too, whose workers may die.
drop trigger leases_follow_job on river_job;
create trigger leases_follow_job after update of state on river_job for each row
    when (new.kind in ('embed_slide', 'encode_views', 'study_stage') and old.state <> new.state) execute function leases_follow_job();

-- +goose Down
delete from river_job where kind = 'study_stage';
drop trigger leases_follow_job on river_job;
create trigger leases_follow_job after update of state on river_job for each row
    when (new.kind in ('embed_slide', 'encode_views') and old.state <> new.state) execute function leases_follow_job();
