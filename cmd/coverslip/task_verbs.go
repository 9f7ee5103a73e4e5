package main

import (
	"cmp"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"coverslip/api"
)

// A task is a verb of the command line that somebody asks for over the API. Its settings are the verb's flags
// and arguments; a worker runs this program with them, as a process of its own, and keeps what it prints and
// writes.

// taskVerb is one that may be asked for.
type taskVerb struct {
	path    string                                             // as on the command line
	files   []string                                           // flags and arguments that are files to read
	leave   []string                                           // flags that are nothing to others
	places  []string                                           // flags and arguments that are places, which a server opens to clients, or not
	writes  func(dir string, settings map[string]any) []string // what tells it to write there
	prints  string                                             // the file that it prints, where that is no JSON
	example map[string]any
}

func (v taskVerb) name() string { return strings.ReplaceAll(v.path, " ", "-") }

// into tells a verb to write its page and tables.
func into(name string) func(string, map[string]any) []string {
	return func(dir string, _ map[string]any) []string { return []string{"--out=" + filepath.Join(dir, name)} }
}

var taskVerbs = []taskVerb{
	{path: "encode", leave: []string{"wait", "augment"}, example: map[string]any{"cohort": "brca", "budget": "auto"}},
	{path: "import s3", places: []string{"prefix"}, example: map[string]any{"prefix": "s3://slides/brca/", "cohort": "brca"}},
	{path: "cohorts export", prints: "cohort.csv", example: map[string]any{"name": "brca"}},
	{path: "models add", files: []string{"file", "spec"}, example: map[string]any{"kind": "encoder", "file": map[string]any{"task": 3.0, "name": "uni.onnx"}, "spec": map[string]any{"text": "name: uni\n…"}}},
	{path: "import bags", files: []string{"dir"}, example: map[string]any{"dir": map[string]any{"task": 3.0}, "format": "trident", "cohort": "brca"}},
	{path: "models show", example: map[string]any{"name": "uni"}},
	{path: "models verify", example: map[string]any{"name": []any{"uni"}}},
	{path: "pretrain", files: []string{"settings"}, leave: []string{"print-settings", "resume"}, example: map[string]any{"cohort": "brca", "out": "brca-ssl", "epochs": 100.0}},
	{path: "embed", example: map[string]any{"cohort": "brca", "aggregator": "brca-ssl"}},
	{path: "export", writes: exportInto, example: map[string]any{"what": "bags", "cohort": "brca"}},
	{path: "probe", files: []string{"splits"}, writes: into(""), example: map[string]any{"cohort": "brca", "label": "subtype"}},
	{path: "runs show", leave: []string{"splits"}, writes: into(""), example: map[string]any{"id": "3f2a91"}},
	{path: "mil train", files: []string{"splits"}, leave: []string{"resume"}, writes: milTrainInto, example: map[string]any{"cohort": "brca", "label": "subtype", "model": []any{"gated"}, "save": true}},
	{path: "mil predict", files: []string{"classifier"}, writes: into("predictions.csv"), example: map[string]any{"classifier": map[string]any{"task": 7.0, "name": "classifier.safetensors"}, "cohort": "brca"}},
	{path: "mil heatmap", files: []string{"model", "values"}, writes: into(""), example: map[string]any{"model": map[string]any{"task": 7.0, "name": "classifier.safetensors"}, "slide": "ed92d5"}},
	{path: "study run", files: []string{"file"}, places: []string{"tiles"}, leave: []string{"jobs"}, example: map[string]any{"file": map[string]any{"text": "name: tiles\n…"}, "quick": true}},
	{path: "study show", example: map[string]any{"name": "tiles"}},
	{path: "study report", writes: into(""), example: map[string]any{"name": "tiles"}},
	{path: "gate fit", example: map[string]any{"cohort": "brca", "out": "usual"}},
	{path: "gate check", example: map[string]any{"name": "usual", "cohort": "new"}},
	{path: "splits make", files: []string{"file"}, writes: into("splits"), example: map[string]any{"file": map[string]any{"text": "slide_id,case_id,subtype\n…"}, "label": "subtype"}},
	{path: "splits audit", files: []string{"file", "slides"}, example: map[string]any{"file": map[string]any{"text": "slide_id,case_id,fold\n…"}}},
}

func exportInto(dir string, settings map[string]any) []string {
	format, _ := settings["format"].(string)
	if settings["what"] != "bags" && format != "h5" {
		dir = filepath.Join(dir, "embeddings."+cmp.Or(format, "npz"))
	}
	return []string{"--out=" + dir}
}

func milTrainInto(dir string, settings map[string]any) []string {
	args := []string{"--out=" + dir}
	if settings["save"] == true {
		args = append(args, "--save="+filepath.Join(dir, "classifier.safetensors"))
	}
	return args
}

// taskSetting is a flag or an argument of a verb.
type taskSetting struct {
	api.Setting
	argument int // from 1; 0 is a flag
	flag     string
}

// notForTasks are flags that every verb has, or that say what is this server's affair.
var notForTasks = []string{"help", "json", "verbose", "log-format", "version", "data", "database-url", "blob-url", "provider", "workers"}

// settings are those of the verb, as the command line defines them.
func (v taskVerb) settings(node *kong.Node) (all []taskSetting) {
	add := func(value *kong.Value, argument int) {
		name := value.Name
		isFile, isPlace := slices.Contains(v.files, name), slices.Contains(v.places, name)
		// A path that is no file to send, and no place, is where a verb writes.
		aPath := value.Tag.Type == "path" || value.Tag.Type == "existingfile" || name == "out" && (v.writes != nil || v.prints != "")
		if slices.Contains(notForTasks, name) || slices.Contains(v.leave, name) || aPath && !isFile && !isPlace {
			return
		}
		s := taskSetting{api.Setting{Name: strings.ReplaceAll(name, "-", "_"), Doc: value.Help, Required: value.Required, Default: value.Default}, argument, name}
		of := value.Target.Type()
		if s.Many = of.Kind() == reflect.Slice; s.Many {
			of = of.Elem()
		}
		if of.Kind() == reflect.Pointer {
			of = of.Elem()
		}
		switch of.Kind() {
		case reflect.Bool:
			s.Type = "boolean"
		case reflect.Int, reflect.Int64, reflect.Uint64:
			s.Type = "integer"
			if of == reflect.TypeFor[time.Duration]() {
				s.Type = "string"
			}
		case reflect.Float64:
			s.Type = "number"
		default:
			s.Type = "string"
		}
		if isFile {
			s.Type, s.Default = "file", ""
		}
		if value.Enum != "" {
			s.Enum = value.EnumSlice()
		}
		all = append(all, s)
	}
	for i, p := range node.Positional {
		add(p, i+1)
	}
	for _, group := range node.AllFlags(false) {
		for _, f := range group {
			add(f.Value, 0)
		}
	}
	if v.path == "mil train" {
		all = append(all, taskSetting{api.Setting{Name: "save", Type: "boolean", Doc: "Train the first model on all labelled slides, too, and keep it as the file classifier.safetensors, for mil-predict and mil-heatmap."}, 0, ""})
	}
	slices.SortStableFunc(all, func(a, b taskSetting) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// grammar is the command line.
func grammar() (*kong.Kong, error) {
	return kong.New(&cli{}, kong.Name("coverslip"), words, kong.Writers(io.Discard, io.Discard), kong.Exit(func(int) {}))
}

// nodeOf is a verb that is there.
func nodeOf(k *kong.Kong, path string) *kong.Node {
	node := k.Model.Node
	for word := range strings.FieldsSeq(path) {
		node = node.Children[slices.IndexFunc(node.Children, func(n *kong.Node) bool { return n.Name == word })]
	}
	return node
}
