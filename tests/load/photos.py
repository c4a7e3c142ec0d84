"""The benchmark's photos, with the right scores of each.

Dataset photos: of the validation split, spread over the classes. Where the dataset is missing, drawn ones of the same
size stand in, and the results say so. 12-megapixel photos: the same made large (Lanczos, 4000 x 3000), with noise in
the luma, sigma 5, at quality 85, so that a file has about 2 MB: phone-like in what decoding them costs.
"""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from processes import ROOT, dataset_photos

SMALL, LARGE = 64, 12
LARGE_SIZE = (4000, 3000)
SIZE = (299, 299)
SCORES = 10
_RECIPE = "1"  # goes up when pictures come out differently: cached ones are then made anew


@dataclass(frozen=True)
class Photos:
    """A set of photos in a folder of its own."""

    name: str
    folder: Path
    source: str

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.jpg"))

    def describe(self) -> dict[str, object]:
        """For the results."""
        sizes = sorted(file.stat().st_size for file in self.files)
        return {"photos": len(sizes), "median_bytes": sizes[len(sizes) // 2], "source": self.source}

    def listing(self, file: Path, base_url: str, expected: Callable[[bytes], list[float]] | None = None) -> Path:
        """What the load generator reads: each photo, where it is, and its scores.

        They are of the course's model, unless ``expected`` gives them.
        """
        photos = [
            {"path": str(path), "url": f"{base_url}/{path.name}", "scores": (expected or scores)(path.read_bytes())}
            for path in self.files
        ]
        file.write_text(json.dumps(photos))
        return file

    def turned(self, folder: Path) -> Photos:
        """Copies in a folder that EXIF declares to be turned by 90°, as phones do."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        content = exif.tobytes()
        segment = b"\xff\xe1" + (len(content) + 2).to_bytes(2) + content
        for file in self.files:
            data = file.read_bytes()
            (folder / file.name).write_bytes(data[:2] + segment + data[2:])
        return replace(self, folder=folder)


def scores(data: bytes, kind: str = "float32") -> list[float]:
    """Expected scores of the benchmark's model server: ten values of the tensor.

    They show that every pixel is right.

    The pipeline is keras-image-helper's: Pillow's pixels, NEAREST, and its operations in float32. A model that takes
    uint8 gets the pixels, one that takes a string the file.
    """
    if kind == "string":
        flat = np.frombuffer(data, np.uint8)
    else:
        with Image.open(io.BytesIO(data)) as image:
            flat = np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.NEAREST)).ravel()
    if kind == "float32":
        numbers = flat.astype(np.float32)
        numbers /= 127.5
        numbers -= 1.0
        return spread(numbers)
    return spread(flat)


def spread(values: npt.NDArray[Any]) -> list[float]:
    """Ten values, each of the middle of a tenth of the tensor, as in model.go."""
    return [float(values[(2 * i + 1) * values.size // (2 * SCORES)]) for i in range(SCORES)]


def _drawn(count: int) -> list[Image.Image]:
    """The sample photo's drawing, varied by a seed, in the dataset's median size."""
    spec = importlib.util.spec_from_file_location("draw_sample_photo", ROOT / "scripts/draw-sample-photo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        pixels = np.asarray(module.draw().resize((400, 534), Image.Resampling.LANCZOS), np.int16)
        pixels = np.roll(pixels, rng.integers(-60, 60, 2), (0, 1)) + rng.integers(-40, 40, 3)
        rough = pixels + rng.normal(0, 3, pixels.shape[:2])[..., None]
        drawn.append(Image.fromarray(rough.clip(0, 255).astype(np.uint8)))
    return drawn


def _enlarged(data: bytes, seed: int) -> bytes:
    with Image.open(io.BytesIO(data)) as small:
        image = small.convert("RGB").resize(LARGE_SIZE, Image.Resampling.LANCZOS)
    noise = np.random.default_rng(seed).normal(0, 5, (LARGE_SIZE[1], LARGE_SIZE[0])).astype(np.int16)
    pixels = (np.asarray(image, np.int16) + noise[..., None]).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=85)
    return out.getvalue()


def prepare(cache: Path, say: Callable[[str], object], small: int = SMALL, large: int = LARGE) -> tuple[Photos, Photos]:
    """The two sets, generated unless they are in the cache."""
    files = dataset_photos(small)
    source = "dataset" if files else "drawn"
    folder = cache / f"photos-{_RECIPE}-{source}-{small}-{large}"
    both = (
        Photos("dataset" if files else "drawn", folder / "small", source),
        Photos("12 MP", folder / "large", f"{source}, enlarged"),
    )
    if (folder / "complete").exists():
        return both
    shutil.rmtree(folder, ignore_errors=True)
    for one in both:
        one.folder.mkdir(parents=True)
    if files:
        for file in files:
            shutil.copyfile(file, both[0].folder / f"small-{file.parent.name}-{file.name}")
    else:
        say("the dataset is missing (CLOTHING_DATASET says where it is): drawn photos stand in for its own")
        for number, image in enumerate(_drawn(small)):
            image.save(both[0].folder / f"small-{number:03d}.jpg", quality=85)
    sources = both[0].files
    for number in range(large):
        say(f"making 12-megapixel photos: {number + 1} of {large}")
        data = sources[number * len(sources) // large].read_bytes()
        (both[1].folder / f"large-{number:02d}.jpg").write_bytes(_enlarged(data, number))
    (folder / "complete").touch()
    return both
