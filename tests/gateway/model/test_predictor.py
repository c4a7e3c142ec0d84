"""Predict over real gRPC, to a server that fails on demand."""

from __future__ import annotations

import time

import grpc
import numpy as np
import pytest
from models import ask, photo
from tensorflow.core.framework import types_pb2

from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import (
    ModelAnswerUnusable,
    ModelFailed,
    ModelOutOfMemory,
    ModelQueueFull,
    ModelRefused,
    ModelUnavailable,
    OutOfTime,
    TooManyBytes,
)

Code = grpc.StatusCode
QUEUE_FULL = "The batch scheduling queue to which this task was submitted is full"


def test_scores_are_returned_as_the_model_gave_them(make, model_server):
    predictor = make(model_server.address)
    predictor.watcher.check()
    prediction = ask(predictor, metadata=(("x-request-id", "req-1"),))
    assert prediction.scores.tolist() == [photo().ravel()[:10].tolist()]
    assert prediction.version == 1
    (request,) = model_server.model.calls
    assert request.model_spec.name == "clothing-model"
    assert request.model_spec.signature_name == "serving_default"
    assert not request.model_spec.HasField("version")
    assert list(request.output_filter) == ["dense_7"]
    assert model_server.model.metadata[0]["x-request-id"] == "req-1"
    assert predictor.counted == [("GetModelMetadata", "OK"), ("Probe", "OK"), ("Predict", "OK")]


def test_tensor_content_is_read_as_well(make, model_server):
    model_server.model.as_content = True
    predictor = make(model_server.address)
    predictor.watcher.check()
    assert ask(predictor).scores.tolist() == [photo().ravel()[:10].tolist()]


def test_photos_are_sent_in_batches(make, model_server):
    predictor = make(model_server.address, predict_batch_size=3)
    predictor.watcher.check()
    photos = [photo(seed) for seed in range(7)]
    prediction = ask(predictor, photos)
    assert np.array_equal(prediction.scores, np.stack([one.ravel()[:10] for one in photos]))
    sizes = [next(iter(call.inputs.values())).tensor_shape.dim[0].size for call in model_server.model.calls]
    assert sizes == [3, 3, 1]


def test_a_signature_with_a_batch_of_one_gets_one_photo_a_call(make, model_server):
    model_server.model.inputs = {"x": (types_pb2.DT_FLOAT, (1, 8, 8, 3))}
    predictor = make(model_server.address)
    predictor.watcher.check()
    assert len(ask(predictor, [photo(1), photo(2)]).scores) == 2
    assert len(model_server.model.calls) == 2


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (Code.DEADLINE_EXCEEDED, OutOfTime),
        ((Code.RESOURCE_EXHAUSTED, "OOM when allocating tensor with shape[8,299,299,3]"), ModelOutOfMemory),
        ((Code.RESOURCE_EXHAUSTED, "Out of memory while trying to allocate 9 bytes"), ModelOutOfMemory),
        ((Code.RESOURCE_EXHAUSTED, QUEUE_FULL), ModelQueueFull),
        (Code.RESOURCE_EXHAUSTED, ModelFailed),
        ((Code.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs 4)"), TooManyBytes),
        (Code.NOT_FOUND, ModelRefused),
        (Code.FAILED_PRECONDITION, ModelRefused),
        (Code.INVALID_ARGUMENT, ModelRefused),
        (Code.UNIMPLEMENTED, ModelRefused),
        (Code.CANCELLED, ModelUnavailable),
        (Code.UNKNOWN, ModelFailed),
        (Code.INTERNAL, ModelFailed),
        (Code.ABORTED, ModelFailed),
        (Code.PERMISSION_DENIED, ModelFailed),
    ],
)
def test_statuses_are_mapped_and_their_details_kept_from_the_client(make, model_server, failure, expected):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.fail = [failure] * (4 if expected is ModelRefused else 1)
    with pytest.raises(expected) as caught:
        ask(predictor)
    assert type(caught.value) is expected
    code, words = failure if isinstance(failure, tuple) else (failure, "told to fail")
    assert caught.value.cause == f"{code.name}: {words}"
    assert words not in caught.value.detail
    # What a server refuses by its names or its version is tried on others, too.
    calls = 4 if expected is ModelRefused else 1
    assert [one for one in predictor.counted if one[0] == "Predict"] == [("Predict", code.name)] * calls
    assert len(model_server.model.calls) == calls


@pytest.mark.parametrize("size", [8, 299, 512])
def test_unavailable_is_retried_also_with_a_large_tensor(make, model_server, size):
    """Without per_rpc_retry_buffer_size the two larger ones (1 and 3 MB) would fail at the first attempt."""
    model_server.model.inputs = {"x": (types_pb2.DT_FLOAT, (-1, size, size, 3))}
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.fail = [Code.UNAVAILABLE]
    assert len(ask(predictor, [photo(size=size)]).scores) == 1
    assert len(model_server.model.calls) == 2


def test_a_batch_larger_than_the_first_buffer_is_retried(make, model_server):
    model_server.model.inputs = {"x": (types_pb2.DT_FLOAT, (-1, 512, 512, 3))}
    predictor = make(model_server.address)
    predictor.watcher.check()
    assert predictor._channels._pool.retry_buffer_bytes >= 8 * 512 * 512 * 3 * 4
    model_server.model.fail = [Code.UNAVAILABLE]
    assert len(ask(predictor, [photo(seed, 512) for seed in range(8)]).scores) == 8
    assert len(model_server.model.calls) == 2


def test_retries_of_unavailable_end_in_model_unavailable(make, model_server):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.fail = [Code.UNAVAILABLE] * 3
    with pytest.raises(ModelUnavailable) as caught:
        ask(predictor)
    assert caught.value.retry_after
    assert len(model_server.model.calls) == 3


def test_retries_are_throttled(make, model_server):
    predictor = make(model_server.address, max_in_flight=2, max_photos=2)  # which the throttle goes by
    predictor.watcher.check()
    model_server.model.fail = [Code.UNAVAILABLE] * 1000
    for _ in range(20):
        with pytest.raises(ModelUnavailable):
            ask(predictor)
    assert len(model_server.model.calls) < 40  # 60 without throttling


def test_full_batching_queue_is_overloaded_not_unavailable(make, model_server):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.fail = [(Code.UNAVAILABLE, QUEUE_FULL)] * 3
    with pytest.raises(ModelQueueFull):
        ask(predictor)


def test_deadline_applies_to_the_call(make, model_server):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.delay = 1.0
    start = time.monotonic()
    with pytest.raises(OutOfTime):
        ask(predictor, seconds=0.2)
    assert time.monotonic() - start < 0.8
    with pytest.raises(OutOfTime, match="before it could ask the model"):
        ask(predictor, seconds=-1)
    assert len(model_server.model.calls) == 1


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (lambda batch: [[1.0] * 9], "(1, 9)"),
        (lambda batch: [[1.0] * 10] * 2, "(2, 10)"),
        (lambda batch: [1.0] * 10, "(10,)"),
        (lambda batch: [[float("nan")] * 10], "not finite"),
        (lambda batch: [[float("inf")] * 10], "not finite"),
    ],
)
def test_an_output_without_one_score_per_label(make, model_server, scores, words):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.scores = scores
    with pytest.raises(ModelAnswerUnusable) as caught:
        ask(predictor)
    assert words in caught.value.cause


def test_an_answer_without_the_output(make, model_server):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.answer_outputs = ("other",)
    with pytest.raises(ModelAnswerUnusable, match="one score per label"):
        ask(predictor)


def test_a_closed_channel_is_model_unavailable(make, model_server):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model = predictor.versions.route()
    connection = predictor._channels.pool()
    predictor.close()
    predictor._channels._pool = connection  # a call that had the channel in hand when it was closed
    with pytest.raises(ModelUnavailable):
        predictor.predict(model, [photo()], Deadline.after(1))


def test_retries_of_a_full_queue_are_throttled(make, model_server):
    """TensorFlow's full batching queue looks like an absent server. Retries of it end when too many calls fail."""
    predictor = make(model_server.address, max_in_flight=8)
    predictor.watcher.check()
    model_server.model.fail = [(Code.UNAVAILABLE, QUEUE_FULL)] * 300
    for _ in range(100):
        with pytest.raises(ModelQueueFull):
            ask(predictor)
    assert len(model_server.model.calls) < 150
