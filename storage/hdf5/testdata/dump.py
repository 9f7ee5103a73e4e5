"""Prints what h5py sees in a file: datasets with dtype, shape, values; attributes with their types."""
import json
import sys

import h5py
import numpy as np


def attributes(o):
    return {
        k: [type(v).__name__ + (f"[{v.dtype}]" if isinstance(v, np.ndarray) else ""), v.tolist() if hasattr(v, "tolist") else v]
        for k, v in o.attrs.items()
    }


with h5py.File(sys.argv[1], "r") as f:
    print(json.dumps({
        "attributes": attributes(f),
        "datasets": {
            k: {"dtype": str(d.dtype), "shape": d.shape, "maxshape": d.maxshape, "values": d[:].tolist(), "attributes": attributes(d)}
            for k, d in f.items()
        },
    }))
