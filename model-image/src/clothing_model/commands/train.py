"""`clothing-model train`: trains a classifier on photos, on a CPU or GPU.

Its options; the training itself is in `clothing_model.training`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from clothing_model.errors import ModelError
from clothing_model.evaluation import dataset
from clothing_model.quiet import quiet_tensorflow
from clothing_model.training.plan import Plan


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``train`` command."""
    defaults = Plan()
    parser = subparsers.add_parser(
        "train",
        help="train a classifier on a folder of photos",
        description="Train a classifier on a folder of photos (a folder per class) and save it as a .keras file, with "
        "a report and its learning curves beside it. The same command resumes a training that was "
        "stopped.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("photos", type=Path, help="training photos: a folder per class")
    parser.add_argument(
        "--validation", type=Path, required=True, help="photos to choose the best epoch by: same folders"
    )
    parser.add_argument("--output", type=Path, required=True, help="the .keras file to write")
    parser.add_argument("--network", default=defaults.network, choices=network_names(), help="network to train")
    parser.add_argument(
        "--weights",
        type=Path,
        help="initial weights: the application's weights without its top (…_notop.h5); for compact a .keras file "
        "that this command has written",
    )
    parser.add_argument("--size", type=int, default=defaults.size, help="height and width of the input, in pixels")
    parser.add_argument("--epochs", type=int, default=defaults.epochs, help="passes over the photos")
    parser.add_argument(
        "--fine-tune-epochs", type=int, default=defaults.fine_tune_epochs, help="further passes with the base unfrozen"
    )
    parser.add_argument("--batch", type=int, default=defaults.batch, help="photos per optimizer step")
    parser.add_argument("--rate", type=float, default=defaults.rate, help="highest learning rate")
    parser.add_argument("--weight-decay", type=float, default=defaults.weight_decay, help="AdamW's weight decay")
    parser.add_argument("--mixup", type=float, default=defaults.mixup, help="alpha of mixup; 0 turns it off")
    parser.add_argument(
        "--patience",
        type=int,
        default=defaults.patience,
        help="stop after N epochs without a better accuracy; 0: never",
    )
    parser.add_argument(
        "--keep",
        choices=("best", "last"),
        default=defaults.keep,
        help="the epoch to save: the one of best validation accuracy, or the last, chosen by no photo",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of weights, order and augmentation")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="device to train on")
    parser.set_defaults(run=run)


def network_names() -> tuple[str, ...]:
    """``network.NAMES`` without importing Keras, for --help; a test compares the two."""
    return ("compact", "xception", "efficientnetv2b0", "mobilenetv3small", "mobilenetv3large")


def _check(arguments: argparse.Namespace) -> None:
    """Reject arguments that contradict each other, before reading any photo."""
    if arguments.output.suffix != ".keras":
        raise ModelError(f"--output {arguments.output}: must end in .keras")
    if arguments.size < 64:
        raise ModelError(f"--size {arguments.size}: must be at least 64 pixels")
    for name in ("epochs", "batch", "rate"):
        if getattr(arguments, name) <= 0:
            raise ModelError(f"--{name} {getattr(arguments, name)}: must be above 0")
    if arguments.network == "compact" and arguments.fine_tune_epochs:
        raise ModelError("--fine-tune-epochs is for transfer learning: choose another --network than compact")
    if arguments.network != "compact" and not arguments.weights:
        raise ModelError(
            f"--network {arguments.network} wants --weights FILE: the application's ImageNet weights without its top "
            "(…_notop.h5, as Keras publishes them)"
        )


def run(arguments: argparse.Namespace) -> int:
    """Run the ``train`` command.

    Raises:
        ModelError: arguments, photos or weights that can't be used.

    """
    _check(arguments)
    data = dataset.find_photos(arguments.photos)
    validation = dataset.find_photos(arguments.validation, data.labels)
    if len(data.paths) < arguments.batch:
        raise dataset.DatasetError(
            f"{arguments.photos}: {len(data.paths)} photos are fewer than one batch; add photos or lower --batch"
        )
    quiet_tensorflow()
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tensorflow as tf

    from clothing_model.training.loop import train

    if arguments.device == "gpu" and not tf.config.list_physical_devices("GPU"):
        raise ModelError("--device gpu: TensorFlow sees no GPU; use --device cpu")
    plan = Plan(**{name: getattr(arguments, name) for name in Plan.__dataclass_fields__ if hasattr(arguments, name)})
    try:
        report = train(plan, data, validation, arguments.output, weights=arguments.weights)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes after the last whole epoch", file=sys.stderr)
        return 130
    print(
        f"{arguments.output}: validation accuracy {report['validation_accuracy']:.3f} (epoch {report['epoch_chosen']})"
    )
    for label, accuracy in report["accuracy_per_class"].items():
        print(f"  {label:<12} {accuracy:.3f}")
    return 0
