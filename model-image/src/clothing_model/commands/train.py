"""``clothing-model train``: a classifier from a folder of photos, on a laptop's CPU or a GPU.

The training is a plain loop, so that what it does can be read: augmented photos (one projective transform, colour,
mixup), AdamW on a cosine, label smoothing, and an exponential average of the weights, which is what is validated and
saved. Each batch's randomness comes from seed, epoch and batch alone, and a training goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clothing_model.commands.progress import Progress
from clothing_model.commands.quiet import quiet_tensorflow
from clothing_model.errors import ModelError
from clothing_model.evaluation import dataset, plots
from clothing_model.evaluation.metrics import confusion
from clothing_model.keras import files as keras_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import keras
    from numpy.typing import NDArray

# Augmentation reads from photos of this many times the served size, with NEAREST, as the gateway reads originals.
SOURCE_SCALE = 1.6
# Resolution grows while training: quicker epochs first (arXiv:2104.00298), and a last one below the size served,
# because random zoom makes things look larger in training than they are in a whole photo (arXiv:1906.06423).
GROWTH = (0.6, 0.8, 0.9)


@dataclass(frozen=True)
class Plan:
    """What a training does; written beside the model, so that it can be repeated.

    Attributes:
        network: a name from ``network.NAMES``.
        size: height and width in pixels of the input that the model will be served with.
        epochs: passes over the training photos (with a base: of its head).
        fine_tune_epochs: further passes with the base unfrozen, at a tenth of the rate; only for transfer learning.
        batch: photos a step.
        rate: the highest learning rate of the cosine.
        weight_decay: AdamW's, decoupled from the rate.
        smoothing: label smoothing.
        mixup: the alpha of mixup's Beta distribution (arXiv:1710.09412); 0 turns it off.
        average: momentum of the weights' exponential average, per step.
        patience: epochs without a better validation accuracy before it stops; 0 never stops early.
        keep: ``best`` saves the epoch with the best validation accuracy, ``last`` the last, so that the validation
            photos choose nothing.
        seed: of weights, order and augmentation.

    """

    network: str = "compact"
    size: int = 160
    epochs: int = 60
    fine_tune_epochs: int = 0
    batch: int = 32
    rate: float = 2e-3
    weight_decay: float = 0.05
    smoothing: float = 0.1
    mixup: float = 0.2
    average: float = 0.998
    patience: int = 0
    keep: str = "best"
    seed: int = 1

    def training_size(self, epoch: int) -> int:
        """Pixels a side in this epoch (from 0): grows for the compact network, constant for a base of fixed size."""
        if self.network != "compact":
            return self.size
        share = GROWTH[min(len(GROWTH) - 1, epoch * len(GROWTH) // self.epochs)]
        return max(64, round(self.size * share / 16) * 16)

    def learning_rate(self, step: int, steps: int) -> float:
        """Linear warm-up over a twentieth of ``steps``, then a half cosine down to a hundredth of ``rate``."""
        warm = max(1, steps // 20)
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


@dataclass
class Run:
    """How far a training has come; kept between epochs, so that it goes on as if it had never been stopped.

    Attributes:
        epoch: epochs done.
        phase: 0 for the first, 1 for fine-tuning.
        first: epochs that were done when the phase began.
        history: loss and accuracy of each epoch.
        best: epoch and accuracy of what is kept.

    """

    epoch: int = 0
    phase: int = 0
    first: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=lambda: {"epoch": 0, "accuracy": -1.0})

    def stale(self, patience: int) -> bool:
        """Whether the phase has brought nothing better for so many epochs; an equal accuracy is no progress."""
        phase = self.history[self.first :]
        if not patience or not phase:
            return False
        return self.epoch - max(phase, key=lambda entry: entry["accuracy"])["epoch"] >= patience


def transforms(rng: np.random.Generator, count: int, source: int, size: int) -> NDArray[np.float32]:
    """Random flips, rotations (±30°), zooms (0.75 to 1.1), stretches and shifts for ImageProjectiveTransformV3.

    Each row of the result, float32 ``(count, 8)``, maps a pixel of a ``size`` square to one of a ``source`` square.
    """
    angle = rng.normal(0, np.pi / 18, count).clip(-np.pi / 6, np.pi / 6)
    zoom = rng.uniform(0.75, 1.1, count) * source / size
    stretch = np.exp(rng.normal(0, 0.08, count))
    flip = rng.choice([-1.0, 1.0], count)
    a = zoom * stretch * np.cos(angle) * flip
    b = -zoom * np.sin(angle)
    d = zoom * np.sin(angle) * flip
    e = zoom / stretch * np.cos(angle)
    centre, middle = (source - 1) / 2, (size - 1) / 2
    shift = rng.uniform(-0.08, 0.08, (2, count)) * source
    c = centre + shift[0] - a * middle - b * middle
    f = centre + shift[1] - d * middle - e * middle
    zero = np.zeros(count)
    return np.stack([a, b, c, d, e, f, zero, zero], axis=1).astype(np.float32)


def colours(rng: np.random.Generator, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Random brightness, contrast and saturation, a rectangle blanked now and then; values stay in [-1, 1]."""
    count, size = batch.shape[:2]
    grey = batch.mean(axis=3, keepdims=True)
    saturation = rng.uniform(0.6, 1.3, (count, 1, 1, 1)).astype(np.float32)
    contrast = rng.uniform(0.75, 1.25, (count, 1, 1, 1)).astype(np.float32)
    brightness = rng.uniform(-0.25, 0.25, (count, 1, 1, 1)).astype(np.float32)
    batch = ((grey + (batch - grey) * saturation) * contrast + brightness).clip(-1, 1)
    for index in np.flatnonzero(rng.random(count) < 0.25):
        height, width = rng.integers(size // 8, size // 3, 2)
        top, left = rng.integers(0, size - height), rng.integers(0, size - width)
        batch[index, top : top + height, left : left + width] = rng.uniform(-1, 1)
    return batch


def batches(
    plan: Plan, pixels: NDArray[np.uint8], targets: NDArray[np.int64], classes: int, epoch: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """One epoch's augmented batches: photos float32 ``(batch, s, s, 3)`` in [-1, 1], targets ``(batch, classes)``."""
    import tensorflow as tf

    size, source = plan.training_size(epoch), pixels.shape[1]
    order = np.random.default_rng([plan.seed, epoch]).permutation(len(pixels))
    off = plan.smoothing / classes
    for number, start in enumerate(range(0, len(order) - plan.batch + 1, plan.batch)):
        rng = np.random.default_rng([plan.seed, epoch, number])
        chosen = order[start : start + plan.batch]
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=pixels[chosen],
            transforms=transforms(rng, len(chosen), source, size),
            output_shape=(size, size),
            fill_value=0.0,
            interpolation="NEAREST",
            fill_mode="REFLECT",
        ).numpy()
        x = colours(rng, dataset.scale(moved))
        y = np.full((len(chosen), classes), off, dtype=np.float32)
        y[np.arange(len(chosen)), targets[chosen]] += 1 - plan.smoothing
        if plan.mixup > 0:
            share = np.float32(rng.beta(plan.mixup, plan.mixup))
            x, y = share * x + (1 - share) * x[::-1], share * y + (1 - share) * y[::-1]
        yield x, y


def logits_of(model: keras.Model, pixels: NDArray[np.uint8], batch: int = 64) -> NDArray[np.float32]:
    """The model's outputs for whole photos: float32 ``(n, classes)``."""
    parts = [
        np.asarray(model(dataset.scale(pixels[start : start + batch]), training=False))
        for start in range(0, len(pixels), batch)
    ]
    return np.concatenate(parts)


def _trainer(
    model: keras.Model, averaged: keras.Model, optimizer: keras.optimizers.Optimizer
) -> Callable[[NDArray[np.float32], NDArray[np.float32], float], float]:
    import keras
    import tensorflow as tf

    loss_of = keras.losses.CategoricalCrossentropy(from_logits=True)

    @tf.function(reduce_retracing=False)
    def step(x: tf.Tensor, y: tf.Tensor, momentum: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        variables = [variable.value for variable in model.trainable_variables]
        optimizer.apply(tape.gradient(loss, variables), model.trainable_variables)
        for mean, weight in zip(averaged.weights, model.weights, strict=True):
            mean.assign(mean + (1 - momentum) * (weight - mean))
        return loss

    optimizer.build(model.trainable_variables)
    return lambda x, y, momentum: float(step(tf.constant(x), tf.constant(y), tf.constant(momentum, tf.float32)))


def _build(plan: Plan, classes: int, weights: Path | None) -> keras.Model:
    from clothing_model.training import network

    if plan.network == network.COMPACT:
        model = network.compact(classes)
        if weights is not None:
            network.take_weights(model, weights)
        return model
    return network.transfer(plan.network, classes, plan.size, weights)


def train(
    plan: Plan,
    data: dataset.Dataset,
    validation: dataset.Dataset,
    output: Path,
    weights: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and save the best epoch's averaged weights as a ``.keras`` file, a report and learning curves beside it.

    The state after each epoch lies in ``OUTPUT.state/`` until the training ends; a training with the same plan and
    photos that finds it goes on from there.

    Returns:
        The report: plan, digest of the photos, accuracy over ``validation``, per class, confusion, history.

    Raises:
        network.WeightsError: the weights don't fit.

    """
    import keras
    import tensorflow as tf

    from clothing_model.training import network

    say = progress or Progress()
    keras.utils.set_random_seed(plan.seed)
    if not tf.config.list_physical_devices("GPU"):
        # On a CPU the same seed then gives the same weights, bit for bit, and costs no time; GPUs can't always.
        tf.config.experimental.enable_op_determinism()
    classes = len(data.labels)
    source = round(plan.size * SOURCE_SCALE)
    say.say(f"reading {len(data.paths)} photos of {classes} classes, {len(validation.paths)} for validation")
    pixels = dataset.load_pixels(data, source, lambda done, of: say.count("read", done, of))
    unseen = dataset.load_pixels(validation, plan.size, lambda done, of: say.count("read", done, of))

    model = _build(plan, classes, weights)
    averaged = _build(plan, classes, weights)
    averaged.set_weights(model.get_weights())
    say.say(f"{plan.network}: {model.count_params():,} parameters, {plan.size} px, {plan.epochs} epochs")

    digest = data.sha256()
    identity = {
        "plan": asdict(plan),
        "photos_sha256": digest,
        "weights": {"file": weights.name, "sha256": keras_files.sha256(weights)} if weights else None,
    }
    state = output.with_name(output.name + ".state")
    state.mkdir(parents=True, exist_ok=True)
    best_file = state / "best.keras"
    saved = _saved(state, identity)
    run = Run() if saved is None else saved
    if saved is not None:
        say.say(f"going on after epoch {saved.epoch}, from {state.name}/")
    began = time.monotonic()
    per_epoch = len(pixels) // plan.batch
    phases = [plan.epochs] + ([plan.fine_tune_epochs] if plan.fine_tune_epochs else [])
    for number in range(run.phase, len(phases)):
        fine_tuning, count = number > 0, phases[number]
        phase = replace(plan, rate=plan.rate / 10) if fine_tuning else plan
        if fine_tuning:
            for one in (model, averaged):
                network.base_of(one).trainable = True
        optimizer = keras.optimizers.AdamW(plan.rate, weight_decay=plan.weight_decay)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        step = _trainer(model, averaged, optimizer)
        # The state of dropout's chance, which a checkpoint of the model leaves out.
        chance = [variable.value for variable in model.variables if variable.path.endswith("seed_generator_state")]
        checkpoint = tf.train.Checkpoint(model=model, averaged=averaged, optimizer=optimizer, chance=chance)
        if number > run.phase:
            run.phase, run.first = number, run.epoch
        elif saved is not None:
            checkpoint.read(str(state / f"epoch-{run.epoch}")).assert_existing_objects_matched()
        while run.epoch < run.first + count and not run.stale(plan.patience):
            started, losses = time.monotonic(), []
            for at, (x, y) in enumerate(batches(phase, pixels, data.targets, classes, run.epoch)):
                done = (run.epoch - run.first) * per_epoch + at
                optimizer.learning_rate.assign(phase.learning_rate(done, count * per_epoch))
                losses.append(step(x, y, min(plan.average, (1 + done) / (10 + done))))
                say.count(f"epoch {run.epoch + 1} batch", at + 1, per_epoch)
            found = logits_of(averaged, unseen).argmax(axis=1)
            accuracy = float((found == validation.targets).mean())
            run.epoch += 1
            run.history.append({"epoch": run.epoch, "loss": float(np.mean(losses)), "accuracy": accuracy})
            if accuracy >= run.best["accuracy"] or plan.keep == "last":
                run.best = {"epoch": run.epoch, "accuracy": accuracy}
                save_keras(averaged, best_file)
            checkpoint.write(str(state / f"epoch-{run.epoch}"))
            _save_state(state, identity, run)
            took = time.monotonic() - started
            left = (run.first + sum(phases[number:]) - run.epoch) * took / 60
            say.say(
                f"epoch {run.epoch}/{run.first + sum(phases[number:])}  {phase.training_size(run.epoch - 1)} px"
                f"  loss {run.history[-1]['loss']:.3f}  validation {accuracy:.3f}"
                f" (kept {run.best['accuracy']:.3f} of {run.best['epoch']:.0f})"
                f"  {took:.0f} s, about {left:.0f} min left"
            )
        if run.stale(plan.patience):
            say.say(f"no better for {plan.patience} epochs: stopping")

    chosen = network.with_input_size(keras.saving.load_model(best_file), plan.size)
    report: dict[str, Any] = {
        "labels": list(data.labels),
        "preprocessing": "tf",
        "plan": asdict(plan),
        "weights": identity["weights"],
        "photos": len(data.paths),
        "photos_sha256": digest,
        "parameters": model.count_params(),
        "epoch_chosen": run.best["epoch"],
        **measured(chosen, unseen, validation),
        "validation_accuracy_last_epoch": run.history[-1]["accuracy"],
        "minutes": round((time.monotonic() - began) / 60, 1),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "history": run.history,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    save_keras(chosen, output)
    report_file(output).write_text(json.dumps(report, indent=1) + "\n")
    title = f"{output.name}: validation accuracy {report['validation_accuracy']:.3f}"
    plots.learning_curves(curves_file(output), run.history, run.best["epoch"], title)
    shutil.rmtree(state)
    return report


def measured(model: keras.Model, pixels: NDArray[np.uint8], data: dataset.Dataset) -> dict[str, Any]:
    """What a report says of a model on labelled photos."""
    found = logits_of(model, pixels).argmax(axis=1)
    table = confusion(data.targets, found, len(data.labels))
    return {
        "validation_photos": len(data.paths),
        "validation_photos_sha256": data.sha256(),
        "validation_accuracy": float((found == data.targets).mean()),
        "accuracy_per_class": {
            label: float(table[index, index] / table[index].sum()) for index, label in enumerate(data.labels)
        },
        "confusion": table.tolist(),
    }


def report_file(model: Path) -> Path:
    """Where the report on ``model`` lies: ``pants.keras`` → ``pants.training.json``."""
    return model.with_suffix(".training.json")


def curves_file(model: Path) -> Path:
    """Where the learning curves of ``model`` lie: ``pants.keras`` → ``pants.training.png``."""
    return model.with_suffix(".training.png")


def save_keras(model: keras.Model, file: Path) -> None:
    """Save it in one step, so that a training that is killed leaves the file as it was."""
    half = file.with_name(f".{file.stem}.{os.getpid()}.keras")
    model.save(half)
    half.replace(file)


def _saved(state: Path, identity: dict[str, Any]) -> Run | None:
    try:
        saved: dict[str, Any] = json.loads((state / "state.json").read_text())
    except (OSError, ValueError):
        return None
    return Run(**saved["run"]) if saved["identity"] == json.loads(json.dumps(identity)) else None


def _save_state(state: Path, identity: dict[str, Any], run: Run) -> None:
    half = state / "state.json.half"
    half.write_text(json.dumps({"identity": identity, "run": asdict(run)}))
    half.replace(state / "state.json")
    for file in state.glob(f"epoch-{run.epoch - 1}.*"):
        file.unlink()


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``train`` command."""
    defaults = Plan()
    parser = subparsers.add_parser(
        "train",
        help="train a classifier on a folder of photos",
        description="Train a classifier on a folder of photos (a folder per class) and save it as a .keras file, with "
        "a report and its learning curves beside it. A training that was stopped goes on where it was when the same "
        "command is given again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("photos", type=Path, help="training photos: a folder per class")
    parser.add_argument(
        "--validation", type=Path, required=True, help="photos to choose the best epoch by: same folders"
    )
    parser.add_argument("--output", type=Path, required=True, help="the .keras file to write")
    parser.add_argument("--network", default=defaults.network, choices=_network_names(), help="what to train")
    parser.add_argument(
        "--weights",
        type=Path,
        help="what to start from: the application's weights without its top (…_notop.h5); for compact a .keras file "
        "that this command has written",
    )
    parser.add_argument("--size", type=int, default=defaults.size, help="height and width of the input, in pixels")
    parser.add_argument("--epochs", type=int, default=defaults.epochs, help="passes over the photos")
    parser.add_argument(
        "--fine-tune-epochs", type=int, default=defaults.fine_tune_epochs, help="further passes with the base unfrozen"
    )
    parser.add_argument("--batch", type=int, default=defaults.batch, help="photos a step")
    parser.add_argument("--rate", type=float, default=defaults.rate, help="highest learning rate")
    parser.add_argument("--weight-decay", type=float, default=defaults.weight_decay, help="AdamW's weight decay")
    parser.add_argument("--mixup", type=float, default=defaults.mixup, help="alpha of mixup; 0 turns it off")
    parser.add_argument(
        "--patience",
        type=int,
        default=defaults.patience,
        help="stop after so many epochs without a better; 0: never",
    )
    parser.add_argument(
        "--keep",
        choices=("best", "last"),
        default=defaults.keep,
        help="the epoch to save: of the best validation accuracy, or the last, so that the photos choose nothing",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of weights, order and augmentation")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="where to compute")
    parser.set_defaults(run=run)


def _network_names() -> tuple[str, ...]:
    # As network.NAMES, without importing Keras for --help; a test compares the two.
    return ("compact", "xception", "efficientnetv2b0", "mobilenetv3small", "mobilenetv3large")


def _check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that contradict each other, before anything is read."""
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

    if arguments.device == "gpu" and not tf.config.list_physical_devices("GPU"):
        raise ModelError("--device gpu: TensorFlow sees no GPU; use --device cpu")
    plan = Plan(**{name: getattr(arguments, name) for name in Plan.__dataclass_fields__ if hasattr(arguments, name)})
    try:
        report = train(plan, data, validation, arguments.output, arguments.weights)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on after the last whole epoch", file=sys.stderr)
        return 130
    print(
        f"{arguments.output}: validation accuracy {report['validation_accuracy']:.3f} (epoch {report['epoch_chosen']})"
    )
    for label, accuracy in report["accuracy_per_class"].items():
        print(f"  {label:<12} {accuracy:.3f}")
    return 0
