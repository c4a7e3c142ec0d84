"""From a file's bytes to the pixels a model wants.

The steps and their order are those of keras-image-helper 0.0.2 (keras_image_helper/base.py, default_prepare_image),
with which the course's models were trained, so that the pixels are the same bit for bit: ``Image.open``,
``convert("RGB")`` where the mode is another, ``resize`` with NEAREST. Two settings depart from them: another filter
than NEAREST, and JPEGs that libjpeg decodes at a part of their size. Nothing is turned by its EXIF orientation, and
transparency is dropped.

Plain JPEGs are decoded by clothing_jpeg (../../jpeg), where it is installed: the same libjpeg, the same pixels, without
the whole picture in memory. Everything else, and without it everything, is Pillow's.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL

# The five plugins by name: without them the first photo makes Pillow load all forty.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from clothing_gateway.errors import BrokenImage, NotAnImage, TooManyPixels
from clothing_gateway.image import preprocessing

core: Any  # clothing_jpeg, or None
try:
    import clothing_jpeg

    core = clothing_jpeg
except ImportError:  # not built on this machine, or a Pillow whose libjpeg it can't use
    core = None

# What browsers show. Pillow reads forty more, and all its holes of the last years were in those (FITS, PSD, PDF, EPS…).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# Measured peak of memory while decoding and converting to RGB, in bytes per pixel, rounded up;
# tests/gateway/image/test_decode.py measures again. Pillow holds RGB in 4 bytes, a second copy in another mode and WebP's
# canvases come on top.
_COST = {"PNG": 9, "WEBP": 17, "GIF": 6, "BMP": 9}
# Small photos cost more per pixel than large ones: buffers that don't grow with the picture.
_COST_FLAT = 1 << 20

# The limit of pixels is ours (GATEWAY_MAX_PIXELS), checked on the header, before Pillow would warn of 89 million.
Image.MAX_IMAGE_PIXELS = None
# Harmless, and about how a palette's transparency would have been kept better by those who keep it.
warnings.filterwarnings("ignore", message="Palette images with Transparency", module="PIL")

Pixels = npt.NDArray[np.uint8]


def jpeg_decoder() -> str:
    """What decodes plain JPEGs, for people: the native core and its libjpeg, or Pillow."""
    if core is None:
        return f"Pillow {PIL.__version__}"
    return f"clothing_jpeg {core.__version__}, {core.LIBJPEG}"


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about itself, read without decoding it."""

    format: str
    width: int
    height: int
    cost: int  # bytes of memory that decoding it takes at most
    image: Image.Image | None  # open and not yet decoded; None where opening alone would take that memory
    plain: bool = False  # a JPEG that clothing_jpeg decodes
    resampling: str = "nearest"  # how it will be brought to its size; what is decoded, and how, hangs on it
    jpeg_scaling: bool = False

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height


def read_header(
    data: bytes, max_pixels: int, max_cost: int, resampling: str = "nearest", *, jpeg_scaling: bool = False
) -> Header:
    """What the file is and how large, or the error that says why it can't be taken."""
    kind = _sniff(data)
    if kind is None:
        raise NotAnImage
    header = None
    if kind == "JPEG" and resampling == "nearest" and not jpeg_scaling:
        header = _plain_header(data)
    if header is None:
        header = _header(data, kind, resampling, jpeg_scaling=jpeg_scaling)
    if header.pixels > max_pixels:
        raise TooManyPixels(
            f"The photo has {header.width} x {header.height} pixels, and this gateway takes {max_pixels} at most."
        )
    if header.cost > max_cost:
        raise TooManyPixels(
            f"Decoding this {kind} file of {header.width} x {header.height} pixels takes more memory than allowed."
        )
    return header


def decode(
    data: bytes, header: Header, size: tuple[int, int] | None, prepare: str | None = None
) -> npt.NDArray[Any] | None:
    """RGB pixels in ``size`` (width, height), as an array of height x width x 3, by ``prepare`` made into float32.

    With no size the photo is decoded all the same, to know that it can be, and thrown away.
    """
    if header.plain:
        return _decode_plain(data, size, prepare)
    opened = image = header.image or _open(data)
    try:
        if header.jpeg_scaling and size is not None and header.format == "JPEG":
            image.draft(None, size)  # the smallest of full, half, quarter and eighth that is not below the size
        if image.mode != "RGB":
            image = image.convert("RGB")
        else:
            image.load()
        if size is None:
            return None
        pixels = np.asarray(image.resize(size, Image.Resampling[header.resampling.upper()]))
    except Exception as error:  # noqa: BLE001
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError and others over bad bytes.
        raise BrokenImage(cause=f"{type(error).__name__}: {error}") from None
    finally:
        opened.close()  # its pixels are free before the next photo's turn, not when the last name of it goes
    return pixels if prepare is None else preprocessing.BY_NAME[prepare](pixels)


def _plain_header(data: bytes) -> Header | None:
    """The header of a JPEG that clothing_jpeg decodes, or None: then it is Pillow's."""
    known = None if core is None else core.read_header(data)
    if known is None:
        return None
    width, height, _, memory, reads_exif = known
    if reads_exif:
        # Pillow looks for the resolution in there, and refuses a file in which it trips over that.
        _open(data).close()
    return Header("JPEG", width, height, cost=memory + _COST_FLAT, image=None, plain=True)


def _decode_plain(data: bytes, size: tuple[int, int] | None, prepare: str | None) -> npt.NDArray[Any] | None:
    table = None if prepare is None else preprocessing.TABLES[prepare]
    out: npt.NDArray[Any] | None = None
    if size is not None:
        out = np.empty((size[1], size[0], 3), np.uint8 if table is None else np.float32)
    try:
        core.decode(
            data, out, size or (0, 0), None if table is None else table.values, table is not None and table.reverse
        )
    except core.BrokenJpeg as error:
        raise BrokenImage(cause=f"libjpeg: {error}") from None
    return out


def _header(data: bytes, kind: str, resampling: str, *, jpeg_scaling: bool) -> Header:
    image: Image.Image | None = None
    if kind == "WEBP":
        size = _webp_size(data)
        cost = _COST["WEBP"]
    else:
        image = _open(data)
        size = image.size
        cost = _COST[kind] if kind != "JPEG" else _jpeg_cost(image.mode, several_scans=_has_several_scans(data))
    cost = size[0] * size[1] * cost + _COST_FLAT
    return Header(kind, *size, cost, image, resampling=resampling, jpeg_scaling=jpeg_scaling)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BrokenImage(cause="its header can't be read") from None
    except Exception as error:  # noqa: BLE001 - as above
        raise BrokenImage(cause=f"{type(error).__name__}: {error}") from None


def _sniff(data: bytes) -> str | None:
    """The format by the file's first bytes, as Pillow's own plugins tell them."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    return None


def _webp_size(data: bytes) -> tuple[int, int]:
    """A WebP file's size from its first chunk: opening it in Pillow already makes room for all its pixels.

    Layouts: RFC 9649, sections 2.5 to 2.7 (VP8, VP8L, VP8X).
    """
    chunk, start = data[12:16], data[20:30]
    if len(start) == 10:
        if chunk == b"VP8 " and start[3:6] == b"\x9d\x01\x2a":
            return int.from_bytes(start[6:8], "little") & 0x3FFF, int.from_bytes(start[8:10], "little") & 0x3FFF
        if chunk == b"VP8L" and start[0] == 0x2F:
            bits = int.from_bytes(start[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if chunk == b"VP8X":
            return int.from_bytes(start[4:7], "little") + 1, int.from_bytes(start[7:10], "little") + 1
    raise BrokenImage(cause="no WebP header")


def _jpeg_cost(mode: str, *, several_scans: bool) -> int:
    """Bytes per pixel while a JPEG is decoded (in several scans: with all its coefficients), then converted."""
    bands, decoded = {"RGB": (3, 4), "L": (1, 1)}.get(mode, (4, 4))
    decoding = decoded + (2 * bands if several_scans else 0)
    converting = decoded + (0 if mode == "RGB" else 4)
    return max(decoding, converting) + 1


def _has_several_scans(data: bytes) -> bool:
    """Whether libjpeg will keep all coefficients of a JPEG in memory: progressive, or components in scans of their own.

    Walks the segments up to the first scan's header (ITU-T T.81, annex B).
    """
    components = 0
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            at += 1
            continue
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # fill bytes and markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        body = at + 4
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            if marker & 0x03 == 2:  # progressive: C2, C6, CA, CE
                return True
            components = data[body + 5] if body + 5 < len(data) else 0
        elif marker == 0xDA:  # start of scan
            return body >= len(data) or data[body] < components
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return True  # no scan where one should be: let it count as the dearer kind
