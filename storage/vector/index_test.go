package vector_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"

	"coverslip"
	"coverslip/storage/vector"
)

func TestNearestByHand(t *testing.T) {
	x := filled(t, map[string][]float32{"east": {1, 0}, "north": {0, 1}, "northeast": {5, 5}, "west": {-2, 0}})
	got := search(t, x, []float32{3, 0}, 10, nil)
	want := []string{"east", "northeast", "north", "west"}
	if !slices.Equal(ids(got), want) {
		t.Fatalf("found %v, want %v", got, want)
	}
	for i, s := range []float64{1, math.Sqrt2 / 2, 0, -1} {
		if math.Abs(float64(got[i].Similarity)-s) > 1e-6 {
			t.Errorf("%s: similarity %v, want %v", got[i].ID, got[i].Similarity, s)
		}
	}
	if got := search(t, x, []float32{0, 1}, 1, nil); !slices.Equal(ids(got), []string{"north"}) {
		t.Errorf("k 1: %v", got)
	}
}

func TestEqualsComeInOrderOfID(t *testing.T) {
	x := vector.New(3)
	names := make([]string, 5000) // several blocks, so that several workers hold equals
	for i := range names {
		names[i] = fmt.Sprintf("%04d", i)
	}
	order := rand.New(rand.NewPCG(1, 0)).Perm(len(names))
	for _, i := range order {
		upsert(t, x, names[i], []float32{1, 2, 3})
	}
	if got := search(t, x, []float32{1, 0, 0}, 20, nil); !slices.Equal(ids(got), names[:20]) {
		t.Errorf("found %v", ids(got))
	}
}

// TestExactUnderAnyFilter compares with sorting all, at sizes around those of blocks and steps.
func TestExactUnderAnyFilter(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 0))
	for _, n := range []int{1, 3, 4, 5, 1023, 1024, 1025, 4100} {
		for _, dim := range []int{1, 7, 8, 33} {
			x, all := vector.New(dim), map[string][]float32{}
			for i := range n {
				id := fmt.Sprint(i)
				all[id] = random(rng, dim)
				upsert(t, x, id, all[id])
			}
			q := random(rng, dim)
			for name, keep := range map[string]func(string) bool{
				"all": nil, "one in ten": func(id string) bool { return id[len(id)-1] == '7' }, "one": func(id string) bool { return id == "2" },
				"none": func(string) bool { return false },
			} {
				for _, k := range []int{1, 10, n + 1} {
					got, want := search(t, x, q, k, keep), sorted(all, q, k, keep)
					if len(got) != len(want) {
						t.Fatalf("n %d, dim %d, k %d, %s: %d hits, want %d", n, dim, k, name, len(got), len(want))
					}
					for i := range got {
						// Where two differ by less than rounding, either may come first.
						if math.Abs(float64(got[i].Similarity)-want[i]) > 1e-6 {
							t.Fatalf("n %d, dim %d, k %d, %s: hit %d has %v, want %v", n, dim, k, name, i, got[i].Similarity, want[i])
						}
						if exact := cosine(all[got[i].ID], q); math.Abs(float64(got[i].Similarity)-exact) > 1e-6 {
							t.Fatalf("n %d, dim %d: %s has %v, its own is %v", n, dim, got[i].ID, got[i].Similarity, exact)
						}
					}
				}
			}
		}
	}
}

func TestHistoryDoesNotMatter(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 0))
	straight, crooked, all := vector.New(20), vector.New(20), map[string][]float32{}
	for i := range 3000 {
		id := fmt.Sprint(i)
		all[id] = random(rng, 20)
		upsert(t, straight, id, all[id])
		upsert(t, crooked, id, random(rng, 20))
		upsert(t, crooked, "gone "+id, random(rng, 20))
	}
	for id, v := range all { // in an order of its own
		crooked.Remove("gone " + id)
		crooked.Remove("gone " + id)
		crooked.Remove(id)
		upsert(t, crooked, id, v)
	}
	if straight.Len() != 3000 || crooked.Len() != 3000 {
		t.Fatalf("%d and %d vectors", straight.Len(), crooked.Len())
	}
	q := random(rng, 20)
	if a, b := search(t, straight, q, 50, nil), search(t, crooked, q, 50, nil); !reflect.DeepEqual(a, b) {
		t.Errorf("found\n%v\n%v", a, b)
	}
}

func TestVectorsAreCopied(t *testing.T) {
	x, v := vector.New(2), []float32{1, 0}
	upsert(t, x, "a", v)
	v[0], v[1] = 0, 1
	if got := search(t, x, []float32{1, 0}, 1, nil); got[0].Similarity != 1 {
		t.Errorf("the index changed with the caller's slice: %v", got)
	}
}

func TestEmptyIndex(t *testing.T) {
	x := vector.New(2)
	if got := search(t, x, []float32{1, 0}, 3, nil); len(got) != 0 {
		t.Errorf("found %v", got)
	}
	upsert(t, x, "a", []float32{1, 1})
	x.Remove("a")
	if got := search(t, x, []float32{1, 1}, 3, nil); len(got) != 0 || x.Len() != 0 {
		t.Errorf("found %v, length %d", got, x.Len())
	}
}

func TestBadVectorsAreInvalid(t *testing.T) {
	x := filled(t, map[string][]float32{"a": {1, 0}})
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for name, v := range map[string][]float32{
		"nothing": nil, "short": {1}, "long": {1, 2, 3}, "zero": {0, 0}, "NaN": {1, nan}, "infinite": {inf, 0}, "minus infinite": {-inf, 0},
	} {
		if err := x.Upsert("b", v); coverslip.KindOf(err) != coverslip.Invalid || coverslip.HintOf(err) == "" {
			t.Errorf("Upsert %s: %v", name, err)
		}
		if _, err := x.Search(t.Context(), v, 1, nil); coverslip.KindOf(err) != coverslip.Invalid || coverslip.HintOf(err) == "" {
			t.Errorf("Search %s: %v", name, err)
		}
	}
	for _, k := range []int{0, -1} {
		if _, err := x.Search(t.Context(), []float32{1, 0}, k, nil); coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("k %d: %v", k, err)
		}
	}
	if x.Len() != 1 {
		t.Errorf("%d vectors", x.Len())
	}
}

func TestCancelledSearch(t *testing.T) {
	x := filled(t, map[string][]float32{"a": {1, 0}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := x.Search(ctx, []float32{1, 0}, 1, nil); coverslip.KindOf(err) != coverslip.Canceled || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestSearchesBesideAWriter holds that a search sees a vector before or after it changes, never
// half of each, and misses none that stays.
func TestSearchesBesideAWriter(t *testing.T) {
	const dim = 64
	east, west := make([]float32, dim), make([]float32, dim)
	for i := range dim {
		east[i], west[i] = 1, -1
	}
	x := vector.New(dim)
	upsert(t, x, "turning", east)
	upsert(t, x, "steady", east)
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		for i := range 3000 {
			v := [][]float32{east, west}[i%2]
			id := fmt.Sprint("passing ", i%100)
			if err := errors.Join(x.Upsert("turning", v), x.Upsert(id, west)); err != nil {
				t.Error(err)
				return
			}
			x.Remove(id)
		}
	})
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				hits, err := x.Search(t.Context(), east, 200, nil)
				if err != nil || !slices.ContainsFunc(hits, func(h vector.Hit) bool { return h.ID == "steady" }) {
					t.Errorf("%v, %v", hits, err)
					return
				}
				for _, h := range hits {
					if s := math.Abs(float64(h.Similarity)); s < 1-1e-6 || s > 1+1e-6 {
						t.Errorf("%s has similarity %v", h.ID, h.Similarity)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

// filled holds vectors of two values.
func filled(t *testing.T, vectors map[string][]float32) *vector.Index {
	t.Helper()
	x := vector.New(2)
	for id, v := range vectors {
		upsert(t, x, id, v)
	}
	return x
}

func upsert(t *testing.T, x *vector.Index, id string, v []float32) {
	t.Helper()
	if err := x.Upsert(id, v); err != nil {
		t.Fatal(err)
	}
}

func search(t *testing.T, x *vector.Index, q []float32, k int, keep func(string) bool) []vector.Hit {
	t.Helper()
	hits, err := x.Search(t.Context(), q, k, keep)
	if err != nil {
		t.Fatal(err)
	}
	return hits
}

func ids(hits []vector.Hit) (ids []string) {
	for _, h := range hits {
		ids = append(ids, h.ID)
	}
	return ids
}

// sorted is the similarities a search must find.
func sorted(all map[string][]float32, q []float32, k int, keep func(string) bool) (similarities []float64) {
	for id, v := range all {
		if keep == nil || keep(id) {
			similarities = append(similarities, -cosine(v, q))
		}
	}
	slices.Sort(similarities)
	similarities = similarities[:min(k, len(similarities))]
	for i := range similarities {
		similarities[i] *= -1
	}
	return similarities
}

func cosine(a, b []float32) float64 {
	var ab, aa, bb float64
	for i := range a {
		ab += float64(a[i]) * float64(b[i])
		aa += float64(a[i]) * float64(a[i])
		bb += float64(b[i]) * float64(b[i])
	}
	return ab / math.Sqrt(aa*bb)
}

func random(rng *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(rng.NormFloat64())
	}
	return v
}
