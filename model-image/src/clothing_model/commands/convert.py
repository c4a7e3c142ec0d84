"""`clothing-model convert`: writes NAME/VERSION/ from a Keras file or SavedModel."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from clothing_contract import ContractError, Input, Output
from clothing_contract import signature as rules
from clothing_contract.contract import show_size
from clothing_model import savedmodel
from clothing_model.commands.options import add_contract_options, contract_of, image_size, read_labels
from clothing_model.commands.values import CONTRACT_KEYS, OUTPUT_KEYS
from clothing_model.errors import ModelError
from clothing_model.keras import config as keras_config
from clothing_model.keras import files as keras_files
from clothing_model.keras.files import KerasModel, Source
from clothing_model.quiet import quiet_tensorflow
from clothing_model.savedmodel import photo_signature, usability_problems, warmup

if TYPE_CHECKING:
    from clothing_contract.scaling import Scaling

INPUTS = ("float32", "uint8", "encoded")
FIRST = (0, 3, 1, 2)  # channels before height and width
WEIGHTS = ("float32", "float16")
TEMPORARY = ".converting-"
OLD = "-old-"  # the version that --force replaces, by its number
TOLERANCE = {"float32": 1e-4, "float16": 1e-3}  # of the largest score, by how the weights are stored
WHY_DIFFERENT = {
    "float32": "the model may be random at inference, or depend on the batch",
    "float16": "its weights are beyond what float16 tells apart; leave --weights out",
}
# Fields of a training's report: accuracy, and the number of photos it was measured on.
METRICS = (
    "validation_accuracy", "accuracy_per_class", "photos", "validation_photos", "photos_sha256",
    "validation_photos_sha256", "parameters", "epoch_chosen",
)  # fmt: skip


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``convert`` command."""
    parser = subparsers.add_parser(
        "convert",
        description="Turn a .h5 of Keras 2, a .keras or .h5 of Keras 3, or a SavedModel into OUTPUT/NAME/VERSION/, "
        "with a signature serving_default that takes any batch size.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the file, or the SavedModel's folder")
    parser.add_argument("--name", required=True, help="the model's name: the folder's, and the chart's model.name")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where NAME/VERSION/ is written")
    parser.add_argument("--version", type=int, metavar="N", help="the version's number (default: the next free one)")
    parser.add_argument("--force", action="store_true", help="replace an existing version")
    parser.add_argument(
        "--labels",
        metavar="LABELS",
        help="the classes in the output's order: a,b,c; or a file with one per line or a JSON list; "
        "or the folder of training photos, one folder per class",
    )
    parser.add_argument(
        "--image-size", metavar="N|WxH", help="the photo's size, for a model whose input leaves it open"
    )
    parser.add_argument(
        "--input",
        choices=INPUTS,
        default=INPUTS[0],
        help="the model's input: preprocessed photos as float32 (default); their pixels as uint8, a quarter of the "
        "bytes; or the photos' files. The two latter need --preprocessing, which then happens in the model",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default=WEIGHTS[0],
        help="type of the stored weights: float16 halves the model's size; it still computes in float32",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run the Python code that a Keras file holds (Lambda layers), as a program of its author's; without it "
        "such a file is refused, and the layers are named",
    )
    parser.add_argument("--input-name", metavar="NAME", help="the signature's input (default: the input layer's name)")
    parser.add_argument(
        "--output-name",
        metavar="NAME",
        help="the signature's output (default: the last "
        "layer's name); of a SavedModel with several outputs, the one to keep",
    )
    parser.add_argument(
        "--warmup",
        metavar="SIZES|FILE",
        help="batch sizes to warm the server up with, as 1,8; or the chart's values file, whose "
        "server.batching.allowedBatchSizes are taken; none: no warm-up requests (default: those that a SavedModel "
        "has, else 1)",
    )
    add_contract_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the ``convert`` command.

    Raises:
        ModelError: a source or an option that can't be used.

    """
    started = time.monotonic()
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", args.name):
        raise ModelError(f"--name={args.name}: use letters, digits, '-', '_' and '.', as in clothing-model")
    if args.version is not None and args.version < 1:
        raise ModelError(f"--version={args.version}: a version is a number from 1 up")
    labels = read_labels(args.labels) if args.labels else None
    batch_sizes = None if args.warmup is None else _batch_sizes(args.warmup)
    size = image_size(args.image_size)
    source = replace(keras_files.identify(args.source), trusted=args.trust, output_name=args.output_name)
    _say(f"reading {source}")
    known = _known(source)
    labels = labels or tuple(known.get("labels", ())) or None
    contract = contract_of(args, known)
    if args.input != INPUTS[0] and "preprocessing" not in contract:
        raise ModelError(f"--input={args.input}: give --preprocessing, how photos were scaled in training")
    if args.input == INPUTS[2] and {"fit", "resampling"} & set(contract):
        raise ModelError(f"--input={args.input}: such a model stretches photos by nearest; use float32 or uint8")
    model_folder: Path = args.output / args.name
    if args.version is not None and not args.force and (model_folder / str(args.version)).exists():
        raise ModelError(_exists(model_folder / str(args.version)))
    given = Interface(args.input, Input.read(contract), args.input_name, args.output_name, size)
    as_it_is = (args.input, args.weights, args.input_name, args.output_name) == (INPUTS[0], WEIGHTS[0], None, None)
    copied = source.kind == keras_files.SAVED_MODEL and as_it_is and not _is_half(source)
    decided = _refuse_early(source, given, labels, copied=copied)
    _require_space(source, model_folder, args.weights)
    noted = {
        "labels": labels and list(labels),
        "imageSize": size and show_size(size[::-1]),
    }
    noted = {key: value for key, value in noted.items() if value} | ({"scores": decided} if decided else {}) | contract
    try:
        Output.read(noted)
    except ContractError as error:
        raise ModelError(f"--threshold={args.threshold}: {error}") from error
    try:
        with _temporary_folder(model_folder) as folder:
            if copied:
                facts = _copy_saved_model(source, folder)
            else:
                facts = _write_saved_model(source, folder, given, args.weights, labels)
            _describe(folder, args.name, source, facts, noted)
            _write_warmup(folder, args.name, batch_sizes)
            target = _publish(folder, model_folder, args.version, args.force)
    except OSError as error:
        raise ModelError(f"{model_folder} can't be written, and is as it was: {error}") from error
    _say(f"wrote {target} ({sum(f.stat().st_size for f in target.rglob('*') if f.is_file()) / 1e6:.1f} MB) "
         f"in {time.monotonic() - started:.0f} s")  # fmt: skip
    _say(f"its signature, and the values for the chart: clothing-model inspect {target}")
    return 0


def _refuse_early(source: Source, given: Interface, labels: Sequence[str] | None, *, copied: bool) -> str | None:
    """Reject an unusable source, before TensorFlow's import and any written file.

    Returns what the scores are, where the source's config has it.
    """
    _require_names(given.input_name, given.output_name)
    if source.kind == keras_files.SAVED_MODEL:
        model = _refuse_unusable(source)
        if not copied:
            keras_files.scores_name(source, list(model.signatures[savedmodel.DEFAULT_SIGNATURE].outputs))
        found = photo_signature(replace(model, description={**model.description, "labels": labels or ()}))
        if found:
            _require_labels(labels, savedmodel.width(found[1]))
        return None
    config = keras_config.read(source.path)
    if not source.trusted:
        keras_config.refuse(source.path, config)
    outline = keras_config.outline(config)
    if not outline.inputs or not outline.widths:
        return None
    keras_files.require_one_of_each(source, list(outline.inputs), list(outline.widths))
    ((shape,), (width,)) = outline.inputs.values(), outline.widths.values()
    _require_labels(labels, width)
    if shape is not None:
        photo = _photo_shape(source, shape, given.size)
        if given.input == "encoded":
            _fixed(photo)
    return keras_config.scores(config)


def _require_labels(labels: Sequence[str] | None, width: int | None) -> None:
    if labels and not savedmodel.serves(width, len(labels)):
        raise ModelError(f"--labels: {len(labels)} labels ({', '.join(labels)}), but the model has {width} classes")


def _require_space(source: Source, model_folder: Path, weights: str) -> None:
    """Refuse a destination with less free space than the weights take."""
    if source.kind == keras_files.SAVED_MODEL:
        size = sum(file.stat().st_size for file in source.path.rglob("*") if file.is_file())
    else:
        size = keras_config.weights_bytes(source.path)
    size //= 1 if weights == WEIGHTS[0] else 2
    there = next(folder for folder in (model_folder, *model_folder.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise ModelError(
            f"{model_folder}: the model takes {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free there: "
            "make room, or choose another --output"
        )


def _batch_sizes(argument: str) -> list[int]:
    """Parse ``--warmup``: batch sizes (1,8), ``none``, or a chart's values file.

    Of a values file, its allowedBatchSizes are the sizes.
    """
    if argument == "none":
        return []
    if Path(argument).is_file():
        return _allowed_batch_sizes(Path(argument))
    if not re.fullmatch(r"[1-9][0-9]*(,[1-9][0-9]*)*", argument):
        raise ModelError(f"--warmup={argument}: give batch sizes, as 1,8, a values file, or none")
    return [int(size) for size in argument.split(",")]


def _allowed_batch_sizes(values: Path) -> list[int]:
    """``server.batching.allowedBatchSizes`` of a values file, YAML or JSON.

    TensorFlow Serving pads batches to these sizes. The key is unique in the chart, so that a parser of YAML, which the
    environment lacks, isn't needed.
    """
    inline = r"\[(?P<inline>[0-9,\s]*)\]"
    block = r"(?:[ \t]*\n[ \t]*-[ \t]*[0-9]+)+"
    found = re.search(
        rf'^[^#\n]*\ballowedBatchSizes"?:\s*(?:{inline}|(?P<block>{block}))', values.read_text("utf-8"), re.MULTILINE
    )
    sizes = [int(size) for size in re.findall(r"[0-9]+", found["inline"] or found["block"] or "")] if found else []
    if not sizes or min(sizes) < 1:
        raise ModelError(f"--warmup={values}: it has no server.batching.allowedBatchSizes, as [1, 4, 8]")
    return sizes


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _exists(target: Path) -> str:
    return f"{target} is there already: leave --version out for the next free number, or pass --force to replace it"


@contextlib.contextmanager
def _temporary_folder(model_folder: Path) -> Iterator[Path]:
    """A temporary folder beside the versions, removed on failure and by signals.

    TensorFlow Serving ignores it, as its name is no number. What a SIGKILL leaves is removed by the next run: the
    folder's free lock tells that no process works in it any more.
    """
    created = [folder for folder in (model_folder, *model_folder.parents) if not folder.exists()]
    model_folder.mkdir(parents=True, exist_ok=True)
    for stale in model_folder.glob(f"{TEMPORARY}*"):
        _, replaced, version = stale.name.partition(OLD)
        with contextlib.suppress(OSError), _lock(stale):
            if replaced and not (model_folder / version).exists():  # killed between the two renames of _replace
                stale.rename(model_folder / version)
            else:
                shutil.rmtree(stale)
    folder = model_folder / f"{TEMPORARY}{os.getpid()}"

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: it holds a version
            for empty in created:
                empty.rmdir()

    def end(number: int, _: FrameType | None) -> None:
        # Not by an exception: one raised while TensorFlow imports a package means to it that the package is missing,
        # and the conversion would continue.
        remove()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    numbers = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = [signal.signal(number, end) for number in numbers]
    try:
        folder.mkdir()
        with _lock(folder):
            yield folder
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        remove()


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_half(source: Source) -> bool:
    """Whether a SavedModel's input or output has 16 bits, as in mixed precision.

    Such a model is wrapped in float32.
    """
    found = photo_signature(savedmodel.read(source.path))
    return found is not None and any(tensor.dtype in ("DT_HALF", "DT_BFLOAT16") for tensor in found)


def _refuse_unusable(source: Source) -> savedmodel.SavedModel:
    model = savedmodel.read(source.path)
    problems = [*model.problems, *usability_problems(model)]
    if problems:
        raise ModelError("\n  ".join([f"{source.path} can't be served:", *problems]))
    return model


def _copy_saved_model(source: Source, folder: Path) -> dict[str, Any]:
    model = _refuse_unusable(source)
    found = photo_signature(model)
    if found and (not found[0].shape or found[0].shape[0] != -1):
        _say(f"note: its input has the shape {found[0].shape}: the batch is fixed, so requests can't be batched")
    _say("copying")
    for name in keras_files.SAVED_MODEL_PARTS:
        part = source.path / name
        if part.is_dir():
            shutil.copytree(part, folder / name, copy_function=shutil.copyfile)
        elif part.exists():
            shutil.copyfile(part, folder / name)
    return {"tensorflow": model.tensorflow_version, **model.description}


@dataclass(frozen=True)
class Interface:
    """The input and output that the SavedModel will have; None keeps the model's."""

    input: str
    contract: Input
    input_name: str | None
    output_name: str | None
    size: tuple[int, int] | None  # height, width


def _write_saved_model(
    source: Source, folder: Path, given: Interface, weights: str, labels: Sequence[str] | None
) -> dict[str, Any]:
    quiet_tensorflow()
    _say("loading TensorFlow")
    import tensorflow as tf

    from clothing_contract.scaling import Scaling
    from clothing_model.keras import float16, graph_preprocessing

    facts: dict[str, Any] = {}
    if source.kind == keras_files.SAVED_MODEL:
        facts = _refuse_unusable(source).description
    library = {keras_files.SAVED_MODEL: "TensorFlow"}.get(source.kind, "tf-keras" if source.keras_2 else "Keras 3")
    _say(f"loading the model with {library}")
    model = keras_files.load(source)
    _require_labels(labels, model.output_shape[-1])
    shape = _photo_shape(source, model.input_shape, given.size)
    input_name, output_name = _names(given, model)
    is_grey = _channels_last(shape)[2] == 1
    scaling = Scaling.of(replace(given.contract, channels="grey") if is_grey else given.contract)
    module = tf.Module()
    if weights == WEIGHTS[0]:
        module.variables_to_save, call = model.variables, model.call
    else:
        module.variables_to_save, call = float16.halved(model.call, tf.TensorSpec((None, *shape), tf.float32))

    def serve(photos: Any) -> dict[str, Any]:
        if given.input == graph_preprocessing.ENCODED:
            pixels = graph_preprocessing.pixels_of_files(photos, *_fixed(shape))
            photos = graph_preprocessing.numbers(pixels, scaling)
            photos = tf.transpose(photos, FIRST) if rules.layout(shape) == rules.NCHW else photos
        elif given.input == graph_preprocessing.UINT8:
            photos = graph_preprocessing.numbers(photos, scaling, rules.layout(shape))
        return {output_name: tf.cast(call(photos), tf.float32)}

    if given.input == graph_preprocessing.ENCODED:
        _fixed(shape)
        signature = tf.TensorSpec((None,), tf.string, name=input_name)
    else:
        signature = tf.TensorSpec((None, *shape), tf.as_dtype(given.input), name=input_name)
    module.serve = tf.function(serve, input_signature=[signature])
    _say(f"writing: {input_name} {given.input} {tuple(s or -1 for s in signature.shape)} -> {output_name} "
         f"{tuple(s or -1 for s in model.output_shape)}")  # fmt: skip
    try:
        tf.saved_model.save(module, str(folder), signatures={savedmodel.DEFAULT_SIGNATURE: module.serve})
    except tf.errors.OpError as error:  # as a full disk
        raise OSError(error.message) from error
    difference = _largest_difference(folder, model, shape, given.input, scaling)
    if not difference <= TOLERANCE[weights]:
        raise ModelError(
            f"what was written differs from {source.path} by {difference:.3g} of the largest score "
            f"(allowed: {TOLERANCE[weights]}): {WHY_DIFFERENT[weights]}"
        )
    _say(f"checked: the saved scores differ from {library}'s by at most {difference:.1g} of the largest")
    facts = {**facts, "tensorflow": tf.__version__, "library": model.library, "input": given.input,
             "weights": weights}  # fmt: skip
    if source.keras_version:
        facts["keras"] = source.keras_version
    return facts


def _names(given: Interface, model: KerasModel) -> tuple[str, str]:
    """The signature's names of input and output."""
    names = given.input_name or model.input_name, given.output_name or model.output_name
    _require_names(*names)
    return names


def _require_names(input_name: str | None, output_name: str | None) -> None:
    for option, name in (("--input-name", input_name), ("--output-name", output_name)):
        if name is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise ModelError(f"{option}={name}: a name is made of letters, digits and '_'")


def _fixed(shape: tuple[int | None, ...]) -> tuple[int, int]:
    """Height and width, which a model that resizes photos itself needs."""
    height, width, channels = _channels_last(shape)
    if height is None or width is None:
        raise ModelError(
            "--input=encoded: the model takes photos of any size; give --image-size, the size to resize them to"
        )
    if channels != 3:
        raise ModelError(f"--input=encoded: the model takes {channels} channels, and a photo has 3")
    return height, width


def _photo_shape(
    source: Source, input_shape: tuple[int | None, ...], size: tuple[int, int] | None
) -> tuple[int | None, ...]:
    shape = input_shape[1:]
    if len(shape) != 3:
        raise ModelError(
            f"{source.path} takes an input of the shape {input_shape}: a photo's is (batch, height, width, channels) "
            "or (batch, channels, height, width)"
        )
    if size is None:
        return shape
    height, width, channels = _channels_last(shape)
    if height not in (None, size[0]) or width not in (None, size[1]):
        raise ModelError(
            f"--image-size: {source.path} takes photos of {width or '?'}x{height or '?'} only; leave it out"
        )
    return (channels, *size) if rules.layout(shape) == rules.NCHW else (*size, channels)


def _channels_last(shape: Sequence[int | None]) -> tuple[int | None, int | None, int | None]:
    """Height, width and channels of a shape in either layout, without the batch."""
    first, second, third = shape
    return (second, third, first) if rules.layout(shape) == rules.NCHW else (first, second, third)


def _largest_difference(
    folder: Path, model: KerasModel, shape: Sequence[int | None], given: str, scaling: Scaling
) -> float:
    """Largest difference of scores, source model to saved function, on two photos.

    The photos are noise. The difference is a share of the largest score: a model with random weights gives scores near
    zero, all equal otherwise.
    """
    import numpy as np
    import tensorflow as tf

    from clothing_model.keras import graph_preprocessing

    is_first = rules.layout(shape) == rules.NCHW
    sizes = [size or default for size, default in zip(_channels_last(shape), (128, 128, 3), strict=True)]
    random = np.random.default_rng(0)
    if given == graph_preprocessing.FLOAT32:
        pixels = tf.constant(random.uniform(-1, 1, (2, *sizes)).astype(np.float32))
        numbers = pixels
    else:
        pixels = tf.constant(random.integers(0, 256, (2, *sizes), np.uint8))
        numbers = graph_preprocessing.numbers(pixels, scaling)
    photos, numbers = (tf.transpose(each, FIRST) if is_first else each for each in (pixels, numbers))
    if given == graph_preprocessing.ENCODED:  # PNG keeps each pixel
        photos = tf.stack([tf.io.encode_png(each) for each in pixels])
    saved = tf.saved_model.load(str(folder)).signatures[savedmodel.DEFAULT_SIGNATURE]
    name = next(iter(saved.structured_input_signature[1]))
    (got,) = saved(**{name: photos}).values()
    want = tf.cast(model.call(numbers), tf.float32).numpy()
    return float(np.max(np.abs(got.numpy() - want))) / (float(np.max(np.abs(want))) or 1.0)


def _describe(folder: Path, name: str, source: Source, facts: dict[str, Any], noted: dict[str, Any]) -> None:
    """Write assets.extra/model.json, which TensorFlow Serving ignores.

    ``noted`` is what photos and scores mean: labels, imageSize and the contract's keys, as far as each is known.
    """
    model = savedmodel.read(folder)
    found = photo_signature(model)
    if found is None:
        raise ModelError(f"{source.path}: " + "; ".join(usability_problems(model)))
    photo, scores = found
    signature = model.signatures[savedmodel.DEFAULT_SIGNATURE]
    description: dict[str, Any] = {**facts, "name": name}
    description["source"] = {
        "file": f"{source.path.resolve().parent.name}/{source.path.name}" if source.path.is_dir() else source.path.name,
        "kind": source.kind,
        "sha256": keras_files.sha256(source.path),
    }
    if before := facts.get("source"):  # a SavedModel that an earlier convert has written
        description["source"]["made_from"] = before.get("made_from", before)
    metrics = {key: value for key, value in _training_report(source.path).items() if key in METRICS}
    if metrics:
        description["metrics"] = metrics
    description["signature"] = {
        "input": {"name": next(iter(signature.inputs)), "dtype": photo.dtype, "shape": photo.shape},
        "output": {"name": next(iter(signature.outputs)), "dtype": scores.dtype, "shape": scores.shape},
    }
    _require_labels(noted.get("labels"), savedmodel.width(scores))
    for key in (*CONTRACT_KEYS, *OUTPUT_KEYS):  # an earlier convert's, which are in noted where they hold
        description.pop(key, None)
    description |= noted
    (folder / savedmodel.DESCRIPTION).parent.mkdir(exist_ok=True)
    (folder / savedmodel.DESCRIPTION).write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _write_warmup(folder: Path, name: str, batch_sizes: list[int] | None) -> None:
    """Write a warm-up request for each batch size.

    None keeps the warm-up requests of a SavedModel; any other model gets one request of 1 photo.
    """
    file = folder / savedmodel.WARMUP
    if batch_sizes is None:
        if file.exists():
            return
        batch_sizes = [1]
    file.unlink(missing_ok=True)
    if not batch_sizes:
        return
    model = savedmodel.read(folder)
    ((input_name, photo),) = model.signatures[savedmodel.DEFAULT_SIGNATURE].inputs.items()
    if photo.dtype not in warmup.DTYPES or photo.shape is None or min(photo.shape[1:], default=1) < 1:
        _say("note: no warm-up requests, as the input's size or type is open; --image-size pins the size")
        return
    quiet_tensorflow()
    fixed = photo.shape[0] if photo.shape[0] > 0 else None
    warmup.write(
        file, name, input_name, dtype=photo.dtype, shape=photo.shape[1:], batch_sizes=[fixed] if fixed else batch_sizes
    )


def _known(source: Source) -> dict[str, Any]:
    """Labels and preprocessing from a training report or an earlier `convert`."""
    if source.kind == keras_files.SAVED_MODEL:
        return savedmodel.read(source.path).description
    return _training_report(source.path)


def _training_report(source: Path) -> dict[str, Any]:
    """The report that `clothing-model train` wrote beside the model, if any."""
    path = source.with_suffix(".training.json")
    if not source.is_file() or not path.exists():
        return {}
    try:
        report = json.loads(path.read_text("utf-8"))
        if not isinstance(report, dict):
            raise TypeError("it is no object")
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path} can't be read ({error}): mend it, or move it away from the model") from error
    return report


def _publish(folder: Path, model_folder: Path, version: int | None, force: bool) -> Path:
    """Publish the version by one atomic rename to its number.

    A server that watches the folder sees the whole version or none of it.
    """
    while True:
        number = version or max(savedmodel.version_folders(model_folder), default=0) + 1
        target = model_folder / str(number)
        if version is not None and force and target.exists():
            _replace(folder, target)
            return target
        try:
            folder.rename(target)
        except OSError as error:
            if not target.exists():
                raise
            if version is not None:
                raise ModelError(_exists(target)) from error
            continue  # another convert took the number meanwhile
        return target


def _replace(folder: Path, target: Path) -> None:
    """Replace a version's folder by another one.

    Where that fails, the version stays, or the next run restores it.
    """
    old = folder.with_name(f"{folder.name}{OLD}{target.name}")
    signals = {signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        with _lock(target):
            target.rename(old)
            try:
                folder.rename(target)
            except OSError:
                old.rename(target)
                raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    shutil.rmtree(old, ignore_errors=True)
