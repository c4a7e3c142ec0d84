"""Model discovery: a thread that checks, again and again, what the model servers serve."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import grpc

from clothing_gateway.model.channels import Channels
from clothing_gateway.model.dialect import OPERATOR_FAULTS, Dialect
from clothing_gateway.model.signature import Misfit, Model
from clothing_gateway.model.tls import TlsError
from clothing_gateway.model.versions import ModelVersion, Versions
from clothing_gateway.settings import Settings

logger = logging.getLogger(__name__)

_CHECK_TIMEOUT_SECONDS = 5.0
# While there is no model: often, so that the gateway is ready as soon as the model is.
_RECHECK_SECONDS = 1.0
# One failed check may be a busy server; so many in a row are an absent one.
_LOST_AFTER = 3
# Between two checks, so that many failing requests ask for one check, not for as many.
_PAUSE_SECONDS = 0.02


class Watcher:
    """Checks each version at an interval, and as soon as a call has met something unexpected."""

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

    def check(self) -> None:
        """Check each version once: set its model, or the reason why there is none."""
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
            self._wake.wait(every if is_calm else min(every, _RECHECK_SECONDS))
            if not self._stopping:
                time.sleep(_PAUSE_SECONDS)

    def _check(self, version: ModelVersion) -> bool:
        """Check one version; False where no server answered."""
        settings = self._settings
        method = self._dialect.metadata
        try:
            response = self._channels.pool().metadata(
                self._dialect.metadata_request(version),
                timeout=min(_CHECK_TIMEOUT_SECONDS, settings.request_timeout_seconds),
            )
        except grpc.RpcError as error:
            self._count(method.name, error.code().name)
            return self._fail(version, error.code(), error.details() or "")
        except ValueError:  # the channel was closed: the process is ending
            return False
        self._count(method.name, "OK")
        if version.failures:
            # The server is back, and other channels than the one that has found it may wait before they try again.
            self._channels.renew()
        version.failures = 0
        try:
            model = self._dialect.describe(response, version)
        except Misfit as misfit:
            _settle(version, str(misfit))
            return True
        payload = model.payload_bytes(
            min(settings.predict_batch_size, settings.max_photos),
            max(settings.max_body_bytes, settings.fetch_max_bytes),
        )
        # Room for the names and shapes around the tensor.
        self._channels.require_retry_buffer(payload + (64 << 10))
        _settle(version, model)
        return True

    def _fail(self, version: ModelVersion, code: grpc.StatusCode, details: str) -> bool:
        settings = self._settings
        version.failures += 1
        if code in OPERATOR_FAULTS:
            _settle(
                version,
                f"the model server at {settings.tf_serving_host} does not serve model "
                f"{settings.model_name!r}{version.words} ({code.name}: {details}): {version.fix}",
            )
            return True
        if code is grpc.StatusCode.UNAVAILABLE and version.failures % _LOST_AFTER == 0:
            # A new channel asks DNS anew: an old one that found no address waits longer each time, up to two minutes.
            self._channels.renew(at_once=True)
        if isinstance(version.state, str) or version.failures >= _LOST_AFTER:
            _settle(
                version, f"the model server at {settings.tf_serving_host} can't be reached ({code.name}: {details})"
            )
        return False

    def _settle_all(self, reason: str) -> None:
        for version in self._versions.by_name.values():
            _settle(version, reason)


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
            },
        )
    else:
        logger.warning("not ready: %s", state, extra={"track": version.name})
