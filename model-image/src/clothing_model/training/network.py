"""Networks that ``clothing-model train`` can train.

All take what the course's Xception takes, float32 ``(-1, S, S, 3)`` in [-1, 1] (the gateway's ``tf`` preprocessing),
and give logits, float32 ``(-1, classes)``. So one gateway setting serves each of them.
"""

from __future__ import annotations

from pathlib import Path

import keras
from keras import layers

from clothing_model.errors import ModelError

COMPACT = "compact"
# Each takes photos in [-1, 1] once its own preprocessing is left out, but EfficientNetV2B0: see IMAGENET.
APPLICATIONS = {
    "xception": keras.applications.Xception,
    "efficientnetv2b0": lambda **kwargs: keras.applications.EfficientNetV2B0(include_preprocessing=False, **kwargs),
    "mobilenetv3small": lambda **kwargs: keras.applications.MobileNetV3Small(include_preprocessing=False, **kwargs),
    "mobilenetv3large": lambda **kwargs: keras.applications.MobileNetV3Large(include_preprocessing=False, **kwargs),
}
NAMES = (COMPACT, *APPLICATIONS)
# What EfficientNetV2B0's weights were trained on: [0, 1], less ImageNet's mean, by its standard deviation.
IMAGENET = {"efficientnetv2b0": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}

# The compact network's channels and residual blocks; each stage halves height and width.
STAGES = ((64, 2), (128, 2), (224, 3), (384, 2))


class WeightsError(ModelError):
    """A weights file does not fit the network; the message names both."""


def _block(x: keras.KerasTensor, channels: int, stride: int, name: str) -> keras.KerasTensor:
    """Residual pair of separable convolutions with squeeze-and-excitation.

    Sources: arXiv:1610.02357, arXiv:1709.01507.
    """
    shortcut = x
    if stride != 1 or x.shape[-1] != channels:
        shortcut = layers.AveragePooling2D(stride, padding="same", name=f"{name}_pool")(x) if stride != 1 else x
        shortcut = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_project")(shortcut)
        shortcut = layers.BatchNormalization(name=f"{name}_project_bn")(shortcut)
    for index in (1, 2):
        x = layers.DepthwiseConv2D(
            3, stride if index == 1 else 1, padding="same", use_bias=False, name=f"{name}_depthwise{index}"
        )(x)
        x = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_pointwise{index}")(x)
        x = layers.BatchNormalization(name=f"{name}_bn{index}")(x)
        if index == 1:
            x = layers.ReLU(name=f"{name}_relu{index}")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    gate = layers.Conv2D(max(8, channels // 8), 1, activation="relu", name=f"{name}_reduce")(gate)
    gate = layers.Conv2D(channels, 1, activation="sigmoid", name=f"{name}_excite")(gate)
    x = layers.Multiply(name=f"{name}_scale")([x, gate])
    return layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([x, shortcut]))


def compact(classes: int, dropout: float = 0.3) -> keras.Model:
    """A small residual network, to train from scratch on a few thousand photos.

    The input is any size of 64 pixels and above.

    Input: float32 ``(-1, height, width, 3)``; output: logits ``(-1, classes)``. 1.2 million parameters, below 5 MB.
    """
    inputs = keras.Input((None, None, 3), name="photo")
    x = layers.Conv2D(32, 3, 2, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_bn")(x))
    for stage, (channels, blocks) in enumerate(STAGES, start=1):
        for block in range(blocks):
            x = _block(x, channels, 2 if block == 0 else 1, f"stage{stage}_block{block + 1}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="compact")


def transfer(name: str, classes: int, size: int, weights: Path | None, dropout: float = 0.2) -> keras.Model:
    """A Keras application with a new head, for transfer learning.

    As in the course: frozen base, pooling, 100 hidden units, logits.

    Args:
        name: one of ``APPLICATIONS``.
        classes: width of the output.
        size: height and width of the input in pixels.
        weights: the application's ``…_notop.h5``; None starts from random weights, which only a test wants.
        dropout: share of the hidden units dropped in training.

    The base is ``base_of(model)``; train the head with it frozen, then unfreeze.

    Raises:
        WeightsError: ``weights`` is missing or isn't that application's file.

    """
    if weights is not None and not weights.is_file():
        raise WeightsError(f"{weights}: no such file; give the application's weights without its top (…_notop.h5)")
    try:
        base = APPLICATIONS[name](include_top=False, weights=None, input_shape=(size, size, 3))
        if weights is not None:
            base.load_weights(weights)
    except (ValueError, OSError) as error:
        raise WeightsError(
            f"{weights}: not the weights of {name} without its top ({error}); take the file that ends in _notop.h5"
        ) from error
    base.trainable = False
    inputs = x = keras.Input((size, size, 3), name="photo")
    if name in IMAGENET:  # the same for an x in [-1, 1], which is 2 * [0, 1] - 1
        mean, deviation = IMAGENET[name]
        x = layers.Normalization(
            mean=[2 * each - 1 for each in mean], variance=[(2 * each) ** 2 for each in deviation], name="imagenet"
        )(x)
    x = layers.GlobalAveragePooling2D(name="pool")(base(x, training=False))
    x = layers.Dense(100, activation="relu", name="hidden")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=f"{name}_classifier")


def take_weights(model: keras.Model, file: Path) -> None:
    """Load the weights of a ``.keras`` file of the same network into ``model``.

    Raises:
        WeightsError: ``file`` is missing, no such file, or of another network.

    """
    if not file.is_file():
        raise WeightsError(f"{file}: no such file; give a .keras file that train has written")
    try:
        weights = keras.saving.load_model(file, compile=False).get_weights()
    except (ValueError, OSError, TypeError) as error:
        raise WeightsError(
            f"{file}: Keras can't read it ({error}); give a .keras file that train has written"
        ) from error
    wanted = [tuple(variable.shape) for variable in model.weights]
    found = [weight.shape for weight in weights]
    if wanted != found:
        raise WeightsError(
            f"{file}: not the weights of {model.name} with {model.output_shape[-1]} classes; "
            "give a file that train has written with the same --network and classes"
        )
    model.set_weights(weights)


def base_of(model: keras.Model) -> keras.Model:
    """The application inside a model that ``transfer`` built."""
    return next(layer for layer in model.layers if isinstance(layer, keras.Model))


def with_input_size(model: keras.Model, size: int) -> keras.Model:
    """The same model with an input of fixed size, ``(-1, size, size, 3)``.

    The server's signature then states the size.
    """
    fixed = keras.models.clone_model(model, input_tensors=keras.Input((size, size, 3), name="photo"))
    fixed.set_weights(model.get_weights())
    return fixed
