package augment

import (
	"image"
	_ "image/jpeg"
	"os"
	"path/filepath"
	"testing"
)

// On real tiles of each stain both methods find haematoxylin and eosin: near the colours that are in
// the literature, and two.
func TestStainsOfRealTilesAreHaematoxylinAndEosin(t *testing.T) {
	root := filepath.Join("..", "..", "..", "shared", "data", "crc5")
	if _, err := os.Stat(root); err != nil {
		t.Skipf("no %s: %v", root, err)
	}
	for _, folder := range []string{"training/AC", "training/H", "test/AC", "test/V"} {
		files, err := filepath.Glob(filepath.Join(root, folder, "*.jp*g"))
		if err != nil || len(files) < 8 {
			t.Fatalf("%s: %d files, %v", folder, len(files), err)
		}
		var pixels []uint8
		for _, file := range files[:8] {
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			img, _, err := image.Decode(f)
			_ = f.Close()
			if err != nil {
				t.Fatal(err)
			}
			for y := 0; y < img.Bounds().Dy(); y += 4 {
				for x := range img.Bounds().Dx() {
					r, g, b, _ := img.At(x, y).RGBA()
					pixels = append(pixels, uint8(r>>8), uint8(g>>8), uint8(b>>8))
				}
			}
		}
		for method, estimate := range map[Method]estimate{Macenko: EstimateMacenko, Vahadane: EstimateVahadane} {
			got, err := estimate(pixels)
			if err != nil {
				t.Errorf("%s, %s: %v", folder, method, err)
				continue
			}
			for k := range 2 {
				if cosine := dot(got.Colours[k], Reference.Colours[k]); cosine < 0.95 {
					t.Errorf("%s, %s: stain %d is %v, of cosine %.3f to the reference", folder, method, k, got.Colours[k], cosine)
				}
			}
		}
	}
}
