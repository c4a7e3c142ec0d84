"""Predict: prepared photos to the model server, scores back."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt

from clothing_contract.contract import LOGITS
from clothing_contract.scores import contradiction, expanded
from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import (
    ClientLeft,
    GatewayError,
    ModelAnswerUnusable,
    ModelBusy,
    ModelOutOfMemory,
    ModelQueueFull,
    ModelRefused,
    ModelUnavailable,
    OutOfTime,
)
from clothing_gateway.model.channels import Channels, PooledChannel
from clothing_gateway.model.concurrency import CallSlots, RetryThrottle, retry_tokens
from clothing_gateway.model.dialect import Dialect
from clothing_gateway.model.signature import Model
from clothing_gateway.model.tensor import Element
from clothing_gateway.model.tensorflow_serving import TensorFlowServing
from clothing_gateway.model.versions import ModelVersion, Versions
from clothing_gateway.model.watcher import Watcher
from clothing_gateway.settings import Settings
from clothing_gateway.telemetry.tracing import Metadata

Batch = Sequence[Element]

# How often a waiting call checks whether its client is still connected.
_CLIENT_CHECK_SECONDS = 0.1
# By a call that meets another version than its photos were prepared for: while two servers differ, that is one in 16.
_SERVERS_TRIED = 4
# A call that expires after this part of the request timeout had time enough, whatever its client asked for.
_LONG = 0.5
# The pauses before a refused call is made again, as gRPC has them for UNAVAILABLE (channels.py).
_BACKOFF_SECONDS, _MOST_BACKOFF_SECONDS = 0.05, 0.5


@dataclass(frozen=True, slots=True)
class Prediction:
    """A row of scores for each photo, and the version that gave them."""

    scores: npt.NDArray[np.floating[Any]]
    version: int


class _Attempt:
    """Context manager of one call: it has its slot and its channel until it has ended."""

    __slots__ = ("_asked", "_channel", "_long_seconds", "_slots", "_start", "left")

    def __init__(self, slots: CallSlots, asked: ModelVersion, long_seconds: float) -> None:
        self._slots = slots
        self._asked = asked
        self._long_seconds = long_seconds  # after which an expired call tells of its server
        self._channel: PooledChannel | None = None
        self._start = time.monotonic()
        self.left = False  # whether the client has disconnected while the call continues, until ``end``

    def on(self, channel: PooledChannel) -> Any:  # noqa: ANN401 - grpc has no type for it
        """Predict on a channel."""
        self._channel = channel
        return channel.predict

    def end(self, error: BaseException | None = None) -> None:
        """Give slot and channel back."""
        if self._channel is not None:
            self._channel.give_back()
        took = time.monotonic() - self._start
        if error is None or isinstance(error, OutOfTime):
            self._asked.observe(took)
        if isinstance(error, OutOfTime) and took >= self._long_seconds:
            self._slots.release_expired(self._start)
            return
        is_known = error is None or isinstance(error, ModelBusy)
        self._slots.release(accepted=error is None if is_known else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not self.left:
            self.end(error)


class Predictor:
    """Asks the versions of the model that its watcher has found."""

    def __init__(
        self,
        settings: Settings,
        *,
        count: Callable[[str, str], object] = lambda method, code: None,
    ) -> None:
        self._settings = settings
        self._long_seconds = _LONG * settings.request_timeout_seconds
        self._count = count
        self._dialect: Dialect = TensorFlowServing(settings)
        self._channels = Channels(settings, self._dialect)
        self.slots = self._channels.slots
        self._throttle = RetryThrottle(retry_tokens(settings.max_in_flight))
        self.versions = Versions(settings)
        self.watcher = Watcher(settings, self.versions, self._channels, self._dialect, count)

    def close(self) -> None:
        """Stop the watcher, and close the channels."""
        self.watcher.stop()
        self._channels.close()

    def predict(
        self,
        model: Model,
        photos: Batch,
        deadline: Deadline,
        metadata: Metadata = (),
        has_left: Callable[[], bool] = lambda: False,
        *,
        client: str = "",
    ) -> Prediction:
        """The scores of a client's prepared photos, in their order.

        Raises ClientLeft where the client has disconnected.
        """
        limit = min(self._settings.predict_batch_size, model.batch_limit or len(photos))
        if len(photos) <= limit:
            return self._predict(model, photos, deadline, metadata, has_left, client=client)
        parts = [
            self._predict(model, photos[start : start + limit], deadline, metadata, has_left, client=client)
            for start in range(0, len(photos), limit)
        ]
        return Prediction(np.concatenate([part.scores for part in parts]), parts[-1].version)

    def _predict(
        self,
        model: Model,
        photos: Batch,
        deadline: Deadline,
        metadata: Metadata,
        has_left: Callable[[], bool],
        *,
        client: str,
    ) -> Prediction:
        """Scores of a batch, of the version that the photos were prepared for.

        Servers reload one after the other: one that is refused by the next may be accepted by the one after. When no
        server has that version any more, ``versions.fallback`` gives what they have.
        """
        asked = self.versions.by_name[model.track]
        message = self._dialect.predict_request(model, asked, photos)
        start = time.monotonic()
        for attempt in range(_SERVERS_TRIED):
            is_last = attempt == _SERVERS_TRIED - 1
            try:
                response = self._retried(asked, message, deadline, metadata, has_left, client=client)
            except ModelRefused as refusal:
                if type(refusal) is not ModelRefused:  # it failed, or its answer is unusable
                    raise
                if is_last or not self._throttle.failed():
                    self.watcher.recheck(asked, start, deadline)
                    raise
                continue
            version = self._dialect.version(response) or model.version
            found = model if version == model.version else self._described(asked, version, deadline)
            if found.takes_photos_of(model):
                return Prediction(self._scores(model, response, len(photos)), version)
            # TensorFlow Serving computes tensors of another size without a word, where the graph can.
            if is_last or not self._throttle.failed():
                break
        self.watcher.adopt(asked, found)
        raise ModelRefused(cause=f"version {version} answered, to photos prepared for version {model.version}")

    def _retried(
        self,
        asked: ModelVersion,
        message: bytes,
        deadline: Deadline,
        metadata: Metadata,
        has_left: Callable[[], bool],
        *,
        client: str,
    ) -> Any:  # noqa: ANN401 - a message of the dialect
        """Call a server; retry on the next one where no thread was free.

        It never began, so nothing is done twice. Retries within gRPC can't do it: they know a status, not its details.
        """
        attempt = 0
        began = time.monotonic()
        while True:
            self._take_slot(asked, deadline, has_left, client=client, first=attempt > 0)
            others = self.slots.in_flight - 1
            try:
                response = self._call(asked, message, deadline, metadata, has_left)
            except OutOfTime as error:
                # Beside other calls the servers are too busy, and a retry may succeed; alone the model is too slow.
                if time.monotonic() - began >= self._long_seconds and max(others, self.slots.in_flight) > 0:
                    raise ModelBusy(cause=f"{error.cause}, beside {others} other calls when it began") from None
                raise
            except ModelBusy:
                longest = min(_BACKOFF_SECONDS * 2**attempt, _MOST_BACKOFF_SECONDS)
                pause = random.uniform(longest / 2, longest)  # noqa: S311 - nothing is secret about it
                if not self._throttle.failed() or pause + (asked.predict_seconds or 0.0) >= deadline.remaining():
                    raise
                time.sleep(pause)
                attempt += 1
            else:
                self._throttle.succeeded()
                return response

    def _take_slot(
        self, asked: ModelVersion, deadline: Deadline, has_left: Callable[[], bool], *, client: str, first: bool
    ) -> None:
        """Wait for a call slot, while there is time left for the call itself."""
        deadline.require("ask the model")
        slots = self.slots
        if slots.acquire(deadline.at - (asked.predict_seconds or 0.0), client, first=first, has_left=has_left):
            if not slots.waiting or deadline.remaining() >= (asked.predict_seconds or 0.0):
                return
            slots.release()  # to a call that has more time: this one would end in vain
        if has_left():
            raise ClientLeft
        raise ModelBusy(cause=f"{slots.in_flight} calls in flight, as many as the servers accept, {slots.waiting} wait")

    def _call(
        self, asked: ModelVersion, message: bytes, deadline: Deadline, metadata: Metadata, has_left: Callable[[], bool]
    ) -> Any:  # noqa: ANN401
        """Make one attempt, whose slot is held until the call has ended.

        It is held even where the client has disconnected before.
        """
        method = self._dialect.predict
        with _Attempt(self.slots, asked, self._long_seconds) as attempt:
            try:
                left = deadline.require("ask the model")
                predict = attempt.on(self._channels.pool().take())
                if asked.is_slow:
                    call = predict.future(message, timeout=left, metadata=metadata)
                    response = self._watched(call, has_left, attempt)
                else:
                    response = predict(message, timeout=left, metadata=metadata)
            except grpc.FutureCancelledError:
                self._count(method.name, "CANCELLED")
                raise ModelUnavailable(cause="CANCELLED") from None
            except grpc.RpcError as error:
                self._count(method.name, error.code().name)
                raise self._failure(error) from None
            except ValueError as error:  # grpc's word for a channel closed under the call: the process is ending
                raise ModelUnavailable(cause=str(error)) from None
            self._count(method.name, "OK")
            self.watcher.saw_answer()
            return response

    def _failure(self, error: grpc.RpcError) -> GatewayError:
        failure = self._dialect.failure(error.code(), error.details() or "")
        if isinstance(failure, ModelBusy | ModelQueueFull | ModelRefused):
            self.watcher.saw_answer()
        if not isinstance(failure, OutOfTime | ModelBusy | ModelQueueFull | ModelOutOfMemory):
            self.watcher.request_check()
        return failure

    def _watched(self, call: Any, has_left: Callable[[], bool], attempt: _Attempt) -> Any:  # noqa: ANN401 - a call, for which grpc has no type
        """A call's answer; ClientLeft, and the call goes on, where the client disconnects.

        TensorFlow Serving does not stop a call that is cancelled: it would keep its thread, which another call would
        be refused for. So the slot is held until the call has ended, at its deadline at the latest.

        Only for a slow model: a call that can be left takes 0.14 ms of CPU more, and a fast one has ended before a
        client could leave.
        """
        while True:
            try:
                return call.result(timeout=_CLIENT_CHECK_SECONDS)
            except grpc.FutureTimeoutError:
                if has_left():
                    attempt.left = True
                    call.add_done_callback(functools.partial(self._end_left, attempt))
                    raise ClientLeft from None

    def _end_left(self, attempt: _Attempt, call: Any) -> None:  # noqa: ANN401
        code = call.code()
        self._count(self._dialect.predict.name, code.name)
        attempt.end(None if code is grpc.StatusCode.OK else self._dialect.failure(code, call.details() or ""))

    def _described(self, asked: ModelVersion, version: int, deadline: Deadline) -> Model:
        """The model of another version that has answered."""
        self.watcher.request_check()
        found = self.watcher.describe(asked, version, deadline)
        if found is None:
            raise ModelUnavailable(cause=f"version {version} answered, and no server describes it")
        return found

    def _scores(self, model: Model, response: Any, photos: int) -> npt.NDArray[np.floating[Any]]:  # noqa: ANN401
        scores = self._dialect.scores(response, model)
        labels = len(self._settings.labels)
        if scores.ndim == 2:
            scores = expanded(scores, model.scores, labels)
        if scores.shape != (photos, labels):
            self.watcher.request_check()
            raise ModelAnswerUnusable(
                cause=f"output {model.output_name!r} has the shape {scores.shape}: {photos} photos, {labels} labels"
            )
        if not np.isfinite(scores).all():
            raise ModelAnswerUnusable(cause=f"output {model.output_name!r} holds numbers that are not finite")
        if model.scores != LOGITS and (problem := contradiction(scores, model.scores)):
            raise ModelAnswerUnusable(cause=f"output {model.output_name!r} {problem}: set GATEWAY_SCORES")
        return scores
