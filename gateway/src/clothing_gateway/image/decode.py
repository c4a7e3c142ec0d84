"""Image decoding: from a file's bytes to the pixels a model takes.

The steps and their order are those of keras-image-helper 0.0.2 (keras_image_helper/base.py, default_prepare_image),
with which the course's models were trained, so that the pixels are bit-identical: ``Image.open``, ``convert("RGB")``
where the mode is another, ``resize`` with NEAREST. What departs from them: photos that cameras stored turned are set
upright first, as ``ImageOps.exif_transpose`` does it; other filters (TensorFlow's: interpolation.py) and fits
(clothing_contract.fitting); JPEGs that libjpeg decodes at a fraction of their size (all of these are settings); and
grey PNGs of 16 bits, of which the upper 8 are taken, as Pillow does for colours and browsers for all: its own
conversion clips at 255, and so gives white. Transparency is dropped.

Plain JPEGs are decoded and resized by clothing_jpeg (../../jpeg), where it is installed: the same libjpeg, the same
pixels, without the whole picture in memory. All other files are decoded by Pillow, and so are plain JPEGs without
clothing_jpeg and for tf-bilinear-antialias.

What a file costs is known before it is decoded (layout.py), and decoding ends at the request's deadline: the native
core looks at the clock every few rows, Pillow wherever it reads the next 64 kB of the file.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
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
    WebPImagePlugin,  # noqa: F401
)

from clothing_contract.fitting import Axis, Fit, TooNarrowError
from clothing_contract.scaling import Scaling
from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import BrokenImage, GatewayError, NotAnImage, OutOfTime, TooManyPixels
from clothing_gateway.image import exif, interpolation, layout, turning

core: Any  # clothing_jpeg, or None
try:
    import clothing_jpeg

    # One of another release has other functions.
    core = clothing_jpeg if getattr(clothing_jpeg, "API", 1) == 3 else None
except ImportError:  # not built on this machine, or a Pillow whose libjpeg it can't use
    core = None

# The longer side, at most. Phones' panoramas have up to 16,382 pixels, WebP's own maximum is 16,383; a row costs Pillow
# memory and libjpeg time of its own, so that 50 Mi pixels in a column of one would take more than a GiB.
MAX_SIDE = 16_384
# Buffers that don't grow with the picture.
_CORE_FLAT = 1 << 20

# Formats that people send and the gateway doesn't decode, by their first bytes; HEIF's by their brand, below.
_OTHERS = (
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\1\0", "ICO"),
    (b"%PDF-", "PDF"),
    (b"8BPS", "PSD"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"\x1f\x8b", "compressed (gzip)"),
    (b"PK\3\4", "a ZIP archive"),
    (b"version https://git-lfs", "a Git LFS pointer"),
    (b"data:", "a data: URL"),
    (b"/9j/", "base64 text"),
    (b"iVBORw0KGgo", "base64 text"),
)
_PAGES = (b"<!doctype html", b"<html")
_VIDEO_BRANDS = (b"isom", b"iso2", b"mp4", b"avc1", b"qt  ", b"M4V", b"3g", b"dash")
_AVIF_BRANDS = {b"avif", b"avis"}
# mif1 and msf1 are HEIF's own, in which either lies.
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}

# The limit of pixels is ours (GATEWAY_MAX_PIXELS), checked on the header, before Pillow would warn of 89 million.
Image.MAX_IMAGE_PIXELS = None
# Harmless: it recommends another way to keep a palette's transparency, which is dropped here.
warnings.filterwarnings("ignore", message="Palette images with Transparency", module="PIL")

Pixels = npt.NDArray[np.uint8]
# Decodes a file by its header to what the axes keep, as ``by_pillow`` does.
Decoder = Callable[["bytes", "Header", "tuple[Axis, Axis] | None", "Deadline | None"], npt.NDArray[Any]]


def jpeg_decoder() -> str:
    """Name and version of the decoder of plain JPEGs, for logs.

    It is the native core and its libjpeg, or Pillow.
    """
    if core is None:
        return f"Pillow {PIL.__version__}"
    return f"clothing_jpeg {core.__version__}, {core.LIBJPEG}"


STRETCH = Fit()
TF_BILINEAR, TF_ANTIALIASED = "tf-bilinear", "tf-bilinear-antialias"
# Pillow's filters, and pixels from one's centre to its end.
_REACH = {"box": 0.5, "bilinear": 1, "hamming": 1, "bicubic": 2, "lanczos": 3}
_STRIP = 64  # rows of a picture that are taken out of Pillow at a time


@dataclass(frozen=True, slots=True)
class Header:
    """A file's header, read without decoding it."""

    format: str
    width: int  # pixels, as they are stored
    height: int
    cost: int  # bytes of memory that decoding it takes at most
    layout: layout.Layout | None  # for Pillow; None for a plain JPEG, which clothing_jpeg decodes
    resampling: str = "nearest"
    jpeg_scaling: bool = False
    orientation: int = exif.AS_STORED  # how the stored picture is turned
    fit: Fit = STRETCH

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height

    @property
    def plain(self) -> bool:
        """Whether clothing_jpeg decodes it."""
        return self.layout is None


def is_image(data: bytes) -> bool:
    """Whether a file begins as one of the supported formats does."""
    return _sniff(data) is not None


def read_header(
    data: bytes,
    max_pixels: int,
    max_cost: int,
    resampling: str = "nearest",
    *,
    jpeg_scaling: bool = False,
    exif_orientation: bool = True,
    fit: Fit = STRETCH,
    max_side: int = MAX_SIDE,
    size: tuple[int, int] | None = None,
) -> Header:
    """Read a file's header; raises over the limits.

    The limits are pixels, bytes of memory, and pixels of the longer side.

    ``size`` is the model's, to which other filters than NEAREST scale in two passes. ``exif_orientation`` sets photos
    upright that were stored turned.

    Reads at most layout.MAX_PARTS parts of the file, which takes under a millisecond, and decodes nothing. Raises
    NotAnImage, UnsupportedImage, BrokenImage, TooManyPixels or TooComplex.
    """
    kind = _sniff(data)
    if kind is None:
        other = _other(data)
        raise NotAnImage(other and f"The file is {other}; send JPEG, PNG, WebP, GIF or BMP.")
    plain, found = None, None
    if kind == "JPEG" and resampling != TF_ANTIALIASED and not jpeg_scaling:
        plain = _plain_header(data, exif_orientation=exif_orientation)
    if plain is not None:
        width, height, cost, turn = plain
    else:
        found = layout.read(data, kind)
        width, height, cost = found.width, found.height, found.memory + len(data)  # the decode process's copy
        turn = _orientation(data, found.exif) if exif_orientation else exif.AS_STORED
        if turn != exif.AS_STORED:
            cost += layout.rows(width, height, 4) + 16 * width  # a turned copy
    if size is not None and (resampling != "nearest" or fit.name != "stretch") and max(width, height) <= max_side:
        photo = turning.upright((width, height), turn)
        try:
            axes = fit.axes(photo, size, max_side)
        except TooNarrowError as error:
            raise TooManyPixels(str(error)) from None
        by_core = plain is not None and resampling in _REACH
        cost += _resampling_cost(photo, axes, resampling, turn) if by_core else _resizing_cost(photo, axes, resampling)
    header = Header(kind, width, height, cost, found, resampling, jpeg_scaling, turn, fit)
    if header.pixels > max_pixels:
        raise TooManyPixels(
            f"The photo has {header.width} x {header.height} pixels, and this gateway takes {max_pixels} at most."
        )
    if max(header.width, header.height) > max_side:
        raise TooManyPixels(f"The photo has {header.width} x {header.height} pixels; a side may have {max_side}.")
    if header.cost > max_cost:
        raise _too_much_memory(header)
    return header


def _too_much_memory(header: Header) -> TooManyPixels:
    return TooManyPixels(
        f"Decoding this {header.format} file of {header.width} x {header.height} pixels takes more memory than allowed."
    )


def scanned_pixels(data: bytes, header: Header) -> int:
    """Pixels that decoding visits: width times height, for each of a JPEG's scans.

    Raises TooComplex over the limit of scans. 20 MB take up to 0.2 s.
    """
    if header.format != "JPEG":
        return header.pixels
    return header.pixels * layout.count_scans(data, header.layout or layout.read(data, "JPEG"))


def _down_first(photo: tuple[int, int], axes: tuple[Axis, Axis]) -> bool:
    """Whether Pillow resizes the height first: since 13, ImagingResampleInner."""
    across, down = photo[0] - axes[0].resized, photo[1] - axes[1].resized
    return down > max(0, 2 * across)


def _resampling_cost(photo: tuple[int, int], axes: tuple[Axis, Axis], resampling: str, orientation: int) -> int:
    """Maximum bytes of memory for resizing in clothing_jpeg: rows and weights."""
    spans = [
        min(2 * math.ceil(_REACH[resampling] * max(axis.there / axis.resized, 1)) + 1, there)
        for there, axis in zip(photo, axes, strict=True)
    ]
    weights = sum(8 * span * axis.kept for span, axis in zip(spans, axes, strict=True))
    turned, down_first = turning.is_transposed(orientation), _down_first(photo, axes)
    first, last = (0, 1) if turned else (1, 0)  # which of the upright photo's axes is down in the stored one
    rows = 4 * (photo[last] if down_first != turned else axes[last].kept) + 64
    return spans[first] * rows + weights + 8 * (photo[last] + axes[last].kept)


def _resizing_cost(photo: tuple[int, int], axes: tuple[Axis, Axis], resampling: str) -> int:
    """Maximum bytes of memory for resizing.

    The decoded picture and the result of the course's way are not counted.
    """
    across, down = axes
    if resampling == "nearest":
        return layout.rows(across.resized, down.resized, 4)
    if resampling == TF_BILINEAR:  # two rows and columns for one, as uint8 and float32; left and right; top and bottom
        rows, columns = min(2 * down.kept, photo[1]), min(2 * across.kept, photo[0])
        pairs = 15 * rows * columns + 24 * rows * across.kept + 36 * down.kept * across.kept
        return pairs + 6 * min(_STRIP, photo[1]) * photo[0]
    if resampling == TF_ANTIALIASED:  # rows of float32, and results
        return 12 * down.kept * photo[0] + 60 * across.kept * down.kept + (3 + 3 + 12) * _STRIP * photo[0]
    between = (photo[0], down.resized) if _down_first(photo, axes) else (across.resized, photo[1])
    return layout.rows(*between, 4) + layout.rows(across.resized, down.resized, 4)


def decode(
    data: bytes,
    header: Header,
    size: tuple[int, int] | None,
    scaling: Scaling | None = None,
    deadline: Deadline | None = None,
    *,
    by: Decoder | None = None,
) -> npt.NDArray[Any] | None:
    """Decode to RGB pixels in ``size`` (width, height): uint8 (height, width, 3).

    With ``scaling`` they are preprocessed, as float32.

    Without a size the photo is decoded for verification only, and the result is None. ``by`` decodes what clothing_jpeg
    doesn't; by default Pillow does, in this process. Raises BrokenImage, TooComplex, or OutOfTime at the deadline.
    """
    by = by or by_pillow
    if size is None:
        if header.layout is None:
            _decode_plain(data, header, None, None, deadline)
        else:
            by(data, header, None, deadline)
        return None
    photo = turning.upright((header.width, header.height), header.orientation)
    across, down = header.fit.axes(photo, size)
    if header.layout is not None:
        pixels = by(data, header, (across, down), deadline)
    elif header.resampling == TF_BILINEAR:
        pixels = interpolation.bilinear(
            lambda rows, columns: _gather_plain(data, header, rows, columns, deadline), across, down
        )
    elif header.resampling in _REACH:
        pixels = _resampled_plain(data, header, photo, (across, down), deadline)
    elif scaling is None or scaling.channels == "grey":
        pixels = _nearest_plain(data, header, None, (across, down), deadline)
    else:
        return _nearest_plain(data, header, scaling, (across, down), deadline)
    pixels = _placed(pixels, across, down)
    if scaling is not None:
        return scaling.numbers(pixels)
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels).astype(np.uint8)


def _placed(pixels: npt.NDArray[Any], across: Axis, down: Axis) -> npt.NDArray[Any]:
    """What is kept of a photo in the model's picture, with black around it."""
    if pixels.shape[:2] == (down.size, across.size):
        return pixels
    out = np.zeros((down.size, across.size, 3), pixels.dtype)
    out[down.placed, across.placed] = pixels
    return out


def _plain_header(data: bytes, *, exif_orientation: bool) -> tuple[int, int, int, int] | None:
    """Header of a JPEG that clothing_jpeg decodes; None leaves it to Pillow.

    It is width, height, cost and orientation.
    """
    known = None if core is None else core.read_header(data)
    if known is None:
        return None
    width, height, _, memory, _, (start, end, segments) = known
    turn = exif.AS_STORED
    if segments and exif_orientation:
        turn = _orientation(data, (slice(start, end),) if segments == 1 else layout.read(data, "JPEG").exif)
    return width, height, memory + _CORE_FLAT, turn


def _orientation(data: bytes, parts: tuple[slice, ...]) -> int:
    return exif.orientation(b"".join(data[part] for part in parts)) if parts else exif.AS_STORED


class _File(io.BytesIO):
    """A file in memory that raises OutOfTime when it is read after the deadline."""

    def __init__(self, data: bytes, deadline: Deadline | None) -> None:
        super().__init__(data)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        if self._deadline is not None:
            self._deadline.require("decode the photo")
        return super().read(size)


def by_pillow(
    data: bytes, header: Header, axes: tuple[Axis, Axis] | None, deadline: Deadline | None = None
) -> npt.NDArray[Any]:
    """Decode by Pillow: what is kept of the resized photo, RGB (``shape_by_pillow``).

    Without ``axes`` the photo is decoded for verification only. Raises BrokenImage, TooComplex, or OutOfTime at the
    deadline, which Pillow looks at wherever it reads the file.
    """
    found = header.layout
    if found is None:
        raise ValueError("a plain JPEG, of which no parts are known")
    layout.count_scans(data, found)
    layout.require_few_groups(data, found)
    opened: Image.Image | None = None
    try:
        opened = Image.open(_File(layout.essence(data, found), deadline), formats=(header.format,))
        return _kept(opened, header, axes, deadline)
    except GatewayError:
        raise
    except MemoryError:
        raise _too_much_memory(header) from None
    except Exception as error:  # noqa: BLE001
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError and others over bad bytes.
        raise BrokenImage(cause=f"{type(error).__name__}: {error}") from None
    finally:
        if opened is not None:
            opened.close()  # frees its pixels before the next photo's turn, not with the last reference to it


def _kept(
    image: Image.Image, header: Header, axes: tuple[Axis, Axis] | None, deadline: Deadline | None
) -> npt.NDArray[Any]:
    if image.size != (header.width, header.height):
        raise BrokenImage(cause=f"Pillow finds {image.size} pixels, its header {header.width} x {header.height}")
    if header.jpeg_scaling and axes is not None and header.format == "JPEG":
        # The smallest of full, half, quarter and eighth whose part is not below the size.
        whole = turning.upright(image.size, header.orientation)
        wanted = [-(-axis.resized * photo // axis.there) for axis, photo in zip(axes, whole, strict=True)]
        image.draft(None, turning.upright((wanted[0], wanted[1]), header.orientation))
        now = turning.upright(image.size, header.orientation)
        axes = axes[0].of(whole[0], now[0]), axes[1].of(whole[1], now[1])
    if image.mode == "I;16":
        image = image.point(lambda value: value / 256)
    if image.mode != "RGB":
        image = image.convert("RGB")
    else:
        image.load()
    if axes is None:
        return np.empty(0, np.uint8)
    if header.orientation != exif.AS_STORED:
        image = image.transpose(turning.METHODS[header.orientation])
    return _resize(image, header.resampling, axes, deadline)


def shape_by_pillow(header: Header, axes: tuple[Axis, Axis] | None) -> tuple[tuple[int, ...], type[np.generic]]:
    """Shape and dtype of the result of ``by_pillow``."""
    if axes is None:
        return (0,), np.uint8
    across, down = axes
    return (down.kept, across.kept, 3), np.float32 if header.resampling in (TF_BILINEAR, TF_ANTIALIASED) else np.uint8


def _resize(
    image: Image.Image, resampling: str, axes: tuple[Axis, Axis], deadline: Deadline | None
) -> npt.NDArray[Any]:
    across, down = axes
    if resampling == TF_BILINEAR:
        return interpolation.bilinear(lambda rows, columns: _gather(image, rows, columns, deadline), across, down)
    if resampling == TF_ANTIALIASED:
        strips = (strip for _, strip in _strips(image, deadline))
        return interpolation.antialiased(strips, across, down)
    # As load_img(keep_aspect_ratio=True): filters see the pixels around the part, too.
    part = across.start, down.start, across.start + across.there, down.start + down.there
    resized = image.resize((across.resized, down.resized), Image.Resampling[resampling.upper()], part)
    if (across.kept, down.kept) != resized.size:
        left, top = across.first, down.first
        resized = resized.crop((left, top, left + across.kept, top + down.kept))
    return np.asarray(resized)


def _strips(image: Image.Image, deadline: Deadline | None) -> Iterator[tuple[int, Pixels]]:
    """Iterate over strips of a picture's rows, each with its first row's number.

    So there is no second copy of all rows.
    """
    for top in range(0, image.height, _STRIP):
        if deadline is not None:
            deadline.require("decode the photo")
        yield top, np.asarray(image.crop((0, top, image.width, min(top + _STRIP, image.height))))


def _gather(image: Image.Image, rows: turning.Places, columns: turning.Places, deadline: Deadline | None) -> Pixels:
    out = np.empty((len(rows), len(columns), 3), np.uint8)
    for top, strip in _strips(image, deadline):
        first, last = np.searchsorted(rows, (top, top + len(strip)))
        if first < last:
            out[first:last] = strip[rows[first:last] - top][:, columns]
    return out


def _nearest_plain(
    data: bytes, header: Header, scaling: Scaling | None, axes: tuple[Axis, Axis], deadline: Deadline | None
) -> npt.NDArray[Any]:
    """The whole model's picture; what is no photo is black."""
    across, down = axes
    table = None if scaling is None else scaling.table
    out = np.empty((down.size, across.size, 3), np.uint8 if table is None else np.float32)
    if (across.kept, down.kept) != (across.size, down.size):
        out[...] = 0 if table is None else table.values[0]
    stored = header.width, header.height
    width, height = turning.upright(stored, header.orientation)
    taken = turning.turned(
        out[down.placed, across.placed],
        turning.nearest(down.resized, down.start, down.there, height)[down.taken],
        turning.nearest(across.resized, across.start, across.there, width)[across.taken],
        stored,
        header.orientation,
    )
    if table is not None and table.reverse:
        taken = taken._replace(out=taken.out[..., ::-1])  # in which red, which is decoded first, comes last
    _decode_plain(data, header, taken, None if table is None else table.by_source, deadline)
    return out


def _gather_plain(
    data: bytes, header: Header, rows: turning.Places, columns: turning.Places, deadline: Deadline | None
) -> Pixels:
    out = np.empty((len(rows), len(columns), 3), np.uint8)
    taken = turning.turned(out, rows, columns, (header.width, header.height), header.orientation)
    _decode_plain(data, header, taken, None, deadline)
    return out


def _resampled_plain(
    data: bytes, header: Header, photo: tuple[int, int], axes: tuple[Axis, Axis], deadline: Deadline | None
) -> Pixels:
    across, down = axes
    out = np.empty((down.kept, across.kept, 3), np.uint8)
    stored = header.width, header.height
    taken = turning.resampled(
        turning.Resampled(
            out,
            _spans(header.resampling, photo[1], down),
            _spans(header.resampling, photo[0], across),
            _down_first(photo, axes),
        ),
        stored,
        header.orientation,
    )
    _call_core(core.resample, data, header, taken, deadline)
    return out


def _spans(resampling: str, photo: int, axis: Axis) -> turning.Spans:
    """Weights of one direction: 30 us for 4,000 pixels by bilinear, 300 by lanczos."""
    starts, weights = core.weights(resampling, photo, axis.start, axis.there, axis.resized, axis.first, axis.kept)
    return turning.Spans(np.frombuffer(starts, np.int32), np.frombuffer(weights, np.int32).reshape(axis.kept, -1))


def _decode_plain(
    data: bytes,
    header: Header,
    taken: turning.Taken | None,
    table: npt.NDArray[np.float32] | None,
    deadline: Deadline | None,
) -> None:
    """Decode by clothing_jpeg; without ``taken`` for nothing but the verdict."""
    _call_core(core.decode, data, header, (*(taken or (None, None, None)), table), deadline)


def _call_core(
    function: Callable[..., None],
    data: bytes,
    header: Header,
    arguments: tuple[Any, ...],
    deadline: Deadline | None,
) -> None:
    """Call clothing_jpeg with the limits; raises our errors for its own."""
    scans = layout.most_scans(header.width, header.height)
    try:
        function(data, *arguments, scans, None if deadline is None else deadline.require("decode the photo"))
    except core.BrokenJpeg as error:
        raise BrokenImage(cause=f"libjpeg: {error}") from None
    except core.TooManyScans as error:
        raise layout.too_many_scans(str(error)) from None
    except TimeoutError:
        raise OutOfTime("The time allowed for this request ran out before it could decode the photo.") from None


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


def _other(data: bytes) -> str | None:
    """The name of a format that isn't decoded, by the file's first bytes."""
    if data[4:8] == b"ftyp":
        brands = {data[at : at + 4] for at in (8, *range(16, min(int.from_bytes(data[:4]), 64), 4))}
        if data[8:12] in _AVIF_BRANDS or (data[8:12] in _HEIF_BRANDS and brands & _AVIF_BRANDS):
            return "AVIF"
        if data[8:12] in _HEIF_BRANDS:
            return "HEIC"
        return "a video" if data[8:12].startswith(_VIDEO_BRANDS) else None
    if not data:
        return "empty"
    head = data[:1024].lstrip()
    if head[:14].lower().startswith(_PAGES):
        return "a web page"
    if head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in head):
        return "SVG"
    return next((name for start, name in _OTHERS if data.startswith(start)), None)
