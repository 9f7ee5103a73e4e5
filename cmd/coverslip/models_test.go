package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coverslip/encoder"
	"coverslip/encoder/onnx/onnxtest"
)

// writeEncoder leaves a tiny encoder's ONNX file, its weights beside it, and a specification that says
// no hashes, as users write it.
func writeEncoder(t *testing.T, weights ...float32) (onnxFile, specFile string) {
	t.Helper()
	m := onnxtest.Model{Size: 224, Weights: [3][]float32{weights, weights, weights}, Layout: encoder.NCHWFloat32, External: "weights.bin"}
	dir := t.TempDir()
	spec := m.Spec()
	spec.SHA256, spec.Data = "", nil
	for name, raw := range map[string][]byte{"tiny.onnx": m.File(), "weights.bin": m.Data(), "tiny.yaml": spec.YAML()} {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "tiny.onnx"), filepath.Join(dir, "tiny.yaml")
}

func TestAddedEncoderIsUsedAndGuarded(t *testing.T) {
	needsRuntime(t)
	data := dataFolder(t)
	file, spec := writeEncoder(t, 1, 2)
	code, out, stderr := coverslipRun(t, "models", "add", "encoder", file, "--spec", spec, "--data", data, "--json")
	var added modelLine
	if err := json.Unmarshal([]byte(out), &added); err != nil || code != 0 || added.Name != "mean-colour" || added.Dim != 2 || len(added.SHA256) != 64 {
		t.Fatalf("exit %d: %s%s", code, out, stderr)
	}
	for _, c := range []struct {
		encoder string
		dim     int
	}{{"mean-colour", 2}, {"mean-colour:both+features", 8}, {"efficientnet-lite0:stage3+stage5", 152}, {"mean-colour", 2}} {
		code, out, stderr := coverslipRun(t, "ingest", bundled, "--encoder", c.encoder, "--wait", "--data", data, "--json")
		if code != 0 {
			t.Fatalf("%s: exit %d: %s%s", c.encoder, code, out, stderr)
		}
		if r := results(t, out); r[0].Dim != c.dim || r[0].Tiles == 0 {
			t.Errorf("%s: %+v", c.encoder, r)
		}
	}

	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"ingest", bundled, "--encoder", "uni"}, 1, "its file is yours to bring (coverslip models add encoder FILE --spec uni"},
		{[]string{"ingest", bundled, "--encoder", "nothing"}, 1, "there is none of this name"},
		{[]string{"ingest", bundled, "--encoder", "mean-colour:head"}, 1, "it has features, map, class, mean, both"},
		{[]string{"ingest", bundled, "--provider", "abacus"}, 2, "cpu"},
		{[]string{"models", "add", "encoder", file, "--spec", "uni"}, 1, "tap cls asks for tokens float32 [N T 1024]"},
		{[]string{"models", "add", "encoder", file, "--spec", "nothing"}, 1, "name a YAML file, or one of"},
		{[]string{"models", "add", "encoder", file + "x", "--spec", spec}, 1, "does not exist"},
		{[]string{"models", "add", "encoder", file, "--spec", spec, "--name", "efficientnet-lite0"}, 1, "ships with Coverslip"},
		{[]string{"models", "add", "encoder", file, "--spec", spec, "--name", "../up"}, 1, "name"},
		{[]string{"models", "verify"}, 0, "mean-colour: as it was added"},
		{[]string{"models", "show", "mean-colour"}, 0, "weights.bin: "},
		{[]string{"models", "show", "virchow2"}, 0, "pooling: cls+mean"},
		{[]string{"models", "list"}, 0, "mean-colour"},
	} {
		code, out, stderr := coverslipRun(t, append(c.args, "--data", data)...)
		if code != c.code || !strings.Contains(out+stderr, c.says) {
			t.Errorf("%v: exit %d, want %d and %q in:\n%s%s", c.args, code, c.code, c.says, out, stderr)
		}
	}

	// Another network of the same name, and one whose hash is not the one written down.
	other, otherSpec := writeEncoder(t, 3, 4)
	if code, _, stderr := coverslipRun(t, "models", "add", "encoder", other, "--spec", otherSpec, "--data", data); code != 1 || !strings.Contains(stderr, "has this name") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	_, shown, _ := coverslipRun(t, "models", "show", "mean-colour", "--data", data)
	if err := os.WriteFile(otherSpec, []byte(shown), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := coverslipRun(t, "models", "add", "encoder", other, "--spec", otherSpec, "--name", "other", "--data", data); code != 1 || !strings.Contains(stderr, "has SHA-256") {
		t.Errorf("exit %d: %s", code, stderr)
	}

	// Its weights change where they are kept: nothing is encoded with it any more.
	kept := filepath.Join(data, "blobs", "models", added.SHA256, "weights.bin")
	raw, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	raw[0] ^= 1
	if err := os.WriteFile(kept, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, _ := coverslipRun(t, "models", "verify", "--data", data); code != 1 || !strings.Contains(out, "mean-colour: ") || !strings.Contains(out, "it has SHA-256") {
		t.Errorf("verify: exit %d: %s", code, out)
	}
	if code, _, stderr := coverslipRun(t, "ingest", bundled, "--encoder", "mean-colour:map", "--wait", "--data", data); code != 1 || !strings.Contains(stderr, "weights.bin has SHA-256") {
		t.Errorf("ingest: exit %d: %s", code, stderr)
	}
}

// A job says which encoder it wants; a worker that was started with another one follows.
func TestWorkerOpensTheEncoderOfTheJob(t *testing.T) {
	needsRuntime(t)
	data := dataFolder(t)
	file, spec := writeEncoder(t, 1, 2, 3)
	if code, _, stderr := coverslipRun(t, "models", "add", "encoder", file, "--spec", spec, "--data", data); code != 0 {
		t.Fatal(stderr)
	}
	p := up(t, data)
	for _, c := range []struct {
		encoder string
		dim     int
	}{{"mean-colour", 3}, {"efficientnet-lite0", 1280}, {"mean-colour:class", 3}} {
		code, out, stderr := coverslipRun(t, "ingest", bundled, "--encoder", c.encoder, "--wait", "--data", data, "--json")
		if code != 0 {
			t.Fatalf("%s: exit %d: %s%s\n%s", c.encoder, code, out, stderr, p.log)
		}
		if r := results(t, out); r[0].Dim != c.dim {
			t.Errorf("%s: %+v", c.encoder, r)
		}
	}
}
