"""Print the bag in a file as JSON: python read.py FILE"""

import json
import sys

from safetensors import safe_open

with safe_open(sys.argv[1], framework="numpy") as bag:
    features, coords = bag.get_tensor("features"), bag.get_tensor("coords")
    json.dump(
        {
            "metadata": bag.metadata(),
            "names": sorted(bag.keys()),
            "dtypes": [str(features.dtype), str(coords.dtype)],
            "shapes": [features.shape, coords.shape],
            "features": features.tolist(),
            "coords": coords.tolist(),
        },
        sys.stdout,
    )
