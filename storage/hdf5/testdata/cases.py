"""Writes one file for each case into a folder, as tools that use h5py do."""
import os
import sys

import h5py
import numpy as np

os.chdir(sys.argv[1])
features = np.arange(12, dtype=np.float32).reshape(4, 3) / 8

for name, options in {
    "float32": dict(data=features),
    "float16": dict(data=features.astype(np.float16)),
    "float64": dict(data=features.astype(np.float64)),
    "big-endian": dict(data=features.astype(">f4")),
    "gzip": dict(data=features, chunks=(2, 2), compression="gzip", shuffle=True, fletcher32=True),
    "growable": dict(data=features, chunks=(1, 3), maxshape=(None, 3)),
    "row": dict(data=features[0]),
    "int8": dict(data=(features * 8).astype(np.int8)),
    "int32": dict(data=(features * 8).astype(np.int32)),
    "uint64-big-endian": dict(data=(features * 8).astype(">u8")),
    "empty": dict(shape=(0, 3), dtype=np.float32, chunks=(1, 3), maxshape=(None, 3)),
    # Refused.
    "lzf": dict(data=features, compression="lzf"),
    "text": dict(data=np.array([b"a", b"b"])),
    "three-dimensions": dict(data=features.reshape(2, 2, 3)),
    "scalar": dict(data=np.float32(1)),
    "never-written": dict(shape=(4, 3), dtype=np.float32),
    "half-written": dict(shape=(4, 3), dtype=np.float32, chunks=(1, 3)),
    "bomb": dict(shape=(2**30, 512), dtype=np.float32, chunks=(2**19, 512), compression="gzip"),
    "compound": dict(data=np.zeros(3, dtype=[("x", "i4"), ("y", "i4")])),
}.items():
    with h5py.File(name + ".h5", "w") as f:
        d = f.create_dataset("features", **options)
        if name == "half-written":
            d[0] = 1

with h5py.File("bfloat16.h5", "w") as f:
    t = h5py.h5t.IEEE_F32LE.copy()
    t.set_fields(15, 7, 8, 0, 7)
    t.set_size(2)
    t.set_ebias(127)
    h5py.h5d.create(f.id, b"features", t, h5py.h5s.create_simple((4, 3)))

with h5py.File("elsewhere.h5", "w") as f:
    f["features"] = features
with h5py.File("external-link.h5", "w") as f:
    f["features"] = h5py.ExternalLink("elsewhere.h5", "/features")
with h5py.File("soft-link.h5", "w") as f:
    f["real"] = features
    f["features"] = h5py.SoftLink("/real")
with h5py.File("group.h5", "w") as f:
    f.create_group("features")
with h5py.File("external-data.h5", "w") as f:
    features.tofile("raw.bin")
    f.create_dataset("features", shape=(4, 3), dtype="<f4", external=[("raw.bin", 0, 48)])
with h5py.File("virtual.h5", "w") as f:
    layout = h5py.VirtualLayout(shape=(4, 3), dtype="<f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "features", shape=(4, 3))
    f.create_virtual_dataset("features", layout)

with h5py.File("attributes.h5", "w") as f:
    f["features"] = features
    for o in f, f["features"]:
        o.attrs["text"] = "Schnitt µ"
        o.attrs["fixed"] = np.bytes_("fixed")
        o.attrs.create("padded", "ab", dtype=h5py.string_dtype("ascii", 8))
        o.attrs["int"] = 256
        o.attrs["int32"] = np.int32(-7)
        o.attrs["float"] = 0.25
        o.attrs["float32-big-endian"] = np.array(0.5, dtype=">f4")
        o.attrs["one"] = np.array([20])
        o.attrs["pair"] = (1.0, 2.0)
        o.attrs["bool"] = True
        o.attrs["empty"] = h5py.Empty("f")
