package storage

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// PutModel writes a model down. The same hashes again change nothing.
func (q queries) PutModel(ctx context.Context, m coverslip.Model) error {
	_, err := q.q.Exec(ctx, insertModel+` values ($1, $2, $3, $4, $5, $6, $7, $8, $9, '') on conflict do nothing`, modelValues(m)...)
	return coverslip.At("model "+m.Name, pgerr.Wrap("record the model", err))
}

// AddModel writes a model down that a user brought, with its specification. The same one again
// changes nothing; another one of its name, or the same one under another name, is a Conflict.
func (q queries) AddModel(ctx context.Context, m coverslip.Model, spec []byte) error {
	const op = "add the model"
	path := "model " + m.Name
	_, err := q.q.Exec(ctx, insertModel+` values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict do nothing`,
		append(modelValues(m), string(spec))...)
	if err != nil {
		return coverslip.At(path, pgerr.Wrap(op, err))
	}
	var name, sum, specSum string
	err = q.q.QueryRow(ctx, `select name, sha256, spec_sha256 from models
		where kind = $1 and (name = $2 and spec <> '' or sha256 = $3 and spec_sha256 = $4)
		order by name = $2 desc limit 1`, m.Kind, m.Name, m.SHA256, m.SpecSHA256).Scan(&name, &sum, &specSum)
	switch {
	case err != nil:
		return coverslip.At(path, pgerr.Wrap(op, err))
	case name != m.Name:
		return &coverslip.Error{Kind: coverslip.Conflict, Op: op, Path: path, Err: fmt.Errorf("it is there already, as %s", name)}
	case sum != m.SHA256 || specSum != m.SpecSHA256:
		return &coverslip.Error{Kind: coverslip.Conflict, Op: op, Path: path, Err: errors.New("another model has this name"), Hint: "give it another name"}
	}
	return nil
}

// AddedModel is a model that a user brought.
type AddedModel struct {
	coverslip.Model
	Spec string // YAML
}

// AddedModels lists the models that users brought, by name.
func (q queries) AddedModels(ctx context.Context, kind coverslip.ModelKind) ([]AddedModel, error) {
	rows, _ := q.q.Query(ctx, selectAdded+` order by name`, kind) // CollectRows returns the error
	models, err := pgx.CollectRows(rows, scanAdded)
	return models, pgerr.Wrap("list models", err)
}

// AddedModel returns the model of this name that a user brought, or NotFound.
func (q queries) AddedModel(ctx context.Context, kind coverslip.ModelKind, name string) (AddedModel, error) {
	const op = "look up the model"
	rows, _ := q.q.Query(ctx, selectAdded+` and name = $2`, kind, name)
	m, err := pgx.CollectExactlyOneRow(rows, scanAdded)
	if errors.Is(err, pgx.ErrNoRows) {
		return m, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: string(kind) + " " + name, Err: errors.New("there is none of this name"),
			Hint: "list them: coverslip models list"}
	}
	return m, pgerr.Wrap(op, err)
}

const insertModel = `insert into models (sha256, spec_sha256, kind, name, dim, tile_size, tile_mpp, licence, source, spec)`

func modelValues(m coverslip.Model) []any {
	return []any{m.SHA256, m.SpecSHA256, m.Kind, m.Name, m.Dim, m.TileSize, m.TileMPP, m.Licence, m.Source}
}

const selectAdded = `select sha256, spec_sha256, kind, name, dim, tile_size, tile_mpp, licence, source, spec from models
	where kind = $1 and spec <> ''`

func scanAdded(row pgx.CollectableRow) (m AddedModel, err error) {
	err = row.Scan(&m.SHA256, &m.SpecSHA256, &m.Kind, &m.Name, &m.Dim, &m.TileSize, &m.TileMPP, &m.Licence, &m.Source, &m.Spec)
	return m, err
}
