"""Predict: prepared photos to the model server, scores back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import ClientLeft, ModelAnswerUnusable, ModelUnavailable, OutOfTime, Overloaded
from clothing_gateway.model.channels import Channels
from clothing_gateway.model.dialect import Dialect
from clothing_gateway.model.signature import Model
from clothing_gateway.model.tensor import Element
from clothing_gateway.model.tensorflow_serving import TensorFlowServing
from clothing_gateway.model.versions import Versions
from clothing_gateway.model.watcher import Watcher
from clothing_gateway.settings import Settings
from clothing_gateway.telemetry.tracing import Metadata

Batch = Sequence[Element]

# How often a waiting call checks whether its client is still connected.
_CLIENT_CHECK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Prediction:
    """A row of scores for each photo, and the version that gave them."""

    scores: npt.NDArray[np.floating[Any]]
    version: int


class Predictor:
    """Asks the versions of the model that its watcher has found."""

    def __init__(
        self,
        settings: Settings,
        *,
        count: Callable[[str, str], object] = lambda method, code: None,
    ) -> None:
        self._settings = settings
        self._count = count
        self._dialect: Dialect = TensorFlowServing(settings)
        self._channels = Channels(settings, self._dialect)
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
    ) -> Prediction:
        """The scores of prepared photos, in their order; ClientLeft where the client has disconnected."""
        limit = min(self._settings.predict_batch_size, model.batch_limit or len(photos))
        parts = [
            self._predict(model, photos[start : start + limit], deadline, metadata, has_left)
            for start in range(0, len(photos), limit)
        ]
        if len(parts) == 1:
            return parts[0]
        return Prediction(np.concatenate([part.scores for part in parts]), parts[-1].version)

    def _predict(
        self, model: Model, photos: Batch, deadline: Deadline, metadata: Metadata, has_left: Callable[[], bool]
    ) -> Prediction:
        asked = self.versions.by_name[model.track]
        method = self._dialect.predict
        message = self._dialect.predict_request(model, asked, photos)
        left = deadline.require("ask the model")
        start = time.monotonic()
        try:
            with self._channels.pool().predict() as predict:
                if asked.is_slow:
                    response = self._watched(predict.future(message, timeout=left, metadata=metadata), has_left)
                else:
                    response = predict(message, timeout=left, metadata=metadata)
        except grpc.FutureCancelledError:
            self._count(method.name, "CANCELLED")
            raise ModelUnavailable(cause="CANCELLED") from None
        except grpc.RpcError as error:
            self._count(method.name, error.code().name)
            failure = self._dialect.failure(error.code(), error.details() or "")
            if not isinstance(failure, OutOfTime | Overloaded):
                self.watcher.request_check()
            raise failure from None
        except ValueError as error:  # grpc's word for a channel closed under the call: the process is ending
            raise ModelUnavailable(cause=str(error)) from None
        finally:
            asked.observe(time.monotonic() - start)
        self._count(method.name, "OK")
        version = self._dialect.version(response) or model.version
        if version != model.version:
            self.watcher.request_check()
        return Prediction(self._scores(model, response, len(photos)), version)

    def _watched(self, call: Any, has_left: Callable[[], bool]) -> Any:  # noqa: ANN401 - a call, for which grpc has no type
        """A call's answer; it is cancelled where its client leaves.

        Only for a slow model: a call that can be cancelled takes 0.14 ms of CPU more, and a fast one has ended before
        a client could leave.
        """
        while True:
            try:
                return call.result(timeout=_CLIENT_CHECK_SECONDS)
            except grpc.FutureTimeoutError:
                if has_left():
                    call.cancel()
                    self._count(self._dialect.predict.name, "CANCELLED")
                    raise ClientLeft from None

    def _scores(self, model: Model, response: Any, photos: int) -> npt.NDArray[np.floating[Any]]:  # noqa: ANN401
        scores = self._dialect.scores(response, model)
        labels = len(self._settings.labels)
        if scores.shape != (photos, labels):
            self.watcher.request_check()
            raise ModelAnswerUnusable(
                cause=f"output {model.output_name!r} has the shape {scores.shape}: {photos} photos, {labels} labels"
            )
        if not np.isfinite(scores).all():
            raise ModelAnswerUnusable(cause=f"output {model.output_name!r} holds numbers that are not finite")
        return scores
