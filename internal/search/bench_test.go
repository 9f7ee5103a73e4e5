package search_test

import (
	"context"
	"fmt"
	"math/rand"
	"testing"
	"time"

	"coverslip"
	"coverslip/internal/search"
	"coverslip/storage"
	"coverslip/storage/storagetest"
)

// BenchmarkPgvector finds the ten nearest of 100,000 embeddings of 512 numbers that are left to the database.
func BenchmarkPgvector(b *testing.B) {
	if !hasVector {
		b.Skip("no PostgreSQL with pgvector: ./setup.sh test")
	}
	const n, dim = 100_000, 512
	db := storagetest.New(b)
	ctx := b.Context()
	random := rand.New(rand.NewSource(1))
	draw := func() []float32 {
		v := make([]float32, dim)
		for i := range v {
			v[i] = float32(random.NormFloat64())
		}
		return v
	}
	if err := db.InTx(ctx, func(tx *storage.Tx) error {
		for _, sql := range []string{
			fmt.Sprintf(`insert into slides (id, name, location, bytes, format, state) select lpad(to_hex(i), 64, '0'), i::text, '/s' || i, 1, 'tiff', 'embedded' from generate_series(1, %d) i`, n),
			`insert into bags (key, slide, encoder, tiles, dim, bytes, plan) select id, id, 'enc', 1, 1, 1, '{}' from slides`,
		} {
			if _, err := tx.Pgx().Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	var some []coverslip.Embedding
	for i := 1; i <= n; i++ {
		id := fmt.Sprintf("%064x", i)
		if some = append(some, coverslip.Embedding{Slide: coverslip.SlideID(id), Bag: id, Encoder: "enc", Aggregator: "mean", Vector: draw()}); len(some) == 10_000 {
			if _, err := db.PutEmbeddings(ctx, some); err != nil {
				b.Fatal(err)
			}
			some = some[:0]
		}
	}
	if _, err := db.Pool().Exec(ctx, "vacuum analyze embeddings"); err != nil {
		b.Fatal(err)
	}
	engine := search.New(db, search.Options{Memory: 1})
	following, stop := context.WithCancel(context.Background())
	defer stop()
	go func() { _ = engine.Follow(following) }()
	q := search.Query{Vector: draw(), Model: search.Model{Encoder: "enc", Aggregator: "mean"}, K: 10}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if got, err := engine.Search(ctx, q); err == nil && len(got.Hits) == 10 || time.Now().After(deadline) {
			break
		}
	}
	b.ResetTimer()
	for b.Loop() {
		q.Vector = draw()
		if _, err := engine.Search(ctx, q); err != nil {
			b.Fatal(err)
		}
	}
}
