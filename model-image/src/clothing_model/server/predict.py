"""Predict, for gRPC, REST and the warm-up of a version."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from clothing_model import savedmodel
from clothing_model.savedmodel import warmup
from clothing_model.server import tensors
from clothing_model.server.errors import RequestError, invalid
from clothing_model.server.metrics import Metrics
from clothing_model.server.servable import Servable
from clothing_model.server.tensors import Array

log = logging.getLogger(__name__)


def _joined(names: Iterable[str]) -> str:
    return ",".join(sorted(names))


def output_names(signature: Any, wanted: Iterable[str]) -> list[str]:
    """The requested outputs, or all of them."""
    names = list(wanted)
    for position, alias in enumerate(names):
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{{{_joined(signature.outputs)}}}."
            )
        if alias in names[:position]:
            raise invalid(f"duplicate output tensor alias: {alias}")
    return names or list(signature.outputs)


def check_input_names(signature: Any, given: Iterable[str]) -> None:
    """Check the inputs' count, then each name, with TensorFlow Serving's messages."""
    sent, wanted = set(given), set(signature.inputs)
    if len(sent) != len(wanted):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({{{_joined(sent)}}}) != "
            f"len({{{_joined(wanted)}}}). Sent extra: {{{_joined(sent - wanted)}}}. "
            f"Missing but required: {{{_joined(wanted - sent)}}}."
        )
    for alias in sorted(wanted - sent):
        raise invalid(
            f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in request and no "
            f"default value provided. Inputs expected to be in the request {{{_joined(sent)}}}, or default input alias "
            "set: "
        )


def run(
    servable: Servable, request: Any, response: Any, *, timeout_ms: int = 0, as_content: bool = False,
    metrics: Metrics | None = None,
) -> None:  # fmt: skip
    """Compute a PredictRequest into a PredictResponse; a timeout of 0 is no timeout.

    Raises:
        RequestError: the request doesn't fit the signature, or computing it failed.

    """
    signature_name = request.model_spec.signature_name or savedmodel.DEFAULT_SIGNATURE
    signature = servable.signature(signature_name)
    check_input_names(signature, request.inputs)
    feeds = {
        signature.inputs[alias].name: tensors.from_proto(
            alias, request.inputs[alias], tf.as_dtype(signature.inputs[alias].dtype), position
        )
        for position, alias in enumerate(sorted(request.inputs))
    }
    names = output_names(signature, request.output_filter)
    outputs = compute(
        servable, signature, feeds, names, timeout_ms=timeout_ms, metrics=metrics, model=request.model_spec.name
    )
    response.model_spec.name = request.model_spec.name
    response.model_spec.version.value = servable.version
    response.model_spec.signature_name = signature_name
    for alias, array in outputs.items():
        tensors.into_proto(array, response.outputs[alias], as_content)


def compute(
    servable: Servable, signature: Any, feeds: dict[str, Array], names: list[str], *, timeout_ms: int,
    metrics: Metrics | None, model: str,
) -> dict[str, Array]:  # fmt: skip
    """Compute the outputs ``names`` for ``feeds`` and record the time.

    ``feeds`` is by tensor name, the result is arrays by output name.

    Raises:
        RequestError: the graph refuses the input, or the deadline passed.

    """
    started = time.perf_counter()
    arrays = servable.run(feeds, [signature.outputs[name].name for name in names], timeout_ms)
    if metrics is not None:
        metrics.runtime_latency.observe((time.perf_counter() - started) * 1e6, model, "Predict", "TF1")
    return dict(zip(names, arrays, strict=True))


def warm_up(servable: Servable, iterations: int, metrics: Metrics) -> None:
    """Run a version's warm-up requests; if one fails, the version is not served."""
    path = servable.path / savedmodel.WARMUP
    if not path.exists():
        log.info("No warmup data file found at %s", path)
        return
    started, count, status = time.perf_counter(), 0, "OK"
    try:
        for record in warmup.read(path):
            count += 1
            if count > warmup.MAX_RECORDS:
                raise invalid(f"Number of warmup records exceeds the maximum ({warmup.MAX_RECORDS}) at {path}")
            if record.WhichOneof("log_type") != "predict_log":
                raise invalid(f"Unsupported log_type for warmup: {record.WhichOneof('log_type')} at {path}")
            for _ in range(iterations):
                run(servable, record.predict_log.request, type(record.predict_log.response)())
    except (ValueError, DecodeError) as error:
        status = "INVALID_ARGUMENT"
        raise invalid(f"Failed to parse warmup record: {error}") from error
    except RequestError as error:
        status = error.code.name
        raise
    finally:
        seconds = time.perf_counter() - started
        metrics.warmup_latency.observe(seconds * 1e6, str(servable.path), status)
    log.info("Finished warming up %s: %d requests in %.2f s", servable.path, count, seconds)
