"""`clothing-model average`: an ensemble of models, by the mean of their scores.

Networks of other seeds, or of other stages of a training, err on other photos, and so does one network on a photo and
its mirror image. Averaging costs time for each photo, and no training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clothing_model.errors import ModelError
from clothing_model.keras import files as keras_files
from clothing_model.progress import Progress
from clothing_model.quiet import quiet_tensorflow

if TYPE_CHECKING:
    import keras


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``average`` command."""
    parser = subparsers.add_parser(
        "average",
        description="Combine .keras files of the same input and classes into one ensemble: its scores are the mean of "
        "theirs, with --mirrored also of the mirrored photo. A report is written beside it, as by train.",
    )
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help=".keras files that train has written")
    parser.add_argument("--output", type=Path, required=True, help="the .keras file to write")
    parser.add_argument("--mirrored", action="store_true", help="average over each photo and its mirror image")
    parser.add_argument("--validation", type=Path, help="labelled photos to measure the result on, for the report")


def _report(file: Path) -> dict[str, Any]:
    from clothing_model.training.report import report_file

    path = report_file(file)
    try:
        report = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read ({error}): mend it, or move it away from the model") from error
    return report if isinstance(report, dict) else {}


def _same(models: list[Path], values: list[Any], what: str) -> Any:
    """The value that all have in common; ModelError names the first that differs."""
    for model, value in zip(models, values, strict=True):
        if value != values[0]:
            raise ModelError(f"{model} has {what} {value}, and {models[0]} {values[0]}: only models alike have a mean")
    return values[0]


def averaged(models: list[keras.Model], *, mirrored: bool) -> keras.Model:
    """A model of the same input and output as each of ``models``."""
    import keras

    first = models[0]
    name = first.output_names[0]
    for number, model in enumerate(models, start=1):
        model.name = f"model_{number}"  # names of layers must differ
    photo = keras.Input(first.input_shape[1:], name=first.inputs[0].name)
    views = [photo, keras.ops.flip(photo, axis=2)] if mirrored else [photo]
    scores = [model(view) for model in models for view in views]
    return keras.Model(photo, keras.layers.Average(name=name)(scores), name="average")


def run(args: argparse.Namespace) -> int:
    """Run the ``average`` command.

    Raises:
        ModelError: models that can't be read or don't fit together.

    """
    if args.output.suffix != ".keras":
        raise ModelError(f"--output {args.output}: must end in .keras")
    if len(args.models) == 1 and not args.mirrored:
        raise ModelError("one model has no mean with itself: give several, or --mirrored")
    for path in args.models:
        if keras_files.identify(path).kind != keras_files.KERAS_ZIP:
            raise ModelError(f"{path}: give a .keras file, as train writes it")
    reports = [_report(path) for path in args.models]
    labels = _same(args.models, [report.get("labels") for report in reports], "the labels")
    preprocessing = _same(args.models, [report.get("preprocessing") for report in reports], "the preprocessing")
    quiet_tensorflow()

    from clothing_model.training.report import report_file, save_keras

    say = Progress()
    say.say(f"reading {len(args.models)} models")
    models = [keras_files.load_keras_3(keras_files.identify(path)) for path in args.models]
    _same(args.models, [model.input_shape for model in models], "the input")
    _same(args.models, [model.output_shape for model in models], "the output")
    result = averaged(models, mirrored=args.mirrored)
    report: dict[str, Any] = {
        **({"labels": labels} if labels else {}),
        **({"preprocessing": preprocessing} if preprocessing else {}),
        "average_of": [
            {"file": path.name, "sha256": keras_files.sha256(path), **{k: r[k] for k in ("plan", "weights") if k in r}}
            for path, r in zip(args.models, reports, strict=True)
        ],
        "mirrored": args.mirrored,
        "parameters": result.count_params(),
        **{key: reports[0][key] for key in ("photos", "photos_sha256") if key in reports[0]},
    }
    if args.validation:
        report |= _measured(result, args.validation, tuple(labels or ()), say)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_keras(result, args.output)
    report_file(args.output).write_text(json.dumps(report, indent=1) + "\n")
    accuracy = f": validation accuracy {report['validation_accuracy']:.3f}" if args.validation else ""
    print(f"{args.output}{accuracy}")
    return 0


def _measured(model: keras.Model, folder: Path, labels: tuple[str, ...], say: Progress) -> dict[str, Any]:
    from clothing_model.evaluation import dataset
    from clothing_model.training.report import measured

    data = dataset.find_photos(folder, labels or None)
    height, width = model.input_shape[1:3]
    if height != width or height is None:
        raise ModelError(f"--validation: the models take photos of {width}x{height}, and photos are read as squares")
    pixels = dataset.load_pixels(data, height, lambda done, of: say.count("read", done, of))
    return measured(model, pixels, data)
