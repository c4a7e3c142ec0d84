"""Checks of the model servers: versions, signature, and a real Predict."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
from PIL import Image

from clothing_gateway.commands.doctor import status
from clothing_gateway.commands.doctor.chart import values_for
from clothing_gateway.commands.doctor.network import Server, connect, look_up, speaks_tls
from clothing_gateway.commands.doctor.report import FAIL, OK, SKIPPED, WARNING, Finding
from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import GatewayError, ModelBusy, OutOfTime
from clothing_gateway.model import tls
from clothing_gateway.model.channels import open_channel
from clothing_gateway.model.predictor import Predictor
from clothing_gateway.model.signature import Model
from clothing_gateway.model.tensor import Element
from clothing_gateway.model.tensorflow_serving import SERVICE
from clothing_gateway.model.versions import STABLE
from clothing_gateway.pipeline import prepare, read_header
from clothing_gateway.settings import Settings

_STATUS_SECONDS = 5.0
# A server without a free thread refuses this call, too; one becomes free with each call that ends.
_BUSY_PAUSE_SECONDS = 0.1
# Calls run on beyond the request timeout, to report how long they take.
_PREDICT_SECONDS = 60.0
# A first call slower than the next by this factor, and by these seconds, is one that a client would have met.
_COLD, _COLD_SECONDS = 5, 1.0

_FASTER = "server.resources.requests.cpu, server.resources.limits.cpu, server.gpu.enabled or server.replicas"
_MORE_THREADS = "server.flags.grpc_max_threads, server.replicas"
_RETRY_BUFFER = 4 << 20
_CODE = grpc.StatusCode


def examine(settings: Settings, *, in_pod: bool) -> Iterator[Finding]:
    """Check DNS, connections, versions, signature and Predict of all model servers."""
    target = re.fullmatch(r"(?:dns:(?://[^/]*)?/?|ipv4:|ipv6:)?(.+):(\d+)", settings.tf_serving_host)
    if settings.tf_serving_host.startswith(("unix:", "passthrough:")) or target is None:
        yield Finding("dns", SKIPPED, f"{settings.tf_serving_host} is not HOST:PORT")
        yield Finding("connection", SKIPPED, "only HOST:PORT is checked")
        yield from _ask([Server(settings.tf_serving_host, 0)], [settings], settings)
        return
    host, port = target[1].strip("[]"), int(target[2])
    addresses: list[str] = []
    yield look_up(host, addresses, in_pod=in_pod)
    servers = [Server(address, port) for address in addresses]
    found = {server: list(connect(server, host, settings)) for server in servers}
    reached = [server for server in servers if all(finding.state != FAIL for finding in found[server])]
    for findings in found.values():
        for finding in findings:
            # Calls are routed to those that accept connections; DNS lists a terminated pod for some seconds more.
            fails = finding.state == FAIL and finding.check == "connection" and reached
            yield replace(finding, state=WARNING) if fails else finding
    if not reached:
        for check in ("model", "signature", "predict"):
            yield Finding(check, SKIPPED, "no model server is reachable")
        return
    name = settings.model_tls_server_name or (host if settings.model_tls else "")
    each = [replace(settings, tf_serving_host=server.name, model_tls_server_name=name) for server in reached]
    yield from _ask(reached, each, settings)


def _ask(servers: list[Server], each: list[Settings], settings: Settings) -> Iterator[Finding]:
    """Check each server's versions, signature and speed."""
    versions: dict[str, list[int]] = {}
    asked = []
    for server, own in zip(servers, each, strict=True):
        finding, available = _status(server, own)
        yield finding
        if finding.state != FAIL:
            versions[server.name] = available
            asked.append((server, own))
    if not asked:
        for check in ("signature", "predict"):
            yield Finding(check, SKIPPED, "no model server has the model")
        return
    yield from _compare(versions)
    fits: list[tuple[Server, Predictor, Model]] = []
    first: dict[Server, float] = {}  # seconds of the check, whose picture is the first that a cold model sees
    try:
        for server, own in asked:
            predictor = Predictor(own)
            start = time.monotonic()
            predictor.watcher.check()
            first[server] = time.monotonic() - start
            yield from _signature(server, predictor, settings)
            stable = predictor.versions.states[STABLE]
            if isinstance(stable, Model):
                fits.append((server, predictor, stable))
            else:
                predictor.close()
        yield from _use(fits, first, settings)
    finally:
        for _, predictor, _ in fits:
            predictor.close()


def _use(
    fits: list[tuple[Server, Predictor, Model]], first: dict[Server, float], settings: Settings
) -> Iterator[Finding]:
    """Send photos to each server whose model fits."""
    if not fits:
        yield Finding("predict", SKIPPED, "the model does not fit the settings")
        return
    yield from _preprocessing(fits[0][2], settings)
    for server, predictor, model in fits:
        yield from _predict(server, predictor, model, settings, first[server])
    yield from _batch(*fits[0], settings)


def _compare(versions: dict[str, list[int]]) -> Iterator[Finding]:
    if len({tuple(available) for available in versions.values()}) > 1:
        listed = "; ".join(f"{name}: {_listed(available)}" for name, available in versions.items())
        yield Finding(
            "model",
            WARNING,
            f"the servers have different versions loaded: {listed}: a rollout is in progress, or stuck",
            "model.version, to request one that all have",
        )


def _listed(versions: list[int]) -> str:
    return ", ".join(map(str, versions)) or "none"


def _status(server: Server, settings: Settings) -> tuple[Finding, list[int]]:
    """Get a server's versions, and those that are available."""
    try:
        channel = open_channel(settings, SERVICE, _RETRY_BUFFER, tls.read(settings))
    except tls.TlsError as error:
        return Finding("model", FAIL, str(error), values_for(str(error))), []
    try:
        versions = _ask_status(channel, settings.model_name)
    except grpc.RpcError as error:
        return _no_status(server, settings, error), []
    finally:
        channel.close()
    available = [one.version for one in versions if one.state == status.AVAILABLE]
    failed = any(one.error for one in versions if one.state != status.AVAILABLE)
    told = f"{server.name} has {settings.model_name!r}: {'; '.join(map(str, versions)) or 'no version'}"
    if available and not failed:
        return Finding("model", OK, told), available
    if available:
        return Finding("model", WARNING, told, "model.source: fix or remove the version that fails to load"), available
    if failed:
        return Finding(
            "model", FAIL, told, "model.source, or server.resources.limits.memory where it runs out of memory"
        ), []
    return Finding(
        "model",
        FAIL,
        f"{told}; none is available yet",
        "server.startup.maxSeconds, where loading takes longer",
    ), []


def _ask_status(channel: grpc.Channel, name: str) -> list[status.VersionStatus]:
    """Get the versions; a refusal for want of a thread is retried."""
    end = time.monotonic() + _STATUS_SECONDS
    while True:
        try:
            return status.ask(channel, name, _STATUS_SECONDS)
        except grpc.RpcError as error:
            if error.code() is not _CODE.RESOURCE_EXHAUSTED or time.monotonic() > end:
                raise
        time.sleep(_BUSY_PAUSE_SECONDS)


def _no_status(server: Server, settings: Settings, error: Any) -> Finding:  # noqa: ANN401 - an RpcError, which has no types
    code, words = error.code(), error.details() or ""
    if code is _CODE.NOT_FOUND:
        return Finding(
            "model",
            FAIL,
            f"{server.name} has no model {settings.model_name!r} ({words})",
            "model.name: the gateway requests it, and the server loads it from /models/NAME/VERSION",
        )
    if code is _CODE.UNIMPLEMENTED:
        return Finding(
            "model",
            FAIL,
            f"{server.name} speaks gRPC, but not TensorFlow Serving's API ({words})",
            "TF_SERVING_HOST in gateway.extraEnv, or server.image.repository",
        )
    if not settings.model_tls and server.port and speaks_tls(server):
        return Finding(
            "model",
            FAIL,
            f"{server.name} speaks TLS, and the gateway does not",
            "gateway.serverTls.secretName, as server.tls.secretName is set",
        )
    if code is _CODE.RESOURCE_EXHAUSTED:
        return Finding(
            "model",
            FAIL,
            f"{server.name} refuses calls: all its gRPC threads are busy ({code.name}: {words})",
            _MORE_THREADS,
        )
    if code is _CODE.DEADLINE_EXCEEDED:
        return Finding(
            "model",
            FAIL,
            f"{server.name} accepts connections but does not answer within {_STATUS_SECONDS:g} s: it "
            "is starved of CPU, or hangs",
            "server.resources.requests.cpu, server.resources.limits.cpu",
        )
    return Finding(
        "model",
        FAIL,
        f"call to {server.name} failed ({code.name}: {words}): is it a gRPC port?",
        "TF_SERVING_HOST in gateway.extraEnv: the gRPC port is 8500, the REST port 8501",
    )


def _signature(server: Server, predictor: Predictor, settings: Settings) -> Iterator[Finding]:
    """Check that each requested version is loaded and fits the settings."""
    for name, state in predictor.versions.states.items():
        if isinstance(state, str):
            mend = values_for(state) or "model.name"
            if ", label '" in state:
                mend += ", model.versionLabels"
            # The gateway is ready without these.
            yield Finding("signature", FAIL if name == STABLE else WARNING, f"{name}: {state}", mend)
            continue
        size = f" of {state.size[0]} x {state.size[1]}" if state.size else ", the photo's file (not turned upright)"
        yield Finding(
            "signature",
            OK,
            f"{server.name}: {name} is version {state.version}: {state.input_name!r} takes {state.input_type}{size}, "
            f"{state.output_name!r} gives {state.width or 'any number of'} scores, for {len(settings.labels)} labels",
        )


def _preprocessing(model: Model, settings: Settings) -> Iterator[Finding]:
    if model.input_type != "float32" and settings.input.preprocessing not in ("tf", "none"):
        yield Finding(
            "signature",
            WARNING,
            f"preprocessing {settings.input.preprocessing!r} is not applied, as the model takes {model.input_type}",
            "model.preprocessing: none",
        )
    elif model.input_type == "float32":
        yield Finding(
            "signature",
            OK,
            f"preprocessing is {settings.input.preprocessing!r}; a server doesn't tell whether the model was trained "
            "with it (helm test with test.label and test.photoUrl checks it)",
        )


def _sample(model: Model, settings: Settings) -> Element:
    """Draw a photo, and prepare it as the gateway does."""
    across, down = np.meshgrid(np.arange(640), np.arange(480))
    pixels = np.stack([across % 256, down % 256, (across + down) % 256], axis=2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    data = file.getvalue()
    return prepare(data, read_header(data, settings, settings.decode_memory_bytes), model)


def _predict(server: Server, predictor: Predictor, model: Model, settings: Settings, first: float) -> Iterator[Finding]:
    """Time real Predict calls, and compare with the request timeout."""
    sample = _sample(model, settings)
    allowed = settings.request_timeout_seconds
    seconds: list[float] = []
    for _ in range(3):
        start = time.monotonic()
        try:
            predictor.predict(model, [sample], Deadline.after(_PREDICT_SECONDS))
        except OutOfTime:
            yield Finding(
                "predict", FAIL, f"{server.name}: no answer to Predict within {_PREDICT_SECONDS:g} s", _FASTER
            )
            return
        except GatewayError as error:
            fix = _MORE_THREADS if isinstance(error, ModelBusy) else _refusal(str(error.cause))
            yield Finding("predict", FAIL, f"{server.name}: {error.detail} ({error.cause})", fix)
            return
        seconds.append(time.monotonic() - start)
        if seconds[-1] > allowed:
            break  # one more would add nothing
    usual = min(seconds)
    text = f"{server.name}: Predict takes {usual:.3f} s (request timeout {allowed:g} s)"
    if usual > allowed:
        yield Finding(
            "predict", FAIL, f"{text}: every request ends in 504", f"gateway.requestTimeoutSeconds, or {_FASTER}"
        )
    elif usual > allowed / 2:
        yield Finding(
            "predict",
            WARNING,
            f"{text}, which includes fetch, decode and queue",
            f"gateway.requestTimeoutSeconds, or {_FASTER}",
        )
    elif first > _COLD_SECONDS and first > _COLD * usual:
        yield Finding(
            "predict",
            WARNING,
            f"{text}; the first call took {first:.1f} s, as the model is not warmed up",
            "server.flags.enable_model_warmup, and warm-up requests in the model (clothing-model convert adds them)",
        )
    else:
        yield Finding("predict", OK, text)


def _refusal(cause: str) -> str:
    if "batch" in cause.lower():
        return "gateway.predictBatchSize, at most server.batching.maxBatchSize"
    if "labels" in cause:
        return "model.labels"
    if "memory" in cause.lower() or "OOM" in cause:
        return "server.resources.limits.memory, server.gpu.memoryFraction"
    return "model.inputName, model.outputName, model.imageSize; kubectl logs of the server has more"


def _batch(server: Server, predictor: Predictor, model: Model, settings: Settings) -> Iterator[Finding]:
    """Send the largest batch that the gateway may send."""
    photos = min(settings.predict_batch_size, settings.max_photos, model.batch_limit or settings.predict_batch_size)
    if photos < 2:
        return
    start = time.monotonic()
    try:
        predictor.predict(model, [_sample(model, settings)] * photos, Deadline.after(_PREDICT_SECONDS))
    except GatewayError as error:
        yield Finding(
            "batch",
            FAIL,
            f"{server.name} refuses a batch of {photos} photos: {error.detail} ({error.cause})",
            "gateway.predictBatchSize, at most server.batching.maxBatchSize",
        )
        return
    seconds = time.monotonic() - start
    text = f"{server.name}: Predict of {photos} photos takes {seconds:.3f} s"
    if seconds > settings.request_timeout_seconds:
        yield Finding(
            "batch", WARNING, f"{text}, longer than the request timeout", "gateway.predictBatchSize, gateway.maxPhotos"
        )
    else:
        yield Finding("batch", OK, text)
