package nn

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// workers is how many goroutines share one piece of work. It never changes a result.
var workers atomic.Int32

func init() { workers.Store(int32(min(runtime.GOMAXPROCS(0), 64))) } //nolint:gosec // at most 64

// SetWorkers sets how many goroutines share the work of an operation, at least 1. The default is one a
// core. Results are the same for any number.
func SetWorkers(n int) { workers.Store(int32(min(max(n, 1), 1024))) }

// Parallel calls f(0) … f(n-1), several at once, and returns when all have returned. How the work is cut
// into n must depend on its shape alone, and no two calls may write to the same place: then the result is
// the same for any number of workers.
func Parallel(n int, f func(i int)) {
	k := min(int(workers.Load()), n)
	if k <= 1 {
		for i := range n {
			f(i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	run := func() {
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			f(i)
		}
	}
	for range k - 1 {
		wg.Go(run)
	}
	run()
	wg.Wait()
}

// ParallelRows calls f for pieces [from,to) of n rows, of which each costs about cost elementary
// operations. Little work is done in one piece.
func ParallelRows(n, cost int, f func(from, to int)) {
	const enough = 1 << 16 // operations that are worth a goroutine
	rows := max(n/16, 1)
	if cost > 0 {
		rows = max(rows, enough/cost, 1)
	}
	if n <= rows {
		f(0, n)
		return
	}
	Parallel((n+rows-1)/rows, func(i int) { f(i*rows, min((i+1)*rows, n)) })
}
