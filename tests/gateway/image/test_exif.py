"""EXIF orientation against Pillow's own ImageOps.exif_transpose."""

from __future__ import annotations

import io
import random
import struct
import warnings

import numpy as np
import pytest
from fakes import image_bytes
from jpegs import with_segment
from pictures import chunk, exif_block, exif_bomb, segment, turned_file
from PIL import Image, ImageOps

from clothing_contract.scaling import Scaling
from clothing_gateway.image import decode, exif
from clothing_gateway.settings import RESAMPLINGS

ORIENTATIONS = range(10)  # 0 and 9 are none
KINDS = {
    "jpeg": {"kind": "JPEG"},
    "jpeg 4:4:4 progressive": {"kind": "JPEG", "subsampling": 0, "progressive": True},
    "jpeg grey": {"kind": "JPEG", "mode": "L"},
    "jpeg cmyk": {"kind": "JPEG", "mode": "CMYK"},
    "png": {"kind": "PNG"},
    "png palette": {"kind": "PNG", "mode": "P"},
    "webp": {"kind": "WEBP"},
    "webp lossless": {"kind": "WEBP", "lossless": True},
}
PHOTO_SIZES = [(123, 77), (77, 124), (1, 1), (8, 301), (640, 480)]
SIZES = [(37, 23), (160, 160), (1, 3), (299, 20)]

CORE = pytest.param(True, marks=pytest.mark.skipif(decode.core is None, reason="the native core is not installed"))


@pytest.fixture(params=[CORE, False], ids=["core", "Pillow"])
def decoder(request, monkeypatch):
    """Each of the two ways that a plain JPEG may take."""
    if not request.param:
        monkeypatch.setattr(decode, "core", None)


def pixels_of(data, size, resampling="nearest", **options):
    return decode.decode(data, decode.read_header(data, 1 << 30, 1 << 40, resampling, size=size, **options), size)


def orientation_of(data):
    return decode.read_header(data, 1 << 30, 1 << 40).orientation


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_turned_photos_are_transposed_and_then_resized(kind, orientation):
    for photo_size in PHOTO_SIZES:
        data = turned_file(image_bytes(photo_size, **KINDS[kind]), orientation)
        upright = by_pillow(data)
        for size in SIZES:
            wanted = np.asarray(upright.resize(size, Image.Resampling.NEAREST))
            assert np.array_equal(pixels_of(data, size), wanted), (photo_size, size)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("resampling", [name for name in RESAMPLINGS if not name.startswith("tf-")])
def test_turned_photos_in_every_filter(resampling, orientation):
    data = turned_file(image_bytes((123, 77)), orientation)
    wanted = np.asarray(by_pillow(data).resize((37, 24), Image.Resampling[resampling.upper()]))
    assert np.array_equal(pixels_of(data, (37, 24), resampling), wanted)


@pytest.mark.parametrize("side", range(1, 60))
def test_mirrored_columns_and_rows_of_every_size(side):
    """Pillow's choice of pixels is not symmetrical."""
    for orientation in (3, 6, 8):
        data = turned_file(image_bytes((side, 61 - side)), orientation)
        for taken in (1, 2, 7, 64):
            wanted = np.asarray(by_pillow(data).resize((taken, taken + 1), Image.Resampling.NEAREST))
            assert np.array_equal(pixels_of(data, (taken, taken + 1)), wanted), (orientation, taken)


@pytest.mark.parametrize("orientation", [2, 3, 6, 7])
def test_large_photos_whose_rows_are_skipped(orientation):
    data = turned_file(image_bytes((4000, 3000)), orientation)
    wanted = np.asarray(by_pillow(data).resize((299, 299), Image.Resampling.NEAREST))
    assert np.array_equal(pixels_of(data, (299, 299)), wanted)


@pytest.mark.parametrize(
    "scaling", [Scaling("tf"), Scaling("caffe"), Scaling("rescale", (0.1, 0.2, 0.3), channels="bgr")]
)
def test_turned_photos_are_preprocessed_alike(scaling, monkeypatch):
    data = turned_file(image_bytes((123, 77)), 6)
    header = decode.read_header(data, 1 << 30, 1 << 40)
    native = decode.decode(data, header, (37, 23), scaling)
    monkeypatch.setattr(decode, "core", None)
    assert np.array_equal(native, decode.decode(data, decode.read_header(data, 1 << 30, 1 << 40), (37, 23), scaling))


@pytest.mark.usefixtures("decoder")
def test_jpeg_scaling_of_a_turned_photo():
    data = turned_file(image_bytes((1200, 900)), 6)
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (200, 150))
        wanted = np.asarray(ImageOps.exif_transpose(image).resize((150, 200), Image.Resampling.NEAREST))
    assert np.array_equal(pixels_of(data, (150, 200), jpeg_scaling=True), wanted)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("kind", KINDS)
def test_orientation_off_keeps_stored_pixels(kind):
    plain = image_bytes((123, 77), **KINDS[kind])
    data = turned_file(plain, 6)
    assert np.array_equal(pixels_of(data, (37, 23), exif_orientation=False), pixels_of(plain, (37, 23)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4, 6, 8, 9, 11])
def test_numbers_of_every_type(kind, order):
    """Pillow takes each but bytes, which it doesn't read as a number."""
    data = turned_file(image_bytes(), 6, exif_block(6, order, kind))
    assert orientation_of(data) == (1 if kind == 1 else 6)
    assert by_pillow(data).size == ((40, 30) if kind == 1 else (30, 40))


def test_exif_block_is_found_at_every_allowed_place():
    png, block = image_bytes((40, 30), "PNG"), exif_block(6)
    end = png.index(b"IEND") - 4
    behind = png[:end] + chunk(b"eXIf", block) + png[end:]
    assert orientation_of(behind) == 6
    twice = turned_file(behind, 3)
    assert orientation_of(twice) == 6  # the last one
    assert by_pillow(twice).size == (30, 40)
    jpeg = image_bytes()
    joined = with_segment(with_segment(jpeg, 0xE1, b"Exif\0\0" + block[10:]), 0xE1, b"Exif\0\0" + block[:10])
    assert orientation_of(joined) == 6
    assert by_pillow(joined).size == (30, 40)
    doubled = turned_file(jpeg, 6, b"Exif\0\0" + block)
    assert orientation_of(doubled) == 6
    behind_the_scan = jpeg + segment(0xE1, b"Exif\0\0" + block)
    assert orientation_of(behind_the_scan) == 1
    webp = turned_file(image_bytes((40, 30), "WEBP"), 6)
    assert orientation_of(webp) == 6
    unflagged = webp[:20] + b"\0" + webp[21:]
    assert orientation_of(unflagged) == 1
    assert by_pillow(unflagged).size == (40, 30)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"MM",
        b"MM\0*",
        b"MM\0*\0\0\0\x08",
        b"MM\0*\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"MM\0+\0\x08\0\0" + bytes(20),
        b"JFIF",
        bytes(100),
    ],
)
def test_unreadable_exif_block_turns_nothing(block):
    assert exif.orientation(block) == 1
    for kind in ("JPEG", "PNG", "WEBP"):
        plain = image_bytes((40, 30), kind)
        assert np.array_equal(pixels_of(turned_file(plain, 6, block), (7, 9)), pixels_of(plain, (7, 9)))


def test_exif_bomb_counts_as_upright():
    block = b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\0\0\0\0\x01\0\x06\0\0" * 65_535
    assert exif.orientation(block) == 1  # all of a type that there isn't
    assert orientation_of(exif_bomb()) == 1


@pytest.mark.filterwarnings("ignore")
def test_damaged_blocks_are_read_as_pillow_reads_them():
    rng = random.Random(7)
    photo = image_bytes((4, 4), "PNG")
    found = {True: 0, False: 0}
    for _ in range(4000):
        order = rng.choice("<>")
        block = bytearray(exif_block(rng.randrange(10), order, rng.choice((3, 3, 4, 6, 8, 9, 11))))
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            at = rng.choice((*range(10), *range(22, 34)))  # not what another entry names, of which Pillow may stop
            # Bits of small numbers, so that many blocks stay readable.
            block[at] = rng.choice((0, 1, 2, 3, 6, 8, 0x12, rng.randrange(256)))
        if rng.random() < 0.2:
            del block[rng.randrange(len(block)) :]
        info = Image.Exif()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                info.load(b"Exif\0\0" + bytes(block))
                wanted = info.get(0x0112, 1)
            except (SyntaxError, OSError, ValueError, struct.error):
                wanted = 1
        wanted = int(wanted) if not isinstance(wanted, (bytes, str)) and wanted in range(1, 9) else 1
        ours = exif.orientation(bytes(block))
        elsewhere = ours == 1 != wanted  # a value that lies outside of its entry, which isn't followed
        assert ours == wanted or elsewhere, bytes(block)
        found[elsewhere] += 1
    assert found[True] < 40
    assert orientation_of(turned_file(photo, 8)) == 8
