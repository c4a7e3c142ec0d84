"""What is made of a model's signature, and of tensors."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import predict_pb2

from clothing_contract import Output
from clothing_gateway.model import signature, tensor
from clothing_gateway.model.signature import Misfit
from clothing_gateway.pipeline import result
from clothing_gateway.settings import Settings

FLOAT, UINT8, STRING, INT64, DOUBLE = (
    types_pb2.DT_FLOAT,
    types_pb2.DT_UINT8,
    types_pb2.DT_STRING,
    types_pb2.DT_INT64,
    types_pb2.DT_DOUBLE,
)
COURSE_IN = {"input_8": (FLOAT, (-1, 299, 299, 3))}
COURSE_OUT = {"dense_7": (FLOAT, (-1, 10))}


def describe(inputs=None, outputs=None, name="serving_default", **settings):
    made = meta_graph_pb2.SignatureDef()
    for there, described in ((made.inputs, inputs or COURSE_IN), (made.outputs, outputs or COURSE_OUT)):
        for key, (dtype, shape) in described.items():
            there[key].dtype = dtype
            if shape is None:
                there[key].tensor_shape.unknown_rank = True
            for size in shape or ():
                there[key].tensor_shape.dim.add().size = size
    return signature.describe("clothing-model", 3, {name: made}, Settings(**settings))


def test_the_course_model_fits_the_defaults():
    model = describe()
    assert (model.input_name, model.output_name) == ("input_8", "dense_7")
    assert (model.size, model.input_type, model.width, model.batch_limit) == ((299, 299), "float32", 10, None)
    assert (model.name, model.version) == ("clothing-model", 3)
    assert model.payload_bytes(2, 0) == 2 * 299 * 299 * 3 * 4


@pytest.mark.parametrize(
    ("inputs", "settings", "expected"),
    [
        ({"inputs": (FLOAT, (-1, 224, 224, 3))}, {}, ("float32", (224, 224), None)),
        ({"x": (FLOAT, (-1, 240, 320, 3))}, {}, ("float32", (320, 240), None)),
        ({"x": (FLOAT, (-1, -1, -1, 3))}, {"image_size": (320, 240)}, ("float32", (320, 240), None)),
        ({"x": (FLOAT, (-1, -1, 320, 3))}, {"image_size": (320, 240)}, ("float32", (320, 240), None)),
        ({"x": (FLOAT, None)}, {"image_size": (99, 99)}, ("float32", (99, 99), None)),
        ({"x": (UINT8, (-1, 150, 150, 3))}, {}, ("uint8", (150, 150), None)),
        ({"x": (FLOAT, (1, 299, 299, 3))}, {}, ("float32", (299, 299), 1)),
        ({"x": (STRING, (-1,))}, {}, ("string", None, None)),
        ({"x": (STRING, None)}, {}, ("string", None, None)),
    ],
)
def test_models_that_fit(inputs, settings, expected):
    model = describe(inputs, **settings)
    assert (model.input_type, model.size, model.batch_limit) == expected


@pytest.mark.parametrize(
    ("inputs", "outputs", "settings", "words"),
    [
        (None, None, {"signature_name": "predict"}, ["'predict'", "'serving_default'", "GATEWAY_SIGNATURE_NAME"]),
        (None, None, {"input_name": "input_28"}, ["'input_28'", "'input_8'", "GATEWAY_INPUT_NAME"]),
        (None, None, {"output_name": "dense_18"}, ["'dense_18'", "'dense_7'", "GATEWAY_OUTPUT_NAME"]),
        (
            {"a": (FLOAT, (-1, 9, 9, 3)), "b": (FLOAT, (-1, 9, 9, 3))},
            None,
            {},
            ["2 inputs", "'a', 'b'", "GATEWAY_INPUT_NAME"],
        ),
        (None, {"a": (FLOAT, (-1, 10)), "b": (FLOAT, (-1, 10))}, {}, ["2 outputs", "GATEWAY_OUTPUT_NAME"]),
        (None, {"dense": (FLOAT, (-1, 20))}, {}, ["20 scores", "10 labels", "GATEWAY_LABELS"]),
        (None, {"dense": (FLOAT, (-1, 5, 5, 10))}, {}, ["two dimensions"]),
        (None, {"dense": (INT64, (-1, 10))}, {}, ["DT_INT64"]),
        ({"x": (INT64, (-1, 9, 9, 3))}, None, {}, ["DT_INT64", "DT_UINT8"]),
        ({"x": (FLOAT, (-1, 299, 299, 2))}, None, {}, ["(-1, 299, 299, 2)", "of 3 channels or 1"]),
        (
            {"x": (FLOAT, (-1, 28, 28, 1))},
            None,
            {"preprocessing": "torch"},
            ["channels is grey", "GATEWAY_PREPROCESSING"],
        ),
        ({"x": (FLOAT, (-1, 28, 28, 1))}, None, {"channels": "bgr"}, ["one channel", "GATEWAY_CHANNELS"]),
        ({"x": (FLOAT, (-1, 3, 28, 28))}, None, {"channels": "grey"}, ["three channels", "GATEWAY_CHANNELS"]),
        (
            {"x": (FLOAT, (-1, 9, 9, 3)), "keep_prob": (FLOAT, ())},
            None,
            {"input_name": "x"},
            ["requires 'keep_prob'", "constants in their place", "GATEWAY_SIGNATURE_NAME"],
        ),
        (None, {"d": (FLOAT, (-1, 1))}, {"labels": ("a", "b", "c")}, ["1 score, and GATEWAY_LABELS names 3 labels"]),
        (None, {"d": (FLOAT, (-1, 1))}, {"labels": ("a", "b"), "scores": "softmax"}, ["1 score for 2 labels"]),
        (None, None, {"scores": "sigmoid"}, ["10 labels", "independent", "GATEWAY_SCORES"]),
        (None, {"d": (FLOAT, (-1, 2))}, {"labels": ("a", "b"), "scores": "sigmoid"}, ["gives 2 scores", "independent"]),
        ({"x": (FLOAT, (-1, 100))}, None, {}, ["(-1, 100)"]),
        ({"x": (FLOAT, (-1, -1, -1, 3))}, None, {}, ["GATEWAY_IMAGE_SIZE"]),
        ({"x": (FLOAT, None)}, None, {}, ["GATEWAY_IMAGE_SIZE"]),
        (None, None, {"image_size": (224, 224)}, ["224x224", "(-1, 299, 299, 3)", "GATEWAY_IMAGE_SIZE"]),
        ({"x": (FLOAT, (8, 299, 299, 3))}, None, {}, ["exactly 8"]),
        ({"x": (STRING, (-1, 2))}, None, {}, ["encoded photos"]),
    ],
)
def test_mismatching_model_names_the_setting_to_change(inputs, outputs, settings, words):
    with pytest.raises(Misfit) as caught:
        describe(inputs, outputs, **settings)
    for word in words:
        assert word in str(caught.value)


def test_names_choose_among_several():
    photo = {"b": (FLOAT, (-1, 8, 8, 3))}
    model = describe(photo, {"p": (FLOAT, (-1, 10)), "q": (DOUBLE, (-1, 3))}, input_name="b", output_name="p")
    assert (model.input_name, model.size, model.output_name) == ("b", (8, 8), "p")


def test_a_further_input_with_a_default_may_be_left_out():
    """SignatureDef.defaults, field 4, which this version of the messages doesn't know: map<string, TensorProto>."""
    made = meta_graph_pb2.SignatureDef()
    for name, shape in (("photo", (-1, 8, 8, 3)), ("keep_prob", ())):
        made.inputs[name].dtype = FLOAT
        for size in shape:
            made.inputs[name].tensor_shape.dim.add().size = size
    made.outputs["p"].dtype = FLOAT
    made.outputs["p"].tensor_shape.unknown_rank = True
    entry = b"\x0a\x09keep_prob\x12\x02\x08\x01"
    made.MergeFromString(b"\x22" + bytes([len(entry)]) + entry)
    model = signature.describe("m", 1, {"serving_default": made}, Settings(input_name="photo"))
    assert model.input_name == "photo"


@pytest.mark.parametrize("kind", ["classify", "regress"])
def test_signatures_for_examples_are_no_signatures_for_photos(kind):
    made = meta_graph_pb2.SignatureDef(method_name=f"tensorflow/serving/{kind}")
    made.inputs["inputs"].dtype = STRING
    made.inputs["inputs"].tensor_shape.dim.add().size = -1
    signatures = {"serving_default": made, "predict": meta_graph_pb2.SignatureDef()}
    with pytest.raises(Misfit, match=r"takes tf.Example, not photos: name one .* GATEWAY_SIGNATURE_NAME .*'predict'"):
        signature.describe("m", 1, signatures, Settings())


@pytest.mark.parametrize(
    ("shape", "settings", "layout", "channels", "size"),
    [
        ((-1, 3, 32, 48), {}, "nchw", "rgb", (48, 32)),
        ((-1, 3, -1, -1), {"image_size": (48, 32)}, "nchw", "rgb", (48, 32)),
        ((-1, 32, 48, 3), {"channels": "bgr"}, "nhwc", "bgr", (48, 32)),
        ((-1, 28, 28, 1), {"preprocessing": "rescale"}, "nhwc", "grey", (28, 28)),
        ((-1, 1, 28, 28), {"preprocessing": "rescale", "mean": (0.1307,), "std": (0.3081,)}, "nchw", "grey", (28, 28)),
    ],
)
@pytest.mark.parametrize("dtype", [FLOAT, UINT8])
def test_layouts_and_channels(shape, settings, layout, channels, size, dtype):
    model = describe({"x": (dtype, shape)}, **settings)
    assert (model.layout, model.channels, model.size) == (layout, channels, size)
    pixels = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8)
    wanted = {
        "rgb": pixels,
        "bgr": pixels[..., ::-1],
        "grey": np.asarray(Image.fromarray(pixels).convert("L"))[..., None],
    }
    expected = wanted[channels]
    if dtype == FLOAT:
        expected = model.scaling.scaled(expected)
    found = model.arranged(pixels)
    assert found.flags.c_contiguous
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected.transpose(2, 0, 1) if layout == "nchw" else expected)
    assert model.payload_bytes(2, 0) == 2 * found.nbytes


@pytest.mark.parametrize("shape", [(-1, -1), None])
def test_an_output_of_open_width_fits(shape):
    assert describe(outputs={"d": (FLOAT, shape)}).width is None


def written(photos, name="input_8"):
    """What the server reads from the bytes; and that protobuf itself would have written the same message."""
    head = predict_pb2.PredictRequest(output_filter=["dense_7"])
    head.model_spec.name = "clothes"
    message = tensor.serialise(head.SerializeToString(), head.INPUTS_FIELD_NUMBER, name, photos)
    request = predict_pb2.PredictRequest.FromString(message)
    expected = predict_pb2.PredictRequest()
    expected.CopyFrom(head)
    proto = expected.inputs[name]
    for size in (len(photos), *(() if isinstance(photos[0], bytes) else photos[0].shape)):
        proto.tensor_shape.dim.add().size = size
    if isinstance(photos[0], bytes):
        proto.dtype = STRING
        proto.string_val.extend(photos)
    else:
        proto.dtype = {np.float32: FLOAT, np.float64: DOUBLE, np.uint8: UINT8}[photos[0].dtype.type]
        proto.tensor_content = np.stack(photos).tobytes()
    assert request == expected
    assert len(message) == expected.ByteSize()
    return request.inputs[name]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 2, 3), (9, 16, 3), (73, 100, 3), (299, 299, 3)])
@pytest.mark.parametrize("batch", [1, 2, 130])
def test_numbers_are_serialised_as_protobuf_does(dtype, shape, batch):
    if batch == 130 and shape[0] > 9:
        shape = (9, 9, 3)
    rng = np.random.default_rng(1)
    photos = [rng.uniform(0, 255, shape).astype(dtype) for _ in range(batch)]
    proto = written(photos)
    assert [dim.size for dim in proto.tensor_shape.dim] == [batch, *shape]
    if dtype != np.uint8:
        assert np.array_equal(tensor.read(proto), np.stack(photos))
    assert not proto.float_val


@pytest.mark.parametrize(
    "photos", [[b"one"], [b"one", b"two"], [b""], [b"x" * 127, b"y" * 128, b"z" * 16384], [b"x" * (1 << 21)]]
)
@pytest.mark.parametrize("name", ["x", "serving_default_input_of_a_long_name" * 4, "ü"])
def test_strings_are_serialised_as_protobuf_does(photos, name):
    proto = written(photos, name)
    assert proto.dtype == STRING
    assert list(proto.string_val) == photos
    assert [dim.size for dim in proto.tensor_shape.dim] == [len(photos)]


def test_a_non_contiguous_array_is_serialised_in_its_order():
    turned = np.arange(24, dtype=np.uint8).reshape(2, 4, 3).transpose(1, 0, 2)
    assert written([turned]).tensor_content == turned.tobytes()
    assert written([turned[:, ::-1], turned]).tensor_content == turned[:, ::-1].tobytes() + turned.tobytes()


def proto_of(dtype, shape, **values):
    proto = tensor_pb2.TensorProto(dtype=dtype, **values)
    for size in shape:
        proto.tensor_shape.dim.add().size = size
    return proto


@pytest.mark.parametrize(
    ("proto", "expected"),
    [
        (proto_of(FLOAT, (1, 2), float_val=[1.5, -2]), [[1.5, -2]]),
        (proto_of(FLOAT, (1, 2), tensor_content=np.float32([1.5, -2]).tobytes()), [[1.5, -2]]),
        (proto_of(DOUBLE, (2, 1), double_val=[1.5, -2]), [[1.5], [-2]]),
        (proto_of(DOUBLE, (2, 1), tensor_content=np.float64([1.5, -2]).tobytes()), [[1.5], [-2]]),
        (proto_of(FLOAT, (1, 3), float_val=[0.5]), [[0.5, 0.5, 0.5]]),
    ],
)
def test_answers_are_read_in_each_form(proto, expected):
    assert tensor.read(proto).tolist() == expected


@pytest.mark.parametrize(
    "proto",
    [
        proto_of(FLOAT, (1, 3), float_val=[1, 2]),
        proto_of(FLOAT, (1, 3)),
        proto_of(FLOAT, (1, 2), tensor_content=b"abc"),
        proto_of(FLOAT, (1, 2), tensor_content=b"abcd"),
        proto_of(FLOAT, (-1, 2), float_val=[1, 2]),
        proto_of(INT64, (1, 1), int64_val=[1]),
        proto_of(STRING, (1,), string_val=[b"a"]),
        proto_of(999, (1,)),
    ],
)
def test_inconsistent_tensors_are_refused(proto):
    with pytest.raises(tensor.TensorError):
        tensor.read(proto)


def test_scores_are_sorted_and_ties_keep_the_labels_order():
    logits = Output(scores="logits")
    order = result(("a", "b", "c", "d"), np.float32([1, 3, 1, 2]), logits)["predictions"]
    assert [one["label"] for one in order] == ["b", "d", "a", "c"]
    assert order[0]["score"] == 3
    for top, count in ((2, 2), (9, 3)):
        assert len(result(("a", "b", "c"), np.float32([1, 3, 1]), logits, top)["predictions"]) == count
