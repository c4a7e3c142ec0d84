"""Model discovery: a thread that polls the versions of the model servers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import ModelAnswerUnusable, ModelRefused, OutOfTime, TooManyBytes
from clothing_gateway.model import probe
from clothing_gateway.model.channels import Channels
from clothing_gateway.model.dialect import OPERATOR_FAULTS, Dialect
from clothing_gateway.model.signature import Misfit, Model
from clothing_gateway.model.tensor import Element
from clothing_gateway.model.tls import TlsError
from clothing_gateway.model.versions import ModelVersion, Versions
from clothing_gateway.settings import Settings

logger = logging.getLogger(__name__)

Scores = npt.NDArray[np.floating[Any]]

_CHECK_TIMEOUT_SECONDS = 5.0
# While there is no model: often, so that the gateway is ready as soon as the model is.
_RECHECK_SECONDS = 1.0
# The same while the server refuses the check for want of a thread: one is free for a moment only.
_BUSY_RECHECK_SECONDS = 0.2
# How long a check waits for a slot, which a full server needs; it is made without one where calls hang.
_SLOT_SECONDS = 1.0
# Servers reload one after the other, and calls go to each in turn; a full one refuses.
_DESCRIBE_ATTEMPTS, _DESCRIBE_PAUSE_SECONDS = 10, 0.05
# One failed check may be a busy server; so many in a row are an absent one.
_LOST_AFTER = 3
# What a probing Predict is told apart by, in the server's logs and in tests.
PROBE = (("x-request-id", "readiness-probe"),)
# By a probe that meets servers without its version: while two servers differ, that is one in 16.
_SERVERS_TRIED = 4
# Between two checks, so that many failing requests ask for one check, not for as many.
_PAUSE_SECONDS = 0.02


class Watcher:
    """Poller of each version, also triggered by calls with unexpected answers."""

    def __init__(
        self,
        settings: Settings,
        versions: Versions,
        channels: Channels,
        dialect: Dialect,
        count: Callable[[str, str], object],
    ) -> None:
        self._settings = settings
        self._versions = versions
        self._channels = channels
        self._dialect = dialect
        self._count = count
        self._lock = threading.RLock()  # one check at a time
        self._alive = float("-inf")  # when a server last answered a call
        self._is_busy = False  # whether the last check was refused for want of a thread
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model-check", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait for it as long as a check takes."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_CHECK_TIMEOUT_SECONDS + 1)

    def request_check(self) -> None:
        """Have the thread check soon."""
        self._wake.set()

    def saw_answer(self) -> None:
        """Note a sign of life: a server has answered a call, if only by a refusal."""
        self._alive = time.monotonic()

    def check(self) -> None:
        """Check each version once: set its model, or the reason why there is none."""
        with self._lock:
            self._check_all()

    def recheck(self, version: ModelVersion, since: float, deadline: Deadline) -> None:
        """Check a version that refused a call, unless it was checked since.

        It waits for a running check.
        """
        if not self._lock.acquire(timeout=max(deadline.remaining(), 0)):
            return
        try:
            if version.checked < since:
                self._check(version)
        finally:
            self._lock.release()

    def describe(self, version: ModelVersion, number: int, deadline: Deadline) -> Model | None:
        """The model of a version number that has answered; None at the deadline.

        It is None where no server describes it in time.
        """
        if number in version.known:  # as it is for all but the first call after a reload
            return version.known[number]
        if not self._lock.acquire(timeout=max(deadline.remaining(), 0)):
            return None
        try:
            named = ModelVersion(version.name, number)
            for _ in range(_DESCRIBE_ATTEMPTS):
                if number in version.known or deadline.remaining() <= 0:
                    break
                try:
                    found = self._dialect.describe(self._ask(named), named)
                    self._remember(version, self._probed(version, found))
                except (grpc.RpcError, ValueError):  # ValueError: the channel was closed
                    time.sleep(_DESCRIBE_PAUSE_SECONDS)
                except Misfit as misfit:
                    _settle(version, str(misfit))
                    break
            return version.known.get(number)
        finally:
            self._lock.release()

    def adopt(self, version: ModelVersion, model: Model) -> None:
        """Set the model that the servers have by now, ahead of the next check."""
        with self._lock:
            _settle(version, model)

    def _check_all(self) -> None:
        try:
            self._channels.refresh()
        except TlsError as error:
            self._settle_all(str(error))
            return
        for version in self._versions.by_name.values():
            if not self._check(version):
                return  # the others would only wait for the same server

    def _run(self) -> None:
        while not self._stopping:
            # Cleared before the check: a request during it gets another check.
            self._wake.clear()
            try:
                self.check()
            except Exception:  # the thread must outlive whatever a model server sends
                logger.exception("the check of the model failed")
                self._settle_all("the check of the model failed; the log has the traceback")
            self._channels.close_retired()
            stable = self._versions.stable
            is_calm = isinstance(stable.state, Model) and stable.failures == 0
            every = self._settings.model_check_seconds
            again = _BUSY_RECHECK_SECONDS if self._is_busy else _RECHECK_SECONDS
            self._wake.wait(every if is_calm else min(every, again))
            if not self._stopping:
                time.sleep(_PAUSE_SECONDS)

    def _check(self, version: ModelVersion) -> bool:
        """Check one version; False where no server answered."""
        began = time.monotonic()
        self._is_busy = False
        try:
            response = self._ask(version)
        except grpc.RpcError as error:
            return self._fail(version, error.code(), error.details() or "", began)
        except ValueError:  # the channel was closed: the process is ending
            return False
        finally:
            version.checked = time.monotonic()
        self._reached(version)
        try:
            model = self._probed(version, self._dialect.describe(response, version))
        except Misfit as misfit:
            _settle(version, str(misfit))
            return True
        except grpc.RpcError as error:
            return self._fail(version, error.code(), error.details() or "", began)
        except ValueError:
            return False
        self._remember(version, model)
        _settle(version, model)
        return True

    def _ask(self, version: ModelVersion) -> Any:  # noqa: ANN401 - a message of the dialect
        """Request a version's description.

        It takes a thread of the server as other calls do, and so a slot.
        """
        with self._call(self._dialect.metadata.name):
            return self._channels.pool().metadata(
                self._dialect.metadata_request(version),
                timeout=min(_CHECK_TIMEOUT_SECONDS, self._settings.request_timeout_seconds),
            )

    @contextmanager
    def _call(self, method: str) -> Iterator[None]:
        """Hold one of the servers' slots during a call, and count the call by its code."""
        code = "OK"
        slots = self._channels.slots
        has_slot = slots.acquire(time.monotonic() + _SLOT_SECONDS, first=True)
        try:
            yield
        except grpc.RpcError as error:
            code = error.code().name
            raise
        except ValueError:  # the channel was closed
            code = ""
            raise
        finally:
            if code:
                self._count(method, code)
            if has_slot:
                slots.release()

    def _probed(self, version: ModelVersion, model: Model) -> Model:
        """The model with the kind of its scores, as known or probed; Misfit, RpcError."""
        known = version.known.get(model.version)
        if known is not None and replace(known, output=model.output) == model:
            return known
        # By its number: of servers that differ, the next may well have another version under the same name.
        named = ModelVersion(version.name, model.version)

        def ask(picture: Element) -> Scores:
            response = self._probe(self._dialect.predict_request(model, named, [picture]))
            try:
                return self._dialect.scores(response, model)
            except ModelAnswerUnusable as error:
                raise Misfit(str(error.cause)) from None

        try:
            return probe.examine(model, len(self._settings.labels), ask)
        except Misfit as misfit:
            raise Misfit(f"model {model.name!r}, version {model.version}: {misfit}") from None

    def _probe(self, message: bytes) -> Any:  # noqa: ANN401 - a message of the dialect
        """A server's answer to a picture; Misfit where it refuses the picture."""
        for _ in range(_SERVERS_TRIED - 1):
            try:
                return self._predict(message)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
        return self._predict(message)

    def _predict(self, message: bytes) -> Any:  # noqa: ANN401
        try:
            with self._call("Probe"):
                channel = self._channels.pool().take()
                try:
                    return channel.predict(message, timeout=self._settings.request_timeout_seconds, metadata=PROBE)
                finally:
                    channel.give_back()
        except grpc.RpcError as error:
            failure = self._dialect.failure(error.code(), error.details() or "")
            if isinstance(failure, OutOfTime):
                raise Misfit(
                    f"it does not score a picture within {self._settings.request_timeout_seconds:g} s: raise "
                    "GATEWAY_REQUEST_TIMEOUT_SECONDS, or give the server more CPU"
                ) from None
            is_refused = isinstance(failure, ModelRefused | TooManyBytes)
            if is_refused and error.code() is not grpc.StatusCode.NOT_FOUND:
                raise Misfit(f"it refuses a picture ({failure.cause}){_advice(str(failure.cause))}") from None
            raise

    def _reached(self, version: ModelVersion) -> None:
        if version.failures:
            # The server is back, and other channels than the one that has found it may wait before they try again.
            self._channels.renew()
        version.failures = 0

    def _remember(self, version: ModelVersion, model: Model) -> None:
        settings = self._settings
        payload = model.payload_bytes(
            min(settings.predict_batch_size, settings.max_photos),
            max(settings.max_body_bytes, settings.fetch_max_bytes),
        )
        # Room for the names and shapes around the tensor.
        self._channels.require_retry_buffer(payload + (64 << 10))
        version.remember(model)

    def _fail(self, version: ModelVersion, code: grpc.StatusCode, details: str, began: float) -> bool:
        settings = self._settings
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            # A full server is not an absent one: it refuses checks as it refuses photos, and a known model stays known.
            self._is_busy = True
            self._reached(version)
            if isinstance(version.state, str):
                _settle(
                    version,
                    f"the model server at {settings.tf_serving_host} is too busy to describe its model ({code.name}: "
                    f"{details}): raise its grpc_max_threads, or start more servers",
                )
            return False
        if (
            code is grpc.StatusCode.DEADLINE_EXCEEDED
            and isinstance(version.state, Model)
            and self._alive > began - settings.model_check_seconds
        ):
            return False  # slow, and alive: it answers photos
        version.failures += 1
        if code in OPERATOR_FAULTS:
            self._settle_missing(version, code, details)
            return True
        if code is grpc.StatusCode.UNAVAILABLE and version.failures % _LOST_AFTER == 0:
            # A new channel asks DNS anew: an old one that found no address waits longer each time, up to two minutes.
            self._channels.renew(at_once=True)
        if isinstance(version.state, str) or version.failures >= _LOST_AFTER:
            _settle(
                version, f"the model server at {settings.tf_serving_host} can't be reached ({code.name}: {details})"
            )
        return False

    def _settle_missing(self, version: ModelVersion, code: grpc.StatusCode, details: str) -> None:
        settings = self._settings
        server, name = settings.tf_serving_host, settings.model_name
        before = version.state
        _settle(
            version,
            f"the model server at {server} does not serve model {name!r}{version.words} ({code.name}: {details}): "
            f"{version.fix}"
            if isinstance(before, str) and not version.known
            else f"the model server at {server} no longer serves model {name!r}{version.words} which it served "
            f"({code.name}: {details}): put the version back where the server loads it from, or {version.fix}",
        )
        if isinstance(before, Model):
            logger.error(
                "a version of the model was unloaded while requests use it",
                extra={"model": name, "version": before.version, "track": version.name, "fix": version.fix},
            )

    def _settle_all(self, reason: str) -> None:
        for version in self._versions.by_name.values():
            _settle(version, reason)


def _advice(cause: str) -> str:
    """What to change, where the refusal's words tell."""
    if "parse example" in cause.lower() or "ParseExample" in cause:
        return ": the input takes tf.Example, not photos: name another signature with GATEWAY_SIGNATURE_NAME"
    return ""


def _settle(version: ModelVersion, state: Model | str) -> None:
    """Set a version's state, and log it when it changes."""
    before, version.state = version.state, state
    if state == before:
        return
    if isinstance(state, Model):
        logger.info(
            "the model is ready",
            extra={
                "model": state.name,
                "version": state.version,
                "track": version.name,
                "input": f"{state.input_name} {state.input_type} {state.size}",
                "output": f"{state.output_name} {state.width}",
                "scores": state.scores,
            },
        )
    else:
        logger.warning("not ready: %s", state, extra={"track": version.name})
