"""The native core against Pillow: the same numbers, and the same files refused."""

from __future__ import annotations

import os
import random
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fakes import image_bytes
from jpegs import PREPARATIONS, TF, corpus, damage, decode, decode_by_pillow, same, with_segment
from pictures import arithmetic, empty_scans, segment, turned_file
from PIL import Image

from clothing_contract import FITS
from clothing_contract.fitting import Fit
from clothing_contract.scaling import Scaling
from clothing_gateway.errors import BrokenImage
from clothing_gateway.image import decode as decoding

DATASET = Path(os.environ.get("CLOTHING_DATASET", Path(__file__).parents[4] / "shared" / "dataset"))
# Every so many of the photos; 1 takes all 3,409 of them (make dataset), for minutes.
EVERY = int(os.environ.get("CLOTHING_DATASET_EVERY", "40"))
SECONDS = float(os.environ.get("FUZZ_SECONDS", "20"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))

CORPUS = corpus()
FILTERS = ["box", "bilinear", "hamming", "bicubic", "lanczos"]
# Of scans, segments and tables.
AT_LIMITS = [
    *(empty_scans((64, 48), scans, components) for scans in (99, 100, 101) for components in (1, 3)),
    arithmetic((64, 48), 100),
    *(CORPUS["17 square"][:2] + segment(0xE5, b"") * count + CORPUS["17 square"][2:] for count in (990, 993, 995)),
    *(with_segment(CORPUS["17 square"], 0xDB, (b"\0" + b"\1" * 64) * count) for count in (999, 1000)),
]
SIZES = [(299, 299), (37, 23), (23, 180), (8, 8), (1, 1), (3, 500)]

pytestmark = pytest.mark.skipif(decoding.core is None, reason="the native core is not installed")


def check(data, size=(299, 299), prepare=None, resampling="nearest", fit=decoding.STRETCH):
    """The core's result, compared with Pillow's."""
    arguments = (size, prepare, resampling, fit)
    ours, pillows = decode(data, *arguments), decode_by_pillow(data, *arguments)
    if not same(ours, pillows):
        pytest.fail(f"{arguments}: {ours} is not Pillow's {pillows}", pytrace=False)
    return ours


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CORPUS)
def test_every_jpeg_kind_equals_pillow(name, size):
    assert (decoding.core.read_header(CORPUS[name]) is None) == (name == "cmyk")
    for prepare in PREPARATIONS:
        check(CORPUS[name], size, prepare)
    for resampling in FILTERS:
        check(CORPUS[name], size, TF, resampling)


@pytest.mark.parametrize("taken", [1, 2, 3, 7, 64, 299])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_every_width_and_height_equals_pillow(taken, subsampling):
    for side in range(1, 140):
        check(image_bytes((side, 5), subsampling=subsampling), (taken, 3))
        check(image_bytes((9, side), subsampling=subsampling), (3, taken))


@pytest.mark.parametrize("resampling", FILTERS)
def test_filters_equal_pillow_at_every_width_and_height(resampling):
    """Shrunk, enlarged and as it is; to one pixel and of one."""
    for side in (*range(1, 20), 33, 64, 139):
        for taken in (1, 2, 7, 64, 139):
            check(image_bytes((side, 5)), (taken, 3), None, resampling)
            check(image_bytes((9, side)), (3, taken), None, resampling)
            check(image_bytes((side, side), mode="L"), (taken, taken), None, resampling)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (80, 900), (900, 80)], ids=str)
def test_filters_equal_pillow_for_turned_photos(size, orientation):
    """Pillow resizes the height first where it shrinks more than twice as much."""
    data = turned_file(image_bytes(size), orientation)
    for resampling in FILTERS:
        for fit in (decoding.STRETCH, Fit("crop", 40), *map(Fit, FITS[2:])):
            check(data, (37, 23), None, resampling, fit)


@pytest.mark.parametrize("resampling", FILTERS)
@pytest.mark.parametrize(
    ("photo", "start", "there", "resized"),
    [
        (500, 0, 500, 37),
        (37, 0, 37, 500),
        (640, 0, 640, 224),
        (224, 0, 224, 224),
        (1, 0, 1, 3),
        (1000, 0, 1000, 1),
        (500, 113, 375, 37),
        (100, 7, 20, 90),
        (50, 49, 1, 4),
        (99, 20, 31, 31),
    ],
)
def test_weights_are_pillows_own(photo, start, there, resized, resampling):
    """Resizing a picture of int32, Pillow rounds a single pixel of 2^22 as it rounds a weight."""
    impulses = Image.fromarray(np.eye(photo, dtype=np.int32) << 22)
    part = (start, 0, start + there, photo)
    wanted = np.asarray(impulses.resize((resized, photo), Image.Resampling[resampling.upper()], part)).T
    half = resized // 2
    for first, kept in ((0, resized), (half, resized - half)):
        found = decoding.core.weights(resampling, photo, start, there, resized, first, kept)
        starts, weights = (np.frombuffer(one, np.int32) for one in found)
        got = np.zeros((kept, photo), np.int32)
        for row, at, values in zip(got, starts, weights.reshape(kept, -1), strict=True):
            row[at : at + len(values)] = values
        assert np.array_equal(got, wanted[first:])


def test_columns_and_rows_are_pillows_for_large_pictures():
    """Pillow adds steps up, and the sum's last bits decide about a pixel."""
    rng = random.Random(5)
    for _ in range(60):
        side, taken = rng.randint(140, 9000), rng.choice((160, 224, 299, 331, rng.randint(1, 1200)))
        check(image_bytes((side, 8), mode="L", seed=side), (taken, 2))
        check(image_bytes((8, side), seed=side), (2, taken))


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((4000, 3000), {}),
        ((4000, 3000), {"progressive": True}),
        ((4000, 3000), {"subsampling": 0}),
        ((4000, 3000), {"mode": "L"}),
        ((8192, 6144), {}),
    ],
    ids=str,
)
def test_large(size, options):
    data = image_bytes(size, **options)
    assert isinstance(check(data, prepare=TF), np.ndarray)
    assert isinstance(check(data, (224, 224), TF, "lanczos", Fit("crop", 256)), np.ndarray)
    for resampling in ("nearest", "bilinear"):
        assert decode(data[: len(data) // 2], (299, 299), TF, resampling) is BrokenImage


def test_photos():
    files = sorted(DATASET.glob("*/*/*.jpg"))[::EVERY]
    if not files:
        pytest.skip(f"no photos under {DATASET}; CLOTHING_DATASET names another place")
    for file in files:
        data = file.read_bytes()
        assert decoding.core.read_header(data) is not None, file
        assert isinstance(check(data, prepare=TF), np.ndarray), file
        for resampling in FILTERS:
            assert isinstance(check(data, (224, 224), TF, resampling, Fit("crop", 256)), np.ndarray), file


@pytest.mark.parametrize("name", ["4:2:0", "progressive", "restarts", "tall", "grey", "turned", "17 square"])
def test_truncation_at_every_offset(name):
    data = CORPUS[name]
    step = max(len(data) // 400, 1)
    ends = {*range(3, len(data), step), *range(len(data) - 40, len(data))}
    for resampling in ("nearest", "bilinear"):
        assert {check(data[:end], (7, 9), None, resampling, Fit("crop", 12)) for end in ends} == {BrokenImage}
    for behind in (b"\xff", b"\xff\xd8", b"x" * 100_000, data):
        assert same(check(data + behind, (7, 9)), decode(data, (7, 9), None))


def test_files_that_pillow_does_not_open_are_refused():
    plain = CORPUS["4:2:0"]
    refused = {
        "jfif cut short": with_segment(plain, 0xE0, b"JFIF\0"),
        "adobe cut short": with_segment(plain, 0xEE, b"Adobe"),
    }
    assert {name: check(data) for name, data in refused.items()} == dict.fromkeys(refused, BrokenImage)


def test_damaged_metadata_is_skipped():
    """Of which Pillow alone would refuse the file."""
    plain = CORPUS["4:2:0"]
    no_resolution = plain.replace(b"JFIF\0\x01\x01\x01", b"JFIF\0\x01\x01\0")
    decoded = {
        "profile cut short": with_segment(plain, 0xE2, b"ICC_PROFILE\0"),
        "photoshop cut short": with_segment(plain, 0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
        "exif in which Pillow trips": with_segment(
            no_resolution,
            0xE1,
            b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x02\x01\x28\0\3\0\0\0\1\0\2\0\0\x01\x1a\0\5\0\0\0\0\0\0\0\0",
        ),
        "pictures cut short": with_segment(plain, 0xE2, b"MPF\0II"),
    }
    expected = decode(plain, (299, 299), None)
    assert [name for name, data in decoded.items() if not same(check(data), expected)] == []


def test_files_are_verified_where_the_model_takes_encoded_photos():
    data = CORPUS["pieces"]
    assert check(data, None) is None
    assert check(data[:-2000], None) is BrokenImage


@pytest.mark.timeout(SECONDS + 60)
def test_damaged(tmp_path):
    rng = random.Random(SEED)
    files = [*CORPUS.values(), *AT_LIMITS]
    end = time.monotonic() + SECONDS
    counts = {}
    while time.monotonic() < end:
        data = damage(rng.choice(files), rng, files)
        size = rng.choice([*SIZES, (rng.randint(1, 60), rng.randint(1, 60)), None])
        prepare = rng.choice(PREPARATIONS)
        resampling = rng.choice(["nearest", *FILTERS])
        fit = rng.choice([decoding.STRETCH, Fit("crop", rng.randint(1, 60)), *map(Fit, FITS[2:])])
        (tmp_path / "last.jpg").write_bytes(data)
        ours = check(data, size, prepare, resampling, fit)
        by = "core" if decoding.core.read_header(data) else "Pillow"
        key = f"{by}: {'pixels' if ours is None or isinstance(ours, np.ndarray) else ours.__name__}"
        counts[key] = counts.get(key, 0) + 1
    print(f"seed {SEED}: {counts}")
    assert counts["core: pixels"] > 10
    assert counts["core: BrokenImage"] > 10


def test_concurrent_decodes_equal_pillow():
    files = list(CORPUS.values())
    expected = [decode(data, (37, 23), TF) for data in files]
    with ThreadPoolExecutor(8) as pool:
        rounds = [list(pool.map(lambda data: decode(data, (37, 23), TF), files)) for _ in range(20)]
    assert all(same(ours, one) for round_ in rounds for ours, one in zip(round_, expected, strict=True))


def test_errors_leak_no_memory():
    """Errors leave libjpeg by longjmp."""
    files = [CORPUS["tall"], CORPUS["tall"][:-500], CORPUS["progressive"][:3000], CORPUS["pieces"][:70_000]]
    files += [damage(CORPUS["4:2:0"], random.Random(seed), files) for seed in range(40)]

    def decode_all(times):
        for _ in range(times):
            for data in files:
                decode(data, (64, 64), TF)
                decode(data, (64, 64), TF, "bilinear")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    first = decode_all(20)
    assert decode_all(100) - first < 4 << 10  # KiB: less than 1 kB a file


def test_wrong_arguments_are_refused():
    data, table = CORPUS["4:2:0"], Scaling("tf").table.values  # 123 x 77 pixels
    core = decoding.core
    pixels, numbers = np.empty((8, 8, 3), np.uint8), np.empty((8, 8, 3), np.float32)
    places = np.arange(8, dtype=np.int32)
    for out, values in (
        (pixels[1:], None),
        (pixels[:, 1:], None),
        (pixels[..., 1:], None),
        (pixels, table),
        (numbers, None),
        (numbers, table[:255]),
        (np.empty(8 * 8 * 12 + 1, np.uint8)[1:].view(np.float32).reshape(8, 8, 3), table),
        (np.empty((8, 8, 3, 1), np.uint8), None),
    ):
        with pytest.raises(ValueError, match="must hold"):
            core.decode(data, out, places, places, values)
    for rows, columns in (
        (places[::-1].copy(), places),
        (places - 1, places),
        (places + 71, places),
        (places, places - 1),
        (places, places + 117),
        (places.astype(np.int64), places),
        (places[:0], places),
        (places.view(np.uint8)[:31], places),
    ):
        with pytest.raises(ValueError, match="must hold"):
            core.decode(data, pixels, rows, columns, None)
    core.decode(data, pixels, places + 70, places + 116, None)
    assert not pixels[-1].any()  # behind the last row and column all is black
    assert not pixels[:, -1].any()
    assert pixels[:-1, :-1].any()
    with pytest.raises(BufferError):
        core.decode(data, bytes(8 * 8 * 3), places, places, None)
    for wrong in (b"", b"\xff\xd8", CORPUS["cmyk"], image_bytes(kind="PNG")):
        assert core.read_header(wrong) is None
        with pytest.raises(core.BrokenJpeg, match="read_header"):
            core.decode(wrong, pixels, places, places, None)


def test_wrong_weights_are_refused():
    """Results behind the photo, out of order, of other types, or so heavy that a sum would overflow."""
    data = CORPUS["4:2:0"]  # 123 x 77 pixels
    core = decoding.core
    pixels = np.empty((8, 8, 3), np.uint8)
    starts, weights = np.arange(8, dtype=np.int32) * 9, np.full((8, 14), 1 << 18, np.int32)
    good = (starts, weights)
    core.resample(data, pixels, good, good, False)
    core.resample(data, pixels[::-1, :, ::-1], good, good, True)
    heavy = weights.copy()
    heavy[3] = (1 << 23) // 14 + 1
    for wrong in (
        (starts + 1, weights),
        (starts - 1, weights),
        (starts[::-1].copy(), weights),
        (starts[:7], weights),
        (starts, weights[:, :13].astype(np.int64)[:7].copy()),
        (starts, np.full((8, 78), 1, np.int32)),
        (starts, heavy),
        (starts, -heavy),
        (starts[:0], weights),
        (starts, weights[:0]),
        (starts.view(np.uint8)[:31], weights),
        (np.empty(33, np.uint8)[1:].view(np.int32), weights),
    ):
        with pytest.raises(ValueError, match="must hold"):
            core.resample(data, pixels, wrong, good, False)
    for out in (pixels[1:], pixels[:, 1:], pixels[..., 1:], pixels.astype(np.float32), pixels[..., None]):
        with pytest.raises(ValueError, match="must hold"):
            core.resample(data, out, good, good, False)
    with pytest.raises(BufferError):
        core.resample(data, bytes(8 * 8 * 3), good, good, False)
    with pytest.raises(core.BrokenJpeg, match="read_header"):
        core.resample(b"", pixels, good, good, False)
    for arguments in (
        ("nearest", 8, 0, 8, 8, 0, 8),
        ("box", 0, 0, 0, 8, 0, 8),
        ("box", 65_536, 0, 8, 8, 0, 8),
        ("box", 8, -1, 8, 8, 0, 8),
        ("box", 8, 1, 8, 8, 0, 8),
        ("box", 8, 2**31 - 1, 2**31 - 1, 8, 0, 8),
        ("box", 8, 0, 0, 8, 0, 8),
        ("box", 8, 0, 8, 0, 0, 1),
        ("box", 8, 0, 8, 8, -1, 1),
        ("box", 8, 0, 8, 8, 0, 0),
        ("box", 8, 0, 8, 8, 1, 8),
        ("box", 8, 0, 8, 8, 2**31 - 1, 2**31 - 1),
    ):
        with pytest.raises(ValueError, match="no filter"):
            core.weights(*arguments)


def test_without_the_core_pillow_decodes(monkeypatch):
    monkeypatch.setattr(decoding, "core", None)
    assert decoding.jpeg_decoder().startswith("Pillow ")
    assert not decoding.read_header(CORPUS["4:2:0"], 1 << 30, 1 << 40).plain


def test_the_core_serves_all_but_scaled_files_and_antialiased_tensorflow():
    for resampling in ("nearest", "tf-bilinear", *FILTERS):
        assert decoding.read_header(CORPUS["4:2:0"], 1 << 30, 1 << 40, resampling).plain
    for options in ({"resampling": "tf-bilinear-antialias"}, {"jpeg_scaling": True}):
        assert not decoding.read_header(CORPUS["4:2:0"], 1 << 30, 1 << 40, **options).plain
