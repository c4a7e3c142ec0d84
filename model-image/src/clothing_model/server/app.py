"""The server's process: loads models, opens ports, shuts down gracefully."""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType

import tensorflow as tf

from clothing_model import __version__
from clothing_model.errors import ModelError
from clothing_model.server import config, grpc_api, rest_api
from clothing_model.server.cpus import available_cpus
from clothing_model.server.errors import RequestError
from clothing_model.server.flags import Flags
from clothing_model.server.manager import Manager
from clothing_model.server.servable import Settings

log = logging.getLogger(__name__)

DRAIN_SECONDS = 25.0  # below the 30 s that Kubernetes waits before it kills


class _Signals:
    """Handler of SIGTERM and SIGINT.

    The first signal starts a graceful shutdown, the second ends the process at once.

    Without a handler, as upstream, a signal ends the process at once, and is ignored by the PID 1 of a container.
    """

    def __init__(self, handled: bool) -> None:
        self._asked = False
        # A wake-up descriptor, to which the interpreter writes on a signal. A lock fails: the wait may hold it when the
        # handler needs it, and a signal just before the main thread sleeps doesn't end that sleep.
        self._came, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle if handled else signal.SIG_DFL)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._asked:
            os._exit(128 + number)
        self._asked = True

    def asked(self) -> bool:
        """Whether a signal was received."""
        return self._asked

    def wait(self) -> None:
        """Wait for a signal."""
        while not self._asked:
            os.read(self._came, 1)


def serve(flags: Flags) -> int:
    """Serve until a signal; 0 is a clean stop, a failed start raises ModelError."""
    signals = _Signals(flags.handle_signals)
    log.info("clothing-model %s, TensorFlow %s, %d CPUs", __version__, tf.__version__, available_cpus())
    metrics_path = config.metrics_path(flags.monitoring_config_file)
    settings = Settings.of(flags)
    manager = Manager(flags, settings)
    try:
        manager.configure(config.models(flags))
    except RequestError as error:
        raise ModelError(f"Failed to start server. Error: {error}") from error
    manager.start(lambda: config.models(flags))
    failures = manager.wait(signals.asked)
    if failures:
        raise ModelError(
            f"Failed to start server. Error: {len(failures)} servable(s) did not become available: "
            f"{{{'; '.join(failures)}}}"
        )
    if signals.asked():
        log.info("Stopped before a model was loaded")
        _exit(0)
    grpc_server = grpc_api.start(flags, manager, settings.metrics)
    rest_server = rest_api.start(flags, manager, settings.metrics, metrics_path) if flags.rest_api_port else None
    signals.wait()
    log.info("Graceful shutdown: waiting for requests in flight, up to %.0f s", DRAIN_SECONDS)
    manager.stop()
    drained = grpc_server.stop(DRAIN_SECONDS)
    if rest_server is not None:
        rest_server.shutdown()
        rest_server.server_close()
    drained.wait(DRAIN_SECONDS + 1)
    log.info("Stopped")
    _exit(0)
    return 0


def _exit(code: int) -> None:
    """Exit without Python's clean-up.

    A thread may still be inside TensorFlow, which does not survive the clean-up.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
