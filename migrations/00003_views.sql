-- +goose Up

-- How the augmented views of a bag were made; null: its tiles as they are.
alter table bags add column views jsonb check (jsonb_typeof(views) = 'object');

-- +goose Down
alter table bags drop column views;
