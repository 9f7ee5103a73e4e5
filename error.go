package coverslip

import (
	"context"
	"errors"
	"strings"
)

// Kind says what sort of thing went wrong, so that one table can map an error to an HTTP status
// (api), one to an exit code (cmd), and one to retry-or-fail (Retryable).
type Kind string

const (
	Invalid     Kind = "invalid"     // the bytes or the request are broken; the same input fails again
	Unsupported Kind = "unsupported" // whole and well-formed, but nothing Coverslip reads
	NeedsMPP    Kind = "needs_mpp"   // the slide does not say its resolution and nobody else has
	NotFound    Kind = "not_found"   // no such slide, model, file
	Conflict    Kind = "conflict"    // another process or another version of the thing is in the way
	TooLarge    Kind = "too_large"   // over a limit that is a setting
	Full        Kind = "full"        // no room left where it had to be written
	Unavailable Kind = "unavailable" // a service does not answer now; trying again may help
	Environment Kind = "environment" // something is missing on this machine
	Canceled    Kind = "canceled"    // somebody stopped the work
	Internal    Kind = "internal"    // a fault of Coverslip's own
)

// Retryable reports whether the same work may succeed later without anybody changing the input.
func (k Kind) Retryable() bool {
	return k == Unavailable || k == Full || k == Canceled || k == Internal || k == Environment
}

// Error is the one error type: what kind, doing what, to which thing, why, and what to do about it.
// Only Kind and Op are always set.
type Error struct {
	Kind  Kind
	Op    string  // what was being done, as a verb phrase: "read level 2"
	Path  string  // the file, blob or address it was done to, as the user named it
	Slide SlideID // the slide it was done to, where that is known and no path is
	Err   error   // the cause
	Hint  string  // the remedy, as an instruction: "upload it again"
}

// Error reads "<path or slide>: <op>: <cause> (<hint>)", leaving out what is not set.
func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.Path != "":
		b.WriteString(e.Path + ": ")
	case e.Slide != "":
		b.WriteString("slide " + e.Slide.Short() + ": ")
	}
	b.WriteString(e.Op)
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

// Unwrap gives errors.Is and errors.As the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the outermost *Error in err's chain. A cancelled or timed-out context
// is Canceled; any other foreign error is Internal; nil is the empty kind.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return Canceled
	default:
		return Internal
	}
}

// HintOf returns the remedy the outermost *Error in err's chain carries, or "".
func HintOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

// Doing returns err with what was being done put in front of its operation: "read tile 7: decode JPEG".
// Kind, names and hint stay as they are. A foreign error becomes an *Error of the kind KindOf gives it,
// and nil stays nil.
func Doing(op string, err error) error {
	var e *Error
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &e):
		return &Error{Kind: KindOf(err), Op: op, Err: err}
	}
	outer := *e
	outer.Op = op
	if e.Op != "" {
		outer.Op += ": " + e.Op
	}
	return &outer
}

// At returns err with path filled in where an *Error at its head does not name one yet, so that
// code below need not know what the user called the file.
func At(path string, err error) error {
	var e *Error
	if err == nil || !errors.As(err, &e) || e.Path != "" {
		return err
	}
	named := *e
	named.Path = path
	return &named
}
