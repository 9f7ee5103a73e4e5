package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"
)

// What the compose file and the Kubernetes manifests run are verbs of this program, with flags that it has,
// and both run the same ones.
func TestDeploymentFilesRunWhatThereIs(t *testing.T) {
	commands := map[string][]string{}
	for _, file := range []string{"docker-compose.yml", "deploy/kubernetes.yaml"} {
		raw, err := os.ReadFile(filepath.Join("..", "..", file))
		if err != nil {
			t.Fatal(err)
		}
		docs := yaml.NewDecoder(bytes.NewReader(raw))
		for {
			var doc any
			if err := docs.Decode(&doc); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			for _, args := range commandsIn(doc) {
				var c cli
				parser, err := kong.New(&c, words, kong.Exit(func(int) {}))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := parser.Parse(args); err != nil {
					t.Errorf("%s: coverslip %s: %v", file, strings.Join(args, " "), err)
				}
				commands[file] = append(commands[file], strings.Join(args, " "))
			}
		}
		slices.Sort(commands[file])
	}
	if compose, kubernetes := commands["docker-compose.yml"], commands["deploy/kubernetes.yaml"]; len(compose) != 3 || !slices.Equal(compose, kubernetes) {
		t.Errorf("%q, %q", compose, kubernetes)
	}
}

// commandsIn are the arguments of every container of our image.
func commandsIn(node any) (found [][]string) {
	switch n := node.(type) {
	case map[string]any:
		if n["image"] == "coverslip" {
			for _, key := range []string{"command", "args"} {
				if list, ok := n[key].([]any); ok {
					var args []string
					for _, a := range list {
						args = append(args, a.(string)) //nolint:forcetypeassert // a test may fail loudly
					}
					found = append(found, args)
				}
			}
		}
		for _, v := range n {
			found = append(found, commandsIn(v)...)
		}
	case []any:
		for _, v := range n {
			found = append(found, commandsIn(v)...)
		}
	}
	return found
}
