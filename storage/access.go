package storage

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// APIKey is what is known of a key. The key itself is not.
type APIKey struct {
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	Scope   string     `json:"scope"` // read, write or admin
	Created time.Time  `json:"created"`
	Expires *time.Time `json:"expires,omitempty"`
	Used    *time.Time `json:"used,omitempty"` // last, to the minute
	Revoked *time.Time `json:"revoked,omitempty"`
}

// keyPrefix lets people and secret scanners tell what a key is.
const keyPrefix = "coverslip_"

// AddAPIKey makes a key and returns it: this is the only time anybody sees it.
func (q queries) AddAPIKey(ctx context.Context, name, scope string, expires *time.Time) (APIKey, string, error) {
	k := APIKey{ID: strings.ToLower(rand.Text())[:8], Name: name, Scope: scope, Expires: expires}
	secret := keyPrefix + k.ID + "_" + rand.Text() + rand.Text() // 256 bits
	sum := sha256.Sum256([]byte(secret))
	err := q.q.QueryRow(ctx, `insert into api_keys (id, sha256, name, scope, expires) values ($1, $2, $3, $4, $5) returning created`,
		k.ID, sum[:], k.Name, k.Scope, k.Expires).Scan(&k.Created)
	return k, secret, pgerr.Wrap("add the key", err)
}

// APIKeys lists the keys, the newest first.
func (q queries) APIKeys(ctx context.Context) ([]APIKey, error) {
	rows, _ := q.q.Query(ctx, `select id, name, scope, created, expires, used, revoked from api_keys order by created desc, id`)
	keys, err := pgx.CollectRows(rows, pgx.RowToStructByPos[APIKey])
	return keys, pgerr.Wrap("list the keys", err)
}

// RevokeAPIKey ends a key; NotFound where there is none, or it was ended before.
func (q queries) RevokeAPIKey(ctx context.Context, id string) error {
	const op = "revoke the key"
	tag, err := q.q.Exec(ctx, `update api_keys set revoked = now() where id = $1 and revoked is null`, id)
	if err == nil && tag.RowsAffected() == 0 {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: "key " + id, Err: errors.New("no key that works has this id"), Hint: "list them: coverslip keys"}
	}
	return pgerr.Wrap(op, err)
}

// APIKeyOf returns the key that a secret is of, if it works; else NotFound.
func (q queries) APIKeyOf(ctx context.Context, secret string) (APIKey, error) {
	const op = "check the key"
	if !strings.HasPrefix(secret, keyPrefix) {
		return APIKey{}, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Err: errors.New("it is no key")}
	}
	sum := sha256.Sum256([]byte(secret))
	rows, _ := q.q.Query(ctx, `select id, name, scope, created, expires, used, revoked from api_keys
		where sha256 = $1 and revoked is null and (expires is null or expires > now())`, sum[:])
	k, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[APIKey])
	if errors.Is(err, pgx.ErrNoRows) {
		return k, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Err: errors.New("no such key works")}
	}
	if err == nil && (k.Used == nil || time.Since(*k.Used) > time.Minute) {
		_, err = q.q.Exec(ctx, `update api_keys set used = now() where id = $1`, k.ID)
	}
	return k, pgerr.Wrap(op, err)
}

// AuditEntry is one write that somebody asked for.
type AuditEntry struct {
	At        time.Time         `json:"at"`
	Who       string            `json:"who"`
	Action    string            `json:"action"`
	Path      string            `json:"path"`
	Slide     coverslip.SlideID `json:"slide,omitempty"`
	Status    int               `json:"status"`
	Remote    string            `json:"remote"`
	RequestID string            `json:"request_id"`
}

// Audit adds to the audit log.
func (q queries) Audit(ctx context.Context, e AuditEntry) error {
	_, err := q.q.Exec(ctx, `insert into audit_log (who, action, path, slide, status, remote, request_id) values ($1, $2, $3, $4, $5, $6, $7)`,
		e.Who, e.Action, strings.ToValidUTF8(strings.ReplaceAll(e.Path, "\x00", ""), ""), e.Slide, e.Status, e.Remote, e.RequestID)
	return pgerr.Wrap("write the audit log", err)
}

// AuditLog returns the latest entries, the newest first.
func (q queries) AuditLog(ctx context.Context, limit int) ([]AuditEntry, error) {
	rows, _ := q.q.Query(ctx, `select at, who, action, path, slide, status, remote, request_id from audit_log order by id desc limit $1`, limit)
	log, err := pgx.CollectRows(rows, pgx.RowToStructByPos[AuditEntry])
	return log, pgerr.Wrap("read the audit log", err)
}

// Settled is the answer to a request that came with an Idempotency-Key.
type Settled struct {
	Status int
	Header http.Header
	Body   []byte
}

// ClaimIdempotencyKey takes a key for a request, for a day. One that was answered gives its answer; one of
// another request, and one that is being answered, are a Conflict. What nobody settled in a minute may be
// claimed again.
func (q queries) ClaimIdempotencyKey(ctx context.Context, who, key string, request [32]byte) (*Settled, error) {
	const op = "check the Idempotency-Key"
	if _, err := q.q.Exec(ctx, `delete from idempotency_keys where created < now() - interval '1 day' or status = 0 and created < now() - interval '1 minute'`); err != nil {
		return nil, pgerr.Wrap(op, err)
	}
	tag, err := q.q.Exec(ctx, `insert into idempotency_keys (who, key, request) values ($1, $2, $3) on conflict do nothing`, who, key, request[:])
	if err != nil || tag.RowsAffected() == 1 {
		return nil, pgerr.Wrap(op, err)
	}
	var before []byte
	var s Settled
	err = q.q.QueryRow(ctx, `select request, status, header, body from idempotency_keys where who = $1 and key = $2`, who, key).Scan(&before, &s.Status, &s.Header, &s.Body)
	switch {
	case err != nil:
		return nil, pgerr.Wrap(op, err)
	case string(before) != string(request[:]):
		return nil, &coverslip.Error{Kind: coverslip.Conflict, Op: op, Err: errors.New("another request came with it"), Hint: "make a new key for each thing that is to be done once"}
	case s.Status == 0:
		return nil, &coverslip.Error{Kind: coverslip.Conflict, Op: op, Err: errors.New("the request with it is being answered"), Hint: "ask again in a moment"}
	}
	return &s, nil
}

// SettleIdempotencyKey keeps the answer to a claimed request; nil gives the key back.
func (q queries) SettleIdempotencyKey(ctx context.Context, who, key string, s *Settled) error {
	const op = "keep the answer"
	if s == nil {
		_, err := q.q.Exec(ctx, `delete from idempotency_keys where who = $1 and key = $2`, who, key)
		return pgerr.Wrap(op, err)
	}
	_, err := q.q.Exec(ctx, `update idempotency_keys set status = $3, header = $4, body = $5 where who = $1 and key = $2`, who, key, s.Status, s.Header, s.Body)
	return pgerr.Wrap(op, err)
}
