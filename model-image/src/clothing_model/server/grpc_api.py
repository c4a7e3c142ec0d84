"""gRPC services: PredictionService, ModelService and, by flag, grpc.health.v1."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from clothing_model.errors import ModelError
from clothing_model.server import config, model_info, predict
from clothing_model.server.errors import RequestError, deadline_exceeded, from_number
from clothing_model.server.examples import refuse_examples
from clothing_model.server.flags import Flags
from clothing_model.server.manager import Manager
from clothing_model.server.metrics import Metrics

log = logging.getLogger(__name__)

_SHORT_CALLS = 64


class ThreadLimit(grpc.ServerInterceptor):
    """Interceptor that rejects calls over the thread limit.

    TensorFlow Serving does so by gRPC's ResourceQuota::SetMaxThreads.

    Of N threads one waits for the next call, so N-1 calls run. The next is answered RESOURCE_EXHAUSTED at once, with no
    details (2.19; from 2.20 "Server Threadpool Exhausted"), whatever its method, and no metric counts it. A cancelled
    call keeps its thread until it has ended. grpc.health.v1 has a thread of its own and is always answered.

    grpcio's own maximum_concurrent_rpcs counts health checks too, and frees the slot of a cancelled call at once.
    """

    def __init__(self, threads: int) -> None:
        self._free = threading.Semaphore(threads - 1)

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The method's handler, behind the limit."""
        handler = continuation(details)
        if handler is None or details.method.startswith("/grpc.health.v1."):
            return handler

        def limited(request: Any, context: grpc.ServicerContext) -> Any:
            if not self._free.acquire(blocking=False):
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "")
            try:
                return handler.unary_unary(request, context)
            finally:
                self._free.release()

        return grpc.unary_unary_rpc_method_handler(limited, handler.request_deserializer, handler.response_serializer)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    """PredictionService with Predict and GetModelMetadata.

    A photo classifier has no signature for Classify, Regress and MultiInference.
    """

    def __init__(self, manager: Manager, metrics: Metrics, as_content: bool) -> None:
        self._manager = manager
        self._metrics = metrics
        self._as_content = as_content

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - as in the service
        """Scores of a PredictRequest."""
        started = time.perf_counter()
        name, status = request.model_spec.name, "OK"
        response = predict_pb2.PredictResponse()
        try:
            timeout = _timeout_ms(context)
            with self._manager.use(request.model_spec) as servable:
                predict.run(
                    servable, request, response, timeout_ms=timeout, as_content=self._as_content, metrics=self._metrics
                )
        except RequestError as error:
            status = error.code.name
            context.abort(error.code, error.message)
        except Exception:
            status = "INTERNAL"
            raise
        else:
            self._metrics.request_latency.observe((time.perf_counter() - started) * 1e6, name, "Predict", "GRPC")
        finally:
            self._metrics.requests.increment(name, status)
        return response

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Name, version and signatures of a model."""
        return _answer(context, lambda: model_info.metadata(self._manager, request))

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Reject the call: no signature takes tf.Example."""
        return _answer(context, lambda: refuse_examples(self._manager, request, "classification"))

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Reject the call: no signature takes tf.Example."""
        return _answer(context, lambda: refuse_examples(self._manager, request, "regression"))

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Reject the call: no signature takes tf.Example."""
        tasks = list(request.tasks) or [request]
        return _answer(context, lambda: refuse_examples(self._manager, tasks[0], "classification"))


class ModelService(model_service_pb2_grpc.ModelServiceServicer):  # type: ignore[misc]
    """ModelService: the versions' state, and configuration reload."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """State of a model's versions."""
        return _answer(context, lambda: model_info.status(self._manager, request))

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Replace the configuration; returns when its models are loaded."""

        def reload() -> Any:
            if request.config.WhichOneof("config") != "model_config_list":
                raise from_number(
                    3,
                    "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                    "Only ModelConfigList is currently supported",
                )
            self._manager.reload(request.config)
            return model_management_pb2.ReloadConfigResponse()

        return _answer(context, reload)


def _timeout_ms(context: grpc.ServicerContext) -> int:
    """Remaining client deadline in ms, for TensorFlow; 0 where there is none."""
    remaining = context.time_remaining()
    if remaining is None:
        return 0
    if remaining <= 0:
        raise deadline_exceeded("Deadline exceeded before the request was worked on")
    return min(max(1, int(remaining * 1000)), 2**31 - 1)


def _answer(context: grpc.ServicerContext, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except RequestError as error:
        context.abort(error.code, error.message)


def start(flags: Flags, manager: Manager, metrics: Metrics) -> grpc.Server:
    """Start the gRPC server, once the first models are loaded and warm.

    The port is closed until then, so an open port means ready.
    """
    server = grpc.server(
        # Threads for running calls, and for calls that are being received, rejected, or are health checks.
        ThreadPoolExecutor(flags.grpc_threads + _SHORT_CALLS, thread_name_prefix="grpc"),
        interceptors=[ThreadLimit(flags.grpc_threads)],
        options=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a taken port is an error, not a share of its connections
            *flags.channel_arguments,
        ],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(manager, metrics, flags.enable_serialization_as_tensor_content), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(manager), server)
    if flags.enable_grpc_healthcheck_service:
        servicer = health.HealthServicer()
        for service in ("", "ModelService", "PredictionService"):
            servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    credentials = _credentials(flags.ssl_config_file)
    addresses = [f"{_bracketed(flags.listen_host)}:{flags.port}"] if flags.port else []
    if flags.grpc_socket_path:
        addresses.append(f"unix:{flags.grpc_socket_path}")
    for address in addresses:
        try:
            if credentials is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ModelError(f"can't listen on {address}: the address is in use, or not this machine's") from error
    server.start()
    for address in addresses:
        log.info("Running gRPC ModelServer at %s ...", address)
    return server


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _credentials(file: str) -> grpc.ServerCredentials | None:
    if not file:
        return None
    ssl = config.ssl(file)
    return grpc.ssl_server_credentials(
        [(ssl.key, ssl.certificate)],
        root_certificates=ssl.authority,
        require_client_auth=ssl.client_verify,
    )
