"""Routing of requests to versions of the model, over real gRPC."""

from __future__ import annotations

import grpc
import pytest
from fakes import FakeModel, ModelServer
from models import ask, photo
from tensorflow.core.framework import types_pb2

from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import BadRequest, ModelNotReady, ModelRefused, ModelUnavailable
from clothing_gateway.model.versions import ModelVersion, is_chosen


def test_a_version_is_requested_by_number(make, model_server):
    model_server.model.version = 7
    predictor = make(model_server.address, model_version=7)
    predictor.watcher.check()
    assert ask(predictor).version == 7
    assert model_server.model.calls[0].model_spec.version.value == 7


def test_a_version_is_requested_by_label_and_follows_it(make, model_server):
    model_server.model.others = (2,)
    model_server.model.labels = {"stable": 2}
    predictor = make(model_server.address, model_label="stable")
    predictor.watcher.check()
    assert ask(predictor).version == 2
    spec = model_server.model.calls[0].model_spec
    assert (spec.version_label, spec.HasField("version")) == ("stable", False)
    model_server.model.labels = {"stable": 1}
    assert ask(predictor).version == 1


def answered(predictor, request_id="", selected=None):
    """The version that answers a request, by what the server itself says."""
    model = predictor.versions.route(request_id, selected)
    return predictor.predict(model, [photo(size=model.size[0])], Deadline.after(5)).version


def test_the_canary_gets_its_share_and_always_the_same_requests(make, model_server):
    model_server.model.others = (2,)
    predictor = make(model_server.address, model_version=1, canary_version=2, canary_percent=20.0)
    predictor.watcher.check()
    ids = [f"request-{number}" for number in range(1000)]
    chosen = {one for one in ids if predictor.versions.route(one).version == 2}
    assert 150 < len(chosen) < 250
    assert chosen == {one for one in ids if predictor.versions.route(one).version == 2}
    for one in [*sorted(chosen)[:3], *sorted(set(ids) - chosen)[:3]]:
        assert answered(predictor, one) == (2 if one in chosen else 1)


@pytest.mark.parametrize(("percent", "versions"), [(0.0, {1}), (100.0, {2})])
def test_a_canary_share_of_none_and_of_all(make, model_server, percent, versions):
    model_server.model.others = (2,)
    model_server.model.labels = {"stable": 1, "canary": 2}
    settings = {"model_label": "stable", "canary_label": "canary", "canary_percent": percent}
    predictor = make(model_server.address, **settings)
    predictor.watcher.check()
    assert {answered(predictor, f"request-{number}") for number in range(20)} == versions


def test_a_larger_canary_share_keeps_the_requests_of_a_smaller_one():
    ids = [f"request-{number}" for number in range(500)]
    small = {one for one in ids if is_chosen(one, 10)}
    assert small < {one for one in ids if is_chosen(one, 50)}


def test_a_missing_canary_gets_no_requests_and_the_stable_version_answers(make, model_server):
    predictor = make(model_server.address, model_version=1, canary_version=2, canary_percent=100.0)
    predictor.watcher.check()
    assert predictor.versions.not_ready is None
    assert answered(predictor, "request") == 1
    model_server.model.others = (2,)
    predictor.watcher.check()
    assert answered(predictor, "request") == 2
    model_server.model.others = ()
    predictor.watcher.check()
    assert answered(predictor, "request") == 1


def test_a_canary_may_take_photos_of_another_size(make, model_server):
    model_server.model.others = (2,)
    model_server.model.inputs_of = {2: {"input_28": (types_pb2.DT_FLOAT, (-1, 16, 16, 3))}}
    predictor = make(model_server.address, model_version=1, canary_version=2, canary_percent=50.0)
    predictor.watcher.check()
    assert {answered(predictor, f"request-{number}") for number in range(20)} == {1, 2}
    assert {tuple(call.inputs) for call in model_server.model.calls} == {("input_8",), ("input_28",)}


def test_clients_select_only_selectable_versions(make, model_server):
    model_server.model.others = (2, 3)
    model_server.model.labels = {"next": 3}
    predictor = make(model_server.address, model_version=1, selectable_versions=("2", "next", "gone"))
    predictor.watcher.check()
    assert answered(predictor) == 1
    assert answered(predictor, selected="2") == 2
    assert answered(predictor, selected="next") == 3
    with pytest.raises(ModelNotReady) as caught:
        predictor.versions.route("", "gone")
    assert "GATEWAY_SELECTABLE_VERSIONS" in caught.value.cause
    for closed in ("1", "3", "", "selected 2", "2 "):
        with pytest.raises(BadRequest, match="must be one of 2, next, gone"):
            predictor.versions.route("", closed)
    with pytest.raises(BadRequest, match="lets no client choose"):
        make(model_server.address).versions.route("", "2")


def test_a_version_is_slow_by_the_mean_of_its_own_calls():
    version = ModelVersion("stable")
    assert version.is_slow  # until a call has shown otherwise
    version.observe(0.01)
    assert not version.is_slow
    version.observe(0.5)  # one outlier
    assert not version.is_slow
    for _ in range(3):
        version.observe(0.5)
    assert version.is_slow
    for _ in range(20):
        version.observe(0.01)
    assert not version.is_slow


def test_the_mean_is_kept_for_each_version(make, model_server):
    model_server.model.others = (2,)
    model_server.model.delay = 0.15
    predictor = make(model_server.address, model_version=1, canary_version=2, canary_percent=50.0)
    predictor.watcher.check()
    answered(predictor, next(name for name in map(str, range(100)) if is_chosen(name, 50)))
    stable, canary = (predictor.versions.by_name[name] for name in ("stable", "canary"))
    assert canary.predict_seconds >= 0.15
    assert stable.predict_seconds is None


@pytest.fixture
def reloaded(make, model_server):
    """A predictor whose server went from version 1, of 8 x 8 pixels, to version 2, of 16 x 16, unwatched.

    As TensorFlow Serving does where the graph can, the server computes tensors of either size without a word.
    """
    model = model_server.model
    model.scores = lambda batch: [[float(one.shape[0])] * 10 for one in batch]
    predictor = make(model_server.address)
    predictor.watcher.check()
    model.version, model.inputs = 2, {"input_8": (types_pb2.DT_FLOAT, (-1, 16, 16, 3))}
    return predictor


def test_scores_for_photos_of_the_former_size_are_not_passed_on(reloaded):
    with pytest.raises(ModelRefused) as caught:
        ask(reloaded)
    assert "version 2 answered, to photos prepared for version 1" in caught.value.cause


def test_after_a_hot_reload_the_fallback_takes_photos_of_the_new_size(reloaded):
    before = reloaded.versions.route()
    with pytest.raises(ModelRefused):
        ask(reloaded)
    again = reloaded.versions.fallback(before)
    assert (again.version, again.size) == (2, (16, 16))
    prediction = reloaded.predict(again, [photo(size=16)], Deadline.after(5))
    assert (prediction.version, prediction.scores[0][0]) == (2, 16.0)
    assert reloaded.versions.fallback(again) is None


def test_a_call_that_a_reloaded_server_refuses_has_a_fallback(make, model_server):
    predictor = make(model_server.address)
    predictor.watcher.check()
    before = predictor.versions.route()
    model_server.model.version = 2
    model_server.model.inputs = {"input_28": (types_pb2.DT_FLOAT, (-1, 16, 16, 3))}
    with pytest.raises(ModelRefused):
        ask(predictor)
    assert predictor.versions.fallback(before).input_name == "input_28"


def test_another_version_that_takes_the_same_photos_answers_without_a_second_call(make, model_server):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.version = 2
    for _ in range(3):
        assert ask(predictor).version == 2
    methods = [method for method, _ in predictor.counted]
    assert methods == ["GetModelMetadata", "Probe", "Predict", "GetModelMetadata", "Probe", "Predict", "Predict"]


@pytest.mark.parametrize("name", ["input_8", "input_16"], ids=["computed", "refused"])
def test_while_two_servers_differ_each_call_finds_one_that_fits(make, stack, name):
    """Whichever version photos are prepared for, and whichever the last check has found."""
    models = [
        FakeModel(version=1, scores=lambda batch: [[float(one.shape[0])] * 10 for one in batch]),
        FakeModel(
            version=2,
            inputs={name: (types_pb2.DT_FLOAT, (-1, 16, 16, 3))},
            scores=lambda batch: [[float(one.shape[0])] * 10 for one in batch],
        ),
    ]
    servers = [ModelServer(model) for model in models]
    for server in servers:
        stack.callback(server.stop)
    predictor = make("ipv4:" + ",".join(server.address for server in servers))
    predictor.watcher.check()
    seen = set()
    for number in range(40):
        if number % 5 == 0:
            predictor.watcher.check()
        model = predictor.versions.route()
        prediction = predictor.predict(model, [photo(size=model.size[0])], Deadline.after(5))
        seen.add((prediction.version, prediction.scores[0][0]))
    assert seen == {(1, 8.0), (2, 16.0)}


def test_a_label_that_moves_back_to_a_version_of_another_size_is_followed(reloaded, model_server):
    for version, size in ((2, 16), (1, 8), (2, 16)):
        model_server.model.version = version
        model_server.model.inputs = {"input_8": (types_pb2.DT_FLOAT, (-1, size, size, 3))}
        before = reloaded.versions.route()
        with pytest.raises(ModelRefused):
            reloaded.predict(before, [photo(size=before.size[0])], Deadline.after(5))
        assert reloaded.versions.fallback(before).size == (size, size)


def test_servers_that_reload_one_after_the_other_answer_with_both_versions(make, stack):
    servers = [ModelServer(FakeModel(version=version)) for version in (1, 2)]
    for server in servers:
        stack.callback(server.stop)
    predictor = make("ipv4:" + ",".join(server.address for server in servers))
    predictor.watcher.check()
    assert {ask(predictor).version for _ in range(20)} == {1, 2}
    assert predictor.counted.count(("GetModelMetadata", "OK")) <= 3


def test_an_answer_of_a_version_that_no_server_describes_is_not_passed_on(make, model_server):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.version = 2
    model_server.model.fail_metadata = (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
    with pytest.raises(ModelUnavailable) as caught:
        ask(predictor)
    assert caught.value.retry_after == 1
    model_server.model.fail_metadata = None
    assert ask(predictor).version == 2
