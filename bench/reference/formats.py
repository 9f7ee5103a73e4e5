"""Slides that other programs wrote, in every layout and compression that docs/FORMATS.md names, read by
Coverslip and held against the pixels that went in.

    python -m venv venv && venv/bin/pip install -r formats_requirements.txt
    venv/bin/python formats.py [--keep DIR] [NAME ...]      after make build

The pixels are a part of testdata/CMU-1-Small-Region.svs, decoded by tifffile. tifffile and imagecodecs write
the TIFFs, pydicom the DICOMs, Pillow the JPEG and JPEG 2000 streams. Each line says what came out: the mean
difference of all tiles of 256 px at level 0, or the refusal. Exits 1 if any is not as it should be.
"""

import argparse
import io
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import pydicom
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

warnings.filterwarnings("ignore")
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TILE = 256
RESOLUTION = {"resolution": (20040.0, 20040.0), "resolutionunit": "CENTIMETER"}  # 0.499 µm
EXACT, LOSSY, REFUSED = 0.0, 5.0, None  # mean differences of 255


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--keep", type=pathlib.Path, help="leave the slides in this folder")
    args.add_argument("names", nargs="*")
    args = args.parse_args()
    with tifffile.TiffFile(ROOT / "testdata" / "CMU-1-Small-Region.svs") as f:
        rgb = np.ascontiguousarray(f.pages[0].asarray()[400:1700, 300:1900])
    folder = args.keep or pathlib.Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True, parents=True)
    bad = 0
    for name, (make, want) in cases(rgb).items():
        if args.names and name not in args.names:
            continue
        path = folder / name
        make(path)
        got = read(path, rgb.mean(2) if "grey" in name else rgb)
        right = isinstance(got, str) if want is REFUSED else not isinstance(got, str) and got <= want
        bad += not right
        print(f"{'ok ' if right else 'BAD'} {name:34} {got if isinstance(got, str) else f'{got:.2f}'}")
    if not args.keep:
        shutil.rmtree(folder)
    sys.exit(bad > 0)


def read(path, want):
    """The mean difference of all tiles to the picture, or why there are none."""
    with tempfile.TemporaryDirectory() as out:
        out = pathlib.Path(out) / "tiles"
        p = subprocess.run([ROOT / "bin" / "coverslip", "tiles", path, "--mpp-of-slide", "0.499", "--mpp", "0.499", "--size", str(TILE),
                            "--min-tissue", "0", "--out", out], capture_output=True, text=True, timeout=120)
        if p.returncode != 0:
            return p.stderr.strip().splitlines()[-1].split(": ", 2)[-1] if p.returncode == 1 else f"exit {p.returncode}"
        total, n = 0.0, 0
        for tile in out.glob("*.png"):
            x, y = map(int, tile.stem.split("_"))
            part = want[y : y + TILE, x : x + TILE].astype(float)
            got = np.asarray(Image.open(tile)).astype(float)[: part.shape[0], : part.shape[1]]
            total, n = total + np.abs(got - (part if part.ndim == 3 else part[..., None])).sum(), n + got.size
        assert n == want.shape[0] * want.shape[1] * 3, "some tiles are missing"
        return total / n


def cases(rgb):
    """What to write, and how far its pixels may be off."""
    planes = np.ascontiguousarray(rgb.transpose(2, 0, 1))
    grey = np.round(rgb.mean(2)).astype(np.uint8)
    out = {}

    def tiff(name, data, want, *, file={}, levels=0, sub=0, **how):
        how = RESOLUTION | {"photometric": "rgb", "metadata": None} | how

        def make(path):
            with tifffile.TiffWriter(path, **file) as t:
                t.write(data, subifds=sub or None, **how)
                for k in range(1, 1 + max(levels, sub)):
                    t.write(data[:: 2**k, :: 2**k], subfiletype=1, **{k: v for k, v in how.items() if k != "metadata"}, metadata=None)

        out[name + ".tif"] = make, want

    tiled = {"tile": (TILE, TILE)}
    for c in ["none", "lzw", "deflate", "zstd", "webp", "packbits", "jpeg2000"]:
        how = {} if c == "none" else {"compression": c}
        tiff("tiles-" + c, rgb, EXACT, **tiled, **how)
        tiff("big-endian-bigtiff-" + c, rgb, EXACT, file={"bigtiff": True, "byteorder": ">"}, **tiled, **how)
        tiff("pyramid-" + c, rgb, EXACT, levels=3, **tiled, **how)
        if c not in ("webp", "jpeg2000"):
            tiff("strips-" + c, rgb, EXACT, rowsperstrip=7, **how)
            tiff("planar-tiles-" + c, planes, EXACT, planarconfig="separate", **tiled, **how)
            tiff("planar-strips-" + c, planes, EXACT, planarconfig="separate", rowsperstrip=16, **how)
        if c in ("lzw", "deflate", "zstd"):
            tiff("predictor-" + c, rgb, EXACT, predictor=True, **tiled, **how)
    jpeg = {"compression": "jpeg"}
    tiff("tiles-jpeg-420", rgb, LOSSY, subsampling=(2, 2), **tiled, **jpeg)
    tiff("tiles-jpeg-422", rgb, LOSSY, subsampling=(2, 1), **tiled, **jpeg)
    tiff("tiles-jpeg-444", rgb, LOSSY, subsampling=(1, 1), **tiled, **jpeg)
    tiff("tiles-jpeg-624x736", rgb, LOSSY, tile=(736, 624), **jpeg)
    tiff("strips-jpeg", rgb, LOSSY, rowsperstrip=16, **jpeg)
    tiff("planar-tiles-jpeg", planes, LOSSY, planarconfig="separate", **tiled, **jpeg)
    tiff("pyramid-jpeg", rgb, LOSSY, levels=3, **tiled, **jpeg)
    tiff("pyramid-jpeg-in-subifds", rgb, LOSSY, sub=3, **tiled, **jpeg)
    tiff("grey-deflate", grey, 0.5, photometric="minisblack", compression="deflate", **tiled)
    tiff("grey-white-is-zero", 255 - grey, 0.5, photometric="miniswhite", compression="lzw", **tiled)
    tiff("grey-jpeg", grey, LOSSY, photometric="minisblack", **tiled, **jpeg)
    tiff("alpha", np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)]), EXACT, extrasamples=["unassalpha"], compression="deflate", **tiled)
    tiff("16-bit", rgb.astype(np.uint16) * 257, REFUSED, compression="deflate", **tiled)
    tiff("float", (rgb / 255).astype(np.float32), REFUSED, **tiled)
    tiff("1-bit", grey > 180, REFUSED, photometric="minisblack", **tiled)
    tiff("cmyk", np.dstack([255 - rgb, np.zeros(rgb.shape[:2], np.uint8)]), REFUSED, photometric="separated", **tiled)
    tiff("planar-alpha", np.concatenate([planes, planes[:1]]), REFUSED, planarconfig="separate", extrasamples=["unassalpha"], **tiled)
    for c in ["lzma", "lerc", "png", "jpegxl"]:
        tiff("tiles-" + c, rgb, REFUSED, compression=c, **tiled)
    micrometres = {"PhysicalSizeX": 0.499, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.499, "PhysicalSizeYUnit": "µm"}
    ome = {"bigtiff": True, "ome": True}
    tiff("ome-subifds-jpeg", rgb, LOSSY, file=ome, sub=2, metadata={"axes": "YXS"} | micrometres, **tiled, **jpeg)
    tiff("ome-planar-lzw", planes, EXACT, file=ome, planarconfig="separate", compression="lzw", metadata={"axes": "SYX"} | micrometres, **tiled)
    tiff("ome-three-channels", planes, REFUSED, file=ome, photometric="minisblack", metadata={"axes": "CYX"} | micrometres, **tiled)

    def streams(name, want, code, compression, photometric="ycbcr", edge=TILE):
        def make(path):
            tifffile.imwrite(path, (code(t) for t in cut(rgb, edge)), shape=rgb.shape, dtype=np.uint8, tile=(edge, edge),
                             photometric=photometric, compression=compression, metadata=None, **RESOLUTION)

        out[name + ".tif"] = make, want

    streams("jpeg-restart-markers", LOSSY, coded("JPEG", quality=85, restart_marker_blocks=4), 7)
    streams("jpeg-progressive", LOSSY, coded("JPEG", quality=85, progressive=True), 7)
    streams("jpeg-tiles-of-2048", LOSSY, coded("JPEG", quality=85), 7, edge=2048)
    streams("jpeg-cut", REFUSED, lambda t: coded("JPEG", quality=85)(t)[:-200], 7)
    streams("aperio-33005", EXACT, coded("JPEG2000", no_jp2=True), 33005, "rgb")
    streams("aperio-33003", LOSSY, lambda t: coded("JPEG2000", no_jp2=True, mct=0)(np.asarray(Image.fromarray(t).convert("YCbCr"))), 33003)
    streams("aperio-33005-cut", REFUSED, lambda t: coded("JPEG2000", no_jp2=True)(t)[:-200], 33005, "rgb")

    def dicom(name, want, syntax, photometric="RGB", code=lambda t: t.tobytes(), **how):
        out[name + ".dcm"] = (lambda path: write_dicom(path.parent / path.stem / "1.dcm", path, rgb, syntax, photometric, code, **how)), want

    jpeg_syntax, j2k_syntax = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"
    j = coded("JPEG", quality=85)
    dicom("dicom-jpeg", LOSSY, jpeg_syntax, "YBR_FULL_422", j)
    dicom("dicom-jpeg-without-offset-table", LOSSY, jpeg_syntax, "YBR_FULL_422", j, table="none")
    dicom("dicom-jpeg-extended-offset-table", LOSSY, jpeg_syntax, "YBR_FULL_422", j, table="extended")
    dicom("dicom-jpeg-in-fragments", LOSSY, jpeg_syntax, "YBR_FULL_422", j, fragments=3)
    dicom("dicom-jpeg-sparse-backwards", LOSSY, jpeg_syntax, "YBR_FULL_422", j, sparse=True)
    dicom("dicom-jpeg2000", EXACT, j2k_syntax, "YBR_RCT", coded("JPEG2000", no_jp2=True))
    dicom("dicom-native", EXACT, ExplicitVRLittleEndian)
    dicom("dicom-native-implicit", EXACT, ImplicitVRLittleEndian)
    dicom("dicom-native-planar", EXACT, ExplicitVRLittleEndian, code=lambda t: t.transpose(2, 0, 1).tobytes(), planar=1)
    dicom("dicom-rle", EXACT, "1.2.840.10008.1.2.5", code=None)
    dicom("dicom-jpeg-ls", REFUSED, "1.2.840.10008.1.2.4.80", code=j)
    dicom("dicom-frame-missing", REFUSED, jpeg_syntax, "YBR_FULL_422", j, missing=1)
    return out


def cut(rgb, edge=TILE):
    for y in range(0, rgb.shape[0], edge):
        for x in range(0, rgb.shape[1], edge):
            tile = np.full((edge, edge, 3), 255, np.uint8)
            part = rgb[y : y + edge, x : x + edge]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def coded(kind, **how):
    def code(tile):
        out = io.BytesIO()
        Image.fromarray(tile).save(out, kind, **how)
        return out.getvalue()

    return code


def write_dicom(path, link, rgb, syntax, photometric, code, table="basic", fragments=1, sparse=False, planar=0, missing=0):
    """One instance, VL Whole Slide Microscopy, in a folder of its own, to which link leads."""
    tiles = list(cut(rgb))
    columns = -(-rgb.shape[1] // TILE)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.Modality = generate_uid(), generate_uid(), "SM"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.Rows = ds.Columns = TILE
    ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns = rgb.shape[:2]
    ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 3, 8, 8, 7, 0
    ds.PhotometricInterpretation, ds.PlanarConfiguration = photometric, planar
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [0.000499, 0.000499]
    shared.PixelMeasuresSequence = Sequence([measures])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    order = list(range(len(tiles) - missing))
    if sparse:
        order.reverse()
        frames = []
        for i in order:
            place, group = Dataset(), Dataset()
            place.RowPositionInTotalImagePixelMatrix, place.ColumnPositionInTotalImagePixelMatrix = i // columns * TILE + 1, i % columns * TILE + 1
            group.PlanePositionSlideSequence = Sequence([place])
            frames.append(group)
        ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    ds.NumberOfFrames = len(order)
    if code is None:  # pydicom's own coding
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.PixelData = b"".join(tiles[i].tobytes() for i in order)
        ds["PixelData"].VR = "OB"
        ds.compress(syntax)
    else:
        frames = [code(tiles[i]) for i in order]
        if syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            ds.PixelData = b"".join(frames)
        elif table == "extended":
            ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(frames)
        else:
            ds.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=table == "basic")
        ds["PixelData"].VR = "OB"
    path.parent.mkdir(exist_ok=True)
    pydicom.dcmwrite(path, ds, enforce_file_format=True, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    link.symlink_to(path)


if __name__ == "__main__":
    main()
