"""Every kind of file against Pillow's own pixels, and the preprocessing against keras-image-helper itself."""

from __future__ import annotations

import base64
import io
import os
import shutil
import struct
import subprocess
import sysconfig
import zlib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from fakes import image_bytes
from keras_image_helper import create_preprocessor
from pictures import by_pillow
from PIL import Image, ImageOps, PngImagePlugin

from clothing_contract import RESAMPLINGS
from clothing_contract.scaling import Scaling
from clothing_gateway.errors import BrokenImage, GatewayError, NotAnImage, TooManyPixels, UnsupportedImage
from clothing_gateway.image import decode, layout

SIZE = (37, 23)
DATASET = Path(os.environ.get("CLOTHING_DATASET", Path(__file__).parents[4] / "shared" / "dataset"))


def pixels_of(data, size=SIZE):
    header = decode.read_header(data, 10**8, 1 << 40)
    return decode.decode(data, header, size)


def turned_by_exif(image):
    """As Pillow turns it, or as it is where Pillow can't read the tag."""
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, struct.error):
        return image


TURNED = Image.Exif()
TURNED[0x0112] = 6  # a quarter


def animated(kind):
    frames = [Image.open(io.BytesIO(image_bytes((50, 40), "PNG", seed=seed))) for seed in (1, 2, 3)]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=10)
    return out.getvalue()


def two_pictures():
    """A JPEG with a second one behind it (MPO), as some phones write them."""
    frames = [Image.open(io.BytesIO(image_bytes((50, 40), "PNG", seed=seed))) for seed in (1, 2)]
    out = io.BytesIO()
    frames[0].save(out, "MPO", save_all=True, append_images=frames[1:])
    return out.getvalue()


def transparent_palette():
    image = Image.open(io.BytesIO(image_bytes((50, 40), "PNG", "P")))
    out = io.BytesIO()
    image.save(out, "PNG", transparency=bytes(range(256)))
    return out.getvalue()


KINDS = {
    "jpeg 4:2:0": image_bytes((123, 77), subsampling=2),
    "jpeg 4:2:2": image_bytes((123, 77), subsampling=1),
    "jpeg 4:4:4": image_bytes((123, 77), subsampling=0),
    "jpeg progressive": image_bytes((123, 77), progressive=True),
    "jpeg optimised": image_bytes((123, 77), optimize=True, quality=95),
    "jpeg with restarts": image_bytes((123, 77), restart_marker_blocks=2),
    "jpeg grey": image_bytes((123, 77), mode="L"),
    "jpeg grey progressive": image_bytes((123, 77), mode="L", progressive=True),
    "jpeg cmyk": image_bytes((123, 77), mode="CMYK"),
    "jpeg turned": image_bytes((60, 40), exif=TURNED),
    "jpeg with a thumbnail and a profile": image_bytes((123, 77), icc_profile=b"x" * 70_000, comment=b"c"),
    "jpeg mpo": two_pictures(),
    "png rgb": image_bytes((123, 77), "PNG"),
    "png rgba": image_bytes((123, 77), "PNG", "RGBA"),
    "png grey": image_bytes((123, 77), "PNG", "L"),
    "png grey alpha": image_bytes((123, 77), "PNG", "LA"),
    "png one bit": image_bytes((123, 77), "PNG", "1"),
    "png sixteen bits": image_bytes((123, 77), "PNG", "I;16"),
    "png palette": image_bytes((123, 77), "PNG", "P"),
    "png transparent palette": transparent_palette(),
    "webp": image_bytes((123, 77), "WEBP"),
    "webp lossless": image_bytes((123, 77), "WEBP", lossless=True),
    "webp alpha": image_bytes((123, 77), "WEBP", "RGBA"),
    "webp alpha lossless": image_bytes((123, 77), "WEBP", "RGBA", lossless=True),
    "webp animated": animated("WEBP"),
    "png turned": image_bytes((60, 40), "PNG", exif=TURNED),
    "webp turned": image_bytes((60, 40), "WEBP", exif=TURNED),
    "webp with metadata": image_bytes((123, 77), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0"),
    "gif": image_bytes((123, 77), "GIF", "P"),
    "gif transparent and interlaced": image_bytes((123, 77), "GIF", "P", transparency=3, interlace=1),
    "gif grey": image_bytes((123, 77), "GIF", "L"),
    "gif animated": animated("GIF"),
    "bmp": image_bytes((123, 77), "BMP"),
    "bmp palette": image_bytes((123, 77), "BMP", "P"),
    "bmp one bit": image_bytes((123, 77), "BMP", "1"),
    "bmp rgba": image_bytes((123, 77), "BMP", "RGBA"),
    "one pixel": image_bytes((1, 1), "PNG"),
    "a line": image_bytes((500, 1), "PNG"),
    "large": image_bytes((1200, 900)),
    "the size itself": image_bytes(SIZE, "PNG"),
}


# Of this one Pillow's conversion makes white, below.
AS_KERAS_IMAGE_HELPER = {name: data for name, data in KINDS.items() if name != "png sixteen bits"}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("data", AS_KERAS_IMAGE_HELPER.values(), ids=AS_KERAS_IMAGE_HELPER.keys())
def test_pixels_are_those_of_keras_image_helper(data):
    helper = create_preprocessor("xception", target_size=SIZE)
    reference = np.array(helper.resize_image(turned_by_exif(Image.open(io.BytesIO(data)))))
    ours = pixels_of(data)
    assert ours.dtype == np.uint8
    assert ours.shape == (SIZE[1], SIZE[0], 3)
    assert np.array_equal(ours, reference)


def test_grey_of_16_bits_is_scaled_to_8():
    grey = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    out = io.BytesIO()
    Image.fromarray(grey).save(out, "PNG")
    assert np.array_equal(pixels_of(out.getvalue(), (256, 256)), (grey >> 8).astype(np.uint8)[..., None].repeat(3, 2))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("data", KINDS.values(), ids=KINDS.keys())
def test_header_size_is_the_decoded_size(data):
    header = decode.read_header(data, 10**8, 1 << 40)
    image = Image.open(io.BytesIO(data))
    image.load()
    assert (header.width, header.height) == image.size


@pytest.mark.parametrize(
    ("name", "ours"),
    [("xception", "tf"), ("inception_v3", "tf"), ("resnet50", "caffe"), ("vgg16", "caffe")],
)
def test_preprocessing_is_keras_image_helpers_bit_for_bit(name, ours, tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(image_bytes((640, 480)))
    reference = create_preprocessor(name, target_size=(299, 299)).from_path(str(file))[0]
    numbers = Scaling(ours).numbers(pixels_of(file.read_bytes(), (299, 299)))
    assert numbers.dtype == reference.dtype == np.float32
    assert np.array_equal(numbers, reference)
    assert numbers.flags.c_contiguous


def test_real_photos_are_preprocessed_as_by_keras_image_helper():
    files = sorted((DATASET / "validation").glob("*/*.jpg"))[::30] if DATASET.is_dir() else []
    if not files:
        pytest.skip(f"no photos under {DATASET}; CLOTHING_DATASET names another place")
    helper = create_preprocessor("xception", target_size=(299, 299))
    for file in files:
        ours = Scaling("tf").numbers(pixels_of(file.read_bytes(), (299, 299)))
        assert np.array_equal(ours, helper.from_path(str(file))[0]), file


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"GIF",
        b"<html><body>Not found</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"%PDF-1.7",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"8BPS\0\1",
        b"SIMPLE  =                    T",
        b"II*\0\x08\0\0\0",
        b"P6 1 1 255 abc",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"\0\0\0\x18ftypheic",
        b"\0\0\0\x1cftypavif",
        b"version https://git-lfs.github.com/spec/v1\n",
        bytes(1000),
        b"\xff\xd8",
    ],
)
def test_files_that_are_no_images(data):
    with pytest.raises(NotAnImage):
        decode.read_header(data, 10**8, 1 << 40)


OTHERS = {
    "HEIC": [
        b"\0\0\0\x18ftypheic" + bytes(16),
        b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(20),
        b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic",
    ],
    "AVIF": [b"\0\0\0\x1cftypavif" + bytes(20), b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf"],
    "TIFF": [by_pillow("TIFF", (9, 8)), b"MM\0*\0\0\0\x08"],
    "JPEG XL": [b"\xff\x0a\xfa\x1f", b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl "],
    "JPEG 2000": [b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ", b"\xff\x4f\xff\x51\0\x2f"],
    "ICO": [by_pillow("ICO", (16, 16))],
    "SVG": [
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    ],
    "PDF": [b"%PDF-1.7"],
    "PSD": [b"8BPS\0\1" + bytes(20)],
    "a video": [b"\0\0\0\x18ftypisom\0\0\0\0isomavif", b"\0\0\0\x14ftypqt  " + bytes(8), b"\x1aE\xdf\xa3" + bytes(8)],
    "compressed (gzip)": [b"\x1f\x8b\x08" + bytes(9)],
    "a ZIP archive": [b"PK\3\4" + bytes(9)],
    "a Git LFS pointer": [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"],
    "a web page": [b"<html><svg>", b"\n<!DOCTYPE html>\n<title>photo</title>"],
    "base64 text": [base64.b64encode(by_pillow(kind, (9, 8))) for kind in ("JPEG", "PNG")],
    "a data: URL": [b"data:image/jpeg;base64,/9j/4AAQ"],
    "empty": [b""],
}


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, files in OTHERS.items() for data in files])
def test_formats_that_are_not_decoded_are_named(name, data):
    with pytest.raises(NotAnImage) as caught:
        decode.read_header(data, 10**8, 1 << 40)
    assert caught.value.detail == f"The file is {name}; send JPEG, PNG, WebP, GIF or BMP."


@pytest.mark.parametrize(
    "data", [b"\0\0\0\x18ftypcrx \0\0\0\0isomavif", b"<htm", b"\0\0\2\0", b"RIFF\0\0\0\0WAVE", b"\r\n\xff\xd8\xff\xe0"]
)
def test_files_of_no_such_format_are_not_named(data):
    with pytest.raises(NotAnImage) as caught:
        decode.read_header(data, 10**8, 1 << 40)
    assert "The file is" not in caught.value.detail


@pytest.mark.parametrize("frame", [b"\xff\xc1\0\x11\x0c", b"\xff\xc3\0\x11\x08", b"\xff\xf7\0\x11\x08"])
def test_kinds_of_jpeg_that_are_not_decoded_are_not_called_damaged(frame):
    """12 bits, lossless, and JPEG-LS."""
    head = b"\xff\xd8" + frame + b"\0\x0a\0\x0a\x03\x01\x22\0\x02\x11\x01\x03\x11\x01"
    data = head + b"\xff\xda\0\x0c\x03\x01\0\x02\x11\x03\x11\0\x3f\0" + bytes(50) + b"\xff\xd9"
    with pytest.raises(UnsupportedImage, match="not supported"):
        decode.read_header(data, 10**8, 1 << 40)


def test_a_png_with_much_metadata_is_whole():
    """Of which Pillow alone refuses the file (MAX_TEXT_CHUNK)."""
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 1_500_000, zip=True)
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(out, "PNG", pnginfo=info)
    assert (pixels_of(out.getvalue()) == (200, 30, 30)).all()


def test_a_jpeg_without_its_last_two_bytes_is_cut_off():
    """As Pillow, and so the course, has it; browsers and TensorFlow take it."""
    data = image_bytes((64, 64))
    with pytest.raises(BrokenImage, match="cut off"):
        pixels_of(data[:-2])


CUT = {name: data for name, data in KINDS.items() if len(data) > 300}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6])
@pytest.mark.parametrize("data", CUT.values(), ids=CUT.keys())
def test_truncated_file_is_broken(data, part):
    """Where Pillow itself refuses it; an animation is whole as soon as its first frame is."""
    cut = data[: max(int(len(data) * part), 20)]
    try:
        image = Image.open(io.BytesIO(cut), formats=layout.FORMATS)
        image.convert("RGB").load()
    except Exception:  # noqa: BLE001
        with pytest.raises(BrokenImage):
            pixels_of(cut)
    else:
        upright = turned_by_exif(image).convert("RGB")
        assert np.array_equal(pixels_of(cut), np.array(upright.resize(SIZE, Image.Resampling.NEAREST)))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_raise_nothing_but_our_errors(name):
    """And what is decoded, in spite of the damage, has the pixels that Pillow finds in the whole file."""
    data = KINDS[name]
    rng = np.random.default_rng(len(data))
    for _ in range(60):
        damaged = bytearray(data)
        for at in rng.integers(0, min(len(data), rng.choice((100, 4000))), rng.integers(1, 9)):
            damaged[at] = rng.integers(0, 256)
        try:
            ours = decode.decode(damaged := bytes(damaged), decode.read_header(damaged, 1 << 20, 1 << 28), SIZE)
        except GatewayError:
            continue
        try:
            image = Image.open(io.BytesIO(damaged), formats=layout.FORMATS)
            image.load()
            upright = turned_by_exif(image).convert("RGB")
            pixels = np.asarray(upright.resize(SIZE, Image.Resampling.NEAREST))
        except Exception:  # noqa: BLE001 - damage in metadata, of which Pillow would refuse the file
            continue
        assert np.array_equal(ours, pixels) or image.mode == "I;16"


def png_of(width, height):
    """The header of a PNG of any size, and nothing behind it."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def webp_of(width, height):
    body = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0"
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + b"VP8 \0\0\0\0"
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def gif_of(width, height):
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\0\0\0,\0\0\0\0"
        + struct.pack("<HH", width, height)
        + b"\0\x08\0;"
    )


def bmp_of(width, height):
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def jpeg_of(width, height):
    data = bytearray(image_bytes((16, 16)))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("make", [png_of, webp_of, gif_of, bmp_of, jpeg_of])
def test_decompression_bomb_is_refused_by_its_header(make):
    with pytest.raises(TooManyPixels, match="60000 x 60000"):
        decode.read_header(make(60000, 60000), 50 << 20, 1 << 40)
    pixels = 8000 * 6000
    assert decode.read_header(make(8000, 6000), pixels, 1 << 40).pixels == pixels
    with pytest.raises(TooManyPixels, match=f"8000 x 6000 pixels, and this gateway takes {pixels - 1}"):
        decode.read_header(make(8000, 6000), pixels - 1, 1 << 40)


def test_a_photo_that_needs_too_much_memory_is_refused():
    for kind in ("WEBP", "JPEG"):
        data = image_bytes((100, 100), kind)
        cost = decode.read_header(data, 10**8, 1 << 40).cost
        assert decode.read_header(data, 10**8, cost).cost == cost > 0
        with pytest.raises(TooManyPixels, match="more memory"):
            decode.read_header(data, 10**8, cost - 1)


def test_progressive_jpeg_is_detected_by_its_header():
    def several(data):
        return layout.read(data, "JPEG").scans_at is not None

    assert not several(KINDS["jpeg 4:2:0"])
    assert not several(KINDS["jpeg grey"])
    assert not several(KINDS["jpeg with a thumbnail and a profile"])
    assert several(KINDS["jpeg progressive"])
    one_scan = bytearray(KINDS["jpeg 4:4:4"])
    one_scan[one_scan.index(b"\xff\xda") + 4] = 1  # one of three components in the first scan
    assert several(bytes(one_scan))


def test_the_native_core_is_installed_where_it_can_be_built():
    """As the Makefile asks: a compiler, Python's headers, libjpeg's headers."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    includes = b"#include <Python.h>\n#include <stdio.h>\n#include <jpeglib.h>\n"
    command = [compiler, "-E", "-I", sysconfig.get_path("include"), "-"]
    if subprocess.run(command, input=includes, capture_output=True, check=False).returncode:
        pytest.skip("no headers of libjpeg-turbo on this machine")
    assert decode.core is not None
    assert decode.jpeg_decoder() == f"clothing_jpeg {metadata.version('clothing-jpeg')}, {decode.core.LIBJPEG}"


@pytest.mark.parametrize("resampling", [name for name in RESAMPLINGS if not name.startswith("tf-")])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_other_filters_give_pillows_own_pixels(resampling, kind):
    data = image_bytes((640, 480), kind)
    header = decode.read_header(data, 1 << 30, 1 << 40, resampling)
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(image.convert("RGB").resize((50, 40), Image.Resampling[resampling.upper()]))
    assert np.array_equal(decode.decode(data, header, (50, 40)), wanted)


@pytest.mark.parametrize(
    ("size", "part"), [((150, 150), 8), ((151, 100), 4), ((299, 299), 4), ((301, 300), 2), ((601, 10), 1)]
)
def test_jpeg_scaling_decodes_at_a_fraction_of_the_size(size, part):
    data = image_bytes((1200, 1200), "JPEG", quality=90)
    header = decode.read_header(data, 1 << 30, 1 << 40, jpeg_scaling=True)
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (1200 // part, 1200 // part))
        assert image.size == (1200 // part, 1200 // part)
        wanted = np.asarray(image.resize(size, Image.Resampling.NEAREST))
    scaled = decode.decode(data, header, size)
    assert np.array_equal(scaled, wanted)
    whole = decode.decode(data, decode.read_header(data, 1 << 30, 1 << 40), size)
    assert np.array_equal(scaled, whole) == (part == 1)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("BMP", "RGB"), ("WEBP", "RGB")])
def test_jpeg_scaling_leaves_other_formats_unchanged(kind, mode):
    data = image_bytes((400, 400), kind, mode)
    plain, scaled = (
        decode.decode(data, decode.read_header(data, 1 << 30, 1 << 40, jpeg_scaling=on), (20, 20))
        for on in (False, True)
    )
    assert np.array_equal(plain, scaled)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_scaling_in_every_mode(mode):
    data = image_bytes((400, 400), "JPEG", mode)
    header = decode.read_header(data, 1 << 30, 1 << 40, jpeg_scaling=True)
    assert decode.decode(data, header, (20, 20)).shape == (20, 20, 3)
