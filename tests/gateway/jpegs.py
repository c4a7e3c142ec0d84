"""JPEGs of all kinds, ways to damage them, and what Pillow alone makes of each."""

from __future__ import annotations

import random
import struct

import numpy as np
from fakes import image_bytes
from PIL import Image

from clothing_contract import PREPROCESSINGS
from clothing_contract.scaling import Scaling
from clothing_gateway.errors import GatewayError
from clothing_gateway.image import decode as decoding

MAX_PIXELS = 52 << 20
TF = Scaling("tf")
PREPARATIONS = (None, *map(Scaling, PREPROCESSINGS), Scaling("rescale", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bgr"))


def with_frame(data, *, size=None, sampling=()):
    """The same scan under another frame header: Pillow writes only three kinds of sampling, and decodes all."""
    data = bytearray(data)
    at = next(at for kind in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2") if (at := data.find(kind)) >= 0)
    if size is not None:
        data[at + 5 : at + 9] = struct.pack(">HH", size[1], size[0])
    for component, factors in enumerate(sampling):
        data[at + 11 + 3 * component] = factors
    return bytes(data)


def non_interleaved(data):
    """A baseline file whose first scan claims to hold one component of three: the others are missing."""
    at = data.index(b"\xff\xda")
    return data[:at] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + data[at + 14 :]


def with_segment(data, marker, body):
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def exif_block(orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x011A] = 72.0
    exif[0x0128] = 2
    return exif.tobytes()


def corpus():
    """Name and file. The sizes are odd and small: 8, 16 and 32 are where libjpeg's blocks end."""
    kinds = {
        "4:2:0": image_bytes((123, 77), subsampling=2),
        "4:2:2": image_bytes((123, 77), subsampling=1),
        "4:4:4": image_bytes((123, 77), subsampling=0),
        "noise": image_bytes((90, 160), seed=5, quality=98),
        "progressive": image_bytes((123, 77), progressive=True),
        "progressive 4:4:4": image_bytes((123, 77), progressive=True, subsampling=0),
        "optimised": image_bytes((123, 77), optimize=True, quality=95),
        "restarts": image_bytes((123, 177), restart_marker_blocks=2),
        "restarts in each row": image_bytes((64, 300), restart_marker_rows=1),
        "grey": image_bytes((123, 77), mode="L"),
        "grey tall": image_bytes((50, 400), mode="L"),
        "grey progressive": image_bytes((123, 77), mode="L", progressive=True),
        "cmyk": image_bytes((64, 48), mode="CMYK"),
        "rgb": image_bytes((64, 200), keep_rgb=True),
        "turned": image_bytes((60, 40), exif=exif_block()),
        "profile": image_bytes((60, 40), icc_profile=b"x" * 70_000, comment=b"c"),
        "tall": image_bytes((40, 900)),
        "tall progressive": image_bytes((40, 900), progressive=True),
        "tall 4:4:4": image_bytes((40, 900), subsampling=0),
        "tall 4:2:2": image_bytes((40, 900), subsampling=1),
        "wide": image_bytes((900, 17)),
        "pieces": image_bytes((400, 700), quality=98),  # more than one of the pieces in which libjpeg gets it
    }
    kinds["4:4:0"] = with_frame(image_bytes((192, 128), subsampling=1), size=(96, 256), sampling=[0x12])
    kinds["4:1:1"] = with_frame(image_bytes((64, 64), subsampling=2), size=(128, 32), sampling=[0x41])
    kinds["1x4"] = with_frame(image_bytes((64, 512), subsampling=2), size=(32, 1024), sampling=[0x14])
    kinds["grey 2x2"] = with_frame(kinds["grey tall"], sampling=[0x22])
    kinds["grey 4x4"] = with_frame(kinds["grey tall"], sampling=[0x44])
    kinds["one component of three"] = non_interleaved(kinds["4:4:4"])
    kinds["adobe rgb transform"] = with_segment(kinds["4:4:4"], 0xEE, b"Adobe\0\x64\0\0\0\0\0")
    kinds["adobe ycc transform"] = with_segment(kinds["4:2:0"], 0xEE, b"Adobe\0\x64\0\0\0\0\x01")
    kinds["photoshop"] = with_segment(
        kinds["4:2:0"], 0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10" + struct.pack(">IHHIHH", 1, 2, 3, 4, 5, 6)
    )
    for side in (1, 7, 8, 9, 15, 16, 17, 31, 33):
        kinds[f"{side} square"] = image_bytes((side, side), seed=side)
        kinds[f"{side} high"] = image_bytes((11, side), seed=side, subsampling=side % 3)
    return kinds


def decode(data, size, prepare, resampling="nearest", fit=decoding.STRETCH):
    """The numbers, or the kind of error."""
    try:
        header = decoding.read_header(data, MAX_PIXELS, 1 << 40, resampling, fit=fit)
        return decoding.decode(data, header, size, prepare)
    except GatewayError as error:
        return type(error)


def decode_by_pillow(data, *arguments):
    """The same without the native core."""
    core, decoding.core = decoding.core, None
    try:
        return decode(data, *arguments)
    finally:
        decoding.core = core


def same(one, other):
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one.view(np.uint8), other.view(np.uint8))
    return one is other


def damage(data, rng: random.Random, others):  # noqa: C901, PLR0912 - a branch for each way
    """One file with a few things wrong."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data)) if rng.random() < 0.6 else rng.randrange(min(len(data), 700))
        kind = rng.randrange(12)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.choice((1, 2, 3, 17, 200))]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 3, 17, 200)))
        elif kind == 5:
            data[at : at + 2] = bytes((0xFF, rng.choice((*range(0xC0, 0x100), 0x00, 0x01))))
        elif kind == 6:
            data[at:at] = bytes((0xFF, rng.choice((0xD0, 0xD3, 0xD7, 0xD8, 0xD9, 0xDA, 0xC4, 0xDC, 0xFF, 0x00))))
        elif kind == 7:
            other = rng.choice(others)
            data[at:] = other[rng.randrange(len(other)) :]
        elif kind == 8:
            data[at : at + 40] = bytes(len(data[at : at + 40]))
        elif kind == 9:
            start = rng.randrange(len(data))
            data[at:at] = data[start : start + rng.choice((4, 64, 1000))]
        elif kind == 10:
            frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
            if 0 < frame < len(data) - 19:
                data[frame + rng.randrange(2, 19)] = rng.choice((0, 1, 2, 3, 4, 8, 17, 18, 33, 34, 65, 20, 255))
        else:
            scan = data.find(b"\xff\xda", rng.randrange(len(data)))
            if 0 < scan < len(data) - 14:
                data[scan + rng.randrange(2, 14)] = rng.choice((0, 1, 2, 3, 12, 63, 17, 255))
        if not data:
            data = bytearray(b"\xff\xd8\xff")
    return bytes(data)
