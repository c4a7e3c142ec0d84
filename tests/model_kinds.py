"""Small models of each kind of input and output, and what Keras's own pipeline gives for photos.

    model-image/.venv/bin/python tests/model_kinds.py

reads requests from stdin, a JSON object a line, and writes a JSON object for each to stdout, so that one process that
has imported TensorFlow serves many:

    {"command": [WORD, …]}                                      `clothing-model WORD …`: {"code", "stdout", "stderr"}
    {"make": NAME, "folder": FOLDER, "photos": FOLDER}          two models, the second slightly different:
        {"sources": [PATH, PATH], "raw": {PHOTO: [NUMBER, …]}, "probabilities": [{PHOTO: [NUMBER, …]}, …]}
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        labels: of its outputs; two for one number.
        scores: how /classify names its output.
        shape: of its input, without the batch.
        options: what `convert` is told of the training.
        is_exported: saved by `model.export` as a SavedModel, which says nothing of its last layer; else as a .keras.

    """

    labels: tuple[str, ...]
    scores: str
    shape: tuple[int, int, int]
    options: tuple[str, ...] = ()
    is_exported: bool = False


PETS = ("cat", "dog")
INSECTS = ("ant", "bee", "wasp")
KINDS = {
    # The homework of the course, and the commonest tutorials: ImageDataGenerator or load_img, and class_mode "binary".
    "sigmoid": Kind(PETS, "sigmoid", (48, 64, 3), ("--preprocessing=rescale",)),
    "logit": Kind(PETS, "logits", (32, 32, 3), ("--preprocessing=tf", "--resampling=bilinear")),
    "independent": Kind(INSECTS, "independent", (40, 40, 3), ("--preprocessing=caffe", "--resampling=bicubic")),
    # An int8 model's output has a scale of 1/256; nothing in the file or in the options says that it is a softmax.
    "softmax-256": Kind(INSECTS, "softmax", (32, 32, 3), ("--preprocessing=none",), is_exported=True),
    # As what comes from PyTorch.
    "nchw": Kind(INSECTS, "logits", (3, 36, 44), ("--preprocessing=torch", "--scores=logits"), is_exported=True),
    "grey": Kind(INSECTS, "softmax", (28, 28, 1), ("--preprocessing=rescale",)),
    "rescale": Kind(INSECTS, "softmax", (50, 50, 3), ("--preprocessing=rescale",)),
    "crop": Kind(
        INSECTS, "logits", (224, 224, 3),
        ("--preprocessing=torch", "--fit=crop", "--shorter-side=256", "--resampling=bilinear"),
    ),
    "tf-bilinear": Kind(
        INSECTS, "softmax", (60, 45, 3), ("--preprocessing=none", "--resampling=tf-bilinear"), is_exported=True
    ),
}  # fmt: skip


def loaded(kind: Kind, photos: list[Path], **options: str) -> Numbers:
    """Photos by Keras's load_img and img_to_array, from 0 to 255."""
    import keras

    size = kind.shape[1:] if kind.shape[0] == 3 else kind.shape[:2]
    images = [keras.utils.load_img(photo, target_size=size, **options) for photo in photos]
    return np.stack([keras.utils.img_to_array(image) for image in images])


def normalised(pixels: Numbers) -> Numbers:
    """As torchvision's ToTensor and Normalize, channels last."""
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    return (pixels / np.float32(255) - mean) / std


def by_sigmoids_author(kind: Kind, photos: list[Path]) -> Numbers:
    return loaded(kind, photos) / np.float32(255)


def by_logits_author(kind: Kind, photos: list[Path]) -> Numbers:
    import keras

    found: Numbers = keras.applications.xception.preprocess_input(loaded(kind, photos, interpolation="bilinear"))
    return found


def by_independents_author(kind: Kind, photos: list[Path]) -> Numbers:
    import keras

    found: Numbers = keras.applications.resnet50.preprocess_input(loaded(kind, photos, interpolation="bicubic"))
    return found


def by_nchws_author(kind: Kind, photos: list[Path]) -> Numbers:
    return np.ascontiguousarray(normalised(loaded(kind, photos)).transpose(0, 3, 1, 2))


def by_greys_author(kind: Kind, photos: list[Path]) -> Numbers:
    return loaded(kind, photos, color_mode="grayscale") / np.float32(255)


def by_image_data_generator(kind: Kind, photos: list[Path]) -> Numbers:
    """As flow_from_directory, without its random transform, which needs SciPy also where it has nothing to do."""
    from tf_keras.preprocessing.image import ImageDataGenerator

    generator = ImageDataGenerator(rescale=1.0 / 255)
    return np.stack([generator.standardize(pixels) for pixels in loaded(kind, photos, interpolation="nearest")])


def by_torchvisions_formula(kind: Kind, photos: list[Path]) -> Numbers:
    """Resize(256) and CenterCrop(224): torchvision's transforms/functional.py, for photos of more than 256 pixels."""
    (side,) = {kind.shape[0], kind.shape[1]}
    found = []
    for photo in photos:
        with Image.open(photo) as image:
            short, long = sorted(image.size)
            size = (256, int(256 * long / short)) if image.width <= image.height else (int(256 * long / short), 256)
            resized = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        top, left = round((resized.height - side) / 2.0), round((resized.width - side) / 2.0)
        found.append(np.asarray(resized.crop((left, top, left + side, top + side)), np.float32))
    return normalised(np.stack(found))


def by_image_dataset(kind: Kind, photos: list[Path]) -> Numbers:
    """As PNG, since TensorFlow decodes JPEG with a transform that is faster and less exact than libjpeg's own."""
    import keras

    folder = photos[0].parent.parent / "as-png"
    folder.mkdir(exist_ok=True)
    for photo in photos:
        with Image.open(photo) as image:
            image.convert("RGB").save(folder / f"{photo.stem}.png")
    images = keras.utils.image_dataset_from_directory(
        folder, labels=None, label_mode=None, shuffle=False, image_size=kind.shape[:2], batch_size=len(photos)
    )
    assert [Path(path).stem for path in images.file_paths] == [photo.stem for photo in photos]
    found: Numbers = next(images.as_numpy_iterator())
    return found


PIPELINES: dict[str, Callable[[Kind, list[Path]], Numbers]] = {
    "sigmoid": by_sigmoids_author,
    "logit": by_logits_author,
    "independent": by_independents_author,
    "softmax-256": loaded,
    "nchw": by_nchws_author,
    "grey": by_greys_author,
    "rescale": by_image_data_generator,
    "crop": by_torchvisions_formula,
    "tf-bilinear": by_image_dataset,
}


def network(name: str, numbers: Numbers) -> Any:
    """A model of some hundred weights whose logits have a deviation of 1 over the photos."""
    import keras

    kind, layers, ops = KINDS[name], keras.layers, keras.ops
    keras.utils.set_random_seed(sorted(KINDS).index(name))
    photo = keras.Input(kind.shape, name="photo")
    x = layers.Permute((2, 3, 1))(photo) if name == "nchw" else photo
    if "--preprocessing=none" in kind.options:
        x = layers.Rescaling(1.0 / 255)(x)
    x = layers.Conv2D(4, 5, strides=4, activation="relu", bias_initializer="uniform")(x)
    features = layers.Flatten()(layers.AveragePooling2D(max(1, min(x.shape[1:3]) // 4))(x))
    width = 1 if len(kind.labels) == 2 else len(kind.labels)
    logits = layers.Dense(width, name="logits")
    before = logits(features)
    activation = {"sigmoid": "sigmoid", "independent": "sigmoid", "softmax": "softmax"}.get(kind.scores)
    scores = layers.Activation(activation, name="scores")(before) if activation else before
    if name == "softmax-256":
        scores = ops.minimum(ops.round(scores * 256), 255) / 256
    kernel, _ = logits.get_weights()
    found = keras.Model(photo, features).predict(numbers, verbose=0) @ kernel
    kernel /= found.std(axis=0)
    logits.set_weights([kernel, -found.mean(axis=0) / found.std(axis=0)])
    return keras.Model(photo, scores)


def probabilities(kind: Kind, raw: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each label its probability, from a model's own numbers (photos, width)."""
    if kind.scores == "logits":
        if raw.shape[1] == 1:
            raw = 1 / (1 + np.exp(-raw))
        else:
            powers = np.exp(raw)
            return powers / powers.sum(axis=1, keepdims=True)
    return np.concatenate([1 - raw, raw], axis=1) if raw.shape[1] == 1 else raw


def make(name: str, folder: Path, photos: list[Path]) -> dict[str, Any]:
    """The model, and another with a different bias; what Keras gives for the photos."""
    kind = KINDS[name]
    numbers = PIPELINES[name](kind, photos)
    assert numbers.shape == (len(photos), *kind.shape)
    model = network(name, numbers)
    sources, found, raw = [], [], []
    for number in range(2):
        if number:
            kernel, bias = model.get_layer("logits").get_weights()
            model.get_layer("logits").set_weights([kernel, bias + np.linspace(0.5, 0, len(bias), dtype=np.float32)])
        sources.append(folder / f"{name}-{number}{'' if kind.is_exported else '.keras'}")
        if kind.is_exported:
            model.export(sources[-1], verbose=False)
        else:
            model.save(sources[-1])
        raw.append(model.predict(numbers, verbose=0).astype(np.float64))
        found.append(probabilities(kind, raw[-1]))
    names = [photo.name for photo in photos]
    return {
        "sources": [str(source) for source in sources],
        "raw": dict(zip(names, raw[0].tolist(), strict=True)),
        "probabilities": [dict(zip(names, each.tolist(), strict=True)) for each in found],
    }


def run(words: list[str]) -> dict[str, Any]:
    """`clothing-model` in this process."""
    from clothing_model.commands.cli import main

    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main(words)
    return {"code": code, "stdout": out.getvalue(), "stderr": errors.getvalue()}


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer each request, until there are no more."""
    for line in requests:
        request = json.loads(line)
        if "command" in request:
            reply = run(request["command"])
        else:
            reply = make(request["make"], Path(request["folder"]), sorted(Path(request["photos"]).iterdir()))
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with os.fdopen(os.dup(1), "w") as only_replies:
        os.dup2(2, 1)  # what libraries print goes to the log
        serve(sys.stdin, only_replies)
