"""File layout: format, size, memory cost, and parts with pixels.

It is read before any pixel is decoded.

Pillow keeps each segment, chunk and comment of a file, inflates some, and parses EXIF blocks whose entries may all name
the same 64 kB. None of it changes a pixel. So the chain of a file's parts is walked here, up to the first pixels and at
most MAX_PARTS long, and Pillow gets a file of those parts that decide about pixels (``essence``). Metadata is neither
parsed nor inflated, and its bytes are not limited: phones write megabytes (depth maps in XMP, C2PA manifests). Where
the EXIF block lies is noted, for the one tag that is read of it (exif.py).

Sources: ITU-T T.81, annex B (JPEG); PNG (third edition), sections 5 and 11; RFC 9649 (WebP); GIF89a; the headers of
Pillow's plugins for what of it Pillow reads.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from clothing_gateway.errors import BrokenImage, TooComplex, UnsupportedImage
from clothing_gateway.image import vp8l

# Segments, chunks or blocks before the pixels. Each costs up to 1 us here. A phone's photo has 10 to 30, one with a
# depth map of 6 MB in its XMP 100 more.
MAX_PARTS = 1000
# Sub-blocks of GIF's extensions, 255 bytes each at most: an ICC profile of 560 kB takes 2,200.
MAX_SUB_BLOCKS = 10_000
# Chunks with a PNG's pixels; libpng writes 8 kB into each, so a file of 20 MB has 2,560.
MAX_PIXEL_CHUNKS = 20_000
# Scans of a JPEG, each of which visits all blocks of a component and may take no more than 82 bytes of the file for
# it. Encoders write 10 (jpegtran -optimize at most 64); libjpeg-turbo's own fuzzers stop at 100 or 500.
MAX_SCANS = 100
# Segments of a JPEG from its first scan on: each scan may bring tables with it.
MAX_SCAN_SEGMENTS = 1000
# Blocks of 64 pixels of all scans: a scan that refines coefficients takes 46 ns for each, so 100 scans of 50 megapixels
# in 9 kB took 4 s. 50 megapixels may have 24 scans, 12 megapixels 100.
MAX_SCANNED_BLOCKS = 20_000_000

# Blocks of all scans with arithmetic coding, in which a block may take no bit of the file: 250 ns each with random
# data, and more in a stream made for it. A photo of 25 megapixels may have 10 scans.
MAX_ARITHMETIC_BLOCKS = 4_000_000
# Bytes of a JPEG's tables, JFIF and Adobe segments before the pixels. Pillow parses quantisation tables in Python,
# 10 us for 65 bytes. Encoders write under 2 kB, and up to 64 kB more with a thumbnail in JFIF.
MAX_TABLE_BYTES = 1 << 18

# Buffers that don't grow with the picture: zlib's, libjpeg's, libwebp's, and Pillow's pieces of the file.
_FLAT = 1 << 20


# Bytes of a decoded pixel, and whether it still has to be converted to RGB.
_RGB = 4
_CONVERTED = 5  # RGBA, LA, CMYK: four bytes as well


@dataclass(frozen=True, slots=True)
class Layout:
    """A file's header."""

    format: str
    width: int  # pixels
    height: int
    memory: int  # bytes that decoding and converting to RGB take at most
    kept: tuple[slice, ...]  # the parts that decide about pixels, up to those that hold them
    pixels_at: int  # offset of the part at which the pixels begin
    scans_at: int | None = None  # of a JPEG in several scans: offset of the first one's header
    arithmetic: bool = False  # a JPEG with arithmetic coding
    exif: tuple[slice, ...] = ()  # the parts whose bytes, joined, are the EXIF block


def read(data: bytes, kind: str) -> Layout:
    """Read the layout of a file of one of the five formats.

    Raises BrokenImage, UnsupportedImage or TooComplex.
    """
    try:
        layout = _READERS[kind](data)
    except (IndexError, struct.error):
        raise BrokenImage(cause="its header is cut off") from None
    if not (layout.width and layout.height):
        raise BrokenImage(cause="a picture without pixels")
    return layout


def essence(data: bytes, layout: Layout) -> bytes:
    """The file without its metadata, for Pillow."""
    if layout.format == "PNG":
        return _png_essence(data, layout)
    if layout.format == "WEBP":
        return _webp_essence(data, layout)
    if len(layout.kept) == 1:
        return data
    return b"".join(data[part] for part in layout.kept)


def rows(width: int, height: int, pixel_bytes: int) -> int:
    """Bytes of an image in Pillow (Storage.c): padded rows and their pointers.

    A row is padded to 4 bytes.
    """
    return height * (8 + (width * pixel_bytes + 3 & ~3))


def _memory(width: int, height: int, pixel_bytes: int, copies: int, decoder: int = 0) -> int:
    """Bytes of memory while an image is decoded and converted.

    An image that isn't RGB (``pixel_bytes`` 4 and more) is converted.

    ``decoder`` is freed before the conversion; ``copies`` are bytes of the file that stay until its end.
    """
    decoded = rows(width, height, min(pixel_bytes, 4))
    converted = 0 if pixel_bytes == _RGB else rows(width, height, 4)
    return decoded + max(decoder, converted) + copies + _FLAT


def _merged(parts: list[slice]) -> tuple[slice, ...]:
    """The same parts, those that follow on each other as one."""
    merged = parts[:1]
    for part in parts[1:]:
        if part.start == merged[-1].stop:
            merged[-1] = slice(merged[-1].start, part.stop)
        else:
            merged.append(part)
    return tuple(merged)


def _too_many(what: str) -> TooComplex:
    return TooComplex(f"The file has too many {what}; save it without metadata.")


# ---- JPEG ----

_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # baseline, extended, progressive; the last two with arithmetic coding
_PROGRESSIVE, _ARITHMETIC = {0xC2, 0xCA}, {0xC9, 0xCA}
_NO_FRAMES = {0xC4, 0xC8, 0xCC}  # between C0 and CF, other segments
# Quantisation and Huffman tables, arithmetic conditioning, restart interval; JFIF and Adobe decide about colours.
_JPEG_KEPT = {0xDB, 0xC4, 0xCC, 0xDD, 0xE0, 0xEE}
_JPEG_LS = 0xF7  # its frame (T.87), which is lossless
_JPEG_EXIF = b"Exif\0\0"
# A marker within or behind entropy-coded data: no stuffed zero, fill byte or restart.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_WINDOW = 1 << 16


def _jpeg(data: bytes) -> Layout:
    kept, exif = [slice(0, 2)], list[slice]()
    frame: bytes | None = None
    kind = 0
    at = 2
    for _ in range(MAX_PARTS):
        at = data.find(b"\xff", at)
        if at < 0:
            raise BrokenImage(cause="no scan")
        marker = data[at + 1]
        if marker <= 0x01 or marker == 0xFF or 0xD0 <= marker <= 0xD8:  # fill bytes and markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        start, length = at, int.from_bytes(data[at + 2 : at + 4])
        at += 2 + max(length, 2)
        if (0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES) or marker == _JPEG_LS:
            if frame is not None:
                raise BrokenImage(cause="two frames")
            frame, kind = _jpeg_frame(data[start + 4 : at], marker), marker
        elif marker == 0xDA:
            return replace(_jpeg_layout(frame, [*kept, slice(start, None)], data, kind), exif=tuple(exif))
        elif marker == 0xD9:
            raise BrokenImage(cause="its end before a scan")
        elif marker == 0xE1 and data[start + 4 : start + 10] == _JPEG_EXIF:
            exif.append(slice(start + 10 if exif else start + 4, at))  # joined, under the first one's prefix
        if marker in _JPEG_KEPT or marker in _FRAMES:
            kept.append(slice(start, at))
    raise _too_many("segments")


def _jpeg_frame(frame: bytes, marker: int) -> bytes:
    if marker not in _FRAMES:
        raise UnsupportedImage("Lossless and hierarchical JPEGs are not supported; save it as baseline.")
    if frame[0] != 8:
        raise UnsupportedImage(f"JPEGs of {frame[0]} bits are not supported; save it with 8.")
    if frame[5] not in (1, 3, 4) or len(frame) != 6 + 3 * frame[5]:
        raise BrokenImage(cause=f"{frame[5]} components")
    return frame


def _jpeg_layout(frame: bytes | None, kept: list[slice], data: bytes, kind: int) -> Layout:
    """Layout of a JPEG from its frame, the frame's kind, and the parts kept.

    The last part begins with the first scan's header.
    """
    if frame is None:
        raise BrokenImage(cause="a scan before the frame")
    scan = kept[-1].start
    several = kind in _PROGRESSIVE or data[scan + 4] < frame[5]
    height, width, components = struct.unpack_from(">HHB", frame, 1)
    factors = [divmod(frame[7 + 3 * index], 16) for index in range(components)]
    if not all(1 <= horizontal <= 4 and 1 <= vertical <= 4 for horizontal, vertical in factors):
        raise BrokenImage(cause="sampling factors")
    h_max, v_max = max(h for h, _ in factors), max(v for _, v in factors)
    across, down = -(-width // (8 * h_max)), -(-height // (8 * v_max))  # blocks of all components (MCUs)
    blocks = sum(h * v for h, v in factors)
    # jdmainct.c keeps 8 + 2 groups of rows in the sizes of the components (12 here, for the pointers to them),
    # jdsample.c one group in full width; a file in several scans keeps all its coefficients, 64 of 2 bytes a block.
    decoder = across * 8 * h_max * (components * v_max + 4) + across * 8 * blocks * 12
    if several:
        decoder += across * down * blocks * 128
    pixel = {1: 1, 3: _RGB, 4: _CONVERTED}[components]
    if sum(part.stop - part.start for part in kept[:-1]) > MAX_TABLE_BYTES:
        raise _too_many("tables")
    parts = _merged(kept)
    memory = _memory(width, height, pixel, len(data) if len(parts) > 1 else 0, decoder)
    scans_at = scan if several else None
    return Layout("JPEG", width, height, memory, parts, scan, scans_at, arithmetic=kind in _ARITHMETIC)


def count_scans(data: bytes, layout: Layout) -> int:
    """Scans of a JPEG, counted as libjpeg meets them; TooComplex for too many.

    Searches in windows, so that other threads run meanwhile: 20 MB of stuffed zeros take 0.2 s.
    """
    if layout.scans_at is None:
        return 1
    limit = most_scans(layout.width, layout.height, arithmetic=layout.arithmetic)
    at, scans = layout.scans_at, 0
    for _ in range(MAX_SCAN_SEGMENTS + 1):  # and the end of the picture
        found = None
        while found is None:
            found = _MARKER.search(data, at, at + _WINDOW)
            if found is None:
                at += _WINDOW - 1
                if at >= len(data):
                    return scans
        marker, at = data[found.start() + 1], found.end()
        if marker == 0xD9:
            return scans
        if marker >= 0xC0 and marker != 0xD8:  # one with a length; libjpeg refuses 01 to BF or searches on behind them
            scans += marker == 0xDA
            if scans > limit:
                raise too_many_scans(f"more than {limit} scans")
            at += max(int.from_bytes(data[at : at + 2]), 2)
    raise too_many_scans(f"more than {MAX_SCAN_SEGMENTS} segments")


def most_scans(width: int, height: int, *, arithmetic: bool = False) -> int:
    """Scans that a JPEG of this size may have."""
    blocks = MAX_ARITHMETIC_BLOCKS if arithmetic else MAX_SCANNED_BLOCKS
    return max(min(MAX_SCANS, blocks * 64 // (width * height)), 1)


def too_many_scans(excess: str) -> TooComplex:
    """The error for a JPEG with too many scans, or segments between them."""
    return TooComplex(f"The JPEG has {excess}; save it as baseline.")


# ---- PNG ----

_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_PIXEL = {0: 1, 2: _RGB, 3: 1, 4: _CONVERTED, 6: _CONVERTED}
_PNG_KEPT = {b"PLTE": 3 * 256, b"tRNS": 256}  # bytes, at most


def _png(data: bytes) -> Layout:
    if data[12:16] != b"IHDR" or data[8:12] != b"\0\0\0\x0d":
        raise BrokenImage(cause="no IHDR")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    if depth not in _PNG_DEPTHS.get(colour, ()):
        raise BrokenImage(cause=f"colour type {colour} of {depth} bits")
    kept = [slice(0, 33)]
    exif: slice | None = None
    at = 33
    for _ in range(MAX_PARTS):
        length, name = struct.unpack_from(">I4s", data, at)
        if name == b"IDAT":
            pixel, copies = _PNG_PIXEL[colour], len(data) + 16 * (width + 8)  # the essence, and two rows
            if (colour, depth) == (0, 16):  # scaled to 8 bits in an image of its own
                pixel, copies = 2, copies + rows(width, height, 2)
            exif = _last_exif(data, at) or exif
            memory = _memory(width, height, pixel, copies)
            return Layout("PNG", width, height, memory, tuple(kept), at, exif=(exif,) if exif else ())
        end = at + 12 + length
        if name in _PNG_KEPT:
            if length > _PNG_KEPT[name]:
                raise BrokenImage(cause=f"{name.decode()} of {length} bytes")
            kept.append(slice(at, end))
        elif name == b"eXIf":
            exif = slice(at + 8, end - 4)
        at = end
    raise _too_many("chunks")


def _last_exif(data: bytes, at: int) -> slice | None:
    """The last EXIF chunk of a PNG from its pixels on (section 11.3.4.5)."""
    exif: slice | None = None
    for _ in range(MAX_PIXEL_CHUNKS):
        name = data[at + 4 : at + 8]
        if name in (b"", b"IEND"):
            break
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if name == b"eXIf":
            exif = slice(at + 8, end - 4)
        at = end
    return exif


def _png_essence(data: bytes, layout: Layout) -> bytes:
    """Rewrite a PNG as header, palette, transparency, and pixels in one chunk.

    Pillow takes 10 us for each chunk.
    """
    view = memoryview(data)
    pieces: list[memoryview] = []
    at = layout.pixels_at
    while data[at + 4 : at + 8] == b"IDAT":
        if len(pieces) == MAX_PIXEL_CHUNKS:
            raise _too_many("chunks")
        end = at + 8 + int.from_bytes(data[at : at + 4])
        pieces.append(view[at + 8 : end])
        at = end + 4  # a checksum, which Pillow doesn't look at here
    length = struct.pack(">I", sum(len(piece) for piece in pieces))
    head = [view[part] for part in layout.kept]
    return b"".join([*head, length, b"IDAT", *pieces, b"\0\0\0\0", b"\0\0\0\0IEND\xae\x42\x60\x82"])


# ---- GIF ----


def _gif(data: bytes) -> Layout:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    kept = [slice(0, at)]
    sub_blocks = 0
    for _ in range(MAX_PARTS):
        introducer = data[at]
        if introducer == 0x2C:  # the first picture
            left, top, across, down = struct.unpack_from("<HHHH", data, at + 1)
            # Pillow makes the canvas larger where the picture needs it; one more is the background to come.
            width, height = max(width, left + across), max(height, top + down)
            parts = _merged([*kept, slice(at, None)])
            copies = len(data) if len(parts) > 1 else 0
            return Layout("GIF", width, height, _memory(width, height, 1, copies) + rows(width, height, 1), parts, at)
        if introducer == 0x3B:
            raise BrokenImage(cause="no picture")
        if introducer != 0x21:  # Pillow passes over bytes between the blocks
            at += 1
            continue
        start, label = at, data[at + 1]
        at += 2
        while data[at]:
            at += 1 + data[at]
            sub_blocks += 1
            if sub_blocks > MAX_SUB_BLOCKS:
                raise _too_many("comments")
        at += 1
        if label == 0xF9:  # graphic control: which colour is transparent, and so fills the canvas
            kept.append(slice(start, at))
    raise _too_many("blocks")


# ---- WebP ----

_WEBP_KEPT = {b"ANIM", b"ALPH"}
_WEBP_PIXELS = {b"VP8 ", b"VP8L", b"ANMF"}


def _webp(data: bytes) -> Layout:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise BrokenImage(cause="the file is cut off")
    width, height = _webp_size(data)
    kept: list[slice] = []
    names: set[bytes] = set()
    at = 12
    for _ in range(MAX_PARTS):
        name, length = struct.unpack_from("<4sI", data, at)
        next_at = at + 8 + length + (length & 1)
        if next_at > end:
            raise BrokenImage(cause="a chunk is cut off")
        if name in _WEBP_PIXELS:
            kept.append(slice(at, next_at))
            # Two canvases and the picture (or its copy for Pillow), then Pillow's own; alpha has a plane. Of the file
            # there are the essence and two copies of Pillow's.
            memory = 4 * rows(width, height, 4) + width * height + 3 * len(data) + _FLAT
            if any(_is_lossless(data, part) for part in kept):
                blocks = -(-width // 4) * -(-height // 4)  # of the smallest size that may have a group of its own
                groups = min(vp8l.MAX_GROUPS, blocks, 8 * len(data) // vp8l.GROUP_BITS)
                memory += groups * vp8l.GROUP_BYTES
            return Layout("WEBP", width, height, memory, tuple(kept), at, exif=_webp_exif(data, end))
        if name in _WEBP_KEPT and name not in names:  # libwebp takes the first one
            names.add(name)
            kept.append(slice(at, next_at))
        at = next_at
    raise _too_many("chunks")


def _webp_exif(data: bytes, end: int) -> tuple[slice, ...]:
    """The EXIF chunk of a WebP, if its header announces one (RFC 9649, section 2.7).

    It is behind the pixels.
    """
    if data[12:16] != b"VP8X" or not data[20] & 0x08:
        return ()
    at = 12
    for _ in range(MAX_PARTS):
        if at + 8 > end:
            break
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF":
            return (slice(at + 8, min(at + 8 + length, end)),)
        at += 8 + length + (length & 1)
    return ()


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the first chunk (RFC 9649, sections 2.5 to 2.7).

    Pillow allocates the canvases when it opens the file.
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


def _is_lossless(data: bytes, part: slice) -> bool:
    """Whether a chunk may hold a lossless stream.

    Such a chunk is an image, an image's alpha, or an animation's frame.
    """
    name = data[part.start : part.start + 4]
    return name in (b"VP8L", b"ANMF") or (name == b"ALPH" and data[part.start + 8] & 3 == 1)


def require_few_groups(data: bytes, layout: Layout) -> None:
    """Raise TooComplex where libwebp would take more memory than is counted.

    A lossless stream can cause it.
    """
    if layout.format == "WEBP":
        for part in layout.kept:
            for start, stop, width, height in _lossless_streams(data, part, layout.width, layout.height):
                vp8l.require_few_groups(data, start, stop, width, height)


def _lossless_streams(data: bytes, part: slice, width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield start, end, width and height of the lossless streams in a chunk.

    There is at most one of alpha and one of all.
    """
    name, length = struct.unpack_from("<4sI", data, part.start)
    body, stop = part.start + 8, part.start + 8 + length
    if name == b"VP8L" and length >= 5:
        bits = int.from_bytes(data[body + 1 : body + 5], "little")
        yield body + 5, stop, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif name == b"ALPH" and length and data[body] & 3 == 1:
        yield body + 1, stop, width, height
    elif name == b"ANMF":
        width, height = (int.from_bytes(data[body + at : body + at + 3], "little") + 1 for at in (6, 9))
        at, names = body + 16, set[bytes]()
        for _ in range(MAX_PARTS):
            if at + 8 > stop:
                return
            name, length = struct.unpack_from("<4sI", data, at)
            end = min(at + 8 + length, stop)
            if name in {b"ALPH", b"VP8L"} - names:
                names.add(name)
                yield from _lossless_streams(data, slice(at, end), width, height)
            at = end + (length & 1)
        raise _too_many("chunks")


def _webp_essence(data: bytes, layout: Layout) -> bytes:
    """The first picture of an animation, or the only one."""
    head = b""
    if data[12:16] == b"VP8X":
        # Without the flags of ICC, EXIF and XMP.
        head = b"VP8X" + struct.pack("<IB", 10, data[20] & ~0x2C) + data[21:30]
    parts = [data[part] for part in layout.kept]
    size = 4 + len(head) + sum(len(part) for part in parts)
    return b"".join((b"RIFF", struct.pack("<I", size), b"WEBP", head, *parts))


# ---- BMP ----

_BMP_PIXEL = {1: 1, 4: 1, 8: 1, 16: _RGB, 24: _RGB, 32: _CONVERTED}


def _bmp(data: bytes) -> Layout:
    size = int.from_bytes(data[14:18], "little")
    compression = 0
    if size == 12:  # OS/2's first
        width, height, _, depth = struct.unpack_from("<HHHH", data, 18)
    elif size in (40, 52, 56, 64, 108, 124):
        width, height, _, depth, compression = struct.unpack_from("<IIHHI", data, 18)
        if height >= 0xFF000000:  # negative: the first row is the top one
            height = (1 << 32) - height
    else:
        raise BrokenImage(cause=f"a header of {size} bytes")
    # Run-length coding: Pillow decodes it in Python, up to 12 s for a file of 1 kB. Browsers' other two, JPEG and PNG
    # within BMP, are for printers.
    if compression not in (0, 3):
        raise UnsupportedImage("Compressed BMPs are not supported; save it as PNG or JPEG.")
    if depth not in _BMP_PIXEL:
        raise BrokenImage(cause=f"{depth} bits a pixel")
    return Layout("BMP", width, height, _memory(width, height, _BMP_PIXEL[depth], 0), (slice(0, None),), 0)


# What browsers show. Pillow reads forty more formats, and all its holes of the last years were in those (FITS, PSD,
# PDF, EPS…).
_READERS: dict[str, Callable[[bytes], Layout]] = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "GIF": _gif, "BMP": _bmp}
FORMATS = tuple(_READERS)
