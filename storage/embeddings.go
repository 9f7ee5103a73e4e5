package storage

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// PutBag records that a bag is in the blob store. Call it after the blob is published, never before.
// The key says what the bag holds, so the same key again changes nothing.
func (q queries) PutBag(ctx context.Context, b coverslip.Bag) error {
	if b.Timings == nil {
		b.Timings = []coverslip.StageTime{}
	}
	_, err := q.q.Exec(ctx, `insert into bags (key, slide, encoder, tiles, dim, bytes, plan, views, timings)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict (key) do nothing`,
		b.Key, b.Slide, b.Encoder, b.Tiles, b.Dim, b.Bytes, b.Plan, b.Views, b.Timings)
	return ofSlide(b.Slide, "record the bag", err)
}

// Bag returns the bag with this key, or NotFound.
func (q queries) Bag(ctx context.Context, key string) (coverslip.Bag, error) {
	const op = "look up the bag"
	rows, _ := q.q.Query(ctx, selectBag+`where key = $1`, key) // CollectExactlyOneRow returns the error
	b, err := pgx.CollectExactlyOneRow(rows, scanBag)
	if errors.Is(err, pgx.ErrNoRows) {
		return b, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: "bag " + key, Err: errors.New("no bag has this key")}
	}
	return b, pgerr.Wrap(op, err)
}

// BagsAmong says which of the keys are of bags that are there.
func (q queries) BagsAmong(ctx context.Context, keys []string) (map[string]bool, error) {
	rows, _ := q.q.Query(ctx, `select key from bags where key = any($1)`, keys) // CollectRows returns the error
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	there := make(map[string]bool, len(found))
	for _, key := range found {
		there[key] = true
	}
	return there, pgerr.Wrap("look up bags", err)
}

// BagsOfEmbeddings returns the keys of the bags that embeddings were computed from, by slide.
func (q queries) BagsOfEmbeddings(ctx context.Context, encoder, aggregator string) (map[coverslip.SlideID]string, error) {
	const op = "look up the bags of embeddings"
	from := map[coverslip.SlideID]string{}
	var slide coverslip.SlideID
	var bag string
	rows, err := q.q.Query(ctx, `select slide, bag from embeddings where encoder = $1 and aggregator = $2`, encoder, aggregator)
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&slide, &bag}, func() error {
			from[slide] = bag
			return nil
		})
	}
	return from, pgerr.Wrap(op, err)
}

// Bags returns a slide's bags under an encoder, the longest first.
func (q queries) Bags(ctx context.Context, slide coverslip.SlideID, encoder string) ([]coverslip.Bag, error) {
	rows, _ := q.q.Query(ctx, selectBag+`where slide = $1 and encoder = $2 order by tiles desc, key`, slide, encoder)
	bags, err := pgx.CollectRows(rows, scanBag)
	return bags, ofSlide(slide, "list the bags", err)
}

const selectBag = `select key, slide, encoder, tiles, dim, bytes, plan, views, timings, created from bags `

func scanBag(row pgx.CollectableRow) (b coverslip.Bag, err error) {
	err = row.Scan(&b.Key, &b.Slide, &b.Encoder, &b.Tiles, &b.Dim, &b.Bytes, &b.Plan, &b.Views, &b.Timings, &b.Created)
	b.Created = b.Created.UTC()
	return b, err
}

// PutEmbedding writes the embedding of a slide under its encoder and aggregator, in place of the one
// before. Writing what is there already changes nothing and tells nobody. The vector must be finite
// and not empty, else Invalid.
func (q queries) PutEmbedding(ctx context.Context, e coverslip.Embedding) error {
	_, err := q.q.Exec(ctx, `insert into embeddings as old (slide, encoder, aggregator, bag, vector) values ($1, $2, $3, $4, $5)
		on conflict (slide, encoder, aggregator) do update set bag = excluded.bag, vector = excluded.vector, created = now()
		where (old.bag, old.vector) is distinct from (excluded.bag, excluded.vector)`,
		e.Slide, e.Encoder, e.Aggregator, e.Bag, e.Vector)
	return ofSlide(e.Slide, "write the embedding", err)
}

// PutEmbeddings writes many at once, by COPY, as PutEmbedding writes each; all of them or none. It returns
// how many were new or changed.
func (db *DB) PutEmbeddings(ctx context.Context, embeddings []coverslip.Embedding) (changed int, err error) {
	const op = "write the embeddings"
	err = db.InTx(ctx, func(tx *Tx) error {
		if _, err := tx.q.Exec(ctx, `create temporary table arriving (like embeddings) on commit drop`); err != nil {
			return err
		}
		if _, err := tx.q.Exec(ctx, `alter table arriving drop column dim, alter version drop not null, alter written drop not null, alter created drop not null`); err != nil {
			return err
		}
		_, err := tx.tx.CopyFrom(ctx, pgx.Identifier{"arriving"}, []string{"slide", "encoder", "aggregator", "bag", "vector"},
			pgx.CopyFromSlice(len(embeddings), func(i int) ([]any, error) {
				e := embeddings[i]
				return []any{e.Slide, e.Encoder, e.Aggregator, e.Bag, e.Vector}, nil
			}))
		if err != nil {
			return err
		}
		tag, err := tx.q.Exec(ctx, `insert into embeddings as old (slide, encoder, aggregator, bag, vector) select slide, encoder, aggregator, bag, vector from arriving
			on conflict (slide, encoder, aggregator) do update set bag = excluded.bag, vector = excluded.vector, created = now()
			where (old.bag, old.vector) is distinct from (excluded.bag, excluded.vector)`)
		changed = int(tag.RowsAffected())
		return err
	})
	return changed, pgerr.Wrap(op, err)
}

// Embedding returns a slide's embedding under one encoder and aggregator, or NotFound.
func (q queries) Embedding(ctx context.Context, slide coverslip.SlideID, encoder, aggregator string) (coverslip.Embedding, error) {
	const op = "look up the embedding"
	rows, _ := q.q.Query(ctx, `select `+embeddingColumns+` from embeddings e where slide = $1 and encoder = $2 and aggregator = $3`,
		slide, encoder, aggregator)
	e, err := pgx.CollectExactlyOneRow(rows, scanEmbedding)
	if errors.Is(err, pgx.ErrNoRows) {
		return e, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Slide: slide,
			Err: fmt.Errorf("it has none under encoder %s and aggregator %s", encoder, aggregator)}
	}
	return e, ofSlide(slide, op, err)
}

// EmbeddingFilter picks embeddings. Zero fields pick all.
type EmbeddingFilter struct {
	Encoder, Aggregator, Cohort string
}

// NamedEmbedding is an embedding with its slide's name.
type NamedEmbedding struct {
	coverslip.Embedding
	Name string `json:"name"`
}

// Embeddings yields embeddings ordered by slide id, encoder and aggregator, one at a time, so that
// memory does not grow with their number. It stops after the first error it yields.
func (q queries) Embeddings(ctx context.Context, f EmbeddingFilter) iter.Seq2[NamedEmbedding, error] {
	return func(yield func(NamedEmbedding, error) bool) {
		rows, err := q.q.Query(ctx, `select `+embeddingColumns+`, s.name from embeddings e join slides s on s.id = e.slide
			where ($1 = '' or e.encoder = $1) and ($2 = '' or e.aggregator = $2)
			  and ($3 = '' or e.slide in (select slide from cohort_slides where cohort = $3))
			order by e.slide, e.encoder, e.aggregator`, f.Encoder, f.Aggregator, f.Cohort)
		if err == nil {
			defer rows.Close()
			for rows.Next() {
				var n NamedEmbedding
				if err = rows.Scan(append(embeddingFields(&n.Embedding), &n.Name)...); err != nil {
					break
				}
				n.Created = n.Created.UTC()
				if !yield(n, nil) {
					return
				}
			}
			if err == nil {
				err = rows.Err()
			}
		}
		if err != nil {
			yield(NamedEmbedding{}, pgerr.Wrap("read embeddings", err))
		}
	}
}

const embeddingColumns = `e.slide, e.bag, e.encoder, e.aggregator, e.vector, e.created`

func embeddingFields(e *coverslip.Embedding) []any {
	return []any{&e.Slide, &e.Bag, &e.Encoder, &e.Aggregator, &e.Vector, &e.Created}
}

func scanEmbedding(row pgx.CollectableRow) (e coverslip.Embedding, err error) {
	err = row.Scan(embeddingFields(&e)...)
	e.Created = e.Created.UTC()
	return e, err
}
