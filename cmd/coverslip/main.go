// Command coverslip turns whole-slide images into slide embeddings and answers questions with them.
//
// This package parses, connects, calls and prints. What the verbs do lives in the packages it joins;
// each verb has a file of its own here.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
	"golang.org/x/term"

	"coverslip"
	"coverslip/slidessl/objective"
	"coverslip/tiler/openslide"
)

// Exit codes, a contract with scripts.
const (
	exitDone        = 0
	exitFailed      = 1 // something was refused or failed; the last lines say what
	exitUsage       = 2
	exitEnvironment = 3 // something is missing on this machine; `coverslip doctor` says what
)

func main() {
	openslide.Main() // a decode process starts and ends here
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

type cli struct {
	JSON    bool             `help:"Print JSON, one object a line, for programs to read."`
	Verbose bool             `short:"v" help:"Log what happens inside, to standard error."`
	Log     string           `name:"log-format" enum:"auto,text,json" default:"auto" env:"COVERSLIP_LOG_FORMAT" placeholder:"FORMAT" help:"Log as text or json; auto is json for servers and workers that no terminal watches."`
	Version kong.VersionFlag `help:"Print the version and leave."`

	Up      upCmd      `cmd:"" group:"Serve" help:"Run everything in one process: Postgres, store, workers, API."`
	Serve   serveCmd   `cmd:"" group:"Serve" help:"Run the API alone, for a fleet (DATABASE_URL, BLOB_URL)."`
	Work    workCmd    `cmd:"" group:"Serve" help:"Run workers alone, for a fleet (DATABASE_URL, BLOB_URL)."`
	Migrate migrateCmd `cmd:"" group:"Serve" help:"Bring the database to the schema of this version."`
	Keys    keysCmd    `cmd:"" group:"Serve" help:"Make, list and revoke API keys; show who changed what."`

	Tiles   tilesCmd   `cmd:"" group:"Slides" help:"Find tissue and cut a slide into tiles. Needs no database."`
	Ingest  ingestCmd  `cmd:"" group:"Slides" help:"Register slides where they lie, encode and embed them."`
	Upload  uploadCmd  `cmd:"" group:"Slides" help:"Send slides to a server; goes on where it was after any interruption."`
	Encode  encodeCmd  `cmd:"" group:"Slides" help:"Encode slides that are registered: under a budget, or augmented views."`
	Import  importCmd  `cmd:"" group:"Slides" help:"Bring in cohorts: GDC manifests, buckets, tables of labels; and features that other tools computed."`
	Cohorts cohortsCmd `cmd:"" group:"Slides" help:"List cohorts, show, version or export one."`
	Slides  slidesCmd  `cmd:"" group:"Slides" help:"List slides, or show one."`
	Jobs    jobsCmd    `cmd:"" group:"Slides" help:"List, retry or cancel the work in the queue."`

	Pretrain pretrainCmd `cmd:"" group:"Embeddings" help:"Train an aggregator on a cohort, without labels."`
	Embed    embedCmd    `cmd:"" group:"Embeddings" help:"Embed a cohort by an aggregator."`
	Models   modelsCmd   `cmd:"" group:"Slides" help:"Add, list, show or verify encoders."`

	Search searchCmd `cmd:"" group:"Embeddings" help:"Find the slides most similar to one."`
	Export exportCmd `cmd:"" group:"Embeddings" help:"Write embeddings or bags to files of other tools: numpy, parquet, CSV, TRIDENT, CLAM, STAMP."`

	Probe  probeCmd  `cmd:"" group:"Evaluation" help:"Judge embeddings by a linear classifier, beside mean pooling and the majority class."`
	Runs   runsCmd   `cmd:"" group:"Evaluation" help:"List what was judged, or show it again: figures, intervals, plots, splits."`
	MIL    milCmd    `cmd:"" name:"mil" group:"Evaluation" help:"Classifiers of bags, and where on a slide they look."`
	Study  studyCmd  `cmd:"" group:"Evaluation" help:"Run a declared experiment: which choices make slide embeddings good."`
	Gate   gateCmd   `cmd:"" group:"Evaluation" help:"Find slides that are strange: marked by pens, out of focus, without tissue, of another stain."`
	Splits splitsCmd `cmd:"" group:"Evaluation" help:"Divide slides into folds without leaking patients, or audit a split file."`

	Bench  benchCmd  `cmd:"" group:"This machine" help:"Measure Coverslip on this machine beside its peers."`
	Doctor doctorCmd `cmd:"" group:"This machine" help:"Check libraries, database and store; say what is missing and how to get it."`
}

// env is what every verb gets: where to print, and how.
type env struct {
	context.Context
	out, err io.Writer
	json     bool
	log      *slog.Logger
	terminal bool // somebody watches err
}

// words are what help texts have in common with the rest of the program.
var words = kong.Vars{"version": coverslip.Version, "objectives": strings.Join(objective.Names(), ", ")}

// run is the whole program but for the process: tests call it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	code := -1
	parser, err := kong.New(&c,
		kong.Name("coverslip"),
		kong.Description("Coverslip turns whole-slide images into slide embeddings, and embeddings into answers.\n\nTry:  coverslip ingest section.svs --wait\n      coverslip search --file other.svs"),
		words,
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, FlagsLast: true, WrapUpperBound: 100}),
		kong.Writers(stdout, stderr),
		kong.Exit(func(c int) { code = c; panic(exited{}) }),
		onlyVerb(args),
	)
	if err != nil {
		fmt.Fprintln(stderr, "coverslip:", err)
		return exitUsage
	}
	parsed, err := parse(parser, args)
	if code >= 0 {
		return code
	}
	if err != nil {
		fmt.Fprintf(stderr, "coverslip: %v\n", err)
		if len(args) > 0 {
			fmt.Fprintln(stderr, "coverslip --help lists the verbs, coverslip VERB --help explains one with an example")
		} else {
			fmt.Fprintln(stderr, "start with: coverslip --help")
		}
		return exitUsage
	}
	e := &env{Context: ctx, out: stdout, err: stderr, json: c.JSON, terminal: isTerminal(stderr)}
	e.log = newLog(stderr, parsed.Selected().Name, c.Log, c.Verbose, e.terminal)
	stopTraces, err := startTraces(ctx)
	if err == nil {
		err = parsed.Run(e)
		stopTraces()
	}
	var several *someFailed
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &several):
		return exitFailed // each was named already
	}
	fmt.Fprintf(stderr, "%s: %v\n", parsed.Selected().FullPath(), err)
	var wrong *usageError
	switch {
	case errors.As(err, &wrong):
		return exitUsage
	case coverslip.KindOf(err) == coverslip.Environment:
		return exitEnvironment
	}
	return exitFailed
}

// onlyVerb leaves all other verbs out of the grammar where the first word is one: to build it whole takes longer
// than all else before the work begins.
func onlyVerb(args []string) kong.Option {
	word, named := "", false
	if i := slices.IndexFunc(args, func(a string) bool { return !strings.HasPrefix(a, "-") }); i >= 0 {
		word = args[i]
	}
	var others []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[cli]()) {
		if _, verb := f.Tag.Lookup("cmd"); verb && strings.ToLower(f.Name) != word {
			others = append(others, f.Name)
		} else if verb {
			named = true
		}
	}
	if !named {
		others = nil
	}
	return kong.IgnoreFields(`^cli\.(` + strings.Join(others, "|") + `)$`)
}

// exited carries kong's wish to leave the process (after --help) up to run.
type exited struct{}

func parse(p *kong.Kong, args []string) (k *kong.Context, err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(exited); !ok {
				panic(r)
			}
		}
	}()
	return p.Parse(args)
}

// usageError is a mistake in the command line that kong could not see.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// someFailed says that the work is done, except for slides that were named as they failed.
type someFailed struct{ n int }

func (e *someFailed) Error() string { return fmt.Sprintf("%d failed", e.n) }

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
