-- +goose Up

-- Uploads that go straight to the bucket. The row goes a day after the addresses have expired.
create table presigned_uploads (
    id           text collate "C" primary key,
    parts        text not null,               -- the id that S3 gave them
    name         text not null check (name <> ''),
    bytes        bigint not null check (bytes > 0),
    mpp_of_slide double precision not null default 0 check (mpp_of_slide >= 0 and mpp_of_slide < 'Infinity'),
    sha256       text collate "C" not null default '' check (sha256 ~ '^([0-9a-f]{64})?$'),
    slide        text collate "C" references slides (id) on update cascade on delete cascade, -- null until it is finished
    created      timestamptz not null default now()
);
create index presigned_uploads_created on presigned_uploads (created);

-- +goose Down
drop table presigned_uploads;
