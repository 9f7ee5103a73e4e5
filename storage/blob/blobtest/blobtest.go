// Package blobtest holds every blob store to the contract of blob.Store.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"coverslip"
	"coverslip/storage/blob"
)

// Store is what a store shows the suite: the contract, and the removal of abandoned writes.
type Store interface {
	blob.Store
	Sweep(ctx context.Context, before time.Time) error
	PutFile(ctx context.Context, key string, file *os.File, size int64) error
	Create(ctx context.Context, key string, file *os.File, size int64) error
	Copy(ctx context.Context, from, to string) error
}

// Run runs the suite. open gives an empty store of the test's own.
func Run(t *testing.T, open func(t *testing.T) Store) {
	for name, test := range map[string]func(*testing.T, Store){
		"WhatWasPutIsRead":         roundTrip,
		"LargeBlobIsWhole":         large,
		"RangesAtTheEnds":          ranges,
		"MissingKey":               missing,
		"OddKeys":                  oddKeys,
		"BadKeysAreRefused":        badKeys,
		"ListIsInByteOrder":        listOrder,
		"ListStopsWhenAsked":       listStops,
		"DeleteTwice":              deleteTwice,
		"LastPutWins":              replace,
		"WrongSizeLeavesNothing":   wrongSize,
		"BrokenSourceLeavesOld":    brokenSource,
		"CancelledPutLeavesOld":    cancelled,
		"CancelledContext":         cancelledContext,
		"TwentyWritersOneWhole":    writers,
		"ReadersSeeWholeOrNothing": readers,
		"SweepKeepsBlobs":          sweep,
		"FilesAreTakenWhole":       files,
		"OneOfSixteenCreates":      creators,
		"CreateLeavesOld":          createLeavesOld,
		"CopiesAreWhole":           copies,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func roundTrip(t *testing.T, s Store) {
	for _, size := range []int{0, 1, 70_000} {
		want := content(1, size)
		for name, announced := range map[string]int64{"known": int64(size), "unknown": -1} {
			key := fmt.Sprintf("a/%s-%d", name, size)
			put(t, s, key, want, announced)
			if got := get(t, s, key); !bytes.Equal(got, want) {
				t.Errorf("%s: read %d other bytes", key, len(got))
			}
			info, err := s.Stat(t.Context(), key)
			if err != nil || info.Key != key || info.Size != int64(size) || time.Since(info.Modified).Abs() > time.Hour {
				t.Errorf("Stat(%s) = %+v, %v", key, info, err)
			}
		}
	}
}

// large is more than one part of a multipart upload.
func large(t *testing.T, s Store) {
	want := content(2, 20_000_003)
	put(t, s, "large/known", want, int64(len(want)))
	put(t, s, "large/unknown", want, -1)
	for _, key := range []string{"large/known", "large/unknown"} {
		if !bytes.Equal(get(t, s, key), want) {
			t.Errorf("%s differs from what was put", key)
		}
	}
}

func ranges(t *testing.T, s Store) {
	want := content(3, 1000)
	put(t, s, "k", want, -1)
	b, err := s.Open(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	defer closeBlob(t, b)
	if b.Size() != 1000 {
		t.Errorf("size %d", b.Size())
	}
	for _, c := range []struct {
		off   int64
		n     int
		got   int
		atEOF bool
	}{
		{0, 1, 1, false}, {0, 1000, 1000, false}, {999, 1, 1, false}, {500, 500, 500, false}, {0, 0, 0, false},
		{999, 2, 1, true}, {0, 1001, 1000, true}, {1000, 1, 0, true}, {5000, 10, 0, true},
	} {
		p := make([]byte, c.n)
		n, err := b.ReadAt(p, c.off)
		if n != c.got || errors.Is(err, io.EOF) != c.atEOF || (err != nil && !c.atEOF) {
			t.Errorf("ReadAt(%d bytes, %d) = %d, %v", c.n, c.off, n, err)
		} else if n > 0 && !bytes.Equal(p[:n], want[c.off:int(c.off)+n]) {
			t.Errorf("ReadAt(%d bytes, %d) gave other bytes", c.n, c.off)
		}
	}
	if _, err := b.ReadAt(make([]byte, 1), -1); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a negative offset gives %v", err)
	}
	if err := iotest.TestReader(io.NewSectionReader(b, 0, b.Size()), want); err != nil {
		t.Error(err)
	}
}

func missing(t *testing.T, s Store) {
	put(t, s, "folder/blob", []byte("x"), 1)
	for _, key := range []string{"nothing", "folder", "folder/nothing", "folder/blob/below"} {
		_, err := s.Open(t.Context(), key)
		wantKind(t, "Open "+key, err, coverslip.NotFound)
		_, err = s.Stat(t.Context(), key)
		wantKind(t, "Stat "+key, err, coverslip.NotFound)
	}
	if keys := list(t, s, "nothing/"); len(keys) != 0 {
		t.Errorf("listed %q", keys)
	}
}

var odd = []string{
	"with space", "a+b=c&d?e#f%20", "Ärzte/日本/🔬", "deep/" + strings.Repeat("d/", 50) + "end",
	strings.Repeat("l", 200), "CASE", "case", "~tilde", "semi;colon:and,comma", `"quoted'`, "x.svs",
}

func oddKeys(t *testing.T, s Store) {
	for _, key := range odd {
		put(t, s, key, []byte(key), int64(len(key)))
	}
	for _, key := range odd {
		if got := get(t, s, key); string(got) != key {
			t.Errorf("%q holds %q", key, got)
		}
	}
	want := slices.Sorted(slices.Values(odd))
	if got := list(t, s, ""); !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
	for _, key := range odd {
		if err := s.Delete(t.Context(), key); err != nil {
			t.Errorf("Delete(%q): %v", key, err)
		}
	}
	if got := list(t, s, ""); len(got) != 0 {
		t.Errorf("left after deleting all: %q", got)
	}
}

func badKeys(t *testing.T, s Store) {
	for _, key := range []string{
		"", "/", "/absolute", "trailing/", "double//slash", ".", "..", "../up", "a/../b", "a/./b", ".hidden", "a/.hidden",
		"nul\x00", "line\n", "\xff", strings.Repeat("p", 256), strings.Repeat("long/", 300) + "x",
	} {
		wantKind(t, fmt.Sprintf("Put(%.20q)", key), s.Put(t.Context(), key, strings.NewReader("x"), 1), coverslip.Invalid)
		_, err := s.Open(t.Context(), key)
		wantKind(t, fmt.Sprintf("Open(%.20q)", key), err, coverslip.Invalid)
		_, err = s.Stat(t.Context(), key)
		wantKind(t, fmt.Sprintf("Stat(%.20q)", key), err, coverslip.Invalid)
		wantKind(t, fmt.Sprintf("Delete(%.20q)", key), s.Delete(t.Context(), key), coverslip.Invalid)
	}
	for _, err := range s.List(t.Context(), "../") {
		wantKind(t, "List(../)", err, coverslip.Invalid)
	}
}

func listOrder(t *testing.T, s Store) {
	// "a-" sorts before "a/", and "a0" after it: folder by folder would be another order.
	all := []string{"a-b", "a/b/c", "a/b0", "a/c", "a0", "b/x"}
	for _, key := range slices.Backward(all) {
		put(t, s, key, []byte(key), -1)
	}
	for prefix, want := range map[string][]string{
		"": all, "a": all[:5], "a/": all[1:4], "a/b": all[1:3], "a/b/": all[1:2], "a/b/c": all[1:2], "b": all[5:], "c": nil, "a/c/": nil,
	} {
		if got := list(t, s, prefix); !slices.Equal(got, want) {
			t.Errorf("List(%q) = %q, want %q", prefix, got, want)
		}
	}
	for info, err := range s.List(t.Context(), "a0") {
		if err != nil || info.Size != 2 || time.Since(info.Modified).Abs() > time.Hour {
			t.Errorf("listed %+v, %v", info, err)
		}
	}
}

func listStops(t *testing.T, s Store) {
	for i := range 5 {
		put(t, s, fmt.Sprintf("d/%d", i), nil, 0)
	}
	n := 0
	for _, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("saw %d", n)
	}
}

func deleteTwice(t *testing.T, s Store) {
	put(t, s, "d/k", []byte("x"), 1)
	for range 2 {
		if err := s.Delete(t.Context(), "d/k"); err != nil {
			t.Error(err)
		}
	}
	_, err := s.Stat(t.Context(), "d/k")
	wantKind(t, "Stat", err, coverslip.NotFound)
	put(t, s, "d/k", []byte("y"), 1)
	if err := s.Delete(t.Context(), "d"); err != nil {
		t.Errorf("deleting a folder's name: %v", err)
	}
	if got := get(t, s, "d/k"); string(got) != "y" {
		t.Errorf("then d/k holds %q", got)
	}
}

func replace(t *testing.T, s Store) {
	put(t, s, "k", []byte("first"), -1)
	b, err := s.Open(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	defer closeBlob(t, b)
	put(t, s, "k", []byte("second"), -1)
	if got := get(t, s, "k"); string(got) != "second" {
		t.Errorf("holds %q", got)
	}
	p := make([]byte, b.Size())
	if _, err := b.ReadAt(p, 0); err != nil {
		wantKind(t, "reading what was replaced", err, coverslip.Conflict)
	} else if string(p) != "first" {
		t.Errorf("an open blob turned into %q", p)
	}
}

func wrongSize(t *testing.T, s Store) {
	for name, c := range map[string]struct{ has, announced int }{
		"short": {99, 100}, "long": {101, 100}, "empty": {0, 1}, "not-empty": {1, 0},
		"short-parts": {17 << 20, 18 << 20}, "long-parts": {17<<20 + 1, 17 << 20},
	} {
		err := s.Put(t.Context(), name, bytes.NewReader(content(4, c.has)), int64(c.announced))
		wantKind(t, name, err, coverslip.Invalid)
		if err != nil && !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named: %v", name, err)
		}
	}
	if keys := list(t, s, ""); len(keys) != 0 {
		t.Errorf("left: %q", keys)
	}
	nothingUnfinished(t, s)
}

func brokenSource(t *testing.T, s Store) {
	put(t, s, "k", []byte("old"), 3)
	cause := errors.New("the line is dead")
	for _, n := range []int{10, 17 << 20} { // before and after a multipart upload began
		src := io.MultiReader(bytes.NewReader(content(5, n)), iotest.ErrReader(cause))
		if err := s.Put(t.Context(), "k", src, -1); !errors.Is(err, cause) {
			t.Errorf("Put: %v", err)
		}
		src = io.MultiReader(bytes.NewReader(content(5, n)), iotest.ErrReader(io.ErrUnexpectedEOF))
		wantKind(t, "a cut source", s.Put(t.Context(), "k", src, -1), coverslip.Invalid)
		ours := &coverslip.Error{Kind: coverslip.TooLarge, Op: "read upload"}
		wantKind(t, "a source's own kind", s.Put(t.Context(), "k", iotest.ErrReader(ours), -1), coverslip.TooLarge)
	}
	if got := get(t, s, "k"); string(got) != "old" {
		t.Errorf("now holds %d bytes", len(got))
	}
	nothingUnfinished(t, s)
}

func cancelled(t *testing.T, s Store) {
	put(t, s, "k", []byte("old"), 3)
	for _, n := range []int{0, 1 << 20, 17 << 20} {
		ctx, cancel := context.WithCancel(t.Context())
		src := io.MultiReader(bytes.NewReader(content(6, n)), readFunc(func(p []byte) (int, error) {
			cancel()
			return copy(p, "more"), nil
		}))
		wantKind(t, fmt.Sprintf("cancelled after %d bytes", n), s.Put(ctx, "k", src, -1), coverslip.Canceled)
	}
	if got := get(t, s, "k"); string(got) != "old" {
		t.Errorf("now holds %d bytes", len(got))
	}
	nothingUnfinished(t, s)
}

func cancelledContext(t *testing.T, s Store) {
	put(t, s, "k", []byte("old"), 3)
	ctx, cancel := context.WithCancel(t.Context())
	b, err := s.Open(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	defer closeBlob(t, b)
	cancel()
	_, err = b.ReadAt(make([]byte, 1), 0)
	wantKind(t, "ReadAt", err, coverslip.Canceled)
	_, err = s.Open(ctx, "k")
	wantKind(t, "Open", err, coverslip.Canceled)
	_, err = s.Stat(ctx, "k")
	wantKind(t, "Stat", err, coverslip.Canceled)
	wantKind(t, "Put", s.Put(ctx, "k", strings.NewReader("new"), 3), coverslip.Canceled)
	wantKind(t, "Delete", s.Delete(ctx, "k"), coverslip.Canceled)
	seen := error(nil)
	for _, seen = range s.List(ctx, "") { //nolint:revive // the last one is what counts
	}
	wantKind(t, "List", seen, coverslip.Canceled)
	if got := get(t, s, "k"); string(got) != "old" {
		t.Errorf("now holds %q", got)
	}
}

func writers(t *testing.T, s Store) {
	var wg sync.WaitGroup
	for i := range byte(20) {
		wg.Go(func() {
			if err := s.Put(t.Context(), "one/key", bytes.NewReader(stamped(i, 200_000)), 200_000); err != nil {
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	got := get(t, s, "one/key")
	if len(got) != 200_000 || !bytes.Equal(got, stamped(got[0], 200_000)) {
		t.Errorf("%d bytes that no writer sent", len(got))
	}
	if keys := list(t, s, ""); len(keys) != 1 {
		t.Errorf("listed %q", keys)
	}
	nothingUnfinished(t, s)
}

// creators race for keys, also with blobs of more than one part: one has it, the others a Conflict.
func creators(t *testing.T, s Store) {
	for name, size := range map[string]int{"small": 1000, "large": 17 << 20} {
		var wg sync.WaitGroup
		var lost atomic.Int64
		many := byte(16)
		winners := make(chan byte, many)
		if size > 1<<20 {
			many = 3
		}
		for i := range many {
			wg.Go(func() {
				switch err := s.Create(t.Context(), name, onDisk(t, stamped(i, size)), int64(size)); {
				case err == nil:
					winners <- i
				case coverslip.KindOf(err) == coverslip.Conflict:
					lost.Add(1)
				default:
					t.Errorf("%s, writer %d: %v", name, i, err)
				}
			})
		}
		wg.Wait()
		if len(winners) != 1 || lost.Load() != int64(many)-1 {
			t.Fatalf("%s: %d created it, for %d it was there", name, len(winners), lost.Load())
		}
		if got := get(t, s, name); !bytes.Equal(got, stamped(<-winners, size)) {
			t.Errorf("%s: it is not what the winner sent", name)
		}
	}
	nothingUnfinished(t, s)
}

// onDisk is a file of that content.
func onDisk(t *testing.T, data []byte) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err == nil {
		_, err = f.Write(data)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func createLeavesOld(t *testing.T, s Store) {
	put(t, s, "a/k", []byte("old"), 3)
	wantKind(t, "Create", s.Create(t.Context(), "a/k", onDisk(t, []byte("new")), 3), coverslip.Conflict)
	wantKind(t, "Create of a bad key", s.Create(t.Context(), "../k", onDisk(t, []byte("new")), 3), coverslip.Invalid)
	wantKind(t, "Create from a cut source", s.Create(t.Context(), "b", onDisk(t, []byte("new")), 4), coverslip.Invalid)
	if got := get(t, s, "a/k"); string(got) != "old" {
		t.Errorf("now holds %q", got)
	}
	if keys := list(t, s, ""); len(keys) != 1 {
		t.Errorf("listed %q", keys)
	}
	nothingUnfinished(t, s)
}

func copies(t *testing.T, s Store) {
	for _, size := range []int{0, 1000, 17 << 20} {
		want := content(9, size)
		put(t, s, "from", want, int64(size))
		if err := s.Copy(t.Context(), "from", "a/to"); err != nil {
			t.Fatal(err)
		}
		if got := get(t, s, "a/to"); !bytes.Equal(got, want) || !bytes.Equal(get(t, s, "from"), want) {
			t.Errorf("of %d bytes %d were copied", size, len(got))
		}
	}
	wantKind(t, "Copy of nothing", s.Copy(t.Context(), "nothing", "to"), coverslip.NotFound)
	wantKind(t, "Copy to a bad key", s.Copy(t.Context(), "from", "../to"), coverslip.Invalid)
}

func readers(t *testing.T, s Store) {
	const size, rounds = 300_000, 30
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		for i := range byte(rounds) {
			if err := s.Put(t.Context(), "k", bytes.NewReader(stamped(i, size)), size); err != nil {
				t.Errorf("round %d: %v", i, err)
			}
		}
	})
	for range 2 {
		wg.Go(func() {
			for last := false; !last; {
				select {
				case <-done:
					last = true
				default:
				}
				got, err := tryGet(t.Context(), s, "k")
				switch kind := coverslip.KindOf(err); {
				case kind == coverslip.Conflict, kind == coverslip.NotFound && !last:
				case err != nil:
					t.Errorf("reader: %v", err)
					return
				case len(got) != size || !bytes.Equal(got, stamped(got[0], size)):
					t.Errorf("a reader saw %d bytes that nobody put", len(got))
					return
				}
			}
		})
	}
	wg.Wait()
}

func sweep(t *testing.T, s Store) {
	put(t, s, "k", []byte("x"), 1)
	nothingUnfinished(t, s)
	if got := get(t, s, "k"); string(got) != "x" {
		t.Errorf("holds %q", got)
	}
}

func files(t *testing.T, s Store) {
	for _, size := range []int{0, 1, 70_000, 2*blob.PartSize + 3} {
		want := content(7, size)
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, want, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"files/a", "files/a", fmt.Sprintf("files/%d", size)} { // the second time over what is there
			if err := s.PutFile(t.Context(), key, f, int64(size)); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			if !bytes.Equal(get(t, s, key), want) {
				t.Errorf("%d bytes differ", size)
			}
		}
		wantKind(t, "a file shorter than announced", s.PutFile(t.Context(), "files/short", f, int64(size)+1), coverslip.Invalid)
		wantKind(t, "a bad key", s.PutFile(t.Context(), "../x", f, int64(size)), coverslip.Invalid)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		wantKind(t, "cancelled", s.PutFile(ctx, "files/cancelled", f, int64(size)), coverslip.Canceled)
		if err := errors.Join(f.Close(), os.Remove(path)); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(get(t, s, "files/a"), want) {
			t.Error("the blob went with the file")
		}
	}
	if keys := list(t, s, "files/"); len(keys) != 5 {
		t.Errorf("listed %q", keys)
	}
	nothingUnfinished(t, s)
}

// nothingUnfinished sweeps everything and lists the keys before and after.
func nothingUnfinished(t *testing.T, s Store) {
	t.Helper()
	before := list(t, s, "")
	if err := s.Sweep(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	if after := list(t, s, ""); !slices.Equal(before, after) {
		t.Errorf("sweeping turned %q into %q", before, after)
	}
}

func put(t *testing.T, s Store, key string, p []byte, size int64) {
	t.Helper()
	// A plain reader: stores must not lean on seeking.
	if err := s.Put(t.Context(), key, io.MultiReader(bytes.NewReader(p)), size); err != nil {
		t.Fatalf("Put(%q): %v", key, err)
	}
}

func get(t *testing.T, s Store, key string) []byte {
	t.Helper()
	p, err := tryGet(t.Context(), s, key)
	if err != nil {
		t.Fatalf("reading %q: %v", key, err)
	}
	return p
}

func tryGet(ctx context.Context, s Store, key string) (p []byte, err error) {
	b, err := s.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	p = make([]byte, b.Size())
	_, err = io.ReadFull(io.NewSectionReader(b, 0, b.Size()), p)
	return p, err
}

func list(t *testing.T, s Store, prefix string) (keys []string) {
	t.Helper()
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatalf("List(%q): %v", prefix, err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

func closeBlob(t *testing.T, b blob.Blob) {
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// wantKind asks for an *Error of the given kind that says what was done.
func wantKind(t *testing.T, what string, err error, kind coverslip.Kind) {
	t.Helper()
	var e *coverslip.Error
	if !errors.As(err, &e) || e.Kind != kind || e.Op == "" {
		t.Errorf("%s: error %v of kind %q, want an *Error of kind %q", what, err, coverslip.KindOf(err), kind)
	}
}

// content is random, so that a shifted or repeated range cannot pass for the right one.
func content(seed int64, n int) []byte {
	p := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(p) //nolint:gosec // test data, not a secret
	return p
}

// stamped is n bytes that all tell who wrote them.
func stamped(who byte, n int) []byte { return bytes.Repeat([]byte{who}, n) }

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
