"""Preprocessing against the formulas of those who trained: Keras, Caffe, torchvision, Pillow's grey."""

import numpy as np
import pytest
from PIL import Image

from clothing_contract import PREPROCESSINGS
from clothing_contract.scaling import Scaling, grey

PIXELS = np.random.default_rng(1).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALINGS = [
    *map(Scaling, PREPROCESSINGS),
    Scaling("none", channels="bgr"),
    Scaling("rescale", channels="grey"),
    Scaling("rescale", (0.1307,), (0.3081,), "grey"),
    Scaling("rescale", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bgr"),
    Scaling("tf", channels="bgr"),
]


def test_rescale_is_keras_rescale():
    """keras/src/legacy/preprocessing/image.py, standardize: x *= rescale, in float32; and Rescaling(1 / 255)."""
    numbers = Scaling("rescale").numbers(PIXELS)
    assert numbers.dtype == np.float32
    assert np.abs(numbers - PIXELS.astype(np.float32) * np.float32(1 / 255)).max() <= 2**-24


def test_rescale_is_torchvisions_to_tensor_bit_for_bit():
    """functional.py, to_tensor: img.to(float32).div(255)."""
    assert np.array_equal(Scaling("rescale").numbers(PIXELS), PIXELS.astype(np.float32) / np.float32(255))


def test_normalize_is_torchvisions_bit_for_bit():
    """_functional_tensor.py, normalize: tensor.sub_(mean).div_(std), float32."""
    mean, std = (np.array(each, np.float32) for each in IMAGENET)
    expected = (PIXELS.astype(np.float32) / np.float32(255) - mean) / std
    assert np.array_equal(Scaling("rescale", *IMAGENET).numbers(PIXELS), expected)
    assert np.array_equal(Scaling("torch").numbers(PIXELS), expected)


def test_scale_and_offset_as_mean_and_deviation():
    """Keras's Rescaling(1 / 127.5, offset=-1): x * scale + offset."""
    expected = PIXELS.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)
    assert np.abs(Scaling("none", (127.5,), (127.5,)).numbers(PIXELS) - expected).max() < 1e-6
    assert np.abs(Scaling("tf").numbers(PIXELS) - expected).max() < 1e-6


def test_caffe_is_bgr_less_the_mean():
    expected = PIXELS[..., ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32)
    assert np.array_equal(Scaling("caffe").numbers(PIXELS), expected)
    by_hand = Scaling("none", (103.939, 116.779, 123.68), channels="bgr").numbers(PIXELS)
    assert np.array_equal(by_hand, expected)


def test_none_and_its_channels():
    assert np.array_equal(Scaling("none").numbers(PIXELS), PIXELS.astype(np.float32))
    assert np.array_equal(Scaling("none", channels="bgr").numbers(PIXELS), PIXELS[..., ::-1].astype(np.float32))


def test_a_mean_of_the_models_channels():
    numbers = Scaling("none", (1, 2, 3), (2, 4, 8), "bgr").numbers(np.array([[[10, 20, 30]]], np.uint8))
    assert numbers.tolist() == [[[(30 - 1) / 2, (20 - 2) / 4, (10 - 3) / 8]]]


def test_grey_is_pillows():
    """Of each colour in steps of 5, the extremes included."""
    steps = np.array([*range(0, 256, 5)], np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    pillow = np.asarray(Image.fromarray(colours).convert("L"))
    assert np.array_equal(grey(colours)[..., 0], pillow)
    same = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3)
    assert np.array_equal(grey(same)[0, :, 0], np.arange(256))


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_tables_are_the_operations(scaling):
    values, reverse = scaling.table
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    assert reverse == scaling.is_bgr
    ordered = grey(PIXELS) if scaling.channels == "grey" else PIXELS[..., ::-1] if reverse else PIXELS
    assert np.array_equal(values[ordered, np.arange(values.shape[1])], scaling.numbers(PIXELS))


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_pixels_are_left_alone_and_numbers_are_contiguous(scaling):
    before = PIXELS.copy()
    assert scaling.numbers(PIXELS).flags.c_contiguous
    assert np.array_equal(PIXELS, before)


def test_equal_scalings_share_their_table():
    assert Scaling("tf").table is Scaling("tf").table
