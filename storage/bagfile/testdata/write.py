"""Write the bag of TestReadsPython: python write.py FILE"""

import sys

import numpy as np
from safetensors.numpy import save_file

save_file(
    {
        "features": np.arange(12, dtype=np.float32).reshape(3, 4) / 8 - 1,
        "coords": np.array([[0, 0], [512, 0], [-7, 1 << 40]], dtype=np.int64),
    },
    sys.argv[1],
    metadata={"slide_sha256": "ab" * 32, "mpp": "0.5", "tile_size": "224", "stain": "H&E"},
)
