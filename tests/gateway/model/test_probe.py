"""Ready means that a photo would be answered: pictures that a model is asked about before, and what they tell."""

from __future__ import annotations

import io
import json
import logging

import grpc
import numpy as np
import pytest
from fakes import FakeModel, ModelServer
from tensorflow.core.framework import tensor_pb2, types_pb2

from clothing_gateway.client import Client
from clothing_gateway.commands.output import Detail, JsonLines, Outcome
from clothing_gateway.errors import ModelAnswerUnusable
from clothing_gateway.model import tensor
from clothing_gateway.model.signature import Model
from clothing_gateway.model.tensorflow_serving import without_quotes

INVALID = grpc.StatusCode.INVALID_ARGUMENT
ONE = {"dense": (types_pb2.DT_FLOAT, (-1, 1))}
THREE = {"tags": (types_pb2.DT_FLOAT, (-1, 3))}


@pytest.fixture
def checked(make, stack):
    """A predictor that has checked a model once; the model."""

    def check(**model):
        settings = model.pop("settings", {})
        server = ModelServer(FakeModel(**model))
        stack.callback(server.stop)
        predictor = make(server.address, **settings)
        predictor.watcher.check()
        return predictor, server.model

    return check


def constant(*rows):
    """Rows of scores, one for each picture in turn, and the last one from then on."""
    left = [list(row) for row in rows]
    return lambda batch: [left.pop(0) if len(left) > 1 else left[0] for _ in batch]


def network(head, bound=None):
    """A linear network of the mean of a photo's numbers, here from -1 to 1; ``bound`` is where its features end."""

    def scores(batch):
        features = np.array([np.mean(photo, dtype=np.float64) for photo in batch])
        return head(features if bound is None else np.clip(features, -bound, bound))

    return scores


def sigmoid(x):
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-x, dtype=np.float32)))[:, None]


def small_logit(x):
    return 0.4 + 1e-5 * x[:, None]


def by_chance(x):
    """Logits whose sum is 1 for each photo, by a millionth."""
    return np.stack([0.5 + 1e-6 * x, 0.3 - 2e-6 * x, np.full_like(x, 0.2)], axis=1)


@pytest.mark.parametrize(
    ("outputs", "scores", "settings", "kind", "pictures"),
    [
        (None, None, {}, "logits", 1),
        (ONE, network(sigmoid), {"labels": ("bee", "wasp")}, "sigmoid", 7),
        (ONE, network(lambda x: 1 - sigmoid(x)), {"labels": ("wasp",)}, "sigmoid", 7),
        (ONE, network(small_logit), {"labels": ("bee", "wasp")}, "logits", 7),
        (ONE, constant([0.2]), {"labels": ("bee", "wasp"), "scores": "sigmoid"}, "sigmoid", 1),
        (ONE, constant([0.2], [-3.0]), {"labels": ("bee", "wasp")}, "logits", 2),
        (THREE, constant([0.25, 0.25, 0.5]), {"labels": ("a", "b", "c")}, "softmax", 7),
        (THREE, network(by_chance), {"labels": ("a", "b", "c")}, "logits", 7),
        (THREE, constant([0.95, 0.9, 0.05]), {"labels": ("a", "b", "c"), "scores": "independent"}, "independent", 1),
        (THREE, constant([0.95, 0.9, 0.05]), {"labels": ("a", "b", "c"), "scores": "logits"}, "logits", 1),
    ],
)
def test_the_kind_of_scores(checked, outputs, scores, settings, kind, pictures):
    made = {"outputs": outputs, "scores": scores} if outputs else {}
    predictor, model = checked(**made, settings=settings)
    assert predictor.versions.not_ready is None
    assert predictor.versions.route().scores == kind
    assert len(model.probes) == pictures
    predictor.watcher.check()
    assert len(model.probes) == pictures, "a version that is known is not asked again"


@pytest.mark.parametrize(
    "model",
    [
        {"scores": network(sigmoid, bound=6)},  # ReLU6, as MobileNet's: 0.9975 at most
        {"scores": network(small_logit, bound=6)},
        {"scores": constant([0.2])},
        {"scores": constant([0.0])},  # a head of zeros
        {"scores": constant([1.0])},
        {"scores": network(sigmoid), "inputs": {"pixels": (types_pb2.DT_UINT8, (-1, 8, 8, 3))}},
        {"scores": lambda files: [[0.2] for _ in files], "inputs": {"files": (types_pb2.DT_STRING, (-1,))}},
    ],
)
def test_one_number_that_may_be_either_is_not_guessed(checked, model):
    predictor, _ = checked(outputs=ONE, **model, settings={"labels": ("bee", "wasp")})
    for words in ("one number from 0 to 1", "sigmoid (a probability) or logits (a small one)", "set GATEWAY_SCORES"):
        assert words in predictor.versions.not_ready


@pytest.mark.parametrize("far", [[np.nan, 1, 1], [np.inf, 0, 0]])
def test_a_network_that_overflows_is_judged_by_pictures(checked, far):
    def scores(batch):
        return [far if np.abs(photo).max() > 1 else [0.5, 0.25, 0.25] for photo in batch]

    predictor, _ = checked(outputs=THREE, scores=scores, settings={"labels": ("a", "b", "c")})
    assert predictor.versions.route().scores == "softmax"


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (
            {"outputs": THREE, "scores": constant([0.95, 0.9, 0.05])},
            {"labels": ("a", "b", "c")},
            ["0.95, 0.9, 0.05", "set GATEWAY_SCORES", "independent", "logits"],
        ),
        (  # by chance the first three sum to 1
            {"outputs": THREE, "scores": constant([0.5, 0.3, 0.2], [0.9, 0.9, 0.9])},
            {"labels": ("a", "b", "c")},
            ["GATEWAY_SCORES"],
        ),
        (
            {"outputs": THREE, "scores": constant([3.0, 1.0, -2.0])},
            {"labels": ("a", "b", "c"), "scores": "softmax"},
            ["outside of 0 to 1", "change GATEWAY_SCORES, which is softmax"],
        ),
        (
            {"outputs": {"open": (types_pb2.DT_FLOAT, (-1, -1))}, "scores": constant([1.0, 2.0])},
            {"labels": ("a", "b", "c")},
            ["gives 2 scores, and GATEWAY_LABELS names 3 labels"],
        ),
        (
            {"outputs": THREE, "scores": constant([0.25, 0.25, 0.5])},
            {"labels": ("a", "b", "c"), "threshold": 0.3},
            ["gives softmax", "leave it out (GATEWAY_THRESHOLD)"],
        ),
        ({"scores": constant([float("nan")] * 10)}, {}, ["not finite"]),
        (
            {"fail_probe": (INVALID, "Missing but required: {keep_prob}")},
            {},
            ["refuses a picture", "Missing but required: {keep_prob}"],
        ),
        (
            {"fail_probe": (INVALID, "Could not parse example input, value: '\xff\xd8\xff\xe0 Exif secret'")},
            {},
            ["Could not parse example", "takes tf.Example, not photos", "GATEWAY_SIGNATURE_NAME"],
        ),
        ({"method_name": "tensorflow/serving/classify"}, {}, ["takes tf.Example", "GATEWAY_SIGNATURE_NAME"]),
    ],
)
def test_not_ready_where_a_photo_would_not_be_answered(checked, model, settings, words):
    predictor, _ = checked(**model, settings=settings)
    for word in words:
        assert word in predictor.versions.not_ready
    assert "secret" not in predictor.versions.not_ready


def test_a_server_that_is_full_is_asked_again(checked):
    predictor, model = checked(fail_probe=(grpc.StatusCode.RESOURCE_EXHAUSTED, ""))
    assert "too busy" in predictor.versions.not_ready
    model.fail_probe = None
    predictor.watcher.check()
    assert predictor.versions.not_ready is None


def test_a_version_that_means_another_thing_is_asked_anew(checked):
    predictor, model = checked(outputs=THREE, scores=constant([2.0, 1, 0]), settings={"labels": ("a", "b", "c")})
    assert predictor.versions.route().scores == "logits"
    model.version, model.scores = 2, constant([0.25, 0.25, 0.5])
    predictor.watcher.check()
    assert predictor.versions.route().scores == "softmax"


def test_the_log_says_what_was_decided(checked, caplog):
    with caplog.at_level(logging.INFO):
        checked()
    (ready,) = [record for record in caplog.records if record.msg == "the model is ready"]
    assert ready.scores == "logits"


def test_a_score_that_its_kind_can_not_give_is_no_answer(checked):
    from clothing_gateway.deadline import Deadline

    settings = {"labels": ("bee", "wasp"), "scores": "sigmoid"}
    predictor, model = checked(outputs=ONE, scores=constant([0.2]), settings=settings)
    route = predictor.versions.route()
    assert isinstance(route, Model)
    photo = np.zeros((8, 8, 3), np.float32)
    found = predictor.predict(route, [photo, photo], Deadline.after(5)).scores
    assert np.allclose(found, [[0.8, 0.2], [0.8, 0.2]])
    model.scores = constant([4.0])
    with pytest.raises(ModelAnswerUnusable) as error:
        predictor.predict(route, [photo], Deadline.after(5))
    assert "GATEWAY_SCORES" in error.value.cause


@pytest.mark.parametrize("dtype", [types_pb2.DT_HALF, types_pb2.DT_BFLOAT16])
@pytest.mark.parametrize("as_content", [True, False])
def test_half_precision_scores(dtype, as_content):
    numbers = np.array([[0.5, -2.0, 0.15625, 1.0]], np.float32)
    bits = numbers.astype(np.float16).view(np.uint16) if dtype == types_pb2.DT_HALF else numbers.view(np.uint32) >> 16
    proto = tensor_pb2.TensorProto(dtype=dtype)
    for size in numbers.shape:
        proto.tensor_shape.dim.add().size = size
    if as_content:
        proto.tensor_content = bits.astype("<u2").tobytes()
    else:
        proto.half_val.extend(bits.ravel().tolist())
    found = tensor.read(proto)
    assert found.dtype == np.float32
    assert np.array_equal(found, numbers)


@pytest.mark.parametrize(
    ("details", "kept"),
    [
        ("Could not parse example input, value: '\xff\xd8 Exif'", "Could not parse example input, value: …"),
        (r"Could not parse example input, value: '\377\330\377 Exif'", "Could not parse example input, value: …"),
        (r"Expected image, got \xff\xd8\xffExif", "Expected image, got …"),
        ("bad bytes \x00\x01Exif", "bad bytes …"),
        ("Matrix size-incompatible: In[0]: [1,5], In[1]: [6,3]\n\t [[{{node x}}]]", None),
        ("y" * 500, "y" * 400 + "…"),
    ],
)
def test_what_a_server_quotes_of_a_photo_is_not_repeated(details, kept):
    assert without_quotes(details) == (details if kept is None else kept)


def test_classify_names_the_kind_and_gives_each_label_its_probability(start_gateway, model_server):
    from fakes import image_bytes

    model_server.model.outputs, model_server.model.scores = ONE, constant([0.2])
    gateway = start_gateway(model_server.address, labels="bee,wasp", scores="sigmoid")
    answer = gateway.post("/classify", image_bytes(), "image/jpeg")[1]
    assert answer["model"]["scores"] == "sigmoid"
    assert [(one["label"], round(one["probability"], 6)) for one in answer["predictions"]] == [
        ("bee", 0.8),
        ("wasp", 0.2),
    ]
    raw = gateway.post("/predict", image_bytes(), "image/jpeg")[1]
    assert {label: round(score, 6) for label, score in raw.items()} == {"bee": 0.8, "wasp": 0.2}


def test_independent_probabilities_stay_as_they_are(start_gateway, model_server):
    from fakes import image_bytes

    model_server.model.outputs, model_server.model.scores = THREE, constant([0.95, 0.9, 0.05])
    gateway = start_gateway(model_server.address, labels=json.dumps(["red", "cotton", "striped"]), scores="independent")
    answer = gateway.post("/classify", image_bytes(), "image/jpeg")[1]
    assert answer["model"]["scores"] == "independent"
    found = {one["label"]: round(one["probability"], 6) for one in answer["predictions"]}
    assert found == {"red": 0.95, "cotton": 0.9, "striped": 0.05}
    assert answer["model"]["threshold"] == 0.5
    assert answer["labels"] == ["red", "cotton"]
    best = gateway.post("/classify?top=1", image_bytes(), "image/jpeg")[1]
    assert (len(best["predictions"]), best["labels"]) == (1, ["red", "cotton"])


def test_labels_are_listed_by_the_configured_threshold(start_gateway, model_server):
    from fakes import image_bytes

    model_server.model.outputs, model_server.model.scores = ONE, constant([0.35])
    gateway = start_gateway(model_server.address, labels="bee,wasp", scores="sigmoid", threshold="0.3")
    answer = gateway.post("/classify", image_bytes(), "image/jpeg")[1]
    assert (answer["model"]["threshold"], answer["labels"]) == (0.3, ["wasp"])
    with Client(f"http://127.0.0.1:{gateway.port}") as client:
        found = client.classify(image_bytes())
    assert (found.labels, found.best.label) == (("wasp",), "bee")
    out = io.StringIO()
    Detail(out, None).write(Outcome("bees.jpg", found))
    JsonLines(out, None).write(Outcome("bees.jpg", found))
    assert "labels: wasp\n" in out.getvalue()
    assert '"labels": ["wasp"]' in out.getvalue()


def test_labels_without_a_probability_of_their_own_are_not_listed(start_gateway, model_server):
    from fakes import image_bytes

    gateway = start_gateway(model_server.address)
    answer = gateway.post("/classify", image_bytes(), "image/jpeg")[1]
    assert "threshold" not in answer["model"]
    assert "labels" not in answer
