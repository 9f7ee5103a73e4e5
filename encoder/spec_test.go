package encoder_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"coverslip"
	"coverslip/encoder"
)

const written = `name: mine
input: {tensor: pixels, size: 224, mpp: 0.5, layout: nchw-float32, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
taps:
  - {name: cls, output: tokens, dim: 384, pooling: cls}
  - {name: mean, output: tokens, dim: 384, pooling: mean, skip: 5}
`

func TestSpecIsReadAndWrittenAlike(t *testing.T) {
	s, err := encoder.ParseSpec([]byte(written))
	if err != nil {
		t.Fatal(err)
	}
	again, err := encoder.ParseSpec(s.YAML())
	if err != nil || fmt.Sprint(again.Model()) != fmt.Sprint(s.Model()) || string(again.YAML()) != string(s.YAML()) {
		t.Errorf("%v\n%s\n%s", err, s.YAML(), again.YAML())
	}
	m := s.Model()
	if m.Name != "mine" || m.Dim != 384 || m.TileSize != 224 || m.TileMPP != 0.5 || m.Kind != coverslip.EncoderModel || !slices.Equal(m.Taps, []coverslip.Tap{{Name: "cls", Dim: 384}}) {
		t.Errorf("%+v", m)
	}
}

func TestBrokenSpecRefusedWithItsReason(t *testing.T) {
	for name, c := range map[string]struct{ old, new, says string }{
		"nothing":              {written, "", "empty"},
		"no YAML":              {written, "\t{", "cannot start any token"},
		"unknown key":          {"name: mine", "name: mine\nresize: 256", "line 2: field resize not found"},
		"unknown key, deeper":  {"size: 224", "size: 224, colour: rgb", "field colour not found"},
		"repeated key":         {"name: mine", "name: mine\nname: other", "already defined"},
		"a word for a number":  {"size: 224", "size: large", "line 2"},
		"second document":      {"taps:", "---\ntaps:", "second document"},
		"no name":              {"name: mine", "licence: MIT", "name"},
		"a name with a colon":  {"name: mine", "name: 'a:b'", "name"},
		"a path for a name":    {"name: mine", "name: ../mine", "name"},
		"hash":                 {"name: mine", "name: mine\nsha256: ABC", "sha256"},
		"data outside":         {"name: mine", "name: mine\ndata: {../w: " + strings.Repeat("0", 64) + "}", "data"},
		"no size":              {"size: 224, ", "", "input.size"},
		"no mpp":               {"mpp: 0.5, ", "", "input.mpp"},
		"mpp not a number":     {"mpp: 0.5", "mpp: .nan", "input.mpp"},
		"layout":               {"nchw-float32", "nchw", "input.layout"},
		"uint8 with a mean":    {"nchw-float32", "nhwc-uint8", "input.mean"},
		"two means":            {"mean: [0.5, 0.5, 0.5]", "mean: [0.5, 0.5]", "three numbers"},
		"deviation 0":          {"std: [0.5, 0.5, 0.5]", "std: [0.5, 0, 0.5]", "no deviation is 0"},
		"mean of 0 to 255":     {"mean: [0.5, 0.5, 0.5]", "mean: [127, 127, 127]", "divide them by 255"},
		"pooling":              {"pooling: cls}", "pooling: max}", "pooling"},
		"mean without skip":    {", skip: 5", "", "skip is missing"},
		"class with skip":      {"pooling: cls}", "pooling: cls, skip: 1}", "skip: pooling cls has none"},
		"odd":                  {"dim: 384, pooling: mean", "dim: 383, pooling: cls+mean", "twice the width"},
		"a tap twice":          {"name: mean", "name: cls", "there twice"},
		"a tap without output": {"{name: cls, output: tokens,", "{name: cls,", "output is missing"},
		"impossibly wide":      {"dim: 384", "dim: 1000000", "dim"},
		"anchors without end":  {"name: mine", "name: &a [" + strings.Repeat("x, ", 10) + "]", "line"},
	} {
		if !strings.Contains(written, c.old) {
			t.Fatalf("%s: no %q to replace", name, c.old)
		}
		_, err := encoder.ParseSpec([]byte(strings.Replace(written, c.old, c.new, 1)))
		if coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: got %v, want %q", name, err, c.says)
		}
	}
	if _, err := encoder.ParseSpec(make([]byte, 2<<20)); coverslip.KindOf(err) != coverslip.TooLarge {
		t.Errorf("2 MiB: %v", err)
	}
}

func TestTapsAreChosenByName(t *testing.T) {
	s, err := encoder.ParseSpec([]byte(written))
	if err != nil {
		t.Fatal(err)
	}
	name, taps := encoder.SplitName("mine:mean+cls")
	both, err := s.Use(taps...)
	if err != nil || name != "mine" {
		t.Fatal(name, err)
	}
	if m := both.Model(); m.Name != "mine:mean+cls" || m.Dim != 768 || m.SpecSHA256 == s.Model().SpecSHA256 {
		t.Errorf("%+v", m)
	}
	if first, err := s.Use("cls"); err != nil || first.Model().Name != "mine" || first.Model().SpecSHA256 != s.Model().SpecSHA256 {
		t.Errorf("the first tap by name is another model: %+v, %v", first.Model(), err)
	}
	if name, taps := encoder.SplitName("mine"); name != "mine" || taps != nil {
		t.Error(name, taps)
	}
	if _, err := s.Use("head"); coverslip.KindOf(err) != coverslip.NotFound || coverslip.HintOf(err) != "it has cls, mean" {
		t.Errorf("unknown tap: %v", err)
	}
	if _, err := s.Use("cls", "cls"); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("a tap twice: %v", err)
	}
	if _, err := s.Use(""); coverslip.KindOf(err) != coverslip.NotFound {
		t.Errorf("an empty tap: %v", err)
	}
}

// What changes features changes the hash of how a file is used; names and licences do not.
func TestSpecHashFollowsTheFeatures(t *testing.T) {
	base, err := encoder.ParseSpec([]byte(written))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		old, new string
		same     bool
	}{
		"name": {"name: mine", "name: yours", true}, "licence": {"name: mine", "name: mine\nlicence: MIT", true},
		"a tap that is not used": {"dim: 384, pooling: mean", "dim: 384, pooling: mean", true},
		"mean":                   {"mean: [0.5, 0.5, 0.5]", "mean: [0.5, 0.5, 0.6]", false},
		"layout":                 {"nchw-float32", "nhwc-float32", false},
		"pooling":                {"pooling: cls}", "pooling: mean, skip: 1}", false},
		"weights beside it":      {"name: mine", "name: mine\ndata: {w: " + strings.Repeat("0", 64) + "}", false},
	} {
		s, err := encoder.ParseSpec([]byte(strings.Replace(written, c.old, c.new, 1)))
		if err != nil {
			t.Fatal(name, err)
		}
		if (s.Model().SpecSHA256 == base.Model().SpecSHA256) != c.same {
			t.Errorf("%s: same hash is %v", name, !c.same)
		}
	}
}

func TestShippedSpecsAreWhole(t *testing.T) {
	var names []string
	for _, s := range encoder.ShippedSpecs() {
		names = append(names, s.Name)
		if s.Licence == "" || s.Source == "" {
			t.Errorf("%s: licence %q, source %q", s.Name, s.Licence, s.Source)
		}
		raw := encoder.Weights(s.Name)
		if (raw == nil) != (s.SHA256 == "") {
			t.Errorf("%s: %d bytes of weights, SHA-256 %q", s.Name, len(raw), s.SHA256)
		}
		if sum := sha256.Sum256(raw); raw != nil && hex.EncodeToString(sum[:]) != s.SHA256 {
			t.Errorf("%s: the file has SHA-256 %x", s.Name, sum)
		}
	}
	want := []string{"conch", "ctranspath", "efficientnet-lite0", "efficientnet-lite0-int8", "gigapath", "h-optimus-0",
		"phikon-v2", "resnet18-layer3", "resnet50", "uni", "uni2-h", "virchow2"}
	slices.Sort(names)
	if !slices.Equal(names, want) {
		t.Errorf("got %v", names)
	}
	if s, _ := encoder.Default(); s.Name != "efficientnet-lite0" || len(s.Taps) < 4 || s.Model().Dim != 1280 {
		t.Errorf("the default is %+v", s)
	}
}
