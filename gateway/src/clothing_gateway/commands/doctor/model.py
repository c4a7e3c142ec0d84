"""The model servers: what they serve, whether that fits the settings, and a real Predict."""

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
from clothing_gateway.errors import GatewayError, OutOfTime
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
# A call is waited for beyond the request's own time, to say how long it would have taken.
_PREDICT_SECONDS = 60.0
# A first call that takes so many times as long as the next, and so many seconds, is the first client's trouble.
_COLD, _COLD_SECONDS = 5, 1.0

_FASTER = "server.resources.requests.cpu, server.resources.limits.cpu, server.gpu.enabled or server.replicas"
_RETRY_BUFFER = 4 << 20
_CODE = grpc.StatusCode


def examine(settings: Settings, *, in_pod: bool) -> Iterator[Finding]:
    """All that can be found out about the model servers."""
    target = re.fullmatch(r"(?:dns:(?://[^/]*)?/?|ipv4:|ipv6:)?(.+):(\d+)", settings.tf_serving_host)
    if settings.tf_serving_host.startswith(("unix:", "passthrough:")) or target is None:
        yield Finding("dns", SKIPPED, f"{settings.tf_serving_host} is no host and port")
        yield Finding("connection", SKIPPED, "this looks at hosts and ports")
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
            # Calls go to those that take connections; a pod that has just ended is in DNS for some seconds more.
            fails = finding.state == FAIL and finding.check == "connection" and reached
            yield replace(finding, state=WARNING) if fails else finding
    if not reached:
        for check in ("model", "signature", "predict"):
            yield Finding(check, SKIPPED, "no model server could be asked")
        return
    name = settings.model_tls_server_name or (host if settings.model_tls else "")
    each = [replace(settings, tf_serving_host=server.name, model_tls_server_name=name) for server in reached]
    yield from _ask(reached, each, settings)


def _ask(servers: list[Server], each: list[Settings], settings: Settings) -> Iterator[Finding]:
    """What each server serves, whether that fits the settings, and how fast it is."""
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
    try:
        for server, own in asked:
            predictor = Predictor(own)
            predictor.watcher.check()
            yield from _signature(server, predictor, settings)
            stable = predictor.versions.states[STABLE]
            if isinstance(stable, Model):
                fits.append((server, predictor, stable))
            else:
                predictor.close()
        yield from _use(fits, settings)
    finally:
        for _, predictor, _ in fits:
            predictor.close()


def _use(fits: list[tuple[Server, Predictor, Model]], settings: Settings) -> Iterator[Finding]:
    """Photos for each server whose model fits."""
    if not fits:
        yield Finding("predict", SKIPPED, "the model does not fit the settings")
        return
    yield from _preprocessing(fits[0][2], settings)
    for server, predictor, model in fits:
        yield from _predict(server, predictor, model, settings)
    yield from _batch(*fits[0], settings)


def _compare(versions: dict[str, list[int]]) -> Iterator[Finding]:
    if len({tuple(available) for available in versions.values()}) > 1:
        listed = "; ".join(f"{name}: {_listed(available)}" for name, available in versions.items())
        yield Finding(
            "model",
            WARNING,
            f"the servers have different versions loaded: {listed}. An update is under way, or has stopped",
            "model.version, to ask for one that all of them have",
        )


def _listed(versions: list[int]) -> str:
    return ", ".join(map(str, versions)) or "none"


def _status(server: Server, settings: Settings) -> tuple[Finding, list[int]]:
    """The versions that a server has, and those of them that are available."""
    try:
        channel = open_channel(settings, SERVICE, _RETRY_BUFFER, tls.read(settings))
    except tls.TlsError as error:
        return Finding("model", FAIL, str(error), values_for(str(error))), []
    try:
        versions = status.ask(channel, settings.model_name, _STATUS_SECONDS)
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
        return Finding(
            "model", WARNING, told, "model.source: mend or take away the version that can't be loaded"
        ), available
    if failed:
        return Finding(
            "model", FAIL, told, "model.source, or server.resources.limits.memory where it is short of memory"
        ), []
    return Finding(
        "model",
        FAIL,
        f"{told}; none can be asked yet",
        "server.startup.maxSeconds, where it loads for longer than that",
    ), []


def _no_status(server: Server, settings: Settings, error: Any) -> Finding:  # noqa: ANN401 - an RpcError, which has no types
    code, words = error.code(), error.details() or ""
    if code is _CODE.NOT_FOUND:
        return Finding(
            "model",
            FAIL,
            f"{server.name} has no model {settings.model_name!r} ({words})",
            "model.name, in both places: the gateway asks for it, and the server looks for it in /models/NAME/VERSION",
        )
    if code is _CODE.UNIMPLEMENTED:
        return Finding(
            "model",
            FAIL,
            f"{server.name} speaks gRPC, but is no TensorFlow Serving ({words})",
            "TF_SERVING_HOST in gateway.extraEnv, or server.image.repository",
        )
    if not settings.model_tls and server.port and speaks_tls(server):
        return Finding(
            "model",
            FAIL,
            f"{server.name} speaks TLS, and the gateway does not",
            "gateway.serverTls.secretName, as server.tls.secretName is set",
        )
    if code is _CODE.DEADLINE_EXCEEDED:
        return Finding(
            "model",
            FAIL,
            f"{server.name} takes connections and does not answer within {_STATUS_SECONDS:g} s: it is "
            "starved of CPU, or hangs",
            "server.resources.requests.cpu, server.resources.limits.cpu",
        )
    return Finding(
        "model",
        FAIL,
        f"{server.name} can't be asked ({code.name}: {words}): is it a gRPC port?",
        "TF_SERVING_HOST in gateway.extraEnv: the gRPC port is 8500, the REST port 8501",
    )


def _signature(server: Server, predictor: Predictor, settings: Settings) -> Iterator[Finding]:
    """Whether each version that is asked for is there and fits."""
    for name, state in predictor.versions.states.items():
        if isinstance(state, str):
            mend = values_for(state) or "model.name"
            if ", label '" in state:
                mend += ", model.versionLabels"
            # The gateway is ready without these.
            yield Finding("signature", FAIL if name == STABLE else WARNING, f"{name}: {state}", mend)
            continue
        size = f" of {state.size[0]} x {state.size[1]}" if state.size else ", the photo's file"
        yield Finding(
            "signature",
            OK,
            f"{server.name}: {name} is version {state.version}: {state.input_name!r} takes {state.input_type}{size}, "
            f"{state.output_name!r} gives {state.width or 'any number of'} scores, for {len(settings.labels)} labels",
        )


def _preprocessing(model: Model, settings: Settings) -> Iterator[Finding]:
    if model.input_type != "float32" and settings.preprocessing not in ("tf", "none"):
        yield Finding(
            "signature",
            WARNING,
            f"the preprocessing {settings.preprocessing!r} is not done, as the model takes {model.input_type}",
            "model.preprocessing: none",
        )
    elif model.input_type == "float32":
        yield Finding(
            "signature",
            OK,
            f"photos are prepared by {settings.preprocessing!r}; whether the model was trained so, no server can say "
            "(helm test with test.label and test.photoUrl can)",
        )


def _sample(model: Model, settings: Settings) -> Element:
    """A photo of this program's own, prepared as the gateway does."""
    across, down = np.meshgrid(np.arange(640), np.arange(480))
    pixels = np.stack([across % 256, down % 256, (across + down) % 256], axis=2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    data = file.getvalue()
    return prepare(data, read_header(data, settings, settings.decode_memory_bytes), model, settings)


def _predict(server: Server, predictor: Predictor, model: Model, settings: Settings) -> Iterator[Finding]:
    """A real call, and its time beside what a request has."""
    sample = _sample(model, settings)
    allowed = settings.request_timeout_seconds
    seconds: list[float] = []
    for _ in range(3):
        start = time.monotonic()
        try:
            predictor.predict(model, [sample], Deadline.after(_PREDICT_SECONDS))
        except OutOfTime:
            yield Finding("predict", FAIL, f"{server.name} gives no scores within {_PREDICT_SECONDS:g} s", _FASTER)
            return
        except GatewayError as error:
            yield Finding("predict", FAIL, f"{server.name}: {error.detail} ({error.cause})", _refusal(str(error.cause)))
            return
        seconds.append(time.monotonic() - start)
        if seconds[-1] > allowed:
            break  # one more would tell no more
    usual = min(seconds)
    text = f"{server.name} scores a photo in {usual:.3f} s, and a request has {allowed:g} s"
    if usual > allowed:
        yield Finding(
            "predict", FAIL, f"{text}: every photo ends in 504", f"gateway.requestTimeoutSeconds, or {_FASTER}"
        )
    elif usual > allowed / 2:
        yield Finding(
            "predict",
            WARNING,
            f"{text}, in which it is also fetched, decoded and waits for its turn",
            f"gateway.requestTimeoutSeconds, or {_FASTER}",
        )
    elif seconds[0] > _COLD_SECONDS and seconds[0] > _COLD * usual:
        yield Finding(
            "predict",
            WARNING,
            f"{text}; the first one took {seconds[0]:.1f} s, as the model is not warm when it is offered",
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
    """As many photos in one call as the gateway may send."""
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
            f"{server.name} takes no {photos} photos in a call: {error.detail} ({error.cause})",
            "gateway.predictBatchSize, at most server.batching.maxBatchSize",
        )
        return
    seconds = time.monotonic() - start
    text = f"{server.name} scores {photos} photos in one call in {seconds:.3f} s"
    if seconds > settings.request_timeout_seconds:
        yield Finding(
            "batch", WARNING, f"{text}, more than a request has", "gateway.predictBatchSize, gateway.maxPhotos"
        )
    else:
        yield Finding("batch", OK, text)
