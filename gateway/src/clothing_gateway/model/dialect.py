"""The seam between the gateway and a model server's protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np
import numpy.typing as npt

from clothing_gateway.errors import GatewayError
from clothing_gateway.model.signature import Model
from clothing_gateway.model.tensor import Element
from clothing_gateway.model.versions import ModelVersion

# What a server says when names, shapes or versions don't fit: an operator's mistake, not a server that is away.
OPERATOR_FAULTS = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


@dataclass(frozen=True, slots=True)
class Method:
    """A unary gRPC method. Its requests are bytes, which a dialect writes."""

    path: str  # /package.Service/Method
    read: Callable[[bytes], Any]

    @property
    def name(self) -> str:
        """Its name in metrics."""
        return self.path.rpartition("/")[2]


class Dialect(Protocol):
    """A protocol of model servers: methods, messages, and meaning of errors."""

    @property
    def service(self) -> str:
        """The gRPC service, whose calls change nothing and may be retried."""

    @property
    def metadata(self) -> Method:
        """Describes a version of the model."""

    @property
    def predict(self) -> Method:
        """Scores photos."""

    def metadata_request(self, version: ModelVersion) -> bytes:
        """The request for a version's description."""

    def describe(self, response: Any, version: ModelVersion) -> Model:  # noqa: ANN401 - a message of the dialect
        """The model by its description; Misfit where the configuration does not fit."""

    def predict_request(self, model: Model, version: ModelVersion, photos: Sequence[Element]) -> bytes:
        """The request for the scores of prepared photos."""

    def scores(self, response: Any, model: Model) -> npt.NDArray[np.floating[Any]]:  # noqa: ANN401
        """The model's output; ModelAnswerUnusable where it can't be read."""

    def version(self, response: Any) -> int | None:  # noqa: ANN401
        """The version that answered, or None where the answer does not say."""

    def failure(self, code: grpc.StatusCode, details: str) -> GatewayError:
        """The error for a failed Predict call.

        It is ModelBusy only for a call that never began, which may be retried.
        """
