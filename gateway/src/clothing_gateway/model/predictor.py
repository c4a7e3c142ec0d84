"""The way to the model server: its gRPC channels, what the model looks like, and Predict."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import (
    BadRequest,
    ClientLeft,
    GatewayError,
    ModelAnswerUnusable,
    ModelFailed,
    ModelNotReady,
    ModelRefused,
    ModelUnavailable,
    OutOfTime,
    Overloaded,
    TooManyBytes,
)
from clothing_gateway.model import signature, tensor, tls
from clothing_gateway.model.signature import Misfit, Model
from clothing_gateway.model.tls import TlsError, TlsFiles
from clothing_gateway.settings import Settings
from clothing_gateway.telemetry.tracing import Metadata

logger = logging.getLogger(__name__)

Code = grpc.StatusCode
Batch = Sequence[tensor.Element]
_INPUTS: int = predict_pb2.PredictRequest.INPUTS_FIELD_NUMBER

# The smallest retry buffer: one photo of 512 x 512 in float32 is 3 MiB.
_RETRY_BUFFER_BYTES = 4 << 20
_CHECK_TIMEOUT_SECONDS = 5.0
# A server that is there takes a connection within milliseconds.
_REACH_SECONDS = 2.0
# While there is no model: often, so that the gateway is ready as soon as the model is.
_CHECK_AGAIN_SECONDS = 1.0
# One lost check may be a busy server; so many in a row are an absent one.
_LOST_AFTER = 3
# A call that lasts longer is made so that it can be cancelled, and its client looked at so often.
_SLOW_SECONDS = 0.1
# A connection on which calls wait and nothing comes is asked so often whether its server lives, and has so long to say
# so: a server that hangs is found while its calls have time left for another one.
_PING_SECONDS = 5
# The start of a target that is a name, which the system's own name servers know.
_DNS = "dns:///"
# An address that has not been there for so long is a new one when it comes again.
_ADDRESS_SECONDS = 60.0
# To each model server there are as many connections at most.
_MOST_CHANNELS = 8
# gRPC ends retries when half the tokens are gone, a failed call costs one, and there may be no more than this.
_MOST_TOKENS = 1000
# TensorFlow's batching says UNAVAILABLE, as an absent server does, when its queue is full (shared_batch_scheduler.h).
_QUEUE_FULL = "batch scheduling queue"

_OPERATOR_FAULTS = frozenset({Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED})


def target_of(address: str) -> str:
    """A gRPC target for HOST:PORT: dns:///, so that all addresses of a headless Service are found."""
    return address if address.startswith(("dns:", "ipv4:", "ipv6:", "unix:", "passthrough:")) else f"{_DNS}{address}"


def channel_options(retry_buffer_bytes: int, max_in_flight: int) -> list[tuple[str, Any]]:
    """The channel's options, each with the reason that it is there."""
    service_config = {
        # One connection to each pod and calls in turn; the default, pick_first, sends all to one.
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{"service": "tensorflow.serving.PredictionService"}],
                # Predict changes nothing, so it may be asked again: on another pod, as the retry chooses anew.
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "0.5s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        # A full batching queue is UNAVAILABLE, too: without this, retries triple the load that filled it. A server that
        # is lost with all calls that this gateway can have, and a second one after it, must not end them.
        "retryThrottling": {"maxTokens": min(4 * max_in_flight, _MOST_TOKENS), "tokenRatio": 0.1},
    }
    return [
        ("grpc.service_config", json.dumps(service_config)),
        # Channels with the same options would share their connections.
        ("grpc.use_local_subchannel_pool", 1),
        # The default of 256 KiB silently turns retries off for anything larger, and a photo's tensor is 1 MB.
        ("grpc.per_rpc_retry_buffer_size", retry_buffer_bytes),
        # The configuration is above; no TXT record of the name is asked for one.
        ("grpc.service_config_disable_resolution", 1),
        # 30 s by default: too long for a pod that has just come.
        ("grpc.dns_min_time_between_resolutions_ms", 5000),
        # A node that vanishes, or a server that hangs, closes no connection. Pings only during calls, and only where
        # nothing else comes: a server that was not told to expect them (the chart tells it) takes three without an
        # answer to send, so that no call of GATEWAY_REQUEST_TIMEOUT_SECONDS' 20 meets its limit.
        ("grpc.keepalive_time_ms", _PING_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", _PING_SECONDS * 1000),
        # What gRPC goes by since 1.60, whatever the line above says; its default is a minute.
        ("grpc.http2.ping_timeout_ms", _PING_SECONDS * 1000),
        # Up to 120 s by default: the model server would be back long before it is tried again.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.max_receive_message_length", 16 << 20),
        ("grpc.primary_user_agent", "clothing-gateway"),
    ]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A row of scores for each photo, and the version that gave them."""

    scores: npt.NDArray[np.floating[Any]]
    version: int


def open_channel(settings: Settings, retry_buffer_bytes: int, files: TlsFiles | None) -> grpc.Channel:
    """A channel to the model server, as the settings say; it connects when it is first used."""
    target = target_of(settings.tf_serving_host)
    options = channel_options(retry_buffer_bytes, settings.max_in_flight)
    if files is None:
        return grpc.insecure_channel(target, options=options)
    if settings.model_tls_server_name:
        options.append(("grpc.ssl_target_name_override", settings.model_tls_server_name))
    return grpc.secure_channel(target, files.credentials(), options=options)


class _Lane:
    """A channel, and how many Predict calls are on it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.calls = 0
        # Called, or started with .future; with bytes that are a PredictRequest already.
        self.predict: Any = channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            response_deserializer=predict_pb2.PredictResponse.FromString,
        )


class _Connection:
    """The way to the model server: one channel, and more of them while calls are made at the same time.

    Calls that share a channel wait for each other's megabyte, and wake each other's threads: with 8 at a time a photo
    costs a twelfth more, and there are an eighth fewer of them.
    """

    def __init__(self, settings: Settings, retry_buffer_bytes: int, files: TlsFiles | None) -> None:
        self.retry_buffer_bytes = retry_buffer_bytes
        self._open = functools.partial(open_channel, settings, retry_buffer_bytes, files)
        self._lock = threading.Lock()
        first = _Lane(self._open())
        self._lanes = [first]
        self._coming: grpc.Channel | None = None
        self._closed = False
        stub = prediction_service_pb2_grpc.PredictionServiceStub(first.channel)
        self.metadata: Callable[..., get_model_metadata_pb2.GetModelMetadataResponse] = stub.GetModelMetadata

    def is_ready(self, seconds: float) -> bool:
        """Whether the first channel has reached a server, waiting so long for it."""
        reached = grpc.channel_ready_future(self._lanes[0].channel)
        try:
            reached.result(timeout=seconds)
        except grpc.FutureTimeoutError:
            reached.cancel()
            return False
        return True

    @contextmanager
    def lane(self) -> Iterator[Any]:
        """Predict on the channel with the fewest calls. Where none is free, another one is opened for those to come."""
        with self._lock:
            lane = min(self._lanes, key=_calls)
            if lane.calls and len(self._lanes) < _MOST_CHANNELS and self._coming is None and not self._closed:
                self._coming = self._open()
                self._await(self._coming)
            lane.calls += 1
        try:
            yield lane.predict
        finally:
            with self._lock:
                lane.calls -= 1

    def _await(self, channel: grpc.Channel) -> None:
        """Take a channel when it has reached a server.

        Each asks for the servers' addresses itself. One name server may not know yet what another has told the first
        channel, and calls must not fail of it.
        """

        def look(state: grpc.ChannelConnectivity) -> None:
            if state is grpc.ChannelConnectivity.READY:
                channel.unsubscribe(look)
                with self._lock:
                    if self._coming is channel:
                        self._lanes.append(_Lane(channel))
                        self._coming = None

        channel.subscribe(look, try_to_connect=True)

    def close(self) -> None:
        """End all channels; calls on them fail."""
        with self._lock:
            self._closed = True
            channels = [lane.channel for lane in self._lanes]
            if self._coming is not None:
                channels.append(self._coming)
                self._coming = None
        for channel in channels:
            channel.close()


def _calls(lane: _Lane) -> int:
    return lane.calls


STABLE, CANARY = "stable", "canary"
_NOT_ASKED = "the model server has not been asked yet"


@dataclass(slots=True)
class _Track:
    """One way to name a version, and what is known of the version that it leads to."""

    name: str
    version: int | None = None
    label: str = ""
    state: Model | str = _NOT_ASKED
    failures: int = 0

    @property
    def words(self) -> str:
        """How the version is named, for messages."""
        if self.label:
            return f", label {self.label!r},"
        return "" if self.version is None else f", version {self.version},"

    @property
    def way_out(self) -> str:
        """The settings that mend a name that the server doesn't know."""
        if self.name in (STABLE, CANARY):
            which = "MODEL" if self.name == STABLE else "CANARY"
            return f"set GATEWAY_MODEL_NAME, GATEWAY_{which}_VERSION or GATEWAY_{which}_LABEL to what it serves"
        return "set GATEWAY_MODEL_NAME or GATEWAY_SELECTABLE_VERSIONS to what it serves"

    def name_model(self, spec: Any, name: str) -> None:  # noqa: ANN401 - a ModelSpec, for which there are no types
        """Fill in which model is asked for."""
        spec.name = name
        if self.label:
            spec.version_label = self.label
        elif self.version is not None:
            spec.version.value = self.version


def _tracks(settings: Settings) -> dict[str, _Track]:
    tracks = [_Track(STABLE, settings.model_version, settings.model_label)]
    if settings.canary_version is not None or settings.canary_label:
        tracks.append(_Track(CANARY, settings.canary_version, settings.canary_label))
    # Under a name that is no other track's: a version label may well be "canary".
    tracks += [
        _Track(f"selected {one}", int(one)) if one.isdigit() else _Track(f"selected {one}", label=one)
        for one in settings.selectable_versions
    ]
    return {track.name: track for track in tracks}


def is_chosen(request_id: str, percent: float) -> bool:
    """Whether a request belongs to so many percent of all: always the same for the same request id."""
    share = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") / 2**64
    return share < percent / 100


class Predictor:
    """Asks the model. Knows, from a thread that looks again and again, what the model takes, or why there is none."""

    def __init__(
        self,
        settings: Settings,
        *,
        count: Callable[[str, str], object] = lambda method, code: None,
    ) -> None:
        self._settings = settings
        self._count = count
        self._tracks = _tracks(settings)
        self._stable = self._tracks[STABLE]
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._stale = False  # whether there should be another connection than this
        self._retry_buffer_bytes = _RETRY_BUFFER_BYTES
        self._tls: TlsFiles | None = None
        self._retired: list[tuple[float, _Connection]] = []
        self._addresses: dict[str, float] = {}  # of the servers' name, and when each was last there
        self._heads = functools.lru_cache(maxsize=64)(self._head)
        # Whether the last call was; until there was one, as if it had been.
        self._slow = True
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model-check", daemon=True)

    def start(self) -> None:
        """Begin to look for the model."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking, and close the channel."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_CHECK_TIMEOUT_SECONDS + 1)
        with self._lock:
            connections = [connection for _, connection in self._retired]
            if self._connection is not None:
                connections.append(self._connection)
            self._retired, self._connection = [], None
        for connection in connections:
            connection.close()

    @property
    def not_ready(self) -> str | None:
        """Why no photo can be classified now, in words for the operator; None where one can."""
        state = self._stable.state
        return state if isinstance(state, str) else None

    @property
    def states(self) -> dict[str, Model | str]:
        """Each way to name a version (stable, canary, selected …), and its model or why there is none."""
        return {name: track.state for name, track in self._tracks.items()}

    def model(self, request_id: str = "", selected: str | None = None) -> Model:
        """The model for a request, or ModelNotReady.

        That is the version which the client selected, where it may; else the canary for its part of the requests,
        where it is ready; else the stable one.
        """
        if selected is not None:
            chosen = self._tracks.get(f"selected {selected}")
            if chosen is None:
                there = self._settings.selectable_versions
                raise BadRequest(
                    f"X-Model-Version must be one of {', '.join(there)}."
                    if there
                    else "This gateway lets no client choose the model's version: leave X-Model-Version out."
                )
            state = chosen.state
        else:
            state = self._stable.state
            canary = self._tracks.get(CANARY)
            if (
                canary is not None
                and isinstance(canary.state, Model)
                and is_chosen(request_id, self._settings.canary_percent)
            ):
                state = canary.state
        if isinstance(state, str):
            raise ModelNotReady(cause=state)
        return state

    def stand_in(self, refused: Model) -> Model | None:
        """The stable version for a request whose canary was refused; None where none can stand in.

        Servers read their configuration one after the other: for a while one has the canary that another hasn't yet,
        or has no more. The photos may have to be prepared anew.
        """
        state = self._stable.state
        return state if refused.track == CANARY and isinstance(state, Model) else None

    def predict(
        self,
        model: Model,
        photos: Batch,
        deadline: Deadline,
        metadata: Metadata = (),
        has_left: Callable[[], bool] = lambda: False,
    ) -> Prediction:
        """The scores of prepared photos, in their order; ClientLeft where nobody waits for them any more."""
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
        message = tensor.serialise(self._heads(model), _INPUTS, model.input_name, photos)
        left = deadline.require("ask the model")
        start = time.monotonic()
        try:
            with self._connect().lane() as predict:
                if self._slow:
                    response = self._watched(predict.future(message, timeout=left, metadata=metadata), has_left)
                else:
                    response = predict(message, timeout=left, metadata=metadata)
        except grpc.FutureCancelledError:
            self._count("Predict", "CANCELLED")
            raise ModelUnavailable(cause="CANCELLED") from None
        except grpc.RpcError as error:
            self._count("Predict", error.code().name)
            failure = self._failure(error)
            if not isinstance(failure, OutOfTime | Overloaded):
                self._wake.set()  # look now whether the model is still what it was
            raise failure from None
        except ValueError as error:  # grpc's word for a channel closed under the call: the process is ending
            raise ModelUnavailable(cause=str(error)) from None
        finally:
            self._slow = time.monotonic() - start > _SLOW_SECONDS
        self._count("Predict", "OK")
        version = int(response.model_spec.version.value) or model.version
        if version != model.version:
            self._wake.set()
        return Prediction(self._scores(model, response, len(photos)), version)

    def _head(self, model: Model) -> bytes:
        """A PredictRequest without its photos."""
        request = predict_pb2.PredictRequest()
        self._tracks[model.track].name_model(request.model_spec, self._settings.model_name)
        request.model_spec.signature_name = self._settings.signature_name
        request.output_filter.append(model.output_name)
        head: bytes = request.SerializeToString()
        return head

    def _watched(self, call: Any, has_left: Callable[[], bool]) -> predict_pb2.PredictResponse:  # noqa: ANN401 - a call, for which grpc has no type
        """A call's answer; it is cancelled where its client leaves, so that the model does nothing in vain.

        Only for a slow model: a call that can be cancelled takes 0.14 ms of CPU more, and a fast one is over before
        anybody could leave.
        """
        while True:
            try:
                return call.result(timeout=_SLOW_SECONDS)
            except grpc.FutureTimeoutError:
                if has_left():
                    call.cancel()
                    self._count("Predict", "CANCELLED")
                    raise ClientLeft from None

    def _scores(self, model: Model, response: Any, photos: int) -> npt.NDArray[np.floating[Any]]:  # noqa: ANN401
        if model.output_name not in response.outputs:
            raise ModelAnswerUnusable(cause=f"no output {model.output_name!r} in {sorted(response.outputs)}")
        try:
            scores = tensor.read(response.outputs[model.output_name])
        except tensor.TensorError as error:
            raise ModelAnswerUnusable(cause=f"output {model.output_name!r}: {error}") from None
        labels = len(self._settings.labels)
        if scores.shape != (photos, labels):
            self._wake.set()
            raise ModelAnswerUnusable(
                cause=f"output {model.output_name!r} has the shape {scores.shape}: {photos} photos, {labels} labels"
            )
        if not np.isfinite(scores).all():
            raise ModelAnswerUnusable(cause=f"output {model.output_name!r} holds numbers that are not finite")
        return scores

    def _failure(self, error: grpc.RpcError) -> GatewayError:
        """Map gRPC's status to ours. The server's words go into the log only."""
        code, words = error.code(), error.details() or ""
        cause = f"{code.name}: {words}"
        if code is Code.DEADLINE_EXCEEDED:
            return OutOfTime("The model did not answer within the time allowed for this request.", cause=cause)
        if code is Code.UNAVAILABLE:
            return Overloaded(cause=cause) if _QUEUE_FULL in words else ModelUnavailable(cause=cause)
        if code is Code.RESOURCE_EXHAUSTED:
            if "larger than max" in words:
                return TooManyBytes("The prepared photo is larger than the model server takes.", cause=cause)
            return Overloaded(cause=cause)
        if code is Code.CANCELLED:
            return ModelUnavailable(cause=cause)
        if code in _OPERATOR_FAULTS:
            return ModelRefused(cause=cause)
        return ModelFailed(cause=cause)

    def _connect(self) -> _Connection:
        """The connection, which is made when it is first asked for."""
        with self._lock:
            if self._connection is None:
                self._connection = _Connection(self._settings, self._retry_buffer_bytes, self._tls)
            return self._connection

    def _renew(self, *, at_once: bool = False) -> None:
        """Put a new connection in the old one's place when it has reached a server, or at once where the old has none.

        The old one is closed when no call can be left on it. One that reaches nothing is given up, and the next check
        makes another.
        """
        new = _Connection(self._settings, self._retry_buffer_bytes, self._tls)
        self._stale = not at_once and not new.is_ready(_REACH_SECONDS)
        if self._stale:
            new.close()
            return
        with self._lock:
            old, self._connection = self._connection, new
            if old is not None:
                self._retired.append((time.monotonic() + self._settings.request_timeout_seconds + 1, old))

    def _close_retired(self) -> None:
        now = time.monotonic()
        with self._lock:
            over = [connection for until, connection in self._retired if until < now]
            self._retired = [(until, connection) for until, connection in self._retired if until >= now]
        for connection in over:
            connection.close()

    def _run(self) -> None:
        while not self._stopping:
            # Cleared before the check: whoever asks for one during it gets another.
            self._wake.clear()
            try:
                self.check()
            except Exception:  # the thread must outlive whatever a model server sends
                logger.exception("the check of the model failed")
                self._fail("the check of the model failed; the log has the traceback")
            self._close_retired()
            calm = isinstance(self._stable.state, Model) and self._stable.failures == 0
            every = self._settings.model_check_seconds
            self._wake.wait(every if calm else min(every, _CHECK_AGAIN_SECONDS))
            if not self._stopping:
                time.sleep(0.02)  # many failing requests ask for one check, not for as many

    def check(self) -> None:
        """Ask the server what each version looks like, once, and take it or say why not."""
        try:
            files = tls.read(self._settings)
        except TlsError as error:
            self._fail(str(error))
            return
        if files != self._tls:  # certificates are renewed while the gateway runs
            self._tls = files
            self._stale = True
        if self._has_new_servers():
            self._stale = True
        if self._stale:
            self._renew()
        for track in self._tracks.values():
            if not self._check(track):
                return  # the others would only wait for the same server

    def _has_new_servers(self) -> bool:
        """Whether the model servers' name has an address that it did not have before.

        gRPC itself looks when a connection ends, which may be half a minute after a server has come: too late where the
        only other one is about to go, as when two nodes are drained one after the other.
        """
        target = target_of(self._settings.tf_serving_host)
        if not target.startswith(_DNS):
            return False  # of gRPC's other kinds, which only gRPC reads
        name = target.removeprefix(_DNS).rpartition(":")[0].strip("[]")
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError:
            return False
        now = time.monotonic()
        # A name server that gives a few of many addresses, others each time, must not look like new servers.
        before = {one: seen for one, seen in self._addresses.items() if now - seen < _ADDRESS_SECONDS}
        self._addresses = before | {str(one[4][0]): now for one in found}
        return bool(before) and len(self._addresses) > len(before)

    def _fail(self, reason: str) -> None:
        for track in self._tracks.values():
            self._settle(track, reason)

    def _check(self, track: _Track) -> bool:
        """Look at one version; whether the server could be asked."""
        settings = self._settings
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        track.name_model(request.model_spec, settings.model_name)
        try:
            response = self._connect().metadata(
                request, timeout=min(_CHECK_TIMEOUT_SECONDS, settings.request_timeout_seconds)
            )
        except grpc.RpcError as error:
            self._count("GetModelMetadata", error.code().name)
            return self._lost(track, error)
        except ValueError:  # the channel was closed: the process is ending
            return False
        self._count("GetModelMetadata", "OK")
        if track.failures:
            # The server is back, and other channels than the one that has found it may wait before they look again.
            self._renew()
        track.failures = 0
        signatures = get_model_metadata_pb2.SignatureDefMap()
        packed = response.metadata.get("signature_def")
        if packed is None or not packed.Unpack(signatures):
            self._settle(track, f"the model server at {settings.tf_serving_host} answered without signatures")
            return True
        version = int(response.model_spec.version.value)
        name = f"model {settings.model_name!r}, version {version}"
        try:
            model = signature.describe(settings.model_name, version, signatures.signature_def, settings, track.name)
        except Misfit as misfit:
            self._settle(track, f"{name}: {misfit}")
            return True
        payload = model.payload_bytes(
            min(settings.predict_batch_size, settings.max_photos),
            max(settings.max_body_bytes, settings.fetch_max_bytes),
        )
        # Room for the names and shapes around the tensor. The buffer is a limit, not memory taken.
        self._retry_buffer_bytes = max(self._retry_buffer_bytes, payload + (64 << 10))
        if self._connect().retry_buffer_bytes < self._retry_buffer_bytes:
            self._renew()
        self._settle(track, model)
        return True

    def _lost(self, track: _Track, error: grpc.RpcError) -> bool:
        code, words = error.code(), error.details() or ""
        settings = self._settings
        track.failures += 1
        if code in _OPERATOR_FAULTS:
            self._settle(
                track,
                f"the model server at {settings.tf_serving_host} does not serve model "
                f"{settings.model_name!r}{track.words} ({code.name}: {words}): {track.way_out}",
            )
            return True
        if code is Code.UNAVAILABLE and track.failures % _LOST_AFTER == 0:
            # A new channel asks DNS anew: an old one that found no address waits longer each time, up to two minutes.
            self._renew(at_once=True)
        if isinstance(track.state, str) or track.failures >= _LOST_AFTER:
            self._settle(
                track, f"the model server at {settings.tf_serving_host} can't be reached ({code.name}: {words})"
            )
        return False

    def _settle(self, track: _Track, state: Model | str) -> None:
        before, track.state = track.state, state
        if state == before:
            return
        if isinstance(state, Model):
            logger.info(
                "the model is ready",
                extra={
                    "model": state.name,
                    "version": state.version,
                    "track": track.name,
                    "input": f"{state.input_name} {state.input_type} {state.size}",
                    "output": f"{state.output_name} {state.width}",
                },
            )
        else:
            logger.warning("not ready: %s", state, extra={"track": track.name})
