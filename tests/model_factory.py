"""Makes small models of every kind that users have, for tests: random weights, but the real formats.

    python tests/model_factory.py --kind keras2 --input-name input_28 --output-name dense_18 --size 299 --out DIR

writes DIR/model.h5 (keras2), DIR/model.keras (keras3) or DIR/saved_model.pb (savedmodel), and DIR/expected.json: two
photos' seed, and the scores that Keras itself gives for them.
"""

import argparse
import importlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = ("keras2", "keras2-keras", "keras3", "keras3-h5", "savedmodel")


def photos(size: int, count: int = 2, seed: int = 7) -> NDArray[np.float32]:
    """Noise in [-1, 1], as photos are after the preprocessing `tf`."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, size, size, 3)).astype(np.float32)


def build(keras: Any, input_name: str, output_name: str, size: int, classes: int, seed: int = 0) -> Any:
    """A network like Xception in little: separable convolutions, batch normalisation, a residual."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    inputs = keras.Input((size, size, 3), name=input_name)
    x = layers.Conv2D(8, 3, strides=4, use_bias=False)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    y = layers.SeparableConv2D(8, 3, padding="same", use_bias=False)(x)
    y = layers.BatchNormalization()(y)
    x = layers.add([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.3)(x)
    return keras.Model(inputs, layers.Dense(classes, name=output_name, kernel_initializer="glorot_normal")(x))


def make_model(
    folder: Path,
    kind: str = "keras3",
    input_name: str = "input_8",
    output_name: str = "dense_7",
    size: int = 96,
    classes: int = 10,
    seed: int = 0,
) -> Path:
    """Write a model into the folder and return its path: a file, or for `savedmodel` the folder itself."""
    folder.mkdir(parents=True, exist_ok=True)
    keras: Any = importlib.import_module("tf_keras" if kind.startswith("keras2") else "keras")
    model = build(keras, input_name, output_name, size, classes, seed)
    scores = np.asarray(model(photos(size), training=False))
    if kind in ("keras2", "keras3-h5"):
        path = folder / "model.h5"
        with warnings.catch_warnings(action="ignore"):  # that .h5 is old: just so
            model.save(path)
        if kind == "keras2":
            _as_the_course_saved_it(path)
    elif kind in ("keras2-keras", "keras3"):
        path = folder / "model.keras"
        model.save(path)
    elif kind == "savedmodel":  # as Keras 3's model.export writes it: named by the caller
        import tensorflow as tf

        path = folder
        module = tf.Module()
        module.kept = [variable.value for variable in model.variables]
        module.serve = tf.function(
            lambda x: {output_name: model(x, training=False)},
            input_signature=[tf.TensorSpec((None, size, size, 3), tf.float32, name=input_name)],
        )
        tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    else:
        raise ValueError(f"kind {kind}: one of {', '.join(KINDS)}")
    (folder / "expected.json").write_text(json.dumps({"seed": 7, "size": size, "scores": scores.tolist()}))
    return path


def _as_the_course_saved_it(path: Path) -> None:
    """Put in what Keras 2.2.4-tf wrote and Keras 3 stumbles over: the version, and SeparableConv2D's `groups`."""
    import h5py

    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "SeparableConv2D":
                layer["config"].update(
                    groups=1,
                    kernel_initializer=layer["config"]["depthwise_initializer"],
                    kernel_regularizer=None,
                    kernel_constraint=None,
                )
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.2.4-tf"


def expected(folder: Path) -> NDArray[np.float32]:
    """The scores that Keras gave for `photos(size)` when the model was made."""
    return np.asarray(json.loads((folder / "expected.json").read_text())["scores"], np.float32)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make a small model with random weights.")
    parser.add_argument("--kind", choices=KINDS, default="keras3")
    parser.add_argument("--input-name", default="input_8")
    parser.add_argument("--output-name", default="dense_7")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    print(make_model(args.out, args.kind, args.input_name, args.output_name, args.size, args.classes, args.seed))


if __name__ == "__main__":
    main()
