package storage

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// PresignedUpload is a slide that a client puts straight into the bucket.
type PresignedUpload struct {
	ID         string
	Parts      string // the id that the bucket gave them
	Name       string
	Bytes      int64
	MPPOfSlide float64 // 0 when not given
	SHA256     string  // announced; "" when not
	Slide      coverslip.SlideID
	Created    time.Time
}

// PutPresignedUpload writes one down.
func (q queries) PutPresignedUpload(ctx context.Context, u PresignedUpload) error {
	_, err := q.q.Exec(ctx, `insert into presigned_uploads (id, parts, name, bytes, mpp_of_slide, sha256) values ($1, $2, $3, $4, $5, $6)`,
		u.ID, u.Parts, u.Name, u.Bytes, u.MPPOfSlide, u.SHA256)
	return coverslip.At(u.Name, pgerr.Wrap("begin upload", err))
}

// PresignedUpload returns one, or NotFound.
func (q queries) PresignedUpload(ctx context.Context, id string) (PresignedUpload, error) {
	const op = "look up the upload"
	rows, _ := q.q.Query(ctx, selectPresigned+` where id = $1`, id) // CollectExactlyOneRow returns the error
	u, err := pgx.CollectExactlyOneRow(rows, scanPresigned)
	if errors.Is(err, pgx.ErrNoRows) {
		return u, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: "upload " + id, Err: errors.New("there is none"), Hint: "begin a new one; they are forgotten two days after they began"}
	}
	return u, pgerr.Wrap(op, err)
}

// FinishPresignedUpload notes which slide an upload became.
func (q queries) FinishPresignedUpload(ctx context.Context, id string, slide coverslip.SlideID) error {
	_, err := q.q.Exec(ctx, `update presigned_uploads set slide = $2 where id = $1`, id, slide)
	return pgerr.Wrap("finish upload", err)
}

// ForgetPresignedUpload removes one that is there.
func (q queries) ForgetPresignedUpload(ctx context.Context, id string) error {
	_, err := q.q.Exec(ctx, `delete from presigned_uploads where id = $1`, id)
	return pgerr.Wrap("forget upload", err)
}

// PresignedUploadsBefore lists those that began before a time.
func (q queries) PresignedUploadsBefore(ctx context.Context, before time.Time) ([]PresignedUpload, error) {
	rows, _ := q.q.Query(ctx, selectPresigned+` where created < $1 order by created`, before)
	us, err := pgx.CollectRows(rows, scanPresigned)
	return us, pgerr.Wrap("list uploads", err)
}

// CountPresignedUploads says how many are not finished.
func (q queries) CountPresignedUploads(ctx context.Context) (n int, err error) {
	err = q.q.QueryRow(ctx, `select count(*) from presigned_uploads where slide is null`).Scan(&n)
	return n, pgerr.Wrap("count uploads", err)
}

const selectPresigned = `select id, parts, name, bytes, mpp_of_slide, sha256, coalesce(slide, ''), created from presigned_uploads`

func scanPresigned(row pgx.CollectableRow) (u PresignedUpload, err error) {
	err = row.Scan(&u.ID, &u.Parts, &u.Name, &u.Bytes, &u.MPPOfSlide, &u.SHA256, &u.Slide, &u.Created)
	return u, err
}
