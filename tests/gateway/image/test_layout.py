"""Limits on a file's parts, each tried at the limit and one beyond it; metadata is neither parsed nor inflated."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from fakes import image_bytes
from jpegs import with_segment
from pictures import (
    arithmetic,
    bmp,
    chunk,
    empty_scans,
    exif_bomb,
    gif,
    lossless,
    lossless_stream,
    png,
    riff,
    segment,
    zeros,
)
from PIL import Image

from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import BrokenImage, NotAnImage, OutOfTime, TooComplex, TooManyPixels, UnsupportedImage
from clothing_gateway.image import decode, layout, vp8l

MIB = 1 << 20
CORE = pytest.param(True, marks=pytest.mark.skipif(decode.core is None, reason="the native core is not installed"))


@pytest.fixture(params=[CORE, False], ids=["core", "Pillow"])
def decoder(request, monkeypatch):
    """Each of the two ways that a plain JPEG may take."""
    if not request.param:
        monkeypatch.setattr(decode, "core", None)


def pixels_of(data, size=(8, 8), deadline=None):
    return decode.decode(data, decode.read_header(data, 50 * MIB, 1 << 40), size, None, deadline)


# ---- sides ----


@pytest.mark.parametrize("size", [(16_384, 3), (3, 16_384)])
def test_the_longer_side_is_limited(size):
    assert pixels_of(png(size)) is not None
    longer = tuple(side + (side > 3) for side in size)
    for data in (png(longer), bmp(longer, 8), gif(longer), image_bytes(longer)):
        with pytest.raises(TooManyPixels, match=f"{longer[0]} x {longer[1]}.* 16384"):
            decode.read_header(data, 50 * MIB, 1 << 40)
    assert decode.read_header(png(longer), 50 * MIB, 1 << 40, max_side=16_385).width == longer[0]


def test_a_column_of_50_million_pixels_is_refused():
    """By its cost too, where a longer side is allowed: a pointer and a padded row for each pixel, in two images."""
    column = png((1, 50 * MIB), 8, 0)
    with pytest.raises(TooManyPixels):
        decode.read_header(column, 50 * MIB, 1 << 40)
    assert decode.read_header(column, 50 * MIB, 1 << 40, max_side=1 << 30).cost > 50 * MIB * 24


# ---- JPEG ----


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_segments_before_the_pixels_are_limited(mode):
    photo = image_bytes(mode=mode)
    empty = segment(0xE5, b"")
    own = sum(photo.count(bytes((0xFF, marker))) for marker in (0xE0, 0xEE, 0xDB, 0xC0, 0xC4, 0xDA))
    assert np.array_equal(pixels_of(photo[:2] + empty * (1000 - own) + photo[2:]), pixels_of(photo))
    with pytest.raises(TooComplex, match="segments"):
        pixels_of(photo[:2] + empty * (1001 - own) + photo[2:])


@pytest.mark.usefixtures("decoder")
def test_megabytes_of_metadata_are_skipped():
    """A phone's portrait: EXIF, MPF, and a depth map of 6 MB in extended XMP."""
    photo = image_bytes((400, 300), mode="RGB")
    large = photo
    for _ in range(96):
        large = with_segment(large, 0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"x" * 65_400)
    large = with_segment(large, 0xE2, b"MPF\0" + b"II*\0\x08\0\0\0" + b"\xff" * 200)
    large = with_segment(large, 0xE1, b"Exif\0\0" + b"\0" * 60_000)
    assert len(large) > 6 * MIB
    assert np.array_equal(pixels_of(large), pixels_of(photo))


@pytest.mark.usefixtures("decoder")
def test_only_the_orientation_tag_of_exif_is_read():
    assert np.array_equal(pixels_of(exif_bomb()), pixels_of(image_bytes()))


def test_tables_that_pillow_parses_are_limited():
    photo = image_bytes(mode="CMYK")
    tables = segment(0xDB, (b"\0" + b"\1" * 64) * 1000) * 3  # 65 kB each
    rest = layout.MAX_TABLE_BYTES - len(tables) - photo.index(b"\xff\xda")  # the file's own are counted, too
    half = segment(0xE0, bytes(rest // 2 - 4))
    for beyond in (0, 1):
        data = photo[:2] + tables + half + segment(0xE0, bytes(rest - len(half) - 4 + beyond)) + photo[2:]
        if beyond:
            with pytest.raises(TooComplex, match="tables"):
                pixels_of(data)
        else:
            assert np.array_equal(pixels_of(data), pixels_of(photo))


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("components", [1, 3])
def test_scans_are_limited(components):
    assert pixels_of(empty_scans((64, 48), 100, components)) is not None
    with pytest.raises(TooComplex, match="more than 100 scans"):
        pixels_of(empty_scans((64, 48), 101, components))


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("between", [segment(0xFE, b""), segment(0xE5, b""), segment(0xDD, b"\0\0"), b"\xff\x01"])
def test_segments_between_scans_are_limited(between):
    """With 1,000 of them the picture's end is the first marker that is not counted."""
    data = empty_scans((64, 48), 2)
    at = data.rindex(b"\xff\xda")
    assert pixels_of(data[:at] + between * 998 + data[at:]) is not None
    with pytest.raises(TooComplex, match="more than 1000 segments"):
        pixels_of(data[:at] + between * 999 + data[at:])


@pytest.mark.usefixtures("decoder")
def test_scans_are_counted_before_libjpeg_reads_the_header():
    for scans, error in ((100, BrokenImage), (101, TooComplex)):
        data = bytearray(empty_scans((64, 48), scans))
        data[data.index(b"\xff\xc4") + 5] = 255  # Huffman codes of one bit
        with pytest.raises(error):
            pixels_of(bytes(data))


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize(
    "hidden",
    [
        segment(0xFE, b"\xff\xd9"),  # an end within a comment
        segment(0xE0, b"\xff\xd9" * 9),
        b"\xff\xd0\xff\xff\xff",  # a restart and fill bytes
        b"\xff\x00\xff\x01",
    ],
)
def test_scans_are_counted_behind_what_looks_like_an_end(hidden):
    data = empty_scans((64, 48), 101)
    at = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    with pytest.raises(TooComplex, match="more than 100 scans"):
        pixels_of(data[:at] + hidden + data[at:])


@pytest.mark.usefixtures("decoder")
def test_scans_of_a_second_picture_are_not_counted():
    """Phones append pictures (MPF) and videos to a photo; in their bytes are markers by chance."""
    photo = image_bytes(progressive=True)
    assert np.array_equal(pixels_of(photo + empty_scans((8, 8), 101) + b"\xff\xda" * 999), pixels_of(photo))


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("components", [1, 3])
def test_scans_are_limited_by_their_blocks(components, monkeypatch):
    monkeypatch.setattr(layout, "MAX_SCANNED_BLOCKS", 48 * 24)
    assert pixels_of(empty_scans((64, 48), 24, components)) is not None
    with pytest.raises(TooComplex, match="more than 24 scans"):
        pixels_of(empty_scans((64, 48), 25, components))


def test_large_photos_may_have_the_scans_that_encoders_write():
    assert layout.most_scans(8160, 6144) >= 20
    assert layout.most_scans(4032, 3024) == layout.MAX_SCANS


def test_scans_with_arithmetic_coding_are_limited_by_their_blocks(monkeypatch):
    monkeypatch.setattr(layout, "MAX_ARITHMETIC_BLOCKS", 48 * 12)
    assert pixels_of(arithmetic((64, 48), 12)) is not None
    with pytest.raises(TooComplex, match="more than 12 scans"):
        pixels_of(arithmetic((64, 48), 13))


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (b"\xff\xc3", UnsupportedImage, "Lossless"),
        (b"\xff\xc5", UnsupportedImage, "hierarchical"),
        (b"\xff\xc1\0\x11\x0c", UnsupportedImage, "12 bits"),
    ],
)
def test_kinds_of_jpeg_that_are_not_decoded_are_named(frame, error, message):
    photo = image_bytes()
    at = photo.index(b"\xff\xc0")
    with pytest.raises(error, match=message):
        pixels_of(photo[:at] + frame + photo[at + len(frame) :])


# ---- PNG ----


def test_chunks_before_the_pixels_are_limited():
    photo = png((8, 8))
    assert np.array_equal(pixels_of(png((8, 8), before=chunk(b"teSt", b"") * 999)), pixels_of(photo))
    with pytest.raises(TooComplex, match="chunks"):
        pixels_of(png((8, 8), before=chunk(b"teSt", b"") * 1000))


def test_pixels_may_lie_in_many_chunks():
    coded = zlib.compress(bytes(8 * 25))
    for empty in (0, 19_998):
        pieces = [chunk(b"IDAT", coded[:5]), chunk(b"IDAT", b"") * empty, chunk(b"IDAT", coded[5:])]
        assert pixels_of(png((8, 8), pixels=b"".join(pieces))) is not None
    with pytest.raises(TooComplex, match="chunks"):
        pixels_of(png((8, 8), pixels=b"".join([*pieces[:2], chunk(b"IDAT", b""), pieces[2]])))


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt", b"iTXt"])
def test_metadata_is_not_inflated(name):
    """Whole pictures, of which Pillow alone refuses those with more than a MiB of text."""
    head = {b"iCCP": b"a\0\0", b"zTXt": b"k\0\0", b"iTXt": b"k\0\x01\0\0\0"}[name]
    data = png((8, 8), before=chunk(name, head + zeros(200 * MIB)))
    assert np.array_equal(pixels_of(data), pixels_of(png((8, 8))))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize(("name", "most"), [(b"PLTE", 768), (b"tRNS", 256)])
def test_png_palettes_have_256_entries(name, most):
    assert pixels_of(png((8, 8), 8, 3, before=chunk(name, bytes(most)))) is not None
    with pytest.raises(BrokenImage):
        pixels_of(png((8, 8), 8, 3, before=chunk(name, bytes(most + 3))))


def test_png_pixels_behind_other_chunks_are_missing():
    coded = zlib.compress(bytes(8 * 25))
    with pytest.raises(BrokenImage):
        pixels_of(png((8, 8), pixels=chunk(b"IDAT", coded[:5]) + chunk(b"tEXt", b"k\0v") + chunk(b"IDAT", coded[5:])))


@pytest.mark.parametrize(("depth", "colour"), [(4, 2), (3, 0), (16, 3), (8, 5)])
def test_png_depths_that_do_not_exist(depth, colour):
    good = png((8, 8))
    head = struct.pack(">IIBBBBB", 8, 8, depth, colour, 0, 0, 0)
    with pytest.raises(BrokenImage):
        pixels_of(good[:8] + chunk(b"IHDR", head) + good[33:])


# ---- GIF ----


def test_gif_blocks_and_comments_are_limited():
    """The graphic control block is one of the 1,000, and has one of the 10,000 sub-blocks."""
    plain = pixels_of(gif((8, 8)))
    assert np.array_equal(pixels_of(gif((8, 8), before=b"\x21\x01\0" * 998)), plain)
    assert np.array_equal(pixels_of(gif((8, 8), before=b"\x21\xfe" + b"\x01a" * 9_999 + b"\0")), plain)
    for before, what in (
        (b"\x21\x01\0" * 999, "blocks"),
        (b"\0" * 1000, "blocks"),
        (b"\x21\xfe" + b"\x01a" * 10_000 + b"\0", "comments"),
    ):
        with pytest.raises(TooComplex, match=what):
            pixels_of(gif((8, 8), before=before))


def test_a_gif_canvas_grows_to_its_first_picture():
    data = bytearray(gif((8, 8)))
    data[6:10] = struct.pack("<HH", 4, 4)
    assert decode.read_header(bytes(data), 50 * MIB, 1 << 40).pixels == 64
    assert pixels_of(bytes(data)) is not None


# ---- WebP ----


def test_webp_chunks_before_the_pixels_are_limited():
    photo = image_bytes(kind="WEBP", mode="RGBA")
    assert photo[12:16] == b"VP8X"

    def with_chunks(count):
        whole = photo[:30] + b"teSt\0\0\0\0" * count + photo[30:]
        return whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]

    assert np.array_equal(pixels_of(with_chunks(997)), pixels_of(photo))
    with pytest.raises(TooComplex, match="chunks"):
        pixels_of(with_chunks(998))


def side(pixels):
    return (pixels - 1).to_bytes(3, "little")


def in_frame(file):
    """The picture of a WebP as an animation's first one."""
    canvas = side(256) * 2
    frame = bytes(6) + canvas + bytes(4) + file[12:]
    return riff((b"VP8X", b"\2\0\0\0" + canvas), (b"ANIM", bytes(6)), (b"ANMF", frame))


def with_alpha(groups):
    """A lossy WebP with losslessly coded alpha."""
    lossy = image_bytes((256, 256), "WEBP")
    alpha = b"\1" + lossless_stream((256, 256), groups)
    return riff((b"VP8X", b"\x10\0\0\0" + side(256) * 2), (b"ALPH", alpha), (b"VP8 ", lossy[20:]))


@pytest.mark.parametrize("make", [
    lambda groups: lossless((256, 256), groups), lambda groups: in_frame(lossless((256, 256), groups)), with_alpha,
    lambda groups: in_frame(riff((b"ALPH", with_alpha(groups)[38:-8]), (b"VP8 ", b""))),
], ids=["picture", "frame", "alpha", "frame's alpha"])  # fmt: skip
def test_prefix_codes_of_lossless_webp_are_limited(make):
    with pytest.raises(TooComplex, match="prefix codes"):
        pixels_of(make(3001))
    try:
        assert pixels_of(make(3000)) is not None
    except BrokenImage:  # the last one is of no picture
        assert make(1)[-4:] == bytes(4)


def test_transforms_of_lossless_webp_are_limited(monkeypatch):
    data = image_bytes((300, 200), "WEBP", lossless=True, method=6, quality=100)
    monkeypatch.setattr(vp8l, "MAX_SYMBOLS", 10)
    with pytest.raises(TooComplex, match="transforms"):
        pixels_of(data)


@pytest.mark.parametrize(
    "transform",
    [
        "101",  # subtract green, which is three bits and nothing else
        "100" + "000" + "0" + 5 * "1000",  # predictors of one block, of prefix codes of one symbol
        "110" + "000" + "0" + 5 * "1000",  # colours, likewise
    ],
)
def test_a_transform_of_lossless_webp_is_read_once(transform):
    bits = transform * 300_000
    stream = int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little")
    data = riff((b"VP8L", b"\x2f" + struct.pack("<I", 3 | 3 << 14) + stream))
    with pytest.raises(BrokenImage) as raised:
        pixels_of(data)
    assert raised.value.cause == "a transform twice"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("method", [0, 4, 6])
def test_lossless_webp_as_encoders_write_it(mode, method):
    """Every symbol read here is one of the stream, or the few bits behind the last one would be no prefix codes."""
    for size in ((1, 1), (7, 5), (300, 200)):
        for quality in (0, 100):
            data = image_bytes(size, "WEBP", mode, lossless=True, exact=True, method=method, quality=quality)
            with Image.open(io.BytesIO(data)) as image:
                assert np.array_equal(pixels_of(data, size), np.asarray(image.convert("RGB")))


# ---- BMP ----


@pytest.mark.parametrize(("depth", "compression"), [(8, 1), (4, 2), (24, 4), (24, 5)])
def test_compressed_bmp_is_refused(depth, compression):
    with pytest.raises(UnsupportedImage, match="Compressed BMPs"):
        pixels_of(bmp((64, 48), depth, compression, b"\x01\x05\0\0\0\x01"))


def test_a_bmp_may_begin_with_its_first_row():
    out = io.BytesIO()
    Image.linear_gradient("L").save(out, "BMP")
    up = bytearray(out.getvalue())
    up[22:26] = struct.pack("<i", -256)
    assert np.array_equal(pixels_of(bytes(up), (256, 256)), pixels_of(out.getvalue(), (256, 256))[::-1])


# ---- deadlines ----


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("data", [
    image_bytes((64, 48)), image_bytes((64, 48), progressive=True), image_bytes((64, 48), mode="CMYK"), png((8, 8)),
    gif((8, 8)), bmp((8, 8), 24), image_bytes(kind="WEBP"),
], ids=["jpeg", "progressive", "cmyk", "png", "gif", "bmp", "webp"])  # fmt: skip
def test_nothing_is_decoded_after_the_deadline(data):
    assert pixels_of(data, deadline=Deadline.after(60)) is not None
    assert pixels_of(data, deadline=Deadline.after(1e12)) is not None
    with pytest.raises(OutOfTime, match="decode the photo"):
        pixels_of(data, deadline=Deadline.after(-0.001))


@pytest.mark.usefixtures("decoder")
def test_a_decode_ends_at_its_deadline():
    """The deadline passes within the decoding, of a file in several scans and of one in one."""
    for data in (image_bytes((8000, 6000), progressive=True), image_bytes((8000, 6000), quality=95)):
        for resampling, size in (("nearest", None), ("bilinear", (224, 224))):
            header = decode.read_header(data, 50 * MIB, 1 << 40, resampling)
            start = time.thread_time()
            decode.decode(data, header, size)
            whole = time.thread_time() - start
            with pytest.raises(OutOfTime):
                decode.decode(data, header, size, None, Deadline.after(whole / 4))


def test_other_formats_are_named():
    with pytest.raises(NotAnImage):
        decode.read_header(b"II*\0" + bytes(99), 50 * MIB, 1 << 40)
