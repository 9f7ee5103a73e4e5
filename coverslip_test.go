package coverslip_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"coverslip"
)

func TestErrorNamesTheThingTheOperationAndTheRemedy(t *testing.T) {
	cause := errors.New("it ends early")
	for _, c := range []struct {
		err  coverslip.Error
		want string
	}{
		{coverslip.Error{Op: "read level 2"}, "read level 2"},
		{coverslip.Error{Op: "read level 2", Path: "a.svs", Err: cause}, "a.svs: read level 2: it ends early"},
		{coverslip.Error{Op: "read level 2", Path: "a.svs", Err: cause, Hint: "upload it again"}, "a.svs: read level 2: it ends early (upload it again)"},
		{coverslip.Error{Op: "encode", Slide: coverslip.SlideID(strings.Repeat("ab", 32)), Err: cause}, "slide abababababab: encode: it ends early"},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestKindOf(t *testing.T) {
	full := &coverslip.Error{Kind: coverslip.Full, Op: "write", Hint: "free some space"}
	for _, c := range []struct {
		err  error
		want coverslip.Kind
	}{
		{nil, ""},
		{full, coverslip.Full},
		{fmt.Errorf("while ingesting: %w", full), coverslip.Full},
		{&coverslip.Error{Kind: coverslip.Unavailable, Op: "put", Err: full}, coverslip.Unavailable},
		{errors.Join(errors.New("first"), full), coverslip.Full},
		{context.Canceled, coverslip.Canceled},
		{fmt.Errorf("stopped: %w", context.DeadlineExceeded), coverslip.Canceled},
		{io.ErrUnexpectedEOF, coverslip.Internal},
	} {
		if got := coverslip.KindOf(c.err); got != c.want {
			t.Errorf("KindOf(%v) = %q, want %q", c.err, got, c.want)
		}
	}
	if got := coverslip.HintOf(fmt.Errorf("while ingesting: %w", full)); got != "free some space" {
		t.Errorf("HintOf: %q", got)
	}
	if !errors.Is(&coverslip.Error{Err: io.EOF}, io.EOF) {
		t.Error("the cause is hidden")
	}
}

func TestRetryableIsWhatMayPass(t *testing.T) {
	for kind, want := range map[coverslip.Kind]bool{
		coverslip.Invalid: false, coverslip.Unsupported: false, coverslip.NeedsMPP: false, coverslip.NotFound: false, coverslip.TooLarge: false, coverslip.Conflict: false,
		coverslip.Unavailable: true, coverslip.Full: true, coverslip.Canceled: true, coverslip.Internal: true, coverslip.Environment: true,
	} {
		if kind.Retryable() != want {
			t.Errorf("%s: %v", kind, !want)
		}
	}
}

func TestAtNamesWhatHasNoNameYet(t *testing.T) {
	bare := &coverslip.Error{Kind: coverslip.Invalid, Op: "read"}
	if got := coverslip.At("a.svs", bare).Error(); got != "a.svs: read" {
		t.Errorf("%q", got)
	}
	if bare.Path != "" {
		t.Error("the error itself was changed")
	}
	if got := coverslip.At("b.svs", coverslip.At("a.svs", bare)).Error(); got != "a.svs: read" {
		t.Errorf("a name was replaced: %q", got)
	}
	if coverslip.At("a.svs", nil) != nil || coverslip.At("a.svs", io.EOF) != io.EOF { //nolint:errorlint // the very same
		t.Error("nil or a foreign error was changed")
	}
}

func TestDoingPutsTheOperationInFront(t *testing.T) {
	inner := &coverslip.Error{Kind: coverslip.Invalid, Op: "decode JPEG", Path: "a.svs", Hint: "copy it again"}
	if got := coverslip.Doing("read tile 7", inner).Error(); got != "a.svs: read tile 7: decode JPEG (copy it again)" {
		t.Errorf("%q", got)
	}
	if inner.Op != "decode JPEG" {
		t.Error("the error itself was changed")
	}
	if got := coverslip.Doing("read", &coverslip.Error{Kind: coverslip.Full}); got.Error() != "read" || coverslip.KindOf(got) != coverslip.Full {
		t.Errorf("%v", got)
	}
	if got := coverslip.Doing("read", context.Canceled); coverslip.KindOf(got) != coverslip.Canceled || !errors.Is(got, context.Canceled) {
		t.Errorf("%v", got)
	}
	if coverslip.Doing("read", nil) != nil {
		t.Error("nothing became an error")
	}
}

func TestParseSlideID(t *testing.T) {
	good := strings.Repeat("0f", 32)
	if id, err := coverslip.ParseSlideID(good); err != nil || string(id) != good || id.Short() != good[:12] {
		t.Errorf("%s, %v", id, err)
	}
	for _, bad := range []string{"", "0f", good[:63], good + "0", strings.ToUpper(good), strings.Repeat("zz", 32), strings.Repeat("x", 1<<20)} {
		if _, err := coverslip.ParseSlideID(bad); coverslip.KindOf(err) != coverslip.Invalid || len(err.Error()) > 300 {
			t.Errorf("%.80q: %.300v", bad, err)
		}
	}
	if coverslip.SlideID("ab").Short() != "ab" {
		t.Error("a short id has no start")
	}
}

func TestStatesThatAreDone(t *testing.T) {
	for state, want := range map[coverslip.State]bool{coverslip.Queued: false, coverslip.Encoding: false, coverslip.Embedded: true,
		coverslip.NoTissue: true, coverslip.AwaitingMPP: true, coverslip.Failed: true} {
		if state.Done() != want {
			t.Errorf("%s", state)
		}
	}
}
