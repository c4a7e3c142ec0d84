"""Rejection of Classify, Regress and MultiInference, by gRPC and REST.

A photo classifier's signature takes no tf.Example.
"""

from __future__ import annotations

from typing import Any, NoReturn

from clothing_model import savedmodel
from clothing_model.server.errors import invalid
from clothing_model.server.manager import Manager


def refuse_examples(manager: Manager, request: Any, kind: str) -> NoReturn:
    """Reject a tf.Example request with TensorFlow Serving's error message.

    It is the error for a signature that takes photos.

    Raises:
        RequestError: always; NOT_FOUND where there is no such model.

    """
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    name = request.model_spec.signature_name or savedmodel.DEFAULT_SIGNATURE
    with manager.use(request.model_spec) as servable:
        if name not in servable.signatures:
            raise invalid(f"No signature was found with the name: {name}")
    raise invalid(f"No {kind} inputs found in SignatureDef: {name}")
