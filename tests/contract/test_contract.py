"""What a model takes: read from model.json and from values, written again, and refused where it contradicts itself."""

import pytest

from clothing_contract import ContractError, Input, Output
from clothing_contract.contract import parse_numbers, parse_size, show_size

IMAGENET = {"preprocessing": "rescale", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize(
    "values",
    [
        {"preprocessing": "tf"},
        {"preprocessing": "caffe", "imageSize": "299"},
        {"preprocessing": "none", "channels": "bgr", "imageSize": "320x240", "resampling": "bicubic"},
        {"preprocessing": "rescale", "channels": "grey", "mean": [0.5]},
        IMAGENET,
        {"preprocessing": "torch", "fit": "crop", "shorterSide": 256, "resampling": "bilinear"},
        {"preprocessing": "tf", "exifOrientation": False},
    ],
)
def test_written_contract_equals_the_read_one(values):
    assert Input.read(values).values() == values


def test_default_is_the_courses_and_unknown_keys_are_ignored():
    assert Input.read({}) == Input() == Input.read({"labels": ["a"], "tensorflow": "2.20"})
    assert Input().values() == {"preprocessing": "tf"}


def test_sizes_are_width_and_height():
    assert Input.read({"imageSize": "320x240"}).image_size == (320, 240)
    assert parse_size("299") == (299, 299)
    assert (show_size((299, 299)), show_size((320, 240))) == ("299", "320x240")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preprocessing": "resnet"}, "preprocessing is 'resnet', and must be one of tf, caffe, torch, none, rescale"),
        ({"channels": "cmyk"}, "channels is 'cmyk', and must be one of rgb, bgr, grey"),
        ({"resampling": "cubic"}, "resampling is 'cubic'"),
        ({"fit": "cover"}, "fit is 'cover'"),
        ({"exifOrientation": "off"}, "exifOrientation is 'off', and must be true or false"),
        ({"preprocessing": 1}, "preprocessing is 1, and must be a text"),
        ({"shorterSide": True}, "shorterSide is True, and must be pixels"),
        ({"imageSize": "0"}, "imageSize is '0', and must be pixels"),
        ({"mean": [0.5]}, "mean and std belong to preprocessing none"),
        ({"preprocessing": "torch", "std": [2]}, "it is torch, which has its own"),
        ({"preprocessing": "none", "mean": [1, 2]}, "mean is [1, 2], and must be one number"),
        ({"preprocessing": "none", "mean": ["x"]}, "must be numbers with commas"),
        ({"preprocessing": "none", "mean": [float("nan")]}, "must be one number"),
        ({"preprocessing": "none", "std": [0, 1, 1]}, "std has a 0"),
        ({"preprocessing": "rescale", "channels": "grey", "mean": [1, 2, 3]}, "mean has 3 numbers"),
        ({"preprocessing": "torch", "channels": "bgr"}, "has a mean of each colour, and channels is bgr"),
        ({"preprocessing": "caffe", "channels": "grey"}, "has a mean of each colour, and channels is grey"),
    ],
)
def test_invalid_contract_names_the_key(values, message):
    with pytest.raises(ContractError) as error:
        Input.read(values)
    assert message in str(error.value)


@pytest.mark.parametrize("values", [{}, {"scores": "independent", "threshold": 0.3}, {"threshold": 0.9}])
def test_written_meaning_equals_the_read_one(values):
    assert Output.read({**values, "labels": ["a"]}).values() == values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scores": "percent"}, "scores is 'percent', and must be one of auto"),
        ({"scores": "softmax", "threshold": 0.3}, "and scores is softmax, of which the most probable label holds"),
        ({"scores": "logits", "threshold": 0.5}, "labels with a probability of their own (sigmoid, independent)"),
        ({"scores": "sigmoid", "threshold": 0}, "must be above 0 and below 1"),
        ({"threshold": 1}, "must be above 0 and below 1"),
        ({"threshold": float("nan")}, "must be above 0 and below 1"),
        ({"threshold": "0.5"}, "threshold is '0.5', and must be a number"),
        ({"threshold": True}, "must be a number"),
    ],
)
def test_invalid_meaning_names_the_key(values, message):
    with pytest.raises(ContractError) as error:
        Output.read(values)
    assert message in str(error.value)


def test_numbers():
    assert parse_numbers("0.485, 0.456,0.406") == (0.485, 0.456, 0.406)
    assert parse_numbers("127.5") == (127.5,)
