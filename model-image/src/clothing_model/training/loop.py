"""Training loop: AdamW, cosine schedule, label smoothing, averaged weights.

The average is exponential.

The averaged weights are what is validated and saved. The loop is written out, so that what it does can be read.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from clothing_model.evaluation import dataset, plots
from clothing_model.keras import files as keras_files
from clothing_model.progress import Progress
from clothing_model.training import network
from clothing_model.training.augmentation import SOURCE_SCALE, batches
from clothing_model.training.plan import Plan, State
from clothing_model.training.report import curves_file, logits_of, measured, report_file, save_keras

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Step = Callable[[NDArray[np.float32], NDArray[np.float32], float], float]


def train(
    plan: Plan,
    data: dataset.Dataset,
    validation: dataset.Dataset,
    output: Path,
    *,
    weights: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train; save the best epoch's averaged weights as a ``.keras`` file.

    A report and learning curves are saved beside it.

    The state after each epoch lies in ``OUTPUT.state/`` until the training ends; a training with the same plan and
    photos that finds it resumes from there.

    Returns:
        The report: plan, digest of the photos, accuracy over ``validation``, per class, confusion, history.

    Raises:
        network.WeightsError: the weights don't fit.
        dataset.DatasetError: a photo can't be decoded.

    """
    keras.utils.set_random_seed(plan.seed)
    if not tf.config.list_physical_devices("GPU"):
        # On a CPU the same seed then gives the same weights, bit for bit, and costs no time; GPUs can't always.
        tf.config.experimental.enable_op_determinism()
    folder = output.with_name(output.name + ".state")
    training = _Training(plan, data, validation, folder, weights=weights, progress=progress or Progress())
    began = time.monotonic()
    training.run()
    chosen = network.with_input_size(keras.saving.load_model(training.best_file), plan.size)
    state = training.state
    report: dict[str, Any] = {
        "labels": list(data.labels),
        "preprocessing": "tf",
        **training.identity,
        "photos": len(data.paths),
        "parameters": training.model.count_params(),
        "epoch_chosen": state.best["epoch"],
        **measured(chosen, training.unseen, validation),
        "validation_accuracy_last_epoch": state.history[-1]["accuracy"],
        "minutes": round((time.monotonic() - began) / 60, 1),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "history": state.history,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    save_keras(chosen, output)
    report_file(output).write_text(json.dumps(report, indent=1) + "\n")
    title = f"{output.name}: validation accuracy {report['validation_accuracy']:.3f}"
    plots.learning_curves(curves_file(output), state.history, state.best["epoch"], title)
    shutil.rmtree(folder)
    return report


class _Training:
    """A running training: photos, network, averaged network, and state.

    Attributes:
        identity: plan and digests of photos and first weights; a saved state of another identity is not resumed.
        model: the network that learns.
        averaged: the same network with the exponential average of its weights.
        unseen: the validation photos, uint8 ``(n, size, size, 3)``.
        state: epochs done, history, best epoch.
        best_file: the averaged weights of the best epoch so far.

    """

    def __init__(
        self,
        plan: Plan,
        data: dataset.Dataset,
        validation: dataset.Dataset,
        folder: Path,
        *,
        weights: Path | None,
        progress: Progress,
    ) -> None:
        self._plan, self._data, self._validation, self._progress = plan, data, validation, progress
        classes = len(data.labels)
        progress.say(f"reading {len(data.paths)} photos of {classes} classes, {len(validation.paths)} for validation")

        def count(done: int, of: int) -> None:
            progress.count("read", done, of)

        self._pixels = dataset.load_pixels(data, round(plan.size * SOURCE_SCALE), count)
        self.unseen = dataset.load_pixels(validation, plan.size, count)
        self.model = _build(plan, classes, weights)
        self.averaged = _build(plan, classes, weights)
        self.averaged.set_weights(self.model.get_weights())
        progress.say(f"{plan.network}: {self.model.count_params():,} parameters, {plan.size} px, {plan.epochs} epochs")
        self.identity: dict[str, Any] = {
            "plan": asdict(plan),
            "photos_sha256": data.sha256(),
            "weights": {"file": weights.name, "sha256": keras_files.sha256(weights)} if weights else None,
        }
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.best_file = folder / "best.keras"
        saved = State.load(folder, self.identity)
        if saved is not None:
            progress.say(f"resuming after epoch {saved.epoch}, from {folder.name}/")
        self._resumes = saved is not None
        self.state = saved or State()

    def run(self) -> None:
        """Train the head, then, with fine-tuning, the whole network.

        Fine-tuning uses a tenth of the learning rate.
        """
        epochs = [self._plan.epochs] + ([self._plan.fine_tune_epochs] if self._plan.fine_tune_epochs else [])
        for number in range(self.state.phase, len(epochs)):
            self._phase(number, epochs[number], later=sum(epochs[number + 1 :]))

    def _phase(self, number: int, epochs: int, later: int) -> None:
        plan, state = self._plan, self.state
        if number > 0:
            plan = replace(plan, rate=plan.rate / 10)
            for each in (self.model, self.averaged):
                network.base_of(each).trainable = True
        optimizer = keras.optimizers.AdamW(self._plan.rate, weight_decay=plan.weight_decay)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        step = _step(self.model, self.averaged, optimizer)
        # The state of dropout's random generator, which a checkpoint of the model leaves out.
        chance = [each.value for each in self.model.variables if each.path.endswith("seed_generator_state")]
        checkpoint = tf.train.Checkpoint(model=self.model, averaged=self.averaged, optimizer=optimizer, chance=chance)
        if number > state.phase:
            state.phase, state.first = number, state.epoch
        elif self._resumes:
            checkpoint.read(str(self._folder / f"epoch-{state.epoch}")).assert_existing_objects_matched()
        while state.epoch < state.first + epochs and not state.stale(plan.patience):
            started = time.monotonic()
            self._epoch(plan, epochs, optimizer, step)
            checkpoint.write(str(self._folder / f"epoch-{state.epoch}"))
            state.save(self._folder, self.identity)
            self._say_epoch(plan, state.first + epochs + later, time.monotonic() - started)
        if state.stale(plan.patience):
            self._progress.say(f"no better accuracy for {plan.patience} epochs: stopping")

    def _epoch(self, plan: Plan, epochs: int, optimizer: keras.optimizers.Optimizer, step: Step) -> None:
        """Train one epoch, validate the averaged weights, keep them if they are best."""
        state, per_epoch = self.state, len(self._pixels) // plan.batch
        losses = []
        photos = batches(plan, self._pixels, self._data.targets, len(self._data.labels), state.epoch)
        for at, (x, y) in enumerate(photos):
            done = (state.epoch - state.first) * per_epoch + at
            optimizer.learning_rate.assign(plan.learning_rate(done, epochs * per_epoch))
            losses.append(step(x, y, min(plan.average, (1 + done) / (10 + done))))
            self._progress.count(f"epoch {state.epoch + 1} batch", at + 1, per_epoch)
        found = logits_of(self.averaged, self.unseen).argmax(axis=1)
        accuracy = float((found == self._validation.targets).mean())
        state.epoch += 1
        state.history.append({"epoch": state.epoch, "loss": float(np.mean(losses)), "accuracy": accuracy})
        if accuracy >= state.best["accuracy"] or plan.keep == "last":
            state.best = {"epoch": state.epoch, "accuracy": accuracy}
            save_keras(self.averaged, self.best_file)

    def _say_epoch(self, plan: Plan, of: int, seconds: float) -> None:
        state = self.state
        self._progress.say(
            f"epoch {state.epoch}/{of}  {plan.training_size(state.epoch - 1)} px"
            f"  loss {state.history[-1]['loss']:.3f}  validation {state.history[-1]['accuracy']:.3f}"
            f" (kept {state.best['accuracy']:.3f} of {state.best['epoch']:.0f})"
            f"  {seconds:.0f} s, about {(of - state.epoch) * seconds / 60:.0f} min left"
        )


def _step(model: keras.Model, averaged: keras.Model, optimizer: keras.optimizers.Optimizer) -> Step:
    """Build the optimizer step: photos, targets, average's momentum to loss."""
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
    if plan.network == network.COMPACT:
        model = network.compact(classes)
        if weights is not None:
            network.take_weights(model, weights)
        return model
    return network.transfer(plan.network, classes, plan.size, weights)
