package coverslip

// ModelKind is what a model maps.
type ModelKind string

const (
	EncoderModel    ModelKind = "encoder"    // tile pixels → feature vector
	AggregatorModel ModelKind = "aggregator" // bag → slide embedding
	ProbeModel      ModelKind = "probe"      // slide embedding → class
	MILModel        ModelKind = "mil"        // bag → class
)

// Model is a network (or a plain rule such as the mean) known by its name and the SHA-256 of the
// file or rule it consists of. Only hashes count when two results are compared.
type Model struct {
	Kind   ModelKind `json:"kind"`
	Name   string    `json:"name"`
	SHA256 string    `json:"sha256"`
	Dim    int       `json:"dim"` // length of what it returns; 0 when it follows its input
	// Of an encoder: the SHA-256 of how its file is used, which inputs and which outputs. It counts
	// as the file's does. Empty where a file can be used in one way only.
	SpecSHA256 string `json:"spec_sha256,omitempty"`
	// Of an encoder: the tiles it was made for.
	TileSize int     `json:"tile_size,omitempty"` // pixels
	TileMPP  float64 `json:"tile_mpp,omitempty"`  // µm per pixel
	Taps     []Tap   `json:"taps,omitempty"`      // whose features it returns, one after the other
	Licence  string  `json:"licence,omitempty"`
	Source   string  `json:"source,omitempty"` // where its weights come from
}

// Tap is a depth of an encoder at which features are taken, and how many they are.
type Tap struct {
	Name string `json:"name"`
	Dim  int    `json:"dim"`
}
