package vector

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

func TestDot4AgreesWithReference(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 0))
	for _, n := range []int{0, 16, 48, 512, 1280, 4096} {
		q := unit(rng, n)
		var rows [4][]float32
		for i := range rows {
			rows[i] = unit(rng, n)
		}
		var got [4]float32
		got[0], got[1], got[2], got[3] = dot4(q, rows[0], rows[1], rows[2], rows[3])
		for i, s := range got {
			// Rounding of n products and sums of unit vectors: n·2⁻²⁴ is far above what is seen.
			if want := reference(q, rows[i]); math.Abs(float64(s-want)) > 1e-6 {
				t.Errorf("n %d, row %d: %v, reference %v", n, i, s, want)
			} else if plain, _, _, _ := dot4plain(q, rows[i], rows[i], rows[i], rows[i]); math.Abs(float64(plain-want)) > 1e-6 {
				t.Errorf("n %d, row %d: %v plainly, reference %v", n, i, plain, want)
			}
			if a, b, c, d := dot4(q, rows[i], rows[i], rows[i], rows[i]); a != s || b != s || c != s || d != s {
				t.Errorf("n %d, row %d: %v in its place, %v %v %v %v in others", n, i, s, a, b, c, d)
			}
		}
	}
}

func TestDot4ByHand(t *testing.T) {
	q := []float32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	one, last, minus := make([]float32, 16), make([]float32, 16), make([]float32, 16)
	for i := range one {
		one[i], minus[i] = 1, float32(1-i%2*2)
	}
	last[15] = 2
	for name, dot := range map[string]func(q, a, b, c, d []float32) (float32, float32, float32, float32){"wide": dot4, "plain": dot4plain} {
		if a, b, c, d := dot(q, one, last, minus, q); a != 136 || b != 32 || c != -8 || d != 1496 {
			t.Errorf("%s: %v %v %v %v", name, a, b, c, d)
		}
	}
}

func TestDot4RefusesOtherLengths(t *testing.T) {
	for _, n := range [][2]int{{7, 7}, {8, 8}, {16, 32}, {32, 16}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%v: no panic", n)
				}
			}()
			q, r := make([]float32, n[0]), make([]float32, n[1])
			dot4(q, r, r, r, r)
		}()
	}
}

// Sums of integers are exact, and no product of rows is beyond what its code allows.
func TestCodesBoundProducts(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 0))
	for _, n := range []int{16, 48, 512, 1280, mostCoded} {
		for round := range 50 {
			q := unit(rng, n)
			if round%5 == 0 { // one value outweighs the others
				clear(q)
				q[rng.IntN(n)] = -1
			}
			mean := make([]float32, n)
			if round%2 == 0 {
				mean = unit(rng, n)
			}
			ints := encodeQuery(q, mean)
			var rows [4][]float32
			var coded [4][]int8
			var codes [4]code
			for i := range rows {
				rows[i], coded[i] = unit(rng, n), make([]int8, n)
				if i == 3 {
					copy(rows[i], q)
				}
				if i == 2 && round%2 == 0 {
					copy(rows[i], mean)
				}
				codes[i] = encode(coded[i], rows[i], mean)
			}
			var sums, plain [4]int32
			sums[0], sums[1], sums[2], sums[3] = codes4(ints.values, coded[0], coded[1], coded[2], coded[3])
			plain[0], plain[1], plain[2], plain[3] = codes4plain(ints.values, coded[0], coded[1], coded[2], coded[3])
			if sums != plain {
				t.Errorf("n %d: %v, plainly %v", n, sums, plain)
			}
			for i, sum := range sums {
				s := reference(q, rows[i])
				if most := ints.atMost(sum, codes[i]); s > most || most > s+2*(codes[i].slack+ints.slack*codes[i].norm+rounding) {
					t.Errorf("n %d: the product is %v, at most %v by the codes", n, s, most)
				}
			}
		}
	}
}

func BenchmarkDot(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 0))
	q, r := unit(rng, 512), unit(rng, 512)
	b.Run("reference", func(b *testing.B) {
		for b.Loop() {
			for range 4 {
				reference(q, r)
			}
		}
	})
	b.Run("dot4", func(b *testing.B) {
		for b.Loop() {
			dot4(q, r, r, r, r)
		}
	})
	b.Run("dot4plain", func(b *testing.B) {
		for b.Loop() {
			dot4plain(q, r, r, r, r)
		}
	})
}

func BenchmarkSearch(b *testing.B) {
	const dim = 512
	for _, n := range []int{12_000, 100_000} {
		rng := rand.New(rand.NewPCG(1, 0))
		x := New(dim)
		for i := range n {
			if err := x.Upsert(fmt.Sprint(i), unit(rng, dim)); err != nil {
				b.Fatal(err)
			}
		}
		q := unit(rng, dim)
		for _, c := range []struct {
			name string
			keep func(string) bool
		}{{"All", nil}, {"OneIn10", func(id string) bool { return id[len(id)-1] == '7' }}} {
			b.Run(fmt.Sprintf("%dx%d/%s", n, dim, c.name), func(b *testing.B) {
				for b.Loop() {
					if _, err := x.Search(b.Context(), q, 10, c.keep); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func unit(rng *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	var sum float64
	for i := range v {
		v[i] = float32(rng.NormFloat64())
		sum += float64(v[i]) * float64(v[i])
	}
	for i := range v {
		v[i] /= float32(math.Sqrt(sum))
	}
	return v
}
