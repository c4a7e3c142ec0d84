"""What a file is counted for, against the memory that decoding it takes: all formats, all shapes."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
from fakes import image_bytes
from pictures import arithmetic, bmp, by_pillow, chunk, empty_scans, gif, lossless, png, turned_file
from PIL import Image

MIB = 1 << 20
SIDE = 16_384
# About 7.5 million pixels in the middle ones; GATEWAY_MAX_SIDE_PIXELS is the longest side.
SHAPES = [(3000, 2500), (SIDE, 458), (458, SIDE), (SIDE, 1), (1, SIDE)]


def frames_of(kind):
    def make(size):
        out = io.BytesIO()
        images = [Image.new("RGB", size, (value, 10, 99)) for value in (1, 200)]
        images[0].save(out, kind, save_all=True, append_images=images[1:], duration=10)
        return out.getvalue()

    return make


KINDS = {
    "jpeg 4:2:0": lambda size: by_pillow("JPEG", size),
    "jpeg 4:2:0 progressive": lambda size: by_pillow("JPEG", size, progressive=True),
    "jpeg 4:4:4 progressive": lambda size: by_pillow("JPEG", size, progressive=True, subsampling=0),
    "jpeg grey": lambda size: by_pillow("JPEG", size, "L"),
    "jpeg grey progressive": lambda size: by_pillow("JPEG", size, "L", progressive=True),
    "jpeg cmyk": lambda size: by_pillow("JPEG", size, "CMYK"),
    "jpeg cmyk progressive": lambda size: by_pillow("JPEG", size, "CMYK", progressive=True, subsampling=0),
    "jpeg of many scans": lambda size: empty_scans(size, 100, 3),
    "jpeg arithmetic": lambda size: arithmetic(size, 2),
    **{
        f"png {name}{' interlaced' if interlaced else ''}": lambda size, kind=kind, interlaced=interlaced: png(
            size, *kind, interlaced=interlaced
        )
        for name, kind in {
            "1 bit": (1, 0),
            "grey": (8, 0),
            "grey 16": (16, 0),
            "rgb": (8, 2),
            "rgb 16": (16, 2),
            "palette": (8, 3),
            "grey alpha": (8, 4),
            "grey alpha 16": (16, 4),
            "rgba": (8, 6),
            "rgba 16": (16, 6),
        }.items()
        for interlaced in (False, True)
    },
    "png palette transparent": lambda size: png(size, 8, 3, before=chunk(b"tRNS", bytes(range(256)))),
    "png grey transparent": lambda size: png(size, 8, 0, before=chunk(b"tRNS", b"\0\1")),
    "png rgb transparent": lambda size: png(size, 8, 2, before=chunk(b"tRNS", b"\0\1" * 3)),
    "png animated": frames_of("PNG"),
    "gif": gif,
    "gif transparent": lambda size: gif(size, transparent=1, disposal=2, interlaced=True),
    "gif animated": frames_of("GIF"),
    "bmp 1 bit": lambda size: bmp(size, 1),
    "bmp palette": lambda size: bmp(size, 8),
    "bmp rgb": lambda size: bmp(size, 24),
    "bmp rgba": lambda size: bmp(size, 32, 3),
    "webp": lambda size: by_pillow("WEBP", clipped(size), method=0),
    "webp alpha": lambda size: by_pillow("WEBP", clipped(size), "RGBA", method=0),
    "webp lossless": lambda size: by_pillow("WEBP", clipped(size), lossless=True, method=0),
    "webp lossless alpha": lambda size: by_pillow("WEBP", clipped(size), "RGBA", lossless=True, method=0),
    "webp of many prefix codes": lambda size: lossless(clipped(size), 3000),
    "webp animated": lambda size: frames_of("WEBP")(clipped(size)),
}


def clipped(size):
    """WebP's sides have 16,383 pixels at most."""
    return tuple(min(side, SIDE - 1) for side in size)


# How many groups of prefix codes there are is known only in decoding: 3,000 are counted, of 20 kB each.
MAY_BE_LOSSLESS = {name for name in KINDS if name.startswith("webp ")}

MEASURE = textwrap.dedent("""
    import pathlib, pickle, sys
    from clothing_gateway.image import decode

    def status(name):
        line = next(line for line in open("/proc/self/status") if line.startswith(name))
        return int(line.split()[1]) * 1024

    if sys.argv[2] == "False":
        decode.core = None
    resampling = sys.argv[3]
    files = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
    for number, data in enumerate(files):
        before = status("VmRSS")
        open("/proc/self/clear_refs", "w").write("5")
        header = decode.read_header(data, 1 << 40, 1 << 40, resampling, size=(299, 299))
        decode.decode(data, header, (299, 299))
        if number:  # the first one is to load what is loaded once
            print(status("VmHWM") - before, header.cost)
""")


# Those that the native core decodes, by Pillow as well.
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "core", "resampling", "turned"),
    [(name, True, "nearest", False) for name in KINDS]
    + [(name, False, "nearest", False) for name in KINDS if name.startswith("jpeg")]
    + [(name, True, "bicubic", False) for name in ("jpeg 4:2:0", "png rgb", "png rgba", "png palette")]
    + [(name, core, "lanczos", False) for name in ("jpeg 4:2:0 progressive", "jpeg grey") for core in (True, False)]
    + [("jpeg 4:2:0", False, "bicubic", turned) for turned in (True, False)]
    + [(name, True, "tf-bilinear", False) for name in ("jpeg 4:2:0", "png rgb")]
    + [(name, True, "tf-bilinear-antialias", False) for name in ("jpeg 4:2:0", "png palette")]
    + [(name, core, "nearest", True) for name in ("jpeg 4:2:0", "jpeg 4:2:0 progressive") for core in (True, False)]
    + [(name, True, "bicubic", True) for name in ("jpeg 4:2:0", "jpeg cmyk", "png rgb", "png palette", "webp")],
)
def test_decoding_takes_no_more_memory_than_it_is_counted_for(name, core, resampling, turned, tmp_path):
    file = tmp_path / "photos"
    files = [image_bytes(kind="PNG"), *(KINDS[name](shape) for shape in SHAPES)]
    if turned:
        files = [turned_file(data, 6) for data in files]
    file.write_bytes(pickle.dumps(files))
    # So that a decoding leaves nothing in the heap for the next one, which would not be measured.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, file, str(core), resampling],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    ).stdout.splitlines()
    measured = {shape: tuple(map(int, line.split())) for shape, line in zip(SHAPES, done, strict=True)}
    print({shape: f"{taken / MIB:.1f} of {counted / MIB:.1f} MiB" for shape, (taken, counted) in measured.items()})
    for shape, (taken, counted) in measured.items():
        assert taken <= counted, shape
        # And not far more, or photos would be refused for nothing.
        assert counted <= 2 * taken + (67 if name in MAY_BE_LOSSLESS else 4) * MIB, shape
