package nn

import (
	"math/bits"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Memory lends matrices to the graphs of one run, one step after the other, and takes them back: what one
// step had serves the next. Large ones lie outside Go's heap, where they neither wait for the collector
// nor make it wait for twice as much. Safe for concurrent use; Free it when the run ends.
type Memory struct {
	mu    sync.Mutex
	free  map[int][][]float32 // by capacity
	maps  [][]byte
	bytes int64
}

// NewMemory has nothing yet.
func NewMemory() *Memory { return &Memory{free: map[int][][]float32{}} }

// Bytes is how much it has ever asked the system for.
func (m *Memory) Bytes() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bytes
}

// class rounds a length up to a quarter of a power of two, so that steps whose lengths differ a little
// share.
func class(n int) int {
	if n <= 64 {
		return 64
	}
	step := 1 << max(bits.Len(uint(n-1))-3, 0)
	return (n + step - 1) / step * step
}

const mapped = 1 << 16 // bytes, above which a matrix lies outside the heap

// get lends n numbers of any value.
func (m *Memory) get(n int) []float32 {
	c := class(n)
	m.mu.Lock()
	defer m.mu.Unlock()
	if list := m.free[c]; len(list) > 0 {
		x := list[len(list)-1]
		m.free[c] = list[:len(list)-1]
		return x[:n]
	}
	m.bytes += int64(c) * 4
	if c*4 < mapped {
		return make([]float32, n, c)
	}
	raw, err := unix.Mmap(-1, 0, c*4, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]float32, n, c)
	}
	m.maps = append(m.maps, raw)
	return unsafe.Slice((*float32)(unsafe.Pointer(&raw[0])), c)[:n] //nolint:gosec // a mapping of 4·c bytes, aligned to a page
}

// put takes back what get lent.
func (m *Memory) put(x []float32) {
	if cap(x) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free[cap(x)] = append(m.free[cap(x)], x[:cap(x)])
}

// Free gives everything back to the system. Nothing that a graph returned may be used afterwards.
func (m *Memory) Free() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, raw := range m.maps {
		_ = unix.Munmap(raw) // its own mapping, whole
	}
	m.free, m.maps, m.bytes = map[int][][]float32{}, nil, 0
}
