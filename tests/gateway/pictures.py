"""Image files of any format and shape, and files that cost a decoder far more than they have bytes."""

from __future__ import annotations

import io
import struct
import zlib

from fakes import image_bytes
from PIL import Image

# Colour type: channels.
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def chunk(name, body):
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def zeros(count):
    """``count`` zero bytes, deflated."""
    compress = zlib.compressobj(9)
    pieces = [compress.compress(bytes(min(count - start, 1 << 20))) for start in range(0, count, 1 << 20)]
    return b"".join(pieces) + compress.flush()


def png(size, depth=8, colour=2, *, interlaced=False, before=b"", pixels=None):
    """A black PNG, with chunks ``before`` its pixels; ``pixels`` replaces the chunks with these."""
    width, height = size
    bits = PNG_CHANNELS[colour] * depth
    passes = [(0, 0, 1, 1)]
    if interlaced:  # PNG (third edition), section 8.2
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    count = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        count += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if colour == 3 else b""
    pixels = chunk(b"IDAT", zeros(count)) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + before + pixels + chunk(b"IEND", b"")


def by_pillow(kind, size, mode="RGB", **save):
    """A grey or gradient picture, as Pillow writes it."""
    out = io.BytesIO()
    Image.new(mode, size, 100 if mode in ("L", "P") else None).save(out, kind, **save)
    return out.getvalue()


def gif(size, *, disposal=0, transparent=None, interlaced=False, before=b""):
    """A GIF whose only row of pixels is followed by none: the rest of the canvas is the background."""
    control = b"\x21\xf9\x04" + bytes([disposal << 2 | (transparent is not None), 0, 0, transparent or 0, 0])
    whole = by_pillow("GIF", size, "P", interlace=interlaced)
    at = whole.index(b"\x2c" + struct.pack("<HHHH", 0, 0, *size))
    start = 13 + (3 << (whole[10] & 7) + 1 if whole[10] & 0x80 else 0)
    return whole[:start] + before + control + whole[at:]


def _bits(value, count):
    return f"{value:0{count}b}"[::-1]


_ONE_SYMBOL = "1000"


def lossless_stream(size, groups):
    """A lossless WebP stream from its transforms on, of one colour and any number of groups of prefix codes."""
    bits, blocks = next(
        (bits, blocks)
        for bits in range(2, 10)
        if (blocks := -(-size[0] // 2**bits) * -(-size[1] // 2**bits)) <= 1 << 17
    )
    every = "0" + _bits(8, 4)  # a code of 256 symbols of 8 bits: of the code lengths only 0 and 8 are used
    every += "".join(_bits(length in (0, 8), 3) for length in (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8)) + "0" + "1" * 256
    numbers = (number % groups for number in range(blocks))
    out = ["0", "0", "1" + _bits(bits - 2, 3), "0", every + "0" * 24, every, _ONE_SYMBOL * 3]
    out += [f"{number & 255:08b}{number >> 8:08b}" for number in numbers]
    coded = "".join(out) + _ONE_SYMBOL * 5 * groups
    return int(coded[::-1], 2).to_bytes(-(-len(coded) // 8), "little")


def riff(*chunks):
    """A WebP file of chunks (name, body)."""
    body = b"".join(name + struct.pack("<I", len(one)) + one + bytes(len(one) & 1) for name, one in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def lossless(size, groups):
    """A lossless WebP."""
    head = "".join((_bits(0x2F, 8), _bits(size[0] - 1, 14), _bits(size[1] - 1, 14), "0000"))
    return riff((b"VP8L", int(head[::-1], 2).to_bytes(5, "little") + lossless_stream(size, groups)))


def bmp(size, depth, compression=0, data=None):
    """A BMP; ``data`` replaces its pixels."""
    width, height = size
    palette = b"".join(bytes((i, 255 - i, i // 2, 0)) for i in range(1 << depth)) if depth <= 8 else b""
    masks = struct.pack("<IIII", 0xFF, 0xFF00, 0xFF0000, 0xFF000000) if compression == 3 else b""
    header = 56 if compression == 3 else 40
    data = bytes((width * depth + 31) // 32 * 4 * height) if data is None else data
    offset = 14 + header + len(palette)
    about = struct.pack("<IiiHHIIiiII", header, width, height, 1, depth, compression, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + about + masks + palette + data


def segment(marker, body):
    """A segment of a JPEG."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def exif_block(orientation, order=">", kind=3):
    """An EXIF block, without a prefix, of two entries, of which the second is the orientation."""
    head = {">": b"MM\0*\0\0\0\x08", "<": b"II*\0\x08\0\0\0"}[order]
    value = struct.pack(order + {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 11: "f"}[kind], orientation)
    entries = struct.pack(f"{order}HHLHH", 0x0128, 3, 1, 2, 0) + struct.pack(f"{order}HHL", 0x0112, kind, 1)
    return head + struct.pack(f"{order}H", 2) + entries + value.ljust(4, b"\0") + bytes(4)


def turned_file(data, orientation, block=None):
    """A JPEG, PNG or WebP with an EXIF block; pixels as they were."""
    block = exif_block(orientation) if block is None else block
    if data.startswith(b"\xff\xd8"):
        return data[:2] + segment(0xE1, b"Exif\0\0" + block) + data[2:]
    if data.startswith(b"\x89PNG"):
        return data[:33] + chunk(b"eXIf", block) + data[33:]
    body = data[12:]
    if body[:4] == b"VP8X":
        body = body[:8] + bytes([body[8] | 8]) + body[9:]
    else:
        width, height = Image.open(io.BytesIO(data)).size
        flags = 8 | (0x10 if body[:4] == b"VP8L" else 0)
        sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        body = b"VP8X" + struct.pack("<II", 10, flags) + sizes + body
    body += b"EXIF" + struct.pack("<I", len(block)) + block + bytes(len(block) & 1)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def exif_bomb():
    """A JPEG with an EXIF block of 32 kB: 2,700 entries, each of which names the same 32 kB, so 86 MB."""
    entries = b"".join(struct.pack("<HHII", tag, 7, 32_000, 8) for tag in range(2700))
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2700) + entries + bytes(4)
    # Without a resolution in the JFIF segment Pillow would look for it in the block.
    photo = image_bytes().replace(b"JFIF\0\x01\x01\x01", b"JFIF\0\x01\x01\0")
    return photo[:2] + segment(0xE1, block) + photo[2:]


def empty_scans(size, scans, components=1):
    """A progressive JPEG whose scans hold nothing but "end of band for 32,767 blocks"."""
    width, height = size
    blocks = -(-width // 8) * -(-height // 8)
    tables = segment(0xDB, b"\0" + b"\1" * 64)
    tables += segment(0xC2, struct.pack(">BHHB", 8, height, width, components)
                      + b"".join(bytes((i + 1, 0x11, 0)) for i in range(components)))  # fmt: skip
    # Of two codes: "0" ends the band for 2^14 blocks and as many as the next 14 bits say, "10" for this block.
    tables += segment(0xC4, b"\x10" + bytes([1, 1, *[0] * 14]) + b"\xe0\x00")
    bits = ""
    while blocks >= 1 << 14:
        count = min(blocks, (1 << 15) - 1)
        bits += f"0{count - (1 << 14):014b}"
        blocks -= count
    bits += "10" * blocks
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    one = [segment(0xDA, bytes((1, i + 1, 0, 1, 63, 0))) + coded for i in range(components)]
    return b"\xff\xd8" + tables + b"".join(one[i % components] for i in range(scans)) + b"\xff\xd9"


def arithmetic(size, scans, components=1, data=b"\0\0"):
    """A progressive JPEG with arithmetic coding; libjpeg reads zeros behind the end of each scan's data."""
    width, height = size
    tables = segment(0xDB, b"\0" + b"\1" * 64)
    tables += segment(0xCA, struct.pack(">BHHB", 8, height, width, components)
                      + b"".join(bytes((i + 1, 0x11, 0)) for i in range(components)))  # fmt: skip
    body = b"".join(segment(0xDA, bytes((1, i % components + 1, 0, 1, 63, 0))) + data for i in range(scans))
    return b"\xff\xd8" + tables + body + b"\xff\xd9"
